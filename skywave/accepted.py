"""What somebody has put on record about the account: readings that are known to be lost, and numbers that were never produced.

After a disaster, or with an outbox that was destroyed, readings are missing for ever, and a status that was forged or
damaged names readings that never were. Both would keep the account unclean, and hide what goes missing next. An entry says
who accepts which numbers, when and why. It takes them out of the verdict, never out of the account; nothing is deleted
by it, and it can be taken back. What is *doubled* cannot be accepted: it is in the table, and can be mended there.
"""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from .errors import ConfigError
from .server.store import Store, text
from .spans import Spans

if TYPE_CHECKING:
    from .audit import StreamAccount

LOST = "lost"
VOID = "never produced"
TAKEN_BACK = "taken back"
MAX_ENTRIES = 100_000
"""Ranges that one acceptance may put on record."""
_WHAT = re.compile(r"all|([1-9]\d{0,9})(?:/([1-9]\d{0,19})(?:/([1-9]\d{0,19})(?:-([1-9]\d{0,19}))?)?)?")
_COLUMNS = ("client_id", "stream", "first_seq", "last_seq", "what", "reason", "name", "at")


class Entry(NamedTuple):
    """Numbers ``first`` to ``last`` of a stream are ``what``, says ``name``; ``at`` is in µs UTC."""

    client_id: int
    stream: int
    first: int
    last: int
    what: str
    reason: str
    name: str
    at: int

    def as_json(self) -> dict[str, Any]:
        """The entry as a JSON document."""
        return {**self._asdict(), "stream": str(self.stream)}


class What(NamedTuple):
    """Which numbers are meant: of all clients, or of one, of a stream of it, or some of that. None leaves it open."""

    client_id: int | None = None
    stream: int | None = None
    first: int | None = None
    last: int | None = None

    @classmethod
    def parse(cls, word: str) -> What:
        """``all`` or ``CLIENT[/STREAM[/FIRST[-LAST]]]``; raises ``ValueError``."""
        match = _WHAT.fullmatch(word)
        if match is None:
            raise ValueError(f"{word!r} is neither all nor CLIENT, CLIENT/STREAM, CLIENT/STREAM/FIRST-LAST")
        client, stream, first, last = (int(number) if number else None for number in match.groups())
        if max(stream or 0, first or 0, last or 0) >= 2**64 or (last is not None and (first or 0) > last):
            raise ValueError(f"{word!r} names numbers that there cannot be")
        return cls(client, stream, first, first if last is None else last)

    def has(self, client_id: int, stream: int) -> bool:
        """True if it means numbers of this stream."""
        return self.client_id in (None, client_id) and self.stream in (None, stream)

    def numbers(self, spans: Spans) -> Spans:
        """Those of ``spans`` that it means."""
        return spans if self.first is None or self.last is None else spans & Spans.of([(self.first, self.last)])


Wanted = tuple[int, int, int, int]
"""Client, stream, first and last number."""


def lost(accounts: Iterable[StreamAccount], what: What) -> list[Wanted]:
    """The missing numbers that ``what`` means. Raises ``ConfigError`` if none of them is missing, or too many ranges are."""
    found = [
        (account.client_id, int(account.stream), *span)
        for account in accounts
        if what.has(account.client_id, int(account.stream))
        for span in what.numbers(account.absent).pairs(MAX_ENTRIES + 1)
    ]
    if not found:
        raise ConfigError("nothing of that is missing, so there is nothing to accept", "See: skywave audit")
    if len(found) > MAX_ENTRIES:
        raise ConfigError(
            f"these are more than {MAX_ENTRIES} ranges", "Accept them client by client, or stream by stream."
        )
    return found


def void(accounts: Iterable[StreamAccount], what: What) -> list[Wanted]:
    """The numbers above ``what.first`` that its client named: this is the last that the stream produced. Raises
    ``ConfigError`` if there are none, or if something above is known."""
    for account in accounts:
        if what.first is None or not what.has(account.client_id, int(account.stream)):
            continue
        if what.first >= account.said:
            raise ConfigError(f"its client named {account.said} as the last number", "See: skywave audit")
        if what.first < account.highest:
            raise ConfigError(
                f"reading {account.highest} of that stream has arrived, so at least as many were produced",
                "Accept the numbers that are missing below it instead.",
            )
        return [(account.client_id, int(account.stream), what.first + 1, account.said)]
    raise ConfigError("no client has named that stream", "Give CLIENT/STREAM/LAST; see: skywave audit")


def record(
    stores: Sequence[Store], place: Callable[[int], int], wanted: Sequence[Wanted], what: str, reason: str, name: str
) -> list[Entry]:
    """Puts it on record in the shards of the clients (``place``); returns the entries. Raises ``StoreUnavailable``."""
    at = time.time_ns() // 1000
    entries = [Entry(*numbers, what, reason, name, at) for numbers in wanted]
    for number, store in enumerate(stores):
        if own := [entry for entry in entries if place(entry.client_id) == number]:
            if not _there(store):
                store.migrate()
            store.insert_rows("accepted", _COLUMNS, own)
            store.sync()
    return entries


def entries(store: Store, client_id: int | None = None) -> list[Entry]:
    """What is accepted and was not taken back, in the order of the numbers. Raises ``StoreUnavailable``."""
    where = f"client_id = {client_id}" if client_id is not None else "1"
    return store.read_whole(["accepted"], lambda: _entries(store, where))


def _entries(store: Store, where: str) -> list[Entry]:
    if not _there(store):
        return []
    latest = {}
    for client, stream, first, last, what, reason, name, at in store.query(
        f"SELECT {', '.join(_COLUMNS)} FROM {store.database}.accepted WHERE {where} ORDER BY at"
    ):
        entry = Entry(int(client), int(stream), int(first), int(last), text(what), text(reason), text(name), int(at))
        latest[entry[:4]] = entry
    return sorted(entry for entry in latest.values() if entry.what != TAKEN_BACK)


def accepted_spans(store: Store, where: str) -> dict[tuple[int, int], tuple[Spans, Spans]]:
    """For each stream of which something is accepted: the numbers that are lost, and those that were never produced.
    For use inside ``Store.read_whole``."""
    found: defaultdict[tuple[int, int], dict[str, list[tuple[int, int]]]] = defaultdict(lambda: {LOST: [], VOID: []})
    for entry in _entries(store, where):
        found[entry.client_id, entry.stream][entry.what].append((entry.first, entry.last))
    return {key: (Spans.of(pairs[LOST]), Spans.of(pairs[VOID])) for key, pairs in found.items()}


def _there(store: Store) -> bool:
    """False in a store that no server of this release has migrated."""
    return bool(
        store.query(f"SELECT count() FROM system.tables WHERE database = '{store.database}' AND name = 'accepted'")[0][
            0
        ]
    )
