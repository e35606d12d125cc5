"""`make bench-partitioning`: what it costs to partition by the day of arrival and not by the day of the readings.

The same rows in two tables of Debian's ClickHouse: ``telemetry`` as Skywave makes it (partitioned by ``day``, the server's
date at a batch's first publish), and one partitioned by the day of ``created_at``. Once all readings come in time, and once a
share of ``LATE`` comes up to ten days late, as after outages. The questions are asked as people ask them, with ``created_at``
alone; with the day as a bound (no reading is stored under an earlier day than its own, but for a difference of clocks);
and with the days that ``spans`` names.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import date, timedelta
from typing import Any

from parts import ClickHouse
from report import row, write

from skywave import config
from skywave.server.store import Store, open_store

ROWS = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000_000
DAYS, CLIENTS, KEYS = 30, 200, 3
FIRST = date(2026, 10, 1)
BEGIN = 1_790_812_800_000_000  # FIRST, in microseconds
LATE = 0.05
CLIENT, MIDDLE = 7, 12
COLUMNS = "client_id, stream, seq, created_at, data_key, data_value, received_at, day"
_DAY_US = 86_400_000_000


def fill(store: Store, late: float) -> None:
    """``ROWS`` rows, day by day, and the same in the other table."""
    per_day = ROWS // DAYS
    step = _DAY_US * CLIENTS * KEYS // per_day
    for number in range(DAYS):
        day = FIRST + timedelta(number)
        behind = (
            f"if(rand(1) / 4294967295 < {late}, toInt64(rand(2) / 4294967295 * {_DAY_US * 10}), toInt64(0))"
            if late
            else "0"
        )
        store.query(
            f"INSERT INTO bench.telemetry ({COLUMNS}) SELECT toUInt32(1 + number % {CLIENTS}), toUInt64(5),"
            f" toUInt64({number * per_day} + number),"
            f" toInt64({BEGIN + number * _DAY_US} + intDiv(number, {CLIENTS * KEYS}) * {step} + number % {step} - {behind}),"
            f" concat('series-', toString(intDiv(number, {CLIENTS}) % {KEYS})), round(20 + rand(3) / 4294967295, 2),"
            f" toInt64({BEGIN + number * _DAY_US}), toDate('{day}') FROM numbers({per_day})"
        )
    store.query(f"INSERT INTO bench.by_created ({COLUMNS}) SELECT {COLUMNS} FROM bench.telemetry")
    for table in ("telemetry", "by_created"):
        for (partition,) in store.query(
            f"SELECT DISTINCT partition FROM system.parts WHERE active AND database = 'bench' AND table = '{table}'"
        ):
            store.query(f"OPTIMIZE TABLE bench.{table} PARTITION {_literal(partition)} FINAL")
    store.query(
        "INSERT INTO bench.spans SELECT day, min(created_at), max(created_at) FROM bench.telemetry GROUP BY day"
    )


def _literal(partition: bytes) -> str:
    text = partition.decode()
    return text if text.startswith("'") else f"'{text}'"


def questions() -> Iterator[tuple[str, dict[str, str]]]:
    """Each question, with a statement for each way to ask it."""
    since, until = BEGIN + MIDDLE * _DAY_US, BEGIN + (MIDDLE + 1) * _DAY_US
    day = FIRST + timedelta(MIDDLE)
    span = f"created_at >= {since} AND created_at < {until}"
    spans = f"day IN (SELECT day FROM bench.spans WHERE last_at >= {since} AND first_at < {until})"
    for name, what, where, group in (
        ("one series for a day", "created_at, data_value", f"client_id = {CLIENT} AND data_key = 'series-1' AND ", ""),
        ("the fleet's hourly averages of a day", "data_key, intDiv(created_at, 3600000000) AS h, avg(data_value)", "",
         " GROUP BY data_key, h"),
    ):  # fmt: skip
        ours, other = (f"SELECT {what} FROM bench.{table} FINAL WHERE " for table in ("telemetry", "by_created"))
        end = f"{where}{span}{group}"
        yield name, {
            "by arrival": f"{ours}{end}",
            "by arrival, day bounded": f"{ours}day >= '{day - timedelta(1)}' AND {end}",
            "by arrival, days of spans": f"{ours}{spans} AND {end}",
            "by day of the reading": f"{other}{end}",
        }  # fmt: skip
    last = f"SELECT data_key, argMax(data_value, created_at) FROM bench.{{}} FINAL WHERE client_id = {CLIENT}"
    recent = FIRST + timedelta(DAYS - 2)
    yield (
        "last value of a client",
        {
            "by arrival": f"{last.format('telemetry')} GROUP BY data_key",
            "by arrival, day bounded": f"{last.format('telemetry')} AND day >= '{recent}' GROUP BY data_key",
            "by day of the reading": f"{last.format('by_created')} GROUP BY data_key",
        },
    )


def fastest(store: Store, sql: str) -> tuple[float, int]:
    """Milliseconds, the best of five, and how many rows came."""
    times, rows = [], 0
    for _ in range(5):
        began = time.monotonic()
        rows = len(store.query(sql))
        times.append(time.monotonic() - began)
    return min(times) * 1000, rows


def measure(store: Store, late: float) -> None:
    store.query("CREATE DATABASE bench")
    columns = (
        "client_id UInt32, stream UInt64, seq UInt64, created_at Int64, data_key String, data_value Float64,"
        " received_at Int64, day Date"
    )
    for table, key in (("telemetry", "day"), ("by_created", "toDate(intDiv(created_at, 1000000))")):
        store.query(
            f"CREATE TABLE bench.{table} ({columns}) ENGINE = ReplacingMergeTree PARTITION BY {key}"
            " ORDER BY (client_id, data_key, created_at, stream, seq)"
        )
    store.query("CREATE TABLE bench.spans (day Date, first_at Int64, last_at Int64) ENGINE = MergeTree ORDER BY day")
    fill(store, late)
    title = f"{late:.0%} late" if late else "all in time"
    sizes: dict[str, Any] = {}
    for name, ways in questions():
        for way, sql in ways.items():
            milliseconds, rows = fastest(store, sql)
            sizes.setdefault(name, rows)
            assert rows == sizes[name], f"{name}, {way}: {rows} rows, not {sizes[name]}"
            row(f"{title}: {name}, {way}", "-", f"{milliseconds:,.0f} ms")
    store.query("DROP DATABASE bench")


def main() -> None:
    clickhouse = ClickHouse()
    try:
        clickhouse.start()
        with closing(open_store(config.Store(port=clickhouse.port, timeout=3600))) as store:
            for late in (0.0, LATE):
                measure(store, late)
    finally:
        clickhouse.remove()
    write("partitioning")


if __name__ == "__main__":
    main()
