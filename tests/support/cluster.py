"""A ClickHouse cluster on loopback: ZooKeeper, and several shards and replicas of real servers with replicated tables."""

from __future__ import annotations

import shutil
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

from skywave import config
from skywave.store import schema
from skywave.store.replicas import NEVER_LOOKED_S
from skywave.store.shards import open_store
from support.parts import ClickHouse, Part, which
from support.stand import skywave


class ZooKeeper(Part):
    def __init__(self) -> None:
        super().__init__("zookeeper")
        (self.folder / "zoo.cfg").write_text(
            f"tickTime=500\ndataDir={self.folder}/data\nclientPort={self.port}\nclientPortAddress=127.0.0.1\n"
            "admin.enableServer=false\nmaxClientCnxns=0\nmaxSessionTimeout=30000\n"
        )

    def command(self) -> list[str]:
        jars = "/usr/share/java/zookeeper.jar"
        assert Path(jars).exists(), "zookeeper is not installed: run make test, which installs it"
        main = "org.apache.zookeeper.server.ZooKeeperServerMain"
        return [which("java"), "-Xmx128m", "-cp", jars, main, str(self.folder / "zoo.cfg")]

    def ready(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1) as sock:
                sock.sendall(b"srvr")
                return b"Mode" in sock.recv(4096)
        except OSError:
            return False


class Replica(ClickHouse):
    def __init__(self, zookeeper: int, shard: int, replica: int) -> None:
        super().__init__()
        self.lock = f"shard {shard}"
        """What a fault of it needs for itself: one replica of a shard at a time."""
        path = self.folder / "config.xml"
        extra = (
            f"<interserver_http_host>127.0.0.1</interserver_http_host>"
            f"<zookeeper><node><host>127.0.0.1</host><port>{zookeeper}</port></node></zookeeper>"
            f"<macros><shard>{shard}</shard><replica>{replica}</replica></macros></yandex>"
        )
        path.write_text(path.read_text().replace("</yandex>", extra))

    def start(self) -> None:
        """Again and again, as systemd does: without ZooKeeper it may end at its start."""
        until = time.monotonic() + 120
        while True:
            try:
                super().start()
                return
            except AssertionError as error:
                self.kill()  # it may live, and wait for a frozen ZooKeeper
                if time.monotonic() > until:
                    raise AssertionError(f"{error}\n{self.errors()}") from error
                time.sleep(1)

    def errors(self) -> str:
        """The end of what it logged of them."""
        return (self.folder / "error.log").read_text(errors="replace")[-3000:]


class Cluster:
    """``nodes[shard][replica]``."""

    def __init__(self, shards: int, replicas: int) -> None:
        self.zookeeper = ZooKeeper()
        self.nodes = [[Replica(self.zookeeper.port, s, r) for r in range(replicas)] for s in range(shards)]
        one = "<replica><host>127.0.0.1</host><port>{}</port></replica>"
        layout = "".join(
            f"<shard><internal_replication>true</internal_replication>{''.join(one.format(n.port) for n in nodes)}</shard>"
            for nodes in self.nodes
        )
        for node in self.all:
            path = node.folder / "config.xml"
            servers = f"<remote_servers><skywave>{layout}</skywave></remote_servers></yandex>"
            path.write_text(path.read_text().replace("</yandex>", servers))

    @property
    def all(self) -> list[Replica]:
        return [node for shard in self.nodes for node in shard]

    def start(self) -> None:
        self.zookeeper.start()
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda node: node.start(), self.all))

    def toml(self, quorum: int) -> str:
        """The cluster as a server's ``[store]``."""
        shards = "".join(
            f'[store.shards.s{number}]\nreplicas = "{", ".join(f"127.0.0.1:{node.port}" for node in nodes)}"\n'
            for number, nodes in enumerate(self.nodes)
        )
        return f"quorum = {quorum}\ntimeout = 10.0\n{shards}"

    def lose_disk(self, node: Replica, config_path: Path) -> None:
        """Of a dead node, which is then prepared to take its place again."""
        data = node.folder / "data"
        shutil.rmtree(data)
        data.mkdir()
        skywave("store", "rebuild", "--config", str(config_path), str(data))

    def has_caught_up(self, node: Replica, database: str) -> bool:
        """True if the node has all that its shard has, and all of the shard's replicas work."""
        tables = len(schema.attachments(database))
        return len(states := self.states(node, database)) == tables and all(
            state[1:] == (0, 0, 0, len(self.nodes[0])) for state in states
        )

    def states(self, node: Replica, database: str) -> list[tuple]:
        """Of each table: its name, 1 if it cannot be written, 1 if it has not looked at its shard's log since the start, how
        many entries of that wait, and how many replicas are active."""
        with closing(open_store(config.Store(port=node.port, database=database))) as store:
            return store.query(
                f"SELECT table, is_readonly, absolute_delay > {NEVER_LOOKED_S}, queue_size, active_replicas"
                f" FROM system.replicas WHERE database = '{database}'"
            )

    def create_tables(self, database: str) -> None:
        for node in self.all:
            store = open_store(config.Store(port=node.port, database=database))
            for statement in schema.tables(database, modern=False, replicated=True):
                store.query(statement)
            store.close()

    def remove(self) -> None:
        for node in self.all:
            node.remove()
        self.zookeeper.remove()
