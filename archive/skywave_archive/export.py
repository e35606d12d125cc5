"""From the store to the archive, one day at a time: read, write, check, publish.

A day is published when all shards were read, never a part of it. If the archive has it already, rows that it lacks become
additional files of the next generation. A generation replaces files of the one before only if it holds every row of them;
a day that has shrunk in the store since (expired, half restored) therefore never shrinks in the archive.
"""

from __future__ import annotations

import contextlib
import json
import logging
import secrets
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import date, timedelta
from queue import Full, Queue
from threading import Thread
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from skywave import __version__
from skywave.errors import EXIT_DATA, SkywaveError

from .archive import HERE, STATE, SUPERSEDED, Archive, Step, Workspace, day_folder, manifest_path, utc_now, utc_today
from .datafile import GROUP_ROWS, Writer, read_rows
from .manifest import BrokenManifest, File, Manifest, ShardState
from .ranges import Collector, Ranges, StreamName, runs, united
from .settings import Export
from .source import Shard, columns_of
from .tables import Hashes, Table, add, digest, row_hashes
from .target import Target, TargetFull, TargetUnavailable

log = logging.getLogger(__name__)
Progress = Callable[[int], None]
MAX_FILES = 16
"""A day that closes with more files than this, from hourly exports, is written anew in few."""


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


class Known:
    """The rows that a generation holds, by identity; without a manifest, none."""

    def __init__(self, target: Target, table: Table, manifest: Manifest | None = None) -> None:
        self._table = table
        self.files = manifest.files if manifest else []
        self.rows = manifest.rows if manifest else 0
        self.digest = manifest.digest if manifest else 0
        self._streams = manifest.streams if manifest else {}
        self._unnamed = np.empty(0, np.uint64)
        if manifest and manifest.unnamed_rows:
            self._unnamed = self._read_unnamed(target, manifest)

    def _read_unnamed(self, target: Target, manifest: Manifest) -> Hashes:
        parts = [self._unnamed]
        for file in self.files:
            if any(file.first_client <= client <= file.last_client for client in manifest.unnamed_rows):
                path = f"{day_folder(manifest.table, manifest.day)}/{file.name}"
                parts += [
                    row_hashes(_unnamed(self._table, batch), self._table.identity)
                    for batch, _ in read_rows(target, path, self._table, file)
                ]
        return np.sort(np.concatenate(parts))

    def mask(self, batch: pa.RecordBatch) -> NDArray[np.bool_]:
        """For each row, whether it is known."""
        known = np.zeros(batch.num_rows, np.bool_)
        if not self.files:
            return known
        if not self._table.ranged:
            return self._in_unnamed(batch)
        seq = batch.column("seq").to_numpy()
        for name, rows in runs(batch):
            if name.stream == 0:
                known[rows] = self._in_unnamed(batch.slice(rows.start, rows.stop - rows.start))
            elif name in self._streams:
                known[rows] = self._streams[name].contain(seq[rows])
        return known

    def _in_unnamed(self, batch: pa.RecordBatch) -> NDArray[np.bool_]:
        if not len(self._unnamed):
            return np.zeros(batch.num_rows, np.bool_)
        hashes = row_hashes(batch, self._table.identity)
        at = np.minimum(np.searchsorted(self._unnamed, hashes), len(self._unnamed) - 1)
        found: NDArray[np.bool_] = self._unnamed[at] == hashes
        return found


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

    def export(
        self, table: Table, day: date, markers: dict[str, str], generations: list[int], anew: bool = False
    ) -> DayResult:
        """Brings the archive's day up to date; raises what stops it, with nothing half done.

        ``anew`` exports the day as a whole without looking at what the archive has of it, which is put aside.
        """
        generation = generations[-1] + 1 if generations else 1
        old = self.archive.manifest(table.name, day, generations[-1]) if generations and not anew else None
        if old is None and not anew:
            self._refuse_leftovers(table, day)
        job = _Job(table, day, markers, old, generation, day < utc_today())
        put_together = bool(old and job.closed and not old.sealed and len(old.files) > MAX_FILES)
        # Read as a whole if the day is to be put together, or if rows that the archive has differ in the store now. If
        # the store has not all of them any more, only what is new is added.
        result = self._attempt(job, whole=True) if put_together else None
        result = result or self._attempt(job, whole=False) or self._attempt(job, whole=True)
        return result or DayResult(table.name, day, "unsealed", note="it changed while it was read")

    def _attempt(self, job: _Job, whole: bool) -> DayResult | None:
        table, day, old, closed = job.table, job.day, job.old, job.closed
        change = self.work.stage()
        self.work.target.make_folder(self.work.staged(f"{change}/read"))
        self.work.target.make_folder(self.work.staged(f"{change}/files"))
        self.work.assert_owned()
        known = Known(self.archive.target, table, None if whole else old)

        def stage(shard: Shard) -> Staged:
            prefix = f"{change}/read/{shard.name}-gen{job.generation:04}"
            return self._stage(shard, table, day, known, prefix)

        with ThreadPoolExecutor(min(self.settings.parallel, len(self.shards)), "shard") as pool:
            staged = dict(zip((shard.name for shard in self.shards), pool.map(stage, self.shards), strict=True))
        steady = all(part.steady for part in staged.values())
        result = DayResult(table.name, day, "exported" if steady or not closed else "unsealed")
        if old and whole and not self._contains(old, staged):
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

    def _stage(self, shard: Shard, table: Table, day: date, known: Known, prefix: str) -> Staged:
        """Reads a shard's day until what was read is what the shard holds, or it has changed too often."""
        failing_since = 0.0
        read = repeats = 0
        while True:
            read += 1
            marker = shard.marker(table, day)
            try:
                staged, expected = self._read(shard, table, day, known, f"{prefix}-{read}")
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
            if (found == expected and shard.marker(table, day) == marker) or found == shard.count_digest(table, day):
                return staged
            log.info("shard %s, %s changed while it was read", shard.name, day)
            if repeats == self.settings.repeats:
                staged.steady = False
                return staged
            repeats += 1

    def _read(self, shard: Shard, table: Table, day: date, known: Known, prefix: str) -> tuple[Staged, tuple[int, int]]:
        staged, streams = Staged(), Collector()
        writer: Writer | None = None
        with ThreadPoolExecutor(1, "digest") as pool:
            other = shard.another() if shard.store.parallel else None
            count = pool.submit(other.count_digest, table, day) if other else None
            try:
                for group in _ahead(_groups(shard.rows(table, day))):
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
        return staged, expected or shard.count_digest(table, day)

    @staticmethod
    def _account(table: Table, rows: pa.RecordBatch, streams: Collector, staged: Staged) -> None:
        if table.ranged:
            streams.add(rows)
        unnamed = _unnamed(table, rows)
        for client, count in zip(*np.unique(unnamed["client_id"].to_numpy(), return_counts=True), strict=True):
            staged.unnamed[int(client)] = staged.unnamed.get(int(client), 0) + int(count)

    # -- what a generation holds -----------------------------------------------------------------------------------------

    def _contains(self, old: Manifest, staged: dict[str, Staged]) -> bool:
        """True if what was read holds every row of the old generation: its numbers, and as many unnamed rows."""
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
        self.archive.target.delete(day_folder(table.name, day))

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
            gone = present if old is None else present & set(manifest.replaced)
            if present:
                steps.append((day, f"{here}/aside"))
                steps += [(f"{here}/aside/{name}", f"{here}/files/{name}") for name in sorted(present - gone)]
            if new or present - gone:
                steps.append((f"{here}/files", day))
            aside = f"{SUPERSEDED}/{manifest.table}/{manifest.day}"
            steps += [(f"{here}/aside/{name}", f"{aside}/{name}") for name in sorted(gone)]
        path = manifest_path(manifest.table, manifest.day, manifest.generation)
        self.work.publish(change, [*steps, (f"{here}/manifest.json", path)])


@dataclass(frozen=True)
class _Job:
    table: Table
    day: date
    markers: dict[str, str]
    old: Manifest | None
    generation: int
    closed: bool


def _unnamed(table: Table, batch: pa.RecordBatch) -> pa.RecordBatch:
    """The rows that are not told apart by the numbers of a stream."""
    return batch.filter(pa.array(batch.column("stream").to_numpy() == 0)) if table.ranged else batch


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


@dataclass
class Plan:
    """What an export would do: days to look at, by table; ``markers[shard][day]``."""

    table: Table
    days: list[date]
    markers: dict[str, dict[date, str]]
    generations: dict[date, list[int]]


def plan(archive: Archive, shards: list[Shard], table: Table, first: date | None, last: date | None) -> Plan:
    """Which days an export has to look at, oldest first.

    From ``first`` to ``last`` (yesterday by default) every day; without ``first``, those whose marker differs from the one
    at which the newest generation was found complete. Empty days count as well, so that no gap is left open, but only
    for telemetry: messages that could not be stored are rare.
    """
    markers = {shard.name: shard.markers(table) for shard in shards}
    generations = archive.generations(table.name)
    state = archive.state()["markers"]
    last = last or utc_today() - timedelta(days=1)
    have = {day for found in markers.values() for day in found}
    start = first or min([*have, *generations], default=last + timedelta(days=1))
    wanted = []
    for day in (start + timedelta(days=n) for n in range((last - start).days + 1)):
        now = {name: found[day] for name, found in markers.items() if day in found}
        if day not in generations:
            look = day in have or (table.ranged and day < utc_today())
        else:
            done = {"generation": generations[day][-1], "shards": now}
            look = first is not None or (bool(now) and state.get(f"{table.name}/{day}") != done)
        if look:
            wanted.append(day)
    return Plan(table, wanted, markers, generations)


def export_days(
    archive: Archive, work: Workspace, shards: list[Shard], todo: Plan, settings: Export, progress: Progress, anew: bool
) -> Iterator[DayResult]:
    """Exports the days of a plan one after another. What is wrong with one day's data does not stop the others; anything
    else does, and what was done until then stays done."""
    exporter = Exporter(archive, work, shards, settings, progress)
    marks: dict[str, Any] = {}
    try:
        for day in todo.days:
            began = time.monotonic()
            markers = {name: found[day] for name, found in todo.markers.items() if day in found}
            generations = todo.generations.get(day, [])
            try:
                result = exporter.export(todo.table, day, markers, generations, anew)
            except SkywaveError as error:
                work.assert_owned()
                if error.exit_code != EXIT_DATA:
                    raise
                result = DayResult(todo.table.name, day, "failed", note=str(error), error=error)
            result.seconds = round(time.monotonic() - began, 2)
            if result.outcome not in ("unsealed", "failed") and day < utc_today():
                marks[f"{todo.table.name}/{day}"] = {"generation": result.generation, "shards": markers}
            yield result
    finally:
        with contextlib.suppress(SkywaveError):
            remember(archive, work, marks)


def remember(archive: Archive, work: Workspace, marks: dict[str, dict[str, Any]], section: str = "markers") -> None:
    """Adds to one section of the state file, with the lock held. Losing it costs a second look, nothing else."""
    if not marks:
        return
    state = archive.state()
    state[section].update(marks)
    name = work.stage()
    work.target.put(work.staged(f"{name}/state.json"), json.dumps(state, sort_keys=True).encode())
    work.target.delete(STATE)
    work.publish(name, [(f"{HERE}/{name}/state.json", STATE)])
