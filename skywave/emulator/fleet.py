"""A fleet of clients in one process, to load a server: speaks the batch and ack protocol, without sensors or outboxes.

Each client has a stream of its own. Batches are encoded before the clock starts, so that what is measured is the
broker, the server and the store. At most ``window`` batches a client are unacknowledged; what is not acknowledged in
time is sent again, marked, as a real client does.
"""

from __future__ import annotations

import random
import threading
import time
from array import array
from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date

from .. import config, topics
from ..batch import CONTENT_TYPE, Name, encode
from ..errors import PoisonError, SkywaveError
from ..messages import Ack, ClientStatus, Produced, ServerStatus
from ..mqtt import Link, Message

KEYS = ("temperature", "pressure", "height")
RESEND_S = 10.0
READINGS_PER_S = 1000
"""Rate that the readings' timestamps pretend."""


@dataclass(slots=True)
class _Prepared:
    first_seq: int
    payload: bytes


@dataclass(slots=True)
class _FleetClient:
    client_id: int
    stream: int
    batches: deque[_Prepared]
    in_flight: OrderedDict[int, tuple[_Prepared, float]] = field(default_factory=OrderedDict)
    produced: int = 0


@dataclass
class FleetResult:
    """``acked_per_s`` counts from the first publish to the last acknowledgement."""

    clients: int
    readings: int
    acked: int
    seconds: float
    acked_per_s: float
    resent: int
    delay_p50_s: float
    delay_p99_s: float


class Fleet:
    """``clients`` clients that send ``batches`` batches of ``size`` readings each, over ``connections`` connections.

    A window as large as ``batches`` publishes without waiting for acknowledgements, for comparison.
    """

    def __init__(
        self,
        mqtt: config.Mqtt,
        clients: int,
        batches: int,
        size: int,
        window: int = 16,
        connections: int = 4,
        seed: int | None = None,
        first_client_id: int = 1,
        compression: str = "lz4",
    ) -> None:
        self._size, self._window = size, window
        self._rng = rng = random.Random(seed)
        self._batches, self._compression = batches, compression
        self._clients = {
            client_id: _FleetClient(client_id, rng.randrange(1, 2**63), deque())
            for client_id in range(first_client_id, first_client_id + clients)
        }
        self._links = [
            Link(
                [mqtt],
                f"skywave-fleet-{first_client_id}-{number}",
                [topics.ALL_SERVER_STATUS, *(topics.ack(c) for c in list(self._clients)[number::connections])],
                on_up=lambda: None,
                on_down=lambda _: None,
                on_message=self._receive,
            )
            for number in range(min(connections, clients))
        ]
        self._acks: deque[tuple[int, Ack]] = deque()
        self._wake = threading.Event()
        self._day: date | None = None
        self._delays: list[float] = []
        self.acked = 0
        self.resent = 0

    def prepare(self) -> None:
        """Encodes every batch."""
        started = time.time_ns() // 1000
        for client in self._clients.values():
            level = [self._rng.gauss(20.0, 5.0) for _ in KEYS]
            for number in range(self._batches):
                client.batches.append(self._encode(client, number, started, level))

    def _encode(self, client: _FleetClient, number: int, started: int, level: list[float]) -> _Prepared:
        first, size, rng = number * self._size + 1, self._size, self._rng
        codes = array("h", [position * len(KEYS) // size for position in range(size)])
        step = 1_000_000 * len(KEYS) // READINGS_PER_S
        each = -(-size // len(KEYS))
        begin = started + number * each * step
        created_at = array("q", [begin + position % each * step + rng.randrange(200) for position in range(size)])
        values = array("d", [round(level[code] + rng.gauss(0, 0.2), 2) for code in codes])
        name = Name(client.client_id, client.stream, first)
        return _Prepared(first, encode(name, KEYS, codes, created_at, values, self._compression))

    def run(self, timeout: float = 600) -> FleetResult:
        """Sends everything; returns when all is acknowledged. Raises ``SkywaveError`` after ``timeout`` seconds."""
        for link in self._links:
            link.start()
        try:
            self._until(lambda: self._day is not None and all(link.connected for link in self._links), 30)
            return self._send_all(timeout)
        finally:
            for link in self._links:
                link.stop()

    def _send_all(self, timeout: float) -> FleetResult:
        total = self._batches * len(self._clients) * self._size
        started = last = time.monotonic()
        resend_at = started + 1
        self._fill(self._clients.values())
        while self.acked < total:
            self._wake.wait(0.2)
            self._wake.clear()
            touched = self._take_acks()
            now = time.monotonic()
            if touched:
                last = now
                self._fill(touched)
            if now > resend_at:
                resend_at = now + 1
                self._resend(now)
            if now > started + timeout:
                raise SkywaveError(f"{total - self.acked} readings were not acknowledged within {timeout:.0f} s")
        for client in self._clients.values():
            self._say(client)
        seconds = last - started
        delays = sorted(self._delays)
        return FleetResult(
            len(self._clients), total, self.acked, round(seconds, 3), round(self.acked / seconds), self.resent,
            round(delays[len(delays) // 2], 4), round(delays[int(len(delays) * 0.99)], 4),
        )  # fmt: skip

    def _until(self, condition: object, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not condition():  # type: ignore[operator]
            if time.monotonic() > until:
                raise SkywaveError("no server accepts batches", "Start the server and the broker first.")
            time.sleep(0.02)

    def _link(self, client: _FleetClient) -> Link:
        return self._links[(client.client_id - next(iter(self._clients))) % len(self._links)]

    def _fill(self, clients: object) -> None:
        now = time.monotonic()
        for client in clients:  # type: ignore[attr-defined]
            while client.batches and len(client.in_flight) < self._window:
                batch = client.batches.popleft()
                client.produced = batch.first_seq + self._size - 1
                client.in_flight[batch.first_seq] = (batch, now)
                self._publish(client, batch, 0)

    def _resend(self, now: float) -> None:
        for client in self._clients.values():
            for first, (batch, sent_at) in list(client.in_flight.items()):
                if now - sent_at > RESEND_S:
                    client.in_flight[first] = (batch, now)
                    self.resent += 1
                    self._publish(client, batch, 1)

    def _publish(self, client: _FleetClient, batch: _Prepared, attempt: int) -> None:
        day = str(self._day)
        self._link(client).publish(
            topics.data(client.client_id), batch.payload, content_type=CONTENT_TYPE,
            properties=(
                ("stream", str(client.stream)), ("first_seq", str(batch.first_seq)), ("count", str(self._size)),
                ("day", day), ("since", day), ("attempt", str(attempt)),
            ),
        )  # fmt: skip

    def _say(self, client: _FleetClient) -> None:
        status = ClientStatus(True, "fleet", "fleet", streams=[Produced(client.stream, client.produced, 0)])
        self._link(client).publish(topics.client_status(client.client_id), status.encode(), retain=True)

    def _receive(self, message: Message) -> None:
        try:
            if topics.parse_server(message.topic):
                status = ServerStatus.decode(message.payload)
                self._day = status.date if status.accepting else self._day
            elif who := topics.parse_client(message.topic):
                self._acks.append((who[0], Ack.decode(message.payload)))
                self._wake.set()
        except PoisonError as error:
            raise SkywaveError(f"a message on {message.topic} cannot be read: {error}") from error

    def _take_acks(self) -> list[_FleetClient]:
        touched = []
        now = time.monotonic()
        while self._acks:
            client_id, ack = self._acks.popleft()
            client = self._clients[client_id]
            touched.append(client)
            for first in list(self._covered(client, ack)):
                _, sent_at = client.in_flight.pop(first)
                self._delays.append(now - sent_at)
                self.acked += self._size
        return touched

    def _covered(self, client: _FleetClient, ack: Ack) -> Iterator[int]:
        for item in (*ack.stored, *ack.rejected):
            if item.stream == client.stream:
                yield from [f for f in client.in_flight if item.first <= f and f + self._size - 1 <= item.last]
