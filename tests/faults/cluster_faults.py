"""The whole system on a ClickHouse cluster of 2 shards of 3 replicas, with ZooKeeper and two brokers, and the faults of its
nodes. One node of a shard at a time loses its disk: that is what three replicas with a quorum of two survive.
"""

from __future__ import annotations

import random

from cluster import Cluster, Replica
from parts import Mosquitto, Postgres, free_port, wait_for

from faults.faults import CATALOGUE as SINGLE
from faults.faults import Aim, Fault, Steps, _fault, _long, _part
from faults.proxy import Proxy
from faults.world import Disk, World
from skywave import config
from skywave.server.store import Store, open_shards

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


def _replica(world: World, rng: random.Random) -> tuple[Replica, None]:
    assert isinstance(world, ClusterWorld)
    return rng.choice(world.cluster.all), None


_part("replica", "replica", _replica, 15, CLUSTER)
_part("zookeeper", "zookeeper", lambda world, _: (world.cluster.zookeeper, None), 15, CLUSTER)
_part("second broker", "second broker", lambda world, _: (world.second, None), 15, CLUSTER)


def _replica_lost(world: World, rng: random.Random) -> Fault:
    """Its disk as well: it comes back empty, and its shard fills it."""
    assert isinstance(world, ClusterWorld)
    node, _ = _replica(world, rng)

    def run() -> Steps:
        node.kill()
        world.cluster.lose_disk(node, world.folder / "north.toml")
        yield _long(rng, 5)
        node.start()
        wait_for(lambda: world.cluster.has_caught_up(node, "telemetry"), 120, "the replica has caught up", 0.5)

    return _fault("replica lost with its disk", node.lock, {node.lock, "zookeeper"}, run)


def _shard_killed(world: World, rng: random.Random) -> Fault:
    """All replicas of a shard at once, as a rack that loses its power."""
    assert isinstance(world, ClusterWorld)
    nodes = rng.choice(world.cluster.nodes)

    def run() -> Steps:
        for node in nodes:
            node.kill()
        yield _long(rng, 8)
        for node in nodes:
            node.start()

    return _fault("all replicas of a shard killed", nodes[0].lock, {nodes[0].lock}, run)


CLUSTER["replica_lost"] = _replica_lost
CLUSTER["shard_killed"] = _shard_killed
