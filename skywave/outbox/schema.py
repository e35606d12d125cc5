"""The outbox's tables, in the dialect that PostgreSQL and SQLite share, and what their rows can be.

What is read is not believed: a disk alters numbers too.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Any

from ..formats.declared import MAX_READINGS

Statement = tuple[str, Sequence[Any]]
"""SQL with ``?`` for parameters, and these."""
Query = Callable[[str, Sequence[Any]], list[tuple[Any, ...]]]
"""Runs a SELECT with its parameters; returns the rows."""
SCHEMA_VERSION = "2"

TABLES = (
    "CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS batch (id BIGINT PRIMARY KEY, stream BIGINT NOT NULL, first_seq BIGINT NOT NULL,"
    " count BIGINT NOT NULL, made_at BIGINT NOT NULL, since TEXT, payload {blob} NOT NULL, crc BIGINT NOT NULL)",
    # One row a start of the client: where the stream's batches begin, and all that was ever appended to it.
    "CREATE TABLE IF NOT EXISTS stream (stream BIGINT PRIMARY KEY, first_id BIGINT NOT NULL, last_seq BIGINT NOT NULL,"
    " batches BIGINT NOT NULL, bytes BIGINT NOT NULL)",
    # One row: all that ever left, so that what is in the outbox is what the streams say minus this.
    "CREATE TABLE IF NOT EXISTS gone (one BIGINT PRIMARY KEY, batches BIGINT NOT NULL, readings BIGINT NOT NULL,"
    " bytes BIGINT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS day (from_id BIGINT PRIMARY KEY, day TEXT)",
    "CREATE TABLE IF NOT EXISTS dropped (stream BIGINT NOT NULL, first_seq BIGINT NOT NULL, last_seq BIGINT NOT NULL,"
    " reason TEXT NOT NULL, PRIMARY KEY (stream, first_seq))",
    "CREATE TABLE IF NOT EXISTS sensor (name TEXT PRIMARY KEY, stream BIGINT NOT NULL, seq BIGINT NOT NULL)",
    "INSERT INTO gone VALUES (1, 0, 0, 0) ON CONFLICT DO NOTHING",
)
COLUMNS = "id, stream, first_seq, count, made_at, since, payload, crc"
INSERT_BATCH = f"INSERT INTO batch ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
LARGEST = 1 << 62
# What a stream's account can be. A flipped bit makes numbers that would overflow, or keep an audit busy for ever.
SOUND = (
    f"last_seq BETWEEN 0 AND {LARGEST} AND last_seq / {MAX_READINGS} <= batches AND batches BETWEEN 0 AND {1 << 40}"
    f" AND bytes BETWEEN 0 AND {1 << 50} AND first_id BETWEEN 1 AND {LARGEST}"
)


def checksum(stream: int, first_seq: int, count: int, payload: bytes | memoryview) -> int:
    """CRC-32 of a batch's name and bytes."""
    return zlib.crc32(payload, zlib.crc32(b"%d %d %d" % (stream, first_seq, count)))


def intact(row: Sequence[Any]) -> bool:
    """True if a row of ``batch`` (``COLUMNS``) is as it was written, as far as its checksum reaches."""
    batch_id, stream, first_seq, count, made_at, _, payload, crc = row
    numbers = all(isinstance(number, int) for number in (batch_id, stream, first_seq, count, made_at))
    return numbers and isinstance(payload, bytes | memoryview) and checksum(stream, first_seq, count, payload) == crc


def sound(account: Sequence[Any]) -> bool:
    """True if a row of ``stream`` can be an account; ``SOUND`` says the same in SQL."""
    if not all(isinstance(number, int) for number in account):
        return False
    _, first_id, last_seq, batches, size = map(int, account)
    readings = 0 <= last_seq <= LARGEST and last_seq // MAX_READINGS <= batches
    return readings and batches <= 1 << 40 and 0 <= size <= 1 << 50 and 1 <= first_id <= LARGEST
