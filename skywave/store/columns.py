"""Rows and columns as the store takes them: types, quoting, the values of a block."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import StoreUnavailable

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
        """Bytes that it counts towards its client's quota, see ``Store.rejected_bytes``."""
        texts = (self.topic, self.reason, self.properties)
        return len(self.payload) + sum(len(text.encode(errors="surrogateescape")) for text in texts) + REJECTED_OVERHEAD


def as_column(name: str, values: Sequence[Any]) -> Any:
    """Python values as the numpy column ``name``."""
    if name in _TYPES:
        return np.array(values, dtype=_TYPES[name])
    column = np.empty(len(values), dtype=object)
    column[:] = [value.encode(errors="surrogateescape") if isinstance(value, str) else value for value in values]
    return column


def at_once(statement: str) -> str:
    """A DROP for a modern engine, whose databases would keep what is dropped for eight minutes; others as they are."""
    return f"{statement} SYNC" if statement.startswith("DROP ") else statement


def quote(value: str) -> str:
    """A string as an SQL literal."""
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def text(value: bytes | str) -> str:
    """A string column's value as text."""
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def as_date(value: Any) -> date:
    """A Date column's value."""
    return value if isinstance(value, date) else date.fromisoformat(str(value)[:10])


def sync_filesystem(path: str) -> None:
    """Writes the file system that holds ``path`` to its disk (syncfs(2)); raises ``StoreUnavailable``."""
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise StoreUnavailable(
            f"store.data_path {path}: {error.strerror}", "Name a folder on the store's disk."
        ) from error
    try:
        if libc.syncfs(handle) != 0:
            raise StoreUnavailable(f"syncfs {path}: {os.strerror(ctypes.get_errno())}", "Check the disk.")
    finally:
        os.close(handle)
