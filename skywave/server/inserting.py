"""The step that makes readings durable, and stores each batch once.

1. A batch whose name is twice in the group, or was committed lately, is not inserted again.
2. The store is asked for each batch that may have been sent before (``attempt`` or DUP), that was held too long (a frozen
   server thaws), or that was in an INSERT of unknown outcome.
3. Under that the table is a ReplacingMergeTree keyed by the identity, for two servers that insert at the same time.
"""

from __future__ import annotations

import time
from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from datetime import date

from ..errors import StoreBusy
from ..formats.batch import Name
from ..process.times import boottime
from ..store.delivery import Delivery
from .admission import MAX_INSERT_BYTES, Admitted, build_block
from .figures import ShardFigures
from .patience import Patience

HELD_TOO_LONG_S = 30.0
REMEMBERED_BATCHES = 200_000


class Inserter:
    """``max_rows`` bounds one INSERT."""

    def __init__(self, max_rows: int, store: Delivery, patience: Patience, figures: ShardFigures) -> None:
        self._max_rows = max_rows
        self._store, self._patience, self._figures = store, patience, figures
        self._committed: OrderedDict[Name, None] = OrderedDict()

    def insert(self, admitted: Sequence[Admitted]) -> None:
        """Returns when all of it is stored, by an INSERT of this call or an earlier one. Raises ``Stopped``."""
        fresh = self._once(admitted)
        self._insert_by_day([item for item in fresh if not item.retained])
        self._insert_by_day(self._unknown([item for item in fresh if item.retained]))  # they may be among the former

    def _once(self, admitted: Sequence[Admitted]) -> list[Admitted]:
        """Without the batches that are twice in this group or were committed lately."""
        asked = {item.name for item in admitted if item.must_look_up}  # by one of its copies, perhaps not by the first
        seen: set[Name] = set()
        fresh = []
        for item in admitted:
            if item.look_up:
                if item.name in seen or item.name in self._committed:
                    self._figures.duplicates += 1
                    continue
                seen.add(item.name)
            fresh.append(replace(item, must_look_up=True) if item.name in asked else item)
        return fresh

    def _unknown(self, items: Sequence[Admitted]) -> list[Admitted]:
        """What brokers remember without the readings that are stored: by what they say, because they came under another
        name, and perhaps on another day, when they were new."""
        if not items:
            return []
        readings = [reading for item in items for reading in item.readings()]
        known = self._patience.until_done(lambda: self._store.known_readings(readings))
        fresh = []
        for item in items:
            new = [number for number, reading in enumerate(item.readings()) if reading not in known]
            known.update(item.readings())
            self._figures.duplicates += not new
            if new:
                fresh.append(item.only(new))
        return fresh

    def _insert_by_day(self, items: Sequence[Admitted]) -> None:
        by_day: defaultdict[date, list[Admitted]] = defaultdict(list)
        for item in items:
            by_day[item.day].append(item)
        for day in sorted(by_day):
            for part in _parts(by_day[day], self._max_rows):
                self._insert_part(day, part)

    def _insert_part(self, day: date, items: list[Admitted]) -> None:
        """One INSERT, of what a look-up does not find."""
        now = boottime()
        doubtful = {i.name for i in items if i.look_up and (i.must_look_up or now - i.at > HELD_TOO_LONG_S)}

        def attempt() -> None:
            nonlocal items, doubtful
            if doubtful:
                self._figures.look_ups += len(doubtful)
                found = self._store.existing([item.probe() for item in items if item.name in doubtful])
                if found:
                    self._store.sync()  # whoever inserted them may not have come to that
                self._figures.duplicates += len(found)
                items = [item for item in items if item.name not in found]
            if items:
                before, doubtful = doubtful, {item.name for item in items if item.look_up}  # if the outcome is unknown
                started = time.monotonic()
                try:
                    self._store.insert_readings(build_block(day, items))
                except StoreBusy:
                    doubtful = before
                    raise
                self._figures.insert_s += time.monotonic() - started
                self._figures.inserts += 1

        everything = [item.name for item in items if item.look_up]
        self._patience.until_done(attempt)
        self._figures.batches += len(items)
        self._figures.readings += sum(len(item.values) for item in items)
        for name in everything:
            self._committed[name] = None
        while len(self._committed) > REMEMBERED_BATCHES:
            self._committed.popitem(last=False)


def _parts(items: list[Admitted], max_rows: int) -> list[list[Admitted]]:
    """The items in groups of at most ``max_rows`` readings and ``MAX_INSERT_BYTES`` (or one item)."""
    parts: list[list[Admitted]] = []
    rows = size = 0
    for item in items:
        rows += len(item.values)
        size += item.size
        if not parts or rows > max_rows or size > MAX_INSERT_BYTES:
            parts.append([])
            rows, size = len(item.values), item.size
        parts[-1].append(item)
    return parts
