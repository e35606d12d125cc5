"""One client of a fleet and the loop that serves them all."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import random
import selectors
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .. import config
from ..client.window import InFlight, Window
from ..errors import PoisonError, SkywaveError
from ..formats import topics
from ..formats.batch import CONTENT_TYPE
from ..formats.messages import Ack, ClientStatus, Produced, ServerStatus
from ..mqtt.events import Will
from ..mqtt.polled import PolledConnection
from ..process.backoff import Backoff
from .plan import Plan
from .production import Production

TICK_S = 0.02
RECONNECT_FIRST_S, RECONNECT_MAX_S = 0.2, 5.0
CONNECTS_AT_ONCE = 100
"""Connections begun in one turn of the loop, so that a storm of reconnects does not hold up those that are there."""


@dataclass
class FleetFigures:
    """What all clients count: readings acknowledged, connections cut on purpose, and all that ended; the seconds from publish
    to acknowledgement, and from the loss of a connection (or the start) to the first acknowledgement after; when the first
    batch was published and the last one acknowledged, by the monotonic clock."""

    acked: int = 0
    outages: int = 0
    reconnects: int = 0
    delays: deque[float] = field(default_factory=lambda: deque(maxlen=1_000_000))
    first_acks: deque[float] = field(default_factory=lambda: deque(maxlen=1_000_000))
    first_at: float = 0.0
    last_at: float = 0.0


class FleetClient:
    """One client: its connection, its window, and what it produces. ``now`` is of the monotonic clock."""

    def __init__(self, client_id: int, plan: Plan, loop: Loop, figures: FleetFigures, rng: random.Random) -> None:
        self._client_id, self._plan, self._loop, self._figures = client_id, plan, loop, figures
        self._rng = random.Random(rng.random())
        self._window = Window(config.Uplink(max_in_flight=plan.window), self._rng)
        self.production = Production(client_id, plan, self._rng, loop.wall_time)
        self.up = False
        self._connection: PolledConnection | None = None
        self._broker = client_id % len(plan.brokers)
        self._backoff = Backoff(RECONNECT_FIRST_S, RECONNECT_MAX_S)
        self._servers: dict[str, ServerStatus] = {}
        self._waits_since: float | None = 0.0  # for the first acknowledgement; None: it has come
        self._last_words: Callable[[], bool] = lambda: True  # whether the broker has what was said last

    @property
    def done(self) -> bool:
        """Everything that was produced is acknowledged, and there is a connection to say so."""
        return self.up and not self.production.waiting and not len(self._window)

    @property
    def heard(self) -> bool:
        """The broker has what was said last, or there is no connection to say it on."""
        return not self.up or self._last_words()

    @property
    def resent(self) -> int:
        """Batches that were sent more than once."""
        return self._window.resent

    def begin(self, now: float) -> None:
        """From now on it produces."""
        self.production.begin(now)
        self._waits_since = now

    # -- the connection ----------------------------------------------------------------------------------------------

    def connect(self) -> None:
        """Begins to connect to the next broker."""
        broker = self._plan.brokers[self._broker]
        self._broker = (self._broker + 1) % len(self._plan.brokers)
        will = Will(topics.client_status(self._client_id), ClientStatus(False, "fleet").encode())
        try:
            self._connection = PolledConnection(
                broker,
                f"skywave-client-{self._client_id}",
                will,
                lambda sock, events: self._loop.watch(sock, events, self),
                self._came_up,
                self._drop,
                self._received,
            )
        except (OSError, ValueError):
            self._try_again()

    def cut(self) -> None:
        """Ends the connection without a word, for a while."""
        self._figures.outages += 1
        self._drop(self._rng.expovariate(1 / self._plan.outage_s))

    def stop(self) -> None:
        """Says goodbye to the broker."""
        if self.up and self._connection:
            self._connection.stop()

    def read(self) -> None:
        """Reads what the socket has."""
        if self._connection and not self._connection.read():
            self._drop()

    def write(self) -> None:
        """Writes what waits."""
        if self._connection and not self._connection.write():
            self._drop()

    def keep_alive(self) -> None:
        """Pings where it is time to."""
        if self._connection and not self._connection.keep_alive():
            self._drop()

    def _drop(self, pause: float | None = None) -> None:
        """There is no connection any more; the next attempt is after the pause, in seconds."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        connection.cut()
        if self.up:
            self._waits_since = time.monotonic()
            self._figures.reconnects += 1
        self.up = False
        self._servers.clear()
        self._try_again(pause)

    def _try_again(self, pause: float | None = None) -> None:
        self._loop.at(time.monotonic() + (self._backoff.next() if pause is None else pause), self)

    def _came_up(self) -> None:
        assert self._connection
        self.up = True
        self._backoff.reset()
        self._connection.subscribe([topics.ack(self._client_id), topics.ALL_SERVER_STATUS])
        self._window.rewind()
        self.say()

    # -- batches -----------------------------------------------------------------------------------------------------

    def publish(self, now: float) -> None:
        """What is due, and what there is room for, if a server accepts."""
        day = max((status.date for status in self._servers.values() if status.accepting), default=None)
        if not self.up or day is None:
            return
        for entry in self._window.due(now, self._plan.window):
            self._send(entry)
        for _ in range(min(self._window.room(live=True), self.production.waiting)):
            batch = self.production.take(day)
            self._figures.first_at = self._figures.first_at or now
            self._send(self._window.add(batch, day, 0, True, now))

    def _send(self, entry: InFlight) -> None:
        if self._connection:
            self._connection.publish(
                topics.data(self._client_id),
                entry.batch.payload,
                content_type=CONTENT_TYPE,
                properties=entry.properties(),
            )

    def say(self, goodbye: bool = False) -> None:
        """Publishes the account."""
        if not (self.up and self._connection):
            return
        size, produced = self._plan.size, self.production
        pending = min((entry.batch.first_seq for entry in self._window), default=0)
        if not pending and produced.waiting:
            pending = produced.taken * size + 1
        status = ClientStatus(
            not goodbye,
            "fleet",
            "fleet",
            backlog_readings=(produced.waiting + len(self._window)) * size,
            streams=[Produced(produced.stream, produced.batches * size, pending)] if produced.batches else [],
        )
        self._last_words = self._connection.publish(topics.client_status(self._client_id), status.encode(), retain=True)

    def _received(self, topic: str, payload: bytes) -> None:
        try:
            if (server := topics.parse_server(topic)) is None:
                self._acknowledged(Ack.decode(payload))
            elif payload:
                self._servers[server] = ServerStatus.decode(payload)
            else:
                self._servers.pop(server, None)
        except PoisonError as error:
            raise SkywaveError(f"a message on {topic} cannot be read: {error}") from error

    def _acknowledged(self, ack: Ack) -> None:
        now = time.monotonic()
        for item in (*ack.stored, *ack.rejected):
            sent_at = {entry.batch.id: entry.sent_at for entry in self._window if entry.batch.stream == item.stream}
            for batch in self._window.acknowledge(item, now):
                self._figures.acked += batch.count
                self._figures.last_at = now
                self._figures.delays.append(now - sent_at[batch.id])
                if self._waits_since is not None:
                    self._figures.first_acks.append(now - self._waits_since)
                    self._waits_since = None


class Loop:
    """Watches the sockets of all clients, and keeps the time of their next attempts to connect."""

    def __init__(self) -> None:
        self.wall_time = time.time()
        self._selector = selectors.DefaultSelector()
        self._attempts: list[tuple[float, int, FleetClient]] = []
        self._order = itertools.count()

    def watch(self, sock: Any, events: int, client: FleetClient) -> None:
        """The client waits for these events of its socket (see ``selectors``); 0: for none any more."""
        with contextlib.suppress(KeyError, ValueError):
            if not events:
                self._selector.unregister(sock)
            elif sock in self._selector.get_map():
                self._selector.modify(sock, events, client)
            else:
                self._selector.register(sock, events, client)

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
