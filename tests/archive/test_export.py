"""What the store does to a night; the numbers are those of the archive's contract."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import numpy as np
import pytest
from skywave_archive.source import SourceShard
from support.parts import ClickHouse
from support.vault import STREAM, Vault, day_start, days_ago, today

from skywave import config
from skywave.store.columns import Block
from skywave.store.shards import open_store

DAY = days_ago(1)


def back(vault, clickhouse, *options, code=0):
    name = f"{vault.database}_back"
    vault.run("restore", "--into", f"clickhouse://127.0.0.1:{clickhouse.port}/{name}", *options, code=code)
    return vault.open(database=name)


@pytest.mark.every_engine
def test_20_late_rows_become_an_additional_file_with_just_the_new_ranges(vault, clickhouse):
    vault.add(DAY, first=1)
    vault.add(DAY, first=3001)
    vault.add(DAY, first=1, client=2, stream=5)
    vault.run("export")
    first = vault.files(DAY)
    assert vault.outcomes(vault.run("export")) == []
    vault.add(DAY, first=1501, count=200)
    vault.add(DAY, first=1, client=3, stream=6, count=10)
    result = vault.run("export")
    assert vault.outcomes(result) == [(str(DAY), "added")]
    assert result["days"][0]["new_rows"] == 210
    files = vault.files(DAY)
    assert set(first) < set(files) and len(files) == len(first) + 1
    manifest = vault.manifest(DAY, 2)
    assert [f["rows"] for f in manifest["files"]] == [3000, 210]
    assert {(s["client_id"], s["stream"]): s["ranges"] for s in manifest["streams"]} == {
        (1, str(STREAM)): [[1, 1000], [1501, 1700], [3001, 4000]], (2, "5"): [[1, 1000]], (3, "6"): [[1, 10]],
    }  # fmt: skip
    vault.run("verify", "--level", "rows")
    vault.assert_restored(back(vault, clickhouse))


def test_20_a_day_that_shrank_in_the_store_never_shrinks_in_the_archive(vault, clickhouse):
    vault.add(DAY, first=1)
    vault.run("export")
    store = vault.open()
    store.query(f"ALTER TABLE {vault.database}.telemetry DROP PARTITION '{DAY}'")
    store.close()
    vault.add(DAY, first=501, count=700)  # half of it is back, and 200 are new
    result = vault.run("export")
    assert "archived rows" in result["days"][0]["note"]
    assert vault.manifest(DAY, 2)["rows"] == 1200
    vault.run("verify", "--level", "rows")
    # Rows of the store and of the archive that were made at different times differ in nothing but that.
    vault.assert_restored(back(vault, clickhouse))


@pytest.mark.every_engine
def test_20_rows_of_changed_content_replace_the_day_only_if_it_holds_all(vault, clickhouse):
    vault.add(DAY, first=1)
    vault.run("export")
    old = vault.files(DAY)
    vault.add(DAY, first=1, count=300, received=9)  # two servers stored the same batch: the later copy stays
    result = vault.run("export")
    assert vault.outcomes(result) == [(str(DAY), "replaced")]
    assert not set(old) & set(vault.files(DAY))
    assert [path.name for path in (vault.archive / "_superseded" / "telemetry" / str(DAY)).iterdir()] == [old[0].name]
    vault.run("verify", "--level", "rows")
    vault.assert_restored(back(vault, clickhouse))


def test_20_rows_of_devices_without_streams_are_told_apart_by_their_identity(vault, clickhouse):
    vault.add(DAY, first=1, count=50, stream=0, client=8)
    vault.run("export")
    vault.add(DAY, first=31, count=50, stream=0, client=8)
    result = vault.run("export")
    assert result["days"][0]["new_rows"] == 30
    vault.run("verify", "--level", "rows")
    vault.assert_restored(back(vault, clickhouse))


def test_21_merges_during_an_export_change_nothing(vault, clickhouse, monkeypatch):
    for n in range(20):
        vault.add(DAY, first=1 + n * 500)  # half of each block is a duplicate of the next
    rows = SourceShard.rows

    def merging(self, table, day, clients=None):
        other = vault.open()
        for number, batch in enumerate(rows(self, table, day, clients)):
            if number == 0:
                other.query(f"OPTIMIZE TABLE {vault.database}.telemetry PARTITION '{DAY}' FINAL")
            yield batch
        other.close()

    monkeypatch.setattr(SourceShard, "rows", merging)
    assert vault.outcomes(vault.run("export")) == [(str(DAY), "exported")]
    assert vault.manifest(DAY)["sealed"]
    assert vault.outcomes(vault.run("export")) == [(str(DAY), "unchanged")]  # other parts, the same rows
    assert vault.outcomes(vault.run("export")) == []
    vault.run("verify", "--level", "rows")
    vault.assert_restored(back(vault, clickhouse))


def test_22_inserts_during_an_export_are_read_again_or_left_to_the_next_night(vault, clickhouse, monkeypatch):
    vault.add(DAY, first=1)
    rows = SourceShard.rows
    times = []

    def inserting(limit):
        def generator(self, table, day, clients=None):
            yield from rows(self, table, day, clients)
            if table.name == "telemetry" and len(times) < limit:
                times.append(1)
                vault.add(DAY, first=1 + 1000 * len(times))

        return generator

    with monkeypatch.context() as patch:
        patch.setattr(SourceShard, "rows", inserting(1))
        assert vault.outcomes(vault.run("export")) == [(str(DAY), "exported")]
        assert vault.manifest(DAY)["sealed"] and vault.manifest(DAY)["rows"] == 2000
    with monkeypatch.context() as patch:
        patch.setattr(SourceShard, "rows", inserting(10**6))
        vault.add(DAY, first=500_001)
        assert vault.outcomes(vault.run("export", code=75)) == [(str(DAY), "unsealed")]
        assert not vault.manifest(DAY, 2)["sealed"]
    assert vault.outcomes(vault.run("export")) == [(str(DAY), "added")]
    assert vault.manifest(DAY, 3)["sealed"]
    vault.run("verify", "--level", "rows")
    vault.assert_restored(back(vault, clickhouse))


def test_23_the_server_dies_in_mid_query(own_clickhouse, clickhouse, database, monkeypatch):
    vault = Vault({"1": f"port = {own_clickhouse.port}"}, database, "")
    vault.add(DAY, count=300_000)
    rows = SourceShard.rows

    def killing(self, table, day, clients=None):
        for batch in rows(self, table, day, clients):
            own_clickhouse.kill()
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(SourceShard, "rows", killing)
        vault.run("export", code=75)
    assert vault.files(DAY) == [] and list((vault.archive / "_staging").iterdir()) == []
    assert vault.run("list", "--no-store")["days"] == []
    own_clickhouse.start()
    vault.run("export")
    vault.run("verify", "--level", "rows")
    vault.run("restore", "--into", f"clickhouse://127.0.0.1:{clickhouse.port}/{database}")
    other = open_store(config.Store(port=clickhouse.port, database=database))
    vault.assert_restored(other)
    vault.remove()


def test_24_while_a_shard_is_down_the_day_stays_open(two_shards, clickhouse):
    vault, second = two_shards
    vault.add(DAY, client=2, shard="a")
    vault.add(DAY, client=1, shard="b")
    second.kill()
    vault.run("export", code=75)
    assert vault.files(DAY) == []
    second.start()
    assert vault.outcomes(vault.run("export")) == [(str(DAY), "exported")]
    manifest = vault.manifest(DAY)
    assert {name: shard["rows"] for name, shard in manifest["shards"].items()} == {"a": 1000, "b": 1000}
    assert sorted(file["shard"] for file in manifest["files"]) == ["a", "b"]
    name = f"{vault.database}_back"
    vault.run("restore", "--into", f"clickhouse://127.0.0.1:{clickhouse.port}/{name}")
    vault.assert_restored(vault.open("a", name))


@pytest.mark.every_engine
def test_25_a_changed_schema_stops_the_export_with_a_clear_word(vault, clickhouse):
    vault.add(DAY)
    vault.run("export")
    store = vault.open()
    store.query(f"ALTER TABLE {vault.database}.telemetry ADD COLUMN unit String")
    vault.add(DAY, first=5001)
    result = vault.run("export", code=1)
    assert "unit String" in result["stderr"] and "other columns" in result["stderr"]
    assert any("unit String" in check["detail"] for check in vault.run("check", code=1)["checks"])
    # What was archived before is restored into the table of today as well.
    store.query(f"ALTER TABLE {vault.database}.telemetry DROP COLUMN unit")
    store.close()
    vault.run("export")
    target = back(vault, clickhouse, "--dry-run")
    target.migrate()
    target.query(f"ALTER TABLE {target.database}.telemetry ADD COLUMN unit String")
    target.close()
    vault.assert_restored(back(vault, clickhouse))


def test_27_an_empty_day_has_a_manifest_with_no_rows(vault, clickhouse):
    vault.add(days_ago(4))
    vault.add(days_ago(1), first=2001)
    result = vault.run("export")
    assert vault.outcomes(result) == [
        (str(days_ago(4)), "exported"), (str(days_ago(3)), "empty"), (str(days_ago(2)), "empty"),
        (str(days_ago(1)), "exported"),
    ]  # fmt: skip
    assert (vault.manifest(days_ago(3))["rows"], vault.manifest(days_ago(3))["sealed"]) == (0, True)
    vault.run("verify", "--level", "rows")
    vault.assert_restored(back(vault, clickhouse))
    vault.add(days_ago(3), first=9001)
    assert vault.outcomes(vault.run("export")) == [(str(days_ago(3)), "added")]


def test_28_memory_stays_flat_from_a_day_to_one_six_times_as_large(vault):
    """In bench/archive.py from 1 to 100 million rows; here, that the exporter holds no more than a few row groups."""
    import subprocess
    import sys

    def peak() -> int:
        """In KiB. Not ru_maxrss, which a child inherits from the process that started it."""
        code = (
            "import sys; from skywave_archive.cli import main\n"
            "try: main(sys.argv[1:])\n"
            "finally: print(next(l.split()[1] for l in open('/proc/self/status') if l.startswith('VmHWM')))"
        )
        run = subprocess.run(
            [sys.executable, "-c", code, "export", "--config", str(vault.path)],
            capture_output=True,
            text=True,
            check=True,
        )
        return int(run.stdout.splitlines()[-1])

    def fill(day, millions: int) -> None:
        rng = np.random.default_rng(1)
        store = vault.open()
        for n in range(millions * 2):
            seq = np.arange(n * 500_000 + 1, (n + 1) * 500_000 + 1, dtype=np.uint64)
            created = day_start(day) + seq.astype(np.int64)
            store.insert_readings(
                Block(
                    np.full(500_000, 1, np.uint32),
                    np.full(500_000, STREAM, np.uint64),
                    seq,
                    created,
                    [b"a", b"b"],
                    np.arange(500_000) % 2,
                    rng.random(500_000),
                    created,
                    day,
                )
            )
        store.close()

    fill(days_ago(2), 2)
    small = peak()
    fill(days_ago(1), 12)
    large = peak()
    print(small, large)
    assert large < 512 * 1024
    assert large < small + 96 * 1024, (small, large)
    assert vault.run("verify", "--level", "rows")["good"] == 2


def test_the_open_day_is_published_so_far_and_completed_when_it_is_over(vault, clickhouse):
    vault.add(today(), first=1)
    assert vault.outcomes(vault.run("export")) == []
    vault.run("export", "--open-day")
    vault.add(today(), first=1001)
    vault.run("export", "--open-day")
    assert [vault.manifest(today(), n)["rows"] for n in (1, 2)] == [1000, 2000]
    assert not vault.manifest(today(), 2)["sealed"]
    vault.assert_restored(back(vault, clickhouse))
    assert "has not come yet" in vault.run("export", "--day", "2999-01-01", code=2)["stderr"]


@pytest.mark.every_engine
def test_rejected_messages_are_archived_and_restored(vault, clickhouse):
    vault.add(DAY)
    payloads = [random.Random(n).randbytes(n * 100) + b"\0" for n in range(5)]
    for number, payload in enumerate(payloads):
        vault.reject(DAY, number, payload)
    result = vault.run("export")
    assert Counter(item["outcome"] for item in result["days"] if item["table"] == "rejected") == {"exported": 1}
    vault.reject(DAY, 77, b"late")
    assert [i["new_rows"] for i in vault.run("export")["days"]] == [1]
    vault.run("verify", "--level", "rows")
    store = back(vault, clickhouse)
    assert [row.payload for row in store.rejected(payload=True)] == [*payloads, b"late"]
    store.close()


def test_many_exports_of_an_open_day_are_put_together_when_it_closes(vault, clickhouse, monkeypatch):
    import skywave_archive.export as module
    import skywave_archive.night as night

    monkeypatch.setattr(module, "MAX_FILES", 2)
    with monkeypatch.context() as patch:
        patch.setattr(module, "utc_today", lambda: DAY)
        patch.setattr(night, "utc_today", lambda: DAY)
        for n in range(4):
            vault.add(DAY, first=1 + 1000 * n)
            vault.run("export", "--day", str(DAY))
    assert len(vault.files(DAY)) == 4
    assert vault.outcomes(vault.run("export")) == [(str(DAY), "replaced")]
    assert len(vault.files(DAY)) == 1 and vault.manifest(DAY, 5)["sealed"]
    vault.run("verify", "--level", "rows")
    vault.assert_restored(back(vault, clickhouse))


def test_30_days_are_utc_in_every_time_zone(clickhouse, database):
    """The server's and the exporter's clocks stand in zones with and without summer time."""
    import os
    import time

    class Elsewhere(ClickHouse):
        def __init__(self) -> None:
            super().__init__()
            path = self.folder / "config.xml"
            path.write_text(path.read_text().replace("<timezone>UTC", "<timezone>America/New_York"))

    server = Elsewhere()
    server.start()
    before = os.environ.get("TZ")
    vault = Vault({"1": f"port = {server.port}"}, database, "")
    try:
        for zone in ("Pacific/Kiritimati", "America/New_York", "UTC"):
            os.environ["TZ"] = zone
            time.tzset()
            for day in (days_ago(2), DAY):
                vault.add(day, first=len(vault.ledger[day]) + 1, count=100)
            vault.run("export")
        assert set(vault.ledger) == {days_ago(2), DAY}
        vault.run("verify", "--level", "rows")
        vault.run("restore", "--into", f"clickhouse://127.0.0.1:{clickhouse.port}/{database}")
        vault.assert_restored(open_store(config.Store(port=clickhouse.port, database=database)))
        midnight = f"{DAY}T00:00:00+00:00"
        vault.run(
            "restore", "--to-time", midnight, "--into", f"clickhouse://127.0.0.1:{clickhouse.port}/{database}_early"
        )
        store = open_store(config.Store(port=clickhouse.port, database=f"{database}_early"))
        vault.assert_restored(store, days=(days_ago(2),))
    finally:
        os.environ.pop("TZ", None)
        if before is not None:
            os.environ["TZ"] = before
        time.tzset()
        vault.remove()
        server.remove()


def test_a_large_day_of_one_shard_is_read_in_parts_of_whole_clients(vault, clickhouse, monkeypatch):
    monkeypatch.setattr("skywave_archive.reading.PART_ROWS", 500)
    vault.configure("parallel = 3")
    for client, count in ((3, 1200), (4, 10), (5, 700), (9, 2000), (4_000_000_000, 900)):
        vault.add(DAY, client=client, stream=client, count=count)
    vault.run("export")
    files = vault.manifest(DAY)["files"]
    assert len(files) == 3
    spans = sorted((file["first_client"], file["last_client"]) for file in files)
    assert all(a[1] < b[0] for a, b in itertools.pairwise(spans))
    assert vault.manifest(DAY)["shards"]["1"]["rows"] == 4810
    vault.add(DAY, client=1, stream=1, count=5)
    vault.add(DAY, client=3, stream=3, first=5001, count=5)
    vault.add(DAY, client=9, stream=9, first=5001, count=5)
    assert vault.outcomes(vault.run("export")) == [(str(DAY), "added")]
    vault.run("verify", "--level", "rows")
    vault.assert_restored(back(vault, clickhouse))


def test_the_same_readings_on_two_shards_are_refused_with_a_name(two_shards):
    vault, _ = two_shards
    vault.add(DAY, client=2, shard="a")
    vault.run("export")
    vault.add(DAY, client=2, shard="b", first=991, count=20, note=False)
    result = vault.run("export", code=1)
    assert "client 2" in result["stderr"] and "shard b" in result["stderr"]
    assert vault.manifest(DAY)["rows"] == 1000
    store = vault.open("b")
    store.query(f"ALTER TABLE {vault.database}.telemetry DROP PARTITION '{DAY}'")
    store.close()
    vault.run("export")
    name = f"{vault.database}_back"
    vault.run("restore", "--into", f"clickhouse://127.0.0.1:{vault.settings('a').port}/{name}")
    vault.assert_restored(vault.open("a", name))
