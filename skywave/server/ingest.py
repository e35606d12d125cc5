"""From the inbox into the store: decode, look up, one INSERT, and only then the acknowledgements.

One thread works on one group of messages at a time, from the first look at a message to its acknowledgement, so what
this server holds is in exactly one place. What makes a batch be stored once:

1. A batch whose name is twice in the group, or was committed lately, is not inserted again.
2. The store is asked for each batch that may have been sent before (``attempt`` or DUP), that was held too long (a frozen
   server thaws), or that was in an INSERT of unknown outcome.
3. Under that the table is a ReplacingMergeTree keyed by the identity, for two servers that insert at the same time.

Acknowledged is what was committed, found committed, or put durably among the rejected.
"""

from __future__ import annotations

import hashlib
import json
import logging
import random
import threading
import time
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from typing import Any, TypeVar

from .. import config, topics
from ..batch import Name
from ..errors import CredentialError, PoisonError, StoreBusy, StoreError, StoreUnavailable
from ..messages import EARLIEST, Ack, ClientStatus, Dropped, Produced, Range, merge
from ..mqtt import Message
from .admission import Admission, Admitted, build_block, name_and_count
from .store import Rejected, Store, of_shard
from .subscriber import Inbox, Received, Subscriber, boottime, utc_today

log = logging.getLogger(__name__)
T = TypeVar("T")

HELD_TOO_LONG_S = 30.0
REMEMBERED_BATCHES = 200_000
RETRY_MAX_S = 5.0
NAP_S = 0.02
"""While a group gathers, messages do not wake the thread one by one: that costs as much as to decode them."""


class Stopped(Exception):
    """The server was told to stop while it waited for the store. Nothing was acknowledged."""


@dataclass(slots=True)
class _Reply:
    """The acknowledgement of one client in the making."""

    stored: list[Range] = field(default_factory=list)
    rejected: list[Range] = field(default_factory=list)
    recorded: list[Produced] = field(default_factory=list)
    dropped: list[Range] = field(default_factory=list)


@dataclass(slots=True)
class _Group:
    """What one group of messages came to. ``today`` is the server's UTC date for all of it."""

    today: date
    admitted: list[Admitted] = field(default_factory=list)
    poison: list[tuple[Rejected, Range | None]] = field(default_factory=list)
    statuses: dict[int, ClientStatus] = field(default_factory=dict)
    remembered: set[int] = field(default_factory=set)
    """Clients whose status is one that the broker kept: perhaps not their last, if there are several brokers."""
    replies: defaultdict[int, _Reply] = field(default_factory=lambda: defaultdict(_Reply))


class Ingest:
    """The working loop of the server, or of one of its shards. ``inbox`` and ``store`` are its own."""

    def __init__(
        self, settings: config.Server, inbox: Inbox, subscriber: Subscriber, store: Store, shard: int = 0
    ) -> None:
        self._shard = shard
        self._store_name = f"store{of_shard(settings.store, shard)}"
        self._settings = settings.ingest
        self._name = settings.server_name
        self._inbox, self._subscriber, self._store = inbox, subscriber, store
        self._stopping = threading.Event()
        self._committed: OrderedDict[Name, None] = OrderedDict()
        self._recorded: dict[int, tuple[Any, ...]] = {}
        self._named: dict[int, set[int]] = {}
        self._quota: dict[tuple[int, date], int] = {}
        self._over_quota: set[tuple[int, date]] = set()
        self._admission = Admission(settings.ingest, random.SystemRandom().randrange(1, 2**63))
        self.progress_at = time.monotonic()
        self.asks_store = False
        self.store_error = ""
        self.clock_is_set = True
        self.readings = self.batches = self.inserts = self.duplicates = self.look_ups = 0
        self.foreign_readings = self.rejected = self.over_quota = 0
        self.insert_s = 0.0
        self.clients: dict[int, ClientStatus] = {}
        self.delivered: defaultdict[int, int] = defaultdict(int)

    def stop(self) -> None:
        """Asks the loop to finish its group and return; a group that waits for the store is given up."""
        self._stopping.set()

    def run(self) -> None:
        """Works until ``stop``."""
        try:
            self._until_done(self._store.migrate)
            self._subscriber.start()
            while not self._stopping.is_set():
                self.progress_at = time.monotonic()
                self._subscriber.tick()
                today = utc_today()
                if not self._clock_is_set(today):
                    self._stopping.wait(0.5)
                    continue
                # Room is enough: with many clients the inbox is never empty, because their statuses always come in.
                room = self._inbox.bytes < self._settings.max_held_bytes // 4
                if room and not self.store_error and not self._subscriber.accepts(self._shard):
                    self._subscriber.set_accepting(True, self._shard)
                if self._inbox.wait(0.5):
                    self._work(self._gather(today))
        except Stopped:
            log.warning("stops while the store is away; %d messages were not acknowledged", len(self._inbox))

    # -- from messages to a group ------------------------------------------------------------------------------------

    def _clock_is_set(self, today: date) -> bool:
        """False while the date is impossible: by it good batches would be rejected and new ones dated wrongly."""
        if (today >= EARLIEST) == self.clock_is_set:
            return self.clock_is_set
        self.clock_is_set = not self.clock_is_set
        if self.clock_is_set:
            log.info("the clock is set: %s", today)
        else:
            log.error("the clock shows %s; nothing is taken until it is set", today)
            self._subscriber.set_accepting(False, self._shard)
        return self.clock_is_set

    def _gather(self, today: date) -> _Group:
        """Takes messages until there are enough rows or the first has waited ``linger``, decoding as they come."""
        group = _Group(today)
        rows, until = 0, time.monotonic() + self._settings.linger
        while rows < self._settings.max_rows:
            received = self._inbox.take()
            if received is None:
                left = until - time.monotonic()
                if left <= 0 or self._stopping.wait(min(NAP_S, left)):
                    break
                continue
            rows += self._admit(received, group)
            if time.monotonic() >= until:
                break
        return group

    def _admit(self, received: Received, group: _Group) -> int:
        """Sorts one message into the group; the number of readings it adds."""
        message = received.message
        who = topics.parse_client(message.topic)
        client_id, kind = who or (0, "")
        try:
            if kind == "status":
                group.statuses[client_id] = ClientStatus.decode(message.payload)
                (group.remembered.add if message.retained else group.remembered.discard)(client_id)
                return 0
            if who is None:
                raise PoisonError("came on a topic that is no client's")
            admitted, bad = self._admission.admit(client_id, message, group.today, received.at)
        except Exception as error:  # one message must never end the loop, whatever is wrong with it, or with us
            if not isinstance(error, PoisonError):
                log.exception("a message on %s cannot be read", message.topic)
            if kind == "status":
                log.warning("client %d: %s", client_id, error)
            else:
                self._poison(client_id, message, str(error), message.payload, group)
            return 0
        for element in bad:
            self._poison(client_id, message, element.reason, element.text.encode(), group)
        group.admitted += admitted
        self.foreign_readings += sum(len(item.values) for item in admitted if item.foreign)
        return sum(len(item.values) for item in admitted)

    def _poison(self, client_id: int, message: Message, reason: str, payload: bytes, group: _Group) -> None:
        properties = message.properties or {}
        try:
            name, count = name_and_count(client_id, properties)
            acked = Range(name.stream, name.first_seq, name.first_seq + count - 1)
        except PoisonError:
            name, count, acked = Name(client_id, 0, 0), 0, None
        notes = json.dumps({"content_type": message.content_type, **properties})
        digest = hashlib.sha256(payload).hexdigest()
        row = Rejected(
            *name, count, digest, message.topic, reason, notes, payload, time.time_ns() // 1000, group.today
        )  # fmt: skip
        group.poison.append((row, acked))

    # -- from a group to acknowledgements ----------------------------------------------------------------------------

    def _work(self, group: _Group) -> None:
        self._reject(group)
        by_day: defaultdict[date, list[Admitted]] = defaultdict(list)
        for item in self._once(group.admitted):
            by_day[item.day].append(item)
        for day in sorted(by_day):
            for part in _parts(by_day[day], self._settings.max_rows):
                self._commit(day, part)
        for item in group.admitted:
            group.replies[item.name.client_id].stored += item.acked
            self.delivered[item.name.client_id] += len(item.values)
        self._record(group)
        today = max(group.today, utc_today())
        for client_id, reply in group.replies.items():
            self._subscriber.acknowledge(
                client_id,
                Ack(self._name, today, merge(reply.stored), merge(reply.rejected), reply.recorded, reply.dropped),
            )

    def _once(self, admitted: Sequence[Admitted]) -> list[Admitted]:
        """Without the batches that are twice in this group or were committed lately."""
        asked = {item.name for item in admitted if item.must_look_up}  # by one of its copies, perhaps not by the first
        seen: set[Name] = set()
        fresh = []
        for item in admitted:
            if item.look_up:
                if item.name in seen or item.name in self._committed:
                    self.duplicates += 1
                    continue
                seen.add(item.name)
            fresh.append(replace(item, must_look_up=True) if item.name in asked else item)
        return fresh

    def _commit(self, day: date, items: list[Admitted]) -> None:
        """Returns when every item is stored, by this INSERT or an earlier one."""
        now = boottime()
        doubtful = {i.name for i in items if i.look_up and (i.must_look_up or now - i.at > HELD_TOO_LONG_S)}

        def attempt() -> None:
            nonlocal items, doubtful
            if doubtful:
                self.look_ups += len(doubtful)
                found = self._store.existing([item.probe() for item in items if item.name in doubtful])
                if found:
                    self._store.sync()  # whoever inserted them may not have come to that
                self.duplicates += len(found)
                items = [item for item in items if item.name not in found]
            if items:
                before, doubtful = doubtful, {item.name for item in items if item.look_up}  # if the outcome is unknown
                started = time.monotonic()
                try:
                    self._store.insert_readings(build_block(day, items))
                except StoreBusy:
                    doubtful = before
                    raise
                self.insert_s += time.monotonic() - started
                self.inserts += 1

        everything = [item.name for item in items if item.look_up]
        self._until_done(attempt)
        self.batches += len(items)
        self.readings += sum(len(item.values) for item in items)
        for name in everything:
            self._committed[name] = None
        while len(self._committed) > REMEMBERED_BATCHES:
            self._committed.popitem(last=False)

    def _reject(self, group: _Group) -> None:
        """Puts poison among the rejected, within each client's daily quota; beyond it stays unacknowledged."""
        rows: list[Rejected] = []
        for row, acked in group.poison:
            key = (row.client_id, row.day)
            if key not in self._quota:
                self._quota[key] = self._until_done(lambda row=row: self._store.rejected_bytes(row.client_id, row.day))  # type: ignore[misc]
            if self._quota[key] + len(row.payload) > self._settings.reject_quota:
                if key not in self._over_quota:
                    self._over_quota.add(key)
                    log.error("client %d: today's quota for rejected messages is used up; nothing more is kept nor"
                              " acknowledged: %s", row.client_id, row.reason)  # fmt: skip
                self.over_quota += 1
                continue
            self._quota[key] += len(row.payload)
            log.warning(
                "client %d: rejected %d bytes on %s: %s", row.client_id, len(row.payload), row.topic, row.reason
            )
            rows.append(row)
            if acked:
                group.replies[row.client_id].rejected.append(acked)
        if rows:
            self._until_done(lambda: self._store.reject(rows))
            self.rejected += len(rows)

    def _record(self, group: _Group) -> None:
        """Keeps the clients' accounts, and tells them which are kept."""
        streams: list[tuple[int, Produced, int]] = []
        named: dict[int, set[int]] = {}
        now = time.time_ns() // 1000
        dropped: list[tuple[int, Dropped]] = []
        for client_id, status in group.statuses.items():
            if not status.streams and client_id in self.clients:  # a last will knows nothing but that it is offline
                self.clients[client_id] = replace(self.clients[client_id], online=False)
            else:
                self.clients[client_id] = status
            account = (*status.streams, *status.dropped)
            if account and self._recorded.get(client_id) != account:
                oldest = now - int(status.oldest_unacked_s * 1e6) if status.oldest_unacked_s else 0
                streams += [(client_id, item, oldest if item.first_pending else 0) for item in status.streams]
                dropped += [(client_id, item) for item in status.dropped]
            streams_now = {item.stream for item in status.streams}
            if streams_now and self._named.get(client_id) != streams_now and client_id not in group.remembered:
                named[client_id] = streams_now
        if named:
            # A stream that its client no longer names is in no outbox: if readings of it are not stored, they are lost.
            for client_id, item in self._until_done(lambda: self._store.pending_streams(named)):
                if item.stream not in named[client_id]:
                    streams.append((client_id, item._replace(first_pending=0), 0))
        if streams:
            self._until_done(lambda: self._store.record_streams(streams, now))
        self._named.update(named)
        if dropped:
            self._until_done(lambda: self._store.record_dropped(dropped, now))
        for client_id, status in group.statuses.items():
            self._recorded[client_id] = (*status.streams, *status.dropped)
            # Only what can be forgotten is worth an answer: ended streams and declared losses.
            if len(status.streams) > 1 or status.dropped:
                group.replies[client_id].recorded += status.streams
                group.replies[client_id].dropped += [Range(*item[:3]) for item in status.dropped]

    def _until_done(self, work: Callable[[], T]) -> T:
        """Does it, again and again while the store is away; raises ``Stopped`` when the server is told to stop."""
        pause = 0.1
        since = time.monotonic()
        while True:
            self.progress_at = time.monotonic()
            self.asks_store = True
            try:
                result = work()
            except StoreBusy as error:
                if self._stopping.is_set():
                    raise Stopped from error
                self._stopping.wait(random.uniform(0.005, 0.05))
                continue
            except (StoreUnavailable, StoreError, CredentialError) as error:
                if not self.store_error:
                    log.error(
                        "%s: %s; what belongs there is not acknowledged until it is back", self._store_name, error
                    )
                self.store_error = str(error)
                if self._stopping.is_set():
                    raise Stopped from error
                if time.monotonic() - since > self._settings.pause_after:
                    self._subscriber.set_accepting(False, self._shard)
                self._stopping.wait(pause * random.uniform(0.5, 1.0))
                pause = min(pause * 2, RETRY_MAX_S)
                continue
            finally:
                self.asks_store = False
            if self.store_error:
                log.info("store: is back after %.1f s", time.monotonic() - since)
            self.store_error = ""
            return result


def _parts(items: list[Admitted], max_rows: int) -> list[list[Admitted]]:
    """The items in groups of at most ``max_rows`` readings (or one item)."""
    parts: list[list[Admitted]] = []
    rows = 0
    for item in items:
        rows += len(item.values)
        if not parts or rows > max_rows:
            parts.append([])
            rows = len(item.values)
        parts[-1].append(item)
    return parts
