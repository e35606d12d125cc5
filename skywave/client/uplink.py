"""From the outbox to the server: one thread publishes batches, hears acknowledgements and deletes.

Two lanes share the window. The *live* lane takes batches as the intake commits them; what it has no room for stays in
the outbox. The *backlog* lane walks through the outbox by id, from ``_cursor`` to ``_top``, and fills the rest of the
window. So fresh readings arrive at once while an outage's backlog drains, and memory does not depend on the backlog.

Nothing is published while no server accepts, nor before the batch's day is fixed in the outbox. Nothing is deleted but
what a server acknowledged and this process sent.
"""

from __future__ import annotations

import logging
import queue
import socket
import threading
import time
from dataclasses import dataclass
from datetime import date, timedelta

from .. import __version__, config, topics
from ..batch import CONTENT_TYPE, Batch
from ..errors import OutboxUnavailable, PoisonError
from ..messages import EARLIEST, Ack, ClientStatus, Dropped, Produced, Range, ServerStatus
from ..mqtt import PACKET_TOO_LARGE, Disconnected, Link, Message, Will
from .outbox import Backlog, Outbox
from .window import InFlight, Window

log = logging.getLogger(__name__)

TICK_S = 0.2
FRESH_LIMIT = 64
"""Committed batches that may wait for the uplink in memory; beyond that they stay in the outbox alone."""
DELETE_INTERVAL_S = 1.0
"""Deletions gather as long and share one commit: at ten batches a second eleven commits, not twenty."""
DELETE_AT_ONCE = 500
READ_AT_ONCE = 16
BURST = 8
"""Batches published between two looks at the events, so that a resend of everything does not delay the live lane."""
TOO_LARGE_STRIKES = 3
RETRY_S = 1.0
UNSERVED_S = 10.0
"""How long a client stays with a broker to which no accepting server listens, if there is another broker."""


@dataclass(frozen=True, slots=True)
class _Up:
    """The link is connected."""


_Event = Batch | Message | Disconnected | _Up


class Uplink:
    """Owns the link, the window and the reading side of the outbox. ``open_id`` is the first id of this process."""

    def __init__(self, settings: config.Client, outbox: Outbox, stream: int, open_id: int) -> None:
        self._settings = settings
        self._outbox = outbox
        self._stream = stream
        self._start_id = open_id
        self._days = outbox.days()
        self._window = Window(settings.uplink)
        self._events: queue.SimpleQueue[_Event] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._servers: dict[str, ServerStatus] = {}
        self._fresh: list[Batch] = []
        self._waiting = 0  # batches in _events; the intake adds, this thread takes away
        self._skipped_to = 0  # highest id that the intake did not hand over because this thread was behind
        self._cursor = 0
        self._top = open_id - 1  # the outbox as it was found is backlog
        self._unfixed = open_id if self._days.latest else self._days.latest_from  # never published from here on
        self._acked: list[int] = []
        self._delete_at = 0.0
        self._status_at = 0.0
        self._status_soon = False
        self._retry_at = 0.0
        self._served_at = 0.0
        self._strikes = 0
        self._up_at = 0.0
        self._more = False  # there is work that needs no event
        self._set_aside: dict[int, str] = {}
        self._backlog = outbox.backlog()
        self._oldest_made_at = outbox.oldest_made_at()
        self.heard_date: date | None = self._days.last_heard
        self.progress_at = time.monotonic()
        self.acked_readings = 0
        self.acked_batches = 0
        self.rejected_readings = 0
        self.bad_messages = 0
        self.unavailable = ""
        self.link = Link(
            settings.mqtt.brokers(),
            f"skywave-client-{settings.client_id}",
            [topics.ack(settings.client_id), topics.ALL_SERVER_STATUS],
            on_up=lambda: self._events.put(_Up()),
            on_down=self._events.put,
            on_message=self._events.put,
            will=Will(topics.client_status(settings.client_id), ClientStatus(False, __version__).encode()),
        )

    # -- called by other threads -------------------------------------------------------------------------------------

    def offer(self, batch: Batch) -> None:
        """A batch that the intake has just committed. Never waits."""
        if self._waiting < FRESH_LIMIT:
            self._waiting += 1
            self._events.put(batch)
        else:
            self._skipped_to = batch.id

    def leave(self, last_id: int) -> None:
        """The outbox has batches up to ``last_id`` that were not offered: the backlog lane finds them."""
        self._skipped_to = last_id

    def stop(self) -> None:
        """Asks the loop to delete what is acknowledged, say goodbye and return."""
        self._stopping.set()

    @property
    def accepting(self) -> bool:
        """True while the broker is connected and some server says that it can commit."""
        return self.link.connected and any(status.accepting for status in self._servers.values())

    @property
    def window(self) -> Window:
        """For figures only."""
        return self._window

    @property
    def set_aside(self) -> dict[int, str]:
        """Batches that the broker refuses, by id, with the reason. They stay in the outbox and are tried at a start."""
        return dict(self._set_aside)

    @property
    def backlog(self) -> Backlog:
        """The outbox's content as of the last look (at most a second ago)."""
        return self._backlog

    def oldest_unacked_s(self) -> float:
        """Age of the oldest reading that no server has acknowledged; 0 if there is none."""
        made_at = self._oldest_made_at
        return max(0.0, time.time() - made_at / 1e6) if made_at else 0.0

    # -- the loop ----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Works until ``stop``."""
        self.link.start()
        while not self._stopping.is_set():
            self.progress_at = time.monotonic()
            self._take_events()
            if self.progress_at < self._retry_at:
                continue
            try:
                self._step(time.monotonic())
                self.unavailable = ""
            except OutboxUnavailable as error:
                if not self.unavailable:
                    log.warning("outbox: %s", error)
                self.unavailable = str(error)
                self._retry_at = time.monotonic() + RETRY_S
        self._say_goodbye()

    def _step(self, now: float) -> None:
        if now >= self._delete_at or len(self._acked) >= DELETE_AT_ONCE:
            self._delete(now)
        if self.accepting or not self.link.connected:
            self._served_at = now
        elif now - self._served_at > UNSERVED_S:
            self._served_at = now
            self.link.leave("no server accepts there", topics.client_status(self._settings.client_id))
        if self.accepting and self.heard_date is not None:
            self._fix_day()
            self._publish_due(now)
            self._publish_fresh(now)
            self._publish_backlog(now)
        else:
            self._shelve_fresh()
        if self.link.connected and (now >= self._status_at or self._status_soon):
            self._publish_status(now)

    def _take_events(self) -> None:
        try:
            event = self._events.get(timeout=0 if self._more else TICK_S)
            while True:
                self._handle(event)
                event = self._events.get_nowait()
        except queue.Empty:
            self._more = False

    def _handle(self, event: _Event) -> None:
        if isinstance(event, Batch):
            self._waiting -= 1
            if event.id > self._top:  # else the backlog lane has it already
                self._fresh.append(event)
        elif isinstance(event, Message):
            try:
                self._receive(event)
            except PoisonError as error:
                self.bad_messages += 1
                log.warning("message on %s is ignored: %s", event.topic, error)
        elif isinstance(event, _Up):
            self._up_at = time.monotonic()
            self._servers.clear()  # retained statuses follow; what a dead broker knew is not known any more
            self._window.rewind()
            self._status_soon = True
        else:
            self._servers.clear()
            self._disconnected(event)

    def _receive(self, message: Message) -> None:
        if (server := topics.parse_server(message.topic)) is not None:
            if not message.payload:
                self._servers.pop(server, None)
                return
            status = ServerStatus.decode(message.payload)
            self._servers[server] = status
            if status.accepting:  # the last will of one that died has the date of its start
                self._hear_date(status.date)
        elif message.topic == topics.ack(self._settings.client_id):
            self._acknowledged(Ack.decode(message.payload))

    def _hear_date(self, day: date) -> None:
        """Takes the server's date. One day back is only another server before its midnight; more is a mended clock."""
        if day < EARLIEST:
            return
        if self.heard_date is None or not timedelta(0) <= self.heard_date - day <= timedelta(1):
            self.heard_date = day

    # -- acknowledgements --------------------------------------------------------------------------------------------

    def _acknowledged(self, ack: Ack) -> None:
        now = time.monotonic()
        self._hear_date(ack.date)
        self._strikes = 0
        for ranges, rejected in ((ack.stored, False), (ack.rejected, True)):
            for item in ranges:
                for batch in self._window.acknowledge(item, now):
                    self._acked.append(batch.id)
                    self.acked_batches += 1
                    if rejected:
                        self.rejected_readings += batch.count
                        log.error("server rejected readings %d to %d of stream %d; it keeps their bytes",
                                  batch.first_seq, batch.last_seq, batch.stream)  # fmt: skip
                    else:
                        self.acked_readings += batch.count
        self._recorded(ack.recorded, ack.dropped)

    def _recorded(self, recorded: list[Produced], dropped: list[Range]) -> None:
        """Forgets what the server's account now holds: ended streams without batches, and declared losses."""
        try:
            for produced in recorded:
                if produced.stream != self._stream and produced.first_pending == 0 and produced.stream < 2**63:
                    self._outbox.forget_stream(produced)
            if dropped:
                self._outbox.forget_dropped([item for item in dropped if max(item) < 2**63])
        except OutboxUnavailable as error:
            log.warning("outbox: %s", error)  # the server says it again with the next status

    def _delete(self, now: float) -> None:
        for start in range(0, len(self._acked), DELETE_AT_ONCE):
            self._outbox.delete(self._acked[start : start + DELETE_AT_ONCE])
        self._acked.clear()
        self._backlog = self._outbox.backlog()
        self._oldest_made_at = self._outbox.oldest_made_at()
        self._delete_at = now + DELETE_INTERVAL_S

    # -- publishing --------------------------------------------------------------------------------------------------

    def _fix_day(self) -> None:
        """Makes sure that batches never published so far get today's day of the server, durably."""
        if self._days.latest != self.heard_date:
            self._outbox.fix_day(self._unfixed, self.heard_date)
            self._days.add(self._unfixed, self.heard_date)

    def _publish_due(self, now: float) -> None:
        due = self._window.due(now, BURST)
        for entry in due:
            self._publish(entry)
        self._more = len(due) == BURST

    def _publish_fresh(self, now: float) -> None:
        count = min(len(self._fresh), self._window.room(live=True))
        for batch in self._fresh[:count]:
            self._send(batch, live=True, now=now)
        del self._fresh[:count]
        self._shelve_fresh()

    def _shelve_fresh(self) -> None:
        """Leaves to the backlog lane what the live lane has no room for: it is in the outbox anyhow."""
        lowest = min([batch.id for batch in self._fresh], default=0)
        skipped_to = self._skipped_to  # once: the intake may move it meanwhile
        highest = max([batch.id for batch in self._fresh] + [skipped_to])
        self._fresh.clear()
        if highest > self._top:
            if self._cursor > self._top:
                # A skipped batch may be older than those that wait; what is delivered already is passed over.
                self._cursor = self._top + 1 if skipped_to > self._top else lowest
            self._top = highest

    def _publish_backlog(self, now: float) -> None:
        room = min(self._window.room(live=False), READ_AT_ONCE)
        if not room or self._cursor > self._top:
            return
        batches = self._outbox.read(self._cursor, self._top, room)
        if len(batches) < room:
            self._cursor = self._top + 1
        elif batches:
            self._cursor = batches[-1].id + 1
            self._more = True
        known = {*self._acked, *self._set_aside}
        for batch in batches:
            if batch.id not in known and batch.id not in self._window:
                self._send(batch, live=False, now=now)

    def _send(self, batch: Batch, live: bool, now: float) -> None:
        day = self._days.of(batch.id)
        assert day is not None, "a batch is published only after its day is fixed"
        attempt = 1 if batch.id < self._start_id else 0
        self._unfixed = max(self._unfixed, batch.id + 1)
        self._publish(self._window.add(batch, day, attempt, live, now))

    def _publish(self, entry: InFlight) -> None:
        entry.arrived = self.link.publish(
            topics.data(self._settings.client_id),
            entry.batch.payload,
            content_type=CONTENT_TYPE,
            properties=entry.properties(),
        )

    # -- trouble -----------------------------------------------------------------------------------------------------

    def _disconnected(self, why: Disconnected) -> None:
        """Closes the day for batches that were never published, and sets aside one that the broker keeps refusing."""
        if self._days.latest is not None:
            try:
                self._outbox.fix_day(self._unfixed, None)
                self._days.add(self._unfixed, None)
            except OutboxUnavailable as error:
                log.warning("outbox: %s", error)  # the old day stays fixed for them, which is allowed
        # What the broker may have refused is what was sent on this connection and not taken.
        tried = (entry for entry in self._window if entry.sent_at >= self._up_at and not entry.arrived())
        largest = max(tried, key=lambda entry: len(entry.batch.payload), default=None)
        if largest is None or why.wanted:
            return
        self._strikes += 1
        if why.code == PACKET_TOO_LARGE or (
            self._strikes >= TOO_LARGE_STRIKES and len(largest.batch.payload) > 1 << 16
        ):
            self._window.remove(largest.batch.id)
            self._set_aside[largest.batch.id] = f"broker: {why.reason}"
            self._strikes = 0
            log.error("batch %d (%d bytes, readings %d to %d) is set aside, the broker refuses it: %s",
                      largest.batch.id, len(largest.batch.payload), largest.batch.first_seq, largest.batch.last_seq,
                      why.reason)  # fmt: skip

    def _publish_status(self, now: float) -> None:
        status = self.status()
        self.link.publish(topics.client_status(self._settings.client_id), status.encode(), retain=True)
        self._status_at = now + self._settings.uplink.status_interval
        self._status_soon = False

    def status(self, online: bool = True) -> ClientStatus:
        """The status to publish, read from the outbox."""
        dropped: list[Dropped] = self._outbox.dropped()
        return ClientStatus(
            online=online,
            version=__version__,
            host=socket.gethostname(),
            labels=self._settings.labels,
            backlog_readings=self._backlog.readings,
            backlog_bytes=self._backlog.bytes,
            oldest_unacked_s=self.oldest_unacked_s(),
            streams=self._outbox.streams(),
            dropped=dropped,
        )

    def _say_goodbye(self) -> None:
        try:
            self._take_events()
            self._delete(time.monotonic())
            if self.link.connected:
                self.link.publish(
                    topics.client_status(self._settings.client_id), self.status(online=False).encode(), retain=True
                )
        except OutboxUnavailable as error:
            log.warning("outbox: %s; deletions wait for the next start", error)
        self.link.stop()
