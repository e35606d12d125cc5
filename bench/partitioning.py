"""`make bench-partitioning`: what it costs to partition by the day of arrival and not by the day of the readings.

The same rows in two tables of Debian's ClickHouse: ``telemetry`` as Skywave makes it (partitioned by ``day``, the server's
date at a batch's first publish), and one partitioned by the day of ``created_at``. Once all readings come in time, and once a
share of ``LATE`` comes up to ten days late, as after outages. The questions are asked as people ask them, with ``created_at``
alone; with the day as a bound (no reading is stored under an earlier day than its own, but for a difference of clocks);
and with the days that ``arrivals`` names. The first argument is the number of rows.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import date, timedelta

import plot
from parts import ClickHouse
from report import row, write

from skywave import config
from skywave.server.schema import DAY_US, created_day
from skywave.server.store import Store, open_store

ROWS = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000_000
DAYS, CLIENTS, KEYS = 30, 200, 3
FIRST = date(2026, 10, 1)
BEGIN = 1_790_812_800_000_000  # FIRST, in microseconds
LATE = 0.05
TITLES = {False: "all in time", True: f"{LATE:.0%} late"}
CLIENT, MIDDLE = 7, 12
COLUMNS = "client_id, stream, seq, created_at, data_key, data_value, received_at, day"


def fill(store: Store, late: bool) -> None:
    """``ROWS`` rows, day by day and in the order of the sort key, and the same in the other table."""
    series = ROWS // DAYS // (CLIENTS * KEYS)  # readings of one series on one day
    per_day = series * CLIENTS * KEYS
    step = DAY_US // series
    # What is inserted for a day is one block in the order of its number, and so one part.
    for setting in (
        f"min_insert_block_size_rows = {per_day}",
        "min_insert_block_size_bytes = 0",
        "max_threads = 1",
        "max_memory_usage = 12000000000",
    ):
        store.query(f"SET {setting}")
    for number in range(DAYS):
        begin = BEGIN + number * DAY_US
        own = f"toInt64({begin} + number % {series} * {step} + rand(1) % {step})"
        behind = f"toInt64(rand(2) / 4294967295 * {DAY_US * 10})"
        is_late = f"intHash32(number) % 1000 < {LATE * 1000:.0f}"
        ways = [(own, f"NOT {is_late}"), (f"{own} - {behind}", is_late)] if late else [(own, "1")]
        for created_at, where in ways:
            store.query(
                f"INSERT INTO bench.telemetry ({COLUMNS}) SELECT toUInt32(1 + intDiv(number, {series * KEYS})), toUInt64(5),"
                f" toUInt64({number * per_day} + number), {created_at},"
                f" concat('series-', toString(intDiv(number, {series}) % {KEYS})), round(20 + rand(3) / 4294967295, 2),"
                f" toInt64({begin}), toDate('{FIRST + timedelta(number)}') FROM numbers({per_day}) WHERE {where}"
            )
        progress(f"day {number + 1} of {DAYS}")
    for number in range(DAYS):
        day = FIRST + timedelta(number)
        store.query(
            f"INSERT INTO bench.by_created ({COLUMNS}) SELECT {COLUMNS} FROM bench.telemetry WHERE day = '{day}'"
        )
        progress(f"day {number + 1} of {DAYS}, by the day of the reading")
    store.query(f"INSERT INTO bench.arrivals SELECT DISTINCT day, {created_day('created_at')} FROM bench.telemetry")
    for table in ("telemetry", "by_created"):
        for (partition,) in store.query(
            f"SELECT partition FROM system.parts WHERE active AND database = 'bench' AND table = '{table}'"
            " GROUP BY partition HAVING count() > 1"
        ):
            store.query(f"OPTIMIZE TABLE bench.{table} PARTITION {_literal(partition)} FINAL")
            progress(f"{table} {partition.decode()} merged")


def progress(text: str) -> None:
    if sys.stderr.isatty():
        print(text, end="\x1b[K\r", file=sys.stderr, flush=True)


def _literal(partition: bytes) -> str:
    text = partition.decode()
    return text if text.startswith("'") else f"'{text}'"


def questions() -> Iterator[tuple[str, dict[str, str]]]:
    """Each question, with a statement for each way to ask it."""
    since, until = BEGIN + MIDDLE * DAY_US, BEGIN + (MIDDLE + 1) * DAY_US
    day = FIRST + timedelta(MIDDLE)
    span = f"created_at >= {since} AND created_at < {until}"
    arrivals = f"day IN (SELECT day FROM bench.arrivals WHERE created_day = '{day}')"
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
            "by arrival, days of arrivals": f"{ours}{arrivals} AND {end}",
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


def measure(store: Store, late: bool) -> dict[str, dict[str, float]]:
    """Milliseconds of each question, by the way it is asked."""
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
    store.query(
        "CREATE TABLE bench.arrivals (day Date, created_day Date) ENGINE = MergeTree ORDER BY (created_day, day)"
    )
    fill(store, late)
    store.query("SET max_threads = 0")
    found: dict[str, dict[str, float]] = {}
    for name, ways in questions():
        rows = set()
        for way, sql in ways.items():
            milliseconds, count = fastest(store, sql)
            rows.add(count)
            found.setdefault(name, {})[way] = milliseconds
            row(f"{TITLES[late]}: {name}, {way}", "-", f"{milliseconds:,.0f} ms")
        assert len(rows) == 1, f"{name}: {rows} rows"
    store.query("DROP DATABASE bench")
    return found


def main() -> None:
    clickhouse = ClickHouse()
    try:
        clickhouse.start()
        with closing(open_store(config.Store(port=clickhouse.port, timeout=3600))) as store:
            found = {TITLES[late]: measure(store, late) for late in (False, True)}
    finally:
        clickhouse.remove()
    write("partitioning")
    figures = {f"{question}, {title}": ways for title, each in found.items() for question, ways in each.items()}
    plot.bars("partitioning", f"{ROWS:,} rows, {DAYS} days", "ms", figures)


if __name__ == "__main__":
    main()
