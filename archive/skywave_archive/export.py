"""From the store to the archive, one day at a time: read, judge, publish.

A day is published when all shards were read, never a part of it. If the archive has it already, rows that it lacks become
additional files of the next generation. A generation replaces files of the one before only if it holds every row of them;
a day that has shrunk in the store since (expired, half restored) therefore never shrinks in the archive.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from enum import Enum, auto
from typing import Any

from skywave import __version__
from skywave.errors import SkywaveError
from skywave.process.times import utc_now, utc_today

from .archive import SUPERSEDED, Archive, day_folder, manifest_path
from .archived import ArchivedRows
from .datafile import count_rows
from .errors import BrokenManifest, Shrunk
from .manifest import Manifest, ShardState, generation_of
from .reading import Progress, Reader, Wanted
from .settings import Export
from .source import SourceShard, columns_of, held_by
from .staged import StagedDay
from .tables import Held, Table
from .workspace import HERE, Step, Workspace

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


class Found(Enum):
    """What was read of a day, held against what the archive has of it."""

    NEW = auto()
    """A generation that the archive lacks: it has more rows, or the day can be sealed now."""
    SAME = auto()
    """Nothing that the archive lacks."""
    OTHER = auto()
    """The archive's rows, but not all as they were archived: the day must be read as a whole."""
    LESS = auto()
    """Not all rows that it must have, to come instead of what the archive has."""


@dataclass(frozen=True)
class _Job:
    """A day to export as ``generation``. ``old`` is the one before it, which it goes on from; what is read as a whole day
    must have the rows of ``must_have``, and at least ``least``."""

    table: Table
    day: date
    markers: dict[str, str]
    generation: int
    old: Manifest | None
    must_have: Manifest | None
    least: int
    closed: bool
    """Whether the day was over when its export began."""


class Exporter:
    """Exports days with the lock held. ``progress`` is called with rows read."""

    def __init__(
        self,
        archive: Archive,
        work: Workspace,
        shards: list[SourceShard],
        settings: Export,
        progress: Progress = lambda _: None,
    ) -> None:
        self._archive, self._work, self._shards = archive, work, shards
        self._reader = Reader(work, shards, settings, progress)

    def export(
        self, table: Table, day: date, markers: dict[str, str], generations: list[int], anew: bool = False
    ) -> DayResult:
        """Brings the archive's day up to date; raises what stops it, with nothing half done.

        ``anew`` exports the day as a whole without looking at the archive's files of it, which are put aside; refused if
        the store has not all of it.
        """
        generation, closed = generations[-1] + 1 if generations else 1, day < utc_today()
        if anew:
            must_have, least = self._must_have(table, day, generations)
            return self._export_anew(_Job(table, day, markers, generation, None, must_have, least, closed))
        old = self._archive.manifest(table.name, day, generations[-1]) if generations else None
        self._refuse_leftovers(table, day, old)
        if old and old.sealed and held_by(self._shards, table, day) == old.held:  # its parts merged, or it was restored
            return DayResult(
                table.name, day, "unchanged", old.rows, bytes=old.total_bytes, generation=old.generation, held=old.held
            )
        job = _Job(table, day, markers, generation, old, old, 0, closed)
        put_together = bool(old and closed and not old.sealed and len(old.files) > MAX_FILES)
        # Read as a whole if the day is to be put together, or if rows that the archive has differ in the store now. If
        # the store has not all of them any more, only what is new is added.
        for whole in (True, False, True) if put_together else (False, True):
            staged, found = self._read(job, whole)
            if found is Found.NEW:
                return self._publish(job, staged)
            if found is Found.SAME:
                assert job.old
                return _result(job, staged, "unchanged", job.old.generation)
        return DayResult(table.name, day, "unsealed", note="it changed while it was read")

    def _export_anew(self, job: _Job) -> DayResult:
        staged, found = self._read(job, True)
        if found is not Found.NEW:
            raise Shrunk(
                f"the store has not all that the archive has of {job.day}: nothing was changed",
                "The archive's files may be the only copy; restore them with --merge first.",
            )
        return self._publish(job, staged)

    # -- what must be there ------------------------------------------------------------------------------------------------

    def _must_have(self, table: Table, day: date, generations: list[int]) -> tuple[Manifest | None, int]:
        """What the store must have of a day that is exported anew: the newest generation that can be read, and, whatever
        manifests are there still, as many rows as the day's folder."""
        must_have = None
        for generation in reversed(generations):
            try:
                must_have = self._archive.manifest(table.name, day, generation)
                break
            except BrokenManifest:
                continue
        folder = day_folder(table.name, day)
        there = [entry for entry in self._archive.target.entries(folder) if generation_of(entry.name)]
        return must_have, sum(count_rows(self._archive.target, f"{folder}/{file.name}", file.size) for file in there)

    def _refuse_leftovers(self, table: Table, day: date, old: Manifest | None) -> None:
        if old and (lost := self._archive.day_files(old).lost):
            raise BrokenManifest(
                f"{day_folder(table.name, day)} holds {lost[0]}, but its generation has no manifest",
                f"If the store has the whole day: skywave-archive export --day {day} --anew.",
            )
        if not old and self._archive.target.entries(day_folder(table.name, day)):
            raise BrokenManifest(
                f"{day_folder(table.name, day)} holds files, but the day has no manifest",
                "Move the folder out of the archive, then export the day again.",
            )

    # -- read, judge -------------------------------------------------------------------------------------------------------

    def _read(self, job: _Job, whole: bool) -> tuple[StagedDay, Found]:
        """Reads all shards into the workspace: the whole day, or what the archive lacks of it."""
        change = self._work.stage()
        for folder in ("read", "files"):
            self._work.target.make_folder(self._work.staged(f"{change}/{folder}"))
        self._work.assert_owned()
        base = None if whole else job.old
        target = self._archive.target
        wanted = Wanted(
            ArchivedRows(target, job.table, base),
            ArchivedRows(target, job.table, job.must_have if whole else None, lenient=True),
        )
        shards = self._reader.read(job.table, job.day, wanted, f"{change}/read", job.generation)
        staged = StagedDay(change, base, shards)
        staged.refuse_doubles(job.day)
        return staged, self._judge(job, staged, wanted)

    @staticmethod
    def _judge(job: _Job, staged: StagedDay, wanted: Wanted) -> Found:
        base = staged.base
        if base is None:
            rows = staged.held[0]
            if rows < job.least or (job.old is None and job.generation > 1 and not rows):
                return Found.LESS
            if job.must_have and not staged.contains(job.must_have, wanted.replaceable.unnamed):
                return Found.LESS
            return Found.NEW
        rows, total = staged.archived
        if rows >= base.rows and total != base.digest:
            return Found.OTHER
        can_be_sealed = job.closed and staged.steady
        return Found.NEW if staged.new_files or (can_be_sealed and not base.sealed) else Found.SAME

    # -- publish -----------------------------------------------------------------------------------------------------------

    def _publish(self, job: _Job, staged: StagedDay) -> DayResult:
        """Makes what was read the day's next generation."""
        manifest = self._manifest(job, staged)
        new = [file.name for file in staged.new_files]
        for name in new:  # leaves behind what failed uploads wrote
            self._work.move(
                self._work.staged(f"{staged.change}/read/{name}"), self._work.staged(f"{staged.change}/files/{name}")
            )
        self._work.target.put(self._work.staged(f"{staged.change}/manifest.json"), manifest.encode())
        here, path = f"{HERE}/{staged.change}", manifest_path(manifest.table, manifest.day, manifest.generation)
        steps = self._steps(manifest, new, here, job.old)
        self._work.carry_out(staged.change, [*steps, (f"{here}/manifest.json", path)])
        outcome = "replaced" if manifest.replaced else "added" if job.old and new else "exported"
        outcome = outcome if manifest.rows else "empty"
        return _result(job, staged, outcome, job.generation)

    def _manifest(self, job: _Job, staged: StagedDay) -> Manifest:
        streams, unnamed, scattered = staged.numbers()
        return Manifest(
            job.table.name,
            job.day,
            job.generation,
            job.closed and staged.steady,
            utc_now(),
            __version__,
            {shard.name: shard.ddl(job.table) for shard in self._shards},
            columns_of(job.table),
            {
                shard.name: ShardState(
                    staged.shards[shard.name].rows,
                    staged.shards[shard.name].digest,
                    job.markers.get(shard.name, ""),
                    shard.version(),
                )
                for shard in self._shards
            },
            staged.files,
            streams,
            unnamed,
            [] if staged.base or not job.old else [file.name for file in job.old.files],
            scattered,
        )

    def _steps(self, manifest: Manifest, new: list[str], here: str, old: Manifest | None) -> list[Step]:
        """The renames that put the new files into the day's folder and set aside what they replace."""
        day = day_folder(manifest.table, manifest.day)
        if old and len(new) <= 1 and not manifest.replaced:
            return [(f"{here}/files/{name}", f"{day}/{name}") for name in new]
        # Everything at once: the folder with the new files, and those that stay, takes the old one's place.
        present = {entry.name for entry in self._archive.target.entries(day)}
        gone = {name for name in present if generation_of(name)} if old is None else present & set(manifest.replaced)
        steps: list[Step] = []
        if self._archive.target.status(day):
            steps.append((day, f"{here}/aside"))
            steps += [(f"{here}/aside/{name}", f"{here}/files/{name}") for name in sorted(present - gone)]
        if new or present - gone:
            steps.append((f"{here}/files", day))
        aside = f"{SUPERSEDED}/{manifest.table}/{manifest.day}"
        there = {entry.name for entry in self._archive.target.entries(aside)}
        for name in sorted(gone):
            free = name if name not in there else f"{name}.{manifest.generation}"
            steps.append((f"{here}/aside/{name}", f"{aside}/{free}"))
        return steps


def _result(job: _Job, staged: StagedDay, outcome: str, generation: int) -> DayResult:
    rows = sum(file.rows for file in staged.files)
    have, base = staged.archived[0], staged.base
    lacks = base.rows - have if base else 0
    return DayResult(
        job.table.name,
        job.day,
        outcome if staged.steady or not job.closed else "unsealed",
        rows,
        rows - (job.old.rows if job.old else 0),
        sum(file.bytes for file in staged.files),
        generation=generation,
        note=f"the store lacks {lacks} of {base.rows} archived rows; they stay in the archive"
        if base and lacks > 0
        else "",
        held=staged.held,
    )
