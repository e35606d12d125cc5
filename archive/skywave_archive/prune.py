"""Making the archive smaller, by one of two declared ways, and never by accident.

``--generations N`` removes what later generations superseded; ``--delete-data-before D`` is the one way to remove days.
Both make a plan first, act only when it is confirmed, move to the trash, and refuse the last verified copy of a day that the
store no longer holds unless that day is named.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any

from skywave.errors import SkywaveError

from .archive import KEPT_FROM, SUPERSEDED, TRASH, Archive, day_folder, manifest_path
from .errors import Refused
from .manifest import Manifest, holds, manifest_name
from .tables import BY_DAY
from .workspace import HERE, Step, Workspace


@dataclass
class Removal:
    """One day's part of a plan: manifests by generation, and files with their paths."""

    table: str
    day: date
    whole_day: bool
    generations: list[int]
    files: list[str] = field(default_factory=list)
    bytes: int = 0
    refused: str = ""

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {**asdict(self), "day": self.day.isoformat()}


def plan_generations(archive: Archive, keep: int, named: Collection[date]) -> list[Removal]:
    """Superseded generations but the newest ``keep`` of each day, and the files that only they have.

    Files go only if the newest generation was verified and holds every number of those that go, or the day is named.
    """
    removals = []
    state = archive.state()
    for name in BY_DAY:
        for day, generations in archive.generations(name).items():
            gone = generations[:-keep]
            if not gone:
                continue
            removal = Removal(name, day, False, gone)
            try:
                needed = {
                    file.name for number in generations[-keep:] for file in archive.manifest(name, day, number).files
                }
            except SkywaveError as error:
                removal.refused = f"{error}: nothing of this day is removed until it is mended"
                removals.append(removal)
                continue
            folder = f"{SUPERSEDED}/{name}/{day}"
            for entry in archive.target.entries(folder):
                if entry.name not in needed:
                    removal.files.append(f"{folder}/{entry.name}")
                    removal.bytes += entry.size
            if removal.files and day not in named:
                removal.refused = _why_not(archive, state, name, day, generations, gone)
            removals.append(removal)
    return removals


def _why_not(
    archive: Archive, state: dict[str, Any], table: str, day: date, generations: list[int], gone: list[int]
) -> str:
    name_it = f"to remove it, name the day: --day {day}"
    newest = archive.manifest(table, day, generations[-1])
    verified = archive.verified(newest, state)
    if verified is None or verified[0] == "list":
        return f"its newest generation was not verified: run skywave-archive verify; {name_it}"
    for number in gone:
        try:
            old = archive.manifest(table, day, number)
        except SkywaveError as error:
            return f"{error}: it cannot be told whether the newest generation has all of it; {name_it}"
        if not holds(newest.streams, newest.unnamed_rows, newest.scattered, old):
            return f"generation {number} has readings that the newest has not; {name_it}"
    return ""


def plan_days(
    archive: Archive, before: date, in_store: Callable[[Manifest], bool], named: Collection[date]
) -> list[Removal]:
    """Every day before a date. ``in_store`` tells whether the store holds exactly what a manifest says."""
    state = archive.state()
    removals = []
    for name in BY_DAY:
        for day, generations in archive.generations(name).items():
            if day >= before:
                continue
            removal = Removal(name, day, True, generations)
            for folder in (day_folder(name, day), f"{SUPERSEDED}/{name}/{day}"):
                for entry in archive.target.entries(folder):
                    removal.files.append(f"{folder}/{entry.name}")
                    removal.bytes += entry.size
            try:
                manifest = archive.manifest(name, day, generations[-1])
            except SkywaveError as error:
                removal.refused = f"{error}: a broken day is never removed"
            else:
                if removal.files and day not in named and not (manifest.rows and in_store(manifest)):
                    copy = "last verified copy" if archive.verified(manifest, state) else "last copy"
                    removal.refused = (
                        f"this is the {copy}: the store has not all of it; to remove it, name it: --day {day}"
                    )
            removals.append(removal)
    return removals


def prune(archive: Archive, work: Workspace, removals: list[Removal]) -> None:
    """Carries a plan out, day by day, each as one change, with the lock held; refused days stay.

    Raises ``Refused`` for a day that has changed since the plan was made.
    """
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    trash = f"{TRASH}/{stamp}-{work.number}"
    for removal in removals:
        if removal.refused:
            continue
        if archive.generations(removal.table).get(removal.day, [])[: len(removal.generations)] != removal.generations:
            raise Refused(f"{removal.table} {removal.day} has changed since the plan was made", "Make the plan again.")
        bin_folder = f"{trash}/{removal.table}/{removal.day}"
        # Manifests go last, newest at the very end: until then the day is known, and broken rather than forgotten.
        steps: list[Step] = []
        if removal.whole_day:
            if archive.target.status(day_folder(removal.table, removal.day)):
                steps.append((day_folder(removal.table, removal.day), f"{bin_folder}/files"))
            old = f"{SUPERSEDED}/{removal.table}/{removal.day}"
            if archive.target.status(old):
                steps.append((old, f"{bin_folder}/superseded"))
        else:
            steps += [(path, f"{bin_folder}/{path.rpartition('/')[2]}") for path in removal.files]
        steps += [
            (manifest_path(removal.table, removal.day, number), f"{bin_folder}/{manifest_name(removal.day, number)}")
            for number in removal.generations
        ]
        # Through the workspace, so that a former owner of the lock cannot go on with it.
        change = work.stage()
        inner = [(source, f"{HERE}/{change}/{number}") for number, (source, _) in enumerate(steps)]
        outer = [(f"{HERE}/{change}/{number}", destination) for number, (_, destination) in enumerate(steps)]
        work.carry_out(change, [*inner, *outer])


def keep_from(archive: Archive, work: Workspace, day: date) -> None:
    """Notes that older days were removed on purpose, so that the next export does not bring them back."""
    if day > archive.kept_from():
        work.replace(KEPT_FROM, f"{day}\n".encode())


def empty_trash(archive: Archive, work: Workspace, days: int) -> int:
    """Deletes what has lain in the trash for as many days; returns how many prunes' trash went."""
    work.assert_owned()
    limit = datetime.now(UTC) - timedelta(days=days)
    old = [
        entry.name
        for entry in archive.target.entries(TRASH)
        if entry.name[:16] <= limit.strftime("%Y%m%dT%H%M%SZ") and entry.name[8:9] == "T"
    ]
    for name in old:
        archive.target.delete(f"{TRASH}/{name}")
    return len(old)
