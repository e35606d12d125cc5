"""Configuration: TOML into frozen dataclasses, strictly.

A key that is unknown is an error that names the nearest known one; so is a value of the wrong type or out of range.
Every setting carries its own documentation (``doc``), from which ``config show`` and docs/configuration.md are made.
Secrets never stand in a configuration: a setting that ends in ``_file`` names a file that holds one, or a certificate. A
relative path there is looked up in ``$CREDENTIALS_DIRECTORY`` (systemd's ``LoadCredential=``) when that is set; a command
that is given a file of an installed host sets it by itself. Any other relative path counts from the service's state
directory, elsewhere from the folder of the configuration file, and never from where a command was started.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import logging
import os
import re
import socket
import tomllib
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from .errors import ConfigError, CredentialError
from .masking import mask
from .messages import MAX_KEY, MAX_LABELS

log = logging.getLogger(__name__)
T = TypeVar("T")
INSTALLED = Path("/etc/skywave")
"""Where an installed host has its configurations, and in ``credentials`` what they name."""
STATE = "/var/lib/skywave-{}"
"""What an installed host's service of that name writes (``StateDirectory=`` of its unit)."""
MAX_NAME = 200
Check = tuple[float | None, float | None] | tuple[str, ...]
DATA, CREDENTIAL = "data", "credential"
"""What a path leads to; from where a relative one counts follows from it."""

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")
_IDENTIFIER = re.compile("[A-Za-z_][A-Za-z0-9_]*")


def setting(default: Any, doc: str, check: Check | None = None, path: str = "") -> Any:
    """A dataclass field with documentation. ``check`` is (lowest, highest) for a number, or the allowed strings; ``path``
    is ``DATA`` or ``CREDENTIAL`` for one."""
    metadata = {"doc": doc, "check": check, "path": path}
    if isinstance(default, dict):
        return field(default_factory=dict, metadata=metadata)
    if default is ...:
        return field(metadata=metadata)
    return field(default=default, metadata=metadata)


def addresses(text: str) -> list[tuple[str, int]]:
    """Hosts and ports of a list like "a:1, b:2"; raises ``ValueError``."""
    pairs = [address.strip().rpartition(":") for address in text.split(",")]
    if set("@/") & set(text) or not all(
        host and port.isdecimal() and port.isascii() and 0 < int(port) < 65536 for host, _, port in pairs
    ):
        raise ValueError(f"{_shown(text)} is no list of host:port")
    found = [(host.strip("[]"), int(port)) for host, _, port in pairs]
    if len(set(found)) < len(found):
        raise ValueError(f"{text!r} names one twice")
    return found


@dataclass(frozen=True, kw_only=True)
class Mqtt:
    """The connection to the broker."""

    host: str = setting("127.0.0.1", "Broker's host name or address.")
    port: int = setting(1883, "Broker's port (8883 is usual with TLS).", (1, 65535))
    others: str = setting(
        "",
        'More brokers, like "b2:8883, b3:8883". A client uses one at a time, and goes on to the next when that is away or '
        "no server is there; a server listens to all.",
    )
    username: str = setting("", "User name, if the broker asks for one.")
    password_file: str = setting("", "File that holds the password.", path=CREDENTIAL)
    ca_file: str = setting("", "CA certificate that signed the broker's; setting it turns TLS on.", path=CREDENTIAL)
    cert_file: str = setting("", "This host's certificate, for mutual TLS.", path=CREDENTIAL)
    key_file: str = setting("", "Private key of cert_file.", path=CREDENTIAL)
    keepalive: int = setting(30, "Seconds between pings on an idle connection.", (5, 3600))

    def brokers(self) -> list[Mqtt]:
        """The settings of each broker; raises ``ValueError``."""
        more = addresses(self.others) if self.others else []
        if (self.host, self.port) in more:
            raise ValueError(f"{self.others!r} names mqtt.host again")
        return [self, *(dataclasses.replace(self, host=host, port=port, others="") for host, port in more)]


@dataclass(frozen=True, kw_only=True)
class Http:
    """Where a process shows its figures: /status (JSON) and /metrics (Prometheus)."""

    host: str = setting("127.0.0.1", "Address to listen on.")
    port: int = setting(0, "Port to listen on; 0 turns the endpoint off.", (0, 65535))

    @property
    def url(self) -> str:
        """Where to ask it from this host."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(self.host, self.host)
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"


@dataclass(frozen=True, kw_only=True)
class Sensor:
    """One sensor that the client reads."""

    host: str = setting("127.0.0.1", "Sensor's host name or address.")
    port: int = setting(..., "Sensor's TCP port.", (1, 65535))
    key: str = setting("", "data_key of its readings; the sensor's name if empty.")
    stall_after: float = setting(
        0.0,
        "Seconds of silence after which it is reported as stalled. 0: intake.stall_after, or three times its usual pause "
        "between readings where that is longer.",
        (0, 1e6),
    )
    acknowledged: bool = setting(
        False,
        "The sensor numbers its readings and keeps them until the client has committed them (docs/formats.md): then not "
        "even a killed client loses one.",
    )


@dataclass(frozen=True, kw_only=True)
class Intake:
    """How readings become batches."""

    linger: float = setting(
        0.1,
        "Seconds for which a reading may wait for its commit: the window that a power cut can take. "
        "Longer means fewer and larger commits, so less flash wear.",
        (0.001, 60),
    )
    max_readings: int = setting(10_000, "A batch is committed early when it holds as many readings.", (1, 100_000))
    compression: str = setting("lz4", "Compression of a batch; zstd saves bytes for CPU.", ("lz4", "zstd", "none"))
    poll_interval: float = setting(
        0.05,
        "Seconds that the client lets bytes gather in the sockets before it looks again. Readings that one look finds "
        "get times spread evenly since the last look, so this bounds the error of created_at; 0 costs CPU.",
        (0, 1),
    )
    stall_after: float = setting(
        30.0,
        "A sensor that is silent for as many seconds is reported as stalled, unless its readings usually come more seldom.",
        (0.1, 1e6),
    )
    reconnect_max: float = setting(10.0, "Longest pause in seconds between attempts to reach a sensor.", (0.1, 3600))


@dataclass(frozen=True, kw_only=True)
class Outbox:
    """The local database that holds every reading until the server has committed it."""

    kind: str = setting("sqlite", "sqlite (embedded) or postgresql.", ("sqlite", "postgresql"))
    path: str = setting("outbox.sqlite", "sqlite: the database file.", path=DATA)
    dsn: str = setting("", "postgresql: libpq connection string without a password.")
    password_file: str = setting("", "postgresql: file that holds the password.", path=CREDENTIAL)
    max_bytes: int = setting(1 << 30, "Most bytes of undelivered batches to keep.", (1 << 16, None))
    min_free_disk: int = setting(256 << 20, "Bytes that must stay free on the disk of disk_path.", (0, None))
    disk_path: str = setting("", "Where to look for free disk space; the folder of path for sqlite.", path=DATA)
    require_mount: str = setting(
        "",
        "A folder on which a file system must be mounted before the outbox is opened or made: without its disk a client "
        "waits, instead of beginning a new outbox on another disk.",
        path=DATA,
    )
    when_full: str = setting(
        "block",
        "block: stop reading the sensors, TCP pushes back. drop_oldest: delete the oldest batches and declare them lost.",
        ("block", "drop_oldest"),
    )

    def missing_mount(self) -> str:
        """Why ``require_mount`` is not fulfilled, "" if it is."""
        if not self.require_mount or os.path.ismount(self.require_mount):
            return ""
        return f"nothing is mounted on {self.require_mount} (outbox.require_mount)"


@dataclass(frozen=True, kw_only=True)
class Uplink:
    """How batches travel to the server."""

    max_in_flight: int = setting(64, "Most batches that may wait for an acknowledgement at once.", (1, 1000))
    max_in_flight_bytes: int = setting(8 << 20, "Most bytes of them.", (1 << 16, None))
    ack_timeout_min: float = setting(
        2.0, "Shortest time in seconds before an unacknowledged batch is sent again.", (0.1, 600)
    )
    ack_timeout_max: float = setting(60.0, "Longest such time; the actual one follows the measured delay.", (0.1, 3600))
    status_interval: float = setting(5.0, "Seconds between status messages.", (0.2, 3600))


@dataclass(frozen=True, kw_only=True)
class Client:
    """Configuration of `skywave client`."""

    client_id: int = setting(..., "Number of this client, unique in the fleet.", (1, 2**32 - 1))
    labels: dict[str, str] = setting({}, "Labels of this host (site, ring, hardware); they travel in its status.")
    sensors: dict[str, Sensor] = setting({}, "Sensors by name.")
    intake: Intake = field(default_factory=Intake)
    outbox: Outbox = field(default_factory=Outbox)
    uplink: Uplink = field(default_factory=Uplink)
    mqtt: Mqtt = field(default_factory=Mqtt)
    http: Http = field(default_factory=Http)


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One shard of a ClickHouse cluster: servers that hold the same readings by replication."""

    replicas: str = setting(..., 'Its servers, like "ch1:9440, ch2:9440"; the first that works is used.')
    first_client: int = setting(
        0,
        "The shard takes clients from this number on, until another shard's; shards with the same number share them. So a "
        "shard that is added takes new clients, and no client ever moves.",
        (0, 2**32 - 1),
    )


@dataclass(frozen=True, kw_only=True)
class Store:
    """The final database."""

    kind: str = setting(
        "clickhouse", "clickhouse (a server) or embedded (chDB in this process).", ("clickhouse", "embedded")
    )
    host: str = setting("127.0.0.1", "clickhouse: host name or address.")
    port: int = setting(9000, "clickhouse: port of the native protocol (9440 is usual with TLS).", (1, 65535))
    user: str = setting("default", "clickhouse: user name.")
    password_file: str = setting("", "clickhouse: file that holds the password.", path=CREDENTIAL)
    ca_file: str = setting("", "clickhouse: CA certificate; setting it turns TLS on.", path=CREDENTIAL)
    database: str = setting("telemetry", "Database that holds the tables.")
    path: str = setting("store", "embedded: folder of the database.", path=DATA)
    timeout: float = setting(30.0, "Seconds to wait for an answer before the outcome counts as unknown.", (1, 3600))
    sync: str = setting(
        "none",
        "none: a commit is as durable as the database makes it. filesystem: sync the file system of data_path before "
        "each acknowledgement (for a ClickHouse on this host that does not sync by itself).",
        ("none", "filesystem"),
    )
    data_path: str = setting("/var/lib/clickhouse", 'Folder whose file system sync = "filesystem" syncs.', path=DATA)
    shards: dict[str, Shard] = setting({}, "A cluster's shards by name, instead of host and port.")
    quorum: int = setting(
        2,
        "With shards: a batch is acknowledged when this many replicas have it. 1 is faster, and loses what only a dead "
        "replica had.",
        (1, 16),
    )
    cluster: str = setting(
        "skywave", "With shards: the cluster's name in ClickHouse's remote_servers, for reads of all."
    )


@dataclass(frozen=True, kw_only=True)
class Ingest:
    """How the server groups batches into inserts."""

    linger: float = setting(0.2, "Seconds for which a batch may wait for others to share its insert.", (0, 60))
    max_rows: int = setting(400_000, "Most readings in one insert.", (1, 900_000))
    max_held_bytes: int = setting(
        64 << 20, "Most bytes of received messages to hold; then the socket is not read.", (1 << 20, None)
    )
    pause_after: float = setting(
        5.0,
        "When the store has been away, or the server full, for as many seconds, it tells the clients to keep their "
        "readings until it can commit again.",
        (0.1, 3600),
    )
    horizon_days: int = setting(400, "Oldest day that is taken, in days before today.", (1, 10_000))
    reject_quota: int = setting(
        64 << 20,
        "Bytes of poison kept per client and day; beyond it poison is neither stored nor acknowledged.",
        (0, None),
    )


@dataclass(frozen=True, kw_only=True)
class Server:
    """Configuration of `skywave server`."""

    name: str = setting("", "This server's name, unique among servers; the host's name if empty.")
    mqtt: Mqtt = field(default_factory=Mqtt)
    store: Store = field(default_factory=Store)
    ingest: Ingest = field(default_factory=Ingest)
    http: Http = field(default_factory=Http)

    @property
    def server_name(self) -> str:
        """The configured name, or the host's."""
        return self.name or socket.gethostname()


KINDS: dict[str, type[Client] | type[Server]] = {"client": Client, "server": Server}


def load(path: str | Path, kind: type[T]) -> T:
    """Reads the TOML file ``path`` as ``kind``; raises ``ConfigError`` with the file and key in its message."""
    return _located(parse(_read(path), kind, str(path)), Path(path).absolute())


def load_any(path: str | Path) -> Client | Server:
    """Reads a file whose kind is told by its content: a client has sensors, an archive a target. Raises ``ConfigError`` for
    an archive's as well."""
    body = _read(path)
    if "target" in body:
        raise ConfigError(f"{path}: an archive's configuration", "skywave-archive reads it.")
    file = Path(path).absolute()
    if "client_id" in body or "sensors" in body:
        return _located(parse(body, Client, str(path)), file)
    return _located(parse(body, Server, str(path)), file)


def is_archive(path: str | Path) -> bool:
    """True if a file is a configuration of the archive; raises ``ConfigError`` if it cannot be read."""
    return "target" in _read(path)


def parse(body: dict[str, Any], kind: type[T], where: str = "configuration") -> T:
    """Builds the dataclass ``kind`` from a TOML table; see ``load``."""
    config: T = _build(body, kind, where, "")
    if isinstance(config, Client | Server):
        _check_host(config.mqtt.host, "mqtt.host", where)
        _check_host(config.http.host, "http.host", where)
        try:
            config.mqtt.brokers()
        except ValueError as error:
            raise ConfigError(f"{where}: mqtt.others: {error}", 'For example "b2:8883, b3:8883".') from error
    if isinstance(config, Client):
        _check_client(config, where)
    if isinstance(config, Server):
        _check_server_name(config.server_name, where)
    if isinstance(store := config if isinstance(config, Store) else getattr(config, "store", None), Store):
        _check_store(store, where)
    return config


def load_store(path: str | Path) -> Store:
    """The ``[store]`` of any configuration file; raises ``ConfigError``."""
    store: Store = _build(_read(path).get("store", {}), Store, str(path), "store")
    _check_store(store, str(path))
    return _located(store, Path(path).absolute())


def _located(config: T, file: Path) -> T:
    """The settings of ``file`` with its relative paths made absolute."""
    changes: dict[str, Any] = {}
    for item in dataclasses.fields(config):  # type: ignore[arg-type]
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            changes[item.name] = _located(value, file)
        elif value and (leads_to := item.metadata.get("path", "")):
            changes[item.name] = located(value, file, leads_to)
    return dataclasses.replace(config, **changes)  # type: ignore[type-var]


def located(path: str, file: Path, leads_to: str = DATA) -> str:
    """The path of a setting in the configuration file ``file``: absolute, but for a credential that systemd provides."""
    if leads_to == CREDENTIAL:
        return path if "CREDENTIALS_DIRECTORY" in os.environ else str(file.parent / path)
    if file.parent == INSTALLED:
        place = Path(STATE.format(file.stem), path)
    else:
        place = Path(os.environ.get("STATE_DIRECTORY", "").split(":")[0] or file.parent, path)
    here = Path(path).absolute()
    if here != place and here.exists() and not place.exists():  # release 0.1.0 counted from where it was started
        log.warning("%s is gone on with, as %s does not exist: move it there, or give its absolute path", here, place)
        return str(here)
    return str(place)


def secret_files(path: str | Path) -> list[str]:
    """The files of passwords that the settings of a configuration name; raises ``ConfigError``."""
    file = Path(path).absolute()

    def named(table: dict[str, Any]) -> Iterator[str]:
        for key, value in table.items():
            if isinstance(value, dict):
                yield from named(value)
            elif key.endswith("password_file") and isinstance(value, str):
                yield located(value, file, CREDENTIAL)

    return list(named(_read(path)))


def _read(path: str | Path) -> dict[str, Any]:
    if Path(path).absolute().parent == INSTALLED:
        os.environ.setdefault("CREDENTIALS_DIRECTORY", str(INSTALLED / "credentials"))
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))  # some editors begin a file with a mark
    except OSError as error:
        raise ConfigError(
            f"{path}: {error.strerror}", "Give the path of a configuration file with --config."
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path}: not TOML: {error}", 'A table is [mqtt], a setting port = 1883, a text "in quotes".'
        ) from error


def _check_host(host: str, path: str, where: str) -> None:
    if not host.strip():
        raise ConfigError(
            f"{where}: {path} is empty", "Give a name or an address; 0.0.0.0 listens on all of this host's."
        )
    if host.count(":") == 1 or "/" in host or "@" in host or host.startswith("["):
        raise ConfigError(
            f"{where}: {path} must be a name or an address, not {_shown(host)}", "The port is a setting of its own."
        )


def _check_name(name: str, path: str, where: str) -> None:
    """Names that people read in logs and metrics."""
    if not name.strip() or _CONTROL.search(name) or len(name) > MAX_KEY:
        raise ConfigError(
            f"{where}: {path}: {_shown(name)} is no name", f"It has 1 to {MAX_KEY} letters and no control characters."
        )


def _check_client(config: Client, where: str) -> None:
    if not config.sensors:
        raise ConfigError(f"{where}: no sensors", "Add a table like [sensors.temperature] with a port.")
    if len(config.sensors) > 32_000:
        raise ConfigError(f"{where}: more than 32000 sensors", "Split them over several clients.")
    if len(config.labels) > MAX_LABELS:
        raise ConfigError(f"{where}: more than {MAX_LABELS} labels", "Servers take no more.")
    for name, sensor in config.sensors.items():
        _check_name(name, "sensors", where)
        _check_name(sensor.key or name, f"sensors.{name}: its key", where)
        if sensor.host.count(":") == 1:  # any other is tried: one sensor's name is no reason to read none
            _check_host(sensor.host, f"sensors.{name}.host", where)
    for name, value in config.labels.items():
        _check_name(name, "labels", where)
        if len(value) > MAX_KEY:
            raise ConfigError(f"{where}: labels.{name} has more than {MAX_KEY} letters")
    if config.outbox.kind == "postgresql" and not config.outbox.dsn:
        raise ConfigError(f"{where}: outbox.dsn is missing", 'For example dsn = "host=/run/postgresql dbname=skywave".')


def _check_server_name(name: str, where: str) -> None:
    """It is a level of a topic, and stands in each acknowledgement."""
    if name != name.strip() or not name or set("/+#") & set(name) or _CONTROL.search(name) or len(name) > MAX_NAME:
        raise ConfigError(
            f"{where}: {_shown(name)} cannot be a server's name",
            f"Set name: 1 to {MAX_NAME} letters without / + #, control characters and spaces at its ends.",
        )


def _check_store(store: Store, where: str) -> None:
    """The names stand in statements."""
    _check_host(store.host, "store.host", where)
    if not _IDENTIFIER.fullmatch(store.database):
        raise ConfigError(f"{where}: store.database {_shown(store.database)} must be a plain name",
                          "Use letters, digits and _.")  # fmt: skip
    if not re.fullmatch("[A-Za-z0-9_.-]+", store.cluster):
        raise ConfigError(f"{where}: store.cluster {_shown(store.cluster)} must be a plain name",
                          "Use letters, digits, _ . and -.")  # fmt: skip
    known: set[tuple[str, int]] = set()
    for name, shard in store.shards.items():
        if not (name.isalnum() and name.isascii() and len(name) <= MAX_NAME):
            raise ConfigError(
                f"{where}: store.shards.{name}: a shard's name must be of letters and digits",
                "It stands in the archive's file names and in ClickHouse's macros, and can never be changed.",
            )
        try:
            found = addresses(shard.replicas)
            if known & set(found):
                raise ValueError(f"{shard.replicas!r} has a server of another shard")
        except ValueError as error:
            raise ConfigError(
                f"{where}: store.shards.{name}.replicas: {error}", 'For example "ch1:9000, ch2:9000".'
            ) from error
        known |= set(found)
        if len(found) < store.quorum:
            raise ConfigError(
                f"{where}: store.shards.{name} has {len(found)} replicas, store.quorum is {store.quorum}",
                "A quorum cannot be larger than a shard; three replicas with a quorum of 2 survive the loss of any one.",
            )
    if store.shards and (store.kind != "clickhouse" or min(s.first_client for s in store.shards.values()) > 0):
        raise ConfigError(f"{where}: store.shards need kind clickhouse and a shard with first_client 0")


def _build(body: Any, kind: Any, where: str, prefix: str) -> Any:
    if not isinstance(body, dict):
        raise ConfigError(f"{where}: {prefix or 'the file'} must be a table, not {_shown(body)}")
    fields = {f.name: f for f in dataclasses.fields(kind)}
    hints = typing.get_type_hints(kind)
    for key in body:
        if key not in fields:
            near = difflib.get_close_matches(key, fields, 1, 0.5)
            hint = f"Did you mean {_path(prefix, near[0])}?" if near else f"Known here: {', '.join(fields)}."
            raise ConfigError(f"{where}: unknown setting {_path(prefix, key)}", hint)
    values = {}
    for name, item in fields.items():
        if name in body:
            value = _value(body[name], hints[name], item.metadata.get("check"), where, _path(prefix, name))
            if isinstance(value, str):
                _check_text(value, item, where, prefix, "password_file" in fields)
            values[name] = value
        elif item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{where}: {_path(prefix, name)} is missing", str(item.metadata["doc"]))
    return kind(**values)


def _check_text(value: str, item: dataclasses.Field[Any], where: str, prefix: str, has_file: bool) -> None:
    path = _path(prefix, item.name)
    if "\0" in value:
        raise ConfigError(f"{where}: {path} has a character of code 0")
    if mask(value) != value:
        place = f"Put it into a file of its own, and name that in {_path(prefix, 'password_file')}." if has_file else ""
        raise ConfigError(f"{where}: {path} has a password in it", place or "Secrets never stand in a configuration.")
    if item.metadata.get("path") and (value.startswith("~") or (not value.strip() and value != item.default)):
        raise ConfigError(
            f"{where}: {path} must be a path, not {_shown(value)}",
            "Write it in full: a service has no home folder, and an empty path is a mistake.",
        )


def _value(value: Any, hint: Any, check: Check | None, where: str, path: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return _build(value, hint, where, path)
    if isinstance(hint, types.GenericAlias):
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: {path} must be a table")
        inner = typing.get_args(hint)[1]
        return {key: _value(item, inner, None, where, _path(path, key)) for key, item in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, hint) or isinstance(value, bool) is not (hint is bool):
        raise ConfigError(f"{where}: {path} must be {_type_name(hint)}, not {_shown(value)}")
    if check and isinstance(check[0], str):
        if value not in check:
            raise ConfigError(f"{where}: {path} must be one of {', '.join(map(str, check))}, not {_shown(value)}")
    elif check:
        low, high = typing.cast(tuple[float | None, float | None], check)
        if not ((low is None or value >= low) and (high is None or value <= high)):  # NaN fails both
            bounds = " and ".join(
                f"{word} {b:g}" for word, b in (("at least", low), ("at most", high)) if b is not None
            )
            raise ConfigError(f"{where}: {path} must be {bounds}, not {_shown(value)}")
    return value


def _shown(value: Any) -> str:
    return mask(repr(value))[:MAX_NAME]


def _type_name(hint: type) -> str:
    return {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}[hint]


def _path(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def show(config: Any, prefix: str = "") -> str:
    """The configuration as TOML, defaults included, each setting under its documentation."""
    lines: list[str] = []
    tables: list[str] = []
    for item in dataclasses.fields(config):
        value, path = getattr(config, item.name), _path(prefix, item.name)
        if dataclasses.is_dataclass(value):
            tables.append(f"[{path}]  # {type(value).__doc__}\n{show(value, path)}")
        elif value and isinstance(value, dict) and dataclasses.is_dataclass(next(iter(value.values()))):
            tables += [f"[{path}.{_key(name)}]\n{show(inner, f'{path}.{_key(name)}')}" for name, inner in value.items()]
        elif isinstance(value, dict):
            pairs = ", ".join(f"{_key(k)} = {_toml(v)}" for k, v in value.items())
            lines.append(f"# {item.metadata['doc']}\n{item.name} = {{{pairs}}}\n")
        else:
            lines.append(f"# {item.metadata['doc']}\n{item.name} = {_toml(value)}\n")
    return "\n".join(["".join(lines), *tables])


def _key(name: str) -> str:
    return name if name.replace("-", "").replace("_", "").isalnum() and name.isascii() else json.dumps(name)


def _toml(value: Any) -> str:
    return mask(json.dumps(value))


def credential(path: str) -> str:
    """Where the file of a setting that ends in ``_file`` is; "" for an empty path."""
    return str(Path(os.environ.get("CREDENTIALS_DIRECTORY", ""), path)) if path else ""


def secret(path: str) -> str:
    """The content of a secret's file without its final line break; "" for an empty path. Raises ``CredentialError``."""
    full = credential(path)
    try:
        return Path(full).read_text(encoding="utf-8").rstrip("\r\n") if full else ""
    except (OSError, UnicodeDecodeError) as error:
        raise CredentialError(
            f"{full}: {error.strerror if isinstance(error, OSError) else error}",
            "The file must exist and be readable by this user. A relative path counts from $CREDENTIALS_DIRECTORY, or from"
            " the folder of the configuration.",
        ) from error
