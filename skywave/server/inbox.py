"""What a server has received and not yet worked on: where its two kinds of threads meet.

A broker's thread puts messages in, the ingest's gets them out. While there is no room the broker's thread waits, and so its
socket is not read.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence

from ..mqtt.events import Message

MESSAGE_OVERHEAD = 1024
"""Bytes counted for each held message beside its text."""
PROPERTY_OVERHEAD = 200
CLIENT_SHARE = 2
"""One client may hold half of the inbox."""


class Received:
    """A message and when it came: ``at`` in seconds of CLOCK_BOOTTIME, which goes on while the machine sleeps. ``answer``,
    if it has one, is called with it when it is committed; ``size`` is about the bytes that it takes."""

    __slots__ = ("answer", "at", "client_id", "message", "size")

    def __init__(
        self, message: Message, at: float, client_id: int = 0, answer: Callable[[Received], None] | None = None
    ) -> None:
        self.message, self.at, self.client_id, self.answer = message, at, client_id, answer
        self.size = len(message.payload) + len(message.topic) + len(message.content_type) + MESSAGE_OVERHEAD
        if properties := message.properties:
            text = sum(map(len, properties)) + sum(map(len, properties.values()))
            self.size += text + PROPERTY_OVERHEAD * len(properties)


class Inbox:
    """Received messages, bounded by bytes, in all and for each client. One thread puts, one gets."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._items: deque[Received] = deque()
        self._held: Counter[int] = Counter()
        self._changed = threading.Condition()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._items)

    def is_share_of(self, item: Received) -> bool:
        """True if its client holds little enough for one more."""
        held = self._held[item.client_id]
        return not held or held + item.size <= self._max_bytes // CLIENT_SHARE

    def put(self, item: Received, timeout: float) -> bool:
        """False if there is no room within ``timeout`` seconds, or at once if it is more than its client's share."""
        size = item.size
        with self._changed:
            if not self.is_share_of(item):
                return False
            if not self._changed.wait_for(lambda: self.bytes + size <= self._max_bytes or not self._items, timeout):
                return False
            self._items.append(item)
            self._count(item, size)
            self._changed.notify_all()
        return True

    def wait(self, timeout: float) -> bool:
        """True as soon as there is something to get."""
        with self._changed:
            return self._changed.wait_for(lambda: bool(self._items), timeout)

    def get(self) -> Received | None:
        """The oldest message, None if there is none."""
        with self._changed:
            if not self._items:
                return None
            item = self._items.popleft()
            self._count(item, -item.size)
            self._changed.notify_all()
        return item

    def put_back(self, items: Sequence[Received]) -> None:
        """Keeps for later what was got, as the oldest."""
        with self._changed:
            self._items.extendleft(reversed(items))
            for item in items:
                self._count(item, item.size)

    def _count(self, item: Received, size: int) -> None:
        self.bytes += size
        self._held[item.client_id] += size
        if not self._held[item.client_id]:
            del self._held[item.client_id]
