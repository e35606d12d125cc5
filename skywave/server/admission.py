"""From a message to readings that may be stored, or the reason why it is poison.

Nothing here keeps state of a message: the same code admits what arrives and what is replayed from the rejected.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import config
from ..errors import PoisonError
from ..formats.batch import CONTENT_TYPE, MAX_SEQ, Name, decode
from ..formats.declared import MAX_READINGS
from ..formats.messages import EARLIEST, Range
from ..mqtt.events import Message
from ..store.columns import Block, Probe, Reading
from . import foreign

MAX_MESSAGE_BYTES = 8 << 20
MAX_INSERT_BYTES = 200_000_000
"""Most bytes of readings in one INSERT, and so in one message. More would be several parts, and memory of ClickHouse."""
ROW_BYTES = 60
"""Of a reading in an INSERT, beside its key."""
_SURELY_SMALL = 1 << 20


@dataclass(frozen=True, slots=True)
class Admitted:
    """Readings that may be stored: ``seq`` counts from ``name.first_seq`` unless ``seqs`` says otherwise.

    ``must_look_up`` asks the store first; ``look_up`` False means that identity alone keeps them single (JSON with id).
    ``retained`` ones are what brokers remember and bring again, perhaps long after they were stored. ``size`` is what they
    take in an INSERT and in memory until then, in bytes.
    """

    name: Name
    day: date
    since: date | None
    keys: list[str]
    codes: NDArray[Any]
    created_at: NDArray[np.int64]
    values: NDArray[np.float64]
    seqs: NDArray[np.uint64] | None
    must_look_up: bool
    look_up: bool
    at: float
    received_at: int
    acked: list[Range]
    retained: bool = False
    size: int = 0

    @property
    def foreign(self) -> bool:
        """True if it came as plain JSON."""
        return self.seqs is not None or not self.acked

    def only(self, positions: Sequence[int]) -> Admitted:
        """The readings at some positions alone."""
        return replace(
            self,
            codes=self.codes[positions],
            created_at=self.created_at[positions],
            values=self.values[positions],
            seqs=None if self.seqs is None else self.seqs[positions],
        )

    def readings(self) -> list[Reading]:
        """The readings one by one, without their names."""
        keys = [self.keys[code] for code in self.codes.tolist()]
        clients = [self.name.client_id] * len(keys)
        return list(zip(clients, keys, self.created_at.tolist(), self.values.tolist(), strict=True))

    def probe(self) -> Probe:
        """What to ask the store about it."""
        return Probe(*self.name, self.keys[int(self.codes[0])], int(self.created_at[0]), self.since)


def is_batch(message: Message) -> bool:
    """True if a message claims to be a batch; anything else is taken for plain JSON."""
    return message.content_type == CONTENT_TYPE or bool((message.properties or {}).get("stream"))


def digest_stream(digest: str) -> int:
    """A stream for the readings of a message that may come again, after its SHA-256 in hexadecimal digits."""
    return int(digest[:15], 16) + 1


class Admission:
    """Decodes messages. ``own_stream`` numbers the readings of each client that come without an id."""

    def __init__(self, settings: config.Ingest, own_stream: int) -> None:
        self._horizon_days = settings.horizon_days
        self._own_stream = own_stream
        self._numbered: Counter[int] = Counter()  # by client, so that its readings of a day are one range

    def admit(
        self, client_id: int, message: Message, today: date, at: float, arrived: date | None = None
    ) -> tuple[list[Admitted], list[foreign.BadReading]]:
        """The readings of a message, and those of its JSON elements that are none; raises ``PoisonError``.

        ``today`` is the server's UTC date, ``at`` when the message came (seconds of CLOCK_BOOTTIME), ``arrived`` the day on
        which it came, if that was not today.
        """
        if message.fault:
            raise PoisonError(message.fault)
        if len(message.payload) > MAX_MESSAGE_BYTES:
            raise PoisonError(f"has {len(message.payload)} bytes, at most {MAX_MESSAGE_BYTES} are taken")
        if is_batch(message):
            admitted = [self._batch(client_id, message, today, at, arrived or today)]
            bad: list[foreign.BadReading] = []
        else:
            admitted, bad = self._foreign(client_id, message, arrived or today, at)
        for item in admitted:
            if item.size > MAX_INSERT_BYTES:
                raise PoisonError(f"would take {item.size} bytes in the store, at most {MAX_INSERT_BYTES} are taken")
        return admitted, bad

    def _batch(self, client_id: int, message: Message, today: date, at: float, arrived: date) -> Admitted:
        properties = message.properties or {}
        name, count = name_and_count(client_id, properties)
        if message.content_type != CONTENT_TYPE:
            raise PoisonError(f"has content type {message.content_type!r}")
        day = _property_date(properties, "day")
        if day is None or not arrived - timedelta(self._horizon_days) <= day <= today + timedelta(1):
            raise PoisonError(f"has day {day}, taken are {self._horizon_days} days back to tomorrow")
        since = _property_date(properties, "since")
        if since is not None:
            # Another server, not yet past its midnight, may have been heard later. None: a clock was wrong, search all.
            since = since - timedelta(1) if EARLIEST < since <= min(day, today) else None
        readings = decode(message.payload, name, count)
        codes = readings.codes.to_numpy()
        return Admitted(
            name,
            day,
            since,
            readings.keys,
            codes,
            readings.created_at.to_numpy(),
            readings.values.to_numpy(),
            None,
            must_look_up=properties.get("attempt", "0") != "0" or message.dup,
            look_up=True,
            at=at,
            received_at=time.time_ns() // 1000,
            acked=[Range(name.stream, name.first_seq, name.first_seq + count - 1)],
            size=_size(readings.keys, codes),
        )

    def _foreign(
        self, client_id: int, message: Message, day: date, at: float
    ) -> tuple[list[Admitted], list[foreign.BadReading]]:
        good, bad = foreign.parse(message.payload)
        admitted = []
        with_id = [reading for reading in good if reading.id]
        without = [reading for reading in good if not reading.id]
        if with_id:
            admitted.append(_foreign_block(Name(client_id, 0, with_id[0].id), with_id, day, at, message.retained))
        if without:
            name = self._name(client_id, message, len(without))
            admitted.append(_foreign_block(name, without, day, at, message.retained))
        return admitted, bad

    def _name(self, client_id: int, message: Message, count: int) -> Name:
        """Under which readings without an id are stored; two servers give what brokers remember the same name."""
        if message.retained:
            return Name(client_id, digest_stream(hashlib.sha256(message.payload).hexdigest()), 1)
        first = self._numbered[client_id] + 1
        self._numbered[client_id] += count
        return Name(client_id, self._own_stream, first)


def _foreign_block(
    name: Name, readings: Sequence[foreign.ForeignReading], day: date, at: float, retained: bool
) -> Admitted:
    numbered = name.stream == 0
    codes: dict[str, int] = {}
    column = np.array([codes.setdefault(reading.data_key, len(codes)) for reading in readings], np.int32)
    keys = list(codes)
    return Admitted(
        name,
        day,
        day - timedelta(1),
        keys,
        column,
        np.array([reading.created_at for reading in readings], np.int64),
        np.array([reading.data_value for reading in readings], np.float64),
        np.array([reading.id for reading in readings], np.uint64) if numbered else None,
        must_look_up=False,
        look_up=not numbered,
        at=at,
        received_at=time.time_ns() // 1000,
        acked=[Range(0, reading.id, reading.id) for reading in readings if numbered],
        retained=retained,
        size=_size(keys, column),
    )


def _size(keys: Sequence[str], codes: NDArray[Any]) -> int:
    """Bytes of readings in an INSERT, each with its key, and of the keys; a little more if that is surely not much."""
    most = (len(codes) + len(keys)) * (ROW_BYTES + 4 * max(map(len, keys), default=0))
    if most <= _SURELY_SMALL:
        return most
    lengths = np.array([len(key.encode()) for key in keys], np.int64)
    return int((len(codes) + len(keys)) * ROW_BYTES + lengths[codes].sum() + lengths.sum())


def name_and_count(client_id: int, properties: dict[str, str]) -> tuple[Name, int]:
    """A batch's name and length from its properties; raises ``PoisonError``."""
    stream, first, count = (_property_number(properties, name) for name in ("stream", "first_seq", "count"))
    if not 1 <= stream < 2**64 or first < 1 or not 1 <= count <= MAX_READINGS or first + count - 1 > MAX_SEQ:
        raise PoisonError(f"has stream {stream}, first_seq {first} and count {count}, which is out of range")
    return Name(client_id, stream, first), count


def _property_number(properties: dict[str, str], name: str) -> int:
    value = properties.get(name, "")
    if not (value.isascii() and value.isdigit() and len(value) <= 20):
        raise PoisonError(f"has property {name} {value!r:.50}, a number is needed")
    return int(value)


def _property_date(properties: dict[str, str], name: str) -> date | None:
    value = properties.get(name, "")
    try:
        return date.fromisoformat(value) if value else None
    except ValueError as error:
        raise PoisonError(f"has property {name} {value!r:.50}, a date is needed") from error


def build_block(day: date, items: list[Admitted]) -> Block:
    """One block of all items' readings."""
    counts = np.array([len(item.values) for item in items])
    starts = np.cumsum(counts) - counts
    keys: dict[str, int] = {}
    codes = []
    known: dict[int, NDArray[np.int32]] = {}  # batches share their lists of keys, see ``batch.Readings``
    for item in items:
        if (own := known.get(id(item.keys))) is None:
            own = known[id(item.keys)] = np.array([keys.setdefault(key, len(keys)) for key in item.keys], np.int32)
        codes.append(own[item.codes])
    # A run of seq is its position plus an offset; uint64 arithmetic wraps around and back.
    offset = np.array([item.name.first_seq for item in items], np.uint64) - starts.astype(np.uint64)
    seq = np.repeat(offset, counts) + np.arange(counts.sum(), dtype=np.uint64)
    for item, start in zip(items, starts, strict=True):
        if item.seqs is not None:
            seq[start : start + len(item.seqs)] = item.seqs
    return Block(
        client_id=np.repeat(np.array([item.name.client_id for item in items], np.uint32), counts),
        stream=np.repeat(np.array([item.name.stream for item in items], np.uint64), counts),
        seq=seq,
        created_at=np.concatenate([item.created_at for item in items]),
        keys=[key.encode() for key in keys],
        codes=np.concatenate(codes),
        data_value=np.concatenate([item.values for item in items]),
        received_at=np.repeat(np.array([item.received_at for item in items], np.int64), counts),
        day=day,
    )
