"""Which database should hold the readings? Ingest, bytes a row, and the usual questions.

ClickHouse 18.16 (Debian's) and the current engine (chDB) through Skywave's own store; PostgreSQL with BRIN on the time and a
unique index for the identity; InfluxDB 1.6 (Debian's), whose identity is series and time. All get the same ``ROWS`` rows in
blocks of ``BLOCK``, as a server of ``CLIENTS`` clients inserts them.
"""

from __future__ import annotations

import io
import json
import shutil
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import date
from pathlib import Path
from typing import Any

import measure
import numpy as np
import psycopg2
from report import row, write
from support.parts import ClickHouse, Part, Postgres, free_port, which

from skywave import config
from skywave.store.columns import Block
from skywave.store.shards import open_store
from skywave.store.store import Store

ROWS, BLOCK, CLIENTS = 6_000_000, 120_000, 60
KEYS = (b"temperature", b"pressure", b"height")
BEGIN = 1_763_942_400_000_000  # 2025-11-24T00:00:00Z
DAY = date(2025, 11, 24)
CLIENT, KEY = 7, "pressure"
STEP_US = 1000 * CLIENTS
"""Between two readings of a series, so that the rows fill some hours."""


def blocks() -> Iterator[Block]:
    """Each client's readings of a while, client by client; values are what sensors give: two decimals around a level."""
    rng = np.random.default_rng(1)
    each = BLOCK // CLIENTS
    for number in range(ROWS // BLOCK):
        seq = np.tile(np.arange(number * each + 1, (number + 1) * each + 1, dtype=np.uint64), CLIENTS)
        client = np.repeat(np.arange(1, CLIENTS + 1, dtype=np.uint32), each)
        codes = (seq % len(KEYS)).astype(np.int32)
        created = BEGIN + (seq // len(KEYS)).astype(np.int64) * STEP_US + client + rng.integers(0, 300, BLOCK) * 100
        values = np.rint(rng.normal(2000, 20, BLOCK)) / 100 + codes * 10
        received = np.full(BLOCK, BEGIN + number * each * STEP_US, np.int64)
        yield Block(client, client.astype(np.uint64) << 40, seq, created, list(KEYS), codes, values, received, DAY)


class Engine:
    """``cpu`` counts the database's process and what it costs to feed it here."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def cpu(self) -> float:
        return time.process_time() + (measure.cpu_seconds(self.pid) if self.pid else 0.0)

    def insert(self, block: Block) -> None:
        raise NotImplementedError

    def settle(self) -> None:
        """After all rows: what the engine does for itself in quiet hours."""

    def disk(self) -> int:
        raise NotImplementedError

    def last(self) -> Any:
        """The latest value of each of a client's series."""
        raise NotImplementedError

    def series(self) -> int:
        """Rows of one series of one client."""
        raise NotImplementedError

    def hours(self) -> Any:
        """The fleet's hourly averages."""
        raise NotImplementedError


class OwnStore(Engine):
    def __init__(self, store: Store, pid: int) -> None:
        super().__init__(pid)
        self._store = store
        store.migrate()

    def insert(self, block: Block) -> None:
        self._store.insert_readings(block)

    def settle(self) -> None:
        self._store.query(f"OPTIMIZE TABLE {self._store.database}.telemetry PARTITION '{DAY}' FINAL")

    def disk(self) -> int:
        sql = "SELECT sum(bytes_on_disk) FROM system.parts WHERE active AND table = 'telemetry' AND database = "
        return int(self._store.query(f"{sql}'{self._store.database}'")[0][0])

    def _ask(self, columns: str, rest: str) -> list[tuple[Any, ...]]:
        return self._store.query(
            f"SELECT {columns} FROM {self._store.database}.telemetry FINAL WHERE day = '{DAY}' {rest}"
        )

    def last(self) -> Any:
        return self._ask("data_key, argMax(data_value, created_at)", f"AND client_id = {CLIENT} GROUP BY data_key")

    def series(self) -> int:
        rest = f"AND client_id = {CLIENT} AND data_key = '{KEY}' ORDER BY created_at"
        return len(self._ask("created_at, data_value", rest))

    def hours(self) -> Any:
        return self._ask("data_key, intDiv(created_at, 3600000000) AS h, avg(data_value)", "GROUP BY data_key, h")


class PostgresBrin(Engine):
    def __init__(self, dsn: str, pid: int) -> None:
        super().__init__(pid)
        self._connection = psycopg2.connect(dsn)
        self._connection.autocommit = True
        self._cursor = self._connection.cursor()
        self._cursor.execute(
            "CREATE TABLE telemetry (client_id int, stream bigint, seq bigint, created_at bigint, data_key text,"
            " data_value float8, received_at bigint, PRIMARY KEY (client_id, stream, seq))"
        )
        self._cursor.execute("CREATE INDEX ON telemetry USING brin (created_at)")
        self._cursor.execute("CREATE INDEX ON telemetry (client_id, data_key, created_at)")

    def insert(self, block: Block) -> None:
        words = [KEYS[code].decode() for code in block.codes]
        columns = (
            block.client_id,
            block.stream,
            block.seq,
            block.created_at,
            words,
            block.data_value,
            block.received_at,
        )
        lines = map("%s\t%s\t%s\t%s\t%s\t%s\t%s".__mod__, zip(*columns, strict=True))
        self._cursor.copy_expert("COPY telemetry FROM STDIN", io.StringIO("\n".join(lines)))

    def settle(self) -> None:
        self._cursor.execute("VACUUM ANALYZE telemetry")

    def disk(self) -> int:
        return int(self._rows("SELECT pg_total_relation_size('telemetry')")[0][0])

    def _rows(self, sql: str) -> list[tuple[Any, ...]]:
        self._cursor.execute(sql)
        return self._cursor.fetchall()

    def last(self) -> Any:
        return [
            self._rows(
                f"SELECT data_key, data_value FROM telemetry WHERE client_id = {CLIENT} AND data_key = '{key.decode()}'"
                " ORDER BY created_at DESC LIMIT 1"
            )
            for key in KEYS
        ]

    def series(self) -> int:
        rest = f"client_id = {CLIENT} AND data_key = '{KEY}' ORDER BY created_at"
        return len(self._rows(f"SELECT created_at, data_value FROM telemetry WHERE {rest}"))

    def hours(self) -> Any:
        return self._rows("SELECT data_key, created_at / 3600000000, avg(data_value) FROM telemetry GROUP BY 1, 2")


class Influx(Part):
    def __init__(self) -> None:
        super().__init__("influxdb")
        rpc = free_port()
        (self.folder / "influxdb.conf").write_text(
            f'reporting-disabled = true\nbind-address = "127.0.0.1:{rpc}"\n[meta]\ndir = "{self.folder}/meta"\n'
            f'[data]\ndir = "{self.folder}/data"\nwal-dir = "{self.folder}/wal"\nquery-log-enabled = false\n'
            f'[http]\nbind-address = "127.0.0.1:{self.port}"\nlog-enabled = false\nmax-body-size = 0\n[monitor]\n'
            "store-enabled = false\n"
        )

    def command(self) -> list[str]:
        return [which("influxd"), "run", "-config", str(self.folder / "influxdb.conf")]


class InfluxEngine(Engine):
    def __init__(self, part: Influx) -> None:
        super().__init__(part.process.pid)
        self._url, self._folder = f"http://127.0.0.1:{part.port}", part.folder
        self._ask("CREATE DATABASE telemetry", "POST")

    def _ask(self, query: str, method: str = "GET") -> Any:
        words = urllib.parse.urlencode({"db": "telemetry", "q": query, "epoch": "u"})
        request = urllib.request.Request(f"{self._url}/query?{words}", method=method)
        with urllib.request.urlopen(request, timeout=300) as answer:
            return json.load(answer)["results"][0].get("series", [])

    def insert(self, block: Block) -> None:
        words = [KEYS[code].decode() for code in block.codes]
        columns = (block.client_id, words, block.data_value, block.created_at)
        lines = "\n".join(map("t,client=%s,data_key=%s value=%s %s".__mod__, zip(*columns, strict=True)))
        request = urllib.request.Request(f"{self._url}/write?db=telemetry&precision=u", lines.encode(), method="POST")
        urllib.request.urlopen(request, timeout=300).close()

    def settle(self) -> None:
        time.sleep(10)  # it has no command for it

    def disk(self) -> int:
        return sum(
            path.stat().st_size
            for path in self._folder.rglob("*")
            if path.is_file() and path.suffix in (".tsm", ".wal")
        )

    def last(self) -> Any:
        return self._ask(f"SELECT last(value) FROM t WHERE client = '{CLIENT}' GROUP BY data_key")

    def series(self) -> int:
        return len(self._ask(f"SELECT value FROM t WHERE client = '{CLIENT}' AND data_key = '{KEY}'")[0]["values"])

    def hours(self) -> Any:
        until = BEGIN + ROWS // CLIENTS * STEP_US
        return self._ask(
            f"SELECT mean(value) FROM t WHERE time >= {BEGIN}u AND time < {until}u GROUP BY data_key, time(1h)"
        )


def compare(name: str, engine: Engine) -> None:
    """Fills the engine and asks it."""
    spent, seconds = 0.0, 0.0
    for block in blocks():
        cpu, began = engine.cpu(), time.monotonic()
        engine.insert(block)
        spent, seconds = spent + engine.cpu() - cpu, seconds + time.monotonic() - began
    cpu = engine.cpu()
    engine.settle()
    spent += engine.cpu() - cpu
    row(f"{name}: ingest", "-", f"{ROWS / seconds:,.0f} rows/s, {spent / ROWS * 1e6:.1f} s/M with settling")
    row("… on the disk", "-", f"{engine.disk() / ROWS:.1f} B a row")
    found = engine.series()
    row("… last value of a client's series", "-", f"{fastest(engine.last):.0f} ms")
    row(f"… one series, {found:,} rows", "-", f"{fastest(engine.series):.0f} ms")
    row("… the fleet's hourly averages", "-", f"{fastest(engine.hours):.0f} ms")


def fastest(ask: Callable[[], Any]) -> float:
    """Milliseconds, the best of five."""
    times = []
    for _ in range(5):
        began = time.monotonic()
        ask()
        times.append(time.monotonic() - began)
    return min(times) * 1000


def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="skywave-bench-", dir="."))
    clickhouse, postgres, influx = ClickHouse(), Postgres(), Influx()
    try:
        for part in (clickhouse, postgres, influx):
            part.start()
        with closing(open_store(config.Store(port=clickhouse.port, timeout=300))) as store:
            compare("ClickHouse 18.16", OwnStore(store, clickhouse.process.pid))
        with closing(open_store(config.Store(kind="embedded", path=str(folder / "chdb")))) as store:
            compare("ClickHouse, current (chDB)", OwnStore(store, 0))
        compare("PostgreSQL 15, BRIN", PostgresBrin(postgres.new_database(), postgres.process.pid))
        compare("InfluxDB 1.6", InfluxEngine(influx))
    finally:
        for part in (clickhouse, postgres, influx):
            part.remove()
        shutil.rmtree(folder)
    write("alternatives-server-database")


if __name__ == "__main__":
    main()
