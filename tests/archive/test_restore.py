"""Back into a store of any shape; the numbers are those of the archive's contract."""

from __future__ import annotations

import shutil
from contextlib import closing
from datetime import timedelta

import pytest
from skywave_archive.errors import TargetFull
from skywave_archive.shard_day import ShardDay
from skywave_archive.targets.local import LocalTarget
from support.cluster import Cluster
from support.parts import running
from support.vault import Vault, day_start, days_ago

from skywave import config
from skywave.formats.messages import Produced
from skywave.store.audit import audit
from skywave.store.shards import open_store

DAYS = (days_ago(3), days_ago(2), days_ago(1))
OLD, DAY = DAYS[1:]


def url(clickhouse, name: str) -> str:
    return f"clickhouse://127.0.0.1:{clickhouse.port}/{name}"


def opened(clickhouse, name: str):
    return open_store(config.Store(port=clickhouse.port, database=name))


@pytest.fixture
def cluster():
    yield from running(Cluster(2, 2))


def test_39_and_41_from_two_by_two_to_one_by_one_and_three_by_one_when_all_is_lost(
    cluster, clickhouse, database, hdfs_target
):
    """Disaster: every node's data and ZooKeeper's are destroyed; only HDFS is left."""
    cluster.create_tables(database)
    stores = {f"s{n}": f"port = {shard[n % 2].port}" for n, shard in enumerate(cluster.nodes)}
    vault = Vault(stores, database, hdfs_target)
    for n, day in enumerate(DAYS):
        for client in range(1, 8):
            vault.add(day, first=1 + 500 * n, count=500, client=client, stream=client * 7, shard=f"s{client % 2}")
            vault.add(day, first=1 + 500 * n, count=50, client=client, stream=client * 7, shard=f"s{client % 2}")
    for name in stores:
        with closing(vault.open(name)) as store:
            clients = [client for client in range(1, 8) if client % 2 == int(name[1])]
            store.record_streams([(client, Produced(client * 7, 1500, 0), 0) for client in clients], 1)
    vault.run("export")
    assert vault.run("verify", "--level", "rows")["good"] == 3
    for node in cluster.all:
        node.kill()
        shutil.rmtree(node.folder / "data")
    cluster.zookeeper.kill()
    shutil.rmtree(cluster.zookeeper.folder / "data")
    vault.run("restore", "--into", url(clickhouse, f"{database}_one"))
    three = [f"{database}_three{n}" for n in range(3)]
    vault.run("restore", *(word for name in three for word in ("--into", url(clickhouse, name))))
    vault.run("restore", *(word for name in three for word in ("--into", url(clickhouse, name))))
    with closing(opened(clickhouse, f"{database}_one")) as store:
        account = audit(store)
        assert account.clean and account.total("produced") == account.total("stored") == vault.rows
    vault.assert_restored(opened(clickhouse, f"{database}_one"))
    vault.assert_restored(*(opened(clickhouse, name) for name in three))
    for n, name in enumerate(three):
        with closing(opened(clickhouse, name)) as store:
            assert {row[0] % 3 for row in store.query(f"SELECT DISTINCT client_id FROM {name}.telemetry")} == {n}
    vault.remove()


def test_restoring_into_a_replicated_cluster(cluster, archived, database):
    cluster.create_tables(f"{database}_new")
    into = [word for shard in cluster.nodes for word in ("--into", url(shard[0], f"{database}_new"))]
    archived.run("restore", *into)
    archived.run("restore", *into)
    for replica in (0, 1):
        stores = [opened(shard[replica], f"{database}_new") for shard in cluster.nodes]
        for store in stores:
            store.query(f"SYSTEM SYNC REPLICA {database}_new.telemetry")
        archived.assert_restored(*stores)


@pytest.mark.every_engine
def test_40_a_target_that_is_not_empty_is_refused_and_merge_adds_only_what_is_missing(archived, clickhouse):
    name = f"{archived.database}_back"
    target = Vault(archived.stores, name, "")
    day = DAYS[1]
    target.add(day, first=1201, count=200, client=2, stream=22, received=77)  # half archived, with another received_at
    target.add(day, first=1, count=10, client=9, stream=99)
    refused = archived.run("restore", "--into", url(clickhouse, name), code=1)
    assert "--merge" in refused["stderr"]
    assert [outcome for _, outcome in archived.outcomes(refused)] == ["restored", "failed", "restored"]
    with closing(target.open()) as store:
        assert target.stored(store)[day] == target.ledger[day]
    archived.run("restore", "--into", url(clickhouse, name), "--merge")
    archived.ledger[day] |= target.ledger[day]  # of a reading that both have, the target's copy stays
    archived.assert_restored(target.open())
    again = archived.run("restore", "--into", url(clickhouse, name), "--merge")
    assert {outcome for _, outcome in archived.outcomes(again)} == {"there already"}
    archived.assert_restored(target.open())
    target.remove()


@pytest.mark.every_engine
def test_42_one_client_one_key_or_a_time_window_only(archived, clickhouse):
    name = f"{archived.database}_part"
    middle = day_start(DAYS[1]) + 1_150_000
    chosen = [
        (["--client", "3"], lambda row: row[0] == 3),
        (["--key", "pressure"], lambda row: row[1] == b"pressure"),
        (
            ["--client", "2", "--key", "height", "--day", str(DAYS[1])],
            lambda row: row[:2] == (2, b"height") and DAYS[1] == day_of(row),
        ),
        (
            ["--from-time", f"{DAYS[1]}T00:00:01.150Z", "--to-time", f"{DAYS[2]}"],
            lambda row: middle <= row[2] < day_start(DAYS[2]),
        ),
        (["--client", "77"], lambda _: False),
    ]  # fmt: skip

    def day_of(row):
        return next(day for day in DAYS if day_start(day) <= row[2] < day_start(day + timedelta(days=1)))

    for n, (options, wanted) in enumerate(chosen):
        whole = archived.ledger
        archived.run("restore", *options, "--into", url(clickhouse, f"{name}{n}"))
        archived.run("restore", *options, "--into", url(clickhouse, f"{name}{n}"))
        archived.ledger = {day: {k: row for k, row in rows.items() if wanted(row)} for day, rows in whole.items()}
        archived.assert_restored(opened(clickhouse, f"{name}{n}"))
        archived.ledger = whole
    # The rest can follow.
    archived.run("restore", "--merge", "--into", url(clickhouse, f"{name}0"))
    archived.assert_restored(opened(clickhouse, f"{name}0"))


def test_restore_says_what_it_would_do_and_refuses_nonsense(archived, clickhouse):
    into = ("--into", url(clickhouse, f"{archived.database}_dry"))
    plan = archived.run("restore", "--dry-run", *into)
    assert [item["rows_at_most"] for item in plan["days"]] == [1500, 1500, 1500]
    with closing(archived.open()) as store:
        assert not store.query(f"SELECT name FROM system.databases WHERE name = '{archived.database}_dry'")
    for arguments in (
        ("--into", "http://somewhere"), ("--into", "clickhouse://u:secret@h/x"), ("--into", "clickhouse://h?nonsense=1"), (),
        (*into, "--from-time", "yesterday"), (*into, "--from-time", "2026-01-02", "--to-time", "2026-01-01"),
        (*into, "--day", "2026-01-01", "--from", "2026-01-01"), (*into, "--client", "0"),
    ):  # fmt: skip
        archived.run("restore", *arguments, code=2)
    assert "not in the archive" in archived.run("restore", "--day", "2020-01-01", *into, code=1)["stderr"]
    archived.run("restore", "--into", "clickhouse://127.0.0.1:1/x", code=75)


@pytest.mark.every_engine
def test_a_drill_restores_a_day_and_drops_it_again(archived):
    result = archived.run("drill")
    assert result["passed"] and result["rows"] == 1500 and result["day"] in map(str, DAYS)
    assert archived.run("drill", "--day", str(DAYS[0]))["day"] == str(DAYS[0])
    with closing(archived.open()) as store:
        assert store.query("SELECT name FROM system.databases WHERE name LIKE '%drill%'") == []
    content = bytearray(archived.files(DAYS[0])[0].read_bytes())
    content[len(content) // 3] ^= 1
    archived.files(DAYS[0])[0].write_bytes(content)
    assert not archived.run("drill", "--day", str(DAYS[0]), code=1)["passed"]
    with closing(archived.open()) as store:
        assert store.query("SELECT name FROM system.databases WHERE name LIKE '%drill%'") == []


def test_what_is_restored_into_a_current_engine_is_as_if_it_had_been_inserted_there(current_clickhouse, archived):
    """No sparse column, no staging table, also where there were rows before."""
    archived.add(DAYS[0], first=9001, client=9, count=200, values=[0.0] * 200, received=0)
    archived.run("export")
    name = f"{archived.database}_current"
    archived.run("restore", "--day", str(DAYS[0]), "--into", url(current_clickhouse, name))
    archived.add(DAYS[0], first=9301, client=9, count=200, values=[0.0] * 200, received=0)
    archived.run("export")
    archived.run("restore", "--merge", "--into", url(current_clickhouse, name))
    with closing(opened(current_clickhouse, name)) as store:
        where = f"FROM system.parts_columns WHERE database = '{name}'"
        assert store.query(f"SELECT DISTINCT serialization_kind {where}") == [(b"Default",)]
        assert not [table for (table,) in store.query(f"SHOW TABLES FROM {name}") if b"restoring" in table]
        assert store.query(f"SELECT count() FROM system.dropped_tables WHERE database = '{name}'") == [(0,)]
    archived.assert_restored(opened(current_clickhouse, name))


def test_rows_that_arrive_while_a_day_is_staged_stop_the_restore(vault, monkeypatch):
    vault.add(DAY)
    vault.run("export")
    name = f"{vault.database}_back"
    other = Vault(vault.stores, name, "")
    original = ShardDay.end_file

    def arriving(self):
        original(self)
        if not other.ledger:
            other.add(DAY, first=7001, count=10)

    monkeypatch.setattr(ShardDay, "end_file", arriving)
    into = ("--into", f"clickhouse://127.0.0.1:{vault.settings().port}/{name}")
    assert "new rows" in vault.run("restore", *into, code=1)["stderr"]
    with closing(other.open()) as store:
        assert other.stored(store) == dict(other.ledger)
    vault.run("restore", *into, "--merge")
    vault.ledger[DAY] |= other.ledger[DAY]
    vault.assert_restored(other.open())
    other.remove()


def test_a_restore_resumed_in_another_order_of_shards_is_refused(vault, monkeypatch):
    for client in (1, 2):
        vault.add(DAY, client=client, stream=client)
    vault.run("export")
    port, names = vault.settings().port, [f"{vault.database}_{n}" for n in range(2)]
    urls = [f"clickhouse://127.0.0.1:{port}/{name}" for name in names]
    original = ShardDay.move_in

    def dying(self, merge, complete):
        if self.store.database == names[1]:
            raise KeyboardInterrupt
        return original(self, merge, complete)

    with monkeypatch.context() as patch:
        patch.setattr(ShardDay, "move_in", dying)
        vault.run("restore", "--into", urls[0], "--into", urls[1], code=75)
    vault.run("restore", "--into", urls[1], "--into", urls[0], code=1)
    vault.run("restore", "--into", urls[0], "--into", urls[1])
    vault.assert_restored(*(vault.open(database=name) for name in names))


def test_a_restore_needs_no_room_in_the_archive(vault, crasher, monkeypatch):
    vault.add(OLD)
    vault.run("export")
    vault.add(DAY, first=5001)
    assert crasher.run("export", "--config", str(vault.path), step=12) is None
    assert list((vault.archive / "_staging").iterdir())

    def full(*_):
        raise TargetFull("quota")

    monkeypatch.setattr(LocalTarget, "create", full)
    name = f"{vault.database}_back"
    vault.run("restore", "--into", f"clickhouse://127.0.0.1:{vault.settings().port}/{name}")
    vault.assert_restored(vault.open(database=name), days=(OLD,))


def test_a_day_of_more_parts_than_the_target_may_have_is_merged_before_it_moves(vault, monkeypatch):
    monkeypatch.setattr("skywave_archive.shard_day.MAX_PARTS", 2)
    for n in range(6):
        vault.add(DAY, first=1 + 1000 * n)
        vault.run("export")
    name = f"{vault.database}_back"
    vault.run("restore", "--into", f"clickhouse://127.0.0.1:{vault.settings().port}/{name}")
    target = vault.open(database=name)
    parts = target.query(
        f"SELECT count() FROM system.parts WHERE active AND database = '{target.database}' AND table = 'telemetry'"
    )
    assert parts[0][0] <= 2
    vault.assert_restored(target)
