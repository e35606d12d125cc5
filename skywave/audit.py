"""The account of every reading: produced = stored + pending + rejected + expired + declared lost, or it names what is
missing.

*Produced* comes from the clients' own statuses, kept in ``streams``; never from the table under test. *Stored* counts
distinct identities. A number that is nowhere is *pending* if its client says that its outbox still holds numbers from
there on, and *missing* otherwise. *Doubled* are identities stored in more than one place that FINAL does not merge.

The streams are read before the table, so a live system is never misjudged: what a client reported is either stored by
then, or was pending when it reported.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np

from .server.store import Store

SLICE = 5_000_000
"""Numbers of a stream that are looked at in one query, so that memory stays bounded."""
READ_AFTER = ("telemetry", "rejected", "dropped", "expired")
"""The tables that must be as new as what ``streams`` says was stored."""
MAX_RANGES = 1000


class Span(NamedTuple):
    """Numbers ``first`` to ``last`` (inclusive) of a stream."""

    first: int
    last: int


@dataclass(slots=True)
class StreamAccount:
    """The account of one stream of one client; ``ahead`` are readings stored since the client's last report."""

    client_id: int
    stream: str
    produced: int
    stored: int = 0
    pending: int = 0
    rejected: int = 0
    expired: int = 0
    dropped: int = 0
    missing: int = 0
    doubled: int = 0
    ahead: int = 0
    oldest_unacked_s: float = 0.0
    reported_s_ago: float = 0.0
    missing_ranges: list[Span] = field(default_factory=list)


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
        names = ("produced", "stored", "pending", "rejected", "expired", "dropped", "missing", "doubled", "ahead")
        return {
            "clean": self.clean,
            **{name: self.total(name) for name in names},
            "foreign": self.foreign,
            "oldest_unacked_s": max((s.oldest_unacked_s for s in self.streams), default=0.0),
            "streams": [asdict(stream) for stream in self.streams],
        }


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
    rejected = _spans(store, "rejected", "first_seq + count - 1", f"{where} AND count > 0")
    dropped = _spans(store, "dropped", "last_seq", where)
    expired = _spans(store, "expired", "last_seq", where)
    now = time.time()
    accounts = []
    for client, stream, last_seq, first_pending, oldest_at, reported_at in reported:
        account = StreamAccount(client, str(stream), last_seq)
        account.oldest_unacked_s = round(max(0.0, now - oldest_at / 1e6), 1) if oldest_at else 0.0
        account.reported_s_ago = round(max(0.0, now - reported_at / 1e6), 1)
        gaps = _count_stored(store, account, stream, last_seq)
        key = (client, stream)
        for name, spans in (("rejected", rejected[key]), ("expired", expired[key]), ("dropped", dropped[key])):
            setattr(account, name, sum(last - first + 1 for first, last in _intersect(gaps, spans)))
            gaps = _subtract(gaps, spans)
        if first_pending:
            pending = [Span(first_pending, last_seq)]
            account.pending = sum(last - first + 1 for first, last in _intersect(gaps, pending))
            gaps = _subtract(gaps, pending)
        account.missing = sum(last - first + 1 for first, last in gaps)
        account.missing_ranges = gaps[:MAX_RANGES]
        accounts.append(account)
    known = {(client, stream) for client, stream, *_ in reported}
    counted = store.query(
        f"SELECT client_id, stream, count() FROM {store.database}.telemetry FINAL WHERE {where} GROUP BY client_id, stream"
    )
    return Account(accounts, sum(int(rows) for client, stream, rows in counted if (client, stream) not in known))


def _count_stored(store: Store, account: StreamAccount, stream: int, last_seq: int) -> list[Span]:
    """Fills in ``stored``, ``doubled`` and ``ahead``; returns the numbers up to ``last_seq`` that are not stored."""
    rows = f"FROM {store.database}.telemetry WHERE client_id = {account.client_id} AND stream = {stream}"
    highest = int(store.query(f"SELECT max(seq) {rows}")[0][0])
    gaps: list[Span] = []
    for first in range(1, max(highest, last_seq) + 1, SLICE):
        last = first + SLICE - 1
        part = f"{rows} AND seq >= {first} AND seq <= {last}"
        distinct, places, ahead = store.query(
            f"SELECT uniqExact(seq), uniqExact(seq, day, data_key, created_at), uniqExactIf(seq, seq > {last_seq}) {part}"
        )[0]
        account.stored += int(distinct - ahead)
        account.ahead += int(ahead)
        account.doubled += int(places - distinct)
        expected = Span(first, min(last, last_seq))
        if distinct - ahead < expected.last - expected.first + 1:
            gaps += _gaps(store, part, expected)
    return _merged(gaps)


def _gaps(store: Store, part: str, expected: Span) -> Iterator[Span]:
    rows = store.query(f"SELECT DISTINCT seq {part} AND seq <= {expected.last} ORDER BY seq")
    seqs = np.array([expected.first - 1, *(row[0] for row in rows), expected.last + 1], dtype=np.int64)
    for at in np.flatnonzero(np.diff(seqs) > 1):
        yield Span(int(seqs[at]) + 1, int(seqs[at + 1]) - 1)


def _spans(store: Store, table: str, last: str, where: str) -> defaultdict[tuple[int, int], list[Span]]:
    found: defaultdict[tuple[int, int], list[Span]] = defaultdict(list)
    for client, stream, first, end in store.query(
        f"SELECT client_id, stream, first_seq, {last} FROM {store.database}.{table} FINAL WHERE stream > 0 AND {where}"
    ):
        found[client, stream].append(Span(int(first), int(end)))
    return defaultdict(list, {key: _merged(spans) for key, spans in found.items()})


def _merged(spans: Iterable[Span]) -> list[Span]:
    merged: list[Span] = []
    for span in sorted(spans):
        if merged and span.first <= merged[-1].last + 1:
            merged[-1] = Span(merged[-1].first, max(merged[-1].last, span.last))
        else:
            merged.append(span)
    return merged


def _subtract(spans: list[Span], taken: list[Span]) -> list[Span]:
    for cut in taken:
        spans = [
            part
            for span in spans
            for part in (
                Span(span.first, min(span.last, cut.first - 1)),
                Span(max(span.first, cut.last + 1), span.last),
            )
            if part.first <= part.last
        ]
    return _merged(spans)


def _intersect(spans: list[Span], others: list[Span]) -> list[Span]:
    parts = (Span(max(a.first, b.first), min(a.last, b.last)) for a in spans for b in others)
    return [part for part in parts if part.first <= part.last]
