"""The whole system on a ClickHouse cluster of 2 shards of 3 replicas, with ZooKeeper and two brokers, archived all the while
into an HDFS of two NameNodes and three DataNodes, and the faults of its nodes. One node of a shard at a time loses its
disk: that is what three replicas with a quorum of two survive.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
from pathlib import Path

from support.cluster import Cluster, Replica
from support.hadoop import HighlyAvailableHdfs, NameNode
from support.parts import Mosquitto, Postgres, free_port, wait_for

from faults.faults import CATALOGUE as SINGLE
from faults.faults import Aim, Fault, Steps, _fault, _long, _part
from faults.proxy import Proxy
from faults.world import Disk, World, faked
from skywave import config
from skywave.store.shards import open_shards
from skywave.store.store import Store

CLUSTER: dict[str, Aim] = {
    name: SINGLE[name]
    for name in (
        "client_killed", "client_frozen", "sensor_killed", "server_killed", "server_frozen", "both_servers_killed",
        "broker_killed", "broker_frozen", "postgres_killed", "midnight", "network_cut", "network_hold", "network_reset",
        "outbox_lost", "outbox_put_back",
    )
}  # fmt: skip
"""The faults of a cluster; those of the other parts are as in the single system."""


CALL_S = 180
"""What a command of the archive may take."""


class Archiving:
    """Exports the open day into HDFS again and again, and in the end every day."""

    def __init__(self, folder: Path, store: str, hdfs: HighlyAvailableHdfs) -> None:
        self.config = folder / "archive.toml"
        target = f'kind = "hdfs"\nurls = "{hdfs.urls}"\npath = "{hdfs.new_root()}"\ntimeout = 5\n'
        self.config.write_text(f"[store]\n{store}\n[target]\n{target}[export]\nlock_ttl = 5.0\n")
        self.exports, self.postponed = 0, 0
        self.wrong: list[str] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join(CALL_S + 20)

    def _run(self) -> None:
        while not self._over.wait(2):
            try:
                code, said = self.call("export", "--open-day")
            except subprocess.TimeoutExpired:
                code, said = -1, f"it took more than {CALL_S} s"
            self.exports += code == 0
            self.postponed += code == 75
            if code not in (0, 75):
                self.wrong.append(f"export ended with {code}: {said[-1500:]}")

    def call(self, *words: str, offset: str = "") -> tuple[int, str]:
        command, *rest = words
        ended = subprocess.run(
            [sys.executable, "-m", "skywave_archive", command, "--config", str(self.config), "--json", *rest],
            capture_output=True, text=True, timeout=CALL_S, check=False,
            env={**os.environ, **({**faked(), "FAKETIME": offset} if offset else {})},
        )  # fmt: skip
        return ended.returncode, ended.stdout if ended.returncode == 0 else ended.stdout + ended.stderr

    def finish(self) -> int:
        """Exports all days, when the last of them is over; the rows that the archive then has, each looked at."""
        if not self.exports:
            self.wrong.append(f"no export came through, {self.postponed} were postponed")
        for words in (("export",), ("verify", "--level", "rows"), ("list",)):
            for _ in range(5):
                code, said = self.call(*words, offset="+3d")
                if "[Errno 22] Invalid argument" not in said:  # libfaketime's clock_nanosleep fails at times
                    break
            if code:
                self.wrong.append(f"{words}: {code} {said[-1500:]}")
                return 0
        return sum(day["rows"] for day in json.loads(said)["days"] if day["table"] == "telemetry")


class ClusterWorld(World):
    """See above."""

    cluster: Cluster
    second: Mosquitto
    hdfs: HighlyAvailableHdfs
    archiving: Archiving

    def start(self) -> None:
        for name in ("postgres", "sqlite"):
            self.disks[name] = Disk(self.folder / name)
        extra = "max_queued_messages 100\nmax_inflight_messages 0\nset_tcp_nodelay true\n"
        self.broker, self.second = Mosquitto(extra), Mosquitto(extra)
        self.postgres = Postgres(self.disks["postgres"].folder, max_connections=30)
        self.cluster, self.hdfs = Cluster(2, 3), HighlyAvailableHdfs(3)
        self.parts = [
            self.broker, self.second, self.postgres, self.cluster.zookeeper, *self.cluster.all, *self.hdfs.all,
        ]  # fmt: skip
        for part in (self.broker, self.second, self.postgres, self.cluster, self.hdfs):
            part.start()
        for name in ("north", "south"):
            to_broker = Proxy(self.network, self.broker.port)
            self.from_servers.append(to_broker)
            mqtt = f'port = {to_broker.port}\nothers = "127.0.0.1:{self.second.port}"'
            self._start_server(name, free_port(), mqtt, self.cluster.toml(quorum=2))
        self.other_brokers = f'others = "127.0.0.1:{self.second.port}"\n'
        self._add_edges()
        self._supervisor.start()
        self.archiving = Archiving(self.folder, self.cluster.toml(quorum=2), self.hdfs)
        self.archiving.start()

    def settle(self, seconds: float = 180) -> None:
        super().settle(seconds)
        self.archiving.stop()

    def archived(self) -> tuple[int, list[str]]:
        return self.archiving.finish(), self.archiving.wrong

    def close(self, keep: bool = False) -> None:
        if hasattr(self, "archiving"):
            self.archiving.stop()
        super().close(keep)

    def stores(self) -> list[Store]:
        return open_shards(config.load(self.folder / "north.toml", config.Server).store)


def _replica(world: World, rng: random.Random) -> tuple[Replica, None]:
    assert isinstance(world, ClusterWorld)
    return rng.choice(world.cluster.all), None


_part("replica", "replica", _replica, 15, CLUSTER)
_part("zookeeper", "zookeeper", lambda world, _: (world.cluster.zookeeper, None), 15, CLUSTER)
_part("second broker", "second broker", lambda world, _: (world.second, None), 15, CLUSTER)
_part("datanode", "DataNode", lambda world, rng: (rng.choice(world.hdfs.datanodes), None), 12, CLUSTER)


def _namenode_killed(world: World, _: random.Random) -> Fault:
    """The active one. The other takes over, as its operator or a failover controller has it do."""
    assert isinstance(world, ClusterWorld)
    hdfs = world.hdfs

    def run() -> Steps:
        dead: NameNode = hdfs.active
        dead.kill()
        yield 1
        hdfs.fail_over()
        dead.start()

    return _fault("active NameNode killed", "namenode", {"namenode"}, run)


def _replica_lost(world: World, rng: random.Random) -> Fault:
    """Its disk as well: it comes back empty, and its shard fills it."""
    assert isinstance(world, ClusterWorld)
    node, _ = _replica(world, rng)

    def run() -> Steps:
        node.kill()
        world.cluster.lose_disk(node, world.folder / "north.toml")
        yield _long(rng, 5)
        node.start()
        wait_for(
            lambda: world.cluster.has_caught_up(node, "telemetry"), 120,
            lambda: f"the replica has caught up: {world.cluster.states(node, 'telemetry')}\n{node.errors()}", 0.5,
        )  # fmt: skip

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


CLUSTER["namenode_killed"] = _namenode_killed
CLUSTER["replica_lost"] = _replica_lost
CLUSTER["shard_killed"] = _shard_killed
