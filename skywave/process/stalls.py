"""What holds a process up though it should go forward: each process looks at itself, and says so in its status, its metrics
and its log. It ends nothing: what waits for a part that is away does right to wait, but somebody should know.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from typing import NamedTuple

log = logging.getLogger(__name__)

AWAY_S = 10.0
"""How long another part may be away, or a call to it may last, before it is called a stall."""


class Cause(NamedTuple):
    """Something that may hold a process up. ``why`` is "" while it does not; after ``grace`` seconds it is told."""

    name: str
    grace: float
    why: str


class Stalls:
    """The causes that hold the process up now. One thread looks, about once a second; any may read ``current``."""

    def __init__(self) -> None:
        self._since: dict[str, float] = {}
        self.current: dict[str, dict[str, float | str]] = {}
        """By cause: ``for_s``, seconds without progress, and ``why``, for people."""

    def look(self, causes: Iterable[Cause]) -> None:
        """Notes which causes hold, tells the log what begins and what is over."""
        now = time.monotonic()
        current: dict[str, dict[str, float | str]] = {}
        for name, grace, why in causes:
            if not why:
                self._since.pop(name, None)
                continue
            held_s = now - self._since.setdefault(name, now)
            if held_s >= grace:
                current[name] = {"for_s": round(held_s, 1), "why": why}
        for name in current.keys() - self.current.keys():
            log.error("no progress: %s", current[name]["why"])
        for name in self.current.keys() - current.keys():
            log.info("goes on after %.0f s; it was held up: %s", self.current[name]["for_s"], self.current[name]["why"])
        self.current = current

    def __str__(self) -> str:
        """How a status line begins: "" or what holds the process up."""
        held_up = "; ".join(f"{held['why']} ({held['for_s']:.0f} s)" for held in self.current.values())
        return f"STALLED: {held_up}; " if held_up else ""
