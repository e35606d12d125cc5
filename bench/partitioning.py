"""`make bench-partitioning`: what it costs to partition by the day of arrival and not by the day of the readings.

The same rows in two tables of Debian's ClickHouse: ``telemetry`` as Skywave makes it (partitioned by ``day``, the server's
date at a batch's first publish), and one partitioned by the day of ``created_at``. Once all readings come in time, and once a
share of ``LATE`` comes up to ten days late, as after outages. The questions are asked as people ask them, with ``created_at``
alone; with the day as a bound (no reading is stored under an earlier day than its own, but for a difference of clocks);
with the days that ``arrivals`` names; and with PREWHERE, which drops rows before FINAL merges them (where days are those of
the readings it changes nothing). The first argument is the number of rows.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from datetime import date, timedelta

import plot
from report import row, write
from support.parts import ClickHouse

from skywave import config
from skywave.store.schema import DAY_US, created_day
from skywave.store.shards import open_store
from skywave.store.store import Store

ROWS = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000_000
DAYS, CLIENTS, KEYS = 30, 200, 3
CONNECTIONS = 2  # that fill the tables
FIRST = date(2026, 10, 1)
BEGIN = 1_790_812_800_000_000  # FIRST, in microseconds
LATE = 0.05
TITLES = {False: "all in time", True: f"{LATE:.0%} late"}
CLIENT, MIDDLE = 7, 12
COLUMNS = "client_id, stream, seq, created_at, data_key, data_value, received_at, day"


def fill(stores: list[Store], late: bool) -> None:
    """``ROWS`` rows, day by day and in the order of the sort key, and the same in the other table; each connection a day."""
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
        for each in stores:
            each.query(f"SET {setting}")
    days: list[list[str]] = []
    for number in range(DAYS):
        begin = BEGIN + number * DAY_US
        own = f"toInt64({begin} + number % {series} * {step} + rand(1) % {step})"
        behind = f"toInt64(rand(2) / 4294967295 * {DAY_US * 10})"
        is_late = f"intHash32(number) % 1000 < {LATE * 1000:.0f}"
        ways = [(own, f"NOT {is_late}"), (f"{own} - {behind}", is_late)] if late else [(own, "1")]
        days.append([])
        for created_at, where in ways:
            days[-1].append(
                f"INSERT INTO bench.telemetry ({COLUMNS}) SELECT toUInt32(1 + intDiv(number, {series * KEYS})), toUInt64(5),"
                f" toUInt64({number * per_day} + number), {created_at},"
                f" concat('series-', toString(intDiv(number, {series}) % {KEYS})), round(20 + rand(3) / 4294967295, 2),"
                f" toInt64({begin}), toDate('{FIRST + timedelta(number)}') FROM numbers({per_day}) WHERE {where}"
            )
    run(stores, days, "days")
    by_created = f"INSERT INTO bench.by_created ({COLUMNS}) SELECT {COLUMNS} FROM bench.telemetry WHERE day = "
    run(
        stores,
        [[f"{by_created}'{FIRST + timedelta(number)}'"] for number in range(DAYS)],
        "days, by the day of the reading",
    )
    stores[0].query(f"INSERT INTO bench.arrivals SELECT DISTINCT day, {created_day('created_at')} FROM bench.telemetry")
    merges = [
        [f"OPTIMIZE TABLE bench.{table.decode()} PARTITION {_literal(partition)} FINAL"]
        for table, partition in stores[0].query(
            "SELECT table, partition FROM system.parts WHERE active AND database = 'bench'"
            " GROUP BY table, partition HAVING count() > 1"
        )
    ]
    run(stores, merges, "partitions merged")


def run(stores: list[Store], works: list[list[str]], what: str) -> None:
    """Each work's statements in their order; a connection that is done takes the next work."""
    left = enumerate(works, 1)

    def on(store: Store) -> None:
        for number, statements in left:
            for sql in statements:
                store.query(sql)
            progress(f"{number} of {len(works)} {what}")

    with ThreadPoolExecutor(len(stores)) as pool:
        list(pool.map(on, stores))


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
        ours, other = (f"SELECT {what} FROM bench.{table} FINAL " for table in ("telemetry", "by_created"))
        end = f"{where}{span}{group}"
        first = f"PREWHERE {span} WHERE {where}"
        yield name, {
            "by arrival": f"{ours}WHERE {end}",
            "by arrival, PREWHERE": f"{ours}{first}1{group}",
            "by arrival, day bounded": f"{ours}WHERE day >= '{day - timedelta(1)}' AND {end}",
            "by arrival, days of arrivals": f"{ours}WHERE {arrivals} AND {end}",
            "by arrival, days of arrivals, PREWHERE": f"{ours}{first}{arrivals}{group}",
            "by day of the reading": f"{other}WHERE {end}",
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


def measure(stores: list[Store], late: bool) -> dict[str, dict[str, float]]:
    """Milliseconds of each question, by the way it is asked."""
    store = stores[0]
    store.query("CREATE DATABASE bench")
    columns = (
        "client_id UInt32, stream UInt64, seq UInt64, created_at Int64, data_key String, data_value Float64,"
        " received_at Int64, day Date"
    )
    for table, key in (("telemetry", "day"), ("by_created", "toDate(intDiv(created_at, 1000000))")):
        store.query(  # parts that were merged would else fill the disk
            f"CREATE TABLE bench.{table} ({columns}) ENGINE = ReplacingMergeTree PARTITION BY {key}"
            " ORDER BY (client_id, data_key, created_at, stream, seq) SETTINGS old_parts_lifetime = 30"
        )
    store.query(
        "CREATE TABLE bench.arrivals (day Date, created_day Date) ENGINE = MergeTree ORDER BY (created_day, day)"
    )
    fill(stores, late)
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
        with ExitStack() as closes:
            settings = config.Store(port=clickhouse.port, timeout=3600)
            stores = [closes.enter_context(closing(open_store(settings))) for _ in range(CONNECTIONS)]
            found = {TITLES[late]: measure(stores, late) for late in (False, True)}
    finally:
        clickhouse.remove()
    write("partitioning")
    figures = {f"{question}, {title}": ways for title, each in found.items() for question, ways in each.items()}
    plot.bars("partitioning", f"{ROWS:,} rows, {DAYS} days", "ms", figures)


if __name__ == "__main__":
    main()
