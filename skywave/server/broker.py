"""One broker as a server sees it: what it keeps for this server, and which other servers it has."""

from __future__ import annotations

import secrets
import threading
import time

from ..mqtt.link import Link
from .inbox import Received

KEPT_S = 7 * 86_400
"""How long a broker keeps plain JSON for a server that is away."""
KEPT_BESIDE_OTHERS_S = 60
REDELIVERY_S = 30.0
"""A broker is asked at most so often to send again what did not fit."""


class Broker:
    """A broker as a server sees it: the link, the other servers there, and the JSON that is not answered yet."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.others: dict[str, bool] = {}
        """Whether they accept, by name; replaced and never changed, because several threads read it."""
        self.subscribed: bool | None = None
        self.marker = ""
        self.caught_up = True
        """False while there comes what waited for this server."""
        self.lacks = False
        """True if it has to send something again, because there was no room for it."""
        self.dropped = 0
        self._connected_before = False
        self._unanswered: dict[int, Received] = {}
        self._lock = threading.Lock()
        self._asked_at = -REDELIVERY_S

    def came_up(self) -> bool:
        """Begins a connection; False if the broker has forgotten the session that there was."""
        kept = self.link.session_present or not self._connected_before
        self._connected_before = True
        self.subscribed, self.lacks = None, False
        self.marker = secrets.token_hex(8)
        self.caught_up = not self.link.session_present
        if not self.link.session_present:
            with self._lock:
                self._unanswered.clear()  # their numbers are other messages' now
        return kept

    def hold(self, item: Received) -> bool:
        """Keeps in mind that a message is to be answered; False if it is held since an earlier connection."""
        with self._lock:
            held = self._unanswered.get(item.message.packet_id)
            if held is not None and item.message.dup and held.message.payload == item.message.payload:
                return False
            if item.message.packet_id:
                self._unanswered[item.message.packet_id] = item
            return True

    def let_go(self, item: Received) -> None:
        """Forgets a message that there was no room for: the broker still has it."""
        with self._lock:
            if self._unanswered.get(item.message.packet_id) is item:
                del self._unanswered[item.message.packet_id]

    def answer(self, item: Received) -> None:
        """Tells the broker that it may forget a message, unless it has forgotten it by itself."""
        with self._lock:
            if self._unanswered.get(item.message.packet_id) is item:
                del self._unanswered[item.message.packet_id]
                self.link.acknowledge(item.message.packet_id)

    @property
    def unanswered(self) -> int:
        """Messages that are held until they are committed."""
        return len(self._unanswered)

    @property
    def others_accept(self) -> bool:
        """True while batches and JSON go to another server of this broker as well."""
        return any(self.others.values())

    @property
    def kept_s(self) -> int:
        """How long the broker is to keep what comes for this server while it is away."""
        return KEPT_BESIDE_OTHERS_S if self.others else KEPT_S

    def ask_again(self) -> None:
        """Has the broker send again what is not answered, not too often."""
        if self.lacks and time.monotonic() - self._asked_at > REDELIVERY_S:
            self._asked_at = time.monotonic()
            self.link.reconnect(self.link.session_expiry)
