"""What is wrong with this host, and what to do about it: the findings on its running service, and what only the host shows.

A running service is asked, not disturbed: a second MQTT session of its name would end its own, and a second hand on its
outbox would have to be its user's. One that is not at the broker is stood in for: the broker is asked with its credentials.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from .. import config
from ..errors import ConfigError, NotRunning, SkywaveError, StoreError
from ..formats import topics
from ..formats.messages import EARLIEST
from ..process.asking import fetch_status
from ..process.snapshot import ClientSnapshot, ServerSnapshot
from .broker import open_session, shake_hands
from .certificates import expiries
from .findings import Finding, judge, wrong
from .host import firewall, restarts, unmounted

if TYPE_CHECKING:
    from ..store.accounts import Accounts

ENOUGH_DAYS = 14


def examine(path: str | Path, services: bool = False) -> list[Finding]:
    """Examines the client, server or archive whose configuration file is ``path``; with ``services`` only what this host's
    own do. Raises nothing: all that is wrong is found."""
    try:
        if config.is_archive(path):
            return _archive(path, services)
        settings = config.load_any(path)
    except ConfigError as error:
        return [Finding("configuration", False, str(error), error.hint)]
    findings = [Finding("configuration", True, f"{path} is valid"), _clock(), *firewall()]
    findings += _certificates(settings.mqtt)
    service = _service(settings)
    findings.append(service.finding)
    findings += restarts(_unit(settings)) if Path(path).absolute().parent == config.INSTALLED else []
    findings += [_broker(settings, broker, service.without_session) for broker in settings.mqtt.brokers()]
    if isinstance(settings, config.Client):
        findings += _disk(settings.outbox)
    findings += judge(service.snapshot) if service.snapshot else []
    # An embedded store can be opened by the running server alone.
    if isinstance(settings, config.Server) and settings.store.kind != "embedded":
        findings += _store(settings.store, services)
    return findings


def _archive(path: str | Path, services: bool) -> list[Finding]:
    """What ``skywave-archive check`` finds; of ``services`` there is none that runs."""
    from skywave_archive.check import check
    from skywave_archive.settings import load

    advice = "skywave-archive check says the same; see docs/archive.md."
    settings = load(str(path))
    found = [] if services else check(settings)
    findings = [Finding("configuration", True, f"{path} is valid"), _clock(), *firewall()]
    return findings + [Finding(f"archive: {item.name}", item.good, item.detail, advice) for item in found]


def _clock() -> Finding:
    """The wall clock, which dates readings. Their order and their count do not depend on it."""
    now = datetime.now(UTC)
    if now.date() < EARLIEST:
        return Finding(
            "clock", False, f"{now:%Y-%m-%d %H:%M} UTC", "Set the clock; readings get wrong times until then."
        )
    shown = (
        subprocess.run(
            ["timedatectl", "show", "--property=NTPSynchronized", "--value"],
            capture_output=True,
            text=True,
            check=False,
        )
        if shutil.which("timedatectl")
        else None
    )
    synchronised = "synchronised" if shown and shown.stdout.strip() == "yes" else "not known to be synchronised"
    return Finding("clock", True, f"{now:%Y-%m-%d %H:%M} UTC, {synchronised}")


def _certificates(mqtt: config.Mqtt) -> Iterator[Finding]:
    if not mqtt.ca_file:
        local = all(broker.host in ("127.0.0.1", "::1", "localhost") for broker in mqtt.brokers())
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


def _unit(settings: config.Client | config.Server) -> str:
    return f"skywave-{'client' if isinstance(settings, config.Client) else 'server'}"


class _Service(NamedTuple):
    """What the service of a configuration says; ``without_session`` if it surely has none at a broker now."""

    finding: Finding
    snapshot: ClientSnapshot | ServerSnapshot | None
    without_session: bool


def _service(settings: config.Client | config.Server) -> _Service:
    if not settings.http.port:
        advice = "Set http.port, so that the service can be asked."
        return _Service(Finding("service", False, "http.port is 0", advice), None, without_session=False)
    unit = _unit(settings)
    try:
        snapshot = fetch_status(settings.http.url)
    except NotRunning as error:
        advice = f"systemctl status {unit}; journalctl -u {unit} -n 50"
        return _Service(Finding("service", False, f"does not answer: {error}", advice), None, without_session=True)
    mine = settings.client_id if isinstance(settings, config.Client) else settings.server_name
    other = snapshot.client_id if isinstance(snapshot, ClientSnapshot) else snapshot.name
    if other != mine:
        found = f"{settings.http.url} is of {snapshot.kind} {other}, not of {mine}"
        advice = "Give each service of this host an http.port of its own."
        return _Service(Finding("service", False, found, advice), None, without_session=False)
    found = f"version {snapshot.version}, up {snapshot.uptime_s:.0f} s"
    return _Service(Finding("service", True, found), snapshot, not snapshot.connected)


def _broker(settings: config.Client | config.Server, broker: config.Mqtt, without_session: bool) -> Finding:
    """What a broker says to this host: to TLS alone, and to a client that has no session now to all that it wants of it. A
    server is not stood in for: its session keeps what devices send meanwhile, and a second one of its name would end it."""
    refusal = shake_hands(broker)
    if not refusal and isinstance(settings, config.Client) and without_session:
        wanted = [topics.ack(settings.client_id), topics.ALL_SERVER_STATUS]
        refusal = open_session(broker, f"skywave-client-{settings.client_id}", wanted)
    return Finding(
        "broker",
        not refusal,
        refusal or f"{broker.host}:{broker.port} answers",
        "Check the broker, the way to it, its ACL, and that both sides' certificates come from the same authority.",
    )


def _disk(outbox: config.Outbox) -> Iterator[Finding]:
    path = Path(outbox.disk_path or (Path(outbox.path).absolute().parent if outbox.kind == "sqlite" else "/"))
    missing = unmounted(path)
    if why := outbox.missing_mount() or (missing and f"{missing} is not mounted, and the outbox belongs there: {path}"):
        yield Finding("mount", False, why, "Mount it; what was written below it meanwhile is on the disk under it.")
    try:
        free = shutil.disk_usage(path).free
    except OSError as error:
        yield Finding("disk", False, f"{path}: {error.strerror}", "The outbox's folder must exist.")
        return
    needed = outbox.min_free_disk
    yield Finding(
        "disk",
        free > needed,
        f"{free >> 20} MiB free at {path}, {needed >> 20} must stay free (min_free_disk)",
        "Make room, or lower outbox.min_free_disk: below it the client stops reading its sensors.",
    )


def _store(settings: config.Store, services: bool) -> Iterator[Finding]:
    from ..store.shards import open_shards, shard_names

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


def _shard(name: str, store: Accounts) -> Iterator[Finding]:
    from ..store import schema

    yield Finding(f"store{name}", True, f"ClickHouse {store.version()} answers")
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


def _replicas(name: str, store: Accounts) -> Iterator[Finding]:
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
        if not wrong(findings) or time.monotonic() >= until:
            return findings
        time.sleep(1)
