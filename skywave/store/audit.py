"""The account of every reading: produced = stored + pending + rejected + expired + declared lost + accepted, or it names
what is missing.

*Produced* comes from the clients' own statuses, kept in ``streams``; never from the table under test. *Stored* counts
distinct identities. A number that is nowhere is *pending* if its client says that its outbox still holds numbers from
there on, *accepted* if somebody has put on record that it is lost (``accepted.py``), and *missing* otherwise. *Doubled* are
identities stored in more than one place that FINAL does not merge.

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

from ..formats.spans import NOTHING, Span, Spans
from .accepted import accepted_spans
from .columns import as_date
from .store import Store

READ_AFTER = ("telemetry", "rejected", "dropped", "expired", "accepted")
"""The tables that must be as new as what ``streams`` says was stored."""
MAX_RANGES = 1000
ROWS_AT_ONCE = 1 << 25
"""Rows that one query looks at: at worst each is a group of its own, of some 60 bytes in the database."""
CHUNK = 1 << 20
"""Numbers of a stream that stay together where a day has more rows than that."""
NAMES_AT_ONCE = 1000

Key = tuple[int, int]
"""A client and a stream of it."""


FIGURES = (
    "produced", "stored", "pending", "rejected", "expired", "dropped", "accepted", "missing", "doubled", "ahead"
)  # fmt: skip


@dataclass(slots=True)
class StreamAccount:
    """The account of one stream of one client; ``absent`` are the numbers that are missing, ``ahead`` readings stored since
    the client's last report."""

    client_id: int
    stream: str
    produced: int
    stored: int = 0
    pending: int = 0
    rejected: int = 0
    expired: int = 0
    dropped: int = 0
    accepted: int = 0
    doubled: int = 0
    ahead: int = 0
    oldest_unacked_s: float = 0.0
    reported_s_ago: float = 0.0
    said: int = 0
    """The last number that its client ever named: more than ``produced`` if that was corrected."""
    highest: int = 0
    """The highest number of which something is known in the store."""
    absent: Spans = NOTHING

    @property
    def missing(self) -> int:
        """How many readings are missing."""
        return self.absent.count

    @property
    def missing_ranges(self) -> list[Span]:
        """The first of their ranges."""
        return self.absent.pairs(MAX_RANGES)

    def as_json(self) -> dict[str, Any]:
        """Its part of the account's document."""
        names = ("client_id", "stream", *FIGURES, "oldest_unacked_s", "reported_s_ago", "missing_ranges")
        return {name: getattr(self, name) for name in names}


@dataclass(slots=True)
class Account:
    """The whole account. ``foreign`` counts readings of streams that no client has reported: of devices that keep no account
    (plain JSON), and of a client that has just started."""

    streams: list[StreamAccount]
    foreign: int

    def total(self, name: str) -> Any:
        """Sum of a figure over all streams."""
        return sum(getattr(stream, name) for stream in self.streams)

    @property
    def clean(self) -> bool:
        """True if nothing is missing and nothing doubled."""
        return not self.total("missing") and not self.total("doubled")

    def as_json(self) -> dict[str, Any]:
        """The document of ``skywave audit --json``."""
        return {
            "clean": self.clean,
            **{name: self.total(name) for name in FIGURES},
            "foreign": self.foreign,
            "oldest_unacked_s": max((s.oldest_unacked_s for s in self.streams), default=0.0),
            "streams": [stream.as_json() for stream in self.streams],
        }


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


def audit_shards(stores: Sequence[Store], client_id: int | None = None) -> Account:
    """The account over all shards of a cluster, whose connections it closes. Raises ``StoreUnavailable``."""
    try:
        accounts = [audit(store, client_id) for store in stores]
    finally:
        for store in stores:
            store.close()
    return Account([stream for account in accounts for stream in account.streams], sum(a.foreign for a in accounts))


def audit(store: Store, client_id: int | None = None) -> Account:
    """Takes the account of all clients, or of one. Raises ``StoreUnavailable``."""
    where = f"client_id = {client_id}" if client_id is not None else "1"
    streams = (
        f"SELECT client_id, stream, last_seq, first_pending, oldest_at, reported_at FROM {store.database}.streams FINAL"
        f" WHERE {where} ORDER BY client_id, reported_at, stream"
    )
    reported = store.read_whole(["streams"], lambda: store.query(streams))
    return store.read_whole(READ_AFTER, lambda: _account(store, reported, where))


def _account(store: Store, reported: Sequence[tuple[Any, ...]], where: str) -> Account:
    """What became of the reported streams."""
    held, foreign = _stored(store, where)
    rejected = _spans(store, "rejected", "first_seq + count - 1", f"{where} AND count > 0")
    dropped = _spans(store, "dropped", "last_seq", where)
    expired = _spans(store, "expired", "last_seq", where)
    accepted = accepted_spans(store, where)
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


def _stored(store: Store, where: str) -> tuple[dict[Key, _Held], int]:
    """What the table has of each numbered stream, and how many readings of stream 0: a day after the other, and of a large
    one some streams, or ``CHUNK`` numbers of them, after the others."""
    held: defaultdict[Key, _Held] = defaultdict(lambda: _Held([]))
    foreign = 0
    table = f"FROM {store.database}.telemetry"
    for day, rows in store.query(f"SELECT day, count() {table} WHERE {where} GROUP BY day ORDER BY day"):
        of_day = f"{where} AND day = '{as_date(day)}'"
        # Sort key first, so that FINAL merges these rows alone: all copies of a reading agree in it.
        foreign += int(store.query(f"SELECT count() {table} FINAL PREWHERE stream = 0 WHERE {of_day}")[0][0])
        parts = -(-int(rows) // ROWS_AT_ONCE)
        for part in range(parts):
            some = f" AND (stream + intDiv(seq, {CHUNK})) % {parts} = {part}" if parts > 1 else ""
            chosen = f"{table} WHERE {of_day} AND stream > 0{some}"
            numbers, doubtful = _numbers(store, chosen)
            for key, spans in numbers:
                held[key].parts.append(spans)
            for key, more in _copies(store, chosen, doubtful):
                held[key].doubled += more
    return held, foreign


def _numbers(store: Store, chosen: str) -> tuple[Iterable[tuple[Key, Spans]], list[Key]]:
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
    for batch in store.stream(words):
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


def _copies(store: Store, chosen: str, doubtful: Sequence[Key]) -> Iterator[tuple[Key, int]]:
    """In how many places more than they have numbers these streams have readings. Rows that FINAL merges are one place."""
    for start in range(0, len(doubtful), NAMES_AT_ONCE):
        names = doubtful[start : start + NAMES_AT_ONCE]
        clients = ", ".join(sorted({str(client) for client, _ in names}))
        for client, stream, places, numbers in store.query(
            f"SELECT client_id, stream, uniqExact(seq, data_key, created_at), uniqExact(seq) {chosen}"
            f" AND client_id IN ({clients}) AND (client_id, stream) IN ({', '.join(map(str, names))})"
            " GROUP BY client_id, stream"
        ):
            yield (int(client), int(stream)), int(places - numbers)


def _spans(store: Store, table: str, last: str, where: str) -> dict[Key, Spans]:
    found: defaultdict[Key, list[tuple[int, int]]] = defaultdict(list)
    for client, stream, first, end in store.query(
        f"SELECT client_id, stream, first_seq, {last} FROM {store.database}.{table} FINAL WHERE stream > 0 AND {where}"
    ):
        found[client, stream].append((first, end))
    return {key: Spans.of(pairs) for key, pairs in found.items()}
