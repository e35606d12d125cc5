"""What the servers say to a client: which of them take batches, which day it is there, what they acknowledge."""

from __future__ import annotations

import logging
from datetime import date, timedelta

from ..errors import PoisonError
from ..formats import topics
from ..formats.messages import EARLIEST, Ack, ServerStatus
from ..mqtt.events import Message

log = logging.getLogger(__name__)

MAX_SERVERS = 1000
LOG_EVERY_S = 60.0
UNSERVED_S = 10.0
"""How long a client stays with a broker to which no accepting server listens, if there is another broker."""


class Servers:
    """The servers that can be heard through the broker. One thread changes what is known of them; any may ask.

    ``heard_date`` is the last date that one of them said, ``bad_messages`` the number of messages that could not be read.
    """

    def __init__(self, client_id: int, heard_date: date | None) -> None:
        self._acks = topics.ack(client_id)
        self._statuses: dict[str, ServerStatus] = {}
        self._served_at = 0.0
        self._said_bad_at = float("-inf")
        self.heard_date = heard_date
        self.bad_messages = 0

    @property
    def accept(self) -> bool:
        """True while one of them says that it can commit."""
        # A copy, which nobody changes while it is looked through: other threads ask too.
        return any(status.accepting for status in self._statuses.copy().values())

    def hear(self, message: Message, now: float) -> Ack | None:
        """Takes in what a message says, and returns it if it is an acknowledgement. What cannot be read is counted."""
        try:
            return self._read(message)
        except PoisonError as error:
            self.bad_messages += 1
            if now - self._said_bad_at > LOG_EVERY_S:
                self._said_bad_at = now
                before = f", as {self.bad_messages - 1} before it" if self.bad_messages > 1 else ""
                log.warning("message on %r is ignored%s: %s", message.topic, before, error)
            return None

    def _read(self, message: Message) -> Ack | None:
        if (server := topics.parse_server(message.topic)) is not None:
            if not message.payload:
                self._statuses.pop(server, None)
                return None
            status = ServerStatus.decode(message.payload)
            if server not in self._statuses and len(self._statuses) >= MAX_SERVERS:
                raise PoisonError(f"there are {MAX_SERVERS} servers already")
            self._statuses[server] = status
            if status.accepting:  # the last will of one that died has the date of its start
                self._hear_date(status.date)
        elif message.topic == self._acks:
            if message.retained:
                raise PoisonError("no server retains an acknowledgement")
            ack = Ack.decode(message.payload)
            self._hear_date(ack.date)
            return ack
        return None

    def _hear_date(self, day: date) -> None:
        """Takes a server's date. One day back is only another server before its midnight; more is a mended clock."""
        if day < EARLIEST:
            return
        if self.heard_date is None or not timedelta(0) <= self.heard_date - day <= timedelta(1):
            self.heard_date = day

    def forget(self) -> None:
        """The connection is another one: retained statuses follow; what a dead broker knew is not known any more."""
        self._statuses.clear()

    def are_missing(self, connected: bool, now: float) -> bool:
        """True when none has accepted for ``UNSERVED_S`` of a connection, and again after as long."""
        if self.accept or not connected:
            self._served_at = now
        elif now - self._served_at > UNSERVED_S:
            self._served_at = now
            return True
        return False
