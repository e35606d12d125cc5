"""The three JSON messages that client and server exchange beside the batches, strict both ways.

64-bit numbers travel as decimal strings, because JSON numbers lose digits above 2**53 in most languages.
A message that does not parse raises ``PoisonError``; the reader counts it and goes on. All that the other side keeps is
bounded here: how many rows, how long a text, and numbers that its database can hold.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import date
from typing import Any, NamedTuple

from ..errors import PoisonError

VERSION = 1
MAX_BYTES = 1 << 20
MAX_NUMBER = 2**63 - 1
"""The highest number of a reading, and the highest that an outbox can hold: its databases know signed numbers alone."""
MAX_STREAMS = 1 << 15
"""Streams in a status. One of a client that could not tell a server for long fills ``MAX_BYTES`` with fewer."""
MAX_TOLD = 1000
"""Streams that a client names in a status: of more the oldest and the present one. So many say nothing of others."""
MAX_DROPPED = 1000
"""Declared losses in a status; the next ones follow when these are confirmed."""
MAX_LABELS = 64
MAX_TEXT = 1000
"""Letters of a name, a label, a version or a reason."""
MAX_KEY = 1000
"""Letters of a data_key: it stands in the statement that looks a batch up."""
EARLIEST = date(2025, 1, 1)
"""A clock that shows an earlier date was never set: a machine without a battery starts in 1970."""
_MAX_AGE_S = 1e11
_SURROGATE = re.compile("[\ud800-\udfff]")
"""Half a letter, which JSON can write and UTF-8 cannot."""
_NUMBER = re.compile(r"0|[1-9][0-9]{0,19}")


class Range(NamedTuple):
    """Readings ``first`` to ``last`` (inclusive) of a stream."""

    stream: int
    first: int
    last: int


class Produced(NamedTuple):
    """A stream's account as its client gives it: ``last_seq`` is the last number it ever committed to its outbox,
    ``first_pending`` the lowest that its outbox still holds (0: none)."""

    stream: int
    last_seq: int
    first_pending: int


class Dropped(NamedTuple):
    """A range that a client declares lost, and why."""

    stream: int
    first: int
    last: int
    reason: str


@dataclass(frozen=True, slots=True)
class Ack:
    """What a server says after a commit.

    ``stored`` and ``rejected`` may be deleted from the outbox; ``recorded`` and ``dropped`` are accounts that the
    store now holds, so that the client can forget the streams that have ended.
    """

    server: str
    date: date
    stored: list[Range] = field(default_factory=list)
    rejected: list[Range] = field(default_factory=list)
    recorded: list[Produced] = field(default_factory=list)
    dropped: list[Range] = field(default_factory=list)

    def encode(self) -> bytes:
        """The message's bytes."""
        body: dict[str, Any] = {"v": VERSION, "server": self.server, "date": self.date.isoformat()}
        for name in ("stored", "rejected", "recorded", "dropped"):
            if rows := getattr(self, name):
                body[name] = [[str(number) for number in row] for row in rows]
        return _dump(body)

    @classmethod
    def decode(cls, payload: bytes) -> Ack:
        """The message in ``payload``; raises ``PoisonError``."""
        body = _load(payload, "ack")
        return cls(
            _text(body, "server"),
            _date(body),
            stored=[Range(*_numbers(row, 3)) for row in _rows(body, "stored")],
            rejected=[Range(*_numbers(row, 3)) for row in _rows(body, "rejected")],
            recorded=[Produced(*_held(row, MAX_NUMBER)) for row in _rows(body, "recorded")],
            dropped=[Range(*_held(row, MAX_NUMBER)) for row in _rows(body, "dropped")],
        )


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """Retained. Clients publish batches only while some server is ``accepting``. ``date`` is the server's UTC date."""

    accepting: bool
    date: date
    version: str

    def encode(self) -> bytes:
        """The message's bytes."""
        return _dump(
            {"v": VERSION, "accepting": self.accepting, "date": self.date.isoformat(), "version": self.version}
        )

    @classmethod
    def decode(cls, payload: bytes) -> ServerStatus:
        """The message in ``payload``; raises ``PoisonError``."""
        body = _load(payload, "server status")
        return cls(body.get("accepting") is True, _date(body), _text(body, "version"))


@dataclass(frozen=True, slots=True)
class ClientStatus:
    """Retained, with a last will that says ``online: false`` and nothing of the account.

    ``backlog_readings`` and ``oldest_unacked_s`` describe the outbox; ``streams`` and ``dropped`` are the account
    that the server keeps for the audit.
    """

    online: bool
    version: str
    host: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    backlog_readings: int = 0
    backlog_bytes: int = 0
    oldest_unacked_s: float = 0.0
    streams: list[Produced] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)

    def encode(self) -> bytes:
        """The message's bytes."""
        body = {
            "v": VERSION,
            "online": self.online,
            "version": self.version,
            "host": self.host,
            "labels": self.labels,
            "backlog_readings": self.backlog_readings,
            "backlog_bytes": self.backlog_bytes,
            "oldest_unacked_s": round(self.oldest_unacked_s, 3),
            "streams": [[str(number) for number in row] for row in self.streams],
            "dropped": [[*(str(number) for number in row[:3]), row.reason] for row in self.dropped],
        }
        return _dump(body)

    @classmethod
    def decode(cls, payload: bytes) -> ClientStatus:
        """The message in ``payload``; raises ``PoisonError``."""
        body = _load(payload, "client status")
        labels = body.get("labels", {})
        if not isinstance(labels, dict) or len(labels) > MAX_LABELS:
            raise PoisonError(f"client status: labels must be a table of at most {MAX_LABELS} strings")
        for item in labels.items():
            for word in item:
                _unicode("client status: a label", word)
        dropped = []
        for row in _rows(body, "dropped", MAX_DROPPED):
            if len(row) != 4:
                raise PoisonError("client status: a dropped range needs stream, first, last and reason")
            stream, first, last = _held(row[:3])
            dropped.append(Dropped(stream, first, last, _unicode("client status: a reason", row[3])))
        return cls(
            online=body.get("online") is True,
            version=_text(body, "version"),
            host=_text(body, "host"),
            labels=labels,
            backlog_readings=_count(body, "backlog_readings"),
            backlog_bytes=_count(body, "backlog_bytes"),
            oldest_unacked_s=float(_count(body, "oldest_unacked_s", _MAX_AGE_S)),
            streams=[Produced(*_held(row)) for row in _rows(body, "streams", MAX_STREAMS)],
            dropped=dropped,
        )


def merge(ranges: Iterable[Range]) -> list[Range]:
    """The same readings in as few ranges as possible, in order."""
    merged: list[Range] = []
    for item in sorted(ranges):
        if merged and merged[-1].stream == item.stream and item.first <= merged[-1].last + 1:
            merged[-1] = Range(item.stream, merged[-1].first, max(merged[-1].last, item.last))
        else:
            merged.append(item)
    return merged


def _dump(body: dict[str, Any]) -> bytes:
    return json.dumps(body, separators=(",", ":")).encode()


def _load(payload: bytes, what: str) -> dict[str, Any]:
    if len(payload) > MAX_BYTES:
        raise PoisonError(f"{what}: {len(payload)} bytes, at most {MAX_BYTES} are read")
    try:
        body = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise PoisonError(f"{what}: is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise PoisonError(f"{what}: is not a JSON object")
    if body.get("v") != VERSION:
        raise PoisonError(f"{what}: has version {body.get('v')!r:.50}, this one reads {VERSION}")
    return body


def _text(body: dict[str, Any], name: str) -> str:
    value = body.get(name, "")
    return _unicode(name, value)


def _unicode(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise PoisonError(f"{name} must be a string")
    if len(value) > MAX_TEXT:
        raise PoisonError(f"{name} has {len(value)} letters, at most {MAX_TEXT} are taken")
    if _SURROGATE.search(value):
        raise PoisonError(f"{name} is not valid Unicode")
    return value


def _count(body: dict[str, Any], name: str, below: float = 2**63) -> int:
    value = body.get(name, 0)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < below:
        raise PoisonError(f"{name} must be a number from 0 to below {below:g}")
    return int(value)


def _date(body: dict[str, Any]) -> date:
    value = _text(body, "date")
    try:
        return date.fromisoformat(value)
    except ValueError as error:
        raise PoisonError(f"date {value!r:.50} is not like 2026-01-31") from error


def _rows(body: dict[str, Any], name: str, most: int | None = None) -> list[list[Any]]:
    rows = body.get(name, [])
    if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
        raise PoisonError(f"{name} must be a list of lists")
    if most is not None and len(rows) > most:
        raise PoisonError(f"{name} has {len(rows)} rows, at most {most} are taken")
    return rows


def _numbers(row: list[Any], length: int) -> list[int]:
    if len(row) != length or not all(isinstance(item, str) and _NUMBER.fullmatch(item) for item in row):
        raise PoisonError(f"{row!r:.100} must be {length} unsigned decimal numbers as strings")
    numbers = [int(item) for item in row]
    if max(numbers) >= 2**64:
        raise PoisonError(f"{row!r:.100} exceeds 64 bits")
    return numbers


def _held(row: list[Any], highest_stream: int = 2**64 - 1) -> list[int]:
    """A stream and two numbers of it that the reader is going to keep. (What is only compared may have all 64 bits.)"""
    numbers = _numbers(row, 3)
    if numbers[0] > highest_stream or max(numbers[1:]) > MAX_NUMBER:
        raise PoisonError(f"{row!r:.100} has a number that no stream can have, they end at {MAX_NUMBER}")
    return numbers
