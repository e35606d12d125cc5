"""From the sensors into the outbox: one thread reads all sensors, groups their readings and commits them.

The thread commits before it reads on. So a slow, full or absent outbox stops the reading, TCP pushes back on the
sensors, and nothing piles up in memory. A reading waits at most ``linger`` for its commit.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from datetime import date
from typing import Protocol

from .. import config
from ..errors import OutboxUnavailable
from ..formats.batch import Batch, Name, encode
from ..outbox.outbox import Outbox, Position
from ..process.backoff import Backoff
from ..process.handover import Kept, hand_over
from .clock import Clock
from .held import HeldBack
from .sensors import CHUNK_BYTES, SensorFigures, Sensors

log = logging.getLogger(__name__)

LOOK_AFTER_S = 0.1
"""Between two looks at the connections that are down or silent."""
FULL_RETRY_S = 0.2
UNAVAILABLE_RETRY_S, UNAVAILABLE_RETRY_MAX_S = 0.05, 5.0
DRAIN_S = 0.5
STOP_GRACE_S = 5.0
"""How long a stopping client goes on trying to commit its last batch to an outbox that is away."""


class Receiver(Protocol):
    """Who brings committed batches on: the uplink."""

    @property
    def heard_date(self) -> date | None:
        """The last server date that was heard."""

    @property
    def accepting(self) -> bool:
        """True while some server takes batches."""

    def offer(self, batch: Batch) -> None:
        """A batch that was just committed. Never waits."""

    def leave(self, last_id: int) -> None:
        """The outbox has batches up to that id that were not offered."""


class Intake:
    """Owns the sensors' sockets, the open batch and the writing side of the outbox.

    ``receiver`` is told of every batch that the outbox has committed; ``inherited`` are the sensors' connections that an
    earlier process handed over.
    """

    def __init__(
        self,
        settings: config.Client,
        outbox: Outbox,
        stream: int,
        first_id: int,
        receiver: Receiver,
        inherited: Sequence[Kept] = (),
    ) -> None:
        self._settings = settings
        self._outbox = outbox
        self._stream = stream
        self._next_id = first_id
        self._next_seq = 1
        self._receiver = receiver
        self._held = HeldBack(settings, outbox, lambda: receiver.accepting)
        self._sensors = Sensors(settings.sensors, settings.intake, outbox.positions(), inherited)
        self._stopping = threading.Event()
        self._look_after_at = 0.0
        self.progress_at = time.monotonic()
        self.full = ""
        self.unavailable = ""
        self.readings = 0
        self.commits = 0

    @property
    def clock(self) -> Clock:
        """The wall clock, as far as it can be trusted."""
        return self._held.clock

    @property
    def sensors(self) -> dict[str, SensorFigures]:
        """Figures by sensor name."""
        return self._sensors.figures()

    def stop(self) -> None:
        """Asks the loop to commit what it holds and to return."""
        self._stopping.set()

    def run(self) -> None:
        """Reads and commits until ``stop``."""
        try:
            while not self._stopping.is_set():
                now = self.progress_at = time.monotonic()
                if now >= self._look_after_at:
                    self._look_after_at = now + LOOK_AFTER_S
                    self._sensors.look_after(now)
                if self._held.look(now, self._next_id - 1):
                    self._receiver.leave(self._next_id - 1)
                got = self._sensors.read_ready(min(self._due_in(now), LOOK_AFTER_S))
                if self._due_in(time.monotonic()) <= 0:
                    self._commit()
                if got < CHUNK_BYTES // 4 and self._settings.intake.poll_interval:
                    # One look at many bytes costs less than many looks at few.
                    self._stopping.wait(
                        max(0.0, min(self._due_in(time.monotonic()), self._settings.intake.poll_interval))
                    )
            self._drain()
            if self._sensors.open:
                self._commit()
            if self._held.correct_all(self._next_id - 1, STOP_GRACE_S):
                self._receiver.leave(self._next_id - 1)
            if not self.unavailable:  # else readings were lost, and their connections end with them
                hand_over(self._sensors.kept())
        finally:
            self._sensors.close()

    def _drain(self) -> None:
        """Takes in what already stands in the sockets, unless the outbox would not have it."""
        until = time.monotonic() + DRAIN_S
        while not (self.full or self.unavailable) and time.monotonic() < until and self._sensors.read_ready(0):
            if self._sensors.open >= self._settings.intake.max_readings:
                self._commit()

    def _due_in(self, now: float) -> float:
        """Seconds until the open batch has to be committed; 0 or less when it must be now."""
        if not self._sensors.open:
            return LOOK_AFTER_S
        if self._sensors.open >= self._settings.intake.max_readings:
            return 0.0
        return self._sensors.opened_at + self._settings.intake.linger - now

    # -- committing ----------------------------------------------------------------------------------------------

    def _commit(self) -> None:
        """Commits the open readings at once: as one batch, or as several where a flood brought more than one may hold."""
        positions = self._sensors.moved()
        parts = self._sensors.take(self._settings.intake.max_readings)
        self.clock.look()
        batches: list[Batch] = []
        next_id, next_seq = self._next_id, self._next_seq
        for keys, codes, created_at, values in parts:
            name = Name(self._settings.client_id, self._stream, next_seq)
            times = self.clock.corrected(created_at)
            payload = encode(name, keys, codes, times, values, self._settings.intake.compression)
            heard = self._receiver.heard_date
            batches.append(Batch(next_id, self._stream, next_seq, len(times), min(times), heard, payload))
            next_id, next_seq = next_id + 1, next_seq + len(times)
        readings = next_seq - self._next_seq
        if not self._append(batches, positions):
            return
        self._next_id, self._next_seq = next_id, next_seq
        self.readings += readings
        self.commits += 1
        if not self._held.keeps(batches[0].id, time.monotonic()):
            for batch in batches:
                self._receiver.offer(batch)
        self._sensors.committed(positions)

    def _append(self, batches: list[Batch], positions: dict[str, Position]) -> bool:
        """Stores the batches, however long the outbox is away or full; False only when stopping has to give up."""
        size = sum(len(batch.payload) for batch in batches)
        backoff = Backoff(UNAVAILABLE_RETRY_S, UNAVAILABLE_RETRY_MAX_S)
        give_up_at = float("inf")
        while True:
            self.progress_at = time.monotonic()
            if self._stopping.is_set() and give_up_at == float("inf"):
                give_up_at = self.progress_at + STOP_GRACE_S
            try:
                self.full = self._outbox.full_because(size)
                if self.full and self._settings.outbox.when_full == "drop_oldest":
                    self._outbox.drop_oldest(size)
                elif self.full and not self._stopping.is_set():  # a stopping client may exceed the bound once
                    self._stopping.wait(FULL_RETRY_S)
                    continue
                self._outbox.append(batches, positions)
                self.full = self.unavailable = ""
                return True
            except OutboxUnavailable as error:
                if not self.unavailable:
                    log.warning("outbox: %s; the sensors wait", error)
                self.unavailable = str(error)
                if time.monotonic() >= give_up_at:
                    log.error("outbox: still away, %d readings in memory are lost", sum(b.count for b in batches))
                    return False
                if self._stopping.wait(backoff.next()):
                    time.sleep(0.1)
