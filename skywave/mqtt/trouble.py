"""What is wrong with a link: how the last connection ended, and what the broker refuses."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque

log = logging.getLogger(__name__)

REFUSAL_HOLDS_S = 120.0
"""What the broker has not refused again for so long, while it was connected, is over: another client of the same name would
have come back, a message would have been sent again."""
LOG_LINES, LOG_PERIOD_S = 20, 600.0
"""A connection that flaps says at most so much in so many seconds."""
_CLIENT_ID = "client id"


class Trouble:
    """Each trouble is told once in the log, and once more when it is over.

    ``refusals`` is what the broker does not grant, with its words: publishing, a subscription, the client id. It is replaced,
    never changed, and may be read in any thread. ``last_error`` says why there is no connection, or how the last one ended;
    "" after one that ended well.
    """

    def __init__(self) -> None:
        self.last_error = ""
        self.refusals: dict[str, str] = {}
        self._refused_at: dict[str, float] = {}
        self._lock = threading.Lock()
        self._lines: deque[float] = deque(maxlen=LOG_LINES)

    def connected(self, address: str) -> None:
        """There is a connection."""
        self._log(logging.INFO, f"connected to {address}")
        self.last_error = ""

    def failed(self, error: str) -> None:
        """There is none any more, or the broker granted none."""
        if error != self.last_error:
            self._log(logging.WARNING, error)
        self.last_error = error

    def refused(self, what: str, words: str) -> None:
        """The broker refuses something; ``words`` tell it to people."""
        with self._lock:
            news = self.refusals.get(what) != words
            self.refusals = {**self.refusals, what: words}
            self._refused_at[what] = time.monotonic()
        if news:
            self._log(logging.ERROR, words)

    def granted(self, what: str) -> None:
        """The broker refuses it no longer, or nobody wants it any more."""
        with self._lock:
            over = self.refusals.get(what)
            self.refusals = {key: words for key, words in self.refusals.items() if key != what}
            self._refused_at.pop(what, None)
        if over:
            self._log(logging.INFO, f"over: {over}")

    def taken_over(self, words: str) -> None:
        """Another client of the same client id ended the connection."""
        self.last_error = words
        self.refused(_CLIENT_ID, words)

    @property
    def has_rival(self) -> bool:
        """Whether another client of the same client id ended a connection of late."""
        return _CLIENT_ID in self.refusals

    def refused_since(self, moment: float) -> bool:
        """Whether the broker refused something since a moment of the monotonic clock."""
        return any(at >= moment for at in list(self._refused_at.values()))

    def forget_old(self, now: float) -> None:
        """What was not refused again for long is over; for a link that is connected."""
        for what in [what for what in self.refusals if now - self._refused_at.get(what, now) > REFUSAL_HOLDS_S]:
            self.granted(what)

    def _log(self, level: int, text: str) -> None:
        """A line, unless there were many of late."""
        now = time.monotonic()
        if len(self._lines) < LOG_LINES or now - self._lines[0] > LOG_PERIOD_S:
            self._lines.append(now)
            last = len(self._lines) == LOG_LINES and now - self._lines[0] <= LOG_PERIOD_S
            log.log(level, "broker: %s%s", text, "; further lines on this connection wait" if last else "")
