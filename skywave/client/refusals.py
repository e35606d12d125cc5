"""Which batches the broker does not take, and when each of them is tried again.

A batch that the broker refuses as too large is set aside and tried again, less and less often. A broker may also end the
connection over it without a word, as a poor link does. After some such ends batches go one at a time, the smallest first,
behind a status that the broker has answered: then it shows whether it is always the same one.

No clock, network or database in here: times come in as monotonic seconds, so that every case can be tested.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from ..formats.batch import Batch
from ..mqtt.events import PACKET_TOO_LARGE, Disconnected, Refused
from .window import InFlight

STRIKES = 3
"""So many connections in a row end without a word before batches go alone, and so many that each had the same batch alone on
its way before it is set aside."""
ASIDE_S, ASIDE_MAX_S = 60.0, 900.0
"""After so long a batch that was set aside is tried again; each time that it is refused after twice as long."""
MAX_ASIDE = 1000
"""When so many batches are set aside nothing more is published: the broker takes none that matter."""


@dataclass(frozen=True, slots=True)
class _Aside:
    """A batch that the broker refuses: why, how often it did, and when it is tried again."""

    reason: str
    times: int
    until: float


class Refusals:
    """The batches that are set aside, and what is known of those that may have to be."""

    def __init__(self, rng: random.Random | None = None) -> None:
        self._rng = rng or random.Random()
        self._aside: dict[int, _Aside] = {}
        self._strikes = 0  # connections in a row that ended without a word while the broker owed an answer
        self._died_alone: dict[int, int] = {}  # by batch: connections that ended while it alone was on its way
        self._up_at = 0.0
        self._greeted: Callable[[], bool] | None = None  # whether the broker has answered the first status
        self._refused = False  # whether it has refused a batch on this connection

    def __contains__(self, batch_id: int) -> bool:
        return batch_id in self._aside

    def __len__(self) -> int:
        return len(self._aside)

    @property
    def reasons(self) -> dict[int, str]:
        """Why each batch is set aside, by id. Any thread may ask."""
        return {batch_id: aside.reason for batch_id, aside in self._aside.copy().items()}

    @property
    def full(self) -> bool:
        """True when so many are set aside that no other batch is published."""
        return len(self._aside) >= MAX_ASIDE

    # -- what happens on a connection --------------------------------------------------------------------------------

    def connected(self, now: float) -> None:
        """A new connection."""
        self._up_at, self._greeted, self._refused = now, None, False

    def greeted(self, answered: Callable[[], bool]) -> None:
        """A status was published; ``answered`` tells whether the broker has answered. The first of a connection counts."""
        self._greeted = self._greeted or answered

    def refused(self, why: Refused) -> bool:
        """The broker's word on a batch; True if the batch has to be set aside."""
        self._refused |= why.sent
        return why.code == PACKET_TOO_LARGE

    def acknowledged(self, ids: Iterable[int]) -> None:
        """A server has acknowledged these batches, or said at least that it is there."""
        if not self.one_at_a_time:
            self._strikes = 0
        for batch_id in ids:
            self._aside.pop(batch_id, None)
            self._died_alone.pop(batch_id, None)

    def disconnected(self, why: Disconnected, in_flight: Iterable[InFlight]) -> tuple[Batch, str] | None:
        """Looks whether a batch may have ended the connection; returns the one that has to be set aside for it, and why."""
        # What the broker may have refused is what was sent on this connection and not taken.
        tried = [entry.batch for entry in in_flight if entry.sent_at >= self._up_at and not entry.arrived()]
        if not tried or why.wanted:
            return None
        if why.code == PACKET_TOO_LARGE:
            return max(tried, key=_size), why.reason
        if why.code or self._refused:  # the broker says why, or said it in an answer before
            return None
        self._strikes += 1
        if len(tried) == 1 and self._has_answered():
            (batch,) = tried
            times = self._died_alone[batch.id] = self._died_alone.get(batch.id, 0) + 1
            if times >= STRIKES:
                del self._died_alone[batch.id]
                return batch, f"{why.reason}, {times} times with it alone"
        return None

    # -- one at a time -----------------------------------------------------------------------------------------------

    @property
    def one_at_a_time(self) -> bool:
        """True while batches go alone, because one of them may be what ends the connections."""
        return self._strikes >= STRIKES

    def next_alone(self, in_flight: Iterable[InFlight]) -> InFlight | None:
        """The batch to send now: the smallest that was not sent on this connection, when the broker has answered the one
        before. None while it has not, and when all went well: then they need not go alone any more."""
        if not self._has_answered():
            return None
        for entry in sorted(in_flight, key=lambda entry: _size(entry.batch)):
            if entry.sent_at < self._up_at:
                return entry
            if not entry.arrived():
                return None
        self._strikes = 0
        self._died_alone.clear()
        return None

    def _has_answered(self) -> bool:
        return self._greeted is not None and self._greeted()

    # -- set aside ---------------------------------------------------------------------------------------------------

    def set_aside(self, batch_id: int, reason: str, now: float) -> bool:
        """Sets a batch aside for a while, each time for longer; True if it is the first time."""
        times = self._aside[batch_id].times + 1 if batch_id in self._aside else 1
        pause = min(ASIDE_S * 2 ** min(times - 1, 10), ASIDE_MAX_S) * self._rng.uniform(1.0, 1.25)
        self._aside[batch_id] = _Aside(f"broker: {reason}", times, now + pause)
        return times == 1

    def due(self, now: float) -> int | None:
        """One that it is time to try again."""
        return next((batch_id for batch_id, aside in self._aside.items() if aside.until <= now), None)

    def tried(self, batch_id: int) -> None:
        """It is on its way again: due no more, unless it is set aside again."""
        self._aside[batch_id] = replace(self._aside[batch_id], until=float("inf"))

    def forget(self, batch_id: int) -> None:
        """It is no longer in the outbox."""
        del self._aside[batch_id]


def _size(batch: Batch) -> int:
    return len(batch.payload)
