"""Making room in the store: a day's partition is dropped there only when the archive provably has all of it.

Provably: the newest generation is sealed, was verified row by row, and just before the drop the store's count and digest are
once more those of the manifest. Before the drop the day's ranges go into the store's ``expired`` table, by which the audit and
the look-ups of resent batches count them as stored for ever.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import date
from typing import Any

from skywave.errors import SkywaveError
from skywave.server.store import as_column

from .archive import Archive
from .manifest import Manifest
from .source import Shard
from .tables import TELEMETRY, add
from .verify import verify_day


@dataclass
class DayExpired:
    """What happened to one day: ``dropped``, ``ready`` (dry run) or ``kept``, and why."""

    day: date
    outcome: str
    rows: int = 0
    why: str = ""

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {**asdict(self), "day": self.day.isoformat()}


def expire(archive: Archive, shards: list[Shard], before: date, dry_run: bool) -> list[DayExpired]:
    """Drops every day before a date that is safe in the archive, oldest first; the others are kept and say why."""
    held = sorted({day for shard in shards for day in shard.markers(TELEMETRY) if day < before})
    generations = archive.generations(TELEMETRY.name)
    return [_expire_day(archive, shards, day, generations.get(day, []), dry_run) for day in held]


def _expire_day(archive: Archive, shards: list[Shard], day: date, generations: list[int], dry_run: bool) -> DayExpired:
    if not generations:
        return DayExpired(day, "kept", why="not archived: run skywave-archive export")
    try:
        manifest = archive.manifest(TELEMETRY.name, day, generations[-1])
    except SkywaveError as error:
        return DayExpired(day, "kept", why=str(error))
    verified = archive.verified(manifest, archive.state())
    if not manifest.sealed:
        return DayExpired(day, "kept", manifest.rows, "its archive is not sealed: run skywave-archive export")
    if verified is None or verified[0] != "rows":
        return DayExpired(
            day, "kept", manifest.rows, "not verified row by row: run skywave-archive verify --level rows"
        )
    problems = [finding.problem for finding in verify_day(archive, manifest, "list") if not finding.alien]
    if problems:
        return DayExpired(day, "kept", manifest.rows, f"its archive is damaged: {problems[0]}")
    found = [shard.count_digest(TELEMETRY, day) for shard in shards]
    have = (sum(rows for rows, _ in found), add(*(total for _, total in found)))
    if have != (manifest.rows, manifest.digest):
        return DayExpired(
            day, "kept", have[0], f"the store has {have[0]} rows and the archive {manifest.rows}, or they differ:"
            " run skywave-archive export",
        )  # fmt: skip
    if dry_run:
        return DayExpired(day, "ready", have[0])
    for shard in shards:
        _drop(shard, manifest)
    return DayExpired(day, "dropped", have[0])


def _drop(shard: Shard, manifest: Manifest) -> None:
    store, day = shard.store, manifest.day
    before = shard.count_digest(TELEMETRY, day)
    rows = [
        (name.client_id, name.stream, first, last, day)
        for name, ranges in manifest.streams.items()
        for first, last in ranges.pairs()
    ]
    names = ("client_id", "stream", "first_seq", "last_seq", "day")
    table = f"{store.database}.expired"
    if rows:
        columns = {name: as_column(name, values) for name, values in zip(names, zip(*rows, strict=True), strict=True)}
        store.insert(table, columns)
        store.sync()
    if shard.count_digest(TELEMETRY, day) != before:
        raise SkywaveError(f"rows of {day} arrived while it was about to be dropped; it was kept", "Run it again.")
    store.query(f"ALTER TABLE {store.database}.{TELEMETRY.name} DROP PARTITION '{day}'")
