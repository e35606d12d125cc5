"""Servers on a ClickHouse cluster: 2 shards of 3 replicas with a quorum of 2, two servers, clients on both shards."""

from __future__ import annotations

import time
from datetime import date

import numpy as np
import pytest
from support.cluster import Cluster
from support.parts import running, wait_for
from support.stand import Stand, delivers

from skywave import config
from skywave.care.doctor import examine
from skywave.formats.messages import Produced
from skywave.store.accepted import entries
from skywave.store.accepting import What, note
from skywave.store.accounts import LOST, audit_shards
from skywave.store.audit import audit
from skywave.store.clickhouse import ClickHouseStore
from skywave.store.columns import Block
from skywave.store.schema import DAY_US
from skywave.store.shards import open_store


@pytest.fixture(scope="module")
def cluster():
    yield from running(Cluster(2, 3))


def begin(stand: Stand, *servers: str) -> None:
    """Servers, and a client on each shard; both deliver."""
    for name in servers:
        stand.add_server(name)
    for client_id in (1, 2):
        stand.add_client(client_id, stand.sqlite(client_id), rate=1500)
    both_deliver(stand)


def both_deliver(stand: Stand, more: int = 500, seconds: float = 60) -> None:
    for client_id in (1, 2):
        delivers(stand.parts[f"client-{client_id}"], more, seconds)


def test_readings_come_to_the_shard_of_their_client_and_to_a_quorum(clustered, cluster):
    begin(clustered, "server", "server-2")
    both_deliver(clustered, 2000)
    clustered.finish(60)
    sent = clustered.verify()
    assert sent > 4000
    store = open_store(config.Store(port=cluster.nodes[1][2].port, database=clustered.store_settings().database))
    assert store.query(f"SELECT count() FROM {store.database}.readings")[0][0] == sent, "any server reads all shards"
    came = f"day IN (SELECT day FROM {store.database}.arrivals WHERE created_day >= today() - 1)"
    recent = f"created_at >= {(time.time_ns() // 1000) - DAY_US}"
    asked = f"SELECT count() FROM {store.database}.telemetry_all FINAL PREWHERE {recent} WHERE {came}"
    assert store.query(asked)[0][0] == sent, "as docs/formats.md asks"
    store.close()


def test_any_replica_may_die(clustered, cluster, rng):
    begin(clustered, "server", "server-2")
    own = clustered.store_settings().database
    for number in range(6):
        node = rng.choice(cluster.all)
        node.kill()
        if number % 2:  # and its disk with it
            cluster.lose_disk(node, clustered.folder / "server.toml")
        time.sleep(rng.uniform(0, 2))
        both_deliver(clustered, seconds=90)
        if not number:
            wrong = [finding for finding in examine(clustered.folder / "server.toml") if not finding.ok]
            assert [f"127.0.0.1:{node.port}" in finding.check for finding in wrong] == [True], wrong
            assert all(finding.ok for finding in examine(clustered.folder / "server.toml", services=True))
        node.start()
        wait_for(lambda node=node: cluster.has_caught_up(node, own), 90, f"{node.name} has caught up", 0.5)
    clustered.finish(90)
    assert clustered.verify() > 4000

    def differ() -> list[int]:
        rows = [set(each(node.port, clustered)) for node in cluster.nodes[0]]
        return [len(set.union(*rows) - mine) for mine in rows]

    # the third replica fetches what the two of the quorum have a moment later
    wait_for(lambda: not any(differ()), 60, lambda: f"every replica has every row: they lack {differ()}", 0.5)


def each(port: int, stand: Stand) -> list[tuple]:
    store = open_store(config.Store(port=port, database=stand.store_settings().database))
    try:
        return store.query(f"SELECT stream, seq, data_value FROM {store.database}.telemetry FINAL")
    finally:
        store.close()


def test_a_replica_that_lacks_older_parts_is_not_taken_for_the_whole_shard(cluster, database):
    nodes = cluster.nodes[0]

    def asked_first(at: int) -> ClickHouseStore:
        addresses = ", ".join(f"127.0.0.1:{node.port}" for node in (*nodes[at:], *nodes[:at]))
        return ClickHouseStore(config.Store(database=database, quorum=2, timeout=4.0), config.Shard(replicas=addresses))

    behind, other = asked_first(0), asked_first(1)
    count = f"SELECT count() FROM {database}.telemetry"
    try:
        other.migrate()
        behind.query(f"SYSTEM STOP FETCHES {database}.telemetry")
        other.insert_readings(block(first=1, count=100))
        behind.insert_readings(block(first=101, count=10))  # so it has the newest part, and not the one before
        other.record_streams([(1, Produced(7, 110, 0), 0)], 1)
        assert behind.query(count) == [(10,)], "sequential consistency alone does not see what is missing"
        assert behind.read_whole(["telemetry"], lambda: behind.query(count)) == [(110,)]
        account = audit_shards([asked_first(0)])
        assert (account.total("stored"), account.total("missing")) == (110, 0)
        first = asked_first(0)
        first.query(f"SYSTEM START FETCHES {database}.telemetry")
        assert first.read_whole(["telemetry"], lambda: (first._at, first.query(count))) == (0, [(110,)]), "waits for it"
        first.close()
    finally:
        behind.close()
        other.close()


def test_what_is_on_record_about_the_account_is_replicated(cluster, database):
    nodes = cluster.nodes[0]
    shard = [
        ClickHouseStore(
            config.Store(database=database, quorum=2, timeout=20.0),
            config.Shard(replicas=", ".join(f"127.0.0.1:{node.port}" for node in (*nodes[at:], *nodes[:at]))),
        )
        for at in (0, 1)
    ]
    try:
        shard[0].migrate()
        shard[0].insert_readings(block(first=1, count=100))
        shard[0].record_streams([(1, Produced(7, 110, 0), 0)], 1)
        note(shard[:1], lambda _: 0, LOST, What.parse("1/7"), "its disk died", "ada")
        assert [entry[:7] for entry in entries(shard[1])] == [(1, 7, 101, 110, LOST, "its disk died", "ada")]
        account = audit(shard[1])
        assert account.clean
        assert account.total("accepted") == 10
    finally:
        for store in shard:
            store.close()


def block(first: int, count: int) -> Block:
    seq = np.arange(first, first + count, dtype=np.uint64)
    return Block(
        np.full(count, 1, np.uint32), np.full(count, 7, np.uint64), seq, np.full(count, time.time_ns() // 1000), [b"key"],
        np.zeros(count, np.int32), seq.astype(np.float64), np.zeros(count, np.int64), date.today(),
    )  # fmt: skip


def test_a_lost_shard_stops_only_its_own_clients(clustered, cluster):
    begin(clustered, "server")
    server = clustered.parts["server"]
    for node in cluster.nodes[1]:  # clients with odd numbers
        node.kill()
    wait_for(lambda: not server.status()["shards"]["s1"]["ok"], 30, "the server notices")
    for _ in range(3):
        delivers(clustered.parts["client-2"], 500, 60)
    waiting = clustered.parts["client-1"].status()
    assert waiting["backlog"]["readings"] > 500 and waiting["accepting"]
    assert "store of shard s1" in str(server.status()["stalls"]) or server.status()["store_error"]
    for node in cluster.nodes[1]:
        node.start()
    delivers(clustered.parts["client-1"], 500, 90)
    clustered.finish(90)
    assert clustered.verify() > 4000
