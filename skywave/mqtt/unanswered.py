"""The QoS 1 messages of a link that the broker has not answered yet."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from paho.mqtt.client import MQTTMessageInfo

from .events import Refused

MANY_UNANSWERED = 256
"""Beyond so many, those that have an answer are looked for and forgotten with each message that is added."""


class Sent(NamedTuple):
    """A QoS 1 message on its way: counted over all connections, with paho's handle and the payload's ``size`` in bytes."""

    number: int
    info: MQTTMessageInfo
    topic: str
    size: int
    on_refused: Callable[[Refused], None] | None


class Unanswered:
    """Tells of each message whether the broker has answered it, or has passed it over. It answers QoS 1 in order, so what it
    has not answered before a later one is lost. Any thread may ask."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sent: deque[Sent] = deque()
        self._last_number = self._last_answered = 0

    def add(
        self, info: MQTTMessageInfo, topic: str, size: int, on_refused: Callable[[Refused], None] | None
    ) -> Callable[[], bool]:
        """Enters a message that was sent; returns what tells whether it is answered."""
        with self._lock:
            self._last_number = number = self._last_number + 1
            self._sent.append(Sent(number, info, topic, size, on_refused))
        if len(self._sent) > MANY_UNANSWERED:
            self._answered()
        return lambda: number <= self._answered()

    def _answered(self) -> int:
        """The number of the latest message that the broker has answered; forgets all up to it."""
        with self._lock:
            latest = next((sent.number for sent in reversed(self._sent) if sent.info.is_published()), 0)
            while self._sent and self._sent[0].number <= latest:
                self._sent.popleft()
            self._last_answered = max(self._last_answered, latest)
            return self._last_answered

    def find(self, packet_id: int) -> Sent | None:
        """The message of the present connection that has this packet id."""
        with self._lock:
            return next((sent for sent in self._sent if sent.info.mid == packet_id), None)

    def wait(self, seconds: float) -> None:
        """Waits until the last message is answered, or will not be, but no longer than so many seconds."""
        with self._lock:
            last = self._sent[-1].info if self._sent else None
        if last:
            with contextlib.suppress(RuntimeError, ValueError):  # it never left this host
                last.wait_for_publish(seconds)

    def forget(self) -> None:
        """A new connection answers nothing of an earlier one; its first answer passes those messages over."""
        with self._lock:
            self._sent.clear()
