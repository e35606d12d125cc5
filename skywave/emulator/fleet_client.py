"""One client of a fleet and the loop that serves them all."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import random
import selectors
import time
from array import array
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.subscribeoptions import SubscribeOptions

from .. import config
from ..client.window import InFlight, Window
from ..errors import PoisonError, SkywaveError
from ..formats import topics
from ..formats.batch import CONTENT_TYPE, Batch, Name, encode
from ..formats.messages import Ack, ClientStatus, Produced, ServerStatus
from ..mqtt.properties import connect_properties, publish_properties
from .ledger import CENTS

TICK_S = 0.02
RECONNECT_MAX_S = 5.0
CONNECTS_AT_ONCE = 100
"""Connections begun in one turn of the loop, so that a storm of reconnects does not hold up those that are there."""
KEEPALIVE_S = 30


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the fleet does. ``rate`` readings a second and client for ``seconds`` (None: until it is stopped), in batches
    of ``size`` over ``keys`` series, on top of ``backlog`` batches that wait from the beginning. About a share of ``outages``
    of the clients is cut off at any time, each for ``outage_s`` on the average."""

    brokers: list[config.Mqtt]
    clients: int = 100
    first_client_id: int = 1
    rate: float = 1000.0
    seconds: float | None = 60.0
    size: int = 500
    keys: int = 3
    backlog: int = 0
    window: int = 16
    outages: float = 0.0
    outage_s: float = 10.0
    seed: int | None = None
    ledger: str = ""
    status_interval: float = 5.0


@dataclass
class FleetFigures:
    """What all clients count."""

    acked: int = 0
    outages: int = 0
    reconnects: int = 0
    delays: deque[float] = field(default_factory=lambda: deque(maxlen=1_000_000))
    first_acks: deque[float] = field(default_factory=lambda: deque(maxlen=1_000_000))
    first_at: float = 0.0
    last_at: float = 0.0


class FleetClient:
    """One client: its connection, what it has produced, and what waits for an acknowledgement."""

    def __init__(self, client_id: int, plan: Plan, loop: Loop, figures: FleetFigures, rng: random.Random) -> None:
        self.client_id, self._plan, self._loop, self._figures = client_id, plan, loop, figures
        self._rng = random.Random(rng.random())
        self._broker = client_id % len(plan.brokers)
        self._window = Window(config.Uplink(max_in_flight=plan.window), self._rng)
        self._servers: dict[str, ServerStatus] = {}
        self._paho: paho.Client | None = None
        self._pause = 0.1
        self._lost_at = 0.0
        self._waits_for_first_ack = True
        self._phase = self._rng.random()
        self.stream = self._rng.randrange(1, 2**63)
        self.begun_at = 0.0
        self.batches = plan.backlog  # produced so far
        self.sent = 0  # batches that were published at least once
        self.cents = 0  # the sum of their values
        self.up = False
        self._last_words: paho.MQTTMessageInfo | None = None
        self.ready: dict[int, tuple[bytes, int]] = {}  # batches that were encoded before the clock started

    # -- readings ----------------------------------------------------------------------------------------------------

    def begin(self, now: float) -> None:
        """From now on it produces; ``now`` is of the monotonic clock, as in all that follow."""
        self.begun_at = self._lost_at = now

    def produce(self, now: float) -> None:
        """Counts the batches that are due by now."""
        if self._plan.rate:
            made = (now - self.begun_at) * self._plan.rate / self._plan.size + self._phase
            self.batches = max(self.batches, self._plan.backlog + int(made))

    def encoded(self, number: int) -> tuple[bytes, int]:
        """Batch ``number``, the same whenever it is asked for, and the sum of its values in hundredths."""
        if (ready := self.ready.get(number)) is not None:
            return ready
        size, keys = self._plan.size, self._plan.keys
        per_key = -(-size // keys)
        codes = np.arange(size, dtype=np.int16) // np.int16(per_key)
        rng = np.random.default_rng((self.client_id, self.stream, number))
        cents = 2000 + 500 * codes.astype(np.int64) + np.rint(rng.normal(0, 20, size)).astype(np.int64)
        rate = self._plan.rate or 1000.0
        begin = int((self._loop.wall_time + number * size / rate) * 1e6)
        created_at = begin + (np.arange(size, dtype=np.int64) % per_key) * int(1e6 * keys / rate)
        name = Name(self.client_id, self.stream, number * size + 1)
        first = number * size % keys if keys > size else 0  # a batch names the series it has readings of, and no others
        names = [f"series-{(first + code) % keys}" for code in range(int(codes[-1]) + 1)]
        columns = array("h", codes.tobytes()), array("q", created_at.tobytes()), array("d", (cents / CENTS).tobytes())
        return encode(name, names, *columns), int(cents.sum())

    def account(self) -> dict[str, int]:
        """A line of the ledger: what was published at least once."""
        readings = self.sent * self._plan.size
        return {"client_id": self.client_id, "stream": self.stream, "readings": readings, "sum": self.cents}

    @property
    def done(self) -> bool:
        """Everything that was produced is acknowledged, and there is a connection to say so."""
        return self.up and self.sent == self.batches and not len(self._window)

    @property
    def heard(self) -> bool:
        """The broker has what was said last, or there is no connection to say it on."""
        return not self.up or self._last_words is None or self._last_words.is_published()

    # -- the connection ----------------------------------------------------------------------------------------------

    def connect(self) -> None:
        """Begins to connect to the next broker."""
        broker = self._plan.brokers[self._broker]
        self._broker = (self._broker + 1) % len(self._plan.brokers)
        self._paho = client = paho.Client(
            CallbackAPIVersion.VERSION2,
            f"skywave-client-{self.client_id}",
            protocol=paho.MQTTv5,
            reconnect_on_failure=False,
        )
        client.max_inflight_messages_set(65535)
        client.will_set(topics.client_status(self.client_id), ClientStatus(False, "fleet").encode(), 1, retain=True)
        client.on_connect, client.on_disconnect, client.on_message = self._connected, self._disconnected, self._received
        client.on_socket_open = lambda _client, _data, sock: self._loop.watch(sock, self)
        client.on_socket_close = lambda _client, _data, sock: self._loop.forget(sock)
        client.on_socket_register_write = lambda _client, _data, sock: self._loop.wants_write(sock, self, True)
        client.on_socket_unregister_write = lambda _client, _data, sock: self._loop.wants_write(sock, self, False)
        try:
            client.connect(broker.host, broker.port, KEEPALIVE_S, clean_start=True, properties=connect_properties())
        except (OSError, ValueError):
            self._try_again()

    def cut(self) -> None:
        """Ends the connection without a word, for a while."""
        self._figures.outages += 1
        seconds = self._rng.expovariate(1 / self._plan.outage_s)
        self._drop(seconds)

    def stop(self) -> None:
        """Says goodbye to the broker."""
        if self.up and self._paho:
            self._paho.disconnect()
            self._paho.loop_write()

    def read(self) -> None:
        """Reads what the socket has."""
        if self._paho and self._paho.loop_read() != paho.MQTT_ERR_SUCCESS:
            self._drop()

    def write(self) -> None:
        """Writes what waits."""
        if self._paho and self._paho.loop_write() != paho.MQTT_ERR_SUCCESS:
            self._drop()

    def keep_alive(self) -> None:
        """Pings where it is time to."""
        if self._paho and self._paho.socket() and self._paho.loop_misc() != paho.MQTT_ERR_SUCCESS:
            self._drop()

    def _drop(self, pause: float | None = None) -> None:
        client, self._paho = self._paho, None
        if client is None:
            return
        if sock := client.socket():
            self._loop.forget(sock)
            with contextlib.suppress(OSError):
                sock.close()
        if self.up:
            self._lost_at = time.monotonic()
            self._figures.reconnects += 1
        self.up, self._waits_for_first_ack = False, True
        self._servers.clear()
        self._try_again(pause)

    def _try_again(self, pause: float | None = None) -> None:
        self._paho = None
        self._pause = min(self._pause * 2, RECONNECT_MAX_S)
        self._loop.at(time.monotonic() + (self._pause * self._rng.uniform(0.5, 1.0) if pause is None else pause), self)

    def _connected(self, client: paho.Client, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        if reason.is_failure:
            self._drop()
            return
        self.up, self._pause = True, 0.1
        wanted = [topics.ack(self.client_id), topics.ALL_SERVER_STATUS]
        client.subscribe([(topic, SubscribeOptions(qos=1)) for topic in wanted])
        self._window.rewind()
        self.say()

    def _disconnected(self, client: paho.Client, *_: Any) -> None:
        if client is self._paho:
            self._drop()

    # -- batches -----------------------------------------------------------------------------------------------------

    def publish(self, now: float) -> None:
        """What is due, and what there is room for, if a server accepts."""
        day = max((status.date for status in self._servers.values() if status.accepting), default=None)
        if not self.up or day is None:
            return
        for entry in self._window.due(now, self._plan.window):
            self._send(entry)
        for _ in range(min(self._window.room(live=True), self.batches - self.sent)):
            number = self.sent
            size = self._plan.size
            payload, cents = self.encoded(number)
            batch = Batch(number, self.stream, number * size + 1, size, 0, day, payload)
            self.sent += 1
            self.cents += cents
            self._figures.first_at = self._figures.first_at or now
            self._send(self._window.add(batch, day, 0, True, now))

    def _send(self, entry: InFlight) -> None:
        assert self._paho
        properties = publish_properties(CONTENT_TYPE, entry.properties())
        self._paho.publish(topics.data(self.client_id), entry.batch.payload, 1, False, properties)

    def say(self, goodbye: bool = False) -> None:
        """Publishes the account."""
        if self.up and self._paho:
            size = self._plan.size
            pending = min((entry.batch.first_seq for entry in self._window), default=0)
            if not pending and self.sent < self.batches:
                pending = self.sent * size + 1
            streams = [Produced(self.stream, self.batches * size, pending)] if self.batches else []
            status = ClientStatus(
                not goodbye, "fleet", "fleet", backlog_readings=(self.batches - self.sent + len(self._window)) * size,
                streams=streams,
            )  # fmt: skip
            self._last_words = self._paho.publish(topics.client_status(self.client_id), status.encode(), 1, True)

    def _received(self, _client: paho.Client, _data: Any, message: paho.MQTTMessage) -> None:
        try:
            if (server := topics.parse_server(message.topic)) is not None:
                if message.payload:
                    self._servers[server] = ServerStatus.decode(bytes(message.payload))
                else:
                    self._servers.pop(server, None)
                return
            ack = Ack.decode(bytes(message.payload))
        except PoisonError as error:
            raise SkywaveError(f"a message on {message.topic} cannot be read: {error}") from error
        now = time.monotonic()
        for item in (*ack.stored, *ack.rejected):
            sent_at = {entry.batch.id: entry.sent_at for entry in self._window if entry.batch.stream == item.stream}
            for batch in self._window.acknowledge(item, now):
                self._figures.acked += batch.count
                self._figures.last_at = now
                self._figures.delays.append(now - sent_at[batch.id])
                if self._waits_for_first_ack:
                    self._figures.first_acks.append(now - self._lost_at)
                    self._waits_for_first_ack = False

    @property
    def resent(self) -> int:
        """Batches that were sent more than once."""
        return self._window.resent


class Loop:
    """Watches the sockets of all clients, and keeps the time of their next attempts to connect."""

    def __init__(self) -> None:
        self.wall_time = time.time()
        self._selector = selectors.DefaultSelector()
        self._attempts: list[tuple[float, int, FleetClient]] = []
        self._order = itertools.count()

    def watch(self, sock: Any, client: FleetClient) -> None:
        """Reads from a socket from now on."""
        self._selector.register(sock, selectors.EVENT_READ, client)

    def forget(self, sock: Any) -> None:
        """Looks no longer at a socket."""
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(sock)

    def wants_write(self, sock: Any, client: FleetClient, wanted: bool) -> None:
        """Tells whether a socket is to be written to."""
        with contextlib.suppress(KeyError, ValueError):
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if wanted else 0)
            self._selector.modify(sock, events, client)

    def at(self, when: float, client: FleetClient) -> None:
        """The client connects then."""
        heapq.heappush(self._attempts, (when, next(self._order), client))

    def turn(self) -> list[FleetClient]:
        """Waits for a moment at most, and serves what is there; returns whose sockets were read."""
        served = []
        for key, events in self._selector.select(TICK_S):
            client: FleetClient = key.data
            served.append(client)
            if events & selectors.EVENT_READ:
                client.read()
            if events & selectors.EVENT_WRITE:
                client.write()
        now = time.monotonic()
        for _ in range(CONNECTS_AT_ONCE):
            if not self._attempts or self._attempts[0][0] > now:
                break
            heapq.heappop(self._attempts)[2].connect()
        return served

    def close(self) -> None:
        """Ends it."""
        self._selector.close()
