"""The record of what is accepted of the account, in the table ``accepted``.

An entry says who accepts which numbers, when and why. It takes them out of the verdict, never out of the account; nothing is
deleted by it, and it can be taken back by a later one.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence

from ..formats.spans import Spans
from .accounts import LOST, TAKEN_BACK, VOID, Entry, Wanted
from .columns import text
from .sql import Sql

_COLUMNS = ("client_id", "stream", "first_seq", "last_seq", "what", "reason", "name", "at")


def record(sql: Sql, wanted: Sequence[Wanted], what: str, reason: str, name: str) -> list[Entry]:
    """Puts it on record; returns the entries."""
    # Of equal ranges the latest counts, whatever the clock of this host says.
    latest = int(sql.query(f"SELECT max(at) FROM {sql.database}.accepted")[0][0])
    at = max(latest + 1, time.time_ns() // 1000)
    noted = [Entry(*numbers, what, reason, name, at) for numbers in wanted]
    sql.insert_rows("accepted", _COLUMNS, noted)
    sql.sync()
    return noted


def entries(sql: Sql, client_id: int | None = None) -> list[Entry]:
    """What is accepted and was not taken back, in the order of the numbers. Raises ``StoreUnavailable``."""
    where = f"client_id = {client_id}" if client_id is not None else "1"
    return sql.read_whole(["accepted"], lambda: _entries(sql, where))


def _entries(sql: Sql, where: str) -> list[Entry]:
    if not is_there(sql):
        return []
    latest = {}
    for client, stream, first, last, what, reason, name, at in sql.query(
        f"SELECT {', '.join(_COLUMNS)} FROM {sql.database}.accepted WHERE {where} ORDER BY at"
    ):
        entry = Entry(int(client), int(stream), int(first), int(last), text(what), text(reason), text(name), int(at))
        latest[entry[:4]] = entry
    return sorted(entry for entry in latest.values() if entry.what != TAKEN_BACK)


def accepted_spans(sql: Sql, where: str) -> dict[tuple[int, int], tuple[Spans, Spans]]:
    """For each stream of which something is accepted: the numbers that are lost, and those that were never produced.
    For use inside ``Sql.read_whole``."""
    found: defaultdict[tuple[int, int], defaultdict[str, list[tuple[int, int]]]]
    found = defaultdict(lambda: defaultdict(list))
    for entry in _entries(sql, where):
        found[entry.client_id, entry.stream][entry.what].append((entry.first, entry.last))
    return {key: (Spans.of(pairs[LOST]), Spans.of(pairs[VOID])) for key, pairs in found.items()}


def is_there(sql: Sql) -> bool:
    """False in a store that no server of this release has migrated."""
    tables = f"SELECT count() FROM system.tables WHERE database = '{sql.database}'"
    return bool(sql.query(f"{tables} AND name = 'accepted'")[0][0])
