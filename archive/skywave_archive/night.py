"""One run over all days: which ones have to be looked at, each in its turn, and what is remembered for the next run."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

from skywave.errors import EXIT_DATA, SkywaveError

from .archive import STATE, Archive, utc_today
from .export import DayResult, Exporter
from .reading import Progress
from .settings import Export
from .source import Shard
from .tables import Table
from .workspace import Workspace


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
    kept_from = archive.kept_from()
    have = {day for found in markers.values() for day in found}
    start = first or min([*have, *generations], default=last + timedelta(days=1))
    wanted = []
    for day in (start + timedelta(days=n) for n in range((last - start).days + 1)):
        now = {name: found[day] for name, found in markers.items() if day in found}
        if day not in generations:
            look = day in have or (table.ranged and day < utc_today())
            if first is None and day < kept_from:
                look = bool(now) and not is_pruned(state, table, day, now)
        else:
            done = {"generation": generations[day][-1], "shards": now}
            look = first is not None or (bool(now) and state.get(f"{table.name}/{day}") != done)
        if look:
            wanted.append(day)
    return Plan(table, wanted, markers, generations)


def is_pruned(markers: dict[str, Any], table: Table, day: date, now: dict[str, str]) -> bool:
    """Of a day before ``kept_from``: whether the store has just the rows that were archived, and pruned on purpose."""
    return bool(markers.get(f"{table.name}/{day}", {}).get("shards") == now)


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
            closed = day < utc_today()
            try:
                result = exporter.export(todo.table, day, markers, generations, anew)
            except SkywaveError as error:
                work.assert_owned()
                if error.exit_code != EXIT_DATA:
                    raise
                result = DayResult(todo.table.name, day, "failed", note=str(error), error=error)
            result.seconds = round(time.monotonic() - began, 2)
            if result.outcome not in ("unsealed", "failed") and closed:
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
    work.replace(STATE, json.dumps(state, sort_keys=True).encode())
