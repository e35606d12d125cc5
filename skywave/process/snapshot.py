"""What a running client or server says of itself at one moment: the document behind ``/status``, typed.

Who asks may be of another release than who answers. So a document is read for what is known of it: what an older release
does not say has its default here, what a newer one says beyond it is passed over. Numbers count since the process's start
unless their line says otherwise; ``_s`` ends a name of seconds, ``_per_s`` a rate.
"""

from __future__ import annotations

import json
import types
from dataclasses import dataclass, field, is_dataclass
from functools import cache
from typing import Any, get_args, get_origin, get_type_hints

from ..errors import NotRunning
from .stalls import Stall

VERSION = 1
"""Of the document. A higher one says more, under names that are new."""
_BEYOND = 2**64
"""No number of ours is as large, and all that are smaller can be shown."""


@dataclass(frozen=True, kw_only=True)
class SensorState:
    """One sensor of a client. ``missed`` are readings that it had no more when it was asked for them."""

    connected: bool = False
    readings: int = 0
    malformed: int = 0
    broken_frames: int = 0
    disconnects: int = 0
    stalls: int = 0
    missed: int = 0
    last_error: str = ""


@dataclass(frozen=True, kw_only=True)
class BacklogState:
    """What a client's outbox holds now."""

    batches: int = 0
    readings: int = 0
    bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class ShardState:
    """One shard of a server's store, as that server sees it."""

    ok: bool = False
    accepting: bool = False
    readings: int = 0


@dataclass(frozen=True, kw_only=True)
class ClientState:
    """One client as a server knows it: what the client's last status says (``messages.ClientStatus`` without the account),
    and ``acknowledged``, the readings that this server acknowledged to it."""

    online: bool = False
    version: str = ""
    host: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    backlog_readings: int = 0
    backlog_bytes: int = 0
    oldest_unacked_s: float = 0.0
    acknowledged: int = 0


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """What clients and servers say alike. ``version`` is the release; ``snapshot`` is the document's version, 0 of a release
    that gave it none. ``stalls`` are what holds the process up now, by cause."""

    snapshot: int = VERSION
    kind: str = ""
    version: str = ""
    uptime_s: float = 0.0
    connected: bool = False
    accepting: bool = False
    broker_error: str = ""
    stalls: dict[str, Stall] = field(default_factory=dict)
    readings: int = 0
    readings_per_s: float = 0.0
    rss_bytes: int = 0

    def encode(self) -> bytes:
        """The JSON document. Nothing is copied for it, as a server has the state of each client in its own."""
        return json.dumps(self, default=vars).encode()


@dataclass(frozen=True, kw_only=True)
class ClientSnapshot(Snapshot):
    """A client: ``readings`` are those committed to the outbox; ``accepting`` says that some server takes batches.

    ``in_flight`` and ``set_aside`` are numbers of batches now. ``time_to_full_s`` is None while the outbox does not grow.
    """

    kind: str = "client"
    client_id: int = 0
    labels: dict[str, str] = field(default_factory=dict)
    commits: int = 0
    acked_readings: int = 0
    acked_per_s: float = 0.0
    rejected_readings: int = 0
    resent_batches: int = 0
    ignored_acks: int = 0
    bad_messages: int = 0
    backlog: BacklogState = BacklogState()
    in_flight: int = 0
    set_aside: int = 0
    oldest_unacked_s: float = 0.0
    time_to_full_s: float | None = None
    ack_delay_s: float = 0.0
    clock_is_set: bool = True
    outbox_full: bool = False
    outbox_full_why: str = ""
    outbox_error: str = ""
    sensors: dict[str, SensorState] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ServerSnapshot(Snapshot):
    """A server: ``readings`` are those committed and acknowledged; ``accepting`` says that it takes batches.

    ``store`` is the kind of store. ``shards`` are by name, ``clients`` by the decimal of their number. ``held_messages`` and
    ``held_bytes`` are received and not yet worked on.
    """

    kind: str = "server"
    name: str = ""
    store: str = ""
    store_ok: bool = False
    store_error: str = ""
    shards: dict[str, ShardState] = field(default_factory=dict)
    batches: int = 0
    inserts: int = 0
    insert_s: float = 0.0
    duplicates: int = 0
    look_ups: int = 0
    foreign_readings: int = 0
    rejected: int = 0
    over_quota: int = 0
    received: int = 0
    dropped: int = 0
    foreign_lost: int = 0
    broker_dropped: int = 0
    held_messages: int = 0
    held_bytes: int = 0
    clients: dict[str, ClientState] = field(default_factory=dict)


def decode(document: object, source: str) -> ClientSnapshot | ServerSnapshot:
    """The snapshot in a JSON document that ``source`` gave; raises ``NotRunning`` if that is none of a client or server."""
    said: dict[str, Any] = document if isinstance(document, dict) else {}
    made = next((kind for kind in (ClientSnapshot, ServerSnapshot) if kind.kind == said.get("kind")), None)
    if made is None:
        raise NotRunning(f"{source} answers, but is no Skywave client or server", "Check http.port.")
    try:
        snapshot: ClientSnapshot | ServerSnapshot = _part(made, {"snapshot": 0} | said)
    except ValueError as error:
        raise NotRunning(f"{source} answers, but cannot be understood: {error}", "Check http.port.") from error
    return snapshot


def _part(made: Any, said: dict[str, Any]) -> Any:
    """Raises ``ValueError`` if something known is not of its type. What is null is not said."""
    hints = _hints(made)
    return made(**{name: _value(name, hints[name], said[name]) for name in hints if said.get(name) is not None})


@cache
def _hints(made: type) -> dict[str, Any]:
    """The types of a part's fields by name, without None."""
    hints = get_type_hints(made)
    return {name: get_args(hint)[0] if isinstance(hint, types.UnionType) else hint for name, hint in hints.items()}


def _value(name: str, hint: Any, value: Any) -> Any:
    if isinstance(value, dict) and is_dataclass(hint):
        return _part(hint, value)
    if isinstance(value, dict) and get_origin(hint) is dict:
        return {key: _value(name, get_args(hint)[1], item) for key, item in value.items()}
    if type(value) is hint and hint in (bool, str):
        return value
    if hint in (int, float) and type(value) in (int, hint) and -_BEYOND < value < _BEYOND:  # so it is no NaN
        return value
    raise ValueError(f"{name} is of type {type(value).__name__}, or too large")
