"""What is wrong with this host, and what to do about it.

A running service is asked, not disturbed: a second MQTT session of its name would end its own, and a second hand on its
outbox would have to be its user's.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .. import config
from ..errors import ConfigError, SkywaveError, StoreError
from ..messages import EARLIEST
from ..view import NotRunning, fetch_status
from .certificates import expiries, shake_hands

if TYPE_CHECKING:
    from ..server.store import Store

ENOUGH_DAYS = 14
LATE_S = 120.0


class Finding(NamedTuple):
    """One check: ``advice`` says what to do when it is not ``ok``."""

    check: str
    ok: bool
    found: str
    advice: str = ""


def examine(path: str | Path, services: bool = False) -> list[Finding]:
    """Examines the client, server or archive whose configuration file is ``path``; with ``services`` only what this host's
    own do. Raises nothing: all that is wrong is found."""
    try:
        if config.is_archive(path):
            return _archive(path, services)
        settings = config.load_any(path)
    except ConfigError as error:
        return [Finding("configuration", False, str(error), error.hint)]
    findings = [Finding("configuration", True, f"{path} is valid"), _clock()]
    findings += _certificates(settings.mqtt)
    status, running = _running(settings)
    findings.append(running)
    for broker in settings.mqtt.brokers():
        refusal = shake_hands(broker)
        findings.append(
            Finding("broker", not refusal, refusal or f"{broker.host}:{broker.port} answers",
                    "Check the broker, the way to it, and that both sides' certificates come from the same authority.")
        )  # fmt: skip
    if isinstance(settings, config.Client):
        findings += _client(settings, status)
    else:
        findings += _server(settings, status, services)
    return findings


def _archive(path: str | Path, services: bool) -> list[Finding]:
    """What ``skywave-archive check`` finds; of ``services`` there is none that runs."""
    from skywave_archive.check import check
    from skywave_archive.settings import load

    advice = "skywave-archive check says the same; see docs/archive.md."
    settings = load(str(path))
    found = [] if services else check(settings)
    findings = [Finding("configuration", True, f"{path} is valid"), _clock()]
    return findings + [Finding(f"archive: {item.name}", item.good, item.detail, advice) for item in found]


def _clock() -> Finding:
    """The wall clock, which dates readings. Their order and their count do not depend on it."""
    now = datetime.now(UTC)
    if now.date() < EARLIEST:
        return Finding(
            "clock", False, f"{now:%Y-%m-%d %H:%M} UTC", "Set the clock; readings get wrong times until then."
        )
    shown = subprocess.run(["timedatectl", "show", "--property=NTPSynchronized", "--value"], capture_output=True,
                           text=True, check=False) if shutil.which("timedatectl") else None  # fmt: skip
    synchronised = "synchronised" if shown and shown.stdout.strip() == "yes" else "not known to be synchronised"
    return Finding("clock", True, f"{now:%Y-%m-%d %H:%M} UTC, {synchronised}")


def _certificates(mqtt: config.Mqtt) -> Iterator[Finding]:
    if not mqtt.ca_file:
        local = mqtt.host in ("127.0.0.1", "::1", "localhost")
        yield Finding("tls", local, "plain MQTT", "Set mqtt.ca_file: whoever hears the network reads and sends.")
        return
    try:
        files = [config.credential(file) for file in (mqtt.ca_file, mqtt.cert_file) if file]
        soonest = min(expiries(files), key=lambda expiry: expiry.days)
    except (ConfigError, ValueError) as error:
        yield Finding("tls", False, str(error) or "no certificate", "Run this as root, or install the certificates.")
        return
    found = f"{soonest.subject} expires on {soonest.not_after:%Y-%m-%d}, in {soonest.days:.0f} days"
    yield Finding("tls", soonest.days > ENOUGH_DAYS, found, "Run the playbook rotate-certs.yml.")


def _running(settings: config.Client | config.Server) -> tuple[dict[str, Any], Finding]:
    if not settings.http.port:
        return {}, Finding("service", False, "http.port is 0", "Set http.port, so that the service can be asked.")
    unit = f"skywave-{'client' if isinstance(settings, config.Client) else 'server'}"
    try:
        status = fetch_status(settings.http.url)
    except NotRunning as error:
        return {}, Finding("service", False, f"does not answer: {error}",
                           f"systemctl status {unit}; journalctl -u {unit} -n 50")  # fmt: skip
    return status, Finding("service", True, f"version {status['version']}, up {status['uptime_s']:.0f} s")


def _client(settings: config.Client, status: dict[str, Any]) -> Iterator[Finding]:
    yield _disk(settings.outbox)
    if not status:
        return
    yield _session(status, "The broker refuses this client or ends its sessions: look at the broker's log; is the client_id "
                           "taken?")  # fmt: skip
    yield Finding(
        "server",
        status["accepting"],
        "accepts batches" if status["accepting"] else "none accepts batches",
        "Run skywave doctor on the servers; until one accepts, readings wait in the outbox.",
    )
    wrong = status["outbox_error"] or ("is full" if status["outbox_full"] else "")
    yield Finding(
        "outbox",
        not wrong,
        wrong or f"{status['backlog']['readings']} readings wait",
        "Check the database, its disk and outbox.max_bytes; until then the sensors are not read.",
    )
    late = status["oldest_unacked_s"] > LATE_S
    yield Finding(
        "delivery",
        not late,
        f"oldest unacknowledged reading is {status['oldest_unacked_s']:.1f} s old",
        "Readings wait for a server's commit: see broker and server above.",
    )
    for name, sensor in status["sensors"].items():
        found = "connected" if sensor["connected"] else sensor["last_error"] or "not connected"
        yield Finding(f"sensor {name}", sensor["connected"], found, "Check the sensor, its address and its port.")
    if status["set_aside"]:
        yield Finding(
            "set aside",
            False,
            f"{status['set_aside']} batches are refused by the broker",
            "They are too large for it: raise its message_size_limit and restart the client.",
        )


def _session(status: dict[str, Any], advice: str) -> Finding:
    not_yet = status["kind"] == "server" and not status["broker_error"]  # it connects once its store answers
    found = "connected to the broker" if status["connected"] else status["broker_error"] or "not connected yet"
    return Finding("session", status["connected"], found, "It waits for its store: see below." if not_yet else advice)


def _disk(outbox: config.Outbox) -> Finding:
    path = Path(outbox.disk_path or (Path(outbox.path).absolute().parent if outbox.kind == "sqlite" else "/"))
    try:
        free = shutil.disk_usage(path).free
    except OSError as error:
        return Finding("disk", False, f"{path}: {error.strerror}", "The outbox's folder must exist.")
    needed = outbox.min_free_disk
    return Finding("disk", free > needed, f"{free >> 20} MiB free at {path}, {needed >> 20} must stay free",
                   "Make room: below this the client stops reading its sensors.")  # fmt: skip


def _server(settings: config.Server, status: dict[str, Any], services: bool) -> Iterator[Finding]:
    if status:
        yield _session(status, "The broker refuses this server or ends its sessions: look at the broker's log.")
        yield Finding(
            "accepting",
            status["accepting"],
            "batches are taken" if status["accepting"] else "none are taken",
            "It waits for the store or is full: see store below and skywave status.",
        )
    if settings.store.kind == "embedded":  # the running server alone can open it
        if status:
            yield Finding("store", status["store_ok"], status["store_error"] or "commits", "See the server's log.")
        return
    yield from _store(settings.store, services)


def _store(settings: config.Store, services: bool) -> Iterator[Finding]:
    from ..server.store import open_shards, shard_names

    try:
        stores = open_shards(settings)
    except ConfigError as error:  # a password or an authority that cannot be read
        yield Finding("store", False, str(error), error.hint)
        return
    for name, store in zip(shard_names(settings) or [""], stores, strict=True):
        try:
            yield from _shard(f" {name}".rstrip(), store)
            if not services:
                yield from _replicas(f" {name}".rstrip(), store)
        except SkywaveError as error:
            yield Finding(f"store {name}".rstrip(), False, str(error), error.hint)
        finally:
            store.close()


def _shard(name: str, store: Store) -> Iterator[Finding]:
    from ..server import schema
    from ..server.store import text

    version = text(store.query("SELECT version()")[0][0])
    yield Finding(f"store{name}", True, f"ClickHouse {version} answers")
    try:
        missing = ", ".join(store.check_tables())
    except StoreError as error:
        yield Finding(f"schema{name}", False, str(error), error.hint)
        return
    yield Finding(
        f"schema{name}",
        not missing,
        f"lacks {missing}" if missing else f"version {schema.VERSION}",
        "Start the server once: it creates what is missing.",
    )


def _replicas(name: str, store: Store) -> Iterator[Finding]:
    """Each replica of a shard by itself: the shard goes on without one, and nobody would notice."""
    for address, trouble in store.replica_states().items():
        yield Finding(
            f"replica{name} {address}",
            not trouble,
            trouble or "is in step",
            "The shard goes on without it; bring it back before another one dies.",
        )


def wait_until_well(path: str | Path, seconds: float, services: bool = False) -> list[Finding]:
    """Examines again and again until nothing is wrong or ``seconds`` are over; the last findings."""
    until = time.monotonic() + seconds
    while True:
        findings = examine(path, services)
        if all(finding.ok for finding in findings) or time.monotonic() >= until:
            return findings
        time.sleep(1)
