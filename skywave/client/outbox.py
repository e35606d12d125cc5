"""The outbox: the local database that holds every reading until the server has committed it.

All SQL stands here, in the dialect that PostgreSQL and SQLite share; ``postgres.py`` and ``sqlite.py`` only connect,
run transactions and translate errors. Each thread opens an outbox of its own: the intake appends, the uplink reads,
deletes and fixes days.

What holds:

* ``append`` returns after the commit. Batches, their stream's account and the positions of the sensors they came from
  are one transaction, and appending the same batches again after a commit of unknown outcome changes nothing.
* A batch is never altered, and has a checksum: one that the disk has altered is declared lost when it is read. Else it
  leaves by ``delete`` (acknowledged) or ``drop_oldest`` (declared lost). All keep the tally in the same transaction, so
  the backlog is known without reading it.
* ``day`` rules say "batches from id N on: day D" (or: none yet); a batch's day is the rule with the largest N <= id.
"""

from __future__ import annotations

import bisect
import functools
import logging
import os
import time
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

from .. import config
from ..batch import Batch
from ..errors import OutboxError
from ..messages import Dropped, Produced, Range

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")
SCHEMA_VERSION = "2"
Statement = tuple[str, Sequence[Any]]

_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS batch (id BIGINT PRIMARY KEY, stream BIGINT NOT NULL, first_seq BIGINT NOT NULL,"
    " count BIGINT NOT NULL, made_at BIGINT NOT NULL, since TEXT, payload {blob} NOT NULL, crc BIGINT NOT NULL)",
    # One row a start of the client: where the stream's batches begin, and all that was ever appended to it.
    "CREATE TABLE IF NOT EXISTS stream (stream BIGINT PRIMARY KEY, first_id BIGINT NOT NULL, last_seq BIGINT NOT NULL,"
    " batches BIGINT NOT NULL, bytes BIGINT NOT NULL)",
    # One row: all that ever left, so that what is in the outbox is what the streams say minus this.
    "CREATE TABLE IF NOT EXISTS gone (one BIGINT PRIMARY KEY, batches BIGINT NOT NULL, readings BIGINT NOT NULL,"
    " bytes BIGINT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS day (from_id BIGINT PRIMARY KEY, day TEXT)",
    "CREATE TABLE IF NOT EXISTS dropped (stream BIGINT NOT NULL, first_seq BIGINT NOT NULL, last_seq BIGINT NOT NULL,"
    " reason TEXT NOT NULL, PRIMARY KEY (stream, first_seq))",
    "CREATE TABLE IF NOT EXISTS sensor (name TEXT PRIMARY KEY, stream BIGINT NOT NULL, seq BIGINT NOT NULL)",
    "INSERT INTO gone VALUES (1, 0, 0, 0) ON CONFLICT DO NOTHING",
)
COLUMNS = "id, stream, first_seq, count, made_at, since, payload, crc"
INSERT_BATCH = f"INSERT INTO batch ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"


@dataclass(frozen=True, slots=True)
class Backlog:
    """What the outbox holds: numbers of batches and readings, and bytes of payload."""

    batches: int
    readings: int
    bytes: int


def checksum(stream: int, first_seq: int, count: int, payload: bytes | memoryview) -> int:
    """CRC-32 of a batch's name and bytes."""
    return zlib.crc32(payload, zlib.crc32(b"%d %d %d" % (stream, first_seq, count)))


def intact(row: Sequence[Any]) -> bool:
    """True if a row of ``batch`` (``COLUMNS``) is as it was written, as far as its checksum reaches."""
    batch_id, stream, first_seq, count, made_at, _, payload, crc = row
    numbers = all(isinstance(number, int) for number in (batch_id, stream, first_seq, count, made_at))
    return numbers and isinstance(payload, bytes | memoryview) and checksum(stream, first_seq, count, payload) == crc


class Position(NamedTuple):
    """Up to which reading of which of its streams a sensor that numbers its readings was taken in."""

    stream: int
    seq: int


class Days:
    """The day rules in memory: ``of(id)`` is the day fixed for a batch, None if there is none yet."""

    def __init__(self, rules: Iterable[tuple[int, date | None]]) -> None:
        self._ids: list[int] = []
        self._days: list[date | None] = []
        for from_id, day in sorted(rules, key=lambda rule: rule[0]):
            self.add(from_id, day)

    def add(self, from_id: int, day: date | None) -> None:
        """A rule from ``from_id`` on; it replaces what later rules there were."""
        cut = bisect.bisect_left(self._ids, from_id)
        del self._ids[cut:], self._days[cut:]
        self._ids.append(from_id)
        self._days.append(day)

    def of(self, batch_id: int) -> date | None:
        """The day of a batch."""
        at = bisect.bisect_right(self._ids, batch_id) - 1
        return self._days[at] if at >= 0 else None

    @property
    def latest(self) -> date | None:
        """The day of batches to come."""
        return self._days[-1] if self._days else None

    @property
    def latest_from(self) -> int:
        """First id of the latest rule, 0 if there is none."""
        return self._ids[-1] if self._ids else 0

    @property
    def last_heard(self) -> date | None:
        """The last day that was ever fixed."""
        return max((day for day in self._days if day), default=None)


def as_date(text: str | None) -> date | None:
    """A date of the outbox; None also for what is none, which means: not known."""
    try:
        return date.fromisoformat(text) if text else None
    except (ValueError, TypeError):
        return None


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
        self.transaction([(sql.format(blob=self.blob_type), ()) for sql in _SCHEMA])
        for name, value in (("schema", SCHEMA_VERSION), ("client_id", str(client_id))):
            self.transaction([("INSERT INTO meta VALUES (?, ?) ON CONFLICT DO NOTHING", (name, value))])
            found = self.query("SELECT value FROM meta WHERE name = ?", (name,))[0][0]
            if found != value:
                raise OutboxError(
                    f"outbox has {name} {found}, this client has {value}",
                    "Point the client at its own outbox, or install the version that made this one.",
                )

    def start_stream(self, stream: int) -> int:
        """Registers the stream of a starting client; returns the id of its first batch."""
        first_id = self.query("SELECT COALESCE(MAX(first_id + batches), 1) FROM stream")[0][0]
        self.transaction([("INSERT INTO stream VALUES (?, ?, 0, 0, 0)", (stream, first_id))])
        return int(first_id)

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
        ids, ranges, freed = [], [], 0
        for batch_id, stream, first_seq, count, size in rows:
            ids.append(batch_id)
            ranges.append(Dropped(stream, first_seq, first_seq + count - 1, "outbox full"))
            freed += size
            if freed >= more:
                break
        self._remove(ids, ranges)
        self._looked_at = float("-inf")

    def _free_disk(self) -> int:
        try:
            stat = os.statvfs(self._disk_path)
        except OSError:
            return 1 << 62  # no such path here (a remote database): only max_bytes bounds it
        return stat.f_bavail * stat.f_frsize

    def positions(self) -> dict[str, Position]:
        """How far each sensor that numbers its readings was taken in."""
        return {name: Position(stream, seq) for name, stream, seq in self.query("SELECT name, stream, seq FROM sensor")}

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
            self._declare_damaged(damaged)
            removed.update(row[0] for row in damaged)

    def _declare_damaged(self, rows: Sequence[tuple[Any, ...]]) -> None:
        """Removes batches that the disk has altered, and declares them lost as far as their names can be read."""
        lost: list[Dropped] = []
        for batch_id, stream, first, count, *_ in rows:
            log.error(
                "outbox: batch %s is damaged, %s readings from %s on of stream %s are lost",
                batch_id,
                count,
                first,
                stream,
            )
            if all(isinstance(number, int) for number in (stream, first, count)):
                lost.append(Dropped(stream, first, first + count - 1, "damaged on the disk"))
        self._remove([row[0] for row in rows], lost)

    def _found_damaged(self, what: object) -> OutboxError:
        return OutboxError(f"the outbox is damaged: {what}", "Repair the database.")

    def delete(self, ids: Sequence[int]) -> None:
        """Removes acknowledged batches."""
        self._remove(ids, [])

    def _remove(self, ids: Sequence[int], dropped: Sequence[Dropped]) -> None:
        if not ids:
            return
        chosen = f"(SELECT {{}} FROM batch WHERE id IN ({', '.join('?' * len(ids))}))"
        self.transaction(
            [
                *self.lock_tally,
                (
                    f"UPDATE gone SET batches = batches + {chosen.format('COUNT(*)')},"
                    f" readings = readings + {chosen.format('COALESCE(SUM(count), 0)')},"
                    f" bytes = bytes + {chosen.format('COALESCE(SUM(length(payload)), 0)')}",
                    [*ids, *ids, *ids],
                ),
                (f"DELETE FROM batch WHERE id IN ({', '.join('?' * len(ids))})", ids),
                *(("INSERT INTO dropped VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING", tuple(row)) for row in dropped),
            ]
        )

    def days(self) -> Days:
        """The day rules."""
        rows = self.query("SELECT from_id, day FROM day")
        return Days((from_id, as_date(day)) for from_id, day in rows)

    def fix_day(self, from_id: int, day: date | None) -> None:
        """Durably fixes the day of the batches from ``from_id`` on, and forgets rules that no batch needs."""
        oldest = self.query("SELECT MIN(id) FROM batch")[0][0] or from_id
        self.transaction(
            [
                ("DELETE FROM day WHERE from_id >= ?", (from_id,)),
                (
                    "DELETE FROM day WHERE from_id < (SELECT MAX(from_id) FROM day WHERE from_id <= ?)",
                    (min(oldest, from_id),),
                ),
                ("INSERT INTO day VALUES (?, ?)", (from_id, day.isoformat() if day else None)),
            ]
        )

    # -- the account -------------------------------------------------------------------------------------------------

    def backlog(self) -> Backlog:
        """What is in the outbox, from the tallies."""
        batches, readings, size = self.query(
            "SELECT SUM(s.batches) - MAX(g.batches), SUM(s.last_seq) - MAX(g.readings), SUM(s.bytes) - MAX(g.bytes)"
            " FROM stream s, gone g"
        )[0]
        return Backlog(int(batches or 0), int(readings or 0), int(size or 0))

    def oldest_made_at(self) -> int | None:
        """Time of the oldest reading in the outbox (microseconds, UTC), None if it is empty."""
        rows = self.query("SELECT made_at FROM batch ORDER BY id LIMIT 1")
        return rows[0][0] if rows else None

    def streams(self) -> list[Produced]:
        """The account of each stream that the outbox remembers."""
        accounts = []
        for stream, first_id, last_seq, batches in self.query(
            "SELECT stream, first_id, last_seq, batches FROM stream ORDER BY first_id"
        ):
            rows = self.query(
                "SELECT first_seq FROM batch WHERE id >= ? AND id < ? ORDER BY id LIMIT 1",
                (first_id, first_id + batches),
            )
            accounts.append(Produced(stream, last_seq, rows[0][0] if rows else 0))
        return accounts

    def dropped(self) -> list[Dropped]:
        """The ranges declared lost that no server has recorded yet."""
        rows = self.query(
            "SELECT stream, first_seq, last_seq, reason FROM dropped ORDER BY stream, first_seq LIMIT 1000"
        )
        return [Dropped(*row) for row in rows]

    def forget_stream(self, produced: Produced) -> None:
        """Forgets an ended stream whose account the server has recorded and whose batches are all gone."""
        same = "(SELECT COALESCE(SUM({}), 0) FROM stream WHERE stream = ? AND last_seq = ?)"
        key = (produced.stream, produced.last_seq)
        self.transaction(
            [
                (
                    f"UPDATE gone SET batches = batches - {same.format('batches')},"
                    f" readings = readings - {same.format('last_seq')}, bytes = bytes - {same.format('bytes')}",
                    key * 3,
                ),
                ("DELETE FROM stream WHERE stream = ? AND last_seq = ?", key),
            ]
        )

    def forget_dropped(self, ranges: Sequence[Range]) -> None:
        """Forgets declared losses that the server has recorded."""
        self.transaction(
            [("DELETE FROM dropped WHERE stream = ? AND first_seq = ? AND last_seq = ?", tuple(row)) for row in ranges]
        )


def _size(count: int) -> str:
    return f"{count / (1 << 20):.1f} MiB" if count >= 1 << 20 else f"{count / (1 << 10):.1f} KiB"


def open_outbox(settings: config.Outbox) -> Outbox:
    """A new connection to the configured outbox."""
    if settings.kind == "postgresql":
        from .postgres import PostgresOutbox

        return PostgresOutbox(settings)
    from .sqlite import SqliteOutbox

    return SqliteOutbox(settings)
