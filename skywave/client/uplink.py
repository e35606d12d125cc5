"""From the outbox to the server: one thread publishes batches, hears acknowledgements and deletes.

Two lanes share the window. The *live* lane takes batches as the intake commits them; what it has no room for stays in
the outbox. The *backlog* lane walks through the outbox by id, from ``_cursor`` to ``_top``, and fills the rest of the
window. So fresh readings arrive at once while an outage's backlog drains, and memory does not depend on the backlog.

Nothing is published while no server accepts, nor before the batch's day is fixed in the outbox. The day is fixed for some
batches ahead, and taken back from those that were not published when publishing ends or the day changes. Nothing is deleted
but what a server acknowledged and this process sent.

A batch that the broker refuses as too large is set aside and tried again, less and less often. A broker may also end the
connection over it without a word, as a poor link does. After some such ends batches go one at a time, the smallest first,
behind a status that the broker has answered: then it shows whether it is always the same one.
"""

from __future__ import annotations

import logging
import queue
import random
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date, timedelta

from .. import __version__, config
from ..errors import OutboxUnavailable, PoisonError
from ..formats import topics
from ..formats.batch import CONTENT_TYPE, Batch
from ..formats.messages import EARLIEST, MAX_BYTES, Ack, ClientStatus, Dropped, Produced, Range, ServerStatus
from ..mqtt.events import Disconnected, Message, Refused, Will
from ..mqtt.link import PACKET_TOO_LARGE, Link
from ..outbox.outbox import Backlog, Outbox
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
DAY_AHEAD = 256
"""Batches whose day is fixed at once. If the client is killed, as many may keep a day on which they were not published."""
MAX_UNPUBLISHED_GAPS = 64
MESSAGES_AHEAD = 64
"""Received messages that may wait for the uplink; then the socket is not read."""
MAX_SERVERS = 1000
STRIKES = 3
"""So many connections in a row end without a word before batches go alone, and so many that each had the same batch alone on
its way before it is set aside."""
ASIDE_S, ASIDE_MAX_S = 60.0, 900.0
"""After so long a batch that was set aside is tried again; each time that it is refused after twice as long."""
MAX_ASIDE = 1000
"""When so many batches are set aside nothing more is published: the broker takes none that matter."""
LOG_EVERY_S = 60.0
RETRY_S = 1.0
UNSERVED_S = 10.0
"""How long a client stays with a broker to which no accepting server listens, if there is another broker."""


@dataclass(frozen=True, slots=True)
class _Up:
    """The link is connected."""


@dataclass(frozen=True, slots=True)
class _Refused:
    """What the broker said to a batch that it did not take."""

    batch_id: int
    why: Refused


@dataclass(frozen=True, slots=True)
class _Aside:
    """A batch that the broker refuses: why, how often it did, and when it is tried again (monotonic seconds)."""

    reason: str
    times: int
    until: float


_Event = Batch | Message | Disconnected | _Up | _Refused


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
        self._offered = self._taken = 0  # batches put into _events by the intake, and taken out by this thread
        self._room = threading.Semaphore(MESSAGES_AHEAD)
        self._skipped_to = 0  # highest id that the intake did not hand over because this thread was behind
        self._cursor = 0
        self._top = open_id - 1  # the outbox as it was found is backlog
        self._unpublished: list[range] = []  # ids that have today's day and were not published
        self._fixed_date: date | None = None  # which day that is
        self._acked: list[int] = []
        self._delete_at = 0.0
        self._status_at = 0.0
        self._status_soon = False
        self._retry_at = 0.0
        self._served_at = 0.0
        self._strikes = 0  # connections in a row that ended without a word while the broker owed an answer
        self._died_alone: dict[int, int] = {}  # by batch: connections that ended while it alone was on its way
        self._greeted: Callable[[], bool] = lambda: False  # whether the broker has answered on this connection
        self._refused = False  # whether it has refused a batch on it
        self._up_at = 0.0
        self._more = False  # there is work that needs no event
        self._set_aside: dict[int, _Aside] = {}
        self._said_bad_at = float("-inf")
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
            on_message=self._heard,
            will=Will(topics.client_status(settings.client_id), ClientStatus(False, __version__).encode()),
            max_packet=MAX_BYTES + (1 << 16),
        )

    # -- called by other threads -------------------------------------------------------------------------------------

    def offer(self, batch: Batch) -> None:
        """A batch that the intake has just committed. Never waits."""
        if self._offered - self._taken < FRESH_LIMIT:
            self._offered += 1
            self._events.put(batch)
        else:
            self._skipped_to = batch.id

    def leave(self, last_id: int) -> None:
        """The outbox has batches up to ``last_id`` that were not offered: the backlog lane finds them."""
        self._skipped_to = last_id

    def _heard(self, message: Message) -> None:
        while not self._room.acquire(timeout=TICK_S):
            if self._stopping.is_set():
                return
        self._events.put(message)

    def stop(self) -> None:
        """Asks the loop to delete what is acknowledged, say goodbye and return."""
        self._stopping.set()

    @property
    def accepting(self) -> bool:
        """True while the broker is connected and some server says that it can commit."""
        # A copy, which nobody changes while it is looked through: other threads ask too.
        return self.link.connected and any(status.accepting for status in self._servers.copy().values())

    @property
    def window(self) -> Window:
        """For figures only."""
        return self._window

    @property
    def set_aside(self) -> dict[int, str]:
        """Batches that the broker refuses, by id, with the reason. They stay in the outbox and are tried again by and by."""
        return {batch_id: aside.reason for batch_id, aside in self._set_aside.copy().items()}

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
            try:
                if self.progress_at >= self._retry_at:
                    self._step(time.monotonic())
                    self.unavailable = ""
            except OutboxUnavailable as error:
                if not self.unavailable:
                    log.warning("outbox: %s", error)
                self.unavailable = str(error)
                self._retry_at = time.monotonic() + RETRY_S
            self._shelve_fresh()  # whatever failed: nothing gathers here that is in the outbox anyhow
        self._say_goodbye()

    def _step(self, now: float) -> None:
        if now >= self._delete_at or len(self._acked) >= DELETE_AT_ONCE:
            self._delete(now)
        if self.accepting or not self.link.connected:
            self._served_at = now
        elif now - self._served_at > UNSERVED_S:
            self._served_at = now
            self.link.leave("no server accepts there", topics.client_status(self._settings.client_id))
        publishes = self.accepting and self.heard_date is not None
        if not publishes or self._fixed_date != self.heard_date or len(self._unpublished) > MAX_UNPUBLISHED_GAPS:
            self._take_days_back()
        if publishes and self._strikes >= STRIKES:
            self._publish_alone(now)
        elif publishes:
            self._publish_due(now)
            self._publish_fresh(now)
            self._publish_aside(now)
            self._publish_backlog(now)
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
            self._taken += 1
            if event.id > self._top:  # else the backlog lane has it already
                self._fresh.append(event)
        elif isinstance(event, Message):
            self._room.release()
            try:
                self._receive(event)
            except PoisonError as error:
                self._ignore(event, error)
        elif isinstance(event, _Refused):
            self._refused |= event.why.sent
            if event.why.code == PACKET_TOO_LARGE and event.batch_id in self._window:
                self._put_aside(self._window.remove(event.batch_id).batch, event.why.words)
        elif isinstance(event, _Up):
            self._up_at = time.monotonic()
            self._servers.clear()  # retained statuses follow; what a dead broker knew is not known any more
            self._window.rewind()
            self._status_soon = True
            self._greeted = lambda: False
            self._refused = False
        else:
            self._servers.clear()
            self._disconnected(event)

    def _ignore(self, message: Message, why: object) -> None:
        self.bad_messages += 1
        now = time.monotonic()
        if now - self._said_bad_at > LOG_EVERY_S:
            self._said_bad_at = now
            before = f", as {self.bad_messages - 1} before it" if self.bad_messages > 1 else ""
            log.warning("message on %r is ignored%s: %s", message.topic, before, why)

    def _receive(self, message: Message) -> None:
        if (server := topics.parse_server(message.topic)) is not None:
            if not message.payload:
                self._servers.pop(server, None)
                return
            status = ServerStatus.decode(message.payload)
            if server not in self._servers and len(self._servers) >= MAX_SERVERS:
                raise PoisonError(f"there are {MAX_SERVERS} servers already")
            self._servers[server] = status
            if status.accepting:  # the last will of one that died has the date of its start
                self._hear_date(status.date)
        elif message.topic == topics.ack(self._settings.client_id):
            if message.retained:
                raise PoisonError("no server retains an acknowledgement")
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
        if self._strikes < STRIKES:
            self._strikes = 0
        for ranges, rejected in ((ack.stored, False), (ack.rejected, True)):
            for item in ranges:
                for batch in self._window.acknowledge(item, now):
                    self._acked.append(batch.id)
                    self._set_aside.pop(batch.id, None)
                    self._died_alone.pop(batch.id, None)
                    self.acked_batches += 1
                    if rejected:
                        self.rejected_readings += batch.count
                        log.error("server rejected readings %d to %d of stream %d; it keeps their bytes",
                                  batch.first_seq, batch.last_seq, batch.stream)  # fmt: skip
                    else:
                        self.acked_readings += batch.count
        self._recorded(ack.recorded, ack.dropped)

    def _recorded(self, recorded: list[Produced], dropped: list[Range]) -> None:
        """Forgets what the server's account now holds: ended streams without batches, and declared losses. What is not of
        this outbox's account is of no matter, whatever its numbers."""
        try:
            mine = {account[:2] for account in self._outbox.streams()} if recorded else set()
            for produced in recorded:
                if produced.stream != self._stream and produced.first_pending == 0 and produced[:2] in mine:
                    self._outbox.forget_stream(produced)
                    mine.discard(produced[:2])
            declared = {Range(*loss[:3]) for loss in self._outbox.dropped()} if dropped else set()
            if known := declared.intersection(dropped):
                self._outbox.forget_dropped(sorted(known))
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

    def _fix_day(self, first: int) -> None:
        """Makes sure that this batch and the next, which have no day, get today's day of the server, durably."""
        ids = range(first, self._days.room(first, first + DAY_AHEAD))
        self._fixed_date = self.heard_date
        if ids not in self._unpublished:
            self._unpublished.append(ids)  # first: the outcome of a commit may be unknown
        self._days = self._outbox.fix_day(ids.start, self.heard_date, ids.stop)

    def _take_days_back(self) -> None:
        """A batch that was not published gets its day when it is."""
        while self._unpublished:
            ids = self._unpublished[-1]
            self._days = self._outbox.fix_day(ids.start, None, ids.stop)
            self._unpublished.pop()

    def _publish_due(self, now: float) -> None:
        due = self._window.due(now, BURST)
        for entry in due:
            self._publish(entry)
        self._more = len(due) == BURST

    def _publish_fresh(self, now: float) -> None:
        count = min(len(self._fresh), self._room_for(live=True))
        for batch in self._fresh[:count]:
            self._send(batch, live=True, now=now)
        del self._fresh[:count]

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
        room = min(self._room_for(live=False), READ_AT_ONCE)
        if not room or self._cursor > self._top:
            return
        batches = self._outbox.read(self._cursor, self._top, room)
        known = {*self._acked, *self._set_aside}
        for batch in batches:
            if batch.id not in known and batch.id not in self._window:
                self._send(batch, live=False, now=now)
        # Only now: if a day could not be fixed, the rest is read again.
        if len(batches) < room:
            self._cursor = self._top + 1
        elif batches:
            self._cursor = batches[-1].id + 1
            self._more = True

    def _publish_aside(self, now: float) -> None:
        """Tries one of those again that were set aside, if it is time."""
        due = next((batch_id for batch_id, aside in self._set_aside.items() if aside.until <= now), None)
        if due is None or not self._window.room(live=False):
            return
        batches = self._outbox.read(due, due, 1)
        if not batches:  # it was dropped meanwhile
            del self._set_aside[due]
            return
        self._set_aside[due] = replace(self._set_aside[due], until=float("inf"))
        self._send(batches[0], live=False, now=now, attempt=1)

    def _publish_alone(self, now: float) -> None:
        """One batch at a time, the smallest first, each when the broker has answered the one before."""
        if self._status_soon or not self._greeted():
            return
        for entry in sorted(self._window, key=lambda entry: _size(entry.batch)):
            if entry.sent_at < self._up_at:
                self._publish(self._window.again(entry, now))
                return
            if not entry.arrived():
                return
        self._strikes = 0
        self._died_alone.clear()

    def _room_for(self, live: bool) -> int:
        return self._window.room(live) if len(self._set_aside) < MAX_ASIDE else 0

    def _send(self, batch: Batch, live: bool, now: float, attempt: int = 0) -> None:
        if self._days.of(batch.id) is None:
            self._fix_day(batch.id)
        day = self._days.of(batch.id)
        assert day is not None, "a batch is published only after its day is fixed"
        self._unpublished = [
            part
            for ids in self._unpublished
            for part in (range(ids.start, min(ids.stop, batch.id)), range(max(ids.start, batch.id + 1), ids.stop))
            if part
        ]
        attempt = 1 if batch.id < self._start_id else attempt
        self._publish(self._window.add(batch, day, attempt, live, now))

    def _publish(self, entry: InFlight) -> None:
        batch_id = entry.batch.id
        entry.arrived = self.link.publish(
            topics.data(self._settings.client_id),
            entry.batch.payload,
            content_type=CONTENT_TYPE,
            properties=entry.properties(),
            on_refused=lambda why: self._events.put(_Refused(batch_id, why)),
        )

    # -- trouble -----------------------------------------------------------------------------------------------------

    def _disconnected(self, why: Disconnected) -> None:
        """Looks whether a batch may have ended the connection."""
        # What the broker may have refused is what was sent on this connection and not taken.
        tried = [entry.batch for entry in self._window if entry.sent_at >= self._up_at and not entry.arrived()]
        if not tried or why.wanted:
            return
        if why.code == PACKET_TOO_LARGE:
            self._put_aside(self._window.remove(max(tried, key=_size).id).batch, why.reason)
        if why.code or self._refused:  # the broker says why, or said it in an answer before
            return
        self._strikes += 1
        if len(tried) == 1 and self._greeted():
            times = self._died_alone[tried[0].id] = self._died_alone.get(tried[0].id, 0) + 1
            if times >= STRIKES:
                del self._died_alone[tried[0].id]
                self._put_aside(self._window.remove(tried[0].id).batch, f"{why.reason}, {times} times with it alone")

    def _put_aside(self, batch: Batch, reason: str) -> None:
        times = self._set_aside[batch.id].times + 1 if batch.id in self._set_aside else 1
        pause = min(ASIDE_S * 2 ** min(times - 1, 10), ASIDE_MAX_S) * random.uniform(1.0, 1.25)
        self._set_aside[batch.id] = _Aside(f"broker: {reason}", times, time.monotonic() + pause)
        if times == 1:
            log.error("batch %d (%d bytes, readings %d to %d) is set aside, the broker refuses it: %s",
                      batch.id, len(batch.payload), batch.first_seq, batch.last_seq, reason)  # fmt: skip

    def _publish_status(self, now: float) -> None:
        status = self.status()
        answered = self.link.publish(topics.client_status(self._settings.client_id), status.encode(), retain=True)
        if self._status_soon:
            self._greeted = answered
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
            self._take_days_back()
            if self.link.connected:
                self.link.publish(
                    topics.client_status(self._settings.client_id), self.status(online=False).encode(), retain=True
                )
        except OutboxUnavailable as error:
            log.warning("outbox: %s; deletions wait for the next start", error)
        self.link.stop()


def _size(batch: Batch) -> int:
    return len(batch.payload)
