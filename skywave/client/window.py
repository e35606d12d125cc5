"""The batches that wait for an acknowledgement: which may be sent, which are acknowledged, which are due again.

No clock, network or database in here: times come in as monotonic seconds, so that every case can be tested.
The time-out follows the measured delay of acknowledgements as TCP's does (RFC 6298), doubles with each resend of a
batch and is jittered, so that a fleet does not resend in step.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date

from .. import config
from ..formats.batch import Batch
from ..formats.messages import Range


@dataclass(slots=True)
class InFlight:
    """A published batch. ``attempt`` 0 is certainly its first publish; ``live`` tells its lane; ``arrived`` whether the
    broker has taken the last copy, or passed it over."""

    batch: Batch
    day: date
    attempt: int
    live: bool
    sent_at: float
    due_at: float
    arrived: Callable[[], bool] = lambda: True

    def properties(self) -> tuple[tuple[str, str], ...]:
        """The user properties with which it is published."""
        batch = self.batch
        return (
            ("stream", str(batch.stream)),
            ("first_seq", str(batch.first_seq)),
            ("count", str(batch.count)),
            ("day", self.day.isoformat()),
            ("since", batch.since.isoformat() if batch.since else ""),
            ("attempt", str(self.attempt)),
        )


class Window:
    """Bounded in batches and bytes; one empty window always has room, however large the batch."""

    def __init__(self, settings: config.Uplink, rng: random.Random | None = None) -> None:
        self._settings = settings
        self._rng = rng or random.Random()
        self._in_flight: dict[int, InFlight] = {}
        self._bytes = 0
        self._smoothed = 0.0
        self._variation = 0.0
        self.resent = 0
        self.ignored_acks = 0

    def __len__(self) -> int:
        return len(self._in_flight)

    def __iter__(self) -> Iterator[InFlight]:
        return iter(self._in_flight.values())

    def __contains__(self, batch_id: int) -> bool:
        return batch_id in self._in_flight

    def room(self, live: bool) -> int:
        """How many more batches may be sent. The backlog leaves an eighth of the window to live batches."""
        if self._bytes >= self._settings.max_in_flight_bytes:
            return 0
        reserve = 0 if live else self._settings.max_in_flight // 8
        return max(0, self._settings.max_in_flight - reserve - len(self._in_flight))

    def add(self, batch: Batch, day: date, attempt: int, live: bool, now: float) -> InFlight:
        """Enters a batch that is about to be published."""
        entry = InFlight(batch, day, attempt, live, now, now + self._timeout(0))
        self._in_flight[batch.id] = entry
        self._bytes += len(batch.payload)
        return entry

    def acknowledge(self, acked: Range, now: float) -> list[Batch]:
        """Removes and returns the batches that ``acked`` covers wholly. A range that covers none is counted: it is of
        another stream, was never sent, or repeats an earlier one."""
        done = [
            entry
            for entry in self._in_flight.values()
            if entry.batch.stream == acked.stream
            and acked.first <= entry.batch.first_seq
            and entry.batch.last_seq <= acked.last
        ]
        self.ignored_acks += not done
        for entry in done:
            self._remove(entry)
            if entry.attempt == 0:  # the delay of a resent batch is ambiguous (Karn)
                self._measure(now - entry.sent_at)
        return [entry.batch for entry in done]

    def due(self, now: float, limit: int) -> list[InFlight]:
        """The batches to send again now, oldest first, already entered as sent.

        One whose last copy is still on its way to the broker is not due: TCP brings it or the connection ends. On a slow link
        a second copy would stand behind the first, and the link would carry little else.
        """
        entries = []
        for entry in self._in_flight.values():
            if entry.due_at > now:
                continue
            if not entry.arrived():
                entry.due_at = now + self._timeout(0)
                continue
            entries.append(entry)
            if len(entries) == limit:
                break
        return [self.again(entry, now) for entry in entries]

    def again(self, entry: InFlight, now: float) -> InFlight:
        """Enters a batch that is about to be published once more."""
        entry.attempt += 1
        entry.sent_at = now
        entry.due_at = now + self._timeout(entry.attempt)
        self.resent += 1
        return entry

    def rewind(self) -> None:
        """Makes everything due: after a reconnect nobody knows what arrived."""
        for entry in self._in_flight.values():
            entry.due_at, entry.arrived = 0.0, lambda: True

    def remove(self, batch_id: int) -> InFlight:
        """Takes a batch out unacknowledged."""
        entry = self._in_flight[batch_id]
        self._remove(entry)
        return entry

    @property
    def timeout(self) -> float:
        """The present time-out of a first publish, in seconds, without jitter."""
        measured = self._smoothed + 4 * self._variation if self._smoothed else 2 * self._settings.ack_timeout_min
        return min(max(measured, self._settings.ack_timeout_min), self._settings.ack_timeout_max)

    @property
    def ack_delay(self) -> float:
        """Smoothed seconds from publish to acknowledgement; 0 while none was measured."""
        return self._smoothed

    def _timeout(self, attempt: int) -> float:
        backed_off = min(self.timeout * (1 << min(attempt, 16)), self._settings.ack_timeout_max)
        return backed_off * self._rng.uniform(1.0, 1.25)

    def _remove(self, entry: InFlight) -> None:
        del self._in_flight[entry.batch.id]
        self._bytes -= len(entry.batch.payload)

    def _measure(self, delay: float) -> None:
        if not self._smoothed:
            self._smoothed, self._variation = delay, delay / 2
            return
        self._variation += (abs(delay - self._smoothed) - self._variation) / 4
        self._smoothed += (delay - self._smoothed) / 8
