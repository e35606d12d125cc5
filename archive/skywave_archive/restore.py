"""From the archive into a store: any number of shards, empty or not, all rows or some.

Each day goes into a staging table first. Only when the rows there have the count and digest of what was read, and that is
what the manifest says, does the day's partition move into the table, in one statement. What a restore has done is known
from the target itself, so one that was ended in the middle is run again and goes on.

Restore while no server writes into the target: its rows of the same day could get lost between two statements.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import date
from typing import Any

import numpy as np
import pyarrow as pa

from skywave import config
from skywave.errors import EXIT_TRY_LATER, ConfigError, SkywaveError, StoreRefused
from skywave.store.shards import open_shards, shard_of

from .accounts import ACCOUNTS
from .archive import Archive, day_folder
from .datafile import read_rows
from .errors import BrokenManifest, DamagedFile, NotEmpty
from .manifest import File, Manifest
from .night import is_the_day_s
from .reading import Progress
from .selection import Selection, chosen_days
from .shard_day import ShardDay
from .tables import BY_DAY, Hashes, Table


@dataclass
class DayRestored:
    """What happened to one day: ``restored``, ``merged``, ``there already``, ``empty`` or ``failed``."""

    table: str
    day: date
    outcome: str
    rows: int = 0
    seconds: float = 0.0
    errors: list[SkywaveError] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {**vars(self), "day": self.day.isoformat(), "errors": [str(error) for error in self.errors]}


class Restorer:
    """Restores days into a target: a cluster, whose configuration tells each client's shard, or servers that share them by
    ``client_id % number of servers``. A context manager."""

    def __init__(
        self,
        archive: Archive,
        targets: list[config.Store],
        selection: Selection,
        merge: bool,
        progress: Progress = lambda _: None,
    ) -> None:
        self.archive, self.selection, self.merge, self.progress = archive, selection, merge, progress
        if len(targets) > 1 and any(target.shards for target in targets):
            raise ConfigError(
                "a cluster and another target", "Give a cluster's configuration alone: it names all shards."
            )
        self.stores = [store for target in targets for store in open_shards(target)]
        self.owner = shard_of(targets[0]) if targets[0].shards else lambda client_id: client_id % len(self.stores)

    def prepare(self) -> None:
        """Makes the tables that the target lacks."""
        for store in self.stores:
            store.migrate()

    def __enter__(self) -> Restorer:
        return self

    def __exit__(self, *_: object) -> None:
        for store in self.stores:
            store.close()

    def restore_days(self, table: Table, first: date | None, last: date | None) -> Iterator[DayRestored]:
        """Restores the days of a table, oldest first. What is wrong with one day's data does not stop the others."""
        for day, manifest in chosen_days(self.archive, table, first, last):
            began = time.monotonic()
            try:
                if isinstance(manifest, SkywaveError):
                    raise manifest
                result = self.restore(table, manifest)
            except SkywaveError as error:
                lasting = error.exit_code == EXIT_TRY_LATER or isinstance(error, StoreRefused)
                if lasting and not is_the_day_s(error, self.stores):
                    raise
                result = DayRestored(table.name, day, "failed", errors=[error])
            result.seconds = round(time.monotonic() - began, 2)
            yield result

    def replicas_behind(self) -> list[str]:
        """Waits until every replica has what was moved into its shard; returns why some have it not yet."""
        tables = [*BY_DAY, *(table.name for table in ACCOUNTS), "arrivals"]
        return [why for store in self.stores for why in store.not_whole(tables)]

    def restore(self, table: Table, manifest: Manifest) -> DayRestored:
        """Restores one day. Damaged files, and those whose manifest is missing, are left out and named; the rest goes on."""
        result = DayRestored(table.name, manifest.day, "restored")
        result.errors += [
            BrokenManifest(
                f"{day_folder(table.name, manifest.day)}/{name} is left out: the manifest of its generation is missing",
                f"While the old store has the day: skywave-archive export --day {manifest.day} --anew.",
            )
            for name in self.archive.day_files(manifest).lost
        ]
        files = [file for file in manifest.files if self.selection.concerns(file)]
        shards = [ShardDay(store, table, manifest, self._tag(manifest, n), n) for n, store in enumerate(self.stores)]
        if not files:
            result.outcome = "failed" if result.errors else "empty"
            return result
        expected = manifest if len(shards) == 1 and self.selection.everything else None
        for shard in shards:
            shard.store.read_whole([table.name], lambda: None)  # on to a replica that has all of its shard
        todo = [shard for shard in shards if not shard.done(expected)]
        for shard in shards:
            shard.clean()
        if not todo:
            result.outcome = "failed" if result.errors else "there already"
            return result
        for shard in todo:
            if not self.merge and shard.count_digest()[0]:
                raise NotEmpty(
                    f"{shard.target} has rows of {manifest.day} already, and other ones than would be restored",
                    "Restore into another database, or add only what is missing with --merge.",
                )
        for file in files:
            try:
                self._stage(table, manifest, file, todo)
            except DamagedFile as error:
                result.errors.append(error)
                for shard in todo:
                    shard.drop_file()
        for shard in todo:
            result.rows += shard.move_in(self.merge, complete=not result.errors)
        result.outcome = "failed" if result.errors else "merged" if self.merge else "restored"
        return result

    def _tag(self, manifest: Manifest, number: int) -> str:
        """Names what is being restored, so that a later run knows its own work."""
        chosen = "" if self.selection.everything else repr(self.selection)
        return f"{manifest.generation}/{manifest.digest}/{number + 1} of {len(self.stores)}/{chosen}"

    def _stage(self, table: Table, manifest: Manifest, file: File, shards: list[ShardDay]) -> None:
        path = f"{day_folder(table.name, manifest.day)}/{file.name}"
        for shard in shards:
            shard.begin_file()
        with ThreadPoolExecutor(1, "insert") as pool:
            waiting: Future[None] | None = None
            try:
                for batch, hashes in read_rows(self.archive.target, path, table, file):
                    self.progress(batch.num_rows)
                    if waiting:
                        waiting.result()
                    waiting = pool.submit(self._insert, batch, hashes, shards)
                if waiting:
                    waiting.result()
            finally:
                if waiting:
                    waiting.exception()
        for shard in shards:
            shard.end_file()

    def _insert(self, batch: pa.RecordBatch, hashes: Hashes, shards: list[ShardDay]) -> None:
        chosen = self.selection.mask(batch)
        clients, at = np.unique(batch.column("client_id").to_numpy(), return_inverse=True)
        owner = np.array([self.owner(int(client_id)) for client_id in clients])[at]
        for shard in shards:
            mine = chosen & (owner == shard.number)
            if mine.all():
                shard.insert(batch, hashes)
            elif mine.any():
                shard.insert(batch.filter(pa.array(mine)), hashes[mine])
