"""The sensors' sockets: connecting, reading numbers from them, and acknowledging where a sensor asks for it.

A sensor that numbers its readings (``acknowledged``) is told up to which one they are committed, and after a reconnect where
to go on: from the last one that this process took in, or from the last committed one after a restart.
"""

from __future__ import annotations

import errno
import logging
import random
import selectors
import socket
import time
from array import array
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from .. import config
from ..frames import FrameParser, Word, take_word
from ..handover import Kept
from .outbox import Position

log = logging.getLogger(__name__)

CHUNK_BYTES = 256 << 10
RECEIVE_BUFFER_BYTES = 64 << 10
"""Small on purpose: what stands in it when the client is killed is lost (the kernel doubles the figure)."""
NOWHERE = Position(0, 0)


@dataclass(slots=True)
class SensorFigures:
    """What the intake knows of one sensor."""

    connected: bool = False
    readings: int = 0
    malformed: int = 0
    broken_frames: int = 0
    disconnects: int = 0
    stalls: int = 0
    missed: int = 0
    last_error: str = ""


@dataclass(slots=True)
class Connection:
    """One sensor's connection, through all its attempts."""

    name: str
    key: str
    address: tuple[str, int]
    acknowledged: bool
    figures: SensorFigures = field(default_factory=SensorFigures)
    lookup: Future[list[Any]] | None = None
    sock: socket.socket | None = None
    parser: FrameParser = field(default_factory=FrameParser)
    ready: bool = False
    retry_at: float = 0.0
    pause: float = 0.25
    heard_at: float = 0.0
    stalled: bool = False
    complained: bool = False
    # Of a sensor that numbers its readings: its first word while it is awaited, then what was taken in, what of that is
    # committed, and what it was told of that on this connection.
    greeting: bytes | None = None
    taken: Position = NOWHERE
    committed: Position = NOWHERE
    told: Position = NOWHERE
    created_at: array[int] = field(default_factory=lambda: array("q"))
    values: array[float] = field(default_factory=lambda: array("d"))


class Sensors:
    """Owns the sensors' sockets and the readings that are not handed to the outbox yet.

    ``positions`` say how far numbering sensors were taken in; ``inherited`` are the connections that an earlier process
    handed over. One thread alone may use it.
    """

    def __init__(
        self,
        sensors: Mapping[str, config.Sensor],
        settings: config.Intake,
        positions: Mapping[str, Position],
        inherited: Sequence[Kept],
    ) -> None:
        self._settings = settings
        self._connections = [
            Connection(name, s.key or name, (s.host, s.port), s.acknowledged) for name, s in sensors.items()
        ]
        for connection in self._connections:
            connection.taken = connection.committed = positions.get(connection.name, NOWHERE)
        self.keys = list(dict.fromkeys(c.key for c in self._connections))
        self._codes = {key: code for code, key in enumerate(self.keys)}
        self.open = 0
        self.opened_at = 0.0
        self._selector = selectors.DefaultSelector()
        self._resolver = ThreadPoolExecutor(4, "resolve")
        self._adopt(inherited)

    def figures(self) -> dict[str, SensorFigures]:
        """Figures by sensor name."""
        return {c.name: c.figures for c in self._connections}

    def take(self) -> tuple[array[int], array[int], array[float]]:
        """The open readings as codes (places in ``keys``), times (microseconds, UTC) and values; then none is open."""
        codes, created_at, values = array("h"), array("q"), array("d")
        for connection in self._connections:
            if connection.values:
                codes.extend(array("h", [self._codes[connection.key]]) * len(connection.values))
                created_at.extend(connection.created_at)
                values.extend(connection.values)
                connection.created_at, connection.values = array("q"), array("d")
        self.open = 0
        return codes, created_at, values

    def moved(self) -> dict[str, Position]:
        """How far each numbering sensor was taken in, if that is further than what is committed."""
        return {c.name: c.taken for c in self._connections if c.taken != c.committed}

    def committed(self, positions: Mapping[str, Position]) -> None:
        """Acknowledges what the outbox has committed."""
        for connection in self._connections:
            if connection.name in positions:
                connection.committed = positions[connection.name]
                self._acknowledge(connection)

    def kept(self) -> list[Kept]:
        """The connections that the next process can go on with."""
        return [
            Kept(c.sock, {"sensor": c.name, "address": c.address, "rest": c.parser.rest.hex()})
            for c in self._connections
            if c.sock and c.ready and not c.acknowledged
        ]

    def close(self) -> None:
        """Closes all connections."""
        for connection in self._connections:
            self._close(connection)
        self._selector.close()
        self._resolver.shutdown(wait=False, cancel_futures=True)

    def _adopt(self, inherited: Sequence[Kept]) -> None:
        wanted = {(c.name, c.address): c for c in self._connections if not c.acknowledged}
        for sock, notes in inherited:
            connection = wanted.get((notes["sensor"], tuple(notes["address"])))
            if connection is None:  # no longer configured
                sock.close()
                continue
            sock.setblocking(False)
            connection.sock, connection.parser = sock, FrameParser(bytes.fromhex(notes["rest"]))
            connection.ready = connection.figures.connected = True
            connection.heard_at = time.monotonic()
            self._selector.register(sock, selectors.EVENT_READ, connection)
            log.info("sensor %s: goes on with the connection of the process before", connection.name)

    # -- connections ---------------------------------------------------------------------------------------------

    def look_after(self, now: float) -> None:
        """Connects what is down, reports what is silent, repeats acknowledgements that did not get through."""
        for connection in self._connections:
            if connection.sock is None:
                if now >= connection.retry_at:
                    self._connect(connection, now)
            elif not connection.ready and now > connection.heard_at + self._settings.reconnect_max:
                self._fail(connection, "connect timed out")
            elif connection.ready and not connection.stalled and now > connection.heard_at + self._settings.stall_after:
                connection.stalled = True
                connection.figures.stalls += 1
                log.warning("sensor %s: silent for %.1f s", connection.name, now - connection.heard_at)
            if connection.told != connection.committed:
                self._acknowledge(connection)

    def _connect(self, connection: Connection, now: float) -> None:
        if connection.lookup is None:  # a name server that does not answer must not hold up the other sensors
            connection.lookup = self._resolver.submit(socket.getaddrinfo, *connection.address, type=socket.SOCK_STREAM)
        if not connection.lookup.done():
            return
        connection.heard_at = now
        lookup, connection.lookup = connection.lookup, None
        try:
            family, kind, _, _, address = lookup.result()[0]
            connection.sock = sock = socket.socket(family, kind)
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
            code = sock.connect_ex(address)
            if code not in (0, errno.EINPROGRESS):
                raise OSError(code, errno.errorcode.get(code, "connect failed"))
            self._selector.register(sock, selectors.EVENT_WRITE, connection)
        except OSError as error:
            self._fail(connection, str(error))

    def _fail(self, connection: Connection, why: str) -> None:
        """Ends a connection; logs once until the sensor has delivered again."""
        if connection.ready:
            connection.figures.disconnects += 1
        if not connection.complained:
            log.warning("sensor %s at %s:%s: %s", connection.name, *connection.address, why)
        connection.complained = True
        connection.figures.last_error = why
        connection.retry_at = time.monotonic() + connection.pause * random.uniform(0.5, 1.0)
        connection.pause = min(connection.pause * 2, self._settings.reconnect_max)
        self._close(connection)

    def _close(self, connection: Connection) -> None:
        if connection.sock is not None:
            if connection.sock in self._selector.get_map():
                self._selector.unregister(connection.sock)
            connection.sock.close()
        connection.sock = None
        connection.ready = connection.figures.connected = False
        connection.parser = FrameParser()

    # -- reading -------------------------------------------------------------------------------------------------

    def read_ready(self, timeout: float) -> int:
        """Reads once from each socket that has bytes, so that no sensor starves another; returns the most that one had."""
        most = 0
        for key, _ in self._selector.select(timeout):
            connection: Connection = key.data
            if connection.ready:
                most = max(most, self._read(connection))
            else:
                self._finish_connect(connection)
        return most

    def _finish_connect(self, connection: Connection) -> None:
        assert connection.sock is not None
        if code := connection.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._fail(connection, errno.errorcode.get(code, "connect failed"))
            return
        self._selector.modify(connection.sock, selectors.EVENT_READ, connection)
        connection.ready = connection.figures.connected = True
        connection.stalled = False
        if connection.acknowledged:
            connection.greeting, connection.told = b"", NOWHERE
            self._tell(connection, Word("after", *connection.taken))

    def _greet(self, connection: Connection, data: bytes) -> bytes:
        """Takes the sensor's first word from ``data``; returns what follows it."""
        try:
            word, rest = take_word((connection.greeting or b"") + data)
            if word is None:
                connection.greeting = rest
                return b""
            last = connection.taken.seq if connection.taken.stream == word.stream else 0
            if word.word != "first" or not word.stream or word.seq <= last:
                raise ValueError(f"{word} after {connection.taken}")
        except ValueError as error:
            self._fail(connection, f"{error}: this is no acknowledged intake")
            return b""
        if last and word.seq > last + 1:
            connection.figures.missed += word.seq - last - 1
            log.error("sensor %s: no longer has its readings %d to %d", connection.name, last + 1, word.seq - 1)
        connection.greeting, connection.taken = None, Position(word.stream, word.seq - 1)
        return rest

    def _acknowledge(self, connection: Connection) -> None:
        """Tells the sensor what is committed; if it does not read, the next look tries again."""
        if connection.ready and connection.greeting is None:
            self._tell(connection, Word("ack", *connection.committed))

    def _tell(self, connection: Connection, word: Word) -> None:
        assert connection.sock is not None
        data = word.encode()
        try:
            if connection.sock.send(data) < len(data):
                self._fail(connection, "does not read its acknowledgements")
            elif word.word == "ack":
                connection.told = connection.committed
        except BlockingIOError:
            pass
        except OSError as error:
            self._fail(connection, str(error))

    def _read(self, connection: Connection) -> int:
        assert connection.sock is not None
        try:
            data = connection.sock.recv(CHUNK_BYTES)
        except BlockingIOError:
            return 0
        except OSError as error:
            self._fail(connection, str(error))
            return 0
        if not data:
            self._fail(connection, "closed the connection")
            return 0
        now = time.monotonic()
        since_last, connection.heard_at = now - connection.heard_at, now
        connection.stalled = False
        size = len(data)
        if connection.greeting is not None and not (data := self._greet(connection, data)):
            return size
        parser = connection.parser
        malformed = parser.malformed
        values = parser.feed(data)
        if connection.acknowledged:  # a malformed one has a number as well
            stream, seq = connection.taken
            connection.taken = Position(stream, seq + len(values) + parser.malformed - malformed)
        if values:
            self._add(connection, values, min(since_last, self._settings.poll_interval))
        if parser.malformed > malformed:
            self._complain(connection, parser, parser.malformed - malformed)
        elif values and not parser.broken:
            connection.complained = False
            connection.pause = 0.25
        if parser.broken:
            connection.figures.broken_frames += 1
            self._fail(connection, parser.broken)
        return size

    def _complain(self, connection: Connection, parser: FrameParser, count: int) -> None:
        connection.figures.malformed += count
        connection.figures.last_error = f"payload {parser.sample!r} is not a decimal number"
        if not connection.complained:
            log.warning("sensor %s: %s; skipped and counted", connection.name, connection.figures.last_error)
        connection.complained = True

    def _add(self, connection: Connection, values: list[float], spread: float) -> None:
        """Takes in values that came within the last ``spread`` seconds: when exactly nobody knows, so evenly."""
        if not self.open:
            self.opened_at = time.monotonic() - spread  # linger counts from the oldest one's arrival
        now, count = time.time_ns() // 1000, len(values)
        step = int(spread * 1e6) // count
        times = range(now - step * (count - 1), now + 1, step) if step else [now] * count
        connection.created_at.extend(times)
        connection.values.extend(values)
        connection.figures.readings += count
        self.open += count
