"""What is archived: the tables, their columns and the row digest, in SQL and in numpy.

The digest of rows is the sum modulo 2^64 of one 64-bit hash a row, so it depends neither on order nor on merges, shards
or format. The hash is ClickHouse's ``cityHash64`` over the columns in the order of the sort key: the same in 18.16 and in
current releases, and built here from its parts: integers and the bits of floats go through ``intHash64``, strings through
CityHash 1.0.2, and each is combined with the hash so far by CityHash's ``Hash128to64`` (ClickHouse,
``FunctionsHashing.h``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from clickhouse_cityhash.cityhash import CityHash64
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
Held = tuple[int, int]
"""How many rows of a day a store, a shard or a file holds, and their digest."""
_AT_ONCE = 1 << 15
"""Rows hashed in one go, so that the temporary columns stay in the processor's cache."""


@dataclass(frozen=True)
class Table:
    """One archived table. ``columns`` stand in the order of the sort key, what is not part of it last.

    With ``ranged``, the identity of a row is (client_id, stream, seq) and the manifest keeps ranges of ``seq``; rows of
    stream 0 and those of other tables are told apart by the hash of ``identity``. ``block_rows`` bounds what one block
    of the database's answer holds.
    """

    name: str
    columns: dict[str, pa.DataType]
    identity: tuple[str, ...]
    ranged: bool
    block_rows: int
    time_column: str

    @property
    def schema(self) -> pa.Schema:
        """The columns of a data file, in this order."""
        return pa.schema(list(self.columns.items()))

    @property
    def digest_sql(self) -> str:
        """``count, digest`` of rows, as two SQL expressions."""
        return f"count(), sum(cityHash64({', '.join(self.columns)}))"


TELEMETRY = Table(
    "telemetry",
    {
        "client_id": pa.uint32(), "data_key": pa.binary(), "created_at": pa.int64(), "stream": pa.uint64(),
        "seq": pa.uint64(), "data_value": pa.float64(), "received_at": pa.int64(),
    },
    ("client_id", "data_key", "created_at", "stream", "seq"), True, 1 << 18, "created_at",
)  # fmt: skip
REJECTED = Table(
    "rejected",
    {
        "client_id": pa.uint32(), "stream": pa.uint64(), "first_seq": pa.uint64(), "sha256": pa.binary(),
        "count": pa.uint64(), "topic": pa.binary(), "reason": pa.binary(), "properties": pa.binary(),
        "payload": pa.binary(), "received_at": pa.int64(),
    },
    ("client_id", "stream", "first_seq", "sha256"), False, 256, "received_at",
)  # fmt: skip
BY_DAY = {table.name: table for table in (TELEMETRY, REJECTED)}


def row_hashes(batch: pa.RecordBatch, columns: tuple[str, ...] | None = None) -> Hashes:
    """``cityHash64`` of the named columns (all by default) for each row of a batch without nulls."""
    hashed = [_column(batch.column(name)) for name in columns or batch.schema.names]
    result = np.empty(batch.num_rows, np.uint64)
    for start in range(0, batch.num_rows, _AT_ONCE):
        part: Any = None
        for values, words in hashed:
            column: Any = values[start : start + _AT_ONCE]
            if column[0] == column[-1] and (column == column[0]).all():
                column = column[:1]  # sorted rows: the first columns are mostly constant, so one hash is enough
            column = words[column] if words is not None else _int_hash(column)
            part = column if part is None else _combine(part, column)
        result[start : start + _AT_ONCE] = part
    return result


def digest(hashes: Hashes) -> int:
    """The digest of rows with these hashes."""
    return int(hashes.sum(dtype=np.uint64))


def add(*digests: int) -> int:
    """The digest of the rows of several parts together."""
    return sum(digests) % (1 << 64)


def _column(column: pa.Array) -> tuple[Any, Hashes | None]:
    """A column as integers; for strings, as codes and the hash of each word."""
    if pa.types.is_binary(column.type):
        column = column.dictionary_encode()
    if pa.types.is_dictionary(column.type):
        words = np.array([CityHash64(word.as_py()) for word in column.dictionary], np.uint64)
        return column.indices.to_numpy(), words
    values = column.to_numpy(zero_copy_only=True)
    return (values.view(np.uint64) if values.itemsize == 8 else values.astype(np.uint64)), None


def _int_hash(values: Hashes) -> Hashes:
    x = values ^ np.uint64(0x4CF2D2BAAE6DA887)
    x ^= x >> np.uint64(33)
    x *= np.uint64(0xFF51AFD7ED558CCD)
    x ^= x >> np.uint64(33)
    x *= np.uint64(0xC4CEB9FE1A85EC53)
    x ^= x >> np.uint64(33)
    return x


def _combine(so_far: Hashes, column: Hashes) -> Hashes:
    factor = np.uint64(0x9DDFEA08EB382D69)
    a = so_far ^ column
    a *= factor
    a ^= a >> np.uint64(47)
    b = column ^ a
    b *= factor
    b ^= b >> np.uint64(47)
    b *= factor
    return b
