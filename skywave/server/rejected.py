"""Work on what was rejected: list, show, replay. ``stores`` are the store's shards."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import islice
from typing import Any

from .. import config
from ..errors import ConfigError, PoisonError
from ..mqtt.events import Message
from ..process.times import boottime, utc_today
from ..store.accounts import Accounts
from ..store.columns import Rejected
from ..store.shards import shard_of
from ..store.store import Store
from .admission import Admission, build_block, digest_stream


def find(stores: Sequence[Accounts], client_id: int | None = None, limit: int = 100) -> list[dict[str, Any]]:
    """Rejected messages without their bytes, oldest first, as JSON documents."""
    rows = [row for store in stores for row in store.rejected(client_id)]
    return [as_json(row) for row in sorted(rows, key=lambda row: row.received_at)[:limit]]


def get(
    stores: Sequence[Accounts], sha256: str, client_id: int | None = None, batch: tuple[int, int] | None = None
) -> Rejected:
    """The one rejected message whose SHA-256 starts so, of a client, under the name of a batch (stream and first_seq): equal
    bytes may come from several clients and under several names. Raises ``ConfigError`` if there is none, or more."""
    if not re.fullmatch(r"[0-9a-f]{4,64}", sha256):
        raise ConfigError(f"{sha256!r} is not the start of a SHA-256", "Give 4 to 64 hexadecimal digits.")
    rows = [row for store in stores for row in store.rejected(client_id, sha256, payload=True)]
    found = {
        (row.client_id, row.stream, row.first_seq, row.sha256): row  # of several days the latest, they are the same
        for row in rows
        if batch in (None, (row.stream, row.first_seq))
    }
    if len(found) != 1:
        names = (
            f"client {client} batch {stream}/{first} {digest[:12]}" for client, stream, first, digest in sorted(found)
        )
        raise ConfigError(
            f"{len(found)} rejected messages start with {sha256}{': ' if found else ''}{', '.join(islice(names, 5))}",
            "Give more of it, --client or --batch; see: skywave rejected list",
        )
    return next(iter(found.values()))


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


def replay(
    stores: Sequence[Store],
    settings: config.Server,
    sha256: str,
    client_id: int | None = None,
    batch: tuple[int, int] | None = None,
) -> int:
    """Stores a rejected message (see ``get``) after all; the number of readings stored, 0 if they were already.

    Raises ``PoisonError`` if it still is none that can be stored.
    """
    row = get(stores, sha256, client_id, batch)
    if not row.client_id:
        raise PoisonError(row.reason)
    store = stores[shard_of(settings.store)(row.client_id)]
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
