"""Which broker is tried next, and when."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence

from .. import config
from ..process.backoff import Backoff
from .events import SESSION_TAKEN_OVER, Disconnected
from .trouble import REFUSAL_HOLDS_S

RECONNECT_FIRST_S, RECONNECT_MAX_S = 0.1, 5.0
STEADY_S = 5.0
"""A connection that held as long was good: the next attempt comes at once. Shorter ones back off like failures."""
MANY_RIVALS = 3
"""Older brokers end a session that is taken over without a word: after so many in a row that is what it probably was."""
RIVAL_PAUSE_MAX_S = 30.0


class Brokers:
    """The brokers of a link in turn, one for each attempt; the pauses in between; and whether another client with the same
    client id ends the connections, which counts for each broker by itself."""

    def __init__(self, brokers: Sequence[config.Mqtt], client_id: str) -> None:
        self._brokers, self._client_id = brokers, client_id
        self._at = 0
        self._backoff = Backoff(RECONNECT_FIRST_S, RECONNECT_MAX_S)
        self._rivals: dict[str, int] = {}  # by address: connections in a row that another client ended, or may have
        self.connected_at = 0.0
        """When the present connection was granted, by the monotonic clock; 0: not yet."""

    def __len__(self) -> int:
        return len(self._brokers)

    @property
    def present(self) -> config.Mqtt:
        """The one that is used or tried."""
        return self._brokers[self._at]

    @property
    def address(self) -> str:
        """Host and port of the present one."""
        present = self.present
        return f"{present.host}:{present.port}"

    def connected(self) -> None:
        """The present broker has granted a connection."""
        self.connected_at = time.monotonic()

    def failed(self) -> None:
        """It could not be reached, or has granted none."""
        self._rivals.pop(self.address, None)

    def lost(self, why: Disconnected, silent: bool) -> str:
        """The connection has ended, perhaps in silence, as older brokers end one that another client takes over. Returns
        that there is another client of this client id; "" if there seems to be none."""
        taken_over = why.code == SESSION_TAKEN_OVER
        before = self._rivals.get(self.address, 0) if time.monotonic() - self.connected_at < REFUSAL_HOLDS_S else 0
        self._rivals[self.address] = rivals = before + 1 if taken_over or silent else 0
        named = f"another client named {self._client_id}"
        if taken_over:
            return f"{named} is connected to the broker: {why.reason}"
        if rivals >= MANY_RIVALS:
            return (
                f"the broker ended {MANY_RIVALS} sessions in a row and more without a reason, "
                f"as it does when {named} connects"
            )
        return ""

    def go_on(self, rival: bool) -> float:
        """Goes on to the next broker; returns the seconds to wait before. With a ``rival`` they are many, or the two would
        end each other's sessions for ever."""
        if self.connected_at and time.monotonic() - self.connected_at > STEADY_S:
            self._backoff.reset()
        self.connected_at = 0.0
        self._at = (self._at + 1) % len(self._brokers)
        if not rival:
            return self._backoff.next()
        pause = min(2.0 ** min(max(self._rivals.values(), default=0), 10), RIVAL_PAUSE_MAX_S)
        return pause * random.uniform(0.5, 1.0)
