"""What one client of a fleet produces."""

from __future__ import annotations

import random
from array import array
from datetime import date

import numpy as np

from ..formats.batch import Batch, Name, encode
from .plan import CENTS, Plan

BACKLOG_RATE = 1000.0
"""Readings a second, as their times tell, of a client that only has a backlog."""


class Production:
    """The stream of one client. What a batch holds follows from its client and its number, so that batches which wait take
    no memory. ``wall_time`` is when the first one begins, in seconds since 1970."""

    def __init__(self, client_id: int, plan: Plan, rng: random.Random, wall_time: float) -> None:
        self._client_id, self._plan, self._wall_time = client_id, plan, wall_time
        self._phase = rng.random()
        self._begun_at = 0.0
        self._prepared: dict[int, tuple[bytes, int]] = {}
        self.stream = rng.randrange(1, 2**63)
        self.batches = plan.backlog
        """Produced so far."""
        self.taken = 0
        """Of these, those that ``take`` gave."""
        self._cents = 0  # the sum of their values

    @property
    def waiting(self) -> int:
        """Batches that were not taken yet."""
        return self.batches - self.taken

    def prepare(self) -> None:
        """Encodes every batch of the backlog."""
        self._prepared = {number: self._encoded(number) for number in range(self._plan.backlog)}

    def begin(self, now: float) -> None:
        """From now on it produces; ``now`` is of the monotonic clock."""
        self._begun_at = now

    def produce(self, now: float) -> None:
        """Counts the batches that are due by now."""
        if self._plan.rate:
            made = (now - self._begun_at) * self._plan.rate / self._plan.size + self._phase
            self.batches = max(self.batches, self._plan.backlog + int(made))

    def take(self, day: date) -> Batch:
        """The next batch, to be sent as one of this day."""
        number, size = self.taken, self._plan.size
        payload, cents = self._prepared.get(number) or self._encoded(number)
        self.taken += 1
        self._cents += cents
        return Batch(number, self.stream, number * size + 1, size, 0, day, payload)

    def account(self) -> dict[str, int]:
        """A line of the ledger: what was taken."""
        readings = self.taken * self._plan.size
        return {"client_id": self._client_id, "stream": self.stream, "readings": readings, "sum": self._cents}

    def _encoded(self, number: int) -> tuple[bytes, int]:
        """Batch ``number``, the same whenever it is asked for, and the sum of its values in hundredths."""
        size, keys = self._plan.size, self._plan.keys
        per_key = -(-size // keys)
        codes = np.arange(size, dtype=np.int16) // np.int16(per_key)
        rng = np.random.default_rng((self._client_id, self.stream, number))
        cents = 2000 + 500 * codes.astype(np.int64) + np.rint(rng.normal(0, 20, size)).astype(np.int64)
        rate = self._plan.rate or BACKLOG_RATE
        begin = int((self._wall_time + number * size / rate) * 1e6)
        created_at = begin + (np.arange(size, dtype=np.int64) % per_key) * int(1e6 * keys / rate)
        name = Name(self._client_id, self.stream, number * size + 1)
        first = number * size % keys if keys > size else 0  # a batch names the series it has readings of, and no others
        names = [f"series-{(first + code) % keys}" for code in range(int(codes[-1]) + 1)]
        columns = array("h", codes.tobytes()), array("q", created_at.tobytes()), array("d", (cents / CENTS).tobytes())
        return encode(name, names, *columns), int(cents.sum())
