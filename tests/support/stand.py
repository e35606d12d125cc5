"""The whole system as processes, with ledgers, for tests that break parts of it and then compare."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from collections import Counter
from pathlib import Path

from skywave import config
from skywave.emulator.ledger import read_ledger
from skywave.emulator.signals import KINDS
from skywave.store.accounts import audit_shards
from skywave.store.shards import open_shards, open_store
from support.parts import Mosquitto, Part, free_port, wait_for

SOCKET_BUFFERS = 256 << 10
"""Bytes that may stand between a sensor's send() and the client's recv(): both ends' buffers, doubled by the kernel."""


class Skywave(Part):
    """One `skywave` process."""

    def __init__(self, stand: Stand, name: str, *arguments: str, http: int = 0) -> None:
        self.name, self.folder, self.arguments, self.http = name, stand.folder / name, arguments, http
        self.port = 0
        self.folder.mkdir()
        self.process = None

    def command(self) -> list[str]:
        return [sys.executable, "-m", "skywave", *self.arguments]

    def ready(self) -> bool:
        return not self.http or bool(self.status())

    def status(self) -> dict:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.http}/status", timeout=5) as answer:
                return json.load(answer)
        except OSError:
            return {}


def drained(client: Skywave) -> bool:
    """The client has read all sensors to their ends, and everything is acknowledged."""
    status = client.status()
    if not status or any(sensor["connected"] for sensor in status["sensors"].values()):
        return False
    read = sum(sensor["readings"] for sensor in status["sensors"].values())
    return read == status["readings"] and not status["backlog"]["readings"] and not status["in_flight"]


def delivers(client: Skywave, more: int, seconds: float) -> None:
    """Waits until ``more`` readings of the client are acknowledged than now."""
    before = client.status().get("acked_readings", 0)
    wait_for(
        lambda: client.status().get("acked_readings", 0) > before + more, seconds,
        lambda: f"{client.name} delivers: {client.status()}", 0.2,
    )  # fmt: skip


class Stand:
    """Sensors, clients, servers and a broker. ``outbox`` and ``store`` are configuration tables as TOML."""

    def __init__(self, broker: Mosquitto, store: str, database: str, *others: Mosquitto) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="skywave-stand-"))
        self.broker = broker
        self.mqtt = f"[mqtt]\nport = {broker.port}\n"
        if others:
            self.mqtt += f'others = "{", ".join(f"127.0.0.1:{other.port}" for other in others)}"\n'
        self.store = f'[store]\ndatabase = "{database}"\n{store}'
        self.parts: dict[str, Skywave] = {}
        self.sensors: list[tuple[int, str]] = []

    def add_sensor(
        self, kind: str, client_id: int, rate: float, signal: str = "counter", port: int | None = None, *more: str
    ) -> int:
        name = f"{kind}-{client_id}"
        port = port or free_port()
        arguments = ["emulator", "--kind", kind, "--port", str(port), "--rate", str(rate), "--signal", signal]
        self.parts[name] = Skywave(
            self, name, *arguments, "--seed", "1", "--ledger", str(self.folder / name / "ledger"), *more
        )
        self.sensors.append((client_id, kind))
        self.parts[name].start()
        return port

    def add_client(
        self,
        client_id: int,
        outbox: str,
        rate: float = 1000,
        extra: str = "",
        interval: float = 0.5,
        acknowledged: bool = False,
    ) -> Skywave:
        """A client with three sensors of its own; ``rate`` is their sum."""
        name, http = f"client-{client_id}", free_port()
        more = ["--acknowledged"] if acknowledged else []
        sensors = "".join(
            f"[sensors.{kind}]\nport = {self.add_sensor(kind, client_id, rate / len(KINDS), 'counter', None, *more)}\n"
            f"acknowledged = {str(acknowledged).lower()}\n"
            for kind in KINDS
        )
        path = self.folder / f"{name}.toml"
        path.write_text(
            f"client_id = {client_id}\n{sensors}{self.mqtt}[outbox]\n{outbox}\n"
            f"[http]\nport = {http}\n[uplink]\nstatus_interval = {interval}\n{extra}"
        )
        self.parts[name] = part = Skywave(self, name, "client", "--config", str(path), http=http)
        part.start()
        return part

    def add_server(self, name: str = "server", extra: str = "", made: type[Skywave] = Skywave, **how: bool) -> Skywave:
        http = free_port()
        path = self.folder / f"{name}.toml"
        path.write_text(f'name = "{name}"\n{self.mqtt}{self.store}\n[http]\nport = {http}\n{extra}')
        self.parts[name] = part = made(self, name, "server", "--config", str(path), http=http, **how)
        part.start()
        return part

    def sqlite(self, client_id: int) -> str:
        return f'kind = "sqlite"\npath = "{self.folder}/outbox-{client_id}.sqlite"'

    def sent(self, client_id: int, kind: str) -> dict[int, list[float]]:
        ledger = self.folder / f"{kind}-{client_id}" / "ledger"
        return read_ledger(ledger) if ledger.exists() else {}

    def finish(self, seconds: float = 30) -> None:
        """Stops the sensors and waits until the outboxes are empty; then stops everything else."""
        for name, part in self.parts.items():
            if name.split("-")[0] in KINDS:
                part.stop()
        clients = [part for name, part in self.parts.items() if name.startswith("client-")]
        for client in clients:
            wait_for(lambda c=client: drained(c), seconds, lambda c=client: f"{c.name} drains: {c.status()}", 0.2)
        for name, part in self.parts.items():
            if name.split("-")[0] not in KINDS:
                assert part.stop() == 0, part.log()[-2000:]

    def stored(self, store) -> Counter:
        rows = store.query(f"SELECT client_id, data_key, data_value FROM {store.database}.telemetry FINAL")
        return Counter((client_id, key.decode(), value) for client_id, key, value in rows)

    def open_store(self):
        return open_store(self.store_settings())

    def store_settings(self) -> config.Store:
        return config.load(next(self.folder.glob("server*.toml")), config.Server).store

    def verify(self, client_kills: int = 0) -> int:
        """Compares the ledgers with the store and with the audit; returns the number of readings sent.

        A killed client may lose one contiguous tail of each connection it had: ``linger`` plus what the sockets held.
        """
        stores = open_shards(self.store_settings())
        stored = sum((self.stored(store) for store in stores), Counter())
        account = audit_shards(stores)
        sent_in_all: Counter = Counter()
        tails = 0
        for client_id, kind in self.sensors:
            for values in self.sent(client_id, kind).values():
                keys = [(client_id, kind, value) for value in values]
                sent_in_all.update(keys)
                lost = [at for at, key in enumerate(keys) if not stored[key]]
                if lost:
                    tails += 1
                    assert lost == list(range(lost[0], len(keys))), f"{kind}: lost {len(lost)}, not one tail"
                    assert len(lost) * 11 < SOCKET_BUFFERS + 0.1 * 100_000 * 11, f"{kind}: a tail of {len(lost)}"
        assert tails <= client_kills * len(KINDS), (
            f"{tails} connections lost a tail, {client_kills} clients were killed"
        )
        assert not {key: n for key, n in stored.items() if n > 1}, "doubled"
        assert not stored.keys() - sent_in_all.keys(), "stored what no sensor sent"
        assert account.clean, account.as_json()
        assert account.total("stored") == sum(stored.values()), account.as_json()
        assert account.total("produced") == account.total("stored"), account.as_json()
        return sum(sent_in_all.values())

    def remove(self) -> None:
        for part in self.parts.values():
            part.kill()
        if os.environ.get("SKYWAVE_KEEP"):
            print("kept", self.folder)
        else:
            shutil.rmtree(self.folder, ignore_errors=True)


def skywave(*arguments: str, check: int | None = 0) -> subprocess.CompletedProcess:
    """Runs a `skywave` command to its end."""
    result = subprocess.run(
        [sys.executable, "-m", "skywave", *arguments], capture_output=True, text=True, timeout=120, check=False
    )
    if check is not None:
        assert result.returncode == check, f"{arguments}: {result.returncode}\n{result.stdout}\n{result.stderr}"
    return result
