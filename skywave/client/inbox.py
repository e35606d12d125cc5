"""What other threads leave for the uplink's one thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass

from ..mqtt.events import Disconnected, Message, Refused

MESSAGES_AHEAD = 64
"""Received messages that may wait for the uplink; then the socket is not read."""
LOOK_S = 0.2
"""How soon who waits for room sees that nobody takes anything any more."""


@dataclass(frozen=True, slots=True)
class Offered:
    """The lanes were offered a batch."""


@dataclass(frozen=True, slots=True)
class Connected:
    """The link is connected."""


@dataclass(frozen=True, slots=True)
class NotTaken:
    """What the broker said to a batch that it did not take."""

    batch_id: int
    why: Refused


Event = Offered | Message | Connected | NotTaken | Disconnected


class Inbox:
    """Events in the order in which they came. Any thread may put one in; one takes them."""

    def __init__(self) -> None:
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._room = threading.Semaphore(MESSAGES_AHEAD)
        self._closed = threading.Event()

    def put(self, event: Event) -> None:
        """Never waits."""
        self._events.put(event)

    def put_message(self, message: Message) -> None:
        """Waits while many messages are not taken, until the inbox is closed: that presses back on the broker."""
        while not self._room.acquire(timeout=LOOK_S):
            if self.closed:
                return
        self._events.put(message)

    def take(self, wait: float) -> Iterator[Event]:
        """All that is there; if that is nothing, what comes within ``wait`` seconds."""
        try:
            event = self._events.get(timeout=wait)
            while True:
                if isinstance(event, Message):
                    self._room.release()
                yield event
                event = self._events.get_nowait()
        except queue.Empty:
            return

    def close(self) -> None:
        """From now on nobody waits for room."""
        self._closed.set()

    @property
    def closed(self) -> bool:
        """True after ``close``."""
        return self._closed.is_set()
