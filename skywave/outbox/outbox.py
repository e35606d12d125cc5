"""The outbox: the local database that holds every reading until the server has committed it.

All SQL stands here, but what makes the tables (``schema.py``) and what concerns losses (``losses.py``), in the dialect that
PostgreSQL and SQLite share; ``postgres.py`` and ``sqlite.py`` only connect, run transactions and translate errors. Each
thread opens an outbox of its own: the intake appends, the uplink reads, deletes and fixes days.

What holds:

* ``append`` returns after the commit. Batches, their stream's account and the positions of the sensors they came from
  are one transaction, and appending the same batches again after a commit of unknown outcome changes nothing.
* A batch is never altered, and has a checksum: one that the disk has altered is declared lost when it is read. Else it
  leaves by ``delete`` (acknowledged) or ``drop_oldest`` (declared lost). All keep the tally in the same transaction, so
  the backlog is known without reading it.
* ``day`` rules say "batches from id N on: day D" (or: none yet); a batch's day is the rule with the largest N <= id. The
  batches of a start have none until they are about to be published.
* What is read is not believed: a disk alters numbers too. An account that cannot be is not reported.
"""

from __future__ import annotations

import functools
import logging
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

from .. import config
from ..errors import OutboxError
from ..formats.batch import Batch
from ..formats.messages import MAX_TOLD, Dropped, Produced, Range
from . import losses
from .days import Days, as_date
from .schema import COLUMNS, INSERT_BATCH, LARGEST, SCHEMA_VERSION, SOUND, TABLES, Statement, checksum, intact

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Backlog:
    """What the outbox holds: numbers of batches and readings, and bytes of payload."""

    batches: int
    readings: int
    bytes: int


class Position(NamedTuple):
    """Up to which reading of which of its streams a sensor that numbers its readings was taken in."""

    stream: int
    seq: int


def asks(method: Callable[Concatenate[Any, P], T]) -> Callable[Concatenate[Any, P], T]:
    """For a method that waits for the database: notes since when, for who wants to know whether it hangs."""

    def noted(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> T:
        self.asked_at = time.monotonic()
        try:
            return method(self, *args, **kwargs)
        finally:
            self.asked_at = 0.0

    return functools.wraps(method)(noted)


class Outbox(ABC):
    """One connection to the outbox. Every method raises ``OutboxUnavailable`` when the database did not do it."""

    def __init__(self, settings: config.Outbox) -> None:
        self._settings = settings
        self.asked_at = 0.0
        """Since when the database has not answered (monotonic), 0 while it is not asked. Another thread may read it."""
        self._disk_path = Path(settings.disk_path or self.default_disk_path())
        self._looked_at = float("-inf")
        self._most_bytes = 0
        self._free = 0

    # -- what each database does in its own way ----------------------------------------------------------------------

    @abstractmethod
    def transaction(self, statements: Sequence[Statement]) -> None:
        """Runs the statements (with ``?`` for parameters) in one durable transaction."""

    @abstractmethod
    def query(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Rows of a SELECT, outside any transaction."""

    @abstractmethod
    def lock(self) -> None:
        """Makes sure that no other client uses this outbox, until ``close``; raises ``OutboxError`` if one does."""

    @abstractmethod
    def close(self) -> None:
        """Ends the connection."""

    @abstractmethod
    def default_disk_path(self) -> str:
        """A path on the disk that holds the database, "" if it cannot be known."""

    blob_type: str
    lock_tally: Sequence[Statement] = ()
    """What has a transaction that removes batches wait for another one that does, before it counts what it removes."""

    # -- opening -----------------------------------------------------------------------------------------------------

    def create(self, client_id: int) -> None:
        """Creates or checks the schema; raises ``OutboxError`` for another client's outbox or a newer schema."""
        self.transaction([(sql.format(blob=self.blob_type), ()) for sql in TABLES])
        for name, value in (("schema", SCHEMA_VERSION), ("client_id", str(client_id))):
            self.transaction([("INSERT INTO meta VALUES (?, ?) ON CONFLICT DO NOTHING", (name, value))])
            found = self.query("SELECT value FROM meta WHERE name = ?", (name,))[0][0]
            if found != value:
                raise OutboxError(
                    f"outbox has {name} {found}, this client has {value}",
                    "Point the client at its own outbox, or install the version that made this one.",
                )

    def start_stream(self, stream: int) -> int:
        """Registers the stream of a starting client, whose batches have no day yet; returns the id of its first batch."""
        first_id = int(self.query("SELECT COALESCE(MAX(first_id + batches), 1) FROM stream")[0][0])
        if not 1 <= first_id <= LARGEST:
            raise self._found_damaged("the streams' accounts have impossible numbers")
        self.transaction(
            [
                ("INSERT INTO stream VALUES (?, ?, 0, 0, 0)", (stream, first_id)),
                ("DELETE FROM stream WHERE batches = 0 AND stream <> ?", (stream,)),  # it never had a reading
                ("DELETE FROM day WHERE from_id >= ?", (first_id,)),
                ("INSERT INTO day VALUES (?, NULL)", (first_id,)),
            ]
        )
        return first_id

    def has_impossible_accounts(self) -> bool:
        """True if the disk has altered a stream's account, and it shows."""
        return bool(self.query(f"SELECT 1 FROM stream WHERE NOT ({SOUND}) LIMIT 1"))

    # -- the intake's side -------------------------------------------------------------------------------------------

    def append(self, batches: Sequence[Batch], positions: Mapping[str, Position] | None = None) -> None:
        """Commits batches of one stream and their sensors' positions at once; doing so again is harmless."""
        stream, last_seq = batches[-1].stream, batches[-1].last_seq
        known = self.query("SELECT last_seq FROM stream WHERE stream = ?", (stream,)) if self._in_doubt else []
        if known and known[0][0] >= last_seq:
            self._in_doubt = False
            return
        self._in_doubt = True
        size = sum(len(batch.payload) for batch in batches)
        rows = [
            (
                b.id,
                b.stream,
                b.first_seq,
                b.count,
                b.made_at,
                b.since.isoformat() if b.since else None,
                b.payload,
                checksum(b.stream, b.first_seq, b.count, b.payload),
            )
            for b in batches
        ]
        self.transaction(
            [
                *((INSERT_BATCH, row) for row in rows),
                (
                    "UPDATE stream SET last_seq = ?, batches = batches + ?, bytes = bytes + ? WHERE stream = ?",
                    (last_seq, len(batches), size, stream),
                ),
                *(
                    (
                        "INSERT INTO sensor VALUES (?, ?, ?)"
                        " ON CONFLICT (name) DO UPDATE SET stream = excluded.stream, seq = excluded.seq",
                        (name, *position),
                    )
                    for name, position in (positions or {}).items()
                ),
            ]
        )
        self._in_doubt = False
        self._most_bytes += size

    _in_doubt = False

    def full_because(self, more: int) -> str:
        """Why ``more`` bytes cannot be taken: they would pass the bound, or the disk has too little left. "" if they can.

        An empty outbox takes any batch, so that one larger than the bound cannot block for ever.
        """
        now = time.monotonic()
        if now - self._looked_at > 1.0 or self._most_bytes + more > self._settings.max_bytes:
            # Between two looks only this connection adds, so the last figure and what was appended since is an upper bound.
            self._looked_at, self._most_bytes, self._free = now, self.backlog().bytes, self._free_disk()
        most, least = self._settings.max_bytes, self._settings.min_free_disk
        if self._most_bytes > 0 and self._most_bytes + more > most:
            return f"it holds {_size(self._most_bytes)} of outbox.max_bytes {_size(most)}"
        if self._free < least:
            return f"{self._disk_path} has {_size(self._free)} free of outbox.min_free_disk {_size(least)}"
        return ""

    def replace(self, batches: Sequence[Batch]) -> None:
        """Stores other bytes and times of batches that were never published. Doing so again is harmless."""
        if not batches:
            return
        ids = [batch.id for batch in batches]
        held = dict(self.query(f"SELECT id, length(payload) FROM batch WHERE id IN ({', '.join('?' * len(ids))})", ids))
        changed = [batch for batch in batches if batch.id in held]
        self.transaction(
            [
                *(
                    (
                        "UPDATE batch SET made_at = ?, payload = ?, crc = ? WHERE id = ?",
                        (b.made_at, b.payload, checksum(b.stream, b.first_seq, b.count, b.payload), b.id),
                    )
                    for b in changed
                ),
                *(
                    ("UPDATE stream SET bytes = bytes + ? WHERE stream = ?", (len(b.payload) - held[b.id], b.stream))
                    for b in changed
                ),
            ]
        )

    def drop_oldest(self, more: int) -> None:
        """Makes room for ``more`` bytes by deleting the oldest batches and declaring their readings lost."""
        rows = self.query("SELECT id, stream, first_seq, count, length(payload) FROM batch ORDER BY id LIMIT 64")
        oldest: list[tuple[Any, ...]] = []
        freed = 0
        for *row, size in rows:
            oldest.append(tuple(row))
            freed += size or 0
            if freed >= more:
                break
        self._declare_lost(oldest, "outbox full")
        if gathered := losses.gather(self.query):
            self.transaction(gathered)
        self._looked_at = float("-inf")

    def _free_disk(self) -> int:
        try:
            stat = os.statvfs(self._disk_path)
        except OSError:
            return 1 << 62  # no such path here (a remote database): only max_bytes bounds it
        return stat.f_bavail * stat.f_frsize

    def positions(self) -> dict[str, Position]:
        """How far each sensor that numbers its readings was taken in."""
        return {
            name: Position(stream, seq)
            for name, stream, seq in self.query("SELECT name, stream, seq FROM sensor")
            if isinstance(stream, int) and isinstance(seq, int)
        }

    # -- the uplink's side -------------------------------------------------------------------------------------------

    def read(self, first_id: int, last_id: int, limit: int) -> list[Batch]:
        """Up to ``limit`` batches with ``first_id`` <= id <= ``last_id``, in order of id."""
        removed: set[Any] = set()
        while True:
            rows = self.query(
                f"SELECT {COLUMNS} FROM batch WHERE id >= ? AND id <= ? ORDER BY id LIMIT ?", (first_id, last_id, limit)
            )
            damaged = [row for row in rows if not intact(row)]
            if not damaged:
                return [
                    Batch(batch_id, stream, first, count, made_at, as_date(since), bytes(payload))
                    for batch_id, stream, first, count, made_at, since, payload, _ in rows
                ]
            if any(row[0] in removed for row in damaged):
                raise self._found_damaged("damaged batches cannot be removed")
            for batch_id, stream, first, count, *_ in damaged:
                log.error(
                    "outbox: batch %s is damaged, %s readings from %s on of stream %s are lost",
                    batch_id,
                    count,
                    first,
                    stream,
                )
            self._declare_lost([row[:4] for row in damaged], "damaged on the disk")
            removed.update(row[0] for row in damaged)

    def _declare_lost(self, rows: Sequence[tuple[Any, ...]], reason: str) -> None:
        """Removes batches, given as id, stream, first number and count, and declares their readings lost."""
        lost, mended = losses.lost(self.query, rows, reason)
        self._remove([row[0] for row in rows], lost, mended)

    def _found_damaged(self, what: object) -> OutboxError:
        return OutboxError(f"the outbox is damaged: {what}", "Repair the database.")

    def delete(self, ids: Sequence[int]) -> None:
        """Removes acknowledged batches."""
        self._remove(ids, [])

    def _remove(self, ids: Sequence[Any], dropped: Sequence[Dropped], before: Sequence[Statement] = ()) -> None:
        if not ids:
            return
        chosen = f"(SELECT {{}} FROM batch WHERE id IN ({', '.join('?' * len(ids))}))"
        self.transaction(
            [
                *self.lock_tally,
                *before,
                (
                    f"UPDATE gone SET batches = batches + {chosen.format('COUNT(*)')},"
                    f" readings = readings + {chosen.format('COALESCE(SUM(count), 0)')},"
                    f" bytes = bytes + {chosen.format('COALESCE(SUM(length(payload)), 0)')}",
                    [*ids, *ids, *ids],
                ),
                (f"DELETE FROM batch WHERE id IN ({', '.join('?' * len(ids))})", ids),
                *losses.declare(dropped),
            ]
        )

    def days(self) -> Days:
        """The day rules."""
        rows = self.query("SELECT from_id, day FROM day")
        return Days((from_id, as_date(day)) for from_id, day in rows if isinstance(from_id, int))

    def fix_day(self, first: int, day: date | None, stop: int | None = None) -> Days:
        """Durably fixes the day of the batches from ``first`` to before ``stop``, or of all from ``first`` on; forgets the
        rules that no batch needs. Returns the rules that hold now."""
        oldest = self.query("SELECT MIN(id) FROM batch")[0][0]
        needed = min(oldest, first - 1) if isinstance(oldest, int) else first - 1
        days = self.days().needed_from(needed).put(first, stop, day)
        rows = [(rule[0], rule[1].isoformat() if rule[1] else None) for rule in days.rules]
        self.transaction([("DELETE FROM day", ()), *(("INSERT INTO day VALUES (?, ?)", row) for row in rows)])
        return days

    # -- the account -------------------------------------------------------------------------------------------------

    def backlog(self) -> Backlog:
        """What is in the outbox, from the tallies."""
        batches, readings, size = self.query(
            "SELECT SUM(s.batches) - MAX(g.batches), SUM(s.last_seq) - MAX(g.readings), SUM(s.bytes) - MAX(g.bytes)"
            f" FROM stream s, gone g WHERE {SOUND.replace('bytes', 's.bytes').replace('batches', 's.batches')}"
        )[0]
        if not batches or batches < 0:
            return Backlog(0, 0, 0)
        return Backlog(int(batches), max(0, int(readings)), max(0, int(size)))

    def oldest_made_at(self) -> int | None:
        """Time of the oldest reading in the outbox (microseconds, UTC), None if it is empty or nobody knows."""
        rows = self.query("SELECT made_at FROM batch ORDER BY id LIMIT 1")
        return rows[0][0] if rows and isinstance(rows[0][0], int) and 0 <= rows[0][0] < 1 << 56 else None

    def streams(self) -> list[Produced]:
        """The account of each stream that the outbox remembers; of many the oldest and the present one."""
        accounts = []
        found = self.query(f"SELECT stream, first_id, last_seq, batches FROM stream WHERE {SOUND} ORDER BY first_id")
        for stream, first_id, last_seq, batches in [*found[: MAX_TOLD - 1], *found[MAX_TOLD - 1 :][-1:]]:
            rows = self.query(
                "SELECT first_seq FROM batch WHERE id >= ? AND id < ? ORDER BY id LIMIT 1",
                (first_id, first_id + batches),
            )
            first = rows[0][0] if rows else 0
            if rows and not (isinstance(first, int) and 1 <= first <= last_seq):
                first = 1  # damaged, and not yet read
            accounts.append(Produced(stream, last_seq, first))
        return accounts

    def dropped(self) -> list[Dropped]:
        """The ranges declared lost that no server has recorded yet."""
        return losses.declared(self.query)

    def forget_stream(self, produced: Produced) -> None:
        """Forgets an ended stream whose account the server has recorded and whose batches are all gone."""
        # Whatever a message says, a stream that has batches here is not forgotten.
        which = (
            "stream = ? AND last_seq = ?"
            " AND NOT EXISTS (SELECT 1 FROM batch WHERE id >= first_id AND id < first_id + stream.batches)"
        )
        same = f"(SELECT COALESCE(SUM({{}}), 0) FROM stream WHERE {which})"
        key = (produced.stream, produced.last_seq)
        self.transaction(
            [
                (
                    f"UPDATE gone SET batches = batches - {same.format('batches')},"
                    f" readings = readings - {same.format('last_seq')}, bytes = bytes - {same.format('bytes')}",
                    key * 3,
                ),
                (f"DELETE FROM stream WHERE {which}", key),
            ]
        )

    def forget_dropped(self, ranges: Sequence[Range]) -> None:
        """Forgets declared losses that the server has recorded."""
        self.transaction(losses.forget(ranges))


def _size(count: int) -> str:
    return f"{count / (1 << 20):.1f} MiB" if count >= 1 << 20 else f"{count / (1 << 10):.1f} KiB"
