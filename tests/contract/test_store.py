"""What every store promises: ClickHouse 18.16, the current engine inside this process, and the current one over the network,
which there keeps its columns sparse wherever it may."""

from __future__ import annotations

import contextlib
import math
import socket
import ssl
import struct
import subprocess
import threading
import time
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import certifi
import numpy as np
import pytest
from clickhouse_driver import Client

from skywave import config
from skywave.errors import EXIT_DATA, EXIT_TRY_LATER, StoreError, StoreRefused, StoreUnavailable
from skywave.formats.messages import Dropped, Produced
from skywave.store.clickhouse import REVISION_WITHOUT_SPARSE_COLUMNS
from skywave.store.columns import Block, Probe, Rejected, as_column, as_date, text
from skywave.store.schema import DAY_US
from skywave.store.shards import open_store
from skywave.store.sql import NO_DROP_LIMITS

DAY = date(2026, 11, 24)
BIG = 2**63 + 12345
KEYS = (b"t", "höhe'\\".encode())
AT = 1_700_000_000_000_000


@pytest.fixture(params=["old_clickhouse", "embedded", "current_clickhouse"])
def settings(request, tmp_path, database):
    return _settings(request, tmp_path, database)


def _settings(request, tmp_path, database):
    if request.param == "embedded":
        return config.Store(kind="embedded", path=str(tmp_path / "store"), database=database)
    return config.Store(port=request.getfixturevalue(request.param).port, database=database)


@pytest.fixture(params=["embedded", "current_clickhouse"])
def modern(request, tmp_path, database):
    """A store on the current engine."""
    store = open_store(_settings(request, tmp_path, database))
    store.migrate()
    yield store
    store.query(f"DROP DATABASE {store.database}")
    store.close()


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
    account = store.account()
    assert account.clean
    assert account.total("expired") == 500


def test_rejected_messages_are_kept_once_with_their_bytes(store):
    row = Rejected(7, BIG, 1, 10, "ab" * 32, "/telemetry/client/7/", "why's", "{}", b"\x00\xff'\\\x00\x00", 5, DAY)
    store.reject([row, replace(row, client_id=8)])
    store.reject([row])
    assert store.rejected(7, payload=True) == [row]
    assert store.rejected_bytes(8, DAY) == row.size > 1024
    assert store.rejected_bytes(9, DAY) == 0


def test_what_the_gate_the_check_of_a_fleet_and_the_demo_ask(store):
    today = datetime.now(UTC).date()
    for first, day in ((1, today - timedelta(3)), (4, today)):
        store.insert_readings(block(first=first, n=3, day=day, values=[0.1, 0.25, -0.3]))
    store.insert_readings(block(first=11, n=2, client=8, stream=5, day=today, values=[1, 2], keys=(b"it's",)))
    assert store.delivered([7, 9], 5) == {7: 3}, "of the newest days alone"
    assert store.delivered([7, 8], 6) == {}
    assert sorted(store.tallies(100)) == [(7, BIG, 6, 6, 6, 10), (8, 5, 2, 2, 12, 300)]
    assert sorted(store.values("it's")) == [1, 2]
    assert store.values("absent") == []
    assert store.version()[0].isdigit()
    assert store.check_tables() == []
    assert store.replica_states() == {}


def test_the_audit_names_what_is_missing_and_what_is_doubled(store):
    store.insert_readings(block(first=1, n=100))
    store.insert_readings(block(first=111, n=90))
    store.insert_readings(block(first=50, n=1, day=DAY - timedelta(1)))
    store.record_streams([(7, Produced(BIG, 300, 251), 0), (8, Produced(5, 10, 0), 0)], 1)
    store.record_dropped([(7, Dropped(BIG, 201, 210, "outbox full"))], 1)
    store.reject([Rejected(7, BIG, 211, 10, "cd" * 32, "t", "r", "{}", b"", 5, DAY)])
    account = store.account()
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
    assert store.account().streams[0].missing_ranges == [(91, 100)]
    store.insert_readings(block(first=91, n=20))
    account = store.account()
    assert account.clean
    assert account.total("ahead") == 10


def test_an_older_report_does_not_shrink_an_account(store):
    store.record_streams([(7, Produced(BIG, 100, 0), 0)], 5)
    store.record_streams([(7, Produced(BIG, 90, 0), 0)], 6)
    assert store.account().total("produced") == 100


def test_a_newer_schema_is_refused(store):
    names = ("name", "value", "at")
    store.insert_rows("meta", names, [("schema", "99", 2**40)])
    with pytest.raises(StoreError, match="schema 99"):
        store.migrate()


def test_times_that_dt_cannot_show_are_its_first_or_last_one(store):
    created = np.array([-(2**62), -62_135_596_800_000_000, 0, AT, 4_294_967_296_000_000, 2**62])
    store.insert_readings(replace(block(n=6), created_at=created))
    shown = [
        text(row[0])[:19]
        for row in store.query(f"SELECT toString(dt) FROM {store.database}.telemetry ORDER BY created_at")
    ]
    made = "2023-11-14 22:13:20"
    if store.modern:
        first, last = "1900-01-01 00:00:00", "2299-12-31 23:59:59"
        assert shown == [first, first, "1970-01-01 00:00:00", made, "2106-02-07 06:28:16", last]
    else:
        first, last = "0000-00-00 00:00:00", "2105-12-31 23:59:59"
        assert shown == [first, first, first, made, last, last]


def kinds_of(store):
    return store.query(
        f"SELECT DISTINCT table, column, serialization_kind FROM system.parts_columns WHERE database = '{store.database}'"
        " AND serialization_kind != 'Default'"
    )


def test_columns_of_mostly_defaults_come_back_whole(store):
    values = np.where(np.arange(10_000) % 1000 == 7, 3.5, 0.0)
    values[5] = -0.0
    zeros = block(n=10_000, values=values, keys=(b"", b"t"))
    zeros = replace(
        zeros, codes=(np.arange(10_000) % 500 == 3).astype(np.int64), received_at=np.zeros(10_000, np.int64)
    )
    store.insert_readings(zeros)
    sql = f"SELECT data_key, data_value, received_at, day FROM {store.database}.telemetry FINAL ORDER BY seq"
    expected = [zeros.keys[code] for code in zeros.codes], values.tolist(), [0] * 10_000
    assert tuple(map(list, zip(*store.query(sql), strict=True)))[:3] == expected
    batches = list(store.stream(sql.replace(", day", "")))
    for at, column in enumerate(expected):
        assert [value for batch in batches for value in batch.column(at).to_pylist()] == column
    read = np.concatenate([batch.column(1).to_numpy() for batch in batches])
    assert read.view(np.int64).tolist() == values.view(np.int64).tolist()


def test_no_column_of_ours_is_kept_sparse_and_a_server_that_sends_sparse_ones_sends_us_none(modern, current_clickhouse):
    modern.insert_readings(block(n=1000, values=np.zeros(1000)))
    modern.record_streams([(n, Produced(n, 10, 0), 0) for n in range(1, 100)], 0)
    assert kinds_of(modern) == []
    # What the driver makes of sparse columns shows that the server does send them to whom it may.
    sql, numpy = "SELECT toInt64(0) FROM numbers(100)", {"use_numpy": True}
    for revision, whole in ((None, False), (REVISION_WITHOUT_SPARSE_COLUMNS, True)):
        with Client("127.0.0.1", current_clickhouse.port, client_revision=revision, settings=numpy) as client:
            assert isinstance(client.execute(sql, columnar=True)[0], np.ndarray) is whole


def test_a_block_that_failed_once_is_stored_when_it_comes_again(modern):
    """Its part was written, its quorum was not reached: the engine must not take it for done."""
    for table in ("telemetry", "arrivals"):
        name = f"{modern.database}.{table}"
        modern.query(f"ALTER TABLE {name} MODIFY SETTING non_replicated_deduplication_window = 100")
        modern.query(f"SYSTEM STOP MERGES {name}")
    for _ in range(2):
        modern.insert_readings(block(n=10))
        modern.note_arrivals(f"{modern.database}.telemetry", DAY)
    assert modern.query(f"SELECT count() FROM {modern.database}.telemetry") == [(20,)]
    assert modern.query(f"SELECT count() FROM {modern.database}.arrivals") == [(3,)], (
        "by the connection once, then twice"
    )


def test_what_is_dropped_is_gone_at_once(modern):
    modern.query(f"CREATE TABLE {modern.database}.staging AS {modern.database}.telemetry")
    modern.drop(f"DROP TABLE {modern.database}.staging")
    modern.query(f"CREATE DATABASE {modern.database}_drill")
    modern.query(f"CREATE TABLE {modern.database}_drill.t AS {modern.database}.telemetry")
    modern.drop(f"DROP DATABASE {modern.database}_drill")
    kept = f"SELECT count() FROM system.dropped_tables WHERE database LIKE '{modern.database}%'"
    assert modern.query(kept) == [(0,)]


def test_a_day_of_any_size_can_be_dropped_and_replaced(current_clickhouse, database):
    store = open_store(config.Store(port=current_clickhouse.port, database=database))
    store.migrate()
    store.insert_readings(block())
    table, staging = f"{database}.telemetry", f"{database}.staging"
    store.query(f"CREATE TABLE {staging} AS {table}")
    store.query(f"INSERT INTO {staging} SELECT * FROM {table}")
    statements = [
        f"ALTER TABLE {table} REPLACE PARTITION '{DAY}' FROM {staging}", f"ALTER TABLE {table} DROP PARTITION '{DAY}'",
        f"DROP TABLE {staging}", f"DROP DATABASE {database}",
    ]  # fmt: skip
    for statement in statements:
        for run in (store.query, store.drop):
            for limit in NO_DROP_LIMITS:  # what a day of more than 50 GB would meet
                store.query(f"SET {limit} = 1")
            refused = pytest.raises(StoreRefused, match="359") if run == store.query else contextlib.nullcontext()
            with refused:
                run(statement)
    store.close()


ALIENS = {
    "of other columns": "telemetry (ts DateTime, device String, v Float64) ENGINE = MergeTree ORDER BY ts",
    "of other types": "streams (client_id UInt32, stream UInt64, last_seq Int64, first_pending UInt64, oldest_at Int64,"
    " reported_at Int64) ENGINE = ReplacingMergeTree(last_seq) ORDER BY (client_id, stream)",
    "of another engine": "meta (name String, value String, at UInt64) ENGINE = MergeTree ORDER BY name",
    "sorted otherwise": "arrivals (created_day Date, day Date) ENGINE = ReplacingMergeTree ORDER BY day",
    "without its version": "meta (name String, value String, at UInt64) ENGINE = ReplacingMergeTree ORDER BY name",
    "with other partitions": "arrivals (created_day Date, day Date) ENGINE = ReplacingMergeTree PARTITION BY day"
    " ORDER BY (created_day, day)",
    "that keeps nothing": "dropped (client_id UInt32, stream UInt64, first_seq UInt64, last_seq UInt64, reason String,"
    " reported_at Int64) ENGINE = Log",
}


@pytest.mark.parametrize("alien", ALIENS.values(), ids=ALIENS)
def test_beside_a_table_with_our_name_that_is_not_ours_nothing_is_made(settings, alien):
    name = alien.partition(" ")[0]
    store = open_store(settings)
    store.query(f"CREATE DATABASE {store.database}")
    store.query(f"CREATE TABLE {store.database}.{alien}")
    for check in (store.migrate, store.check_tables):
        with pytest.raises(StoreError, match=rf"not ours: {name} (lacks|is|has)") as refused:
            check()
        assert "store.database" in refused.value.hint
    assert [text(row[0]) for row in store.query(f"SHOW TABLES FROM {store.database}")] == [name]
    store.query(f"DROP DATABASE {store.database}")
    store.close()


def test_our_own_tables_are_known_again_also_with_a_column_of_somebody_elses_beside_ours(store):
    store.query(f"ALTER TABLE {store.database}.telemetry ADD COLUMN site String DEFAULT 'here'")
    store.migrate()
    store.insert_readings(block())
    assert store.check_tables() == []
    store.query(f"DROP TABLE {store.database}.arrivals")
    assert store.check_tables() == ["arrivals"]


def test_an_absent_server_is_unavailable():
    with pytest.raises(StoreUnavailable) as error:
        open_store(config.Store(port=1)).query("SELECT 1")
    assert error.value.exit_code == EXIT_TRY_LATER


def test_what_is_missing_is_refused_and_not_called_temporary(store):
    for sql in (
        "SELECT 1 FROM no_such_database.t", f"SELECT 1 FROM {store.database}.no_such_table",
        f"SELECT no_such_column FROM {store.database}.meta",
    ):  # fmt: skip
        with pytest.raises(StoreRefused) as error:
            store.query(sql)
        assert error.value.exit_code == EXIT_DATA
        assert "store.database" in error.value.hint
    with pytest.raises(StoreUnavailable):  # the readings wait for somebody who mends it
        store.insert(f"{store.database}.no_such_table", {"a": np.zeros(1, np.uint64)})


@pytest.mark.parametrize("engine", ["old_clickhouse", "current_clickhouse"])
def test_a_server_that_refuses_us_is_not_called_temporary(request, engine, tmp_path):
    port = request.getfixturevalue(engine).port
    (tmp_path / "wrong").write_text("wrong")
    for wrong, hint in (
        ({"password_file": str(tmp_path / "wrong")}, "password_file"), ({"user": "nobody"}, "user"),
    ):  # fmt: skip
        with pytest.raises(StoreRefused) as error:
            open_store(config.Store(port=port, **wrong)).query("SELECT 1")
        assert error.value.exit_code == EXIT_DATA
        assert hint in error.value.hint


@contextlib.contextmanager
def tls_server(folder):
    """The port of a server that shakes hands with a certificate of its own making."""
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "key", "-out", "crt"],
        cwd=folder, check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(f"{folder}/crt", f"{folder}/key")

    def shake_hands(listener):
        with contextlib.suppress(OSError):
            while True:
                peer, _ = listener.accept()
                with peer, contextlib.suppress(ssl.SSLError):
                    context.wrap_socket(peer, server_side=True).close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=shake_hands, args=(listener,))
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_a_port_without_tls_is_named(old_clickhouse):
    with pytest.raises(StoreRefused) as error:
        open_store(config.Store(port=old_clickhouse.port, ca_file=certifi.where())).query("SELECT 1")
    assert "store.port" in error.value.hint


def test_a_certificate_that_is_not_of_our_authority_is_refused(tmp_path):
    with tls_server(tmp_path) as port, pytest.raises(StoreRefused) as error:
        open_store(config.Store(port=port, ca_file=certifi.where())).query("SELECT 1")
    assert "store.ca_file" in error.value.hint
