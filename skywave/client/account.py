"""What a client tells of its outbox in its status, and what it forgets once a server has recorded it."""

from __future__ import annotations

import logging
import socket
import time

from .. import __version__, config
from ..errors import OutboxUnavailable
from ..formats.messages import Ack, ClientStatus, Range
from ..outbox.outbox import Outbox

log = logging.getLogger(__name__)


class Account:
    """The outbox as the status shows it. ``backlog`` is its content as of the last ``look``; any thread may read it.

    ``stream`` is the present one, which is never forgotten.
    """

    def __init__(self, settings: config.Client, outbox: Outbox, stream: int) -> None:
        self._settings = settings
        self._outbox = outbox
        self._stream = stream
        self.look()

    def look(self) -> None:
        """Reads anew what is in the outbox."""
        self.backlog = self._outbox.backlog()
        self._oldest_made_at = self._outbox.oldest_made_at()

    def oldest_unacked_s(self) -> float:
        """Age in seconds of the oldest reading that no server has acknowledged; 0 if there is none. Any thread may ask."""
        made_at = self._oldest_made_at
        return max(0.0, time.time() - made_at / 1e6) if made_at else 0.0

    def status(self, online: bool = True) -> ClientStatus:
        """The status to publish."""
        return ClientStatus(
            online=online,
            version=__version__,
            host=socket.gethostname(),
            labels=self._settings.labels,
            backlog_readings=self.backlog.readings,
            backlog_bytes=self.backlog.bytes,
            oldest_unacked_s=self.oldest_unacked_s(),
            streams=self._outbox.streams(),
            dropped=self._outbox.dropped(),
        )

    def recorded(self, ack: Ack) -> None:
        """Forgets what the server's account now holds: ended streams without batches, and declared losses. What is not of
        this outbox's account is of no matter, whatever its numbers."""
        try:
            mine = {account[:2] for account in self._outbox.streams()} if ack.recorded else set()
            for produced in ack.recorded:
                if produced.stream != self._stream and produced.first_pending == 0 and produced[:2] in mine:
                    self._outbox.forget_stream(produced)
                    mine.discard(produced[:2])
            declared = {Range(*loss[:3]) for loss in self._outbox.dropped()} if ack.dropped else set()
            if known := declared.intersection(ack.dropped):
                self._outbox.forget_dropped(sorted(known))
        except OutboxUnavailable as error:
            log.warning("outbox: %s", error)  # the server says it again with the next status
