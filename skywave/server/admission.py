"""From a message to readings that may be stored, or the reason why it is poison.

Nothing here keeps state of a message: the same code admits what arrives and what is replayed from the rejected.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import config
from ..batch import CONTENT_TYPE, MAX_READINGS, MAX_SEQ, Name, decode
from ..errors import PoisonError
from ..messages import EARLIEST, Range
from ..mqtt import Message
from . import foreign
from .store import Block, Probe

MAX_MESSAGE_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class Admitted:
    """Readings that may be stored: ``seq`` counts from ``name.first_seq`` unless ``seqs`` says otherwise.

    ``must_look_up`` asks the store first; ``look_up`` False means that identity alone keeps them single (JSON with id).
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

    @property
    def foreign(self) -> bool:
        """True if it came as plain JSON."""
        return self.seqs is not None or not self.acked

    def probe(self) -> Probe:
        """What to ask the store about it."""
        return Probe(*self.name, self.keys[int(self.codes[0])], int(self.created_at[0]), self.since)


class Admission:
    """Decodes messages. ``own_stream`` numbers the readings that come without an id."""

    def __init__(self, settings: config.Ingest, own_stream: int) -> None:
        self._horizon_days = settings.horizon_days
        self._own_stream = own_stream
        self._next_seq = 1

    def admit(
        self, client_id: int, message: Message, today: date, at: float
    ) -> tuple[list[Admitted], list[foreign.BadReading]]:
        """The readings of a message, and those of its JSON elements that are none; raises ``PoisonError``.

        ``today`` is the server's UTC date, ``at`` when the message came (seconds of CLOCK_BOOTTIME).
        """
        if message.fault:
            raise PoisonError(message.fault)
        if len(message.payload) > MAX_MESSAGE_BYTES:
            raise PoisonError(f"has {len(message.payload)} bytes, at most {MAX_MESSAGE_BYTES} are taken")
        if message.content_type == CONTENT_TYPE or (message.properties or {}).get("stream"):
            return [self._batch(client_id, message, today, at)], []
        return self._foreign(client_id, message, today, at)

    def _batch(self, client_id: int, message: Message, today: date, at: float) -> Admitted:
        properties = message.properties or {}
        name, count = name_and_count(client_id, properties)
        if message.content_type != CONTENT_TYPE:
            raise PoisonError(f"has content type {message.content_type!r}")
        day = _property_date(properties, "day")
        if day is None or not today - timedelta(self._horizon_days) <= day <= today + timedelta(1):
            raise PoisonError(f"has day {day}, taken are {self._horizon_days} days back to tomorrow")
        since = _property_date(properties, "since")
        if since is not None:
            # Another server, not yet past its midnight, may have been heard later. None: a clock was wrong, search all.
            since = since - timedelta(1) if EARLIEST < since <= min(day, today) else None
        readings = decode(message.payload, name, count)
        return Admitted(
            name, day, since, readings.keys, readings.codes.to_numpy(), readings.created_at.to_numpy(),
            readings.values.to_numpy(), None, must_look_up=properties.get("attempt", "0") != "0" or message.dup,
            look_up=True, at=at, received_at=time.time_ns() // 1000,
            acked=[Range(name.stream, name.first_seq, name.first_seq + count - 1)],
        )  # fmt: skip

    def _foreign(
        self, client_id: int, message: Message, today: date, at: float
    ) -> tuple[list[Admitted], list[foreign.BadReading]]:
        good, bad = foreign.parse(message.payload)
        admitted = []
        with_id = [reading for reading in good if reading.id]
        without = [reading for reading in good if not reading.id]
        if with_id:
            ids = np.array([reading.id for reading in with_id], np.uint64)
            admitted.append(self._foreign_block(Name(client_id, 0, with_id[0].id), with_id, ids, today, at))
        if without:
            admitted.append(
                self._foreign_block(Name(client_id, self._own_stream, self._next_seq), without, None, today, at)
            )
            self._next_seq += len(without)
        return admitted, bad

    def _foreign_block(
        self,
        name: Name,
        readings: Sequence[foreign.ForeignReading],
        ids: NDArray[np.uint64] | None,
        today: date,
        at: float,
    ) -> Admitted:
        codes: dict[str, int] = {}
        column = [codes.setdefault(reading.data_key, len(codes)) for reading in readings]
        acked = [Range(0, reading.id, reading.id) for reading in readings if reading.id]
        return Admitted(
            name, today, today - timedelta(1), list(codes), np.array(column, np.int32),
            np.array([reading.created_at for reading in readings], np.int64),
            np.array([reading.data_value for reading in readings], np.float64),
            ids, must_look_up=False, look_up=ids is None, at=at, received_at=time.time_ns() // 1000, acked=acked,
        )  # fmt: skip


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
