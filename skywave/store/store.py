"""The final database as the server, the audit and the archive see it: tables, one-block inserts, look-ups.

All SQL stands here; ``clickhouse.py`` and ``embedded.py`` only run it. Both raise ``StoreUnavailable`` when a statement
was not done or its outcome is unknown, ``StoreError`` when trying again cannot help.
"""

from __future__ import annotations

import re
import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import date
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from .. import config
from ..errors import ConfigError, StoreError
from ..formats.messages import Dropped, Produced
from . import schema
from .columns import (
    REJECTED_OVERHEAD,
    Block,
    Probe,
    Reading,
    Rejected,
    as_column,
    as_date,
    quote,
    sync_filesystem,
    text,
)

LOOK_UP_AT_ONCE = 1000
LOOK_UP_LETTERS = 30_000
"""Of keys in one statement: ClickHouse takes 256 KiB (max_query_size), and a letter may be four bytes."""
T = TypeVar("T")
NO_DEDUPLICATION = {"insert_deduplicate": 0, "deduplicate_insert": "disable", "deduplicate_insert_select": "disable"}
"""A block that was written once without reaching its quorum would be taken for done when it is written again, and be
acknowledged. The first name is that of releases up to 26.1; later ones obey the others alone."""
NO_DROP_LIMITS = {"max_table_size_to_drop": 0, "max_partition_size_to_drop": 0}
"""Settings of current engines, which else refuse to drop or replace a day of more than 50 GB."""


class Store(ABC):
    """One connection to the store, for one thread."""

    def __init__(self, settings: config.Store) -> None:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", settings.database):
            raise ConfigError(
                f"store.database {settings.database!r} must be a plain name", "Use letters, digits and _."
            )
        self.settings = settings
        self.database = settings.database
        self._noted: defaultdict[date, set[int]] = defaultdict(set)

    # -- what each engine does in its own way ------------------------------------------------------------------------

    modern: bool
    """True for engines that know codecs and fsync settings (any release of the last years)."""

    @abstractmethod
    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """Runs a statement; the rows of a SELECT, strings as bytes (zero bytes at their end may be cut off)."""

    replicas = 1
    """How many servers can be asked in turn."""

    def read_whole(self, tables: Sequence[str], work: Callable[[], T]) -> T:  # noqa: ARG002
        """What ``work`` returns, which reads ``tables`` from one replica that has all that its shard has."""
        return work()

    def not_whole(self, tables: Sequence[str]) -> list[str]:  # noqa: ARG002
        """Waits until each replica has all of ``tables`` that its shard has, for ``timeout`` each; returns which lack what."""
        return []

    def replica_states(self) -> dict[str, str]:
        """For each replica of a shard, by host:port, what is wrong with it; "" for one that is in step."""
        return {}

    def everywhere(self, work: Callable[[], object]) -> list[str]:
        """Has ``work`` done on every replica; returns which did not do it all, and why."""
        work()
        return []

    @abstractmethod
    def drop(self, statement: str) -> None:
        """Runs a DROP, or an ALTER that drops or replaces a partition, whatever the size. A modern engine has freed the
        disk when a DROP returns, and not minutes later."""

    parallel: bool
    """True if several connections of one process can work at the same time."""

    @abstractmethod
    def stream(self, sql: str) -> Iterator[pa.RecordBatch]:
        """The rows of a SELECT as Arrow, block by block; strings as binary, to the last bit."""

    @abstractmethod
    def insert(self, table: str, columns: dict[str, Any], keys: Sequence[bytes] | None = None) -> None:
        """One INSERT of one block. ``columns`` are numpy arrays; with ``keys``, ``data_key`` holds codes into them."""

    @abstractmethod
    def close(self) -> None:
        """Ends the connection."""

    # -- writing -----------------------------------------------------------------------------------------------------

    _replicated = False

    def migrate(self) -> None:
        """Creates what is missing. Raises ``StoreError`` if a newer Skywave made the tables, or if something else than ours
        has one of their names; then nothing was made."""
        self.check_tables()
        self._create_tables()
        self._check_version()

    def check_tables(self) -> list[str]:
        """Which of our tables are missing; raises ``StoreError`` if one that is there is not ours."""
        database = quote(self.database)
        columns: defaultdict[str, dict[str, str]] = defaultdict(dict)
        for table, name, kind in self.query(
            f"SELECT table, name, type FROM system.columns WHERE database = {database} AND default_kind != 'ALIAS'"
        ):
            columns[text(table)][text(name)] = text(kind)
        tables = self.query(
            f"SELECT name, engine, engine_full, sorting_key, partition_key FROM system.tables WHERE database = {database}"
        )
        found = {
            text(name): schema.Found(text(engine), text(full), text(sorting), text(partition), columns[text(name)])
            for name, engine, full, sorting, partition in tables
        }
        if strange := schema.strange(found, self._replicated):
            raise StoreError(
                f"the database {self.database} has tables with our names that are not ours: {'; '.join(strange)}",
                "Name another database in store.database, or move them away. Nothing was made or changed.",
            )
        return [table.name for table in schema.TABLES if table.name not in found]

    def _create_tables(self) -> None:
        for statement in schema.tables(self.database, self.modern, self._replicated):
            self.query(statement)

    def _check_version(self) -> None:
        found = self.query(f"SELECT value FROM {self.database}.meta FINAL WHERE name = 'schema'")
        if found and int(found[0][0]) > schema.VERSION:
            raise StoreError(
                f"the store has schema {int(found[0][0])}, this version knows {schema.VERSION}", "Upgrade this server."
            )
        if not found:
            row = ("schema", str(schema.VERSION), int(time.time()))
            self.insert_rows("meta", ("name", "value", "at"), [row])

    def insert_readings(self, block: Block) -> None:
        """Commits a block as one part. Durable as far as the store makes it; see ``sync``."""
        self._note(block)
        day = np.full(len(block), np.datetime64(block.day))
        columns = {
            "client_id": block.client_id, "stream": block.stream, "seq": block.seq, "created_at": block.created_at,
            "data_key": block.codes, "data_value": block.data_value, "received_at": block.received_at, "day": day,
        }  # fmt: skip
        self.insert(f"{self.database}.telemetry", columns, block.keys)
        self.sync()

    def _note(self, block: Block) -> None:
        """Names the days of a block's readings in ``arrivals``, unless this connection has named them before.

        First the name, then the readings: ``arrivals`` may name days that did not come, but lacks none that did.
        """
        if len(self._noted) > 100:
            self._noted.clear()
        noted = self._noted[block.day]
        at = block.created_at
        days = np.clip(np.array([at.min(), at.max()]) // schema.DAY_US, 0, schema.LAST_DAY)
        if days[1] - days[0] > 1:
            days = np.unique(np.clip(at // schema.DAY_US, 0, schema.LAST_DAY))
        if new := set(days.tolist()) - noted:
            rows = [(np.datetime64(number, "D"), block.day) for number in sorted(new)]
            self.insert_rows("arrivals", ("created_day", "day"), rows)
            noted |= new

    def note_arrivals(self, table: str, day: date) -> None:
        """Names the days of all readings that ``table`` has under ``day`` in ``arrivals``."""
        self.query(
            f"INSERT INTO {self.database}.arrivals (created_day, day)"
            f" SELECT DISTINCT {schema.created_day('created_at')}, day FROM {table} WHERE day = '{day}'"
        )

    def note_all_arrivals(self) -> Iterator[date]:
        """The same for all that is stored, day by day: for what came before there was such a table."""
        for (value,) in self.query(f"SELECT DISTINCT day FROM {self.database}.telemetry ORDER BY day"):
            self.note_arrivals(f"{self.database}.telemetry", as_date(value))
            yield as_date(value)

    def reject(self, rows: Sequence[Rejected]) -> None:
        """Commits poison; the same message again changes nothing."""
        names = tuple(Rejected.__dataclass_fields__)
        by_day: dict[date, list[tuple[Any, ...]]] = {}
        for row in rows:
            by_day.setdefault(row.day, []).append(tuple(getattr(row, name) for name in names))
        for part in by_day.values():
            self.insert_rows("rejected", names, part)
        self.sync()

    def record_streams(self, rows: Iterable[tuple[int, Produced, int]], reported_at: int) -> None:
        """Keeps what clients say they produced: client, account, and the time of its oldest unacknowledged reading."""
        names = ("client_id", "stream", "last_seq", "first_pending", "oldest_at", "reported_at")
        self.insert_rows(
            "streams", names, [(client, *account, oldest, reported_at) for client, account, oldest in rows]
        )
        self.sync()

    def pending_streams(self, clients: Iterable[int]) -> list[tuple[int, Produced]]:
        """The streams of these clients that were said to have readings in an outbox."""
        rows = self.query(
            f"SELECT client_id, stream, last_seq, first_pending FROM {self.database}.streams FINAL"
            f" WHERE client_id IN ({', '.join(map(str, clients))}) AND first_pending > 0"
        )
        return [(int(client), Produced(int(stream), int(last), int(first))) for client, stream, last, first in rows]

    def record_dropped(self, rows: Iterable[tuple[int, Dropped]], reported_at: int) -> None:
        """Keeps what clients declare lost."""
        names = ("client_id", "stream", "first_seq", "last_seq", "reason", "reported_at")
        self.insert_rows("dropped", names, [(client_id, *dropped, reported_at) for client_id, dropped in rows])
        self.sync()

    def sync(self) -> None:
        """With ``sync = "filesystem"``: everything committed so far is on the disk when this returns (syncfs(2))."""
        if self.settings.sync == "filesystem":
            sync_filesystem(self.settings.data_path)

    def insert_rows(self, table: str, names: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> None:
        """One INSERT of a few rows of Python values; ``table`` without its database."""
        if rows:
            columns = {
                name: as_column(name, values) for name, values in zip(names, zip(*rows, strict=True), strict=True)
            }
            self.insert(f"{self.database}.{table}", columns)

    # -- reading -----------------------------------------------------------------------------------------------------

    def existing(self, probes: Sequence[Probe]) -> set[tuple[int, int, int]]:
        """Which of the batches are stored (or were, and are archived since): ``(client_id, stream, first_seq)``."""
        found: set[tuple[int, int, int]] = set()
        ordered = sorted(probes, key=lambda probe: probe.created_at)
        start = letters = 0
        for end, probe in enumerate(ordered):
            letters += len(probe.data_key)
            if end - start == LOOK_UP_AT_ONCE or letters > LOOK_UP_LETTERS:
                found |= self._existing(ordered[start:end])
                start, letters = end, len(probe.data_key)
        return found | (self._existing(ordered[start:]) if ordered else set())

    def _existing(self, probes: Sequence[Probe]) -> set[tuple[int, int, int]]:
        clients = ", ".join(sorted({str(p.client_id) for p in probes}))
        names = ", ".join(f"({p.stream}, {p.first_seq})" for p in probes)
        streams = ", ".join({str(p.stream) for p in probes})
        keys = ", ".join({quote(p.data_key) for p in probes})
        since = [p.since for p in probes]
        days = "" if None in since else f"day >= '{min(day for day in since if day)}' AND "
        # The first reading's key and time let the sort key skip nearly everything; the tuples do the rest.
        rows = self.query(
            f"SELECT DISTINCT client_id, stream, seq FROM {self.database}.telemetry WHERE {days}client_id IN ({clients})"
            f" AND data_key IN ({keys}) AND created_at >= {probes[0].created_at} AND created_at <= {probes[-1].created_at}"
            f" AND (stream, seq) IN ({names})"
        )
        wanted = {(p.client_id, p.stream, p.first_seq) for p in probes}
        found = {(int(c), int(s), int(q)) for c, s, q in rows} & wanted
        expired = self.query(
            f"SELECT client_id, stream, first_seq, last_seq FROM {self.database}.expired"
            f" WHERE client_id IN ({clients}) AND stream IN ({streams})"
        )
        for client_id, stream, first, last in expired:
            found |= {name for name in wanted if name[:2] == (client_id, stream) and first <= name[2] <= last}
        return found

    def known_readings(self, readings: Sequence[Reading]) -> set[Reading]:
        """Which of the readings are stored, under whatever name and day."""
        found: set[Reading] = set()
        wanted = sorted(set(readings))
        step = min(LOOK_UP_AT_ONCE, LOOK_UP_LETTERS // max((len(key) for _, key, _, _ in wanted), default=1))
        for start in range(0, len(wanted), step):
            part = wanted[start : start + step]
            clients = {str(client) for client, _, _, _ in part}
            keys = {quote(key) for _, key, _, _ in part}
            times = {str(at) for _, _, at, _ in part}
            rows = self.query(
                f"SELECT DISTINCT client_id, data_key, created_at, data_value FROM {self.database}.telemetry"
                f" WHERE client_id IN ({', '.join(clients)}) AND data_key IN ({', '.join(keys)})"
                f" AND created_at IN ({', '.join(times)})"
            )
            found |= {(int(client), text(key), int(at), float(value)) for client, key, at, value in rows}
        return found.intersection(wanted)

    def rejected_bytes(self, client_id: int, day: date) -> int:
        """Bytes of poison kept for a client on a day: the sum of their ``Rejected.size``."""
        size = f"length(payload) + length(topic) + length(reason) + length(properties) + {REJECTED_OVERHEAD}"
        return int(
            self.query(
                f"SELECT sum({size}) FROM {self.database}.rejected WHERE client_id = {client_id} AND day = '{day}'"
            )[0][0]
        )

    def rejected(self, where: str = "1", payload: bool = False) -> list[Rejected]:
        """Poison, oldest first; without ``payload`` its bytes are left empty."""
        # As hex, because numpy cuts the zero bytes off the end of a string.
        bytes_column = "hex(payload)" if payload else "''"
        names = ", ".join(bytes_column if name == "payload" else name for name in Rejected.__dataclass_fields__)
        rows = self.query(f"SELECT {names} FROM {self.database}.rejected FINAL WHERE {where} ORDER BY received_at")
        return [
            Rejected(
                int(client_id), int(stream), int(first), int(count), text(digest), text(topic), text(reason), text(notes),
                bytes.fromhex(text(content)), int(at), as_date(day),
            )
            for client_id, stream, first, count, digest, topic, reason, notes, content, at, day in rows
        ]  # fmt: skip
