"""Servers on a ClickHouse cluster: 2 shards of 3 replicas with a quorum of 2, two servers, clients on both shards."""

from __future__ import annotations

import shutil
import time

import pytest
from cluster import Cluster
from parts import wait_for
from stand import Stand, skywave

from skywave import config
from skywave.server.store import open_store


@pytest.fixture(scope="module")
def cluster():
    made = Cluster(2, 3)
    try:
        made.start()
        yield made
    finally:
        made.remove()


@pytest.fixture
def clustered(broker, cluster, database):
    stand = Stand(broker, cluster.toml(quorum=2), database)
    try:
        yield stand
    finally:
        stand.remove()


def delivers(stand: Stand, client_id: int, more: int = 500, seconds: float = 60) -> None:
    client = stand.parts[f"client-{client_id}"]
    before = client.status().get("acked_readings", 0)
    wait_for(
        lambda: client.status().get("acked_readings", 0) > before + more, seconds,
        lambda: f"client {client_id} delivers: {client.status()}", 0.2,
    )  # fmt: skip


def test_readings_come_to_the_shard_of_their_client_and_to_a_quorum(clustered, cluster):
    for name in ("server", "server-2"):
        clustered.add_server(name)
    for client_id in (1, 2):
        clustered.add_client(client_id, clustered.sqlite(client_id), rate=1500)
    for client_id in (1, 2):
        delivers(clustered, client_id, 2000)
    clustered.finish(60)
    sent = clustered.verify()
    assert sent > 4000
    store = open_store(config.Store(port=cluster.nodes[1][2].port, database=clustered.store_settings().database))
    assert store.query(f"SELECT count() FROM {store.database}.readings")[0][0] == sent, "any server reads all shards"
    store.close()


def test_any_replica_may_die(clustered, cluster, rng):
    for name in ("server", "server-2"):
        clustered.add_server(name)
    for client_id in (1, 2):
        clustered.add_client(client_id, clustered.sqlite(client_id), rate=1500)
    for client_id in (1, 2):
        delivers(clustered, client_id)
    for number in range(6):
        node = rng.choice(cluster.all)
        node.kill()
        if number % 2:  # and its disk with it
            shutil.rmtree(node.folder / "data")
            (node.folder / "data").mkdir()
            skywave("store", "rebuild", "--config", str(clustered.folder / "server.toml"), str(node.folder / "data"))
        time.sleep(rng.uniform(0, 2))
        for client_id in (1, 2):
            delivers(clustered, client_id, seconds=90)
        node.start()
        wait_for(lambda node=node: replicates(node.port, clustered), 90, f"{node.name} has caught up", 0.5)
    clustered.finish(90)
    assert clustered.verify() > 4000
    rows = [sorted(each(node.port, clustered)) for node in cluster.nodes[0]]
    assert rows[0] == rows[1] == rows[2], "every replica has every row"


def each(port: int, stand: Stand) -> list[tuple]:
    store = open_store(config.Store(port=port, database=stand.store_settings().database))
    try:
        return store.query(f"SELECT stream, seq, data_value FROM {store.database}.telemetry FINAL")
    finally:
        store.close()


def replicates(port: int, stand: Stand) -> bool:
    store = open_store(config.Store(port=port, database=stand.store_settings().database))
    try:
        rows = store.query(
            f"SELECT is_readonly, queue_size, active_replicas FROM system.replicas WHERE database = '{store.database}'"
        )
        return len(rows) == 6 and all(row == (0, 0, 3) for row in rows)
    finally:
        store.close()


def test_a_lost_shard_stops_only_its_own_clients(clustered, cluster):
    server = clustered.add_server()
    for client_id in (1, 2):
        clustered.add_client(client_id, clustered.sqlite(client_id), rate=1500)
    for client_id in (1, 2):
        delivers(clustered, client_id)
    for node in cluster.nodes[1]:  # clients with odd numbers
        node.kill()
    wait_for(lambda: not server.status()["shards"]["s1"]["ok"], 30, "the server notices")
    for _ in range(3):
        delivers(clustered, 2)
    waiting = clustered.parts["client-1"].status()
    assert waiting["backlog"]["readings"] > 500 and waiting["accepting"]
    assert "store of shard s1" in str(server.status()["stalls"]) or server.status()["store_error"]
    for node in cluster.nodes[1]:
        node.start()
    delivers(clustered, 1, seconds=90)
    clustered.finish(90)
    assert clustered.verify() > 4000
