"""From the brokers into a bounded inbox, or into one for each shard of the store.

While the inbox is full the socket is not read: the broker queues, and its clients' windows bound what it queues.
When that lasts, the server says that it does not accept and drops the batches that still arrive: nothing is lost by that,
because a client keeps every reading until it is acknowledged.

A device that publishes plain JSON keeps nothing, so the broker keeps it: the server has a session there that outlives it,
answers a JSON message (PUBACK) when it is committed, and gets sent again what it has not answered. Batches are answered
when they are read. Beside other servers a session that nobody serves would get its share of the batches all the same, so
there it is kept for a minute; and who does not accept stays subscribed only where no other server does (decision 28).

With several shards a full inbox is not waited for, so that no shard holds up another one's clients: what arrives for it is
dropped, and the server accepts as long as one of them does.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from .. import __version__, config
from ..errors import PoisonError
from ..formats import topics
from ..formats.messages import EARLIEST, Ack, ServerStatus
from ..mqtt.events import Message, Will
from ..mqtt.link import Link
from ..mqtt.properties import RECEIVE_MAXIMUM
from ..process.times import boottime, utc_today
from ..store.shards import shard_suffix
from .admission import is_batch
from .broker import KEPT_S, Broker
from .inbox import Inbox, Received

log = logging.getLogger(__name__)


class Subscriber:
    """The server's connections to its brokers. ``shard_of`` tells the inbox of a client."""

    def __init__(
        self, settings: config.Server, inboxes: Sequence[Inbox], shard_of: Callable[[int], int] = lambda _: 0
    ) -> None:
        self._settings = settings
        self._inboxes = inboxes
        self._shard_of = shard_of
        self._accepting = [True] * len(inboxes)
        self._started = self._stopping = False
        self._lock = threading.RLock()
        self._status: ServerStatus | None = None
        self.received = 0
        self.dropped = 0
        self.foreign_lost = 0
        self.data_at = time.monotonic()
        self._brokers = {link: Broker(link) for link in map(self._link, settings.mqtt.brokers())}
        self._heard_from: dict[int, Link] = {}  # by client: where its acknowledgements go

    def _link(self, broker: config.Mqtt) -> Link:
        link: Link
        link = Link(
            [broker],
            f"skywave-server-{self._settings.server_name}",
            [],
            on_up=lambda: self._up(self._brokers[link]),
            on_down=lambda why: log.debug("broker: %s", why.reason),
            on_message=lambda message: self._hear(self._brokers[link], message),
            will=Will(topics.server_status(self._settings.server_name), self._say(False).encode()),
            session_expiry=KEPT_S,
        )
        return link

    @property
    def links(self) -> list[Link]:
        """The connection to each broker, in the order of the settings."""
        return list(self._brokers)

    @property
    def connected(self) -> bool:
        """True while some broker is connected."""
        return any(link.connected for link in self._brokers)

    @property
    def accepting(self) -> bool:
        """True while batches of some shard are accepted."""
        return any(self._accepting)

    @property
    def broker_dropped(self) -> int:
        """Messages that the brokers say they dropped since their start, whomever they were for."""
        return sum(broker.dropped for broker in self._brokers.values())

    def accepts(self, shard: int) -> bool:
        """True while a shard's batches are accepted."""
        return self._accepting[shard]

    def start(self) -> None:
        """Connects, and from then on receives; each shard that is ready calls it."""
        with self._lock:
            if self._started:
                return
            self._started = True
        log.info("accepts batches as soon as a broker is connected")
        for link in self._brokers:
            link.start()

    def stop(self) -> None:
        """Says that this server is gone and disconnects. The brokers keep JSON for it, unless another server takes that."""
        self._stopping = True
        for shard in range(len(self._inboxes)):
            self.set_accepting(False, shard)
        for broker in self._brokers.values():
            broker.link.stop(broker.kept_s if broker.subscribed else KEPT_S)

    def tick(self) -> None:
        """Publishes the status again when the UTC date has changed; gets what there was no room for, when there is."""
        status = self._status
        if status is not None and status.date != utc_today():
            self._publish_status()
        if self.accepting and not any(map(len, self._inboxes)):
            for broker in self._brokers.values():
                broker.ask_again()

    def set_accepting(self, accepting: bool, shard: int = 0) -> None:
        """Starts or stops accepting a shard's batches, and tells the clients. Client statuses are always accepted."""
        with self._lock:
            if accepting == self._accepting[shard]:
                return
            before = self.accepting
            self._accepting[shard] = accepting
            if not self._stopping:
                which = shard_suffix(self._settings.store, shard)
                log.info("%s batches%s", "accepts" if accepting else "does not accept", which)
            if before == self.accepting:
                return
            for broker in self._brokers.values():
                self._subscribe(broker)
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
            for broker in self._brokers.values():
                broker.link.publish(
                    topics.server_status(self._settings.server_name),
                    self._status.encode(),
                    retain=True,
                    properties=[("connection", broker.marker)],
                )

    def _subscribe(self, broker: Broker) -> None:
        """Subscribes what devices and clients publish, or ends it where another server takes that."""
        wanted = self.accepting or not broker.others_accept
        if wanted != broker.subscribed:
            broker.subscribed = wanted
            if wanted:
                broker.link.subscribe(topics.ALL_DATA_SHARED, retain_as_published=True)
            else:
                broker.link.unsubscribe(topics.ALL_DATA_SHARED)

    def _up(self, broker: Broker) -> None:
        with self._lock:
            if not broker.came_up():
                log.warning(
                    "broker %s: kept nothing for this server; what devices published as plain JSON meanwhile is lost",
                    broker.link.address,
                )
            # QoS 0, so that nothing of them is kept while this server is away: they come often, and are retained.
            broker.link.subscribe([topics.ALL_CLIENT_STATUS, topics.BROKER_DROPPED], qos=0)
            broker.link.subscribe([topics.ALL_SERVER_STATUS])
            self._subscribe(broker)
        self._publish_status()

    # -- what a broker sends -----------------------------------------------------------------------------------------

    def _hear(self, broker: Broker, message: Message) -> None:
        if message.topic == topics.BROKER_DROPPED:
            self._broker_dropped(broker, message)
        elif name := topics.parse_server(message.topic):
            broker.link.acknowledge(message.packet_id)
            if name == self._settings.server_name:
                broker.caught_up |= (message.properties or {}).get("connection") == broker.marker
            else:
                self._other_server(broker, name, message)
        else:
            self._receive(broker, message)

    def _broker_dropped(self, broker: Broker, message: Message) -> None:
        number = int(message.payload) if message.payload[:20].isdigit() else 0
        if number > broker.dropped:
            log.warning(
                "broker %s: has dropped %d messages since its start, because a queue was full; plain JSON among"
                " them is lost",
                broker.link.address,
                number,
            )
        broker.dropped = number

    def _other_server(self, broker: Broker, name: str, message: Message) -> None:
        """Takes note of another server that this broker has, or had until somebody cleared its status."""
        try:
            accepting = bool(message.payload) and ServerStatus.decode(message.payload).accepting
        except PoisonError as error:
            log.warning("server %.100r: %.200s", name, error)
            return
        with self._lock:
            others = broker.others | {name: accepting}
            if not message.payload:
                del others[name]
            broker.others = others
            self._subscribe(broker)
            if broker.kept_s != broker.link.session_expiry:
                log.info(
                    "broker %s: keeps plain JSON for %d s while this server is away%s",
                    broker.link.address,
                    broker.kept_s,
                    f", because there is also {', '.join(sorted(others))}" if others else "",
                )
                broker.link.reconnect(broker.kept_s)

    def _receive(self, broker: Broker, message: Message) -> None:
        link = broker.link
        self.received += 1
        who = topics.parse_client(message.topic)
        client_id, kind = who or (0, "")
        if not kind:
            self.data_at = time.monotonic()
        if kind == "status" and not message.payload:
            return  # a client has this broker forget it, because it moves on to another one
        if kind == "status" and message.retained and self._heard_from.get(client_id, link) is not link:
            return  # what a broker remembers of a client that has moved on to another one
        self._heard_from[client_id] = link
        if kind or is_batch(message):
            link.acknowledge(message.packet_id)
            if not broker.caught_up:
                message = replace(message, dup=True)  # it waited here, and was perhaps sent again and stored meanwhile
            self._put(Received(message, boottime(), client_id))
        else:
            self._receive_foreign(broker, Received(message, boottime(), client_id, broker.answer))

    def _receive_foreign(self, broker: Broker, item: Received) -> None:
        """Plain JSON: the broker has it until it is committed, and sends it again if there is no room for it now."""
        if not broker.hold(item):
            return
        alone = len(self._inboxes) == 1
        crowd = not alone and broker.unanswered > RECEIVE_MAXIMUM // 2
        if not crowd and self._put(item):
            return
        if item.message.packet_id and alone:
            broker.let_go(item)
            broker.lacks = True
            return
        broker.answer(item)  # it would be one of so many that may be unanswered, and so hold up other shards
        self.foreign_lost += 1
        if self.foreign_lost == 1 or not self.foreign_lost % 1000:
            log.error(
                "client %d: plain JSON is lost, because there is no room for it (%d messages since the start)",
                item.client_id,
                self.foreign_lost,
            )

    def _put(self, item: Received) -> bool:
        shard = self._shard_of(item.client_id)
        inbox = self._inboxes[shard]
        alone = len(self._inboxes) == 1
        if inbox.put(item, self._settings.ingest.pause_after if alone and self.accepting else 0.0):
            return True
        self.dropped += 1
        if alone and inbox.is_share_of(item):
            self.set_accepting(False)
        return False
