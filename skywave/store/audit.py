"""Takes the account (``accounts.py``) from ClickHouse.

The streams are read before the table, so a live system is never misjudged: what a client reported is either stored by
then, or was pending when it reported. The table is read in one pass, day by day, into ranges of numbers; so the cost follows
the rows and the ranges that there are, whatever numbers somebody names. What a reading may become later (rejected ones are
replayed, stored ones expire) is read after it.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..formats.spans import NOTHING, Spans
from .accepted import accepted_spans
from .accounts import Account, StreamAccount
from .columns import as_date
from .sql import Sql

READ_AFTER = ("telemetry", "rejected", "dropped", "expired", "accepted")
"""The tables that must be as new as what ``streams`` says was stored."""
ROWS_AT_ONCE = 1 << 25
"""Rows that one query looks at: at worst each is a group of its own, of some 60 bytes in the database."""
CHUNK = 1 << 20
"""Numbers of a stream that stay together where a day has more rows than that."""
NAMES_AT_ONCE = 1000

Key = tuple[int, int]
"""A client and a stream of it."""


@dataclass(slots=True)
class _Held:
    """What the table has of one stream: its numbers, a part a day, and in how many places more than it has numbers."""

    parts: list[Spans]
    doubled: int = 0

    def numbers(self) -> Spans:
        """All of them; those of several days are doubled."""
        numbers = Spans.union(self.parts)
        self.doubled += sum(part.count for part in self.parts) - numbers.count
        self.parts = [numbers]
        return numbers


def audit(sql: Sql, client_id: int | None = None) -> Account:
    """Takes the account of all clients, or of one. Raises ``StoreUnavailable``."""
    where = f"client_id = {client_id}" if client_id is not None else "1"
    streams = (
        f"SELECT client_id, stream, last_seq, first_pending, oldest_at, reported_at FROM {sql.database}.streams FINAL"
        f" WHERE {where} ORDER BY client_id, reported_at, stream"
    )
    reported = sql.read_whole(["streams"], lambda: sql.query(streams))
    return sql.read_whole(READ_AFTER, lambda: _account(sql, reported, where))


def _account(sql: Sql, reported: Sequence[tuple[Any, ...]], where: str) -> Account:
    """What became of the reported streams."""
    held, foreign = _stored(sql, where)
    rejected = _spans(sql, "rejected", "first_seq + count - 1", f"{where} AND count > 0")
    dropped = _spans(sql, "dropped", "last_seq", where)
    expired = _spans(sql, "expired", "last_seq", where)
    accepted = accepted_spans(sql, where)
    accounts = []
    for client, stream, last_seq, first_pending, oldest_at, reported_at in reported:
        key = (client, stream)
        lost, void = accepted.get(key, (NOTHING, NOTHING))
        mine = held.pop(key, None) or _Held([])
        pending = Spans.of([(first_pending, last_seq)]) if first_pending else NOTHING
        elsewhere = {
            "rejected": rejected.get(key, NOTHING), "expired": expired.get(key, NOTHING),
            "dropped": dropped.get(key, NOTHING), "pending": pending, "accepted": lost,
        }  # fmt: skip
        account = _of_stream(client, stream, Spans.of([(1, last_seq)]) - void, mine, elsewhere)
        account.said = last_seq
        account.oldest_unacked_s = _age(oldest_at) if oldest_at else 0.0
        account.reported_s_ago = _age(reported_at)
        accounts.append(account)
    unknown = sum(mine.numbers().count + mine.doubled for mine in held.values())
    return Account(accounts, foreign + unknown)


def _of_stream(client_id: int, stream: int, produced: Spans, held: _Held, elsewhere: dict[str, Spans]) -> StreamAccount:
    """The account of a stream: each number counts where it is found first."""
    stored = held.numbers()
    absent = produced - stored
    account = StreamAccount(client_id, str(stream), produced.count, produced.count - absent.count)
    account.ahead = stored.count - account.stored
    account.doubled = held.doubled
    for name, spans in elsewhere.items():
        if spans is not NOTHING:
            setattr(account, name, (absent & spans).count)
            absent -= spans
    account.absent = absent
    account.highest = max(spans.highest for spans in (stored, elsewhere["rejected"], elsewhere["expired"]))
    return account


def _age(at: int) -> float:
    """Seconds since a time in µs UTC."""
    return round(max(0.0, time.time() - at / 1e6), 1)


def _stored(sql: Sql, where: str) -> tuple[dict[Key, _Held], int]:
    """What the table has of each numbered stream, and how many readings of stream 0: a day after the other, and of a large
    one some streams, or ``CHUNK`` numbers of them, after the others."""
    held: defaultdict[Key, _Held] = defaultdict(lambda: _Held([]))
    foreign = 0
    table = f"FROM {sql.database}.telemetry"
    for day, rows in sql.query(f"SELECT day, count() {table} WHERE {where} GROUP BY day ORDER BY day"):
        of_day = f"{where} AND day = '{as_date(day)}'"
        # Sort key first, so that FINAL merges these rows alone: all copies of a reading agree in it.
        foreign += int(sql.query(f"SELECT count() {table} FINAL PREWHERE stream = 0 WHERE {of_day}")[0][0])
        parts = -(-int(rows) // ROWS_AT_ONCE)
        for part in range(parts):
            some = f" AND (stream + intDiv(seq, {CHUNK})) % {parts} = {part}" if parts > 1 else ""
            chosen = f"{table} WHERE {of_day} AND stream > 0{some}"
            numbers, doubtful = _numbers(sql, chosen)
            for key, spans in numbers:
                held[key].parts.append(spans)
            for key, more in _copies(sql, chosen, doubtful):
                held[key].doubled += more
    return held, foreign


def _numbers(sql: Sql, chosen: str) -> tuple[Iterable[tuple[Key, Spans]], list[Key]]:
    """The numbers of each stream among the chosen rows, and the streams that have more rows than numbers.

    The database tells 64 numbers in one word, a bit each (the only way that 18.16 knows to give distinct numbers cheaply).
    """
    words = (
        "SELECT client_id, stream, intDiv(seq, 64) AS word,"
        " groupBitOr(bitShiftLeft(toUInt64(1), toUInt8(bitAnd(seq, 63)))) AS bits, count() AS rows"
        f" {chosen} GROUP BY client_id, stream, word"
    )
    runs: list[tuple[NDArray[Any], ...]] = []
    doubtful: set[Key] = set()
    for batch in sql.stream(words):
        client, stream, word, bits, rows = (np.ascontiguousarray(column.to_numpy()) for column in batch.columns)
        flags = np.unpackbits(bits.astype("<u8").view(np.uint8).reshape(-1, 8), axis=1, bitorder="little")
        more = rows > flags.sum(axis=1)
        doubtful.update(zip(client[more].tolist(), stream[more].tolist(), strict=True))
        edges = np.diff(flags.astype(np.int8), axis=1, prepend=0, append=0)
        at, start = np.nonzero(edges == 1)
        end = np.nonzero(edges == -1)[1]
        base = word.astype(np.uint64)[at] * np.uint64(64)
        runs.append((client[at], stream[at], base + start.astype(np.uint64), base + (end - 1).astype(np.uint64)))
    return _by_stream(runs), sorted(doubtful)


def _by_stream(runs: Sequence[tuple[NDArray[Any], ...]]) -> Iterator[tuple[Key, Spans]]:
    """Client, stream, first and last of runs that do not overlap, in any order, as the ranges of each stream."""
    if not runs:
        return
    client, stream, first, last = (np.concatenate(column) for column in zip(*runs, strict=True))
    order = np.lexsort((first, stream, client))
    client, stream, first, last = client[order], stream[order], first[order], last[order]
    other = np.append(True, (client[1:] != client[:-1]) | (stream[1:] != stream[:-1]))
    begins = other | np.append(True, first[1:] - last[:-1] != 1)
    ends = np.append(begins[1:], True)
    other, client, stream, first, last = other[begins], client[begins], stream[begins], first[begins], last[ends]
    starts = np.flatnonzero(other).tolist()
    for start, end in zip(starts, [*starts[1:], len(first)], strict=True):
        yield (int(client[start]), int(stream[start])), Spans(first[start:end], last[start:end])


def _copies(sql: Sql, chosen: str, doubtful: Sequence[Key]) -> Iterator[tuple[Key, int]]:
    """In how many places more than they have numbers these streams have readings. Rows that FINAL merges are one place."""
    for start in range(0, len(doubtful), NAMES_AT_ONCE):
        names = doubtful[start : start + NAMES_AT_ONCE]
        clients = ", ".join(sorted({str(client) for client, _ in names}))
        for client, stream, places, numbers in sql.query(
            f"SELECT client_id, stream, uniqExact(seq, data_key, created_at), uniqExact(seq) {chosen}"
            f" AND client_id IN ({clients}) AND (client_id, stream) IN ({', '.join(map(str, names))})"
            " GROUP BY client_id, stream"
        ):
            yield (int(client), int(stream)), int(places - numbers)


def _spans(sql: Sql, table: str, last: str, where: str) -> dict[Key, Spans]:
    found: defaultdict[Key, list[tuple[int, int]]] = defaultdict(list)
    for client, stream, first, end in sql.query(
        f"SELECT client_id, stream, first_seq, {last} FROM {sql.database}.{table} FINAL WHERE stream > 0 AND {where}"
    ):
        found[client, stream].append((first, end))
    return {key: Spans.of(pairs) for key, pairs in found.items()}
