"""From the inbox into the store: decode, look up, one INSERT, and only then the acknowledgements.

One thread works on one group of messages at a time, from the first look at a message to its acknowledgement, so what
this server holds is in exactly one place. What makes a batch be stored once:

1. A batch whose name is twice in the group, or was committed lately, is not inserted again.
2. The store is asked for each batch that may have been sent before (``attempt`` or DUP), that was held too long (a frozen
   server thaws), or that was in an INSERT of unknown outcome.
3. Under that the table is a ReplacingMergeTree keyed by the identity, for two servers that insert at the same time.

Acknowledged is what was committed, found committed, or put durably among the rejected. Nobody's messages cost the others
more than a bounded share: of a group's days, of the rejected, of the accounts and of the log (docs/security.md).
"""

from __future__ import annotations

import hashlib
import json
import logging
import random
import threading
import time
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from typing import NamedTuple, TypeVar

from .. import config
from ..errors import CredentialError, PoisonError, StoreBusy, StoreError, StoreUnavailable
from ..formats import topics
from ..formats.batch import Name
from ..formats.messages import EARLIEST, MAX_TOLD, Ack, ClientStatus, Dropped, Produced, Range, merge
from ..mqtt.events import Message
from ..process.times import boottime, utc_today
from ..process.visible import visible
from ..store.columns import Rejected
from ..store.shards import of_shard
from ..store.store import Store
from .admission import MAX_INSERT_BYTES, Admission, Admitted, build_block, is_batch, name_and_count
from .foreign import BadReading
from .subscriber import Inbox, Received, Subscriber

log = logging.getLogger(__name__)
T = TypeVar("T")
H = TypeVar("H", bound=Hashable)

HELD_TOO_LONG_S = 30.0
REMEMBERED_BATCHES = 200_000
RETRY_MAX_S = 5.0
NAP_S = 0.02
"""While a group gathers, messages do not wake the thread one by one: that costs as much as to decode them."""
DAYS_IN_A_GROUP = 3
"""Of one client: each day is an INSERT, for which everybody waits. Two lanes at midnight need three."""
STREAMS_A_DAY = 1000
"""Most streams of a client whose accounts are kept in a day; a client begins one at each start."""
DROPS_A_DAY = 20_000
"""Most declared losses of a client that are kept in a day."""
LINES_A_DAY = 100
"""Most lines in the log that a client's messages bring about in a day."""
MAX_REASON = 500
MAX_TOPIC = 200
MAX_NOTES = 4000
NAMING = ("stream", "first_seq", "count", "day", "since", "attempt")


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
    rows: int = 0
    bytes: int = 0
    received: list[Received] = field(default_factory=list)
    days: defaultdict[int, set[str]] = field(default_factory=lambda: defaultdict(set))
    admitted: list[Admitted] = field(default_factory=list)
    poison: list[tuple[Rejected, list[Range]]] = field(default_factory=list)
    statuses: dict[int, ClientStatus] = field(default_factory=dict)
    remembered: set[int] = field(default_factory=set)
    """Clients whose status is one that the broker kept: perhaps not their last, if there are several brokers."""
    replies: defaultdict[int, _Reply] = field(default_factory=lambda: defaultdict(_Reply))

    def takes(self, received: Received) -> bool:
        """False if a batch is of one day too many of its client: it waits for the next group."""
        if not is_batch(received.message):
            return True
        day, days = (received.message.properties or {}).get("day", ""), self.days[received.client_id]
        if day not in days and len(days) == DAYS_IN_A_GROUP:
            return False
        days.add(day)
        return True

    def add(self, admitted: Sequence[Admitted]) -> None:
        """Takes readings that may be stored."""
        self.admitted += admitted
        self.rows += sum(len(item.values) for item in admitted)
        self.bytes += sum(item.size for item in admitted)

    def add_poison(self, row: Rejected, acked: list[Range]) -> None:
        """Takes a message, or elements of one, that is none; ``acked`` is what its sender knows it by."""
        self.poison.append((row, acked))
        self.bytes += row.size


class _Account(NamedTuple):
    """What is recorded of a client's status."""

    streams: list[Produced]
    dropped: list[Dropped]


@dataclass(slots=True)
class _Usage:
    """What a client has used of what it may use in a day."""

    over_quota: bool = False
    streams: set[int] = field(default_factory=set)
    drops: set[Dropped] = field(default_factory=set)
    lines: int = 0


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
        self._recorded: dict[int, _Account] = {}
        self._named: dict[int, set[int]] = {}
        self._used_on = date.min
        self._used: defaultdict[int, _Usage] = defaultdict(_Usage)
        self._quota: dict[int, int] = {}  # bytes of poison kept of a client on that day
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
        if today != self._used_on:
            self._used_on = today
            self._used.clear()
            self._quota.clear()
        group = _Group(today)
        later: list[Received] = []
        until = time.monotonic() + self._settings.linger
        while group.rows < self._settings.max_rows and group.bytes < MAX_INSERT_BYTES:
            received = self._inbox.take()
            if received is None:
                left = until - time.monotonic()
                if left <= 0 or self._stopping.wait(min(NAP_S, left)):
                    break
                continue
            if group.takes(received):
                self._admit(received, group)
            else:
                later.append(received)
            if time.monotonic() >= until:
                break
        self._inbox.put_back(later)
        return group

    def _admit(self, received: Received, group: _Group) -> None:
        """Sorts one message into the group."""
        group.received.append(received)
        message = received.message
        who = topics.parse_client(message.topic)
        client_id, kind = who or (0, "")
        try:
            if kind == "status":
                group.statuses[client_id] = ClientStatus.decode(message.payload)
                (group.remembered.add if message.retained else group.remembered.discard)(client_id)
                return
            if who is None:
                raise PoisonError("came on a topic that is no client's: a client's number is 1 to 4294967295, without zeros"
                                  " before it")  # fmt: skip
            admitted, bad = self._admission.admit(client_id, message, group.today, received.at)
        except Exception as error:  # one message must never end the loop, whatever is wrong with it, or with us
            if not isinstance(error, PoisonError):
                log.exception("a message on %s cannot be read", visible(message.topic, MAX_REASON))
            if kind == "status":
                self._tell(client_id, f"its status is not taken: {error}")
            else:
                self._poison(client_id, message, str(error), message.payload, group)
            return
        if bad:
            self._poison_elements(client_id, message, bad, sum(len(item.values) for item in admitted), group)
        group.add(admitted)
        self.foreign_readings += sum(len(item.values) for item in admitted if item.foreign)

    def _poison(self, client_id: int, message: Message, reason: str, payload: bytes, group: _Group) -> None:
        try:
            name, count = name_and_count(client_id, message.properties or {})
            acked = [Range(name.stream, name.first_seq, name.first_seq + count - 1)]
        except PoisonError:
            name, count, acked = Name(client_id, 0, 0), 0, []
        group.add_poison(_rejected(name, count, message, reason, payload, group.today), acked)

    def _poison_elements(
        self, client_id: int, message: Message, bad: Sequence[BadReading], good: int, group: _Group
    ) -> None:
        """The elements of one JSON message that are no readings: one row, and an answer to each that has an id."""
        reason, payload = bad[0].reason, message.payload
        if len(bad) > 1:
            reason = f"{len(bad)} of {len(bad) + good} elements are no readings; the first: {reason}"
        if good:  # the others are stored: a replay must not store them again
            payload = f"[{', '.join(element.text for element in bad)}]".encode()
        acked = [Range(0, element.id, element.id) for element in bad if element.id]
        group.add_poison(_rejected(Name(client_id, 0, 0), 0, message, reason, payload, group.today), acked)

    def _tell(self, client_id: int, what: str) -> None:
        """A line in the log about a message of a client, unless it had its share of lines today."""
        usage = self._used[client_id]
        usage.lines += 1
        if usage.lines <= LINES_A_DAY:
            log.warning("client %d: %s", client_id, visible(what, MAX_REASON))
        if usage.lines == LINES_A_DAY:
            log.warning("client %d: nothing more is said of its messages today; see: skywave rejected list", client_id)

    # -- from a group to acknowledgements ----------------------------------------------------------------------------

    def _work(self, group: _Group) -> None:
        self._reject(group)
        fresh = self._once(group.admitted)
        self._commit_all([item for item in fresh if not item.retained])
        self._commit_all(self._unknown([item for item in fresh if item.retained]))  # they may be among the former
        for item in group.admitted:
            group.replies[item.name.client_id].stored += item.acked
            self.delivered[item.name.client_id] += len(item.values)
        self._record(group)
        today = max(group.today, utc_today())
        for client_id, reply in group.replies.items():
            ack = Ack(self._name, today, merge(reply.stored), merge(reply.rejected), reply.recorded, reply.dropped)
            if any((ack.stored, ack.rejected, ack.recorded, ack.dropped)):  # a device without ids waits for none
                self._subscriber.acknowledge(client_id, ack)
        for received in group.received:
            if received.settle:
                received.settle(received)

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

    def _unknown(self, items: Sequence[Admitted]) -> list[Admitted]:
        """What brokers remember without the readings that are stored: by what they say, because they came under another
        name, and perhaps on another day, when they were new."""
        if not items:
            return []
        known = self._until_done(lambda: self._store.known_readings([r for item in items for r in item.readings()]))
        fresh = []
        for item in items:
            new = [number for number, reading in enumerate(item.readings()) if reading not in known]
            known.update(item.readings())
            self.duplicates += not new
            if new:
                fresh.append(item.only(new))
        return fresh

    def _commit_all(self, items: Sequence[Admitted]) -> None:
        by_day: defaultdict[date, list[Admitted]] = defaultdict(list)
        for item in items:
            by_day[item.day].append(item)
        for day in sorted(by_day):
            for part in _parts(by_day[day], self._settings.max_rows):
                self._commit(day, part)

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
            usage = self._used[row.client_id]
            if row.client_id not in self._quota:
                self._quota[row.client_id] = self._until_done(
                    lambda row=row: self._store.rejected_bytes(row.client_id, row.day)  # type: ignore[misc]
                )
            if self._quota[row.client_id] + row.size > self._settings.reject_quota:
                if not usage.over_quota:
                    usage.over_quota = True
                    log.error("client %d: today's quota for rejected messages is used up; nothing more is kept nor"
                              " acknowledged: %s", row.client_id, visible(row.reason, MAX_REASON))  # fmt: skip
                self.over_quota += 1
                continue
            self._quota[row.client_id] += row.size
            self._tell(row.client_id, f"rejected {len(row.payload)} bytes on {row.topic}: {row.reason}")
            rows.append(row)
            group.replies[row.client_id].rejected += acked
        if rows:
            self._until_done(lambda: self._store.reject(rows))
            self.rejected += len(rows)

    def _record(self, group: _Group) -> None:
        """Keeps the clients' accounts, and tells them which are kept."""
        streams: list[tuple[int, Produced, int]] = []
        named: dict[int, set[int]] = {}
        now = time.time_ns() // 1000
        dropped: list[tuple[int, Dropped]] = []
        accounts: dict[int, _Account] = {}
        for client_id, status in group.statuses.items():
            if not status.streams and client_id in self.clients:  # a last will knows nothing but that it is offline
                self.clients[client_id] = replace(self.clients[client_id], online=False)
            else:
                self.clients[client_id] = status
            accounts[client_id] = account = self._within_limits(client_id, status)
            if any(account) and self._recorded.get(client_id) != account:
                oldest = now - int(status.oldest_unacked_s * 1e6) if status.oldest_unacked_s else 0
                streams += [(client_id, item, oldest if item.first_pending else 0) for item in account.streams]
                dropped += [(client_id, item) for item in account.dropped]
            streams_now = {item.stream for item in status.streams}
            whole = 0 < len(streams_now) < MAX_TOLD
            if whole and self._named.get(client_id) != streams_now and client_id not in group.remembered:
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
        for client_id, account in accounts.items():
            self._recorded[client_id] = account
            # Only what can be forgotten is worth an answer: ended streams and declared losses.
            if len(account.streams) > 1 or account.dropped:
                group.replies[client_id].recorded += account.streams
                group.replies[client_id].dropped += [Range(*item[:3]) for item in account.dropped]

    def _within_limits(self, client_id: int, status: ClientStatus) -> _Account:
        """The account in a status, with only so many streams and declared losses as are recorded of a client in a day."""
        usage = self._used[client_id]
        # The present stream comes last, and matters most.
        named = _within([item.stream for item in reversed(status.streams)], usage.streams, STREAMS_A_DAY)
        streams = [item for item in status.streams if item.stream in named]
        dropped = _within(status.dropped, usage.drops, DROPS_A_DAY)
        if len(streams) < len(status.streams) or len(dropped) < len(status.dropped):
            self._tell(
                client_id,
                f"its account is too long: {len(status.streams)} streams, {len(status.dropped)} declared losses; "
                f"recorded are {STREAMS_A_DAY} and {DROPS_A_DAY} a day, the rest tomorrow",
            )
        return _Account(streams, list(dropped))

    def _until_done(self, work: Callable[[], T]) -> T:
        """Does it, again and again while the store is away; raises ``Stopped`` when the server is told to stop."""
        pause = 0.1
        since = time.monotonic()
        while True:
            self.progress_at = time.monotonic()
            self.asks_store = True
            try:
                result = work()
            except (StoreUnavailable, StoreError, CredentialError) as error:
                away_s = time.monotonic() - since
                if isinstance(error, StoreBusy) and away_s < self._settings.pause_after:  # its turn comes soon
                    if self._stopping.is_set():
                        raise Stopped from error
                    self._stopping.wait(random.uniform(0.005, 0.05))
                    continue
                if not self.store_error:
                    log.error(
                        "%s: %s; what belongs there is not acknowledged until it is back. %s",
                        self._store_name, error, error.hint,
                    )  # fmt: skip
                self.store_error = str(error)
                if self._stopping.is_set():
                    raise Stopped from error
                if away_s > self._settings.pause_after:
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
    """The items in groups of at most ``max_rows`` readings and ``MAX_INSERT_BYTES`` (or one item)."""
    parts: list[list[Admitted]] = []
    rows = size = 0
    for item in items:
        rows += len(item.values)
        size += item.size
        if not parts or rows > max_rows or size > MAX_INSERT_BYTES:
            parts.append([])
            rows, size = len(item.values), item.size
        parts[-1].append(item)
    return parts


def _within(items: Sequence[H], known: set[H], most: int) -> dict[H, None]:
    """Those of ``items`` that are ``known``, and as many others, which become known, as make it ``most``."""
    taken: dict[H, None] = {}
    for item in items:
        if item in known or len(known) < most:
            known.add(item)
            taken[item] = None
    return taken


def _rejected(name: Name, count: int, message: Message, reason: str, payload: bytes, day: date) -> Rejected:
    """A row of the rejected; what a stranger wrote beside the payload is cut where it grows too long."""
    notes = {"content_type": message.content_type, **(message.properties or {})}
    if sum(map(len, notes)) + sum(map(len, notes.values())) > MAX_NOTES:
        notes = {key: notes[key][:100] for key in ("content_type", *NAMING) if key in notes}
    return Rejected(
        *name, count, hashlib.sha256(payload).hexdigest(), message.topic[:MAX_TOPIC], reason[:MAX_REASON],
        json.dumps(notes), payload, time.time_ns() // 1000, day,
    )  # fmt: skip
