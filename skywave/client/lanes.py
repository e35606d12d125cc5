"""Which batch is published next, and under which day.

Two lanes share the window. The *live* lane takes batches as the intake commits them; what it has no room for stays in
the outbox. The *backlog* lane walks through the outbox by id, from ``_cursor`` to ``_top``, and fills the rest of the
window. So fresh readings arrive at once while an outage's backlog drains, and memory does not depend on the backlog.

The day of a batch is fixed before its first publish, and for some batches after it in the same commit. It is taken back
from those that were not published when publishing ends or the day changes: a batch gets the day on which it is published.

No clock, network or database in here: days, rows and what was done with them come in, so that every case can be tested.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from datetime import date
from itertools import islice

from ..formats.batch import Batch
from ..outbox.days import Days

FRESH_LIMIT = 64
"""Committed batches that may wait for the uplink in memory; beyond that they stay in the outbox alone."""
DAY_AHEAD = 256
"""Batches whose day is fixed at once. If the client is killed, as many may keep a day on which they were not published."""
MAX_UNPUBLISHED_GAPS = 64


class Lanes:
    """The batches of an outbox that are to be published. One thread may call ``offer`` and ``leave``, and one all else.

    ``first_id`` is the first id of this process, ``days`` are the outbox's day rules. ``acked`` are the ids that a server
    has acknowledged and that the outbox still holds.
    """

    def __init__(self, first_id: int, days: Days) -> None:
        self.first_id = first_id
        self.acked: list[int] = []
        self._offered: deque[Batch] = deque()
        self._skipped_to = 0  # highest id that the intake did not hand over because the uplink was behind
        self._fresh: deque[Batch] = deque()
        self._cursor = 0
        self._top = first_id - 1  # the outbox as it was found is backlog
        self._days = days
        self._unpublished: list[range] = []  # ids that have today's day and were not published
        self._fixed_date: date | None = None  # which day that is

    # -- called by the intake's thread -------------------------------------------------------------------------------

    def offer(self, batch: Batch) -> bool:
        """A batch that was just committed; False if there is no room for it here: then the backlog lane finds it."""
        if len(self._offered) < FRESH_LIMIT:
            self._offered.append(batch)
            return True
        self._skipped_to = batch.id
        return False

    def leave(self, last_id: int) -> None:
        """The outbox has batches up to ``last_id`` that were not offered: the backlog lane finds them."""
        self._skipped_to = last_id

    # -- the live lane -----------------------------------------------------------------------------------------------

    def take_offered(self) -> None:
        """Brings what was offered into the live lane."""
        for _ in range(len(self._offered)):
            batch = self._offered.popleft()
            if batch.id > self._top:  # else the backlog lane has it already
                self._fresh.append(batch)

    def fresh(self, room: int) -> list[Batch]:
        """Up to ``room`` batches of the live lane, the oldest first. They stay in it until they are ``published``."""
        return list(islice(self._fresh, room))

    def shelve(self) -> None:
        """Leaves to the backlog lane what the live lane has no room for: it is in the outbox anyhow."""
        skipped_to = self._skipped_to  # once: the intake may move it meanwhile
        ids = [batch.id for batch in self._fresh]
        highest = max([*ids, skipped_to])
        if highest > self._top:
            if self._cursor > self._top:
                # A skipped batch may be older than those that wait; what is delivered already is passed over.
                self._cursor = self._top + 1 if skipped_to > self._top else min(ids)
            self._top = highest
        self._fresh.clear()

    # -- the backlog lane --------------------------------------------------------------------------------------------

    def backlog(self) -> tuple[int, int] | None:
        """The first and the last id of what the backlog lane has yet to walk through; None if there is nothing."""
        return (self._cursor, self._top) if self._cursor <= self._top else None

    def walked(self, batches: Sequence[Batch], limit: int) -> None:
        """The first ``batches`` of the backlog, read with this limit, are published or need not be. If publishing them was cut
        short this is not called: they are read again."""
        self._cursor = batches[-1].id + 1 if batches and len(batches) >= limit else self._top + 1

    # -- days --------------------------------------------------------------------------------------------------------

    def without_day(self, batch_id: int, today: date) -> range:
        """The ids that have to get the day ``today`` before this batch is published: it and the next ones that have none.
        Empty if it has a day."""
        if self._days.of(batch_id) is not None:
            return range(0)
        ids = range(batch_id, self._days.room(batch_id, batch_id + DAY_AHEAD))
        self._fixed_date = today
        if ids not in self._unpublished:
            self._unpublished.append(ids)  # before the commit, because its outcome may be unknown
        return ids

    def fixed(self, days: Days) -> None:
        """The outbox has fixed the day of what was ``without_day``; ``days`` are its rules now."""
        self._days = days

    def published(self, batch_id: int) -> date:
        """This batch is on its way; returns its day."""
        day = self._days.of(batch_id)
        assert day is not None, "a batch is published only after its day is fixed"
        self._unpublished = [
            part
            for ids in self._unpublished
            for part in (range(ids.start, min(ids.stop, batch_id)), range(max(ids.start, batch_id + 1), ids.stop))
            if part
        ]
        if self._fresh and self._fresh[0].id == batch_id:
            self._fresh.popleft()
        return day

    def unused_days(self, today: date | None) -> list[range]:
        """The ids whose day has to be taken back now: a batch that was not published gets its day when it is. ``today`` is
        None while nothing is published."""
        if today == self._fixed_date and len(self._unpublished) <= MAX_UNPUBLISHED_GAPS:
            return []
        for ids in self._unpublished:  # before the commit, because its outcome may be unknown
            self._days = self._days.put(ids.start, ids.stop, None)
        return self._unpublished[::-1]

    def taken_back(self, ids: range, days: Days) -> None:
        """The outbox has taken the day of these ids back; ``days`` are its rules now."""
        self._unpublished.remove(ids)
        self._days = days
