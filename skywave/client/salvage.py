"""What can be read of a damaged SQLite outbox, brought into a new one.

A batch is taken over only if its checksum is right. What cannot be read is lost here; the accounts of the streams come
along if they can be read, so that the server's audit names what is missing.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
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
        batches = readings = size = 0
        for first, last in ((first_id, first_id + count) for _, first_id, _, count, _ in streams):
            for start in range(first, last, AT_ONCE):
                end = min(start + AT_ONCE, last)
                found = rows(f"SELECT {COLUMNS} FROM batch WHERE id >= ? AND id < ?", start, end)
                if not found:  # perhaps because one of them cannot be read
                    one = f"SELECT {COLUMNS} FROM batch WHERE id = ?"
                    found = [row for number in range(start, end) for row in rows(one, number)]
                whole = [row for row in found if _whole(row)]
                batches += len(whole)
                readings += sum(row[3] for row in whole)
                size += sum(len(row[6]) for row in whole)
                yield [(INSERT_BATCH, row) for row in whole]
        accounts: list[Statement] = [("INSERT INTO stream VALUES (?, ?, ?, ?, ?)", row) for row in streams]
        for table, width in (("day", 2), ("dropped", 4), ("sensor", 3)):
            values = f"({', '.join('?' * width)})"
            accounts += [(f"INSERT INTO {table} VALUES {values}", row) for row in rows(f"SELECT * FROM {table}")]
        total = [sum(row[at] for row in streams) for at in (3, 2, 4)]
        left = (total[0] - batches, total[1] - readings, total[2] - size)
        yield [*accounts, ("UPDATE gone SET batches = ?, readings = ?, bytes = ?", left)]


def _whole(row: tuple[Any, ...]) -> bool:
    _, stream, first_seq, count, _, _, payload, crc = row
    return isinstance(payload, bytes) and checksum(stream, first_seq, count, payload) == crc
