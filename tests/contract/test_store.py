"""What every store promises, over ClickHouse 18.16 and the current engine (chDB) alike."""

from __future__ import annotations

import math
import struct
import time
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from skywave import config
from skywave.audit import audit
from skywave.errors import StoreError, StoreUnavailable
from skywave.messages import Dropped, Produced
from skywave.server.schema import DAY_US
from skywave.server.store import Block, Probe, Rejected, as_column, as_date, open_store, text

DAY = date(2026, 11, 24)
BIG = 2**63 + 12345
KEYS = (b"t", "höhe'\\".encode())
AT = 1_700_000_000_000_000


@pytest.fixture(params=["clickhouse", "embedded"])
def settings(request, tmp_path, database):
    if request.param == "embedded":
        return config.Store(kind="embedded", path=str(tmp_path / "store"), database=database)
    return config.Store(port=request.getfixturevalue("clickhouse").port, database=database)


@pytest.fixture
def store(settings):
    store = open_store(settings)
    store.migrate()
    yield store
    store.query(f"DROP DATABASE {store.database}")
    store.close()


def block(first=1, n=100, client=7, stream=BIG, day=DAY, values=None, keys=KEYS):
    return Block(
        np.full(n, client, np.uint32), np.full(n, stream, np.uint64), np.arange(first, first + n, dtype=np.uint64),
        np.arange(n, dtype=np.int64) + AT, list(keys), np.arange(n) % len(keys),
        np.arange(n) / 7 if values is None else np.array(values), np.full(n, 5, np.int64), day,
    )  # fmt: skip


def probe(first=1, key="t", at=AT, since=DAY, client=7, stream=BIG):
    return Probe(client, stream, first, key, at, since)


def test_all_columns_come_back_as_they_went_in(store):
    store.insert_readings(block(n=3))
    rows = store.query(
        "SELECT client_id, stream, seq, created_at, data_key, data_value, received_at, day"
        f" FROM {store.database}.telemetry ORDER BY seq"
    )
    assert rows == [(7, BIG, i + 1, AT + i, KEYS[i % 2], i / 7, 5, DAY) for i in range(3)]


def test_special_floats_keep_their_bits(store):
    values = [math.nan, math.inf, -math.inf, -0.0, 5e-324]
    store.insert_readings(block(n=5, values=values))
    got = [row[0] for row in store.query(f"SELECT data_value FROM {store.database}.telemetry ORDER BY seq")]
    assert struct.pack("<4d", *got[1:]) == struct.pack("<4d", *values[1:])
    assert math.isnan(got[0])


def test_one_insert_is_one_part(store):
    store.insert_readings(block(n=400_000))
    parts = store.query(
        f"SELECT count() FROM system.parts WHERE database = '{store.database}' AND table = 'telemetry' AND active"
    )
    assert parts == [(1,)]


def test_the_same_block_twice_is_counted_once(store):
    store.insert_readings(block())
    store.insert_readings(block())
    assert store.query(f"SELECT count() FROM {store.database}.telemetry FINAL") == [(100,)]


def test_a_look_up_finds_batches_by_their_first_reading_from_since_on(store):
    store.insert_readings(block(first=1))
    store.insert_readings(block(first=101, day=DAY - timedelta(5)))
    assert store.existing([probe(1), probe(201), probe(1, client=8), probe(1, stream=9)]) == {(7, BIG, 1)}
    assert store.existing([probe(101)]) == set(), "since is after its day"
    assert store.existing([probe(101, since=None)]) == {(7, BIG, 101)}
    assert store.existing([probe(101, since=DAY - timedelta(9)), probe(1)]) == {(7, BIG, 101), (7, BIG, 1)}
    many = [probe(5000 + i, at=AT + i) for i in range(2500)]
    assert store.existing([*many, probe(1)]) == {(7, BIG, 1)}


def test_readings_are_known_by_client_key_time_and_value_whatever_their_name_and_day(store):
    keys = [b"t", b"it's", "\U0001f600".encode()]
    store.insert_readings(block(first=1, n=3, client=7, keys=keys, values=[1.5, -0.5, 3.0]))
    rows = store.query(f"SELECT client_id, data_key, created_at, data_value FROM {store.database}.telemetry")
    readings = [(int(client), text(key), int(at), float(value)) for client, key, at, value in rows]
    others = [(8, "t", AT, 1.5), (7, "t", AT - 1, 1.5), (7, "it's", AT, 1.5), (7, "t", AT, 1.0)]
    many = [(7, "t", AT + number, 0.0) for number in range(100, 3000)]
    assert store.known_readings(readings + others + many) == set(readings)
    assert store.known_readings(others) == set()
    assert store.known_readings([]) == set()


def arrivals(store, day):
    rows = store.query(f"SELECT DISTINCT day FROM {store.database}.arrivals WHERE created_day = '{day}' ORDER BY day")
    return [as_date(value) for (value,) in rows]


MADE = date(2023, 11, 14)  # the date of AT


def test_arrivals_names_every_partition_with_readings_of_a_day(store):
    late = replace(block(n=3), created_at=np.array([AT - 40 * DAY_US, AT, AT + 3 * DAY_US]))
    wild = replace(block(first=4, n=4), created_at=np.array([-(2**62), -1, 0, 2**62]))
    for each in (block(n=3), late, wild, replace(block(first=8, n=1), day=DAY + timedelta(1))):
        store.insert_readings(each)
    assert arrivals(store, MADE) == [DAY, DAY + timedelta(1)]
    assert arrivals(store, MADE - timedelta(40)) == arrivals(store, MADE + timedelta(3)) == [DAY]
    assert arrivals(store, MADE + timedelta(1)) == []
    assert arrivals(store, date(1970, 1, 1)) == arrivals(store, date(2105, 12, 31)) == [DAY]
    named = set(store.query(f"SELECT created_day, day FROM {store.database}.arrivals FINAL"))
    store.query(f"DROP TABLE {store.database}.arrivals")
    store.migrate()
    assert list(store.note_all_arrivals()) == [DAY, DAY + timedelta(1)]
    assert set(store.query(f"SELECT created_day, day FROM {store.database}.arrivals FINAL")) == named


def test_the_questions_of_the_documentation_are_answered(store):
    text = (Path(__file__).parents[2] / "docs/formats.md").read_text()
    for old, new in (("telemetry.", f"{store.database}."), ("2026-11-24", "2024-02-29"), ("2026-11-25", "2024-03-01")):
        text = text.replace(old, new)
    latest, series, hourly = (part.split("```")[0] for part in text.split("```sql\n")[1:])
    midnight = int(datetime(2024, 2, 29, tzinfo=UTC).timestamp()) * 1_000_000
    around = midnight + np.array([-1, 0, DAY_US - 1, DAY_US])
    now = np.full(4, time.time_ns() // 1000)
    for stream, (day, at) in enumerate(
        [(date(2024, 2, 29), around), (DAY, around), (datetime.now(UTC).date(), now)], 1
    ):
        values = np.arange(4) + 10 * stream
        readings = block(n=4, stream=stream, day=day, keys=(b"temperature",), values=values)
        for _ in range(2):  # as after a lost acknowledgement
            store.insert_readings(replace(readings, created_at=at))
    assert [row[0] for row in store.query(latest)] == [b"temperature"]
    assert [value for _, value in store.query(series)] == [11, 21, 12, 22]
    assert [value for _, _, value in store.query(hourly)] == [16, 17]


def test_expired_ranges_count_as_stored_for_look_ups_and_the_audit(store):
    names = ("client_id", "stream", "first_seq", "last_seq", "day")
    row = (7, BIG, 1, 500, DAY)
    store.insert(f"{store.database}.expired", {n: as_column(n, [v]) for n, v in zip(names, row, strict=True)})
    store.record_streams([(7, Produced(BIG, 500, 0), 0)], 1)
    assert store.existing([probe(401)]) == {(7, BIG, 401)}
    account = audit(store)
    assert account.clean
    assert account.total("expired") == 500


def test_rejected_messages_are_kept_once_with_their_bytes(store):
    row = Rejected(7, BIG, 1, 10, "ab" * 32, "/telemetry/client/7/", "why's", "{}", b"\x00\xff'\\\x00\x00", 5, DAY)
    store.reject([row, replace(row, client_id=8)])
    store.reject([row])
    assert store.rejected("client_id = 7", payload=True) == [row]
    assert store.rejected_bytes(8, DAY) == row.size > 1024
    assert store.rejected_bytes(9, DAY) == 0


def test_the_audit_names_what_is_missing_and_what_is_doubled(store):
    store.insert_readings(block(first=1, n=100))
    store.insert_readings(block(first=111, n=90))
    store.insert_readings(block(first=50, n=1, day=DAY - timedelta(1)))
    store.record_streams([(7, Produced(BIG, 300, 251), 0), (8, Produced(5, 10, 0), 0)], 1)
    store.record_dropped([(7, Dropped(BIG, 201, 210, "outbox full"))], 1)
    store.reject([Rejected(7, BIG, 211, 10, "cd" * 32, "t", "r", "{}", b"", 5, DAY)])
    account = audit(store)
    mine = next(a for a in account.streams if a.client_id == 7)
    assert (mine.produced, mine.stored, mine.pending, mine.dropped, mine.rejected) == (300, 190, 50, 10, 10)
    assert mine.missing_ranges == [(101, 110), (221, 250)]
    assert (mine.missing, mine.doubled) == (40, 1)
    assert account.total("missing") == 50
    assert not account.clean


def test_produced_is_never_taken_from_the_table_under_test(store):
    """Readings beyond what the client reported are shown as ahead, and a loss at the end is seen."""
    store.insert_readings(block(first=1, n=90))
    store.record_streams([(7, Produced(BIG, 100, 0), 0)], 1)
    assert audit(store).streams[0].missing_ranges == [(91, 100)]
    store.insert_readings(block(first=91, n=20))
    account = audit(store)
    assert account.clean
    assert account.total("ahead") == 10


def test_an_older_report_does_not_shrink_an_account(store):
    store.record_streams([(7, Produced(BIG, 100, 0), 0)], 5)
    store.record_streams([(7, Produced(BIG, 90, 0), 0)], 6)
    assert audit(store).total("produced") == 100


def test_a_newer_schema_is_refused(store):
    names = ("name", "value", "at")
    store.insert_rows("meta", names, [("schema", "99", 2**40)])
    with pytest.raises(StoreError, match="schema 99"):
        store.migrate()


def test_an_absent_server_is_unavailable():
    with pytest.raises(StoreUnavailable):
        open_store(config.Store(port=1)).query("SELECT 1")
