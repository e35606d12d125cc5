"""From the inbox into the store: gather a group of messages, admit, insert, record, and only then answer.

One thread works on one group at a time, from the first look at a message to its acknowledgement, so what this server holds
is in exactly one place. That each batch is stored once is the work of ``inserting.py``.

Acknowledged is what was committed, found committed, or put durably among the rejected. Nobody's messages cost the others
more than a bounded share: of a group's days, of the rejected, of the accounts and of the log (docs/security.md).
"""

from __future__ import annotations

import logging
import random
import threading
import time
from datetime import date

from .. import config
from ..errors import PoisonError
from ..formats import topics
from ..formats.messages import EARLIEST, ClientStatus
from ..process.times import utc_today
from ..process.visible import visible
from ..store.delivery import Delivery
from ..store.shards import shard_suffix
from . import poison
from .admission import MAX_INSERT_BYTES, Admission
from .figures import ShardFigures
from .group import Group
from .inbox import Inbox, Received
from .inserting import Inserter
from .limits import Limits
from .patience import Patience, Stopped
from .recording import Recorder
from .subscriber import Subscriber

log = logging.getLogger(__name__)

NAP_S = 0.02
"""While a group gathers, messages do not wake the thread one by one: that costs as much as to decode them."""


class Ingest:
    """The working loop of the server, or of one of its shards. ``inbox`` and ``store`` are its own.

    When ``stopping`` is set it finishes its group and returns; a group that waits for the store is given up.
    """

    def __init__(
        self,
        settings: config.Server,
        inbox: Inbox,
        subscriber: Subscriber,
        store: Delivery,
        stopping: threading.Event,
        shard: int = 0,
    ) -> None:
        self._settings = settings.ingest
        self._name = settings.server_name
        self._inbox, self._subscriber, self._store = inbox, subscriber, store
        self._stopping = stopping
        self._shard = shard
        self.figures = ShardFigures()
        name = f"store{shard_suffix(settings.store, shard)}"
        self._patience = Patience(name, settings.ingest.pause_after, self._pause, stopping, self.figures)
        self._limits = Limits(settings.ingest.reject_quota, self._rejected_bytes)
        self._admission = Admission(settings.ingest, random.SystemRandom().randrange(1, 2**63))
        self._inserter = Inserter(settings.ingest.max_rows, store, self._patience, self.figures)
        self._recorder = Recorder(store, self._patience, self._limits, self.figures)

    def run(self) -> None:
        """Works until it is told to stop."""
        try:
            self._patience.until_done(self._store.migrate)
            self._subscriber.start()
            while not self._stopping.is_set():
                self.figures.progress_at = time.monotonic()
                self._subscriber.tick()
                today = utc_today()
                if not self._clock_is_set(today):
                    self._stopping.wait(0.5)
                    continue
                # Room is enough: with many clients the inbox is never empty, because their statuses always come in.
                room = self._inbox.bytes < self._settings.max_held_bytes // 4
                if room and not self.figures.store_error and not self._subscriber.accepts(self._shard):
                    self._subscriber.set_accepting(True, self._shard)
                if self._inbox.wait(0.5):
                    self.work(self.gather(today))
        except Stopped:
            log.warning("stops while the store is away; %d messages were not acknowledged", len(self._inbox))

    def _pause(self) -> None:
        """Has the clients keep what belongs to this shard."""
        self._subscriber.set_accepting(False, self._shard)

    def _clock_is_set(self, today: date) -> bool:
        """False while the date is impossible: by it good batches would be rejected and new ones dated wrongly."""
        is_set = today >= EARLIEST
        if is_set != self.figures.clock_is_set:
            self.figures.clock_is_set = is_set
            if is_set:
                log.info("the clock is set: %s", today)
            else:
                log.error("the clock shows %s; nothing is taken until it is set", today)
                self._pause()
        return is_set

    # -- gather and admit --------------------------------------------------------------------------------------------

    def gather(self, today: date) -> Group:
        """Gets messages until there are enough rows or the first has waited ``linger``, decoding as they come. ``today`` is
        the server's UTC date."""
        self._limits.begin(today)
        group = Group(today)
        later: list[Received] = []
        until = time.monotonic() + self._settings.linger
        while group.rows < self._settings.max_rows and group.bytes < MAX_INSERT_BYTES:
            received = self._inbox.get()
            if received is None:
                left = until - time.monotonic()
                if left <= 0 or self._stopping.wait(min(NAP_S, left)):
                    break
                continue
            if group.has_room(received):
                self.admit(received, group)
            else:
                later.append(received)
            if time.monotonic() >= until:
                break
        self._inbox.put_back(later)
        return group

    def admit(self, received: Received, group: Group) -> None:
        """Sorts one message into the group: readings, poison, or a client's status."""
        group.received.append(received)
        message = received.message
        who = topics.parse_client(message.topic)
        client_id, kind = who or (0, "")
        try:
            if kind == "status":
                group.add_status(client_id, ClientStatus.decode(message.payload), message.retained)
                return
            if who is None:
                raise PoisonError(
                    "came on a topic that is no client's: a client's number is 1 to 4294967295, without zeros before it"
                )
            admitted, bad = self._admission.admit(client_id, message, group.today, received.at)
        except Exception as error:  # one message must never end the loop, whatever is wrong with it, or with us
            if not isinstance(error, PoisonError):
                log.exception("a message on %s cannot be read", visible(message.topic, poison.MAX_REASON))
            if kind == "status":
                self._limits.tell(client_id, f"its status is not taken: {error}")
            else:
                group.add_poison(poison.of_message(client_id, message, str(error), group.today))
            return
        if bad:
            good = sum(len(item.values) for item in admitted)
            group.add_poison(poison.of_elements(client_id, message, bad, good, group.today))
        group.add(admitted)
        self.figures.foreign_readings += sum(len(item.values) for item in admitted if item.foreign)

    # -- insert, record, answer --------------------------------------------------------------------------------------

    def work(self, group: Group) -> None:
        """Makes durable what is in the group, then acknowledges it. Raises ``Stopped``, and has acknowledged nothing then."""
        self._reject(group)
        self._inserter.insert(group.admitted)
        for item in group.admitted:
            group.replies[item.name.client_id].stored += item.acked
            self.figures.delivered[item.name.client_id] += len(item.values)
        self._recorder.record(group)
        self._answer(group)

    def _reject(self, group: Group) -> None:
        """Puts poison among the rejected, within each client's daily quota; beyond it stays unacknowledged."""
        rows = []
        for row, acked in group.poison:
            if not self._limits.keeps(row):
                self.figures.over_quota += 1
                continue
            self._limits.tell(row.client_id, f"rejected {len(row.payload)} bytes on {row.topic}: {row.reason}")
            rows.append(row)
            group.replies[row.client_id].rejected += acked
        if rows:
            self._patience.until_done(lambda: self._store.reject(rows))
            self.figures.rejected += len(rows)

    def _rejected_bytes(self, client_id: int, day: date) -> int:
        return self._patience.until_done(lambda: self._store.rejected_bytes(client_id, day))

    def _answer(self, group: Group) -> None:
        """To each client one acknowledgement, to the broker that it may forget the JSON that it kept."""
        today = max(group.today, utc_today())
        for client_id, reply in group.replies.items():
            if reply:
                self._subscriber.acknowledge(client_id, reply.ack(self._name, today))
        for received in group.received:
            if received.answer:
                received.answer(received)
