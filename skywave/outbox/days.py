"""The days of batches: rules that say from which batch on which day counts."""

from __future__ import annotations

import bisect
from collections.abc import Iterable
from datetime import date


class Days:
    """The day rules in memory: ``of(id)`` is the day fixed for a batch, None if there is none yet."""

    def __init__(self, rules: Iterable[tuple[int, date | None]]) -> None:
        self._ids: list[int] = []
        self._days: list[date | None] = []
        for from_id, day in sorted(rules, key=lambda rule: rule[0]):
            self.add(from_id, day)

    def add(self, from_id: int, day: date | None) -> None:
        """A rule from ``from_id`` on; it replaces what later rules there were."""
        cut = bisect.bisect_left(self._ids, from_id)
        del self._ids[cut:], self._days[cut:]
        self._ids.append(from_id)
        self._days.append(day)

    def put(self, first: int, stop: int | None, day: date | None) -> Days:
        """These rules with another day for the ids from ``first`` to before ``stop``, or all from ``first`` on."""
        rules = [rule for rule in self.rules if rule[0] < first]
        rules.append((first, day))
        if stop is not None:
            rules.append((stop, self.of(stop)))
            rules += [rule for rule in self.rules if rule[0] > stop]
        days = Days([])
        for from_id, of_rule in rules:
            if of_rule != days.latest:
                days.add(from_id, of_rule)
        return days

    def needed_from(self, batch_id: int) -> Days:
        """These rules without those that are over before ``batch_id``."""
        from_id = max((from_id for from_id in self._ids if from_id <= batch_id), default=0)
        return Days(rule for rule in self.rules if rule[0] >= from_id)

    def room(self, first: int, stop: int) -> int:
        """Up to where, and not beyond ``stop``, no id from ``first`` on has a day."""
        return min([stop, *(from_id for from_id, day in self.rules if day and from_id > first)])

    @property
    def rules(self) -> list[tuple[int, date | None]]:
        """From which id on which day holds, in order."""
        return list(zip(self._ids, self._days, strict=True))

    def of(self, batch_id: int) -> date | None:
        """The day of a batch."""
        at = bisect.bisect_right(self._ids, batch_id) - 1
        return self._days[at] if at >= 0 else None

    @property
    def latest(self) -> date | None:
        """The day of batches to come."""
        return self._days[-1] if self._days else None

    @property
    def latest_from(self) -> int:
        """First id of the latest rule, 0 if there is none."""
        return self._ids[-1] if self._ids else 0

    @property
    def last_heard(self) -> date | None:
        """The last day that was ever fixed."""
        return max((day for day in self._days if day), default=None)


def as_date(text: str | None) -> date | None:
    """A date of the outbox; None also for what is none, which means: not known."""
    try:
        return date.fromisoformat(text) if text else None
    except (ValueError, TypeError):
        return None
