"""Rows as the store takes and gives them, and the columns and values that they are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .schema import DAY_US, LAST_DAY

REJECTED_OVERHEAD = 1024
"""Bytes that a rejected message counts beside its text."""

_TYPES: dict[str, Any] = {
    "client_id": np.uint32, "stream": np.uint64, "seq": np.uint64, "first_seq": np.uint64, "last_seq": np.uint64,
    "first_pending": np.uint64, "count": np.uint64, "at": np.uint64, "created_at": np.int64, "received_at": np.int64,
    "reported_at": np.int64, "oldest_at": np.int64, "data_value": np.float64, "day": "datetime64[D]",
    "created_day": "datetime64[D]",
}  # fmt: skip
"""numpy type of each column; all others are strings, held as objects of type bytes."""


Reading = tuple[int, str, int, float]
"""What a reading says, whatever its name: client, key, time (µs) and value."""


class Probe(NamedTuple):
    """What a look-up needs to know of a batch: its name and its first reading. As an INSERT is one atomic part, the
    first reading stands for all. ``since`` bounds the days to search, None searches all."""

    client_id: int
    stream: int
    first_seq: int
    data_key: str
    created_at: int
    since: date | None


@dataclass(frozen=True, slots=True)
class Block:
    """Readings of one day for one INSERT: equally long numpy columns; ``codes`` index ``keys``."""

    client_id: NDArray[np.uint32]
    stream: NDArray[np.uint64]
    seq: NDArray[np.uint64]
    created_at: NDArray[np.int64]
    keys: list[bytes]
    codes: NDArray[np.integer[Any]]
    data_value: NDArray[np.float64]
    received_at: NDArray[np.int64]
    day: date

    def __len__(self) -> int:
        return len(self.seq)

    def columns(self) -> dict[str, NDArray[Any]]:
        """The table's columns by name; ``data_key`` holds the codes."""
        return {
            "client_id": self.client_id,
            "stream": self.stream,
            "seq": self.seq,
            "created_at": self.created_at,
            "data_key": self.codes,
            "data_value": self.data_value,
            "received_at": self.received_at,
            "day": np.full(len(self), np.datetime64(self.day)),
        }

    def created_days(self) -> set[int]:
        """The UTC dates of its readings as days since 1970, each the nearest one that every release can show."""
        at = self.created_at
        days = np.clip(np.array([at.min(), at.max()]) // DAY_US, 0, LAST_DAY)
        if days[1] - days[0] > 1:
            days = np.unique(np.clip(at // DAY_US, 0, LAST_DAY))
        return set(days.tolist())


@dataclass(frozen=True, slots=True)
class Rejected:
    """One message that could not be stored as readings, kept with its bytes. Unnamed ones have stream 0."""

    client_id: int
    stream: int
    first_seq: int
    count: int
    sha256: str
    topic: str
    reason: str
    properties: str
    payload: bytes
    received_at: int
    day: date

    @property
    def size(self) -> int:
        """Bytes that it counts towards its client's quota, see ``Delivery.rejected_bytes``."""
        texts = (self.topic, self.reason, self.properties)
        return len(self.payload) + sum(len(text.encode(errors="surrogateescape")) for text in texts) + REJECTED_OVERHEAD


def as_column(name: str, values: Sequence[Any]) -> Any:
    """Python values as the numpy column ``name``."""
    if name in _TYPES:
        return np.array(values, dtype=_TYPES[name])
    column = np.empty(len(values), dtype=object)
    column[:] = [value.encode(errors="surrogateescape") if isinstance(value, str) else value for value in values]
    return column


def text(value: bytes | str) -> str:
    """A string column's value as text."""
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def as_date(value: Any) -> date:
    """A Date column's value."""
    return value if isinstance(value, date) else date.fromisoformat(str(value)[:10])
