"""One run over all days: which ones have to be looked at, each in its turn, and what is remembered for the next run."""

from __future__ import annotations

import contextlib
import itertools
import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

from skywave.errors import EXIT_DATA, SkywaveError, StoreUnavailable
from skywave.process.times import utc_today
from skywave.store.store import Store

from .archive import STATE, Archive, within
from .errors import NewerManifest
from .export import DayResult, Exporter
from .reading import Progress
from .settings import Export
from .source import SourceShard, held_by
from .tables import Held, Table
from .workspace import Workspace

MAX_GAP_DAYS = 31


@dataclass
class Plan:
    """What an export would do: days to look at, by table; ``markers[shard][day]``. ``marks`` to remember: of pruned days whose
    parts have merged since."""

    table: Table
    days: list[date]
    markers: dict[str, dict[date, str]]
    generations: dict[date, list[int]]
    marks: dict[str, Any]


def plan(archive: Archive, shards: list[SourceShard], table: Table, first: date | None, last: date | None) -> Plan:
    """Which days an export has to look at, oldest first.

    From ``first`` to ``last`` (yesterday by default) every day; without ``first``, those whose marker differs from the one
    at which the newest generation was found complete. Empty days between others count as well, so that no gap is left open,
    but only for telemetry, as messages that could not be stored are rare, and not in long gaps: one row of a day long ago
    would make hundreds of them.
    """
    markers = {shard.name: shard.markers(table) for shard in shards}
    generations = archive.generations(table.name)
    state = archive.state()["markers"]
    last = last or utc_today() - timedelta(days=1)
    kept_from = archive.kept_from()
    have = {day for found in markers.values() for day in found}
    days = {first} if first == last else _days(have | generations.keys(), last)
    wanted, marks = [], {}
    for day in sorted(day for day in days if within(day, first, last)):
        now = {name: found[day] for name, found in markers.items() if day in found}
        if day not in generations:
            look = day in have or (table.ranged and day < utc_today())
            if first is None and day < kept_from:
                mark = state.get(f"{table.name}/{day}", {})
                look = bool(now) and not is_pruned(mark, shards, table, day, now)
                if now and not look and mark["shards"] != now:
                    marks[f"{table.name}/{day}"] = {**mark, "shards": now}
        else:
            mark = state.get(f"{table.name}/{day}", {})
            look = first is not None or (bool(now) and not is_done(mark, generations[day][-1], now))
        if look:
            wanted.append(day)
    return Plan(table, wanted, markers, generations, marks)


def _days(known: set[date], last: date) -> set[date]:
    """ArchivedRows days and those of short gaps between them, and between the last of them and ``last``."""
    found = set(known)
    for one, other in itertools.pairwise(sorted({*known, last + timedelta(days=1)})):
        if (other - one).days <= MAX_GAP_DAYS:
            found |= {one + timedelta(days=n) for n in range(1, (other - one).days)}
    return found


def is_done(mark: dict[str, Any], generation: int, now: dict[str, str]) -> bool:
    """Whether a generation was found complete when the shards had the markers that they have now."""
    return (mark.get("generation"), mark.get("shards")) == (generation, now)


def is_exported(mark: dict[str, Any], generation: int, held: Held) -> bool:
    """Whether the archive had all that the store holds when it last looked."""
    return (mark.get("generation"), mark.get("held")) == (generation, [held[0], str(held[1])])


def is_pruned(mark: dict[str, Any], shards: list[SourceShard], table: Table, day: date, now: dict[str, str]) -> bool:
    """Of a day before ``kept_from``: whether the store has just the rows that were archived, and pruned on purpose."""
    then = mark.get("shards")
    if then is None or then == now:
        return then is not None
    if "held" in mark:
        return is_exported(mark, mark["generation"], held_by(shards, table, day))
    # Version 0.1.0 noted no more than the table's time and the highest block.
    return then.keys() == now.keys() and all(now[name].startswith(f"{marker}:") for name, marker in then.items())


def export_days(
    archive: Archive,
    work: Workspace,
    shards: list[SourceShard],
    todo: Plan,
    settings: Export,
    progress: Progress,
    anew: bool,
) -> Iterator[DayResult]:
    """Exports the days of a plan one after another. What is wrong with one day's data does not stop the others; anything
    else does, and what was done until then stays done."""
    exporter = Exporter(archive, work, shards, settings, progress)
    marks = dict(todo.marks)
    try:
        for day in todo.days:
            began = time.monotonic()
            markers = {name: found[day] for name, found in todo.markers.items() if day in found}
            generations = todo.generations.get(day, [])
            closed = day < utc_today()
            try:
                result = exporter.export(todo.table, day, markers, generations, anew)
            except SkywaveError as error:
                work.assert_owned()
                if not is_the_day_s(error, [shard.store for shard in shards]):
                    raise
                result = DayResult(todo.table.name, day, "failed", note=str(error), error=error)
            result.seconds = round(time.monotonic() - began, 2)
            if result.outcome not in ("unsealed", "failed") and closed:
                rows, total = result.held
                mark = {"generation": result.generation, "shards": markers, "held": [rows, str(total)]}
                marks[f"{todo.table.name}/{day}"] = mark
            yield result
    finally:
        with contextlib.suppress(SkywaveError):
            remember(archive, work, marks)


def is_the_day_s(error: SkywaveError, stores: list[Store]) -> bool:
    """Whether what stopped one day may let the others go on: its data, a manifest of a later version, or a statement that the
    stores refuse although they answer."""
    if isinstance(error, StoreUnavailable):
        try:
            return all(store.query("SELECT 1") for store in stores)
        except StoreUnavailable:
            return False
    return error.exit_code == EXIT_DATA or isinstance(error, NewerManifest)


def remember(archive: Archive, work: Workspace, marks: dict[str, dict[str, Any]], section: str = "markers") -> None:
    """Adds to one section of the state file, with the lock held. Losing it costs a second look, nothing else."""
    if not marks:
        return
    state = archive.state()
    state[section].update(marks)
    work.replace(STATE, json.dumps(state, sort_keys=True).encode())


def forget(archive: Archive, work: Workspace, table: Table, days: Iterable[date]) -> None:
    """Lets the next export look at these days, whatever their markers."""
    remember(archive, work, {f"{table.name}/{day}": {} for day in days})
