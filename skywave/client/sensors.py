"""From the sensors' sockets into the outbox: one thread reads all sensors, groups their readings and commits them.

The thread commits before it reads on. So a slow, full or absent outbox stops the reading, TCP pushes back on the
sensors, and nothing piles up in memory. A reading waits at most ``linger`` for its commit.
"""

from __future__ import annotations

import errno
import logging
import random
import selectors
import socket
import threading
import time
from array import array
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import date
from typing import Any

from .. import config
from ..batch import Batch, Name, encode
from ..errors import OutboxUnavailable
from ..frames import FrameParser
from ..handover import Kept, hand_over
from .outbox import Outbox

log = logging.getLogger(__name__)

CHUNK_BYTES = 256 << 10
RECEIVE_BUFFER_BYTES = 64 << 10
"""Small on purpose: what stands in it when the client is killed is lost (the kernel doubles the figure)."""
LOOK_AFTER_S = 0.1
"""Between two looks at the connections that are down or silent."""
FULL_RETRY_S = 0.2
UNAVAILABLE_RETRY_MAX_S = 5.0
DRAIN_S = 0.5
STOP_GRACE_S = 5.0
"""How long a stopping client goes on trying to commit its last batch to an outbox that is away."""


@dataclass(slots=True)
class SensorFigures:
    """What the intake knows of one sensor."""

    connected: bool = False
    readings: int = 0
    malformed: int = 0
    broken_frames: int = 0
    disconnects: int = 0
    stalls: int = 0
    last_error: str = ""


@dataclass(slots=True)
class _Connection:
    """One sensor's connection, through all its attempts."""

    name: str
    key: str
    address: tuple[str, int]
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
    created_at: array[int] = field(default_factory=lambda: array("q"))
    values: array[float] = field(default_factory=lambda: array("d"))


class Intake:
    """Owns the sensors' sockets, the open batch and the writing side of the outbox.

    ``on_commit`` is called with every batch that the outbox has committed; ``heard_date`` gives the last server date;
    ``inherited`` are the sensors' connections that an earlier process handed over.
    """

    def __init__(
        self,
        settings: config.Client,
        outbox: Outbox,
        stream: int,
        first_id: int,
        on_commit: Callable[[Batch], None],
        heard_date: Callable[[], date | None],
        inherited: Sequence[Kept] = (),
    ) -> None:
        self._settings = settings.intake
        self._client_id = settings.client_id
        self._drop_oldest = settings.outbox.when_full == "drop_oldest"
        self._outbox = outbox
        self._stream = stream
        self._next_id = first_id
        self._next_seq = 1
        self._on_commit = on_commit
        self._heard_date = heard_date
        self._connections = [_Connection(name, s.key or name, (s.host, s.port)) for name, s in settings.sensors.items()]
        self._keys = list(dict.fromkeys(c.key for c in self._connections))
        self._codes = {key: code for code, key in enumerate(self._keys)}
        self._open = 0
        self._opened_at = 0.0
        self._stopping = threading.Event()
        self._selector = selectors.DefaultSelector()
        self._resolver = ThreadPoolExecutor(4, "resolve")
        self._look_after_at = 0.0
        self.progress_at = time.monotonic()
        self.full = False
        self.unavailable = ""
        self.readings = 0
        self.commits = 0
        self.lost_at_stop = 0
        self._adopt(inherited)

    @property
    def sensors(self) -> dict[str, SensorFigures]:
        """Figures by sensor name."""
        return {c.name: c.figures for c in self._connections}

    def stop(self) -> None:
        """Asks the loop to commit what it holds and to return."""
        self._stopping.set()

    def run(self) -> None:
        """Reads and commits until ``stop``."""
        try:
            while not self._stopping.is_set():
                now = self.progress_at = time.monotonic()
                if now >= self._look_after_at:
                    self._look_after_at = now + LOOK_AFTER_S
                    self._reconnect(now)
                got = self._read_ready(min(self._due_in(now), LOOK_AFTER_S))
                if self._due_in(time.monotonic()) <= 0:
                    self._commit()
                if got < CHUNK_BYTES // 4 and self._settings.poll_interval:
                    # One look at many bytes costs less than many looks at few.
                    time.sleep(max(0.0, min(self._due_in(time.monotonic()), self._settings.poll_interval)))
            self._drain()
            if self._open:
                self._commit()
            if not self.lost_at_stop:
                hand_over([
                    Kept(c.sock, {"sensor": c.name, "address": c.address, "rest": c.parser.rest.hex()})
                    for c in self._connections
                    if c.sock and c.ready
                ])  # fmt: skip
        finally:
            for connection in self._connections:
                self._close(connection)
            self._selector.close()
            self._resolver.shutdown(wait=False, cancel_futures=True)

    def _drain(self) -> None:
        """Takes in what already stands in the sockets, unless the outbox would not have it."""
        until = time.monotonic() + DRAIN_S
        while not (self.full or self.unavailable) and time.monotonic() < until and self._read_ready(0):
            if self._open >= self._settings.max_readings:
                self._commit()

    def _due_in(self, now: float) -> float:
        """Seconds until the open batch has to be committed; 0 or less when it must be now."""
        if not self._open:
            return LOOK_AFTER_S
        return self._opened_at + self._settings.linger - now if self._open < self._settings.max_readings else 0.0

    # -- connections of an earlier process -----------------------------------------------------------------------

    def _adopt(self, inherited: Sequence[Kept]) -> None:
        wanted = {(c.name, c.address): c for c in self._connections}
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

    def _reconnect(self, now: float) -> None:
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

    def _connect(self, connection: _Connection, now: float) -> None:
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

    def _fail(self, connection: _Connection, why: str) -> None:
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

    def _close(self, connection: _Connection) -> None:
        if connection.sock is not None:
            if connection.sock in self._selector.get_map():
                self._selector.unregister(connection.sock)
            connection.sock.close()
        connection.sock = None
        connection.ready = connection.figures.connected = False
        connection.parser = FrameParser()

    # -- reading -------------------------------------------------------------------------------------------------

    def _read_ready(self, timeout: float) -> int:
        """Reads once from each socket that has bytes, so that no sensor starves another; returns the most that one had."""
        most = 0
        for key, _ in self._selector.select(timeout):
            connection: _Connection = key.data
            if connection.ready:
                most = max(most, self._read(connection))
            else:
                self._finish_connect(connection)
        return most

    def _finish_connect(self, connection: _Connection) -> None:
        assert connection.sock is not None
        if code := connection.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._fail(connection, errno.errorcode.get(code, "connect failed"))
            return
        self._selector.modify(connection.sock, selectors.EVENT_READ, connection)
        connection.ready = connection.figures.connected = True
        connection.stalled = False

    def _read(self, connection: _Connection) -> int:
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
        parser = connection.parser
        malformed = parser.malformed
        values = parser.feed(data)
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
        return len(data)

    def _complain(self, connection: _Connection, parser: FrameParser, count: int) -> None:
        connection.figures.malformed += count
        connection.figures.last_error = f"payload {parser.sample!r} is not a decimal number"
        if not connection.complained:
            log.warning("sensor %s: %s; skipped and counted", connection.name, connection.figures.last_error)
        connection.complained = True

    def _add(self, connection: _Connection, values: list[float], spread: float) -> None:
        """Takes in values that came within the last ``spread`` seconds: when exactly nobody knows, so evenly."""
        if not self._open:
            self._opened_at = time.monotonic() - spread  # linger counts from the oldest one's arrival
        now, count = time.time_ns() // 1000, len(values)
        step = int(spread * 1e6) // count
        times = range(now - step * (count - 1), now + 1, step) if step else [now] * count
        connection.created_at.extend(times)
        connection.values.extend(values)
        connection.figures.readings += count
        self._open += count

    # -- committing ----------------------------------------------------------------------------------------------

    def _commit(self) -> None:
        """Commits the open readings as one batch, or as several where a flood brought more than one may hold."""
        codes, created_at, values = array("h"), array("q"), array("d")
        for connection in self._connections:
            if connection.values:
                codes.extend(array("h", [self._codes[connection.key]]) * len(connection.values))
                created_at.extend(connection.created_at)
                values.extend(connection.values)
                connection.created_at, connection.values = array("q"), array("d")
        self._open = 0
        step = self._settings.max_readings
        for start in range(0, len(values), step):
            part = slice(start, start + step)
            self._commit_batch(codes[part], created_at[part], values[part])

    def _commit_batch(self, codes: array[int], created_at: array[int], values: array[float]) -> None:
        name = Name(self._client_id, self._stream, self._next_seq)
        payload = encode(name, self._keys, codes, created_at, values, self._settings.compression)
        batch = Batch(
            self._next_id, self._stream, self._next_seq, len(values), min(created_at), self._heard_date(), payload
        )
        if self._append(batch):
            self._next_id += 1
            self._next_seq += batch.count
            self.readings += batch.count
            self.commits += 1
            self._on_commit(batch)
        else:
            self.lost_at_stop += batch.count

    def _append(self, batch: Batch) -> bool:
        """Stores the batch, however long the outbox is away or full; False only when stopping has to give up."""
        pause = 0.05
        give_up_at = float("inf")
        while True:
            self.progress_at = time.monotonic()
            if self._stopping.is_set() and give_up_at == float("inf"):
                give_up_at = self.progress_at + STOP_GRACE_S
            try:
                self.full = self._outbox.is_full(len(batch.payload))
                if self.full and self._drop_oldest:
                    self._outbox.drop_oldest(len(batch.payload))
                elif self.full and not self._stopping.is_set():  # a stopping client may exceed the bound by one batch
                    self._stopping.wait(FULL_RETRY_S)
                    continue
                self._outbox.append(batch)
                self.full, self.unavailable = False, ""
                return True
            except OutboxUnavailable as error:
                if not self.unavailable:
                    log.warning("outbox: %s; the sensors wait", error)
                self.unavailable = str(error)
                if time.monotonic() >= give_up_at:
                    log.error("outbox: still away, %d readings in memory are lost", batch.count)
                    return False
                if self._stopping.wait(pause):
                    time.sleep(0.1)
                pause = min(pause * 2, UNAVAILABLE_RETRY_MAX_S)
