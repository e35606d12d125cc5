"""The archive's layout, and reading it; ``workspace.py`` changes it.

::

    telemetry/day=2026-11-20/*.parquet   what Spark, DuckDB, Trino and Polars read
    rejected/day=2026-11-20/*.parquet    messages that could not be stored
    accounts/*.parquet                   what the clients say they produced, dropped, and what has expired
    _manifests/TABLE/DAY.gen-0001.json   the truth about each day
    _superseded/TABLE/DAY/               files that a later generation replaced
    _locks/00000007                      the newest is the lock; its number grows for ever
    _staging/00000007-3f9a…/             its owner's workspace
    _trash/…                             what prune removed, until its time is over
    _kept_from                           a date: older days were pruned on purpose
    _fleet                               the id of the fleet whose archive it is
    _state.json                          what was verified when, and up to where each shard was read: a cache
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from typing import Any

from skywave.errors import SkywaveError

from .errors import BrokenManifest, NotFound, TargetUnavailable
from .manifest import Manifest, generation_of, manifest_name, parse_name
from .targets.target import Entry, Target

log = logging.getLogger(__name__)

MANIFESTS, LOCKS, STAGING, SUPERSEDED, TRASH, STATE, KEPT_FROM, FLEET = (
    "_manifests", "_locks", "_staging", "_superseded", "_trash", "_state.json", "_kept_from", "_fleet",
)  # fmt: skip
_AT_ONCE = 8


def within(day: date, first: date | None, last: date | None) -> bool:
    """Whether a day lies between two days, both included; None for no bound."""
    return (first is None or day >= first) and (last is None or day <= last)


def day_folder(table: str, day: date) -> str:
    """The folder of a day's data files."""
    return f"{table}/day={day.isoformat()}"


@dataclass
class DayFiles:
    """What lies in a day's folder."""

    listed: dict[str, Entry]
    """The files the manifest names, as far as they are there."""
    alien: list[str]
    lost: list[str]
    """Files of a later generation, whose manifest is not there: rows of the day that nobody knows of."""


class Archive:
    """Reading an archive; changing it needs a ``Workspace``."""

    def __init__(self, target: Target) -> None:
        self.target = target

    @property
    def where(self) -> str:
        """For messages: what and where it is."""
        return self.target.where

    def generations(self, table: str) -> dict[date, list[int]]:
        """Every archived day and its generations, ascending."""
        found: dict[date, list[int]] = {}
        for entry in self.target.entries(f"{MANIFESTS}/{table}"):
            if parsed := parse_name(entry.name):
                found.setdefault(parsed[0], []).append(parsed[1])
        return {day: sorted(found[day]) for day in sorted(found)}

    def manifest(self, table: str, day: date, generation: int) -> Manifest:
        """One generation's manifest; raises ``BrokenManifest`` or ``NewerManifest``."""
        path = manifest_path(table, day, generation)
        try:
            content = self.target.read_bytes(path)
        except NotFound as error:
            raise BrokenManifest(f"{path}: missing", "Verify the archive.") from error
        except TargetUnavailable as error:
            raise BrokenManifest(f"{path}: {self.target.unreadable(error)}", "Verify the archive.") from error
        manifest = Manifest.decode(content, path)
        if (manifest.table, manifest.day, manifest.generation) != (table, day, generation):
            raise BrokenManifest(f"{path}: is that of {manifest.table} {manifest.name}", "Somebody renamed it.")
        return manifest

    def manifests(self, table: str) -> Iterator[tuple[date, Manifest | SkywaveError]]:
        """The newest manifest of each day in order, or why it cannot be read."""

        def load(item: tuple[date, list[int]]) -> tuple[date, Manifest | SkywaveError]:
            try:
                return item[0], self.manifest(table, item[0], item[1][-1])
            except TargetUnavailable:
                raise
            except SkywaveError as error:
                return item[0], error

        newest = list(self.generations(table).items())
        with ThreadPoolExecutor(_AT_ONCE) as pool:  # a few at a time, because a manifest of many streams is large
            for start in range(0, len(newest), _AT_ONCE):
                yield from pool.map(load, newest[start : start + _AT_ONCE])

    def orphans(self, table: str) -> list[date]:
        """Days that have a folder but no manifest: broken."""
        generations = self.generations(table)
        found = []
        for entry in self.target.entries(table):
            with contextlib.suppress(ValueError):
                day = date.fromisoformat(entry.name.removeprefix("day="))
                if day not in generations:
                    found.append(day)
        return found

    def day_files(self, manifest: Manifest) -> DayFiles:
        """What the day's folder holds, told apart by the manifest."""
        wanted = {file.name for file in manifest.files}
        entries = self.target.entries(day_folder(manifest.table, manifest.day))
        others = [entry.name for entry in entries if entry.name not in wanted]
        lost = [name for name in others if generation_of(name) > manifest.generation]
        return DayFiles(
            {entry.name: entry for entry in entries if entry.name in wanted},
            [name for name in others if name not in lost],
            lost,
        )

    def state(self) -> dict[str, Any]:
        """The cache: ``{"markers": {table/day: {…}}, "verified": {table/day: {…}}}``."""
        try:
            state = json.loads(self.target.read_bytes(STATE))
            if isinstance(state, dict):
                return {"markers": {}, "verified": {}, **state}
        except (NotFound, ValueError):
            pass
        except TargetUnavailable as error:
            self.target.unreadable(error)
        return {"markers": {}, "verified": {}}

    def verified(self, manifest: Manifest, state: dict[str, Any]) -> tuple[str, str] | None:
        """Level and time at which exactly this generation was verified, or None."""
        found = state["verified"].get(f"{manifest.table}/{manifest.day}")
        return (found["level"], found["at"]) if found and found["manifest"] == manifest.identity else None

    def fleet(self) -> str | None:
        """The id of the fleet whose archive it is; empty before its first export, and in an archive of version 0.1.0. None if
        it cannot be read though the target answers."""
        try:
            return self.target.read_bytes(FLEET).decode(errors="replace").strip()
        except NotFound:
            return ""
        except TargetUnavailable as error:
            log.warning("%s/%s %s", self.where, FLEET, self.target.unreadable(error))
            return None

    def kept_from(self) -> date:
        """Days before this one were pruned on purpose, and are not exported again by themselves."""
        try:
            return date.fromisoformat(self.target.read_bytes(KEPT_FROM).decode().strip())
        except (NotFound, ValueError):
            return date.min


def manifest_path(table: str, day: date, generation: int) -> str:
    """Where a generation's manifest lies."""
    return f"{MANIFESTS}/{table}/{manifest_name(day, generation)}"
