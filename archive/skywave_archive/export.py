"""From the store to the archive, one day at a time: read, write, check, publish.

A day is published when all shards were read, never a part of it. If the archive has it already, rows that it lacks become
additional files of the next generation. A generation replaces files of the one before only if it holds every row of them;
a day that has shrunk in the store since (expired, half restored) therefore never shrinks in the archive.
"""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from datetime import date
from queue import Full, Queue
from threading import Thread
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from skywave import __version__
from skywave.errors import EXIT_DATA, SkywaveError

from .archive import HERE, SUPERSEDED, Archive, Step, Workspace, day_folder, manifest_path, utc_now, utc_today
from .datafile import GROUP_ROWS, Writer
from .known import Known, unnamed_rows
from .manifest import BrokenManifest, File, Manifest, ShardState
from .ranges import Collector, Ranges, StreamName, united
from .settings import Export
from .source import Clients, Shard, columns_of
from .tables import Table, add, digest, row_hashes
from .target import TargetError, TargetFull, TargetUnavailable

log = logging.getLogger(__name__)
Progress = Callable[[int], None]
_OURS = re.compile(r"[A-Za-z0-9]+-gen\d{4}-\d+-\d{4}-[0-9a-f]{8}\.parquet")
PART_ROWS = 4_000_000
"""A shard's day is read in several parts at once if each has as many rows."""
MAX_FILES = 16
"""A day that closes with more files than this, from hourly exports, is written anew in few."""


class Shrunk(SkywaveError):
    """The store has not all that the archive has."""

    exit_code = EXIT_DATA


class Doubled(SkywaveError):
    """Two shards hold the same reading."""

    exit_code = EXIT_DATA


@dataclass
class DayResult:
    """What happened to one day: ``exported``, ``added`` (late rows), ``replaced``, ``unchanged``, ``empty``,
    ``unsealed`` (changed while it was read) or ``failed``."""

    table: str
    day: date
    outcome: str
    rows: int = 0
    new_rows: int = 0
    bytes: int = 0
    seconds: float = 0.0
    generation: int = 0
    note: str = ""
    error: SkywaveError | None = None

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        body = {name: value for name, value in vars(self).items() if name != "error"}
        return {**body, "day": self.day.isoformat()}


@dataclass
class Staged:
    """What one shard gave: new files in the workspace, and what it held in all."""

    rows: int = 0
    digest: int = 0
    known_rows: int = 0
    known_digest: int = 0
    steady: bool = True
    files: list[File] = field(default_factory=list)
    streams: dict[StreamName, Ranges] = field(default_factory=dict)
    unnamed: dict[int, int] = field(default_factory=dict)

    def take(self, part: Staged) -> None:
        """Adds what another part of the shard gave; no stream is in two parts."""
        self.rows += part.rows
        self.digest = add(self.digest, part.digest)
        self.known_rows += part.known_rows
        self.known_digest = add(self.known_digest, part.known_digest)
        self.steady &= part.steady
        self.files += part.files
        self.streams |= part.streams
        self.unnamed |= part.unnamed


class Exporter:
    """Exports days with the lock held. ``progress`` is called with rows read."""

    def __init__(
        self,
        archive: Archive,
        work: Workspace,
        shards: list[Shard],
        settings: Export,
        progress: Progress = lambda _: None,
    ) -> None:
        self.archive, self.work, self.shards, self.settings, self.progress = archive, work, shards, settings, progress
        self._stopping = False

    def export(
        self, table: Table, day: date, markers: dict[str, str], generations: list[int], anew: bool = False
    ) -> DayResult:
        """Brings the archive's day up to date; raises what stops it, with nothing half done.

        ``anew`` exports the day as a whole without looking at the archive's files of it, which are put aside; refused if
        the store has not all of it.
        """
        generation = generations[-1] + 1 if generations else 1
        if anew:
            return self._anew(_Job(table, day, markers, None, generation, day < utc_today()), generations)
        old = self.archive.manifest(table.name, day, generations[-1]) if generations else None
        if old is None:
            self._refuse_leftovers(table, day)
        job = _Job(table, day, markers, old, generation, day < utc_today())
        put_together = bool(old and job.closed and not old.sealed and len(old.files) > MAX_FILES)
        # Read as a whole if the day is to be put together, or if rows that the archive has differ in the store now. If
        # the store has not all of them any more, only what is new is added.
        result = self._attempt(job, whole=True) if put_together else None
        result = result or self._attempt(job, whole=False) or self._attempt(job, whole=True)
        return result or DayResult(table.name, day, "unsealed", note="it changed while it was read")

    def _anew(self, job: _Job, generations: list[int]) -> DayResult:
        try:
            must_have = self.archive.manifest(job.table.name, job.day, generations[-1]) if generations else None
        except BrokenManifest:
            must_have = None
        result = self._attempt(job, True, must_have)
        if result is None:
            raise Shrunk(
                f"the store has not all that the archive has of {job.day}: nothing was changed",
                "The archive's files may be the only copy; restore them with --merge first.",
            )
        return result

    def _attempt(self, job: _Job, whole: bool, must_have: Manifest | None = None) -> DayResult | None:
        table, day, old, closed = job.table, job.day, job.old, job.closed
        self._stopping = False
        change = self.work.stage()
        self.work.target.make_folder(self.work.staged(f"{change}/read"))
        self.work.target.make_folder(self.work.staged(f"{change}/files"))
        self.work.assert_owned()
        known = Known(self.archive.target, table, None if whole else old)

        parts = self._parts(table, day)

        def stage(part: _Part) -> Staged:
            prefix = f"{change}/read/{part.shard.name}-gen{job.generation:04}-{part.number}"
            with closing(part.shard.another()) if part.clients else nullcontext(part.shard) as shard:
                return self._stage(shard, table, day, part.clients, known, prefix)

        staged = {shard.name: Staged() for shard in self.shards}
        with ThreadPoolExecutor(min(self.settings.parallel, len(parts)), "shard") as pool:
            try:
                for part, found in zip(parts, pool.map(stage, parts), strict=True):
                    staged[part.shard.name].take(found)
            except BaseException:
                self._stopping = True  # nobody's reading is worth going on with
                raise
        steady = all(part.steady for part in staged.values())
        result = DayResult(table.name, day, "exported" if steady or not closed else "unsealed")
        self._refuse_doubles(job.day, staged)
        if whole and (old or must_have) and not self._contains(old or must_have, staged):
            return None
        if whole and old is None and not any(part.rows for part in staged.values()) and job.generation > 1:
            return None
        if old and not whole:
            rows = sum(part.known_rows for part in staged.values())
            if rows < old.rows:
                result.note = f"the store lacks {old.rows - rows} of {old.rows} archived rows; they stay in the archive"
            elif add(*(part.known_digest for part in staged.values())) != old.digest:
                return None
        kept = old.files if old and not whole else []
        files = [file for part in staged.values() for file in part.files]
        result.rows = sum(file.rows for file in (*kept, *files))
        result.new_rows = result.rows - (old.rows if old else 0)
        result.bytes = sum(file.bytes for file in (*kept, *files))
        sealed = closed and steady
        if old and not whole and not files and (old.sealed or not sealed):
            result.outcome = "unchanged" if steady or not closed else "unsealed"
            result.generation = old.generation
            return result
        manifest = Manifest(
            table.name, day, job.generation, sealed, utc_now(), __version__,
            {shard.name: shard.ddl(table) for shard in self.shards}, columns_of(table),
            {
                shard.name: ShardState(
                    staged[shard.name].rows, staged[shard.name].digest, job.markers.get(shard.name, ""), shard.version()
                )
                for shard in self.shards
            },
            [*kept, *files], self._streams(old if not whole else None, staged),
            self._unnamed(old if not whole else None, staged),
            [file.name for file in old.files] if old and whole else [],
        )  # fmt: skip
        self._publish(manifest, change, old, staged)
        result.generation = job.generation
        if result.outcome == "exported":
            result.outcome = "replaced" if old and whole else "added" if old and files else result.outcome
            result.outcome = "empty" if not manifest.rows else result.outcome
        return result

    # -- reading a shard -------------------------------------------------------------------------------------------------

    def _parts(self, table: Table, day: date) -> list[_Part]:
        """Every shard's day, in ranges of clients if there are fewer shards than may be read at once."""
        each = self.settings.parallel // len(self.shards)
        return [
            _Part(shard, number, clients)
            for shard in self.shards
            for number, clients in enumerate(
                shard.client_ranges(table, day, each, PART_ROWS) if each > 1 and shard.store.parallel else [None]
            )
        ]

    def _stage(
        self, shard: Shard, table: Table, day: date, clients: Clients | None, known: Known, prefix: str
    ) -> Staged:
        """Reads a shard's day, or a part of it, until what was read is what the shard holds, or it has changed too often."""
        failing_since = 0.0
        read = repeats = 0
        while True:
            read += 1
            marker = shard.marker(table, day)
            try:
                staged, expected = self._read(shard, table, day, clients, known, f"{prefix}{read:03}")
            except TargetUnavailable as error:
                # An upload cannot be gone on with; the rows are read again, into files of other names.
                failing_since = failing_since or time.monotonic()
                failed_for = time.monotonic() - failing_since
                if isinstance(error, TargetFull) or failed_for >= self.archive.target.retry_for:
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
        self, shard: Shard, table: Table, day: date, clients: Clients | None, known: Known, prefix: str
    ) -> tuple[Staged, tuple[int, int]]:
        staged, streams = Staged(), Collector()
        writer: Writer | None = None
        with ThreadPoolExecutor(1, "digest") as pool:
            other = shard.another() if shard.store.parallel else None
            count = pool.submit(other.count_digest, table, day, clients) if other else None
            try:
                for group in _ahead(_groups(shard.rows(table, day, clients))):
                    if self._stopping:
                        raise TargetError("given up, as another shard's reading failed or the command was ended")
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
        staged.streams = streams.finish()
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

    # -- what a generation holds -----------------------------------------------------------------------------------------

    @staticmethod
    def _refuse_doubles(day: date, staged: dict[str, Staged]) -> None:
        """Two shards must not hold the same reading: the day could not be restored into fewer shards."""
        seen: dict[StreamName, Ranges] = {}
        for shard, part in staged.items():
            for name, ranges in part.streams.items():
                both = seen[name].union(ranges) if name in seen else ranges
                if name in seen and both.numbers < seen[name].numbers + ranges.numbers:
                    raise Doubled(
                        f"readings of client {name.client_id}, stream {name.stream}, of {day} are on shard {shard}"
                        " and on another",
                        "Delete them from the shard where they do not belong; nothing was exported.",
                    )
                seen[name] = both

    def _contains(self, old: Manifest | None, staged: dict[str, Staged]) -> bool:
        """True if what was read holds every row of the old generation: its numbers, and as many unnamed rows."""
        assert old is not None
        streams = self._streams(None, staged)
        for name, ranges in old.streams.items():
            have = streams.get(name)
            both = have.union(ranges) if have else ranges
            if have is None or both.numbers != have.numbers:
                return False
        unnamed = self._unnamed(None, staged)
        return all(unnamed.get(client, 0) >= rows for client, rows in old.unnamed_rows.items())

    @staticmethod
    def _streams(old: Manifest | None, staged: dict[str, Staged]) -> dict[StreamName, Ranges]:
        streams = dict(old.streams) if old else {}
        for part in staged.values():
            streams = united(streams, part.streams)
        return streams

    @staticmethod
    def _unnamed(old: Manifest | None, staged: dict[str, Staged]) -> dict[int, int]:
        unnamed = dict(old.unnamed_rows) if old else {}
        for part in staged.values():
            for client, rows in part.unnamed.items():
                unnamed[client] = unnamed.get(client, 0) + rows
        return unnamed

    # -- publishing --------------------------------------------------------------------------------------------------------

    def _refuse_leftovers(self, table: Table, day: date) -> None:
        if self.archive.target.entries(day_folder(table.name, day)):
            raise BrokenManifest(
                f"{day_folder(table.name, day)} holds files, but the day has no manifest",
                "Move the folder out of the archive, then export the day again.",
            )

    def _publish(self, manifest: Manifest, change: str, old: Manifest | None, staged: dict[str, Staged]) -> None:
        here, day = f"{HERE}/{change}", day_folder(manifest.table, manifest.day)
        new = [file.name for part in staged.values() for file in part.files]
        for name in new:  # leaves behind what failed uploads wrote
            self.work.move(self.work.staged(f"{change}/read/{name}"), self.work.staged(f"{change}/files/{name}"))
        self.work.target.put(self.work.staged(f"{change}/manifest.json"), manifest.encode())
        steps: list[Step] = []
        present = {entry.name for entry in self.archive.target.entries(day)}
        if old and len(new) <= 1 and not manifest.replaced:
            steps += [(f"{here}/files/{name}", f"{day}/{name}") for name in new]
        else:
            # Everything at once: the folder with the new files, and those that stay, takes the old one's place.
            gone = (
                {name for name in present if _OURS.fullmatch(name)} if old is None else present & set(manifest.replaced)
            )
            if self.archive.target.status(day):
                steps.append((day, f"{here}/aside"))
                steps += [(f"{here}/aside/{name}", f"{here}/files/{name}") for name in sorted(present - gone)]
            if new or present - gone:
                steps.append((f"{here}/files", day))
            aside = f"{SUPERSEDED}/{manifest.table}/{manifest.day}"
            there = {entry.name for entry in self.archive.target.entries(aside)}
            for name in sorted(gone):
                free = name if name not in there else f"{name}.{manifest.generation}"
                steps.append((f"{here}/aside/{name}", f"{aside}/{free}"))
        path = manifest_path(manifest.table, manifest.day, manifest.generation)
        self.work.publish(change, [*steps, (f"{here}/manifest.json", path)])


class _Part(NamedTuple):
    shard: Shard
    number: int
    clients: Clients | None


@dataclass(frozen=True)
class _Job:
    table: Table
    day: date
    markers: dict[str, str]
    old: Manifest | None
    generation: int
    closed: bool


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
    """Reads one group ahead in a thread of its own; an error comes out where the group would have."""
    ready: Queue[pa.RecordBatch | BaseException | None] = Queue(1)
    given_up = False

    def put(item: pa.RecordBatch | BaseException | None) -> None:
        while not given_up:
            try:
                ready.put(item, timeout=0.2)
                return
            except Full:
                continue

    def work() -> None:
        try:
            for group in groups:
                put(group)
                if given_up:
                    return
            put(None)
        except BaseException as error:
            put(error)

    thread = Thread(target=work, name="reader", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        given_up = True
        thread.join()
