"""The sensors' sockets: connecting, reading numbers from them, and acknowledging where a sensor asks for it.

A sensor that numbers its readings (``acknowledged``) is told up to which one they are committed, and after a reconnect where
to go on: from the last one that this process took in, or from the last committed one after a restart.
"""

from __future__ import annotations

import errno
import logging
import os
import random
import selectors
import socket
import time
from array import array
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from .. import config
from ..formats.frames import FrameParser, Word, take_word
from ..outbox.outbox import Position
from ..process.handover import Kept

log = logging.getLogger(__name__)
T = TypeVar("T")

CHUNK_BYTES = 256 << 10
RECEIVE_BUFFER_BYTES = 64 << 10
"""Small on purpose: what stands in it when the client is killed is lost (the kernel doubles the figure)."""
FIRST_PAUSE_S = 0.25
QUIET_S = 60.0
"""A sensor about which something was logged has to deliver as long without trouble before anything is logged again."""
PAUSES = 3
"""A sensor is silent when it has paused for so many times as long as it usually does."""
FORGET = 0.9
"""With each reading a long pause counts so much less."""
MAX_SEQ = 1 << 62
NOWHERE = Position(0, 0)


class Columns(NamedTuple):
    """Readings of several sensors: ``codes`` (typecode ``h``) index ``keys``; ``created_at`` (``q``), microseconds UTC."""

    keys: list[str]
    codes: array[int]
    created_at: array[int]
    values: array[float]


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
    stall_after: float
    figures: SensorFigures = field(default_factory=SensorFigures)
    lookup: Future[list[Any]] | None = None
    # The addresses of its name that are not tried yet in this round, why the others failed, and the one that is used.
    addresses: list[Any] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    used: Any = None
    delivered: bool = False
    sock: socket.socket | None = None
    parser: FrameParser = field(default_factory=FrameParser)
    ready: bool = False
    retry_at: float = 0.0
    pause: float = FIRST_PAUSE_S
    heard_at: float = 0.0
    usual_pause: float = 0.0
    stalled: bool = False
    complained: bool = False
    trouble_at: float = 0.0
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
            Connection(name, s.key or name, (s.host, s.port), s.acknowledged, s.stall_after)
            for name, s in sensors.items()
        ]
        for connection in self._connections:
            connection.taken = connection.committed = positions.get(connection.name, NOWHERE)
        self.open = 0
        self.opened_at = 0.0
        self._selector = selectors.DefaultSelector()
        self._resolver = ThreadPoolExecutor(4, "resolve")
        self._adopt(inherited)

    def figures(self) -> dict[str, SensorFigures]:
        """Figures by sensor name."""
        return {c.name: c.figures for c in self._connections}

    def take(self, most: int) -> list[Columns]:
        """The open readings in parts of at most ``most``, each with the keys that occur in it; then none is open."""
        parts: list[Columns] = []
        room = 0
        for connection in self._connections:
            begin, end = 0, len(connection.values)
            while begin < end:
                if not room:
                    parts.append(Columns([], array("h"), array("q"), array("d")))
                    codes: dict[str, int] = {}
                    room = most
                part = parts[-1]
                if (code := codes.setdefault(connection.key, len(codes))) == len(part.keys):
                    part.keys.append(connection.key)
                taken = slice(begin, begin + room)
                count = min(room, end - begin)
                part.codes.extend(array("h", [code]) * count)
                part.created_at.extend(connection.created_at[taken])
                part.values.extend(connection.values[taken])
                begin, room = begin + count, room - count
            if end:
                connection.created_at, connection.values = array("q"), array("d")
        self.open = 0
        return parts

    def moved(self) -> dict[str, Position]:
        """How far each numbering sensor was taken in, if that is further than what is committed."""
        return {c.name: c.taken for c in self._connections if c.taken != c.committed}

    def committed(self, positions: Mapping[str, Position]) -> None:
        """Acknowledges what the outbox has committed."""
        for connection in self._connections:
            if connection.name in positions:
                connection.committed = positions[connection.name]
                self._alone(connection, self._acknowledge)

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
            try:
                connection = wanted.get((notes["sensor"], tuple(notes["address"])))
                rest = bytes.fromhex(notes["rest"])
            except (KeyError, TypeError, ValueError):  # of a release that notes other things
                connection = None
            if connection is None:  # no longer configured
                sock.close()
                continue
            sock.setblocking(False)
            connection.sock, connection.parser = sock, FrameParser(rest)
            connection.ready = connection.figures.connected = True
            connection.heard_at = time.monotonic()
            self._selector.register(sock, selectors.EVENT_READ, connection)
            log.info("sensor %s: goes on with the connection of the process before", connection.name)

    def _alone(self, connection: Connection, work: Callable[[Connection], T]) -> T | None:
        """Does what concerns one sensor. Whatever goes wrong with it ends that sensor's connection, and no more."""
        try:
            return work(connection)
        except Exception as error:
            if not isinstance(error, OSError | ValueError) and not connection.complained:
                log.exception("sensor %s", connection.name)
            self._fail(connection, str(error) or type(error).__name__)
            return None

    # -- connections ---------------------------------------------------------------------------------------------

    def look_after(self, now: float) -> None:
        """Connects what is down, reports what is silent, repeats acknowledgements that did not get through."""
        for connection in self._connections:
            if connection.sock is None:
                if now >= connection.retry_at:
                    self._alone(connection, self._connect)
            elif not connection.ready and now > connection.heard_at + self._settings.reconnect_max:
                self._fail(connection, "connect timed out")
            elif (
                connection.ready
                and not connection.stalled
                and now > connection.heard_at + self._stall_after(connection)
            ):
                connection.stalled = True
                connection.figures.stalls += 1
                log.warning("sensor %s: silent for %.1f s", connection.name, now - connection.heard_at)
            if connection.told != connection.committed:
                self._alone(connection, self._acknowledge)

    def _stall_after(self, connection: Connection) -> float:
        """Seconds of silence that are too long for this sensor."""
        return connection.stall_after or max(self._settings.stall_after, PAUSES * connection.usual_pause)

    def _connect(self, connection: Connection) -> None:
        """Begins to connect to the next address of the sensor's name, as soon as the name is looked up."""
        if not connection.addresses:
            found = _literal(*connection.address)
            if not found:
                if connection.lookup is None:  # a name server that does not answer must not hold up the other sensors
                    connection.lookup = self._resolver.submit(_look_up, *connection.address)
                if not connection.lookup.done():
                    return
                lookup, connection.lookup = connection.lookup, None
                found = lookup.result()
            connection.failures = []
            connection.addresses = sorted(found, key=lambda item: bool(item[4] != connection.used))
        family, kind, _, _, address = connection.addresses.pop(0)
        connection.used, connection.delivered = address, False
        connection.heard_at = time.monotonic()
        connection.sock = sock = socket.socket(family, kind)
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
        code = sock.connect_ex(address)
        if code not in (0, errno.EINPROGRESS):
            raise _refusal(code)
        self._selector.register(sock, selectors.EVENT_WRITE, connection)

    def _fail(self, connection: Connection, why: str) -> None:
        """Ends a connection. If it delivered nothing, the next address of the name is tried at once."""
        if connection.ready:
            connection.figures.disconnects += 1
        if connection.delivered:
            connection.addresses, connection.failures = [], []
        if connection.addresses or connection.failures:
            connection.failures.append(f"{connection.used[0]}: {why}")
            why = "; ".join(connection.failures)
        connection.figures.last_error = why  # before the sensor can see that it was hung up on
        self._close(connection)
        if connection.addresses:
            return
        self._complain(connection, f" at {connection.address[0]}:{connection.address[1]}: {why}")
        connection.retry_at = time.monotonic() + connection.pause * random.uniform(0.5, 1.0)
        connection.pause = min(connection.pause * 2, self._settings.reconnect_max)

    def _complain(self, connection: Connection, what: str) -> None:
        """Logs once until the sensor has delivered for a while without trouble."""
        if not connection.complained:
            log.warning("sensor %s%s", connection.name, what)
        connection.complained, connection.trouble_at = True, time.monotonic()

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
                most = max(most, self._alone(connection, self._read) or 0)
            else:
                self._alone(connection, self._finish_connect)
        return most

    def _finish_connect(self, connection: Connection) -> None:
        assert connection.sock is not None
        if code := connection.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            raise _refusal(code)
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
            if word.word != "first" or not word.stream or not last < word.seq <= MAX_SEQ:
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

    def _read(self, connection: Connection) -> int:
        assert connection.sock is not None
        try:
            data = connection.sock.recv(CHUNK_BYTES)
        except BlockingIOError:
            return 0
        if not data:
            self._fail(connection, "closed the connection")
            return 0
        now = time.monotonic()
        since_last, connection.heard_at = now - connection.heard_at, now
        connection.stalled = False
        connection.usual_pause = max(since_last, FORGET * connection.usual_pause)
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
            connection.figures.malformed += parser.malformed - malformed
            connection.figures.last_error = f"payload {parser.sample!r} is not a decimal number"
            self._complain(connection, f": {connection.figures.last_error}; skipped and counted")
        elif values and not parser.broken:
            connection.complained = connection.complained and now < connection.trouble_at + QUIET_S
            connection.delivered = True
            connection.pause = FIRST_PAUSE_S
        if parser.broken:
            connection.figures.broken_frames += 1
            self._fail(connection, parser.broken)
        return size

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


def _look_up(host: str, port: int, flags: int = 0) -> list[Any]:
    try:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
    except ValueError as error:  # an empty label, one of more than 63 letters, a character of code 0
        raise OSError(f"{host[:100]!r} is no host name") from error


def _literal(host: str, port: int) -> list[Any]:
    """The address, if it is one and no name, without asking anybody; nothing if it is a name."""
    try:
        return _look_up(host, port, socket.AI_NUMERICHOST)
    except OSError:
        return []


def _refusal(code: int) -> OSError:
    return OSError(errno.errorcode.get(code, os.strerror(code)))
