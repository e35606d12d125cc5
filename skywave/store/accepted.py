"""What somebody has put on record about the account: readings that are known to be lost, and numbers that were never produced.

After a disaster, or with an outbox that was destroyed, readings are missing for ever, and a status that was forged or
damaged names readings that never were. Both would keep the account unclean, and hide what goes missing next. An entry says
who accepts which numbers, when and why. It takes them out of the verdict, never out of the account; nothing is deleted
by it, and it can be taken back. What is *doubled* cannot be accepted: it is in the table, and can be mended there.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ..formats.spans import Spans
from .columns import text
from .store import Store

LOST = "lost"
VOID = "never produced"
TAKEN_BACK = "taken back"
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


Wanted = tuple[int, int, int, int]
"""Client, stream, first and last number."""


def record(
    stores: Sequence[Store], shard_of: Callable[[int], int], wanted: Sequence[Wanted], what: str, reason: str, name: str
) -> list[Entry]:
    """Puts it on record in the shards of the clients (``shard_of``); returns the entries. Raises ``StoreUnavailable``."""
    noted = []
    for number, store in enumerate(stores):
        own = [numbers for numbers in wanted if shard_of(numbers[0]) == number]
        if not own:
            continue
        if not _there(store):
            store.migrate()
        # Of equal ranges the latest counts, whatever the clock of this host says.
        latest = int(store.query(f"SELECT max(at) FROM {store.database}.accepted")[0][0])
        at = max(latest + 1, time.time_ns() // 1000)
        entries = [Entry(*numbers, what, reason, name, at) for numbers in own]
        store.insert_rows("accepted", _COLUMNS, entries)
        store.sync()
        noted += entries
    return noted


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
    found: defaultdict[tuple[int, int], defaultdict[str, list[tuple[int, int]]]]
    found = defaultdict(lambda: defaultdict(list))
    for entry in _entries(store, where):
        found[entry.client_id, entry.stream][entry.what].append((entry.first, entry.last))
    return {key: (Spans.of(pairs[LOST]), Spans.of(pairs[VOID])) for key, pairs in found.items()}


def _there(store: Store) -> bool:
    """False in a store that no server of this release has migrated."""
    tables = f"SELECT count() FROM system.tables WHERE database = '{store.database}'"
    return bool(store.query(f"{tables} AND name = 'accepted'")[0][0])
