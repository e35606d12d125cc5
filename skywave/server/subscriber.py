"""From the broker into a bounded inbox, or into one for each shard of the store.

While the inbox is full the socket is not read: the broker queues, and its clients' windows bound what it queues.
When that lasts, the server says that it does not accept, unsubscribes and drops what still arrives: nothing is lost by
that, because a client keeps every reading until it is acknowledged.

With several shards a full inbox is not waited for, so that no shard holds up another one's clients: what arrives for it is
dropped, and the server accepts as long as one of them does.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime

from .. import __version__, config, topics
from ..messages import EARLIEST, Ack, ServerStatus
from ..mqtt import Link, Message, Will
from .store import of_shard

log = logging.getLogger(__name__)

MESSAGE_OVERHEAD = 1024
"""Bytes counted for each held message beside its payload."""


@dataclass(frozen=True, slots=True)
class Received:
    """A message and when it came: ``at`` in seconds of CLOCK_BOOTTIME, which goes on while the machine sleeps."""

    message: Message
    at: float


class Inbox:
    """Received messages, bounded by bytes. One thread puts, one takes."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._items: deque[Received] = deque()
        self._changed = threading.Condition()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: Received, timeout: float) -> bool:
        """False if there is no room within ``timeout`` seconds."""
        size = len(item.message.payload) + MESSAGE_OVERHEAD
        with self._changed:
            if not self._changed.wait_for(lambda: self.bytes + size <= self._max_bytes or not self._items, timeout):
                return False
            self._items.append(item)
            self.bytes += size
            self._changed.notify_all()
        return True

    def wait(self, timeout: float) -> bool:
        """True as soon as there is something to take."""
        with self._changed:
            return self._changed.wait_for(lambda: bool(self._items), timeout)

    def take(self) -> Received | None:
        """The oldest message, None if there is none."""
        with self._changed:
            if not self._items:
                return None
            item = self._items.popleft()
            self.bytes -= len(item.message.payload) + MESSAGE_OVERHEAD
            self._changed.notify_all()
        return item


class Subscriber:
    """The server's connections to its brokers. ``shard_of`` tells the inbox of a client."""

    def __init__(
        self, settings: config.Server, inboxes: Sequence[Inbox], shard_of: Callable[[int], int] = lambda _: 0
    ) -> None:
        self._name = settings.server_name
        self._of_shard = [of_shard(settings.store, number) for number in range(len(inboxes))]
        self._inboxes = inboxes
        self._shard_of = shard_of
        self._accepting = [True] * len(inboxes)
        self._started = self._stopping = False
        self._pause_after = settings.ingest.pause_after
        self._lock = threading.RLock()
        self._status: ServerStatus | None = None
        self.received = 0
        self.dropped = 0
        self.data_at = time.monotonic()
        self.links = [self._link(broker) for broker in settings.mqtt.brokers()]
        self._heard_from: dict[int, Link] = {}  # by client: where its acknowledgements go

    def _link(self, broker: config.Mqtt) -> Link:
        link: Link
        link = Link(
            [broker],
            f"skywave-server-{self._name}",
            [],
            on_up=lambda: self._up(link),
            on_down=lambda why: log.debug("broker: %s", why.reason),
            on_message=lambda message: self._receive(link, message),
            will=Will(topics.server_status(self._name), self._say(False).encode()),
        )
        return link

    @property
    def connected(self) -> bool:
        """True while some broker is connected."""
        return any(link.connected for link in self.links)

    @property
    def accepting(self) -> bool:
        """True while batches of some shard are taken."""
        return any(self._accepting)

    def accepts(self, shard: int) -> bool:
        """True while a shard's batches are taken."""
        return self._accepting[shard]

    def start(self) -> None:
        """Connects, and from then on receives; each shard that is ready calls it."""
        with self._lock:
            if self._started:
                return
            self._started = True
        log.info("accepts batches as soon as a broker is connected")
        for link in self.links:
            link.start()

    def stop(self) -> None:
        """Says that this server is gone and disconnects."""
        self._stopping = True
        for shard in range(len(self._inboxes)):
            self.set_accepting(False, shard)
        for link in self.links:
            link.stop()

    def tick(self) -> None:
        """Publishes the status again when the UTC date has changed."""
        status = self._status
        if status is not None and status.date != utc_today():
            self._publish_status()

    def set_accepting(self, accepting: bool, shard: int = 0) -> None:
        """Starts or stops taking a shard's batches, and tells the clients. Client statuses are always taken."""
        with self._lock:
            if accepting == self._accepting[shard]:
                return
            before = self.accepting
            self._accepting[shard] = accepting
            if not self._stopping:
                log.info("%s batches%s", "accepts" if accepting else "does not accept", self._of_shard[shard])
            if before == self.accepting:
                return
            for link in self.links:
                (link.subscribe if accepting else link.unsubscribe)([topics.ALL_DATA_SHARED])
            self._publish_status()

    def acknowledge(self, client_id: int, ack: Ack) -> None:
        """Sends an acknowledgement, to the broker that brought the client's last message. If it is lost the client sends
        again and hears it then."""
        self._heard_from[client_id].publish(topics.ack(client_id), ack.encode(), qos=0)

    def _say(self, accepting: bool) -> ServerStatus:
        today = utc_today()
        return ServerStatus(accepting and today >= EARLIEST, today, __version__)

    def _publish_status(self) -> None:
        with self._lock:  # several threads: the last to be published must be the last that is true
            self._status = self._say(self.accepting)
            for link in self.links:
                link.publish(topics.server_status(self._name), self._status.encode(), retain=True)

    def _up(self, link: Link) -> None:
        with self._lock:
            link.subscribe([topics.ALL_CLIENT_STATUS, *([topics.ALL_DATA_SHARED] if self.accepting else [])])
        self._publish_status()

    def _receive(self, link: Link, message: Message) -> None:
        self.received += 1
        item = Received(message, boottime())
        who = topics.parse_client(message.topic)
        client_id, kind = who or (0, "")
        if not kind:
            self.data_at = time.monotonic()
        if kind == "status" and not message.payload:
            return  # a client has this broker forget it, because it moves on to another one
        if message.retained and self._heard_from.get(client_id, link) is not link:
            return  # what a broker remembers of a client that has moved on to another one
        self._heard_from[client_id] = link
        shard = self._shard_of(client_id)
        alone = len(self._inboxes) == 1
        if self._inboxes[shard].put(item, self._pause_after if alone and self.accepting else 0.0):
            return
        self.dropped += 1
        if alone:
            self.set_accepting(False)


def boottime() -> float:
    """Seconds since the boot, sleep included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def utc_today() -> date:
    """Today's date in UTC: the day that this server tells its clients."""
    return datetime.now(UTC).date()
