"""The demo's processes: their configurations in one folder, their free ports, how they start and end, and what they say."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..emulator.signals import KINDS
from ..errors import DemoFailed, NotRunning
from ..process.asking import fetch_status
from ..process.snapshot import ClientSnapshot, ServerSnapshot

CLIENT_ID = 1
STOPS_WITHIN_S = 20.0
BROKER_CONFIG = """\
listener {port} 127.0.0.1
allow_anonymous true
persistence false
# Mosquitto's default of 1000 queued messages drops silently what is beyond.
max_queued_messages 0
max_inflight_messages 0
set_tcp_nodelay true
log_type warning
"""


def free_port() -> int:
    """A TCP port on 127.0.0.1 that nobody listens on right now."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


def find_mosquitto() -> str:
    """The path of the Mosquitto broker; raises ``DemoFailed`` if it is not installed."""
    found = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")
    if not found:
        raise DemoFailed("the Mosquitto broker is not installed", "apt-get install mosquitto, or run: make demo")
    return found


class Parts:
    """A broker, a server, a client and three sensors by their names, each a process of its own that logs to ``folder``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ports = {name: free_port() for name in (*KINDS, "broker", "client", "server")}
        self._running: dict[str, subprocess.Popen[Any]] = {}

    def __contains__(self, name: str) -> bool:
        """Whether the part was started and not stopped."""
        return name in self._running

    def write_configs(self) -> None:
        """The configuration files of all that need one."""
        sensors = "".join(f"[sensors.{kind}]\nport = {self._ports[kind]}\n" for kind in KINDS)
        mqtt = f"[mqtt]\nport = {self._ports['broker']}\n"
        store = f'[store]\nkind = "embedded"\npath = {json.dumps(str(self.store))}\n'
        (self._folder / "mosquitto.conf").write_text(BROKER_CONFIG.format(port=self._ports["broker"]))
        self.config("client").write_text(
            f'client_id = {CLIENT_ID}\n{sensors}{mqtt}[outbox]\nkind = "sqlite"\n'
            f"path = {json.dumps(str(self._folder / 'outbox.sqlite'))}\n"
            f"[uplink]\nstatus_interval = 1.0\n[http]\nport = {self._ports['client']}\n"
        )
        self.config("server").write_text(f'name = "demo"\n{mqtt}{store}[http]\nport = {self._ports["server"]}\n')
        archive = json.dumps(str(self._folder / "archive"))
        self.config("archive").write_text(f'{store}[target]\nkind = "local"\npath = {archive}\n')

    def config(self, name: str) -> Path:
        """A configuration file."""
        return self._folder / f"{name}.toml"

    @property
    def store(self) -> Path:
        """The folder of the embedded store."""
        return self._folder / "store"

    def ledger(self, kind: str) -> Path:
        """Where a sensor notes what it sends."""
        return self._folder / f"{kind}.ledger"

    def start_broker(self) -> None:
        """Starts Mosquitto, with nothing in its memory."""
        self._start("broker", find_mosquitto(), "-c", str(self._folder / "mosquitto.conf"))

    def start_service(self, name: str) -> None:
        """Starts the client or the server."""
        self._start(name, sys.executable, "-m", "skywave", name, "--config", str(self.config(name)))

    def start_sensor(self, kind: str, rate: float, seed: int) -> None:
        """Starts an emulator of ``rate`` readings/s."""
        self._start(
            kind,
            sys.executable,
            "-m",
            "skywave",
            "emulator",
            "--kind",
            kind,
            "--port",
            str(self._ports[kind]),
            "--rate",
            str(rate),
            "--seed",
            str(seed),
            "--ledger",
            str(self.ledger(kind)),
        )

    def _start(self, name: str, *command: str) -> None:
        with (self._folder / f"{name}.log").open("ab") as log:
            self._running[name] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def check(self) -> None:
        """Raises ``DemoFailed`` if a part has ended by itself."""
        for name, part in self._running.items():
            if part.poll() is not None:
                log = (self._folder / f"{name}.log").read_text(errors="replace").strip()[-500:]
                raise DemoFailed(f"{name} ended by itself with code {part.returncode}", log)

    def stop(self, name: str, how: int = signal.SIGTERM) -> None:
        """Ends a part, if it runs."""
        part = self._running.pop(name, None)
        if part is None:
            return
        part.send_signal(how)
        try:
            part.wait(STOPS_WITHIN_S)
        except subprocess.TimeoutExpired:
            part.kill()
            part.wait()

    def stop_all(self) -> None:
        """Kills what still runs."""
        for name in list(self._running):
            with contextlib.suppress(ProcessLookupError):
                self.stop(name, signal.SIGKILL)

    def run(self, module: str, *arguments: str, meanwhile: Callable[[], None]) -> dict[str, Any]:
        """Runs a command to its end; the JSON document that it prints last. Raises ``DemoFailed`` if it fails."""
        self._running[module] = command = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        while True:
            meanwhile()
            with contextlib.suppress(subprocess.TimeoutExpired):
                output, errors = command.communicate(timeout=0.25)
                break
        del self._running[module]
        if command.returncode != 0:
            raise DemoFailed(f"{module} {arguments[0]} ended with code {command.returncode}", errors.strip()[-500:])
        document: dict[str, Any] = json.loads(output.splitlines()[-1])
        return document

    def client(self) -> ClientSnapshot | None:
        """What the client says of itself, None while it does not answer."""
        found = self._ask("client")
        return found if isinstance(found, ClientSnapshot) else None

    def server(self) -> ServerSnapshot | None:
        """What the server says of itself, None while it does not answer."""
        found = self._ask("server")
        return found if isinstance(found, ServerSnapshot) else None

    def _ask(self, name: str) -> ClientSnapshot | ServerSnapshot | None:
        try:
            return fetch_status(f"http://127.0.0.1:{self._ports[name]}")
        except NotRunning:
            return None
