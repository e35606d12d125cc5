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

from .schema import COLUMNS, INSERT_BATCH, Statement, intact, sound

AT_ONCE = 500
MAX_STEPS = 200_000
"""Rows that are stepped over one by one behind a damaged page, before the rest is given up."""
_ACCOUNTS: dict[str, tuple[type, ...]] = {"day": (int, str), "dropped": (int, int, int, str), "sensor": (str, int, int)}


def salvage(damaged: Path) -> Iterator[list[Statement]]:
    """Transactions that fill a new, empty outbox with what is left of ``damaged``."""
    with contextlib.closing(sqlite3.connect(damaged)) as connection:
        connection.text_factory = lambda data: data.decode(errors="replace")
        known = {
            row[0]: row
            for row in _read(connection, "SELECT stream, first_id, last_seq, batches, bytes FROM stream")[0]
            if sound(row)
        }
        found: dict[int, _Found] = {}
        seen: set[int] = set()
        for rows in _batches(connection):
            whole = [row for row in rows if intact(row) and row[0] not in seen]
            for row in whole:
                seen.add(row[0])
                found.setdefault(row[1], _Found(row[0])).add(row)
            # Without ``since`` every day is searched for an earlier copy: the rule that fixed its day may be lost here.
            yield [(INSERT_BATCH, (*row[:5], None, *row[6:])) for row in whole]
        known = {stream: row for stream, row in known.items() if stream not in found or found[stream].fits(row)}
        # Without the accounts, what is found makes new ones; then the numbers go on after it, as the day rules need it.
        streams = [*known.values()] + [
            (stream, item.first_id, item.last_seq, item.last_id - item.first_id + 1, item.bytes)
            for stream, item in found.items()
            if stream not in known
        ]
        accounts: list[Statement] = [("INSERT INTO stream VALUES (?, ?, ?, ?, ?)", row) for row in streams]
        for table, types in _ACCOUNTS.items() if streams else ():
            insert = f"INSERT INTO {table} VALUES ({', '.join('?' * len(types))}) ON CONFLICT DO NOTHING"
            accounts += [
                (insert, row)
                for row in _read(connection, f"SELECT * FROM {table}")[0]
                if all(isinstance(value, kind) for value, kind in zip(row, types, strict=True))
                or (table == "day" and isinstance(row[0], int) and row[1] is None)
            ]
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
        self.first_id, self.last_id = min(self.first_id, batch_id), max(self.last_id, batch_id)
        self.last_seq = max(self.last_seq, first_seq + count - 1)
        self.batches, self.readings, self.bytes = self.batches + 1, self.readings + count, self.bytes + len(payload)

    def fits(self, account: tuple[Any, ...]) -> bool:
        """True if it can be part of what the account says."""
        _, first_id, last_seq, batches, _ = account
        return bool(first_id <= self.first_id and self.last_id < first_id + batches and self.last_seq <= last_seq)


def _batches(connection: sqlite3.Connection) -> Iterator[list[tuple[Any, ...]]]:
    """All rows that can be read, past the indexes, which may be what is damaged."""
    last = steps = 0
    sql = f"SELECT rowid, {COLUMNS} FROM batch NOT INDEXED WHERE rowid > ? ORDER BY rowid LIMIT {AT_ONCE}"
    while steps < MAX_STEPS:
        rows, whole = _read(connection, sql, last)
        if rows:
            last, steps = rows[-1][0], 0
            yield [row[1:] for row in rows]
        elif whole:
            return
        if not whole:
            last, steps = last + 1, steps + 1


def _read(connection: sqlite3.Connection, sql: str, *parameters: object) -> tuple[list[tuple[Any, ...]], bool]:
    """The rows up to the first that cannot be read, and whether these are all."""
    rows: list[tuple[Any, ...]] = []
    try:
        for row in connection.execute(sql, parameters):
            rows += [row]
    except (sqlite3.Error, OverflowError):
        return rows, False
    return rows, True
