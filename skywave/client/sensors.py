"""The sensors' sockets: reading numbers from them, and acknowledging where a sensor asks for it.

How each is connected is in ``connection.py``, what a sensor that numbers its readings (``acknowledged``) is told in
``numbering.py``.
"""

from __future__ import annotations

import logging
import selectors
import time
from array import array
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from .. import config
from ..formats.frames import FrameParser, Word
from ..outbox.outbox import Position
from ..process.handover import Kept
from .connection import Connection
from .numbering import NOWHERE, Numbering

log = logging.getLogger(__name__)
T = TypeVar("T")

CHUNK_BYTES = 256 << 10
QUIET_S = 60.0
"""A sensor about which something was logged has to deliver as long without trouble before anything is logged again."""
PAUSES = 3
"""A sensor is silent when it has paused for so many times as long as it usually does."""
FORGET = 0.9
"""With each reading a long pause counts so much less."""


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
class _Sensor:
    """One sensor: its connection, what stands in its open frame, when it was heard, and its open readings.

    ``numbering`` is None if it does not number its readings; ``stall_after`` is 0 if its silence is not set."""

    name: str
    key: str
    stall_after: float
    connection: Connection
    numbering: Numbering | None
    figures: SensorFigures = field(default_factory=SensorFigures)
    parser: FrameParser = field(default_factory=FrameParser)
    heard_at: float = 0.0
    usual_pause: float = 0.0
    stalled: bool = False
    complained: bool = False
    trouble_at: float = 0.0
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
        self._resolver = ThreadPoolExecutor(4, "resolve")
        self._selector = selectors.DefaultSelector()
        self._sensors = [
            _Sensor(
                name,
                s.key or name,
                s.stall_after,
                Connection(s.host, s.port, settings.reconnect_max, self._resolver),
                Numbering(positions.get(name, NOWHERE)) if s.acknowledged else None,
            )
            for name, s in sensors.items()
        ]
        self.open = 0
        self.opened_at = 0.0
        self._adopt(inherited)

    def figures(self) -> dict[str, SensorFigures]:
        """Figures by sensor name."""
        return {sensor.name: sensor.figures for sensor in self._sensors}

    def take(self, most: int) -> list[Columns]:
        """The open readings in parts of at most ``most``, each with the keys that occur in it; then none is open."""
        parts: list[Columns] = []
        room = 0
        for sensor in self._sensors:
            begin, end = 0, len(sensor.values)
            while begin < end:
                if not room:
                    parts.append(Columns([], array("h"), array("q"), array("d")))
                    codes: dict[str, int] = {}
                    room = most
                part = parts[-1]
                if (code := codes.setdefault(sensor.key, len(codes))) == len(part.keys):
                    part.keys.append(sensor.key)
                taken = slice(begin, begin + room)
                count = min(room, end - begin)
                part.codes.extend(array("h", [code]) * count)
                part.created_at.extend(sensor.created_at[taken])
                part.values.extend(sensor.values[taken])
                begin, room = begin + count, room - count
            if end:
                sensor.created_at, sensor.values = array("q"), array("d")
        self.open = 0
        return parts

    def moved(self) -> dict[str, Position]:
        """How far each numbering sensor was taken in, if that is further than what is committed."""
        return {
            s.name: s.numbering.taken
            for s in self._sensors
            if s.numbering and s.numbering.taken != s.numbering.committed
        }

    def committed(self, positions: Mapping[str, Position]) -> None:
        """Acknowledges what the outbox has committed."""
        for sensor in self._sensors:
            if sensor.numbering and sensor.name in positions:
                sensor.numbering.committed = positions[sensor.name]
                self._alone(sensor, self._acknowledge)

    def kept(self) -> list[Kept]:
        """The connections that the next process can go on with."""
        return [
            Kept(c.sock, {"sensor": sensor.name, "address": (c.host, c.port), "rest": sensor.parser.rest.hex()})
            for sensor in self._sensors
            if (c := sensor.connection).sock and c.ready and not sensor.numbering
        ]

    def close(self) -> None:
        """Closes all connections."""
        for sensor in self._sensors:
            self._close(sensor)
        self._selector.close()
        self._resolver.shutdown(wait=False, cancel_futures=True)

    def _adopt(self, inherited: Sequence[Kept]) -> None:
        wanted = {(s.name, (s.connection.host, s.connection.port)): s for s in self._sensors if not s.numbering}
        for sock, notes in inherited:
            try:
                sensor = wanted.get((notes["sensor"], tuple(notes["address"])))
                rest = bytes.fromhex(notes["rest"])
            except (KeyError, TypeError, ValueError):  # of a release that notes other things
                sensor = None
            if sensor is None:  # no longer configured
                sock.close()
                continue
            sensor.connection.adopt(sock)
            sensor.parser = FrameParser(rest)
            sensor.figures.connected = True
            sensor.heard_at = time.monotonic()
            self._selector.register(sock, selectors.EVENT_READ, sensor)
            log.info("sensor %s: goes on with the connection of the process before", sensor.name)

    def _alone(self, sensor: _Sensor, work: Callable[[_Sensor], T]) -> T | None:
        """Does what concerns one sensor. Whatever goes wrong with it ends that sensor's connection, and no more."""
        try:
            return work(sensor)
        except Exception as error:
            if not isinstance(error, OSError | ValueError) and not sensor.complained:
                log.exception("sensor %s", sensor.name)
            self._fail(sensor, str(error) or type(error).__name__)
            return None

    # -- connections ---------------------------------------------------------------------------------------------

    def look_after(self, now: float) -> None:
        """Connects what is down, reports what is silent, repeats acknowledgements that did not get through."""
        for sensor in self._sensors:
            connection = sensor.connection
            if connection.sock is None:
                self._alone(sensor, self._connect)
            elif not connection.ready and now > sensor.heard_at + self._settings.reconnect_max:
                self._fail(sensor, "connect timed out")
            elif connection.ready and not sensor.stalled and now > sensor.heard_at + self._stall_after(sensor):
                sensor.stalled = True
                sensor.figures.stalls += 1
                log.warning("sensor %s: silent for %.1f s", sensor.name, now - sensor.heard_at)
            if sensor.numbering and sensor.numbering.told != sensor.numbering.committed:
                self._alone(sensor, self._acknowledge)

    def _stall_after(self, sensor: _Sensor) -> float:
        """Seconds of silence that are too long for this sensor."""
        return sensor.stall_after or max(self._settings.stall_after, PAUSES * sensor.usual_pause)

    def _connect(self, sensor: _Sensor) -> None:
        now = time.monotonic()
        if sock := sensor.connection.begin(now):
            sensor.heard_at = now
            self._selector.register(sock, selectors.EVENT_WRITE, sensor)

    def _finish_connect(self, sensor: _Sensor) -> None:
        sensor.connection.finish()
        assert sensor.connection.sock is not None
        self._selector.modify(sensor.connection.sock, selectors.EVENT_READ, sensor)
        sensor.figures.connected = True
        sensor.stalled = False
        if sensor.numbering:
            self._tell(sensor, sensor.numbering.connected())

    def _fail(self, sensor: _Sensor, why: str) -> None:
        """Ends a connection. If it delivered nothing, the next address of the name is tried at once."""
        connection = sensor.connection
        if connection.ready:
            sensor.figures.disconnects += 1
        why = connection.failed(why)
        sensor.figures.last_error = why  # before the sensor can see that it was hung up on
        self._close(sensor)
        if connection.pause(time.monotonic()):
            self._complain(sensor, f" at {connection.host}:{connection.port}: {why}")

    def _complain(self, sensor: _Sensor, what: str) -> None:
        """Logs once until the sensor has delivered for a while without trouble."""
        if not sensor.complained:
            log.warning("sensor %s%s", sensor.name, what)
        sensor.complained, sensor.trouble_at = True, time.monotonic()

    def _close(self, sensor: _Sensor) -> None:
        if (sock := sensor.connection.sock) is not None and sock in self._selector.get_map():
            self._selector.unregister(sock)
        sensor.connection.close()
        sensor.figures.connected = False
        sensor.parser = FrameParser()

    # -- reading -------------------------------------------------------------------------------------------------

    def read_ready(self, timeout: float) -> int:
        """Reads once from each socket that has bytes, so that no sensor starves another; returns the most that one had."""
        most = 0
        for key, _ in self._selector.select(timeout):
            sensor: _Sensor = key.data
            if sensor.connection.ready:
                most = max(most, self._alone(sensor, self._read) or 0)
            else:
                self._alone(sensor, self._finish_connect)
        return most

    def _read(self, sensor: _Sensor) -> int:
        assert sensor.connection.sock is not None
        try:
            data = sensor.connection.sock.recv(CHUNK_BYTES)
        except BlockingIOError:
            return 0
        if not data:
            self._fail(sensor, "closed the connection")
            return 0
        now = time.monotonic()
        since_last, sensor.heard_at = now - sensor.heard_at, now
        sensor.stalled = False
        sensor.usual_pause = max(since_last, FORGET * sensor.usual_pause)
        size = len(data)
        numbering, parser = sensor.numbering, sensor.parser
        if numbering and not numbering.greeted and not (data := self._greet(sensor, numbering, data)):
            return size
        malformed = parser.malformed
        values = parser.feed(data)
        if numbering:  # a malformed one has a number as well
            numbering.take(len(values) + parser.malformed - malformed)
        if values:
            self._add(sensor, values, min(since_last, self._settings.poll_interval))
        if parser.malformed > malformed:
            sensor.figures.malformed += parser.malformed - malformed
            sensor.figures.last_error = f"payload {parser.sample!r} is not a decimal number"
            self._complain(sensor, f": {sensor.figures.last_error}; skipped and counted")
        elif values and not parser.broken:
            sensor.complained = sensor.complained and now < sensor.trouble_at + QUIET_S
            sensor.connection.delivered()
        if parser.broken:
            sensor.figures.broken_frames += 1
            self._fail(sensor, parser.broken)
        return size

    def _add(self, sensor: _Sensor, values: list[float], spread: float) -> None:
        """Takes in values that came within the last ``spread`` seconds: when exactly nobody knows, so evenly."""
        if not self.open:
            self.opened_at = time.monotonic() - spread  # linger counts from the oldest one's arrival
        now, count = time.time_ns() // 1000, len(values)
        step = int(spread * 1e6) // count
        times = range(now - step * (count - 1), now + 1, step) if step else [now] * count
        sensor.created_at.extend(times)
        sensor.values.extend(values)
        sensor.figures.readings += count
        self.open += count

    # -- acknowledging -------------------------------------------------------------------------------------------

    def _greet(self, sensor: _Sensor, numbering: Numbering, data: bytes) -> bytes:
        """Takes the sensor's first word from ``data``; returns what follows it."""
        rest, missed = numbering.greet(data)
        if missed:
            sensor.figures.missed += len(missed)
            log.error("sensor %s: no longer has its readings %d to %d", sensor.name, missed.start, missed.stop - 1)
        return rest

    def _acknowledge(self, sensor: _Sensor) -> None:
        """Tells the sensor what is committed; if it does not read, the next look tries again."""
        if sensor.numbering and sensor.connection.ready and sensor.numbering.greeted:
            self._tell(sensor, Word("ack", *sensor.numbering.committed))

    def _tell(self, sensor: _Sensor, word: Word) -> None:
        assert sensor.connection.sock is not None and sensor.numbering is not None
        data = word.encode()
        try:
            if sensor.connection.sock.send(data) < len(data):
                self._fail(sensor, "does not read its acknowledgements")
            elif word.word == "ack":
                sensor.numbering.told = sensor.numbering.committed
        except BlockingIOError:
            pass
