"""All parts of a system, for real, with a proxy between each two that talk, and a supervisor that restarts what ends."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path

import psycopg2
from support.parts import ClickHouse, Mosquitto, Part, Postgres, free_port, wait_for
from support.stand import Skywave, Stand, drained

from faults.proxy import Network, Proxy
from skywave import config
from skywave.store.shards import open_store
from skywave.store.store import Store

FAKETIME = next(map(str, Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")), "")
RESTART_S = 0.5
DISK_MB = 600
RATE = 300


def faked() -> dict[str, str]:
    """The environment of a process with a wall clock of its own."""
    return {"LD_PRELOAD": FAKETIME, "FAKETIME_DONT_FAKE_MONOTONIC": "1"}


@functools.cache
def can_mount() -> bool:
    """True where this process may mount: root may not in every container."""
    with tempfile.TemporaryDirectory(prefix="skywave-mount-") as folder:
        if subprocess.run(
            ["mount", "-t", "tmpfs", "skywave-faults", folder], check=False, capture_output=True
        ).returncode:
            return False
        subprocess.run(["umount", "--lazy", folder], check=True)
        return True


class Disk:
    """A small file system of its own, which can be filled; only a folder where nothing can be mounted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        if can_mount():
            subprocess.run(
                ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m,mode=755", "skywave-faults", folder], check=True
            )

    def fill(self) -> None:
        assert can_mount(), "the disk of this host would be filled"
        with (self.folder / "filler").open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(1 << 16))
            except OSError:
                pass

    def free(self) -> None:
        (self.folder / "filler").unlink(missing_ok=True)

    def close(self) -> None:
        if can_mount():
            subprocess.run(["umount", "--lazy", self.folder], check=False)


class Process(Skywave):
    """A ``skywave`` process, with a wall clock of its own if it asks for one."""

    def __init__(self, world: World | Stand, name: str, *arguments: str, http: int = 0, clock: bool = False) -> None:
        super().__init__(world, name, *arguments, http=http)
        self.clock = self.folder / "clock" if clock else None
        self.wanted = False
        self.over = False
        """The world has ended: a fault that is still being injected cannot start it again."""
        self.restarts = 0
        self.turn = threading.RLock()

    def command(self) -> list[str]:
        words = super().command()
        if self.clock:
            fake = {**faked(), "FAKETIME_TIMESTAMP_FILE": str(self.clock), "FAKETIME_CACHE_DURATION": "1"}
            words = ["env", *(f"{key}={value}" for key, value in fake.items()), *words]
        return words

    def set_clock(self, offset: str) -> None:
        assert self.clock
        part = self.clock.with_suffix(".new")
        part.write_text(f"{offset}\n")
        part.replace(self.clock)

    def ready(self) -> bool:
        return True

    def start(self) -> None:
        with self.turn:
            if self.over:
                return
            if self.clock and not self.clock.exists():
                self.set_clock("+0")
            self.wanted = True
            super().start()

    def kill(self) -> None:
        with self.turn:
            super().kill()

    def stop(self, seconds: float = 30) -> int:
        with self.turn:
            self.wanted = False
            return super().stop(seconds)

    def hold_down(self) -> None:
        """SIGKILL, and the supervisor leaves it dead until ``start``."""
        with self.turn:
            self.wanted = False
            super().kill()

    def supervise(self) -> None:
        """As ``Restart=on-failure`` does."""
        with self.turn:
            if self.wanted and self.process and self.process.poll() is not None:
                self.restarts += 1
                super().start()


@dataclass
class Edge:
    """One client with its sensor, and what the oracle has to know of it."""

    client_id: int
    kind: str
    acknowledged: bool
    database: str
    client: Process
    sensor: Process
    ledger: Path
    to_sensor: Proxy
    to_broker: Proxy
    to_outbox: Proxy | None
    outbox: Path | None
    policy: str = "block"
    tails: int = 0
    """How many connections of its sensor a fault has ended: each may lose a tail, if it is not acknowledged."""
    sensor_kills: int = 0
    gone: set[float] = field(default_factory=set)
    """Values whose outbox was destroyed before they were acknowledged."""


class World:
    """Five edges, two servers, a broker, a PostgreSQL and a ClickHouse in ``folder``."""

    def __init__(self, rate: float = RATE) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="skywave-faults-"))
        self.rate = rate
        self.network = Network()
        self.processes: list[Process] = []
        self.edges: list[Edge] = []
        self.servers: list[Process] = []
        self.to_store: list[Proxy] = []
        self.from_servers: list[Proxy] = []
        self.disks: dict[str, Disk] = {}
        self.other_brokers = ""
        self.parts: list[Part] = []
        self._over = threading.Event()
        self._supervisor = threading.Thread(target=self._supervise, daemon=True)
        self.folder.chmod(0o755)

    def start(self) -> None:
        for name in ("clickhouse", "postgres", "sqlite"):
            self.disks[name] = Disk(self.folder / name)
        self.broker = Mosquitto(
            f"max_queued_messages 100\nmax_inflight_messages 0\nset_tcp_nodelay true\n"
            f"include_dir {self.folder}/broker.d\n"
        )
        (self.folder / "broker.d").mkdir()
        self.postgres = Postgres(
            self.disks["postgres"].folder, max_connections=30, max_wal_size="64MB", min_wal_size="32MB",
            superuser_reserved_connections=0,
        )  # fmt: skip
        self.clickhouse = ClickHouse(self.disks["clickhouse"].folder)
        self.parts = [self.broker, self.postgres, self.clickhouse]
        for part in self.parts:
            part.start()
        for name in ("north", "south"):
            self._add_server(name)
        self._add_edges()
        self._supervisor.start()

    def _add_edges(self) -> None:
        plan = [
            ("temperature", False, "postgresql", "block", 1 << 30), ("pressure", False, "sqlite", "block", 1 << 16),
            ("height", True, "sqlite", "block", 1 << 30), ("temperature", True, "postgresql", "block", 1 << 17),
            ("pressure", False, "sqlite", "drop_oldest", 1 << 16),
        ]  # fmt: skip
        for number, (kind, acknowledged, database, policy, most) in enumerate(plan, 1):
            self._add_edge(number, kind, acknowledged, database, policy, most)

    # -- parts -------------------------------------------------------------------------------------------------------

    def _add_server(self, name: str) -> None:
        http = free_port()
        to_store, to_broker = Proxy(self.network, self.clickhouse.port), Proxy(self.network, self.broker.port)
        self.to_store.append(to_store)
        self.from_servers.append(to_broker)
        self._start_server(name, http, f"port = {to_broker.port}", f"port = {to_store.port}\ntimeout = 4.0")

    def _start_server(self, name: str, http: int, mqtt: str, store: str) -> None:
        path = self.folder / f"{name}.toml"
        path.write_text(
            f'name = "{name}"\n[mqtt]\n{mqtt}\nkeepalive = 5\n[store]\n{store}\n'
            f"[http]\nport = {http}\n[ingest]\npause_after = 2.0\n"
        )
        server = Process(self, name, "server", "--config", str(path), http=http, clock=True)
        self.servers.append(server)
        self.processes.append(server)
        server.start()

    def _add_edge(self, number: int, kind: str, acknowledged: bool, database: str, policy: str, most: int) -> None:
        port, http = free_port(), free_port()
        to_sensor, to_broker = Proxy(self.network, port), Proxy(self.network, self.broker.port)
        to_outbox, outbox = None, None
        if database == "postgresql":
            to_outbox = Proxy(self.network, self.postgres.port)
            with contextlib.closing(self.sql()) as connection, connection.cursor() as cursor:
                cursor.execute(f"CREATE DATABASE edge{number}")
            settings = (
                f'kind = "postgresql"\nmin_free_disk = 0\ndisk_path = "{self.disks["postgres"].folder}"\n'
                f'dsn = "host=127.0.0.1 port={to_outbox.port} user=skywave dbname=edge{number}"'
            )
        else:
            outbox = self.disks["sqlite"].folder / f"outbox-{number}.sqlite"
            settings = f'kind = "sqlite"\npath = "{outbox}"\nmin_free_disk = 0'
        path = self.folder / f"client-{number}.toml"
        path.write_text(
            f"client_id = {number}\n[sensors.{kind}]\nport = {to_sensor.port}\nacknowledged = {str(acknowledged).lower()}\n"
            f"[mqtt]\nport = {to_broker.port}\n{self.other_brokers}keepalive = 5\n"
            f'[outbox]\n{settings}\nmax_bytes = {most}\nwhen_full = "{policy}"\n'
            f"[http]\nport = {http}\n[uplink]\nstatus_interval = 1.0\n[intake]\nreconnect_max = 1.0\n"
        )
        name = f"sensor-{number}"
        ledger = self.folder / f"{name}.ledger"
        more = ["--acknowledged"] if acknowledged else []
        sensor = Process(
            self, name, "emulator", "--kind", kind, "--port", str(port), "--rate", str(self.rate), "--signal", "counter",
            "--seed", "1", "--ledger", str(ledger), *more,
        )  # fmt: skip
        client = Process(self, f"client-{number}", "client", "--config", str(path), http=http, clock=True)
        edge = Edge(number, kind, acknowledged, database, client, sensor, ledger, to_sensor, to_broker, to_outbox, outbox,
                    policy)  # fmt: skip
        self.edges.append(edge)
        self.processes += [sensor, client]
        sensor.start()
        client.start()

    def sql(self, database: str = "postgres"):
        connection = psycopg2.connect(self.postgres.dsn(database), connect_timeout=5)
        connection.autocommit = True
        return connection

    def store(self):
        """The final store, past every proxy."""
        return open_store(config.Store(port=self.clickhouse.port))

    def stores(self) -> list[Store]:
        """The final store, or each of its shards."""
        return [self.store()]

    def archived(self) -> tuple[int, list[str]] | None:
        """How many readings the archive has, if there is one, and what went wrong there."""
        return None

    def _supervise(self) -> None:
        while not self._over.wait(RESTART_S):
            for process in self.processes:
                process.supervise()

    # -- health ------------------------------------------------------------------------------------------------------

    def wait_until_it_flows(self, seconds: float = 60) -> None:
        """Every edge has readings acknowledged."""
        for edge in self.edges:
            wait_for(
                lambda edge=edge: edge.client.status().get("acked_readings", 0) > 0, seconds,
                lambda edge=edge: f"edge {edge.client_id} delivers: {edge.client.status()}", 0.2,
            )  # fmt: skip

    def settle(self, seconds: float = 180) -> None:
        """Stops the sensors, and returns when all outboxes are empty; then stops the rest."""
        for edge in self.edges:
            edge.sensor.stop(30)
        for edge in self.edges:
            if edge.client.status().get("set_aside"):  # at once, and not in a quarter of an hour
                edge.client.stop()
                edge.client.start()
        for edge in self.edges:
            wait_for(
                lambda edge=edge: drained(edge.client), seconds,
                lambda edge=edge: f"edge {edge.client_id} drains: {edge.client.status()}\n{edge.client.log()[-3000:]}\n"
                + "\n".join(f"{s.name}: {s.status()}\n{s.log()[-2000:]}" for s in self.servers), 0.3,
            )  # fmt: skip
        for edge in self.edges:
            assert edge.client.stop() == 0, edge.client.log()[-2000:]
        wait_for(self._accounts_are_recorded, 30, "the servers record the last accounts", 0.2)
        for server in self.servers:
            assert server.stop() == 0, server.log()[-2000:]

    def _accounts_are_recorded(self) -> bool:
        """Some server has worked on what each client said when it went."""
        for server in self.servers:
            status = server.status()
            clients = status.get("clients", {})
            said = (clients.get(str(edge.client_id), {"online": True}) for edge in self.edges)
            if status.get("held_messages") == 0 and not any(client["online"] for client in said):
                return True
        return False

    def close(self, keep: bool = False) -> None:
        keep = keep or bool(os.environ.get("SKYWAVE_KEEP"))
        statuses = {process.name: process.status() for process in self.processes if process.http} if keep else {}
        self._over.set()
        if self._supervisor.is_alive():
            self._supervisor.join(30)
        for process in self.processes:
            process.wanted, process.over = False, True
            if process.process and process.process.poll() is None:
                process.signal(signal.SIGCONT)
            process.kill()
        for part in self.parts:
            if part.process and part.process.poll() is None:
                part.signal(signal.SIGCONT)
            part.kill()
        self.network.close()
        if keep:
            logs = Path(tempfile.mkdtemp(prefix="skywave-faults-kept-"))
            (logs / "statuses.json").write_text(json.dumps(statuses, indent=1))
            for process in self.processes:
                shutil.copytree(process.folder, logs / process.name)
            for part in self.parts:
                shutil.copy(part.folder / "log", logs / f"{part.name}.log")
            for edge in self.edges:
                shutil.copy(edge.ledger, logs)
            print("kept", logs)
        for disk in self.disks.values():
            disk.close()
        for part in self.parts:
            shutil.rmtree(part.folder, ignore_errors=True)
        shutil.rmtree(self.folder, ignore_errors=True)
