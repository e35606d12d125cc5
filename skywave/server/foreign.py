"""Plain JSON, so that any device can take part: an object, or an array of objects,
``{"created_at": seconds, "data_key": text, "data_value": number, "id": optional integer >= 1}``.

Numbers may come as strings; unknown fields are ignored. A time may also be in milli-, micro- or nanoseconds, because such a
number would be a year after 9999 in seconds, or in ISO 8601 with its offset from UTC. A reading with ``id`` has the identity
``(client_id, stream 0, id, data_key, created_at)``: it is deduplicated within the day of its arrival, and acknowledged
by its id. One without is stored at least once, under a number that the server gives.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Any

from ..errors import PoisonError
from ..formats.messages import MAX_KEY

MAX_READINGS = 10_000
_EARLIEST, _LATEST = -62_135_596_800, 253_402_300_800  # the years 1 to 9999


@dataclass(frozen=True, slots=True)
class ForeignReading:
    """One reading of a foreign device; ``created_at`` in microseconds UTC, ``id`` 0 if it gave none."""

    created_at: int
    data_key: str
    data_value: float
    id: int


@dataclass(frozen=True, slots=True)
class BadReading:
    """One element that is not a reading: its JSON text, why, and its ``id``, 0 if it has none."""

    text: str
    reason: str
    id: int


def parse(payload: bytes) -> tuple[list[ForeignReading], list[BadReading]]:
    """The readings in ``payload`` and the elements that are none; raises ``PoisonError`` if it is not such JSON."""
    if payload.endswith(b"\0") and b"\0" not in (text := payload.rstrip(b"\0")):
        payload = text  # a string of C
    try:
        try:
            body = json.loads(payload, parse_float=Decimal, parse_int=_integer, parse_constant=str)
        except InvalidOperation:  # some number has too large an exponent: only its element is bad
            body = json.loads(payload, parse_float=_decimal, parse_int=_integer, parse_constant=str)
    except (ValueError, RecursionError) as error:
        raise PoisonError(f"is neither a batch nor JSON: {str(error)[:200]}") from error
    elements = body if isinstance(body, list) else [body]
    if len(elements) > MAX_READINGS:
        raise PoisonError(f"holds {len(elements)} readings, at most {MAX_READINGS} are taken")
    if not elements:
        raise PoisonError("holds no reading")
    good: list[ForeignReading] = []
    bad: list[BadReading] = []
    for element in elements:
        try:
            good.append(_reading(element))
        except PoisonError as error:
            try:
                bad.append(BadReading(json.dumps(element, default=str), str(error), _id_of(element)))
            except (ValueError, RecursionError) as unspeakable:
                raise PoisonError("holds an element that is nested too deeply") from unspeakable
    return good, bad


def _decimal(digits: str) -> Decimal | str:
    """A JSON number; as text, which ``_number`` refuses, if it has too large an exponent."""
    try:
        return Decimal(digits)
    except InvalidOperation:
        return digits


def _integer(digits: str) -> int | Decimal:
    """A JSON number without a point; Python's ``int`` takes no longer ones, for the time that they cost."""
    return int(digits) if len(digits) <= 40 else Decimal(digits)


def _reading(element: Any) -> ForeignReading:
    if not isinstance(element, dict):
        raise PoisonError("a reading must be a JSON object")
    key = element.get("data_key")
    if not isinstance(key, str) or not 0 < len(key) <= MAX_KEY:
        raise PoisonError(f"data_key must be a string of 1 to {MAX_KEY} letters{_hint(element, 'data_key')}")
    if not key.isascii() and any("\ud800" <= letter <= "\udfff" for letter in key):
        raise PoisonError("data_key is not valid Unicode")
    created_at = _time(element)
    value = float(_number(element, "data_value"))
    if not math.isfinite(value):
        raise PoisonError("data_value is not a finite number")
    return ForeignReading(created_at, key, value, _id(element))


def _id(element: dict[str, Any]) -> int:
    """The reading's ``id``, 0 if it has none or null."""
    value = element.get("id")
    if value is None:
        return 0
    if type(value) is int and 1 <= value < 2**64:
        return value
    try:
        number = _number(element, "id")
        if 1 <= number < 2**64 and number == int(number):
            return int(number)
    except PoisonError:
        pass
    raise PoisonError("id must be an integer from 1 to 2**64 - 1")


def _id_of(element: Any) -> int:
    """By what a device knows an element that is no reading, 0 if by nothing."""
    try:
        return _id(element) if isinstance(element, dict) else 0
    except PoisonError:
        return 0


def _time(element: dict[str, Any]) -> int:
    """``created_at`` in microseconds UTC."""
    value = element.get("created_at")
    if value is None:
        raise PoisonError(
            "created_at is missing: when the value was measured, in seconds since 1970-01-01 UTC; only the device knows it"
            + _hint(element, "created_at")
        )
    if type(value) is int and _EARLIEST <= value < _LATEST:
        return value * 1_000_000
    if isinstance(value, str) and (at := _iso_time(value)) is not None:
        return at
    number = _number(element, "created_at", "seconds since 1970-01-01 UTC, or a time like 2026-11-30T08:00:00Z")
    for digits in (6, 3, 0, -3):  # seconds, milliseconds, microseconds, nanoseconds
        seconds = number if digits == 6 else number.scaleb(digits - 6)
        if _EARLIEST <= seconds < _LATEST:
            return int(number.scaleb(digits).to_integral_value())
    raise PoisonError("created_at is outside the years 1 to 9999")


def _iso_time(text: str) -> int | None:
    """Microseconds UTC of an ISO 8601 time, None if it is none; raises ``PoisonError`` if it lacks its offset from UTC."""
    try:
        Decimal(text)
    except (InvalidOperation, ValueError):
        pass
    else:
        return None
    try:
        at = datetime.fromisoformat(text.strip())
        if at.tzinfo is not None:
            since = at.astimezone(UTC) - datetime(1970, 1, 1, tzinfo=UTC)
            return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds
    except (ValueError, OverflowError):
        return None
    raise PoisonError(f"created_at {text!r:.50} does not say in which time zone: end it with Z for UTC, or with +01:00")


def _hint(element: dict[str, Any], lacking: str) -> str:
    """Which fields there are instead of one that is lacking."""
    others = [name for name in element if name not in ("created_at", "data_key", "data_value", "id")]
    return f" (there is {', '.join(others[:5])[:100]!r} but no {lacking})" if others and lacking not in element else ""


def _number(element: dict[str, Any], name: str, what: str = "a number") -> Decimal:
    value = element.get(name)
    if isinstance(value, bool) or not isinstance(value, int | str | Decimal):
        raise PoisonError(f"{name} must be {what}, not {_kind(value)}{_hint(element, name)}")
    try:
        number = value if isinstance(value, Decimal) else Decimal(value)
    except (InvalidOperation, ValueError) as error:
        point = "; decimals follow a point" if "," in str(value)[:50] else ""
        raise PoisonError(f"{name} must be {what}, not {value!r:.50}{point}") from error
    if not number.is_finite():
        raise PoisonError(f"{name} must be a finite number")
    return number


def _kind(value: Any) -> str:
    """What JSON calls a value that is no number, or that it is missing."""
    if value is None:
        return "null or missing"
    return {bool: "true or false", dict: "an object", list: "an array"}.get(type(value), type(value).__name__)
