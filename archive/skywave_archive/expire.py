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
from skywave.formats.spans import Spans

from .archive import Archive
from .manifest import Manifest
from .night import forget, is_exported, is_the_day_s
from .replication import BOUND, is_bound_by_quorum
from .source import SourceShard
from .streams import StreamName, crowded
from .tables import TELEMETRY, Held, add
from .verify import verify_day
from .workspace import Workspace

PARTLY = "the store has only a part of the archived rows: skywave-archive restore --day {} --merge brings them back"


@dataclass
class DayExpired:
    """What happened to one day: ``dropped``, ``ready`` (dry run) or ``kept``, and why."""

    day: date
    outcome: str
    rows: int = 0
    why: str = ""
    differs: bool = False
    """The store has not what is archived: the day is to be exported again."""

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {**asdict(self), "day": self.day.isoformat()}


def expire(
    archive: Archive, work: Workspace, shards: list[SourceShard], before: date, dry_run: bool
) -> list[DayExpired]:
    """Drops every day before a date that is safe in the archive, oldest first; the others are kept and say why."""
    held = sorted({day for shard in shards for day in shard.markers(TELEMETRY) if day < before})
    generations = archive.generations(TELEMETRY.name)
    results = []
    for day in held:
        try:
            results.append(_expire_day(archive, work, shards, day, generations.get(day, []), dry_run))
        except SkywaveError as error:
            work.assert_owned()
            if not is_the_day_s(error, [shard.store for shard in shards]):
                raise
            results.append(DayExpired(day, "kept", why=str(error)))
    forget(archive, work, TELEMETRY, [result.day for result in results if result.differs])
    return results


def _expire_day(
    archive: Archive, work: Workspace, shards: list[SourceShard], day: date, generations: list[int], dry_run: bool
) -> DayExpired:
    if not generations:
        return DayExpired(day, "kept", why="not archived: run skywave-archive export")
    try:
        manifest = archive.manifest(TELEMETRY.name, day, generations[-1])
    except SkywaveError as error:
        return DayExpired(day, "kept", why=str(error))
    state = archive.state()
    if why := _unsafe(archive, manifest, state):
        return DayExpired(day, "kept", manifest.rows, why)
    found = {shard.name: shard.count_digest(TELEMETRY, day) for shard in shards}
    archived = {name: (state.rows, state.digest) for name, state in manifest.shards.items()}
    # A shard that was dropped by a run that ended before the others' turn is done.
    done = [shard.name for shard in shards if not found[shard.name][0] and _is_expired(shard, manifest)]
    differ = [
        name
        for name in archived.keys() | found.keys()
        if name not in done and archived.get(name, (0, 0)) != found.get(name, (0, 0))
    ]
    # Shards that were added, or another shape that the day was restored into, hold the same day all the same.
    whole = (sum(rows for rows, _ in found.values()), add(*(digest for _, digest in found.values())))
    if whole != manifest.held:
        if differ and not is_exported(state["markers"].get(f"{TELEMETRY.name}/{day}", {}), manifest.generation, whole):
            why = f"shard {', '.join(sorted(differ))} has not what is archived of it: run skywave-archive export"
            return DayExpired(day, "kept", whole[0], why, differs=True)
        since = sorted({file.generation for file in manifest.files} | {1})
        if differ or not any(_accounts_for(manifest, generation) for generation in since):
            return DayExpired(day, "kept", whole[0], PARTLY.format(day))
    if any(is_bound_by_quorum(shard.store, TELEMETRY, day) for shard in shards if shard.name not in done):
        return DayExpired(day, "kept", manifest.rows, BOUND)
    if not dry_run:
        for shard in shards:
            if shard.name not in done and not _drop(work, shard, manifest, found[shard.name]):
                why = f"rows arrived on shard {shard.name} meanwhile: run skywave-archive export"
                return DayExpired(day, "kept", why=why, differs=True)
    many = sorted(crowded(manifest.streams) | set(manifest.scattered))
    why = (
        f"numbers of client {', '.join(map(str, many))} are too scattered to be kept: no account has them"
        if many
        else ""
    )
    return DayExpired(day, "ready" if dry_run else "dropped", whole[0], why)


def _unsafe(archive: Archive, manifest: Manifest, state: dict[str, Any]) -> str:
    """Why a day's archive is not proof enough to drop it; empty if it is."""
    verified = archive.verified(manifest, state)
    if not manifest.sealed:
        return "its archive is not sealed: run skywave-archive export"
    if verified is None or verified[0] != "rows":
        return "not verified row by row: run skywave-archive verify --level rows"
    problems = [finding.problem for finding in verify_day(archive, manifest, "list") if not finding.alien]
    return f"its archive is damaged: {problems[0]}" if problems else ""


def _accounts_for(manifest: Manifest, since: int) -> bool:
    """True if each shard held exactly the rows of its files of generation ``since`` and later: of 1, the whole day; of a
    later one, what came after the rest had expired."""
    states = manifest.shards.values()
    if (sum(s.rows for s in states), add(*(s.digest for s in states))) == (manifest.rows, manifest.digest):
        return True
    for name, state in manifest.shards.items():
        files = [file for file in manifest.files if file.shard == name and file.generation >= since]
        if (state.rows, state.digest) != (sum(file.rows for file in files), add(*(file.digest for file in files))):
            return False
    return True


def _is_expired(shard: SourceShard, manifest: Manifest) -> bool:
    rows = shard.store.query(f"SELECT count() FROM {shard.store.database}.expired WHERE day = '{manifest.day}'")
    return bool(rows[0][0]) or not _kept(manifest)


def _kept(manifest: Manifest) -> dict[StreamName, Spans]:
    """The streams whose ranges go into ``expired``: not those of clients with more ranges than are kept of one."""
    many = crowded(manifest.streams)
    return {name: numbers for name, numbers in manifest.streams.items() if name.client_id not in many}


def _drop(work: Workspace, shard: SourceShard, manifest: Manifest, expected: Held) -> bool:
    """Records the day's ranges and drops it, if the shard still holds exactly ``expected``."""
    store, day = shard.store, manifest.day
    rows = [
        (name.client_id, name.stream, first, last, day)
        for name, numbers in _kept(manifest).items()
        for first, last in numbers.pairs()
    ]
    names = ("client_id", "stream", "first_seq", "last_seq", "day")
    store.insert_rows("expired", names, rows)
    store.sync()
    work.assert_owned()
    if shard.count_digest(TELEMETRY, day) != expected:
        return False
    store.drop(f"ALTER TABLE {store.database}.{TELEMETRY.name} DROP PARTITION '{day}'")
    return True
