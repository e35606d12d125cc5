"""What a sensor measures."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator
from pathlib import Path

from .ledger import Ledger

KINDS = {"temperature": (21.0, 5.0), "pressure": (1013.0, 12.0), "height": (120.0, 40.0)}
"""Mean and spread of each kind's values (degrees Celsius, hectopascal, metres)."""
SIGNALS = ("random", "sine", "walk", "counter")


def signal_values(signal: str, kind: str, rng: random.Random, counter: Iterator[int]) -> Iterator[bytes]:
    """Endless payloads. ``counter`` counts 1, 2, 3 … over all connections, so that every value is unique."""
    mean, spread = KINDS[kind]
    if signal == "counter":
        yield from (b"%d" % number for number in counter)
    elif signal == "random":
        while True:
            yield b"%.2f" % rng.gauss(mean, spread)
    elif signal == "sine":
        for step in itertools.count():
            yield b"%.3f" % (mean + spread * math.sin(step / 500) + rng.gauss(0, spread / 200))
    else:
        value = mean
        while True:
            value += rng.gauss(0, spread / 50) + (mean - value) / 1000
            yield b"%.3f" % value


class Measurements:
    """The payloads of a sensor, connection by connection, at most ``limit`` each. What is about to be sent is noted in the
    ledger, if there is one. A ledger is gone on with: a counter's values stay unique, and so do the connections' numbers."""

    def __init__(self, kind: str, signal: str, seed: int | None, limit: int | None, ledger: str | Path | None) -> None:
        self._kind, self._signal, self._limit = kind, signal, limit
        self._seed = random.SystemRandom().randrange(2**32) if seed is None else seed
        self._ledger = Ledger(ledger) if ledger else None
        self._counter = itertools.count(1 + (self._ledger.readings if self._ledger else 0))
        self._numbers = itertools.count(1 + (self._ledger.connections if self._ledger else 0))

    def new_connection(self) -> int:
        """The number of a connection that begins."""
        return next(self._numbers)

    def payloads(self, connection: int) -> Iterator[bytes]:
        """All that is measured for a connection; the same with the same seed, but for a counter's."""
        payloads = signal_values(self._signal, self._kind, random.Random(self._seed + connection), self._counter)
        return payloads if self._limit is None else itertools.islice(payloads, self._limit)

    def note(self, connection: int, payloads: list[bytes]) -> None:
        """To be called before they are sent."""
        if self._ledger:
            self._ledger.note(connection, payloads)

    def close(self) -> None:
        """Closes the ledger."""
        if self._ledger:
            self._ledger.close()
