"""From the archive into a store: any number of shards, empty or not, all rows or some.

Each day goes into a staging table first. Only when the rows there have the count and digest of what was read, and that is
what the manifest says, does the day's partition move into the table, in one statement. What a restore has done is known
from the target itself, so one that was ended in the middle is run again and goes on.

Restore while no server writes into the target: its rows of the same day could get lost between two statements.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import date
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from skywave import config
from skywave.errors import EXIT_DATA, EXIT_TRY_LATER, ConfigError, SkywaveError, StoreRefused, StoreUnavailable
from skywave.server.schema import MODERN_TABLE_SETTINGS
from skywave.server.store import Store, as_column, open_shards, place, text

from .accounts import ACCOUNTS
from .archive import Archive, day_folder, within
from .datafile import DamagedFile, read_rows
from .manifest import BrokenManifest, File, Manifest
from .night import is_the_day_s
from .source import BOUND, is_bound_by_quorum
from .tables import BY_DAY, TELEMETRY, Hashes, Table, add, digest

Progress = Callable[[int], None]
MAX_PARTS = 100
"""Of a day that moves into the target; ClickHouse slows INSERTs down from 150 on (18.16)."""
MERGE_S = 1800.0
"""How long one merge may take."""


class NotEmpty(SkywaveError):
    """The target has rows of that day already."""

    exit_code = EXIT_DATA


class NothingThere(SkywaveError):
    """The archive has not the day that was asked for."""

    exit_code = EXIT_DATA


class NotTheSame(SkywaveError):
    """What was written is not what was read. Nothing was moved into the table."""

    exit_code = EXIT_DATA


@dataclass(frozen=True)
class Selection:
    """Which rows to restore; times in µs UTC, ``until`` excluded."""

    client_id: int | None = None
    key: bytes | None = None
    since: int | None = None
    until: int | None = None

    @property
    def everything(self) -> bool:
        """True if nothing is left out."""
        return self == Selection()

    def concerns(self, file: File) -> bool:
        """Whether a file can hold chosen rows."""
        return (
            (self.client_id is None or file.first_client <= self.client_id <= file.last_client)
            and (self.since is None or file.max_time >= self.since)
            and (self.until is None or file.min_time < self.until)
        )

    def mask(self, batch: pa.RecordBatch) -> NDArray[np.bool_]:
        """For each row, whether it is chosen."""
        chosen = np.ones(batch.num_rows, np.bool_)
        if self.client_id is not None:
            chosen &= batch.column("client_id").to_numpy() == self.client_id
        if self.key is not None:
            chosen &= pc.equal(batch.column("data_key"), pa.scalar(self.key, pa.binary())).to_numpy(
                zero_copy_only=False
            )
        if self.since is not None:
            chosen &= batch.column("created_at").to_numpy() >= self.since
        if self.until is not None:
            chosen &= batch.column("created_at").to_numpy() < self.until
        return chosen


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
        self, archive: Archive, targets: list[config.Store], selection: Selection, merge: bool,
        progress: Progress = lambda _: None,
    ) -> None:  # fmt: skip
        self.archive, self.selection, self.merge, self.progress = archive, selection, merge, progress
        if len(targets) > 1 and any(target.shards for target in targets):
            raise ConfigError(
                "a cluster and another target", "Give a cluster's configuration alone: it names all shards."
            )
        self.stores = [store for target in targets for store in open_shards(target)]
        self.owner = place(targets[0]) if targets[0].shards else lambda client_id: client_id % len(self.stores)

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

    def settle(self) -> list[str]:
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
        shards = [_Shard(store, table, manifest, self._tag(manifest, n), n) for n, store in enumerate(self.stores)]
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
            result.rows += shard.publish(self.merge, complete=not result.errors)
        result.outcome = "failed" if result.errors else "merged" if self.merge else "restored"
        return result

    def _tag(self, manifest: Manifest, number: int) -> str:
        """Names what is being restored, so that a later run knows its own work."""
        chosen = "" if self.selection.everything else repr(self.selection)
        return f"{manifest.generation}/{manifest.digest}/{number + 1} of {len(self.stores)}/{chosen}"

    def _stage(self, table: Table, manifest: Manifest, file: File, shards: list[_Shard]) -> None:
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

    def _insert(self, batch: pa.RecordBatch, hashes: Hashes, shards: list[_Shard]) -> None:
        chosen = self.selection.mask(batch)
        clients, at = np.unique(batch.column("client_id").to_numpy(), return_inverse=True)
        owner = np.array([self.owner(int(client_id)) for client_id in clients])[at]
        for shard in shards:
            mine = chosen & (owner == shard.number)
            if mine.all():
                shard.insert(batch, hashes)
            elif mine.any():
                shard.insert(batch.filter(pa.array(mine)), hashes[mine])


class _Shard:
    """One day on its way into one shard of the target; ``number`` is its place among them."""

    def __init__(self, store: Store, table: Table, manifest: Manifest, tag: str, number: int) -> None:
        self.store, self.table, self.day, self.tag, self.number = store, table, manifest.day, tag, number
        self.target = f"{store.database}.{table.name}"
        self.staging = f"{self.target}_restoring_{manifest.day:%Y%m%d}"
        self.file_staging = f"{self.staging}_file"
        self.union, self.united = f"{self.staging}_union", f"{self.staging}_united"
        self._journal = f"restored {table.name} {manifest.day}"
        self._rows = self._digest = 0
        self._file_rows = self._file_digest = 0
        self._begun = False

    # -- what the target has -----------------------------------------------------------------------------------------------

    def count_digest(self, table: str | None = None) -> tuple[int, int]:
        """Rows and digest of the day in the target, or in another table of its columns."""
        final = " FINAL" if table is None else ""
        rows, total = self.store.query(
            f"SELECT {self.table.digest_sql} FROM {table or self.target}{final} WHERE day = '{self.day}'"
        )[0]
        return int(rows), int(total)

    def done(self, manifest: Manifest | None) -> bool:
        """True if the target's day is what this restore would make it: by its own note, or by the manifest."""
        have = self.count_digest()
        if manifest is not None and have == (manifest.rows, manifest.digest):
            return True
        found = self.store.query(f"SELECT value FROM {self.store.database}.meta FINAL WHERE name = '{self._journal}'")
        return bool(have[0]) and bool(found) and text(found[0][0]) == f"{have[0]} {have[1]} {self.tag}"

    def _marker(self) -> int:
        return int(
            self.store.query(
                "SELECT max(max_block_number) FROM system.parts WHERE active AND"
                f" database = '{self.store.database}' AND table = '{self.table.name}' AND partition = '{self.day}'"
            )[0][0]
        )

    # -- staging -----------------------------------------------------------------------------------------------------------

    def _create(self, name: str, engine: str) -> None:
        self.store.drop(f"DROP TABLE IF EXISTS {name}")
        # Each row group of a file is a part: 18.16 would refuse more than 300 of them.
        settings = "parts_to_delay_insert = 1000000, parts_to_throw_insert = 1000000"
        if self.store.modern:
            settings += f", {MODERN_TABLE_SETTINGS}"
        order = ", ".join(self.table.identity)
        self.store.query(
            f"CREATE TABLE {name} AS {self.target} ENGINE = {engine}() PARTITION BY day ORDER BY ({order})"
            f" SETTINGS {settings}"
        )
        if engine == "MergeTree":  # its parts merge when they are where they belong
            self.store.query(f"SYSTEM STOP MERGES {name}")

    def clean(self) -> None:
        """Drops what an interrupted restore left."""

        def drop() -> None:
            for name in (self.staging, self.file_staging, self.union, self.united):
                self.store.drop(f"DROP TABLE IF EXISTS {name}")

        self.store.everywhere(drop)

    def begin_file(self) -> None:
        """Makes room for one file's rows."""
        if not self._begun:
            self._create(self.staging, "MergeTree")
            self._begun = True
        self._create(self.file_staging, "MergeTree")
        self._file_rows = self._file_digest = 0

    def insert(self, batch: pa.RecordBatch, hashes: Hashes) -> None:
        """Inserts rows of the file as one block."""
        columns: dict[str, Any] = {}
        keys: list[bytes] | None = None
        for name in self.table.columns:
            column = batch.column(name)
            if name == "data_key":
                encoded = column.dictionary_encode()
                columns[name], keys = encoded.indices.to_numpy(), encoded.dictionary.to_pylist()
            elif pa.types.is_binary(column.type):
                columns[name] = as_column(name, column.to_pylist())
            else:
                columns[name] = column.to_numpy()
        columns["day"] = np.full(batch.num_rows, np.datetime64(self.day))
        self.store.insert(self.file_staging, columns, keys)
        self._file_rows += batch.num_rows
        self._file_digest = add(self._file_digest, digest(hashes))

    def end_file(self) -> None:
        """Takes the rows of a file over that was read to its end and found good."""
        if self._file_rows:
            self.store.query(f"ALTER TABLE {self.staging} ATTACH PARTITION '{self.day}' FROM {self.file_staging}")
        self._rows += self._file_rows
        self._digest = add(self._digest, self._file_digest)
        self.drop_file()

    def drop_file(self) -> None:
        """Forgets the file's rows."""
        self.store.drop(f"DROP TABLE IF EXISTS {self.file_staging}")

    # -- taking over -------------------------------------------------------------------------------------------------------

    def publish(self, merge: bool, complete: bool) -> int:
        """Moves the day into the table; returns how many rows of it are new there.

        ``complete`` is noted, so that a later run does not take a day with damaged files for done.
        """
        rows, total = self.count_digest(self.staging) if self._begun else (0, 0)
        if (rows, total) != (self._rows, self._digest):
            raise NotTheSame(f"{self.staging} has other rows than were put there", "Run the restore again.")
        if not rows:  # REPLACE from an empty partition would empty the target on 18.16
            self.store.drop(f"DROP TABLE IF EXISTS {self.staging}")
            return 0
        marker = self._marker()
        before = self.count_digest()  # after the marker: what arrives in between shows in one of the two
        if merge and before[0]:
            rows, total = self._unite(before)
        if complete:
            row = (self._journal, f"{rows} {total} {self.tag}", time.time_ns() // 1000)
            self.store.insert_rows("meta", ("name", "value", "at"), [row])
        if before[0] and is_bound_by_quorum(self.store, self.table, self.day):
            raise NotEmpty(f"{self.target}: {BOUND}", "Restore the day into another database.")
        if (before[0] and not merge) or self._marker() != marker:
            raise NotEmpty(
                f"{self.target} got new rows of {self.day} during the restore", "Stop the servers, and run it again."
            )
        self._merge_parts()
        if self.table is TELEMETRY:
            self.store.note_arrivals(self.staging, self.day)
        self.store.drop(f"ALTER TABLE {self.target} REPLACE PARTITION '{self.day}' FROM {self.staging}")
        if self.count_digest(self.target) != (rows, total):
            raise NotTheSame(
                f"{self.target} has other rows of {self.day} than were moved there", "Are servers running?"
            )
        self.store.sync()
        self.store.drop(f"DROP TABLE IF EXISTS {self.staging}")
        return rows - before[0]

    def _unite(self, before: tuple[int, int]) -> tuple[int, int]:
        """Adds the target's rows to the staged ones; of a reading that both have, the target's copy stays."""
        union, united = self.union, self.united
        self._create(union, "ReplacingMergeTree")
        self._create(united, "MergeTree")
        columns = ", ".join((*self.table.columns, "day"))
        # Last come, last kept.
        self.store.query(f"INSERT INTO {union} ({columns}) SELECT {columns} FROM {self.staging}")
        self.store.query(
            f"INSERT INTO {union} ({columns}) SELECT {columns} FROM {self.target} FINAL WHERE day = '{self.day}'"
        )
        # Unlike OPTIMIZE it says how far it is, so that no connection times out over a large day, and it never does nothing.
        self.store.query(f"INSERT INTO {united} ({columns}) SELECT {columns} FROM {union} FINAL")
        rows, total = self.count_digest(united)
        if rows < max(before[0], self._rows):
            raise NotTheSame(f"{united} has {rows} rows, fewer than its parts", "Run the restore again.")
        for table in (self.staging, union):
            self.store.drop(f"DROP TABLE {table}")
        self.store.query(f"RENAME TABLE {united} TO {self.staging}")
        return rows, total

    def _merge_parts(self) -> None:
        """Waits until the staged day has few parts: with many more, the target would refuse INSERTs of any day."""
        count = (
            f"SELECT count() FROM system.parts WHERE active AND database = '{self.store.database}'"
            f" AND table = '{self.staging.partition('.')[2]}'"
        )
        parts = fewest = int(self.store.query(count)[0][0])
        if parts <= MAX_PARTS:
            return
        self.store.query(f"SYSTEM START MERGES {self.staging}")
        until = time.monotonic() + MERGE_S
        while (parts := int(self.store.query(count)[0][0])) > MAX_PARTS:
            if parts < fewest:
                fewest, until = parts, time.monotonic() + MERGE_S
            if time.monotonic() > until:
                raise StoreUnavailable(
                    f"{self.staging}: its {parts} parts are not merged", "Look at ClickHouse's log and its disk."
                )
            time.sleep(0.2)


def chosen_days(
    archive: Archive, table: Table, first: date | None, last: date | None
) -> Iterator[tuple[date, Manifest | SkywaveError]]:
    """The days to restore, oldest first, each with its newest manifest or why it cannot be read; broken ones come last."""
    for day, manifest in archive.manifests(table.name):
        if within(day, first, last):
            yield day, manifest
    for day in archive.orphans(table.name):
        if within(day, first, last):
            yield day, BrokenManifest(f"{day_folder(table.name, day)} has files but no manifest", "Verify the archive.")
