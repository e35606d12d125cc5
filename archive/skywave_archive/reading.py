"""A day of all shards into new files in the workspace: each is read until what was read is what the shard holds."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from datetime import date
from queue import SimpleQueue
from threading import Semaphore, Thread

import numpy as np
import pyarrow as pa

from skywave.process.backoff import Backoff

from .archived import ArchivedRows, unnamed_rows
from .datafile import GROUP_ROWS, Writer
from .errors import TargetError, TargetFull, TargetUnavailable
from .settings import Export
from .source import Clients, SourceShard
from .staged import Staged
from .streams import Collector
from .tables import Held, Table, add, digest, row_hashes
from .workspace import Workspace

log = logging.getLogger(__name__)
Progress = Callable[[int], None]
PART_ROWS = 4_000_000
"""A shard's day is read in several parts at once if each has as many rows."""


@dataclass(frozen=True)
class Wanted:
    """What a reading looks for: rows that are ``archived`` already are left out of the files; those without numbers that a
    generation which may be replaced has (``replaceable``) are counted."""

    archived: ArchivedRows
    replaceable: ArchivedRows


@dataclass(frozen=True)
class _Part:
    """A shard's day, or what some of its clients have of it; the paths of its files in the workspace begin with ``prefix``."""

    shard: SourceShard
    table: Table
    day: date
    clients: Clients | None
    prefix: str


class Reader:
    """Reads days of all shards into files of the workspace, with the lock held. ``progress`` is called with rows read."""

    def __init__(self, work: Workspace, shards: list[SourceShard], settings: Export, progress: Progress) -> None:
        self._work, self._shards, self._settings, self._progress = work, shards, settings, progress
        self._stopping = False

    def read(self, table: Table, day: date, wanted: Wanted, folder: str, generation: int) -> dict[str, Staged]:
        """What each shard gave, by its name, with new files in ``folder`` of the workspace. Several shards, or parts of a
        large one, are read at once if the settings allow it; when one reading fails, the others end soon."""
        self._stopping = False
        parts = self._parts(table, day, folder, generation)

        def stage(part: _Part) -> Staged:
            with closing(part.shard.another()) if part.clients else nullcontext(part.shard) as shard:
                return self._stage(replace(part, shard=shard), wanted)

        staged = {shard.name: Staged() for shard in self._shards}
        with ThreadPoolExecutor(min(self._settings.parallel, len(parts)), "shard") as pool:
            try:
                for part, found in zip(parts, pool.map(stage, parts), strict=True):
                    staged[part.shard.name].add(found)
            except BaseException:
                self._stopping = True  # nobody's reading is worth going on with
                raise
        return staged

    def _parts(self, table: Table, day: date, folder: str, generation: int) -> list[_Part]:
        """Every shard's day, in ranges of clients if there are fewer shards than may be read at once."""
        each = self._settings.parallel // len(self._shards)
        return [
            _Part(shard, table, day, clients, f"{folder}/{shard.name}-gen{generation:04}-{number}")
            for shard in self._shards
            for number, clients in enumerate(
                shard.client_ranges(table, day, each, PART_ROWS) if each > 1 and shard.store.parallel else [None]
            )
        ]

    def _stage(self, part: _Part, wanted: Wanted) -> Staged:
        """Reads a part until what was read is what the shard holds, or it has changed too often."""
        shard = part.shard
        failing_since = 0.0
        pause = Backoff(0.4, 10.0)
        attempt = repeats = 0
        while True:
            attempt += 1
            marker = shard.marker(part.table, part.day)
            try:
                staged, expected = self._read(part, wanted, attempt)
            except TargetUnavailable as error:
                # An upload cannot be gone on with; the rows are read again, into files of other names.
                failing_since = failing_since or time.monotonic()
                failed_for = time.monotonic() - failing_since
                if isinstance(error, TargetFull) or failed_for >= self._work.target.retry_for:
                    raise
                log.warning("shard %s, %s: %s; reading it again", shard.name, part.day, error)
                time.sleep(pause.next())
                continue
            found = (staged.rows, staged.digest)
            if (found == expected and shard.marker(part.table, part.day) == marker) or found == shard.count_digest(
                part.table, part.day, part.clients
            ):
                return staged
            log.info("shard %s, %s changed while it was read", shard.name, part.day)
            if repeats == self._settings.repeats:
                staged.steady = False
                return staged
            repeats += 1

    def _read(self, part: _Part, wanted: Wanted, attempt: int) -> tuple[Staged, Held]:
        """What was read, and what the shard said meanwhile that it holds."""
        table, shard = part.table, part.shard
        staged, streams = Staged(), Collector()
        writer: Writer | None = None
        with ThreadPoolExecutor(1, "digest") as pool:
            other = shard.another() if shard.store.parallel else None
            count = pool.submit(other.count_digest, table, part.day, part.clients) if other else None
            try:
                for group in _ahead(_groups(shard.rows(table, part.day, part.clients))):
                    if self._stopping:
                        raise TargetError("given up, as another shard's reading failed or the command was ended")
                    if wanted.replaceable.unnamed:
                        staged.replaceable_rows += wanted.replaceable.count_unnamed(group)
                    mask = wanted.archived.mask(group)
                    seen = group.filter(pa.array(mask)) if mask.any() else None
                    fresh = group.filter(pa.array(~mask)) if seen is not None else group
                    if seen is not None:
                        staged.archived_rows += seen.num_rows
                        staged.archived_digest = add(staged.archived_digest, digest(row_hashes(seen)))
                    if fresh.num_rows:
                        if writer is None:
                            name = (
                                f"{part.prefix}{attempt:03}-{len(staged.files) + 1:04}-{secrets.token_hex(4)}.parquet"
                            )
                            writer = Writer(self._work.target, self._work.staged(name), table, shard.name)
                        writer.write(fresh)
                        self._account(table, fresh, streams, staged)
                        if writer.bytes >= self._settings.file_bytes:
                            staged.files.append(writer.finish())
                            writer = None
                    self._progress(group.num_rows)
                    del group, seen, fresh  # before the next one is waited for
                if writer is not None:
                    staged.files.append(writer.finish())
                    writer = None
            except BaseException as error:
                if writer is not None:
                    writer.abort(error)
                raise
            finally:
                expected = count.result() if count and not count.exception() else None
                if other:
                    other.close()
        staged.streams, staged.numbered, staged.scattered = streams.finish(), dict(streams.rows), streams.scattered
        staged.rows = staged.archived_rows + sum(file.rows for file in staged.files)
        staged.digest = add(staged.archived_digest, *(file.digest for file in staged.files))
        return staged, expected or shard.count_digest(table, part.day, part.clients)

    @staticmethod
    def _account(table: Table, rows: pa.RecordBatch, streams: Collector, staged: Staged) -> None:
        if table.ranged:
            streams.add(rows)
        unnamed = unnamed_rows(table, rows)
        for client, count in zip(*np.unique(unnamed["client_id"].to_numpy(), return_counts=True), strict=True):
            staged.unnamed[int(client)] = staged.unnamed.get(int(client), 0) + int(count)


def _groups(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Batches put together to row groups."""
    waiting: list[pa.RecordBatch] = []
    rows = size = 0
    for batch in batches:
        waiting.append(batch)
        rows += batch.num_rows
        size += batch.nbytes
        if rows >= GROUP_ROWS - (1 << 17) or size >= 1 << 26:
            yield _one(waiting)
            waiting, rows, size = [], 0, 0
    if rows:
        yield _one(waiting)


def _one(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    return pa.concat_batches([batch for batch in batches if batch.num_rows])


def _ahead(groups: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Reads one group ahead in a thread of its own, and never a second: a group is what memory is made of. An error comes out
    where the group would have."""
    ready: SimpleQueue[pa.RecordBatch | BaseException | None] = SimpleQueue()
    wanted = Semaphore(1)
    given_up = False

    def work() -> None:
        try:
            while wanted.acquire() and not given_up:
                group = next(groups, None)
                ready.put(group)
                if group is None:
                    return
                del group
        except BaseException as error:
            ready.put(error)

    thread = Thread(target=work, name="reader", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            wanted.release()
            yield item
            del item
    finally:
        given_up = True
        wanted.release()
        thread.join()
