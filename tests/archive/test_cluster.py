"""The archive of a cluster that writes with a quorum: what its servers stored is exported, lost, and restored elsewhere."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections import Counter
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest
from support.cluster import Cluster
from support.parts import running, wait_for
from support.stand import Skywave, Stand, delivers

from skywave import config
from skywave.store.accounts import audit_shards
from skywave.store.shards import open_shards, open_store

CLIENTS = (1, 2, 3)


@pytest.fixture
def cluster():
    yield from running(Cluster(2, 3))


@pytest.fixture
def other_shape():
    yield from running(Cluster(3, 1))


def archive(stand: Stand, target: str, *words: str, code: int = 0) -> dict:
    path = stand.folder / "archive.toml"
    path.write_text(f"{stand.store}\n[target]\n{target}\n")
    command, *rest = words
    result = subprocess.run(
        [sys.executable, "-m", "skywave_archive", command, "--config", str(path), "--json", *rest],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert result.returncode == code, f"{words}: {result.returncode}\n{result.stdout}\n{result.stderr}"
    return json.loads(result.stdout)


def stored(stand: Stand) -> Counter:
    stores = open_shards(stand.store_settings())
    try:
        return sum((stand.stored(store) for store in stores), Counter())
    finally:
        for store in stores:
            store.close()


def pause(stand: Stand, clients: list[Skywave]) -> list[Skywave]:
    """Stops the sensors and waits until all is acknowledged; returns the sensors."""
    sensors = [part for name, part in stand.parts.items() if not name.startswith(("client", "server"))]
    for sensor in sensors:
        sensor.signal(signal.SIGSTOP)
    for client in clients:
        wait_for(
            lambda c=client: not c.status()["backlog"]["readings"], 60, f"{client.name} has everything acknowledged"
        )
    return sensors


def test_all_nodes_are_lost_and_the_audit_misses_just_what_came_after_the_export(
    clustered, cluster, other_shape, clickhouse, hdfs_target
):
    server = clustered.add_server(extra="[ingest]\npause_after = 1.0\n")
    clients = [clustered.add_client(number, clustered.sqlite(number), 900) for number in CLIENTS]
    for client in clients:
        delivers(client, 2000, 60)
    sensors = pause(clustered, clients)
    produced = sum(client.status()["readings"] for client in clients)
    settings = clustered.store_settings()
    wait_for(lambda: audit_shards(open_shards(settings)).total("produced") == produced, 20, "the accounts are recorded")
    for shard in cluster.nodes:
        shard[0].kill()  # any replica will do
    exported = archive(clustered, hdfs_target, "export", "--open-day")
    archived = stored(clustered)
    assert exported["days"][0]["rows"] == archived.total() > 6000
    assert archive(clustered, hdfs_target, "verify", "--level", "rows")["good"] == len(exported["days"])

    for sensor in sensors:
        sensor.signal(signal.SIGCONT)
    for client in clients:
        delivers(client, 1000, 90)
    pause(clustered, clients)
    late = stored(clustered) - archived
    for part in (*cluster.all, cluster.zookeeper):
        part.kill()
        shutil.rmtree(part.folder / "data", ignore_errors=True)
    for sensor in sensors:
        sensor.signal(signal.SIGCONT)
    before = [client.status()["backlog"]["readings"] for client in clients]
    for client, count in zip(clients, before, strict=True):
        wait_for(lambda c=client, n=count: c.status()["backlog"]["readings"] > n + 1000, 60, "readings wait")
    server.stop()

    clustered.store = f'[store]\ndatabase = "{clustered.store_settings().database}"\n{other_shape.toml(quorum=1)}'
    path = clustered.folder / "server.toml"
    path.write_text(f'name = "server"\n{clustered.mqtt}{clustered.store}\n[http]\nport = {server.http}\n')
    for _ in range(2):  # the second finds everything done
        restored = archive(clustered, hdfs_target, "restore", "--into", f"config:{path}")
        assert restored["replicas_behind"] == []
    assert stored(clustered) == archived
    one = f"{clustered.store_settings().database}_one"
    archive(clustered, hdfs_target, "restore", "--into", f"clickhouse://127.0.0.1:{clickhouse.port}/{one}")
    with closing(open_store(config.Store(port=clickhouse.port, database=one))) as store:
        assert clustered.stored(store) == archived

    server.start()
    clustered.finish(90)
    sent = Counter(
        (client_id, kind, value)
        for client_id, kind in clustered.sensors
        for values in clustered.sent(client_id, kind).values()
        for value in values
    )
    assert sent - stored(clustered) == late, "lost is what was committed after the export, and nothing else"
    assert not stored(clustered) - sent
    account = audit_shards(open_shards(clustered.store_settings()))
    assert account.total("missing") == late.total() > 3000
    assert account.total("doubled") == 0
    named = sum(last - first + 1 for stream in account.streams for first, last in stream.missing_ranges)
    assert named == late.total()


def test_a_day_that_this_clickhouse_cannot_drop_is_kept_and_says_why(clustered, cluster, tmp_path):
    """18.16 answers nothing any more once a partition is gone that was written with a quorum."""
    server = clustered.add_server()
    client = clustered.add_client(1, clustered.sqlite(1), 900)
    delivers(client, 1000, 60)
    clustered.finish(60)
    assert server.process.returncode == 0
    sent = clustered.verify()
    today = datetime.now(UTC).date()
    target = f'kind = "local"\npath = "{tmp_path}"'
    with closing(open_shards(clustered.store_settings())[1]) as store:
        day = today - timedelta(2)
        columns = "client_id, stream, seq, created_at, data_key, data_value, received_at, day"
        table = f"{store.database}.telemetry"
        store.query(
            f"INSERT INTO {table} ({columns}) SELECT client_id, 3, seq, created_at, data_key, data_value, received_at,"
            f" toDate('{day}') FROM {table}"
        )
    archive(clustered, target, "export")
    archive(clustered, target, "verify", "--level", "rows")
    kept = archive(clustered, target, "expire", "--older-than", "1d", code=1)["days"]
    assert [(day["outcome"], "quorum" in day["why"]) for day in kept] == [("kept", True)]
    assert stored(clustered).total() == 2 * sent
    for shard in cluster.nodes:
        shard[0].kill()
    assert archive(clustered, target, "export")["days"] == [], "another replica says the same of each day"
    assert archive(clustered, target, "drill")["passed"]
