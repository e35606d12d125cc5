"""From the store to the archive, one day at a time: read, write, check, publish.

A day is published when all shards were read, never a part of it. If the archive has it already, rows that it lacks become
additional files of the next generation. A generation replaces files of the one before only if it holds every row of them;
a day that has shrunk in the store since (expired, half restored) therefore never shrinks in the archive.
"""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext
from dataclasses import dataclass
from datetime import date
from typing import Any, NamedTuple

from skywave import __version__
from skywave.errors import SkywaveError
from skywave.formats.spans import Spans
from skywave.process.times import utc_now, utc_today

from .archive import SUPERSEDED, Archive, day_folder, manifest_path
from .datafile import count_rows
from .errors import BrokenManifest, Doubled, Shrunk
from .known import Known
from .manifest import Manifest, ShardState, generation_of, holds
from .reading import Progress, Reader, Staged
from .settings import Export
from .source import Clients, Held, Shard, columns_of, held_by
from .streams import StreamName, crowded, united
from .tables import Table, add
from .workspace import HERE, Step, Workspace

PART_ROWS = 4_000_000
"""A shard's day is read in several parts at once if each has as many rows."""
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
    held: Held = (0, 0)
    """What the store had of it."""

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        body = {name: value for name, value in vars(self).items() if name not in ("error", "held")}
        return {**body, "day": self.day.isoformat()}


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
        self.archive, self.work, self.shards, self.settings = archive, work, shards, settings
        self.reader = Reader(work, settings, progress)

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
        self._refuse_leftovers(table, day, old)
        job = _Job(table, day, markers, old, generation, day < utc_today())
        if old and old.sealed and held_by(self.shards, table, day) == old.held:  # its parts merged, or it was restored
            return DayResult(
                table.name, day, "unchanged", old.rows, bytes=old.total_bytes, generation=old.generation, held=old.held
            )
        put_together = bool(old and job.closed and not old.sealed and len(old.files) > MAX_FILES)
        # Read as a whole if the day is to be put together, or if rows that the archive has differ in the store now. If
        # the store has not all of them any more, only what is new is added.
        result = self._attempt(job, whole=True) if put_together else None
        result = result or self._attempt(job, whole=False) or self._attempt(job, whole=True)
        return result or DayResult(table.name, day, "unsealed", note="it changed while it was read")

    def _anew(self, job: _Job, generations: list[int]) -> DayResult:
        must_have = None
        for generation in reversed(generations):
            try:
                must_have = self.archive.manifest(job.table.name, job.day, generation)
                break
            except BrokenManifest:
                continue
        # Whatever manifests are there still: what lies in the day's folder is no more than what comes instead of it.
        folder = day_folder(job.table.name, job.day)
        there = [entry for entry in self.archive.target.entries(folder) if generation_of(entry.name)]
        least = sum(count_rows(self.archive.target, f"{folder}/{file.name}", file.size) for file in there)
        result = self._attempt(job, True, must_have, least)
        if result is None:
            raise Shrunk(
                f"the store has not all that the archive has of {job.day}: nothing was changed",
                "The archive's files may be the only copy; restore them with --merge first.",
            )
        return result

    def _attempt(self, job: _Job, whole: bool, must_have: Manifest | None = None, least: int = 0) -> DayResult | None:
        """None if what the store has does not do: it lacks rows of the old generation, of ``must_have``, or has fewer than
        ``least``."""
        table, day, old, closed = job.table, job.day, job.old, job.closed
        self.reader.stopping = False
        change = self.work.stage()
        self.work.target.make_folder(self.work.staged(f"{change}/read"))
        self.work.target.make_folder(self.work.staged(f"{change}/files"))
        self.work.assert_owned()
        base = None if whole else old  # what the new generation builds on
        must_have = old or must_have
        known = Known(self.archive.target, table, base)
        wanted = Known(self.archive.target, table, must_have if whole else None, lenient=True)
        parts = self._parts(table, day)

        def stage(part: _Part) -> Staged:
            prefix = f"{change}/read/{part.shard.name}-gen{job.generation:04}-{part.number}"
            with closing(part.shard.another()) if part.clients else nullcontext(part.shard) as shard:
                return self.reader.stage(shard, table, day, part.clients, known, wanted, prefix)

        staged = {shard.name: Staged() for shard in self.shards}
        with ThreadPoolExecutor(min(self.settings.parallel, len(parts)), "shard") as pool:
            try:
                for part, found in zip(parts, pool.map(stage, parts), strict=True):
                    staged[part.shard.name].take(found)
            except BaseException:
                self.reader.stopping = True  # nobody's reading is worth going on with
                raise
        steady = all(part.steady for part in staged.values())
        result = DayResult(table.name, day, "exported" if steady or not closed else "unsealed")
        result.held = (sum(part.rows for part in staged.values()), add(*(part.digest for part in staged.values())))
        self._refuse_doubles(job.day, staged)
        if whole and must_have and not self._contains(must_have, wanted, staged):
            return None
        if sum(part.rows for part in staged.values()) < least:
            return None
        if whole and old is None and not any(part.rows for part in staged.values()) and job.generation > 1:
            return None
        if base:
            rows = sum(part.known_rows for part in staged.values())
            if rows < base.rows:
                result.note = (
                    f"the store lacks {base.rows - rows} of {base.rows} archived rows; they stay in the archive"
                )
            elif add(*(part.known_digest for part in staged.values())) != base.digest:
                return None
        kept = base.files if base else []
        files = [file for part in staged.values() for file in part.files]
        result.rows = sum(file.rows for file in (*kept, *files))
        result.new_rows = result.rows - (old.rows if old else 0)
        result.bytes = sum(file.bytes for file in (*kept, *files))
        sealed = closed and steady
        if base and not files and (base.sealed or not sealed):
            result.outcome = "unchanged" if steady or not closed else "unsealed"
            result.generation = base.generation
            return result
        streams, unnamed, scattered = self._numbers(base, staged)
        manifest = Manifest(
            table.name, day, job.generation, sealed, utc_now(), __version__,
            {shard.name: shard.ddl(table) for shard in self.shards}, columns_of(table),
            {
                shard.name: ShardState(
                    staged[shard.name].rows, staged[shard.name].digest, job.markers.get(shard.name, ""), shard.version()
                )
                for shard in self.shards
            },
            [*kept, *files], streams, unnamed, [file.name for file in old.files] if old and whole else [], scattered,
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

    # -- what a generation holds -----------------------------------------------------------------------------------------

    @staticmethod
    def _refuse_doubles(day: date, staged: dict[str, Staged]) -> None:
        """Two shards must not hold the same reading: the day could not be restored into fewer shards."""
        seen: dict[StreamName, Spans] = {}
        for shard, part in staged.items():
            for name, numbers in part.streams.items():
                if name in seen and seen[name] & numbers:
                    raise Doubled(
                        f"readings of client {name.client_id}, stream {name.stream}, of {day} are on shard {shard}"
                        " and on another",
                        "Delete them from the shard where they do not belong; nothing was exported.",
                    )
            seen = united(seen, part.streams)

    def _contains(self, old: Manifest, wanted: Known, staged: dict[str, Staged]) -> bool:
        """True if what was read holds every row of the old generation: its numbers, and the rows without numbers that could
        be read; of those in damaged files, as many."""
        wanted_rows = sum(part.wanted_rows for part in staged.values())
        return holds(*self._numbers(None, staged), old) and wanted_rows == wanted.unnamed

    @staticmethod
    def _numbers(
        old: Manifest | None, staged: dict[str, Staged]
    ) -> tuple[dict[StreamName, Spans], dict[int, int], list[int]]:
        """``streams``, ``unnamed_rows`` and ``scattered`` of a generation that has the rows of ``old`` and what was staged."""
        streams = dict(old.streams) if old else {}
        unnamed = Counter(old.unnamed_rows if old else {})
        scattered = set(old.scattered if old else ())
        for part in staged.values():
            many = crowded(united(streams, part.streams)) & part.numbered.keys() | part.scattered
            streams = united(streams, {name: part.streams[name] for name in part.streams if name.client_id not in many})
            unnamed.update(part.unnamed)
            unnamed.update({client: part.numbered[client] for client in many})
            scattered |= many
        return streams, dict(unnamed), sorted(scattered)

    # -- publishing --------------------------------------------------------------------------------------------------------

    def _refuse_leftovers(self, table: Table, day: date, old: Manifest | None) -> None:
        if old and (lost := self.archive.day_files(old).lost):
            raise BrokenManifest(
                f"{day_folder(table.name, day)} holds {lost[0]}, but its generation has no manifest",
                f"If the store has the whole day: skywave-archive export --day {day} --anew.",
            )
        if not old and self.archive.target.entries(day_folder(table.name, day)):
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
                {name for name in present if generation_of(name)} if old is None else present & set(manifest.replaced)
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
