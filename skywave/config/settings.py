"""The settings of each part: names, defaults, bounds, what they mean, and which of them do not go together.

``check`` of a table is called when it is read: ``where`` is the file, ``path`` the table's name in it, both for the error.
"""

from __future__ import annotations

import dataclasses
import os
import re
import socket
from dataclasses import dataclass, field
from typing import Any

from ..errors import ConfigError
from ..formats.messages import MAX_KEY, MAX_LABELS
from .masking import mask

STATE = "/var/lib/skywave-{}"
"""What an installed host's service of that name writes (``StateDirectory=`` of its unit)."""
MAX_NAME = 200
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")
_IDENTIFIER = re.compile("[A-Za-z_][A-Za-z0-9_]*")
Check = tuple[float | None, float | None] | tuple[str, ...]
DATA, CREDENTIAL = "data", "credential"
"""What a path leads to; from where a relative one counts follows from it."""


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
        raise ValueError(f"{shown(text)} is no list of host:port")
    found = [(host.strip("[]"), int(port)) for host, _, port in pairs]
    if len(set(found)) < len(found):
        raise ValueError(f"{text!r} names one twice")
    return found


def shown(value: Any) -> str:
    """A value as an error shows it: short, its passwords masked."""
    return mask(repr(value))[:MAX_NAME]


def dotted(prefix: str, name: str) -> str:
    """The path of a setting in its file, like ``mqtt.host``."""
    return f"{prefix}.{name}" if prefix else name


def check_host(host: str, path: str, where: str) -> None:
    """Raises ``ConfigError`` for what can be no host: nothing, a URL, a host with its port."""
    if not host.strip():
        raise ConfigError(
            f"{where}: {path} is empty", "Give a name or an address; 0.0.0.0 listens on all of this host's."
        )
    if host.count(":") == 1 or "/" in host or "@" in host or host.startswith("["):
        raise ConfigError(
            f"{where}: {path} must be a name or an address, not {shown(host)}", "The port is a setting of its own."
        )


def check_name(name: str, path: str, where: str) -> None:
    """Raises ``ConfigError`` for a name that people could not read in logs and metrics."""
    if not name.strip() or _CONTROL.search(name) or len(name) > MAX_KEY:
        raise ConfigError(
            f"{where}: {path}: {shown(name)} is no name", f"It has 1 to {MAX_KEY} letters and no control characters."
        )


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

    def check(self, where: str, path: str) -> None:
        """Raises ``ConfigError``."""
        check_host(self.host, dotted(path, "host"), where)
        try:
            self.brokers()
        except ValueError as error:
            raise ConfigError(
                f"{where}: {dotted(path, 'others')}: {error}", 'For example "b2:8883, b3:8883".'
            ) from error


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

    def check(self, where: str, path: str) -> None:
        """Raises ``ConfigError``."""
        check_host(self.host, dotted(path, "host"), where)


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

    def check(self, where: str, path: str) -> None:
        """Raises ``ConfigError``."""
        if self.kind == "postgresql" and not self.dsn:
            raise ConfigError(
                f"{where}: {dotted(path, 'dsn')} is missing", 'For example dsn = "host=/run/postgresql dbname=skywave".'
            )


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

    def check(self, where: str, _path: str) -> None:
        """Raises ``ConfigError``."""
        if not self.sensors:
            raise ConfigError(f"{where}: no sensors", "Add a table like [sensors.temperature] with a port.")
        if len(self.sensors) > 32_000:
            raise ConfigError(f"{where}: more than 32000 sensors", "Split them over several clients.")
        if len(self.labels) > MAX_LABELS:
            raise ConfigError(f"{where}: more than {MAX_LABELS} labels", "Servers take no more.")
        for name, sensor in self.sensors.items():
            check_name(name, "sensors", where)
            check_name(sensor.key or name, f"sensors.{name}: its key", where)
            if sensor.host.count(":") == 1:  # any other is tried: one sensor's name is no reason to read none
                check_host(sensor.host, f"sensors.{name}.host", where)
        for name, value in self.labels.items():
            check_name(name, "labels", where)
            if len(value) > MAX_KEY:
                raise ConfigError(f"{where}: labels.{name} has more than {MAX_KEY} letters")


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

    def check(self, where: str, _path: str) -> None:
        """Raises ``ConfigError``; the names stand in statements."""
        check_host(self.host, "store.host", where)
        if not _IDENTIFIER.fullmatch(self.database):
            raise ConfigError(
                f"{where}: store.database {shown(self.database)} must be a plain name", "Use letters, digits and _."
            )
        if not re.fullmatch("[A-Za-z0-9_.-]+", self.cluster):
            raise ConfigError(
                f"{where}: store.cluster {shown(self.cluster)} must be a plain name", "Use letters, digits, _ . and -."
            )
        known: set[tuple[str, int]] = set()
        for name, shard in self.shards.items():
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
            if len(found) < self.quorum:
                raise ConfigError(
                    f"{where}: store.shards.{name} has {len(found)} replicas, store.quorum is {self.quorum}",
                    "A quorum cannot be larger than a shard; three replicas with a quorum of 2 survive the loss of any one.",
                )
        if self.shards and (self.kind != "clickhouse" or min(s.first_client for s in self.shards.values()) > 0):
            raise ConfigError(f"{where}: store.shards need kind clickhouse and a shard with first_client 0")


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

    def check(self, where: str, _path: str) -> None:
        """Raises ``ConfigError``; the name is a level of a topic, and stands in each acknowledgement."""
        name = self.server_name
        if name != name.strip() or not name or set("/+#") & set(name) or _CONTROL.search(name) or len(name) > MAX_NAME:
            raise ConfigError(
                f"{where}: {shown(name)} cannot be a server's name",
                f"Set name: 1 to {MAX_NAME} letters without / + #, control characters and spaces at its ends.",
            )


KINDS: dict[str, type[Client] | type[Server]] = {"client": Client, "server": Server}
