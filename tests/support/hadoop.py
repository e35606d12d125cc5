"""A real HDFS for the tests: NameNode and DataNodes from Hadoop's shaded jars, which Maven brings once.

The jars are kept between runs in the user's cache folder and are taken only with the checksums that the role pins.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import requests

from support.parts import Part, free_port, listens, wait_for, which

VERSION = "3.5.0"
ROLE = Path(__file__).parents[2] / "ansible/roles/hadoop"
JARS = dict(line.split() for line in (ROLE / "files/artifacts.txt").read_text().splitlines())
_COPY = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy"
_JAVA = ("-Xmx256m", "-XX:TieredStopAtLevel=4", "--add-opens", "java.base/java.lang=ALL-UNNAMED")
_HDFS = "org.apache.hadoop.hdfs"


def jars() -> Path:
    """The folder with the jars; brings what is missing. Two runs at once wait for each other."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "skywave-tests" / f"hadoop-{VERSION}"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for name, checksum in JARS.items():
            _, artifact, version = name.split(":")
            jar = cache / f"{artifact}-{version}.jar"
            if not _is(jar, checksum):
                jar.unlink(missing_ok=True)
                command = [which("mvn"), "-q", "-B", _COPY, f"-Dartifact={name}", f"-DoutputDirectory={cache}"]
                subprocess.run([*command, "-Dmdep.useBaseVersion=true"], check=True, cwd=cache, timeout=600)
                assert _is(jar, checksum), f"{jar} has not the checksum that is pinned here"
    return cache


def _is(jar: Path, checksum: str) -> bool:
    if not jar.exists():
        return False
    with jar.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == checksum


class _Node(Part):
    daemon = ""

    def __init__(self, name: str, properties: dict[str, object]) -> None:
        super().__init__(name)
        self.conf = self.folder / "conf"
        self.conf.mkdir()
        self.configure(properties)

    def configure(self, properties: dict[str, object]) -> None:
        for file in ("core-site.xml", "hdfs-site.xml"):
            body = "".join(f"<property><name>{k}</name><value>{v}</value></property>" for k, v in properties.items())
            (self.conf / file).write_text(f"<configuration>{body}</configuration>")

    def java(self, main: str) -> list[str]:
        return [
            which("java"),
            *_JAVA,
            "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
            "-cp",
            f"{self.conf}:{jars()}/*",
            main,
        ]

    def command(self) -> list[str]:
        return self.java(self.daemon)

    def run(self, main: str, *args: str) -> str:
        result = subprocess.run(
            [*self.java(main), *args], capture_output=True, text=True, cwd=self.folder, timeout=120, check=False
        )
        assert result.returncode == 0, f"{main} {args}: {result.stdout[-1000:]} {result.stderr[-2000:]}"
        return result.stdout


class NameNode(_Node):
    daemon = f"{_HDFS}.server.namenode.NameNode"
    rpc = 0

    def ready(self) -> bool:
        return listens(self.port) and listens(self.rpc)


class DataNode(_Node):
    daemon = f"{_HDFS}.server.datanode.DataNode"


class Hdfs:
    """A NameNode and ``datanodes`` DataNodes on loopback; each test gets a root folder of its own."""

    def __init__(self, datanodes: int = 2, replication: int | None = None, **extra: object) -> None:
        self.rpc, self.http = free_port(), free_port()
        self.roots = 0
        common: dict[str, object] = {
            "fs.defaultFS": f"hdfs://127.0.0.1:{self.rpc}", "dfs.namenode.rpc-address": f"127.0.0.1:{self.rpc}",
            "dfs.namenode.http-address": f"127.0.0.1:{self.http}", "dfs.replication": replication or datanodes,
            "dfs.namenode.fs-limits.min-block-size": 4096, "dfs.namenode.safemode.extension": 0,
            "dfs.heartbeat.interval": 1, "dfs.namenode.heartbeat.recheck-interval": 2000,
            "dfs.namenode.redundancy.interval.seconds": 1,
            "dfs.client.block.write.replace-datanode-on-failure.policy": "NEVER",
            "hadoop.tmp.dir": tempfile.gettempdir(), **extra,
        }  # fmt: skip
        self.common = common
        self.namenode = NameNode("namenode", common)
        self.namenode.port, self.namenode.rpc = self.http, self.rpc
        self.namenode.configure({**common, "dfs.namenode.name.dir": self.namenode.folder / "name"})
        self.datanodes = []
        for number in range(datanodes):
            ports = {name: free_port() for name in ("address", "ipc.address", "http.address")}
            node = DataNode(f"datanode{number}", common)
            node.port = ports["http.address"]
            node.configure({
                **common, "dfs.datanode.data.dir": node.folder / "data", "dfs.datanode.hostname": "127.0.0.1",
                **{f"dfs.datanode.{name}": f"127.0.0.1:{port}" for name, port in ports.items()},
            })  # fmt: skip
            self.datanodes.append(node)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http}"

    def start(self) -> None:
        self.namenode.run(NameNode.daemon, "-format", "-nonInteractive", "-force")
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda node: node.start(), [self.namenode, *self.datanodes]))
        self.wait()

    def wait(self, live: int | None = None) -> None:
        """Until the NameNode is out of safe mode and sees its DataNodes."""
        live = len(self.datanodes) if live is None else live

        def what() -> str:
            logs = "\n".join(f"{node.name}: {node.log()[-1500:]}" for node in (self.namenode, *self.datanodes))
            return f"HDFS has {self._state()}, not {live} DataNodes:\n{logs}"

        wait_for(lambda: self._state() == (live, "Operational"), 60, what, 0.2)

    def _state(self) -> tuple[int, str]:
        try:
            query = {"qry": "Hadoop:service=NameNode,name=FSNamesystemState"}
            bean = requests.get(f"{self.url}/jmx", params=query, timeout=5).json()["beans"][0]
            return bean["NumLiveDataNodes"], bean["FSState"]
        except (requests.RequestException, ValueError, LookupError):
            return 0, ""

    def op(self, method: str, path: str, op: str, **params: object) -> requests.Response:
        """A WebHDFS call as the superuser; not what the archive uses."""
        import getpass

        query = {"op": op, "user.name": getpass.getuser(), **params}
        response = requests.request(method, f"{self.url}/webhdfs/v1{path}", params=query, timeout=30)
        assert response.ok, response.text
        return response

    def new_root(self) -> str:
        """A fresh folder that belongs to the user skywave."""
        self.roots += 1
        root = f"/archive{self.roots}"
        self.op("PUT", root, "MKDIRS")
        self.op("PUT", root, "SETOWNER", owner="skywave")
        return root

    def admin(self, *args: str) -> str:
        """``hdfs dfsadmin …``."""
        return self.namenode.run(f"{_HDFS}.tools.DFSAdmin", *args)

    def remove(self) -> None:
        for node in (*self.datanodes, self.namenode):
            node.remove()


class JournalNode(_Node):
    daemon = f"{_HDFS}.qjournal.server.JournalNode"


class HighlyAvailableHdfs(Hdfs):
    """Two NameNodes with JournalNodes, the first of them active, until ``fail_over``."""

    def __init__(self, datanodes: int = 3, journals: int = 1) -> None:
        addresses = [f"127.0.0.1:{free_port()}" for _ in range(journals)]
        ports = {name: (free_port(), free_port()) for name in ("nn1", "nn2")}
        common: dict[str, object] = {
            "fs.defaultFS": "hdfs://ns", "dfs.nameservices": "ns", "dfs.ha.namenodes.ns": "nn1,nn2",
            "dfs.namenode.shared.edits.dir": f"qjournal://{';'.join(addresses)}/ns",
            "dfs.journalnode.enable.sync.format": "true", "dfs.journalnode.sync.interval": 1000,
            "dfs.client.failover.proxy.provider.ns": f"{_HDFS}.server.namenode.ha.ConfiguredFailoverProxyProvider",
            "dfs.ha.fencing.methods": "shell(/bin/true)",
        }  # fmt: skip
        for name, (rpc, http) in ports.items():
            common |= {f"dfs.namenode.rpc-address.ns.{name}": f"127.0.0.1:{rpc}"}
            common |= {f"dfs.namenode.http-address.ns.{name}": f"127.0.0.1:{http}"}
        super().__init__(datanodes, **common)
        self.journals = []
        for number, address in enumerate(addresses):
            node = JournalNode(f"journalnode{number}", common)
            node.port = int(address.split(":")[1])
            node.configure({
                **common, "dfs.journalnode.edits.dir": node.folder / "edits", "dfs.journalnode.rpc-address": address,
                "dfs.journalnode.http-address": f"127.0.0.1:{free_port()}",
            })  # fmt: skip
            self.journals.append(node)
        self.standby = NameNode("namenode2", common)
        for name, node in (("nn1", self.namenode), ("nn2", self.standby)):
            node.rpc, node.port = ports[name]
            folder = node.folder / "name"
            extra = {"dfs.namenode.name.dir": folder, "dfs.ha.namenode.id": name}
            node.configure({**self._without_single(), **extra})
        for node in self.datanodes:
            body = (node.conf / "hdfs-site.xml").read_text()
            for single in ("dfs.namenode.rpc-address", "dfs.namenode.http-address"):
                start = body.index(f"<property><name>{single}</name>")
                body = body[:start] + body[body.index("</property>", start) + len("</property>") :]
            for file in ("core-site.xml", "hdfs-site.xml"):
                (node.conf / file).write_text(body)
        self.http = ports["nn1"][1]
        self.urls = ";".join(f"http://127.0.0.1:{http}" for _, http in ports.values())

    def _without_single(self) -> dict[str, object]:
        return {
            k: v for k, v in self.common.items() if k not in ("dfs.namenode.rpc-address", "dfs.namenode.http-address")
        }

    def start(self) -> None:
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda node: node.start(), self.journals))
        self.namenode.run(NameNode.daemon, "-format", "-nonInteractive", "-force")
        self.namenode.start()
        self.standby.run(NameNode.daemon, "-bootstrapStandby", "-nonInteractive", "-force")
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda node: node.start(), [self.standby, *self.datanodes]))
        self.standby.run(f"{_HDFS}.tools.DFSHAAdmin", "-transitionToActive", "nn1")
        self.wait()

    @property
    def all(self) -> list[Part]:
        return [*self.journals, self.namenode, self.standby, *self.datanodes]

    @property
    def active(self) -> NameNode:
        """The NameNode that was last told to be it."""
        return self.namenode if self.http == self.namenode.port else self.standby

    def fail_over(self) -> None:
        """After the active NameNode has died."""
        to, node = ("nn2", self.standby) if self.active is self.namenode else ("nn1", self.namenode)
        node.run(f"{_HDFS}.tools.DFSHAAdmin", "-transitionToActive", "--forceactive", to)
        self.http = node.port

    def remove(self) -> None:
        super().remove()
        for node in (self.standby, *self.journals):
            node.remove()
