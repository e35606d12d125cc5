"""Making the archive smaller, by one of two declared ways, and never by accident.

``--generations N`` removes what later generations superseded; ``--delete-data-before D`` is the one way to remove days.
Both make a plan first, act only when it is confirmed, move to the trash, and refuse the last verified copy of a day that the
store no longer holds unless that day is named.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any

from skywave.errors import EXIT_DATA, SkywaveError

from .archive import HERE, SUPERSEDED, TRASH, Archive, Step, Workspace, day_folder, manifest_path
from .manifest import manifest_name
from .tables import BY_DAY


class Refused(SkywaveError):
    """The plan would remove what nobody else has."""

    exit_code = EXIT_DATA


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


def plan_generations(archive: Archive, keep: int) -> list[Removal]:
    """Superseded generations but the newest ``keep`` of each day, and the files that only they have."""
    removals = []
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
            removals.append(removal)
    return removals


def plan_days(
    archive: Archive, before: date, in_store: Mapping[str, Collection[date]] | None, named: Collection[date]
) -> list[Removal]:
    """Every day before a date. ``in_store`` are the days the store holds by table, or None if it cannot be asked."""
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
                held = in_store is not None and day in in_store[name]
                if manifest.rows and not held and day not in named:
                    copy = "last verified copy" if archive.verified(manifest, state) else "last copy"
                    removal.refused = (
                        f"this is the {copy}: the store does not hold the day; to remove it, name it: --day {day}"
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
        work.publish(change, [*inner, *outer])


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
