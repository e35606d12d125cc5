"""Batches that wait for the clock: they were made while it was never set, and their times are corrected once it is."""

from __future__ import annotations

import logging
import time
from array import array
from collections.abc import Callable
from dataclasses import replace

from .. import config
from ..errors import OutboxUnavailable
from ..formats.batch import Batch, Name, decode, encode
from ..outbox.outbox import Outbox
from .clock import EARLIEST_US, Clock

log = logging.getLogger(__name__)

CLOCK_GRACE_S = 30.0
"""For so long after a server accepts, batches of a clock that was never set wait for a time server's word. The network that
brings the one brings the other."""
CORRECT_AT_ONCE = 64
RETRY_S = 1.0
"""How long an outbox that was away is left alone."""


class HeldBack:
    """Nothing of what waits was published, so no other copy has the wrong times. The thread that commits must call it.

    ``accepting`` tells whether some server takes batches. ``last_id`` is each time the id of the last batch that was
    committed. Times are monotonic seconds.
    """

    def __init__(self, settings: config.Client, outbox: Outbox, accepting: Callable[[], bool]) -> None:
        self.clock = Clock()
        self._client_id = settings.client_id
        self._compression = settings.intake.compression
        self._outbox = outbox
        self._accepting = accepting
        self._from = 0  # from this id on batches wait for the clock; 0: none does
        self._served_at = 0.0
        self._gave_up = False
        self._retry_at = 0.0

    def keeps(self, batch_id: int, now: float) -> bool:
        """True if this batch, which was just committed, has to wait, and with it all that follow."""
        if not (self.clock.is_set or self._gave_up or self._from):
            self._from, self._served_at = batch_id, now
        return self._from > 0

    def look(self, now: float, last_id: int) -> bool:
        """Corrects some batches if the clock is set; gives up when a server was there for long enough. True when all that
        waited can be published."""
        self.clock.look()
        if self._gave_up and self.clock.is_set:
            self._gave_up = False
            log.warning("the clock is set: readings delivered before lack %.3f s", self.clock.jump / 1e6)
        if not self._from:
            return False
        if self.clock.is_set:
            return now >= self._retry_at and self._correct(last_id)
        if not self._accepting():
            self._served_at = now
        elif now > self._served_at + CLOCK_GRACE_S:
            self._gave_up = True
            log.error("the clock was never set; readings are delivered with the times that it shows")
            self._from = 0
            return True
        return False

    def correct_all(self, last_id: int, within: float) -> bool:
        """What a stopping client still can in so many seconds: the next one does not know by how much they are wrong. True
        when all that waited can be published."""
        self.clock.look()  # it may have been set since the last reading
        until = time.monotonic() + within
        while self._from and self.clock.is_set and time.monotonic() < until:
            if self._correct(last_id):
                return True
            time.sleep(max(0.0, self._retry_at - time.monotonic()))
        return False

    def _correct(self, last_id: int) -> bool:
        """Some of the batches that wait; True if they were the last."""
        try:
            batches = self._outbox.read(self._from, last_id, CORRECT_AT_ONCE)
            self._outbox.replace([self._with_right_times(b) for b in batches if b.made_at < EARLIEST_US])
        except OutboxUnavailable as error:
            log.warning("outbox: %s; times are corrected later", error)
            self._retry_at = time.monotonic() + RETRY_S
            return False
        if len(batches) == CORRECT_AT_ONCE:
            self._from = batches[-1].id + 1
            return False
        log.info("the clock is set: times from before it are corrected by %.3f s", self.clock.jump / 1e6)
        self._from = 0
        return True

    def _with_right_times(self, batch: Batch) -> Batch:
        name = Name(self._client_id, batch.stream, batch.first_seq)
        found = decode(batch.payload, name, batch.count)
        times = self.clock.corrected(array("q", found.created_at.to_pylist()))
        codes, values = array("h", found.codes.to_pylist()), array("d", found.values.to_pylist())
        payload = encode(name, found.keys, codes, times, values, self._compression)
        return replace(batch, made_at=min(times), payload=payload)
