"""What can be read of a damaged SQLite outbox, brought into a new one.

A batch is taken over only if its checksum is right. What cannot be read is lost here; the accounts of the streams come
along if they can be read, so that the server's audit names what is missing.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .outbox import COLUMNS, INSERT_BATCH, Statement, checksum

AT_ONCE = 500


def salvage(damaged: Path) -> Iterator[list[Statement]]:
    """Transactions that fill a new, empty outbox with what is left of ``damaged``."""
    with contextlib.closing(sqlite3.connect(damaged)) as connection:

        def rows(sql: str, *parameters: object) -> list[tuple[Any, ...]]:
            with contextlib.suppress(sqlite3.Error):
                return connection.execute(sql, parameters).fetchall()
            return []

        streams = rows("SELECT stream, first_id, last_seq, batches, bytes FROM stream")
        found: dict[int, _Found] = {}
        for first, last in [(row[1], row[1] + row[3]) for row in streams] or [_ids(connection)]:
            for start in range(first, last, AT_ONCE):
                end = min(start + AT_ONCE, last)
                batches = rows(f"SELECT {COLUMNS} FROM batch WHERE id >= ? AND id < ?", start, end)
                if not batches:  # perhaps because one of them cannot be read
                    one = f"SELECT {COLUMNS} FROM batch WHERE id = ?"
                    batches = [row for number in range(start, end) for row in rows(one, number)]
                whole = [row for row in batches if _whole(row)]
                for row in whole:
                    found.setdefault(row[1], _Found(row[0])).add(row)
                yield [(INSERT_BATCH, row) for row in whole]
        # Without the accounts, what is found makes new ones; then the numbers go on after it, as the day rules need it.
        streams = streams or [
            (stream, item.first_id, item.last_seq, item.last_id - item.first_id + 1, item.bytes)
            for stream, item in found.items()
        ]
        accounts: list[Statement] = [("INSERT INTO stream VALUES (?, ?, ?, ?, ?)", row) for row in streams]
        for table, width in (("day", 2), ("dropped", 4), ("sensor", 3)) if streams else ():
            values = f"({', '.join('?' * width)})"
            accounts += [(f"INSERT INTO {table} VALUES {values}", row) for row in rows(f"SELECT * FROM {table}")]
        left = (
            sum(row[3] for row in streams) - sum(item.batches for item in found.values()),
            sum(row[2] for row in streams) - sum(item.readings for item in found.values()),
            sum(row[4] for row in streams) - sum(item.bytes for item in found.values()),
        )
        yield [*accounts, ("UPDATE gone SET batches = ?, readings = ?, bytes = ?", left)]


@dataclass(slots=True)
class _Found:
    """What was found of one stream."""

    first_id: int
    last_id: int = 0
    last_seq: int = 0
    batches: int = 0
    readings: int = 0
    bytes: int = 0

    def add(self, row: tuple[Any, ...]) -> None:
        batch_id, _, first_seq, count, _, _, payload, _ = row
        self.last_id, self.last_seq = batch_id, max(self.last_seq, first_seq + count - 1)
        self.batches, self.readings, self.bytes = self.batches + 1, self.readings + count, self.bytes + len(payload)


def _ids(connection: sqlite3.Connection) -> tuple[int, int]:
    """First and last (exclusive) of the batches' numbers that can be read."""
    ids: list[int] = []
    with contextlib.suppress(sqlite3.Error):
        for (batch_id,) in connection.execute("SELECT id FROM batch ORDER BY id"):
            ids.append(batch_id)
    return (ids[0], ids[-1] + 1) if ids else (0, 0)


def _whole(row: tuple[Any, ...]) -> bool:
    _, stream, first_seq, count, _, _, payload, crc = row
    return isinstance(payload, bytes) and checksum(stream, first_seq, count, payload) == crc
