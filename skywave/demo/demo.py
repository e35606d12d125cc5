"""`skywave demo`: the whole system on this host with the embedded parts, a broker that dies, a store that is lost and comes
back from its archive, and the account at the end.

Three sensor emulators, a client with a SQLite outbox, Mosquitto, and a server with chDB run as processes of their own,
on free ports in a temporary folder. What was sent is read from the emulators' ledgers, what was stored from the store.
"""

from __future__ import annotations

import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from .. import config
from ..emulator.ledger import read_ledger
from ..emulator.signals import KINDS
from ..errors import DemoFailed, SkywaveError
from ..process.service import Signals
from ..process.visible import say, say_json
from .parts import Parts
from .screen import Scene, Screen

START_TIMEOUT_S, DRAIN_TIMEOUT_S = 180.0, 180.0
OUTAGE = (0.4, 0.6)
"""When the broker dies and when it is back, as parts of the time in which the sensors send."""
PICTURE_AT = 0.72
"""When the picture is drawn, likewise: the backlog drains then."""


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


class Demo:
    """One run. ``rate`` is in readings/s of all sensors together. A first signal ends the sending, a second one all."""

    def __init__(
        self,
        seconds: float,
        rate: float,
        seed: int,
        folder: Path,
        signals: Signals,
        screen: Screen,
        picture: Path | None,
    ) -> None:
        self._seconds, self._rate, self._seed = seconds, rate, seed
        self._folder = folder
        self._parts = Parts(folder)
        self._signals = signals
        self._interrupted = False
        self._screen, self._picture = screen, picture
        self._started = time.monotonic()
        self._sent_s = 0.0
        self._outages = 0

    def run(self) -> Result:
        """Runs it all; Ctrl-C ends the sending early, and the account is taken of what was sent until then."""
        try:
            self._parts.write_configs()
            with self._screen.shown():
                self._start_all()
                self._send()
                self._drain()
            result = self._account()
            self._archive_and_restore(result)
            return result
        finally:
            self._parts.stop_all()

    def _look_at_signals(self) -> None:
        """Raises ``KeyboardInterrupt`` at the second one."""
        if self._signals.count > 1:
            raise KeyboardInterrupt
        if self._signals and not self._interrupted:
            self._interrupted = True
            self._note("Ctrl-C: no more is sent, the account is taken; once more to give up")

    def _elapsed(self) -> float:
        """Seconds since the sensors began; until then, since the demo did."""
        return time.monotonic() - self._started

    def _note(self, event: str) -> None:
        self._screen.note(self._elapsed(), event)

    def _scene(self) -> Scene:
        sending, broker_up = sum(kind in self._parts for kind in KINDS), "broker" in self._parts
        client, server = self._parts.client(), self._parts.server()
        return Scene(self._elapsed(), self._seconds, self._rate, sending, broker_up, client, server)

    def _pause(self, seconds: float) -> None:
        self._look_at_signals()
        self._screen.show(self._scene)
        if self._picture and self._outages and self._elapsed() > PICTURE_AT * self._seconds:
            self._screen.draw(self._scene(), self._picture)
            self._picture = None
        time.sleep(seconds)

    def _wait(self, condition: Callable[[], object], seconds: float, what: str) -> None:
        until = time.monotonic() + seconds
        while not condition():
            self._parts.check()
            if time.monotonic() > until:
                raise DemoFailed(
                    f"{what} did not start within {seconds:.0f} s", f"Look into the logs in {self._folder}."
                )
            self._pause(0.1)

    # -- acts ----------------------------------------------------------------------------------------------------

    def _start_all(self) -> None:
        self._parts.start_broker()
        self._parts.start_service("server")
        self._note("server with embedded store starts")
        self._wait(lambda: (server := self._parts.server()) and server.accepting, START_TIMEOUT_S, "the server")
        for number, kind in enumerate(KINDS):
            self._parts.start_sensor(kind, self._rate / len(KINDS), self._seed + number)
        self._parts.start_service("client")
        self._wait(lambda: (client := self._parts.client()) and client.readings, START_TIMEOUT_S, "the client")
        self._started = time.monotonic()
        self._note(f"three sensors send {self._rate:,.0f} readings/s")

    def _send(self) -> None:
        down_at, up_at = (part * self._seconds for part in OUTAGE)
        while (elapsed := self._elapsed()) < self._seconds and not self._interrupted:
            self._parts.check()
            if elapsed >= down_at and not self._outages:
                self._outages = 1
                self._parts.stop("broker", signal.SIGKILL)
                self._note("the broker is killed")
            elif elapsed >= up_at:
                self._bring_the_broker_back()
            self._pause(0.25)
        self._bring_the_broker_back()

    def _bring_the_broker_back(self) -> None:
        if "broker" not in self._parts:
            self._parts.start_broker()
            self._note("the broker is back, with nothing in its memory")

    def _drain(self) -> None:
        self._sent_s = self._elapsed()
        for kind in KINDS:
            self._parts.stop(kind)
        self._note("the sensors stop; the outbox drains")
        produced = sum(len(values) for kind in KINDS for values in self._sent(kind))
        until = time.monotonic() + DRAIN_TIMEOUT_S
        while time.monotonic() < until:
            self._parts.check()
            client = self._parts.client()
            if client and client.readings >= produced and not client.backlog.readings:
                break
            self._pause(0.25)
        for name in ("client", "server", "broker"):
            self._parts.stop(name)
        self._note("all parts are stopped; the ledgers are compared with the store")

    def _sent(self, kind: str) -> Iterator[list[float]]:
        yield from read_ledger(self._parts.ledger(kind)).values()

    def _account(self) -> Result:
        from ..store.shards import open_store

        settings = config.load(self._parts.config("server"), config.Server)
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
        result.readings_per_s = round(result.produced / max(self._sent_s, 0.001), 1)
        return result

    def _archive_and_restore(self, result: Result) -> None:
        """The store is archived, deleted and refilled; its account must be what it was."""
        self._archive("export")
        self._archive("export", "--open-day")
        days = self._archive("list", "--no-store")["days"]
        result.archived = sum(day["rows"] for day in days if day["table"] == "telemetry")
        self._note(f"{result.archived:,} readings are archived; now the store is deleted")
        shutil.rmtree(self._parts.store)
        self._archive("restore", "--into", f"embedded:{quote(str(self._parts.store))}")
        again = self._account()
        result.restored = again.stored
        result.lost += again.lost
        result.doubled += again.doubled
        account = self._run("skywave", "audit", "--config", str(self._parts.config("server")), "--json")
        if not account["clean"] or account["stored"] != result.stored:
            raise DemoFailed(f"the audit after the restore is not clean: {account}")
        self._note("the store is back from the archive, compared with the ledgers and audited again")

    def _archive(self, command: str, *options: str) -> dict[str, Any]:
        return self._run("skywave_archive", command, "--config", str(self._parts.config("archive")), "--json", *options)

    def _run(self, module: str, *arguments: str) -> dict[str, Any]:
        return self._parts.run(module, *arguments, meanwhile=self._look_at_signals)


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
    demo = Demo(seconds, rate, seed, folder, signals, Screen(quiet=as_json), picture)
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
