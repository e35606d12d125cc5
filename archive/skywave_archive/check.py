"""Preflight: is everything there that a night needs? Looks, and changes nothing but one file that it removes again."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any

from skywave.errors import SkywaveError
from skywave.store.replicas import MAX_DELAY_S

from .archive import LOCKS, STAGING, Archive
from .fleet import check_fleet
from .settings import Archive as Settings
from .source import SourceShard, names_of, open_source
from .tables import BY_DAY
from .targets.opening import open_target

MAX_CLOCK_DIFFERENCE_S = 60


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    good: bool
    detail: str

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return asdict(self)


def check(settings: Settings) -> list[Check]:
    """Target reachable, writable, out of safe mode and with space; every shard there, in time and in step."""
    found = _target(settings)
    for name in names_of(settings.store):
        try:
            with closing(SourceShard(name, settings.store)) as shard:
                found += _shard(shard)
        except SkywaveError as error:
            found.append(Check(f"shard {name}", False, str(error)))
    if all(item.good for item in found):
        found.append(_fleet(settings))
    return found


def _fleet(settings: Settings) -> Check:
    try:
        with open_source(settings.store) as shards:
            check_fleet(Archive(open_target(settings.target)), [shard.store for shard in shards])
        return Check("fleet", True, "the store and the archive belong together")
    except SkywaveError as error:
        return Check("fleet", False, f"{error}. {error.hint}")


def _target(settings: Settings) -> list[Check]:
    try:
        target = open_target(settings.target)
        found = [Check("target", False, problem) for problem in target.problems(STAGING)]
        target.make_folder(STAGING)
        target.prove(STAGING)
        probe = f"{STAGING}/check-{time.time_ns()}"
        target.put(probe, b"skywave")
        entry = target.status(probe)
        target.delete(probe)
        difference = abs(time.time() - entry.modified) if entry else 0.0
        found.append(Check("target", True, f"{target.where}: written, read and deleted a file"))
        good = difference <= MAX_CLOCK_DIFFERENCE_S
        found.append(Check("clock of the target", good, f"differs by {difference:.0f} s from this host's"))
        free = target.free_bytes()
        detail = "no quota" if free is None else f"{free / 1e9:.1f} GB may still be written"
        found.append(Check("space", free is None or free >= settings.export.file_bytes, detail))
        locks = [lock.name for lock in target.entries(LOCKS) if not lock.name.endswith(".free")]
        found.append(Check("lock", True, "held" if locks else "free"))
        days = Archive(target).generations("telemetry")
        found.append(Check("archive", True, f"{len(days)} days"))
        return found
    except SkywaveError as error:
        return [Check("target", False, f"{error} {error.hint}".strip())]


def _shard(shard: SourceShard) -> list[Check]:
    name = f"shard {shard.name}"
    found = [Check(name, True, f"version {shard.version()}")]
    for table in BY_DAY.values():
        try:
            shard.check_columns(table)
        except SkywaveError as error:
            found.append(Check(f"{name} {table.name}", False, str(error)))
    now = int(shard.store.query("SELECT toUInt64(toUnixTimestamp(now()))")[0][0])
    difference = abs(now - time.time())
    good = difference <= MAX_CLOCK_DIFFERENCE_S
    found.append(Check(f"{name} clock", good, f"differs by {difference:.0f} s from this host's"))
    lag = shard.replica_lag()
    if lag is not None:
        found.append(Check(f"{name} replica", lag <= MAX_DELAY_S, f"{lag} s behind"))
    return found
