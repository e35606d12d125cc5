"""What is kept of a message that holds no readings, or of such elements of it, and by what its sender knows them."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from datetime import date
from typing import NamedTuple

from ..errors import PoisonError
from ..formats.batch import Name
from ..formats.messages import Range
from ..mqtt.events import Message
from ..store.columns import Rejected
from .admission import name_and_count
from .foreign import BadReading

MAX_REASON = 500
MAX_TOPIC = 200
MAX_NOTES = 4000
NAMING = ("stream", "first_seq", "count", "day", "since", "attempt")


class Poison(NamedTuple):
    """``row`` goes among the rejected; ``acked`` is what its sender is told of then."""

    row: Rejected
    acked: list[Range]


def of_message(client_id: int, message: Message, reason: str, day: date) -> Poison:
    """A whole message. ``day`` is the server's UTC date."""
    try:
        name, count = name_and_count(client_id, message.properties or {})
        acked = [Range(name.stream, name.first_seq, name.first_seq + count - 1)]
    except PoisonError:
        name, count, acked = Name(client_id, 0, 0), 0, []
    return Poison(_row(name, count, message, reason, message.payload, day), acked)


def of_elements(client_id: int, message: Message, bad: Sequence[BadReading], good: int, day: date) -> Poison:
    """The elements of a JSON message that are no readings, beside ``good`` that are: one row, an answer to each with an id."""
    reason, payload = bad[0].reason, message.payload
    if len(bad) > 1:
        reason = f"{len(bad)} of {len(bad) + good} elements are no readings; the first: {reason}"
    if good:  # the others are stored: a replay must not store them again
        payload = f"[{', '.join(element.text for element in bad)}]".encode()
    acked = [Range(0, element.id, element.id) for element in bad if element.id]
    return Poison(_row(Name(client_id, 0, 0), 0, message, reason, payload, day), acked)


def _row(name: Name, count: int, message: Message, reason: str, payload: bytes, day: date) -> Rejected:
    """What a stranger wrote beside the payload is cut where it grows too long."""
    notes = {"content_type": message.content_type, **(message.properties or {})}
    if sum(map(len, notes)) + sum(map(len, notes.values())) > MAX_NOTES:
        notes = {key: notes[key][:100] for key in ("content_type", *NAMING) if key in notes}
    return Rejected(
        *name,
        count,
        hashlib.sha256(payload).hexdigest(),
        message.topic[:MAX_TOPIC],
        reason[:MAX_REASON],
        json.dumps(notes),
        payload,
        time.time_ns() // 1000,
        day,
    )
