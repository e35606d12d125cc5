"""The store in ClickHouse's SQL: its tables, what a server does with them, and what is asked about them.

``clickhouse.py`` and ``embedded.py`` run the statements.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from datetime import date
from typing import Any

from .. import config
from ..errors import StoreError
from ..formats.messages import Dropped, Produced
from . import accepted, schema
from .accounts import Account, Accounts, Entry, Tally, Wanted
from .audit import audit
from .columns import REJECTED_OVERHEAD, Block, Probe, Reading, Rejected, as_date, text
from .delivery import Delivery
from .sql import Sql, quote

LOOK_UP_AT_ONCE = 1000
LOOK_UP_LETTERS = 30_000
"""Of keys in one statement: ClickHouse takes 256 KiB (max_query_size), and a letter may be four bytes."""


class Store(Sql, Delivery, Accounts):
    """One connection, for one thread."""

    _replicated = False

    def __init__(self, settings: config.Store) -> None:
        super().__init__(settings)
        self._noted: defaultdict[date, set[int]] = defaultdict(set)

    # -- tables --------------------------------------------------------------------------------------------------------

    def migrate(self) -> None:
        """See ``Delivery``."""
        self.check_tables()
        self._create_tables()
        self._check_version()

    def check_tables(self) -> list[str]:
        """See ``Accounts``."""
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

    # -- delivery ------------------------------------------------------------------------------------------------------

    def existing(self, probes: Sequence[Probe]) -> set[tuple[int, int, int]]:
        """See ``Delivery``."""
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
        """See ``Delivery``."""
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

    def insert_readings(self, block: Block) -> None:
        """See ``Delivery``."""
        self._name_days(block)
        self.insert(f"{self.database}.telemetry", block.columns(), block.keys)
        self.sync()

    def _name_days(self, block: Block) -> None:
        """Names the days of a block's readings in ``arrivals``, unless this connection has named them before.

        First the name, then the readings: ``arrivals`` may name days that did not come, but lacks none that did.
        """
        if len(self._noted) > 100:
            self._noted.clear()
        noted = self._noted[block.day]
        if new := block.created_days() - noted:
            self.insert_rows("arrivals", ("created_day", "day"), [(number, block.day) for number in sorted(new)])
            noted |= new

    def reject(self, rows: Sequence[Rejected]) -> None:
        """See ``Delivery``."""
        names = tuple(Rejected.__dataclass_fields__)
        by_day: dict[date, list[tuple[Any, ...]]] = {}
        for row in rows:
            by_day.setdefault(row.day, []).append(tuple(getattr(row, name) for name in names))
        for part in by_day.values():
            self.insert_rows("rejected", names, part)
        self.sync()

    def rejected_bytes(self, client_id: int, day: date) -> int:
        """See ``Delivery``."""
        size = f"length(payload) + length(topic) + length(reason) + length(properties) + {REJECTED_OVERHEAD}"
        return int(
            self.query(
                f"SELECT sum({size}) FROM {self.database}.rejected WHERE client_id = {client_id} AND day = '{day}'"
            )[0][0]
        )

    def record_streams(self, rows: Iterable[tuple[int, Produced, int]], reported_at: int) -> None:
        """See ``Delivery``."""
        names = ("client_id", "stream", "last_seq", "first_pending", "oldest_at", "reported_at")
        self.insert_rows(
            "streams", names, [(client, *account, oldest, reported_at) for client, account, oldest in rows]
        )
        self.sync()

    def pending_streams(self, clients: Iterable[int]) -> list[tuple[int, Produced]]:
        """See ``Delivery``."""
        rows = self.query(
            f"SELECT client_id, stream, last_seq, first_pending FROM {self.database}.streams FINAL"
            f" WHERE client_id IN ({', '.join(map(str, clients))}) AND first_pending > 0"
        )
        return [(int(client), Produced(int(stream), int(last), int(first))) for client, stream, last, first in rows]

    def record_dropped(self, rows: Iterable[tuple[int, Dropped]], reported_at: int) -> None:
        """See ``Delivery``."""
        names = ("client_id", "stream", "first_seq", "last_seq", "reason", "reported_at")
        self.insert_rows("dropped", names, [(client_id, *dropped, reported_at) for client_id, dropped in rows])
        self.sync()

    # -- accounts ------------------------------------------------------------------------------------------------------

    def account(self, client_id: int | None = None) -> Account:
        """See ``Accounts``."""
        return audit(self, client_id)

    def accepted(self, client_id: int | None = None) -> list[Entry]:
        """See ``Accounts``."""
        return accepted.entries(self, client_id)

    def accept(self, wanted: Sequence[Wanted], what: str, reason: str, name: str) -> list[Entry]:
        """See ``Accounts``. Makes the table where no server of this release has."""
        if not accepted.is_there(self):
            self.migrate()
        return accepted.record(self, wanted, what, reason, name)

    def rejected(self, client_id: int | None = None, sha256: str = "", payload: bool = False) -> list[Rejected]:
        """See ``Accounts``."""
        chosen = [f"client_id = {client_id}"] if client_id is not None else []
        chosen += [f"startsWith(sha256, {quote(sha256)})"] if sha256 else []
        # As hex, because numpy cuts the zero bytes off the end of a string.
        bytes_column = "hex(payload)" if payload else "''"
        names = ", ".join(bytes_column if name == "payload" else name for name in Rejected.__dataclass_fields__)
        rows = self.query(
            f"SELECT {names} FROM {self.database}.rejected FINAL WHERE {' AND '.join(chosen) or '1'} ORDER BY received_at"
        )
        return [
            Rejected(
                int(client_id),
                int(stream),
                int(first),
                int(count),
                text(digest),
                text(topic),
                text(reason),
                text(notes),
                bytes.fromhex(text(content)),
                int(at),
                as_date(day),
            )
            for client_id, stream, first, count, digest, topic, reason, notes, content, at, day in rows
        ]

    def delivered(self, clients: Iterable[int], since: int) -> dict[int, int]:
        """See ``Accounts``."""
        rows = self.query(
            f"SELECT client_id, count() FROM {self.database}.telemetry WHERE day >= today() - 1"
            f" AND client_id IN ({', '.join(map(str, clients))}) AND received_at >= {since} GROUP BY client_id"
        )
        return {int(client_id): int(count) for client_id, count in rows}

    def tallies(self, times: int) -> list[Tally]:
        """See ``Accounts``."""
        rows = self.query(
            f"SELECT client_id, stream, count(), uniqExact(seq), max(seq), sum(toInt64(round(data_value * {times})))"
            f" FROM {self.database}.telemetry FINAL GROUP BY client_id, stream"
        )
        return [Tally(*map(int, row)) for row in rows]

    def values(self, data_key: str) -> list[float]:
        """See ``Accounts``."""
        rows = self.query(f"SELECT data_value FROM {self.database}.telemetry FINAL WHERE data_key = {quote(data_key)}")
        return [float(value) for (value,) in rows]

    def version(self) -> str:
        """See ``Accounts``."""
        return text(self.query("SELECT version()")[0][0])
