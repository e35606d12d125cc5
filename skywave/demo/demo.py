"""`skywave demo`: the whole system on this host with the embedded parts, a broker that dies, a store that is lost and comes
back from its archive, and the account at the end.

Three sensor emulators, a client with a SQLite outbox, Mosquitto, and a server with chDB run as processes of their own,
on free ports in a temporary folder. What was sent is read from the emulators' ledgers, what was stored from the store.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from .. import config
from ..emulator.ledger import read_ledger
from ..emulator.sensor import KINDS
from ..errors import DemoFailed, NotRunning, SkywaveError
from ..process.asking import fetch_status
from ..process.service import Signals
from ..process.visible import say, say_json

CLIENT_ID = 1
DRAIN_TIMEOUT_S = 60.0
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


@dataclass
class Result:
    """The account from the ledgers."""

    produced: int
    stored: int
    lost: int
    doubled: int
    outages: int
    readings_per_s: float
    archived: int = 0
    restored: int = 0

    @property
    def clean(self) -> bool:
        """True if every reading is where it belongs, once."""
        return self.produced == self.stored == self.archived == self.restored and not (self.lost or self.doubled)


@dataclass
class Demo:
    """One run. ``rate`` is in readings/s of all sensors together. A first signal ends the sending, a second one all."""

    seconds: float
    rate: float
    seed: int
    folder: Path
    signals: Signals
    quiet: bool = False
    picture: Path | None = None
    console: Console = field(default_factory=Console)

    def __post_init__(self) -> None:
        self._children: dict[str, subprocess.Popen[Any]] = {}
        self._events: list[str] = []
        self._started = time.monotonic()
        self._outages = 0
        self._interrupted = False
        self._ports = {name: free_port() for name in (*KINDS, "broker", "client", "server")}

    def run(self) -> Result:
        """Runs it all; Ctrl-C ends the sending early, and the account is taken of what was sent until then."""
        try:
            self._write_configs()
            with self._screen():
                self._start_all()
                self._send()
                self._drain()
            result = self._account()
            self._archive_and_restore(result)
            return result
        finally:
            self._stop_all()

    def _look_at_signals(self) -> None:
        """Raises ``KeyboardInterrupt`` at the second one."""
        if self.signals.count > 1:
            raise KeyboardInterrupt
        if self.signals and not self._interrupted:
            self._interrupted = True
            self._note("Ctrl-C: no more is sent, the account is taken; once more to give up")

    # -- parts ---------------------------------------------------------------------------------------------------

    def _write_configs(self) -> None:
        sensors = "".join(f"[sensors.{kind}]\nport = {self._ports[kind]}\n" for kind in KINDS)
        mqtt = f"[mqtt]\nport = {self._ports['broker']}\n"
        (self.folder / "mosquitto.conf").write_text(BROKER_CONFIG.format(port=self._ports["broker"]))
        (self.folder / "client.toml").write_text(
            f'client_id = {CLIENT_ID}\n{sensors}{mqtt}[outbox]\nkind = "sqlite"\n'
            f"path = {json.dumps(str(self.folder / 'outbox.sqlite'))}\n"
            f"[uplink]\nstatus_interval = 1.0\n[http]\nport = {self._ports['client']}\n"
        )
        (self.folder / "server.toml").write_text(
            f'name = "demo"\n{mqtt}[store]\nkind = "embedded"\npath = {json.dumps(str(self.folder / "store"))}\n'
            f"[http]\nport = {self._ports['server']}\n"
        )
        (self.folder / "archive.toml").write_text(
            f'[store]\nkind = "embedded"\npath = {json.dumps(str(self.folder / "store"))}\n'
            f'[target]\nkind = "local"\npath = {json.dumps(str(self.folder / "archive"))}\n'
        )

    def _start(self, name: str, *command: str) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self._children[name] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def _start_skywave(self, name: str, *arguments: str) -> None:
        self._start(name, sys.executable, "-m", "skywave", *arguments)

    def _start_broker(self) -> None:
        self._start("broker", find_mosquitto(), "-c", str(self.folder / "mosquitto.conf"))

    def _start_all(self) -> None:
        self._start_broker()
        self._start_skywave("server", "server", "--config", str(self.folder / "server.toml"))
        self._note("server with embedded store starts")
        self._wait(lambda: self._status("server").get("accepting"), 60, "the server")
        for number, kind in enumerate(KINDS):
            self._start_skywave(
                kind, "emulator", "--kind", kind, "--port", str(self._ports[kind]), "--rate", str(self.rate / len(KINDS)),
                "--seed", str(self.seed + number), "--ledger", str(self._ledger(kind)),
            )  # fmt: skip
        self._start_skywave("client", "client", "--config", str(self.folder / "client.toml"))
        self._wait(lambda: self._status("client").get("readings"), 20, "the client")
        self._started = time.monotonic()
        self._note(f"three sensors send {self.rate:,.0f} readings/s")

    def _ledger(self, kind: str) -> Path:
        return self.folder / f"{kind}.ledger"

    def _wait(self, condition: Any, seconds: float, what: str) -> None:
        until = time.monotonic() + seconds
        while not condition():
            self._check_children()
            if time.monotonic() > until:
                raise DemoFailed(
                    f"{what} did not start within {seconds:.0f} s", f"Look into the logs in {self.folder}."
                )
            self._pause(0.1)

    def _check_children(self) -> None:
        for name, child in self._children.items():
            if child.poll() is not None:
                log = (self.folder / f"{name}.log").read_text(errors="replace").strip()[-500:]
                raise DemoFailed(f"{name} ended by itself with code {child.returncode}", log)

    def _stop(self, name: str, how: int = signal.SIGTERM) -> None:
        child = self._children.pop(name, None)
        if child is None:
            return
        child.send_signal(how)
        try:
            child.wait(20)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()

    def _stop_all(self) -> None:
        for name in list(self._children):
            with contextlib.suppress(ProcessLookupError):
                self._stop(name, signal.SIGKILL)

    # -- acts ----------------------------------------------------------------------------------------------------

    def _send(self) -> None:
        down_at, up_at = 0.4 * self.seconds, 0.6 * self.seconds
        while (elapsed := time.monotonic() - self._started) < self.seconds and not self._interrupted:
            self._check_children()
            if elapsed >= down_at and not self._outages:
                self._outages = 1
                self._stop("broker", signal.SIGKILL)
                self._note("the broker is killed")
            elif elapsed >= up_at and "broker" not in self._children:
                self._start_broker()
                self._note("the broker is back, with nothing in its memory")
            self._pause(0.25)
        if "broker" not in self._children:
            self._start_broker()
            self._note("the broker is back, with nothing in its memory")

    def _drain(self) -> None:
        self._sending_s = time.monotonic() - self._started
        for kind in KINDS:
            self._stop(kind)
        self._note("the sensors stop; the outbox drains")
        produced = sum(len(values) for kind in KINDS for values in self._sent(kind))
        until = time.monotonic() + DRAIN_TIMEOUT_S
        while time.monotonic() < until:
            self._check_children()
            status = self._status("client")
            if status.get("readings", 0) >= produced and not status["backlog"]["readings"]:
                break
            self._pause(0.25)
        for name in ("client", "server", "broker"):
            self._stop(name)
        self._note("all parts are stopped; the ledgers are compared with the store")

    def _sent(self, kind: str) -> Iterator[list[float]]:
        yield from read_ledger(self._ledger(kind)).values()

    def _account(self) -> Result:
        from ..store.shards import open_store

        settings = config.load(self.folder / "server.toml", config.Server)
        store = open_store(settings.store)
        try:
            result = Result(0, 0, 0, 0, self._outages, 0.0)
            for kind in KINDS:
                sent = np.array([value for values in self._sent(kind) for value in values])
                stored = np.array(store.values(kind))
                lost, doubled = compare(sent, stored)
                result.produced += len(sent)
                result.stored += len(stored)
                result.lost += lost
                result.doubled += doubled
        finally:
            store.close()
        result.readings_per_s = round(result.produced / max(self._sending_s, 0.001), 1)
        return result

    def _archive_and_restore(self, result: Result) -> None:
        """The store is archived, deleted and refilled; its account must be what it was."""
        self._archive("export")
        self._archive("export", "--open-day")
        days = self._archive("list", "--no-store")["days"]
        result.archived = sum(day["rows"] for day in days if day["table"] == "telemetry")
        self._note(f"{result.archived:,} readings are archived; now the store is deleted")
        shutil.rmtree(self.folder / "store")
        self._archive("restore", "--into", f"embedded:{quote(str(self.folder / 'store'))}")
        again = self._account()
        result.restored = again.stored
        result.lost += again.lost
        result.doubled += again.doubled
        account = self._run("skywave", "audit", "--config", str(self.folder / "server.toml"), "--json")
        if not account["clean"] or account["stored"] != result.stored:
            raise DemoFailed(f"the audit after the restore is not clean: {account}")
        self._note("the store is back from the archive, compared with the ledgers and audited again")

    def _archive(self, command: str, *options: str) -> dict[str, Any]:
        return self._run("skywave_archive", command, "--config", str(self.folder / "archive.toml"), "--json", *options)

    def _run(self, module: str, *arguments: str) -> dict[str, Any]:
        self._children[module] = child = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        while True:
            self._look_at_signals()
            with contextlib.suppress(subprocess.TimeoutExpired):
                output, errors = child.communicate(timeout=0.25)
                break
        del self._children[module]
        if child.returncode != 0:
            raise DemoFailed(f"{module} {arguments[0]} ended with code {child.returncode}", errors.strip()[-500:])
        document: dict[str, Any] = json.loads(output.splitlines()[-1])
        return document

    # -- the screen ----------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _screen(self) -> Iterator[None]:
        self._live: Live | None = None
        self._line_at = 0.0
        if self.console.is_terminal and not self.quiet:
            with Live(console=self.console, auto_refresh=False, transient=False) as self._live:
                yield
            self._live = None
        else:
            yield

    def _status(self, name: str) -> dict[str, Any]:
        try:
            return fetch_status(f"http://127.0.0.1:{self._ports[name]}")
        except NotRunning:
            return {}

    def _note(self, event: str) -> None:
        self._events.append(f"{time.monotonic() - self._started:6.1f} s  {event}")
        if not (self.console.is_terminal and not self.quiet):
            say(self._events[-1], err=self.quiet)

    def _pause(self, seconds: float) -> None:
        self._look_at_signals()
        if self._live:
            self._live.update(self._view(), refresh=True)
        elif time.monotonic() > self._line_at and not self.quiet:
            self._line_at = time.monotonic() + 2
            say(self._line(self._status("client"), self._status("server")))
        if self.picture and self._outages and time.monotonic() - self._started > 0.72 * self.seconds:
            self._draw(self.picture)
            self.picture = None
        time.sleep(seconds)

    def _line(self, client: dict[str, Any], server: dict[str, Any]) -> str:
        backlog = client.get("backlog", {}).get("readings", 0)
        return (
            f"{time.monotonic() - self._started:6.1f} s  in {client.get('readings_per_s', 0):,.0f}/s  "
            f"acknowledged {client.get('acked_per_s', 0):,.0f}/s  backlog {backlog:,}  "
            f"stored {server.get('readings', 0):,}"
        )

    def _draw(self, path: Path) -> None:
        with Path("/dev/null").open("w") as nowhere:
            console = Console(record=True, width=96, file=nowhere, force_terminal=True)
            console.print(self._view())
            console.save_svg(str(path), title="skywave demo")

    def _view(self) -> RenderableType:
        client, server = self._status("client"), self._status("server")
        broker_up = "broker" in self._children
        flow = Table(box=box.ROUNDED, expand=True, show_header=True, header_style="bold")
        for title in ("sensors", "client + outbox", "broker", "server", "store"):
            flow.add_column(title, justify="center", ratio=1)
        sending = sum(kind in self._children for kind in KINDS)
        backlog = client.get("backlog", {}).get("readings", 0)
        oldest = client.get("oldest_unacked_s", 0.0)
        flow.add_row(
            Text(f"{sending} sending", "green" if sending else "dim"),
            Text(f"{client.get('readings_per_s', 0):,.0f} /s in", "green" if client.get("readings_per_s") else "dim"),
            Text("up", "green") if broker_up else Text("KILLED", "bold white on red"),
            Text("accepts", "green") if server.get("accepting") else Text("no broker" if server else "-", "yellow"),
            Text(f"{server.get('readings', 0):,}", "bold"),
        )
        flow.add_row(
            "",
            Text(f"backlog {backlog:,}", "yellow" if backlog > self.rate else ""),
            "",
            f"{server.get('readings_per_s', 0):,.0f} /s",
            f"{server.get('inserts', 0):,} inserts",
        )
        bar = min(60, int(backlog / max(self.rate, 1) * 10))
        lines = [
            Text.assemble(("outbox  ", "bold"), ("█" * bar or "▏", "yellow"), f" {backlog:,} readings wait"),
            Text.assemble(("acked   ", "bold"), f"{client.get('acked_readings', 0):,} of {client.get('readings', 0):,}",
                          f"   {client.get('acked_per_s', 0):,.0f} /s   oldest unacknowledged {oldest:.1f} s"),
        ]  # fmt: skip
        elapsed = max(0.0, time.monotonic() - self._started)
        events = [Text(event, "dim") for event in self._events[-6:]]
        title = f"skywave demo  {min(elapsed, self.seconds):.0f} of {self.seconds:.0f} s"
        return Panel(Group(flow, *lines, Text(""), *events), title=title, title_align="left")


def compare(sent: Any, stored: Any) -> tuple[int, int]:
    """How many of the values sent are not stored, and how many are stored more often than sent (as multisets)."""
    values, counts = np.unique(np.concatenate([sent, stored]), return_counts=True)
    in_sent, in_stored = (np.zeros(len(values), np.int64) for _ in range(2))
    for target, part in ((in_sent, sent), (in_stored, stored)):
        found, how_often = np.unique(part, return_counts=True)
        target[np.searchsorted(values, found)] = how_often
    assert int(counts.sum()) == len(sent) + len(stored)
    difference = in_sent - in_stored
    return int(difference[difference > 0].sum()), int(-difference[difference < 0].sum())


def run_demo(
    seconds: float,
    rate: float,
    seed: int | None,
    keep: Path | None,
    as_json: bool,
    picture: Path | None,
    signals: Signals,
) -> bool:
    """Runs the demo and prints its result; True if nothing was lost or doubled."""
    seed = int(time.time()) % 100_000 if seed is None else seed
    folder = keep or Path(tempfile.mkdtemp(prefix="skywave-demo-"))
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise DemoFailed(f"{folder} is not empty", "Give --keep a new folder.")
    demo = Demo(seconds, rate, seed, folder, signals, quiet=as_json, picture=picture)
    try:
        result = demo.run()
    except SkywaveError:
        keep = folder  # its logs tell what went wrong
        raise
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
    if as_json:
        say_json({**vars(result), "seed": seed})
    else:
        sign = "=" if result.clean else "?"
        say(
            f"produced {result.produced:,} {sign} stored {result.stored:,} {sign} archived {result.archived:,} {sign}"
            f" restored {result.restored:,}, lost {result.lost}, doubled {result.doubled}"
            f"   ({result.readings_per_s:,.0f} readings/s, {result.outages} broker outage, seed {seed})"
        )
    return result.clean
