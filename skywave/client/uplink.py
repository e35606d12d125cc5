"""From the outbox to the server: one thread publishes batches, hears acknowledgements and deletes.

It binds what decides to what does: ``lanes.py`` says which batch is next and under which day, ``window.py`` how many may be on
their way and which are sent again, ``refusals.py`` which ones the broker does not take, ``servers.py`` what the servers say.

Nothing is published while no server accepts, nor before the batch's day is fixed in the outbox. Nothing is deleted but what a
server acknowledged and this process sent.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date

from .. import __version__, config
from ..errors import OutboxUnavailable
from ..formats import topics
from ..formats.batch import CONTENT_TYPE, Batch
from ..formats.messages import MAX_BYTES, Ack, ClientStatus
from ..mqtt.events import Disconnected, Message, Will
from ..mqtt.link import Link
from ..outbox.outbox import Outbox
from .account import Account
from .inbox import Connected, Event, Inbox, NotTaken, Offered
from .lanes import Lanes
from .refusals import Refusals
from .servers import Servers
from .window import InFlight, Window

log = logging.getLogger(__name__)

TICK_S = 0.2
DELETE_INTERVAL_S = 1.0
"""Deletions gather as long and share one commit: at ten batches a second eleven commits, not twenty."""
DELETE_AT_ONCE = 500
READ_AT_ONCE = 16
BURST = 8
"""Batches published between two looks at the events, so that a resend of everything does not delay the live lane."""
RETRY_S = 1.0


@dataclass(slots=True)
class Counts:
    """What servers have acknowledged since the start."""

    acked_batches: int = 0
    acked_readings: int = 0
    rejected_readings: int = 0


class Uplink:
    """Owns the link and the reading side of the outbox. ``first_id`` is the first id of this process.

    ``link``, ``window``, ``servers``, ``refusals``, ``account``, ``counts``, ``progress_at`` (monotonic, when the loop last
    turned) and ``unavailable`` (why the outbox did not work, "" if it does) are for figures as well, in any thread.
    """

    def __init__(self, settings: config.Client, outbox: Outbox, stream: int, first_id: int) -> None:
        days = outbox.days()
        self._settings = settings
        self._outbox = outbox
        self._inbox = Inbox()
        self._lanes = Lanes(first_id, days)
        self.window = Window(settings.uplink)
        self.refusals = Refusals()
        self.servers = Servers(settings.client_id, days.last_heard)
        self.account = Account(settings, outbox, stream)
        self.counts = Counts()
        self.link = Link(
            settings.mqtt.brokers(),
            f"skywave-client-{settings.client_id}",
            [topics.ack(settings.client_id), topics.ALL_SERVER_STATUS],
            on_up=lambda: self._inbox.put(Connected()),
            on_down=self._inbox.put,
            on_message=self._inbox.put_message,
            will=Will(topics.client_status(settings.client_id), ClientStatus(False, __version__).encode()),
            max_packet=MAX_BYTES + (1 << 16),
        )
        self.progress_at = time.monotonic()
        self.unavailable = ""
        self._retry_at = 0.0
        self._delete_at = 0.0
        self._status_at = 0.0

    # -- called by other threads -------------------------------------------------------------------------------------

    def offer(self, batch: Batch) -> None:
        """A batch that the intake has just committed. Never waits."""
        if self._lanes.offer(batch):
            self._inbox.put(Offered())

    def leave(self, last_id: int) -> None:
        """The outbox has batches up to ``last_id`` that were not offered: the backlog lane finds them."""
        self._lanes.leave(last_id)

    def stop(self) -> None:
        """Asks the loop to delete what is acknowledged, say goodbye and return."""
        self._inbox.close()

    @property
    def accepting(self) -> bool:
        """True while the broker is connected and some server says that it can commit."""
        return self.link.connected and self.servers.accept

    @property
    def heard_date(self) -> date | None:
        """The last server date that was heard."""
        return self.servers.heard_date

    # -- the loop ----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Works until ``stop``."""
        self.link.start()
        more = False
        while not self._inbox.closed:
            more = self.turn(0 if more else TICK_S)
        self._say_goodbye()

    def turn(self, wait: float) -> bool:
        """Handles what has come, or comes within ``wait`` seconds, and does what is due. True if more can be done at once."""
        self.progress_at = time.monotonic()
        more = False
        for event in self._inbox.take(wait):
            self._handle(event, time.monotonic())
        self._lanes.take_offered()
        try:
            if self.progress_at >= self._retry_at:
                more = self._work(time.monotonic())
                self.unavailable = ""
        except OutboxUnavailable as error:
            if not self.unavailable:
                log.warning("outbox: %s", error)
            self.unavailable = str(error)
            self._retry_at = time.monotonic() + RETRY_S
        self._lanes.shelve()  # whatever failed: nothing gathers here that is in the outbox anyhow
        return more

    def _work(self, now: float) -> bool:
        if now >= self._delete_at or len(self._lanes.acked) >= DELETE_AT_ONCE:
            self._delete(now)
        if self.servers.are_missing(self.link.connected, now):
            self.link.leave("no server accepts there", topics.client_status(self._settings.client_id))
        today = self.heard_date if self.accepting else None  # None: nothing is published
        self._take_days_back(today)
        more = self._publish(today, now) if today else False
        if self.link.connected and now >= self._status_at:
            self._publish_status(now)
        return more

    # -- events ------------------------------------------------------------------------------------------------------

    def _handle(self, event: Event, now: float) -> None:
        if isinstance(event, Message):
            if ack := self.servers.hear(event, now):
                self._acknowledged(ack, now)
        elif isinstance(event, NotTaken):
            if self.refusals.refused(event.why) and event.batch_id in self.window:
                self._set_aside(event.batch_id, event.why.words, now)
        elif isinstance(event, Connected):
            self.servers.forget()
            self.window.rewind()
            self.refusals.connected(now)
            self._status_at = 0.0
        elif isinstance(event, Disconnected):
            self.servers.forget()
            if suspect := self.refusals.disconnected(event, self.window):
                self._set_aside(suspect[0].id, suspect[1], now)

    def _set_aside(self, batch_id: int, reason: str, now: float) -> None:
        batch = self.window.remove(batch_id).batch
        if self.refusals.set_aside(batch_id, reason, now):
            log.error(
                "batch %d (%d bytes, readings %d to %d) is set aside, the broker refuses it: %s",
                batch_id,
                len(batch.payload),
                batch.first_seq,
                batch.last_seq,
                reason,
            )

    # -- days --------------------------------------------------------------------------------------------------------

    def _fix_day(self, batch_id: int, today: date) -> None:
        """Makes sure that this batch, and the next ones, have a day, durably."""
        if ids := self._lanes.without_day(batch_id, today):
            self._lanes.fixed(self._outbox.fix_day(ids.start, today, ids.stop))

    def _take_days_back(self, today: date | None) -> None:
        for ids in self._lanes.unused_days(today):
            self._lanes.taken_back(ids, self._outbox.fix_day(ids.start, None, ids.stop))

    # -- publishing --------------------------------------------------------------------------------------------------

    def _publish(self, today: date, now: float) -> bool:
        """One round of all that may be published now; True if there is more."""
        if self.refusals.one_at_a_time:
            if entry := self.refusals.next_alone(self.window):
                self._send(self.window.again(entry, now))
            return False
        due = self.window.due(now, BURST)
        for entry in due:
            self._send(entry)
        for batch in self._lanes.fresh(self._room(live=True)):
            self._publish_first(batch, True, today, now)
        self._publish_set_aside(today, now)
        more = self._publish_backlog(today, now)
        return more or len(due) == BURST

    def _publish_set_aside(self, today: date, now: float) -> None:
        """Tries one of those again that were set aside, if it is time."""
        if (batch_id := self.refusals.due(now)) is None or not self.window.room(live=False):
            return
        if batches := self._outbox.read(batch_id, batch_id, 1):
            self.refusals.tried(batch_id)
            self._publish_first(batches[0], False, today, now)
        else:  # it was dropped meanwhile
            self.refusals.forget(batch_id)

    def _publish_backlog(self, today: date, now: float) -> bool:
        room = min(self._room(live=False), READ_AT_ONCE)
        if not room or not (ids := self._lanes.backlog()):
            return False
        batches = self._outbox.read(*ids, room)
        acked = set(self._lanes.acked)
        for batch in batches:
            if not (batch.id in acked or batch.id in self.refusals or batch.id in self.window):
                self._publish_first(batch, False, today, now)
        self._lanes.walked(batches, room)
        return self._lanes.backlog() is not None

    def _room(self, live: bool) -> int:
        return 0 if self.refusals.full else self.window.room(live)

    def _publish_first(self, batch: Batch, live: bool, today: date, now: float) -> None:
        """Publishes a batch that is not in the window. It is a first attempt if nobody can have published it before."""
        self._fix_day(batch.id, today)
        day = self._lanes.published(batch.id)
        attempt = 1 if batch.id < self._lanes.first_id or batch.id in self.refusals else 0
        self._send(self.window.add(batch, day, attempt, live, now))

    def _send(self, entry: InFlight) -> None:
        batch_id = entry.batch.id
        entry.arrived = self.link.publish(
            topics.data(self._settings.client_id),
            entry.batch.payload,
            content_type=CONTENT_TYPE,
            properties=entry.properties(),
            on_refused=lambda why: self._inbox.put(NotTaken(batch_id, why)),
        )

    # -- acknowledged, deleted ---------------------------------------------------------------------------------------

    def _acknowledged(self, ack: Ack, now: float) -> None:
        for ranges, rejected in ((ack.stored, False), (ack.rejected, True)):
            batches = [batch for item in ranges for batch in self.window.acknowledge(item, now)]
            self._lanes.acked += [batch.id for batch in batches]
            self.refusals.acknowledged(batch.id for batch in batches)
            self.counts.acked_batches += len(batches)
            readings = sum(batch.count for batch in batches)
            if not rejected:
                self.counts.acked_readings += readings
                continue
            self.counts.rejected_readings += readings
            for batch in batches:
                log.error(
                    "server rejected readings %d to %d of stream %d; it keeps their bytes",
                    batch.first_seq,
                    batch.last_seq,
                    batch.stream,
                )
        self.account.recorded(ack)

    def _delete(self, now: float) -> None:
        acked = self._lanes.acked
        for start in range(0, len(acked), DELETE_AT_ONCE):
            self._outbox.delete(acked[start : start + DELETE_AT_ONCE])
        acked.clear()
        self.account.look()
        self._delete_at = now + DELETE_INTERVAL_S

    # -- status, goodbye ---------------------------------------------------------------------------------------------

    def _publish_status(self, now: float) -> None:
        self.refusals.greeted(self._say(self.account.status()))
        self._status_at = now + self._settings.uplink.status_interval

    def _say(self, status: ClientStatus) -> Callable[[], bool]:
        return self.link.publish(topics.client_status(self._settings.client_id), status.encode(), retain=True)

    def _say_goodbye(self) -> None:
        try:
            for event in self._inbox.take(0):
                self._handle(event, time.monotonic())
            self._delete(time.monotonic())
            self._take_days_back(None)
            if self.link.connected:
                self._say(self.account.status(online=False))
        except OutboxUnavailable as error:
            log.warning("outbox: %s; deletions wait for the next start", error)
        self.link.stop()
