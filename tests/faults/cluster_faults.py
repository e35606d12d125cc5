"""The whole system on a ClickHouse cluster of 2 shards of 3 replicas, with ZooKeeper and two brokers, and the faults of its
nodes. One node of a shard at a time loses its disk: that is what three replicas with a quorum of two survive.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable

from cluster import Cluster, Replica
from parts import Mosquitto, Part, Postgres, free_port, wait_for
from stand import skywave

from faults.faults import CATALOGUE as SINGLE
from faults.faults import Aim, Fault, Steps, _fault, _frozen, _killed, _long
from faults.proxy import Proxy
from faults.world import Disk, World
from skywave import config
from skywave.server.store import Store, open_shards, open_store

CLUSTER: dict[str, Aim] = {
    name: SINGLE[name]
    for name in (
        "client_killed", "client_frozen", "sensor_killed", "server_killed", "server_frozen", "both_servers_killed",
        "broker_killed", "broker_frozen", "postgres_killed", "midnight", "network_cut", "network_hold", "network_reset",
        "outbox_lost", "outbox_put_back",
    )
}  # fmt: skip
"""The faults of a cluster; those of the other parts are as in the single system."""


class ClusterWorld(World):
    """See above."""

    cluster: Cluster
    second: Mosquitto

    def start(self) -> None:
        for name in ("postgres", "sqlite"):
            self.disks[name] = Disk(self.folder / name)
        extra = "max_queued_messages 100\nmax_inflight_messages 0\nset_tcp_nodelay true\n"
        self.broker, self.second = Mosquitto(extra), Mosquitto(extra)
        self.postgres = Postgres(self.disks["postgres"].folder, max_connections=30)
        self.parts = [self.broker, self.second, self.postgres]
        self.cluster = Cluster(2, 3)
        for part in self.parts:
            part.start()
        self.cluster.start()
        self.parts += [self.cluster.zookeeper, *self.cluster.all]
        for name in ("north", "south"):
            to_broker = Proxy(self.network, self.broker.port)
            self.from_servers.append(to_broker)
            mqtt = f'port = {to_broker.port}\nothers = "127.0.0.1:{self.second.port}"'
            self._start_server(name, free_port(), mqtt, self.cluster.toml(quorum=2))
        self.other_brokers = f'others = "127.0.0.1:{self.second.port}"\n'
        self._add_edges()
        self._supervisor.start()

    def stores(self) -> list[Store]:
        return open_shards(config.load(self.folder / "north.toml", config.Server).store)


def _one(name: str, target: Callable[[ClusterWorld, random.Random], tuple[Part, str]]) -> None:
    def killed(world: World, rng: random.Random) -> Fault:
        assert isinstance(world, ClusterWorld)
        part, lock = target(world, rng)
        return _fault(f"{name} killed", lock, {lock}, lambda: _killed(part, rng))

    def frozen(world: World, rng: random.Random) -> Fault:
        assert isinstance(world, ClusterWorld)
        part, lock = target(world, rng)
        return _fault(f"{name} frozen", lock, {lock}, lambda: _frozen(part, _long(rng, 15)))

    CLUSTER[f"{name}_killed"], CLUSTER[f"{name}_frozen"] = killed, frozen


def _replica(world: ClusterWorld, rng: random.Random) -> tuple[Replica, str]:
    shard = rng.randrange(2)
    return rng.choice(world.cluster.nodes[shard]), f"shard {shard}"


_one("replica", _replica)
_one("zookeeper", lambda world, _: (world.cluster.zookeeper, "zookeeper"))
_one("second broker", lambda world, _: (world.second, "second broker"))


def _replica_lost(world: World, rng: random.Random) -> Fault:
    """Its disk as well: it comes back empty, and its shard fills it."""
    assert isinstance(world, ClusterWorld)
    node, lock = _replica(world, rng)

    def run() -> Steps:
        node.kill()
        shutil.rmtree(node.folder / "data")
        (node.folder / "data").mkdir()
        skywave("store", "rebuild", "--config", str(world.folder / "north.toml"), str(node.folder / "data"))
        yield _long(rng, 5)
        node.start()
        wait_for(lambda: _replicates(node), 120, "the replica has caught up", 0.5)

    return _fault("replica lost with its disk", lock, {lock, "zookeeper"}, run)


def _replicates(node: Replica) -> bool:
    store = open_store(config.Store(port=node.port))
    try:
        rows = store.query("SELECT is_readonly, queue_size FROM system.replicas WHERE database = 'telemetry'")
        return len(rows) == 6 and all(row == (0, 0) for row in rows)
    finally:
        store.close()


def _shard_killed(world: World, rng: random.Random) -> Fault:
    """All replicas of a shard at once, as a rack that loses its power."""
    assert isinstance(world, ClusterWorld)
    shard = rng.randrange(2)

    def run() -> Steps:
        for node in world.cluster.nodes[shard]:
            node.kill()
        yield _long(rng, 8)
        for node in world.cluster.nodes[shard]:
            node.start()

    return _fault("all replicas of a shard killed", f"shard {shard}", {f"shard {shard}"}, run)


CLUSTER["replica_lost"] = _replica_lost
CLUSTER["shard_killed"] = _shard_killed
