"""A shard's day, or a part of it, into new files in the workspace: until what was read is what the shard holds."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import date
from queue import SimpleQueue
from threading import Semaphore, Thread

import numpy as np
import pyarrow as pa

from skywave.formats.spans import Spans

from .datafile import GROUP_ROWS, Writer
from .errors import TargetError, TargetFull, TargetUnavailable
from .known import Known, unnamed_rows
from .manifest import File
from .settings import Export
from .source import Clients, Shard
from .streams import Collector, StreamName
from .tables import Table, add, digest, row_hashes
from .workspace import Workspace

log = logging.getLogger(__name__)
Progress = Callable[[int], None]


@dataclass
class Staged:
    """What one shard gave: new files in the workspace, and what it held in all. ``wanted_rows`` counts rows without numbers
    that a generation which may be replaced has as well; ``unnamed`` and ``numbered`` count a client's new rows without and
    with numbers; of ``scattered`` clients ``streams`` has none."""

    rows: int = 0
    digest: int = 0
    known_rows: int = 0
    known_digest: int = 0
    wanted_rows: int = 0
    steady: bool = True
    files: list[File] = field(default_factory=list)
    streams: dict[StreamName, Spans] = field(default_factory=dict)
    unnamed: dict[int, int] = field(default_factory=dict)
    numbered: dict[int, int] = field(default_factory=dict)
    scattered: set[int] = field(default_factory=set)

    def take(self, part: Staged) -> None:
        """Adds what another part of the shard gave; no stream is in two parts."""
        self.rows += part.rows
        self.digest = add(self.digest, part.digest)
        self.known_rows += part.known_rows
        self.known_digest = add(self.known_digest, part.known_digest)
        self.wanted_rows += part.wanted_rows
        self.steady &= part.steady
        self.files += part.files
        self.streams |= part.streams
        self.unnamed |= part.unnamed
        self.numbered |= part.numbered
        self.scattered |= part.scattered


class Reader:
    """Reads shards into files. ``progress`` is called with rows read; with ``stopping`` set, all readings end soon."""

    def __init__(self, work: Workspace, settings: Export, progress: Progress) -> None:
        self.work, self.settings, self.progress = work, settings, progress
        self.stopping = False

    def stage(
        self, shard: Shard, table: Table, day: date, clients: Clients | None, known: Known, wanted: Known, prefix: str
    ) -> Staged:
        """Reads a shard's day, or a part of it, until what was read is what the shard holds, or it has changed too often.

        Rows that are ``known`` are left out of the files; those without numbers that are ``wanted`` are counted.
        """
        failing_since = 0.0
        read = repeats = 0
        while True:
            read += 1
            marker = shard.marker(table, day)
            try:
                staged, expected = self._read(shard, table, day, clients, known, wanted, f"{prefix}{read:03}")
            except TargetUnavailable as error:
                # An upload cannot be gone on with; the rows are read again, into files of other names.
                failing_since = failing_since or time.monotonic()
                failed_for = time.monotonic() - failing_since
                if isinstance(error, TargetFull) or failed_for >= self.work.target.retry_for:
                    raise
                log.warning("shard %s, %s: %s; reading it again", shard.name, day, error)
                time.sleep(min(0.2 + failed_for / 2, 10.0))
                continue
            found = (staged.rows, staged.digest)
            if (found == expected and shard.marker(table, day) == marker) or found == shard.count_digest(
                table, day, clients
            ):
                return staged
            log.info("shard %s, %s changed while it was read", shard.name, day)
            if repeats == self.settings.repeats:
                staged.steady = False
                return staged
            repeats += 1

    def _read(
        self, shard: Shard, table: Table, day: date, clients: Clients | None, known: Known, wanted: Known, prefix: str
    ) -> tuple[Staged, tuple[int, int]]:
        staged, streams = Staged(), Collector()
        writer: Writer | None = None
        with ThreadPoolExecutor(1, "digest") as pool:
            other = shard.another() if shard.store.parallel else None
            count = pool.submit(other.count_digest, table, day, clients) if other else None
            try:
                for group in _ahead(_groups(shard.rows(table, day, clients))):
                    if self.stopping:
                        raise TargetError("given up, as another shard's reading failed or the command was ended")
                    if wanted.unnamed:
                        staged.wanted_rows += wanted.count_unnamed(group)
                    mask = known.mask(group)
                    seen = group.filter(pa.array(mask)) if mask.any() else None
                    fresh = group.filter(pa.array(~mask)) if seen is not None else group
                    if seen is not None:
                        staged.known_rows += seen.num_rows
                        staged.known_digest = add(staged.known_digest, digest(row_hashes(seen)))
                    if fresh.num_rows:
                        if writer is None:
                            name = f"{prefix}-{len(staged.files) + 1:04}-{secrets.token_hex(4)}.parquet"
                            writer = Writer(self.work.target, self.work.staged(name), table, shard.name)
                        writer.write(fresh)
                        self._account(table, fresh, streams, staged)
                        if writer.bytes >= self.settings.file_bytes:
                            staged.files.append(writer.finish())
                            writer = None
                    self.progress(group.num_rows)
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
        staged.rows = staged.known_rows + sum(file.rows for file in staged.files)
        staged.digest = add(staged.known_digest, *(file.digest for file in staged.files))
        return staged, expected or shard.count_digest(table, day, clients)

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
