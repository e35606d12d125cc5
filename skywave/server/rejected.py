"""Work on what was rejected: list, show, replay. ``stores`` are the store's shards."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from .. import config
from ..errors import ConfigError, PoisonError
from ..mqtt import Message
from .admission import Admission, build_block, digest_stream
from .store import Rejected, Store, place
from .subscriber import boottime, utc_today


def find(stores: Sequence[Store], client_id: int | None = None, limit: int = 100) -> list[dict[str, Any]]:
    """Rejected messages without their bytes, oldest first, as JSON documents."""
    where = f"client_id = {client_id}" if client_id is not None else "1"
    rows = [row for store in stores for row in store.rejected(where)]
    return [as_json(row) for row in sorted(rows, key=lambda row: row.received_at)[:limit]]


def named(stores: Sequence[Store], name: str) -> list[Rejected]:
    """The rejected messages of one content: ``name`` is a SHA-256, or its start, for all clients that sent it, or
    CLIENT/SHA-256 for one. Raises ``ConfigError`` if there is none, or more than one content."""
    match = re.fullmatch(r"(?:([0-9]{1,10})/)?([0-9a-f]{4,64})", name)
    if match is None:
        raise ConfigError(f"{name!r} is not the start of a SHA-256", "Give 4 to 64 hexadecimal digits.")
    where = f"startsWith(sha256, '{match[2]}')" + (f" AND client_id = {match[1]}" if match[1] else "")
    rows = [row for store in stores for row in store.rejected(where, payload=True)]
    if match[1]:
        rows = [row for row in rows if row.client_id == int(match[1])]
    if len({row.sha256 for row in rows}) != 1:
        raise ConfigError(f"{len(rows)} rejected messages start with {name}", "See: skywave rejected list")
    return rows


def get(stores: Sequence[Store], name: str) -> Rejected:
    """One rejected message; raises ``ConfigError`` as ``named`` does, and if several clients sent the same bytes."""
    rows = named(stores, name)
    if len(clients := sorted({row.client_id for row in rows})) > 1:
        names = ", ".join(f"{client_id}/{rows[0].sha256[:12]}" for client_id in clients)
        raise ConfigError(f"{len(clients)} clients sent the same bytes", f"Name one: {names}")
    return rows[0]


def as_json(row: Rejected) -> dict[str, Any]:
    """A rejected message as a JSON document, its bytes left out."""
    return {
        "sha256": row.sha256,
        "client_id": row.client_id,
        "stream": str(row.stream),
        "first_seq": row.first_seq,
        "count": row.count,
        "topic": row.topic,
        "reason": row.reason,
        "properties": json.loads(row.properties or "{}"),
        "day": row.day.isoformat(),
        "received_at": row.received_at,
    }


def replay(stores: Sequence[Store], settings: config.Server, name: str) -> int:
    """Stores rejected messages of one content after all, each for its client; ``name`` as for ``named``. Returns the number
    of readings stored, 0 if they were already.

    Raises ``PoisonError`` if it still is none that can be stored.
    """
    return sum(_replay(stores[place(settings.store)(row.client_id)], settings, row) for row in named(stores, name))


def _replay(store: Store, settings: config.Server, row: Rejected) -> int:
    if not row.client_id:
        raise PoisonError(row.reason)
    properties: dict[str, str] = json.loads(row.properties or "{}")
    content_type = properties.pop("content_type", "")
    if "attempt" in properties:
        properties["attempt"] = "1"  # it may have been stored since: look it up
    message = Message(row.topic, row.payload, content_type, properties)
    # Readings without an id are numbered after the message's digest, so that a second replay finds the first.
    admission = Admission(settings.ingest, digest_stream(row.sha256))
    # By today's date: what a clock that was wrong took for the future may have come. JSON keeps the day of its arrival.
    admitted, bad = admission.admit(row.client_id, message, utc_today(), boottime(), row.day)
    if bad:
        raise PoisonError(bad[0].reason)
    found = store.existing([item.probe() for item in admitted if item.look_up])
    fresh = [item for item in admitted if item.name not in found]
    for item in fresh:
        store.insert_readings(build_block(item.day, [item]))
    return sum(len(item.values) for item in fresh)
