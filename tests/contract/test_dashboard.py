"""Every query of the dashboard, over ClickHouse 18.16 and the current engine (chDB), on readings whose answers are known."""

from __future__ import annotations

import json
import random
import re
from collections import Counter, defaultdict
from datetime import UTC, date, datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from skywave import config
from skywave.formats.messages import Dropped, Produced
from skywave.store.audit import audit
from skywave.store.columns import Block, Rejected, as_column
from skywave.store.shards import open_store

DASHBOARD = Path(__file__).parents[2] / "ansible/grafana/dashboards/fleet.json"
DAY, BEFORE = date(2026, 11, 24), date(2026, 11, 23)
START, END = (int(datetime(2026, 11, 24, hour, tzinfo=UTC).timestamp()) for hour in (10, 12))
INTERVAL = 120
SECOND = 1_000_000
MANY = 20_000
NOISE = random.Random(1)


class Reading(NamedTuple):
    client: int
    seq: int
    at: int
    key: str
    value: float
    day: date


READINGS = [
    *(Reading(1, n, (START + 60 * n - 60) * SECOND, "temperature", 20.0 + (n > 60) * n, DAY) for n in range(1, 121)),
    Reading(1, 121, (START - 1) * SECOND, "temperature", 999.0, DAY),  # just out of range, at either end
    Reading(1, 195, (END + 1) * SECOND, "temperature", 999.0, DAY),  # stored, though its client calls it pending
    *(Reading(2, n, (START + 5400 + n) * SECOND + 999_999, "höhe'\\", -n / 3, DAY) for n in range(1, 11)),
    Reading(2, 11, (START + 6000) * SECOND, "temperature", 50.0, BEFORE),  # by a clock that is ahead
    # Many, for the days' sizes, and out of range; one of them doubled: in two days, so never merged.
    *(Reading(3, n, START * SECOND - n, "temperature", NOISE.random(), BEFORE) for n in range(1, MANY + 1)),
    *(Reading(3, n, START * SECOND - n, "temperature", NOISE.random(), DAY) for n in range(MANY, 2 * MANY)),
]
POISON = [
    (2, (START + 10) * SECOND, "why's", b"\x00\xff'"),
    (1, END * SECOND, "bad", b""),
    (2, (END + 1) * SECOND, "late", b""),
]
STREAM = 2**63 - 25
IN_RANGE = [r for r in READINGS if START * SECOND <= r.at <= END * SECOND]


@pytest.fixture(params=["clickhouse", "embedded"])
def store(request, tmp_path, database):
    if request.param == "embedded":
        settings = config.Store(kind="embedded", path=str(tmp_path / "store"), database=database)
    else:
        settings = config.Store(port=request.getfixturevalue("clickhouse").port, database=database)
    store = open_store(settings)
    store.migrate()
    fill(store)
    yield store
    store.query(f"DROP DATABASE {store.database}")
    store.close()


def fill(store):
    for day in (DAY, BEFORE):
        rows = [reading for reading in READINGS if reading.day == day]
        keys = sorted({row.key for row in rows})
        store.insert_readings(
            Block(
                np.array([row.client for row in rows], np.uint32), np.full(len(rows), STREAM, np.uint64),
                np.array([row.seq for row in rows], np.uint64), np.array([row.at for row in rows], np.int64),
                [key.encode() for key in keys], np.array([keys.index(row.key) for row in rows]),
                np.array([row.value for row in rows]), np.full(len(rows), 5, np.int64), day,
            )
        )  # fmt: skip
    # Of client 1: 1-121 stored, of which 100-105 were rejected at first; 122-130 rejected, 131-138 dropped, 141-150
    # expired, 191-200 pending; so 139, 140 and 151-190 are missing.
    store.record_streams([(1, Produced(STREAM, 200, 191), 0), (2, Produced(STREAM, 11, 0), 0)], 1)
    store.record_streams([(3, Produced(STREAM, 2 * MANY - 1, 0), 0)], 1)
    store.record_dropped([(1, Dropped(STREAM, 131, 138, "outbox full"))], 1)
    names = ("client_id", "stream", "first_seq", "last_seq", "day")
    columns = {name: as_column(name, [value]) for name, value in zip(names, (1, STREAM, 141, 150, BEFORE), strict=True)}
    store.insert(f"{store.database}.expired", columns)
    store.reject([
        Rejected(client, 0, 0, 0, f"{number:064x}", "t", reason, "{}", payload, at, DAY)
        for number, (client, at, reason, payload) in enumerate(POISON)
    ])  # fmt: skip
    store.reject([
        Rejected(1, STREAM, first, count, "ab" * 32, "t", "r", "{}", b"", (START - 9) * SECOND, DAY)
        for first, count in ((100, 6), (122, 9))
    ])  # fmt: skip


def queries():
    """Everything in the dashboard that is asked of ClickHouse, by the title of its panel or the name of its variable."""
    document = json.loads(DASHBOARD.read_text())
    panels = [inner for panel in document["panels"] for inner in (panel, *panel.get("panels", []))]
    found = {panel["title"]: target["rawSql"] for panel in panels for target in panel.get("targets", [])}
    for variable in document["templating"]["list"]:
        if variable["type"] == "query":
            found[f"${variable['name']}"] = variable["query"]
    assert sorted(found.values()) == sorted(statements(document)), "a query in a place that is not looked at"
    return found


def statements(node):
    """All SQL in a document, wherever it stands."""
    if isinstance(node, str):
        return [node] if node.lstrip().upper().startswith(("SELECT", "WITH")) else []
    inner = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    return [sql for each in inner for sql in statements(each)]


def expanded(sql, database, clients):
    """What Grafana and its ClickHouse plugin put in: times as toDateTime(seconds), the interval as seconds, and a
    condition on a variable as 1=1 while all of its values are chosen."""
    sql = re.sub(r"\$__conditionalAll\((.*?), \$client\)", r"\1" if clients else "1=1", sql)
    for name, value in {
        "${client:csv}": ",".join(map(str, clients or [])), "${database}": database,
        "$__fromTime": f"toDateTime({START})", "$__toTime": f"toDateTime({END})", "$__interval_s": str(INTERVAL),
    }.items():  # fmt: skip
        sql = sql.replace(name, value)
    assert "$" not in sql, sql
    return sql


def plain(value):
    """A value as both engines can be compared: text, seconds, days, numbers."""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, datetime):
        return int(value.replace(tzinfo=UTC).timestamp())
    return value


def chosen(rows, clients):
    return [row for row in rows if not clients or row.client in clients]


def grouped(rows, key):
    groups = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    return sorted(groups.items())


def rates(_, clients):
    counts = Counter((r.at // SECOND // INTERVAL * INTERVAL, str(r.client)) for r in chosen(IN_RANGE, clients))
    return [(*key, count / INTERVAL) for key, count in sorted(counts.items())]


def ages(_, clients):
    newest = {client: max((r.at for r in IN_RANGE if r.client == client), default=None) for client in (1, 2, 3)}
    return [
        (str(client), END - at // SECOND if at else None)
        for client, at in newest.items()
        if not clients or client in clients
    ]


def last_values(_, clients):
    groups = grouped(chosen(IN_RANGE, clients), lambda r: (r.client, r.key.encode()))
    latest = [max(rows, key=lambda r: (r.at, r.seq)) for _, rows in groups]
    return [(str(r.client), r.key, r.value, r.at // SECOND) for r in latest]


def averages(_, clients):
    groups = grouped(chosen(IN_RANGE, clients), lambda r: (r.at // SECOND // 3600 * 3600, r.key.encode()))
    return [(hour, key.decode(), pytest.approx(np.mean([r.value for r in rows]))) for (hour, key), rows in groups]


def rows_per_day(*_):
    return sorted(Counter(r.day for r in READINGS).items())


def bytes_per_day(store, _):
    """As the disk has them, give or take the small files that engines leave out."""
    found = Counter()
    table = f"database = '{store.database}' AND table = 'telemetry' AND active"
    for partition, path in store.query(f"SELECT partition, path FROM system.parts WHERE {table}"):
        sizes = (file.stat().st_size for file in Path(plain(path)).iterdir())
        found[date.fromisoformat(plain(partition))] += sum(sizes)
    return [(day, pytest.approx(size, rel=0.02)) for day, size in sorted(found.items())]


def rejected(_, clients):
    rows = [
        (at // SECOND, str(client), reason, 0, len(payload), f"{number:064x}")
        for number, (client, at, reason, payload) in enumerate(POISON)
        if START * SECOND <= at <= END * SECOND and (not clients or client in clients)
    ]
    return sorted(rows, reverse=True)


def account(store, clients):
    """Missing is what the audit says as well."""
    rows = [("1", 200, 10, 130, 18, 42), ("2", 11, 0, 11, 0, 0), ("3", 2 * MANY - 1, 0, 2 * MANY - 1, 0, 0)]
    missing = {str(stream.client_id): stream.missing for stream in audit(store).streams}
    assert {row[0]: row[-1] for row in rows} == missing
    return [row for row in rows if not clients or int(row[0]) in clients]


def all_clients(*_):
    return [("1",), ("2",), ("3",)]


EXPECTED = {
    "Readings per second": rates,
    "Age of the newest reading": ages,
    "Last values": last_values,
    "Hourly average": averages,
    "Rows per day": rows_per_day,
    "Bytes per day": bytes_per_day,
    "Rejected messages": rejected,
    "Account": account,
    "$client": all_clients,
}


def test_no_query_is_unchecked():
    assert queries().keys() == EXPECTED.keys()


@pytest.mark.parametrize("clients", [None, [2], [1, 3]], ids=["all", "one", "two"])
def test_every_query_answers_right(store, clients):
    for title, sql in queries().items():
        got = [tuple(map(plain, row)) for row in store.query(expanded(sql, store.database, clients))]
        assert got == EXPECTED[title](store, clients), title


def test_the_data_source_is_the_provisioned_one():
    provisioned = (DASHBOARD.parents[1] / "provisioning/datasources/skywave.yml").read_text()
    uids = set(re.findall(r'"uid": "(.*?)"', DASHBOARD.read_text())) - {"skywave-fleet"}
    assert uids == {re.search(r"uid: (\S+)", provisioned)[1]}
