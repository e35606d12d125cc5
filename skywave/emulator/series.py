"""The readings of a sensor that numbers them and keeps them until they are acknowledged (see ``formats/frames.py``)."""

from __future__ import annotations

import itertools
import random
import threading
from collections import deque
from collections.abc import Callable, Iterator

KEEP = 100_000
"""Readings that a sensor keeps; then it measures no more until some are acknowledged."""


class Series:
    """One start of a sensor. ``note`` is called with what was measured before anybody sees it."""

    def __init__(self, payloads: Iterator[bytes], note: Callable[[list[bytes]], None]) -> None:
        self.stream = random.SystemRandom().randrange(1, 1 << 63)
        self._payloads, self._note = payloads, note
        self._kept: deque[bytes] = deque()
        self._oldest = 1  # number of the first one kept
        self._ended = False
        self._lock = threading.Lock()

    @property
    def kept(self) -> int:
        """How many readings are not acknowledged."""
        return len(self._kept)

    @property
    def done(self) -> bool:
        """All that there ever will be is acknowledged."""
        return self._ended and not self._kept

    def next_after(self, stream: int, seq: int) -> int:
        """The number of the first reading to send to a client that has those up to ``seq`` of ``stream``."""
        with self._lock:
            return max(self._oldest, seq + 1 if stream == self.stream else 1)

    def measure(self, count: int) -> None:
        """Adds up to ``count`` readings."""
        with self._lock:
            wanted = max(0, min(count, KEEP - len(self._kept)))
            new = list(itertools.islice(self._payloads, wanted))
            self._ended = len(new) < wanted
            self._note(new)
            self._kept.extend(new)

    def since(self, seq: int, most: int) -> list[bytes]:
        """The readings from number ``seq`` on, at most so many."""
        with self._lock:
            start = seq - self._oldest
            return list(itertools.islice(self._kept, start, start + most))

    def acknowledge(self, stream: int, seq: int) -> None:
        """Forgets the readings up to ``seq``, if they are of this stream."""
        with self._lock:
            while stream == self.stream and self._kept and self._oldest <= seq:
                self._kept.popleft()
                self._oldest += 1
