"""What holds a process up though it should go forward: each process looks at itself, and says so in its status, its metrics
and its log. It ends nothing: what waits for a part that is away does right to wait, but somebody should know.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

log = logging.getLogger(__name__)

AWAY_S = 10.0
"""How long another part may be away, or a call to it may last, before it is called a stall."""


class Cause(NamedTuple):
    """Something that may hold a process up. ``why`` is "" while it does not; after ``grace`` seconds it is told."""

    name: str
    grace: float
    why: str


@dataclass(frozen=True)
class Stall:
    """A cause that holds the process up now: ``for_s``, seconds without progress, and ``why``, for people."""

    for_s: float = 0.0
    why: str = ""

    def __str__(self) -> str:
        return f"{self.why} ({self.for_s:.0f} s)"


class Stalls:
    """The causes that hold the process up now. One thread looks, about once a second; any may read ``current``."""

    def __init__(self) -> None:
        self._since: dict[str, float] = {}
        self.current: dict[str, Stall] = {}
        """By the cause's name; each look makes it anew."""

    def look(self, causes: Iterable[Cause]) -> None:
        """Notes which causes hold, tells the log what begins and what is over."""
        now = time.monotonic()
        current: dict[str, Stall] = {}
        for name, grace, why in causes:
            if not why:
                self._since.pop(name, None)
                continue
            held_s = now - self._since.setdefault(name, now)
            if held_s >= grace:
                current[name] = Stall(round(held_s, 1), why)
        for name in current.keys() - self.current.keys():
            log.error("no progress: %s", current[name].why)
        for name in self.current.keys() - current.keys():
            stall = self.current[name]
            log.info("goes on after %.0f s; it was held up: %s", stall.for_s, stall.why)
        self.current = current

    def __str__(self) -> str:
        """How a status line begins: "" or what holds the process up."""
        held_up = "; ".join(map(str, self.current.values()))
        return f"STALLED: {held_up}; " if held_up else ""
