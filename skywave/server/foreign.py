"""Plain JSON, so that any device can take part: an object, or an array of objects,
``{"created_at": seconds, "data_key": text, "data_value": number, "id": optional integer >= 1}``.

Numbers may come as strings; unknown fields are ignored. A reading with ``id`` has the identity
``(client_id, stream 0, id, data_key, created_at)``: it is deduplicated within the day of its arrival, and acknowledged
by its id. One without is stored at least once, under a number that the server gives.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

from ..errors import PoisonError
from ..messages import MAX_KEY

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
    """One element that is not a reading: its JSON text and why."""

    text: str
    reason: str


def parse(payload: bytes) -> tuple[list[ForeignReading], list[BadReading]]:
    """The readings in ``payload`` and the elements that are none; raises ``PoisonError`` if it is not such JSON."""
    try:
        body = json.loads(payload, parse_float=Decimal, parse_constant=str)
    except (ValueError, RecursionError, ArithmeticError) as error:
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
                bad.append(BadReading(json.dumps(element, default=str), str(error)))
            except (ValueError, RecursionError) as unspeakable:
                raise PoisonError("holds an element that is nested too deeply") from unspeakable
    return good, bad


def _reading(element: Any) -> ForeignReading:
    if not isinstance(element, dict):
        raise PoisonError("a reading must be a JSON object")
    seconds = _number(element, "created_at")
    if not _EARLIEST <= seconds < _LATEST:
        raise PoisonError("created_at is outside the years 1 to 9999")
    value = float(_number(element, "data_value"))
    if not math.isfinite(value):
        raise PoisonError("data_value is not a finite number")
    key = element.get("data_key")
    if not isinstance(key, str) or not 0 < len(key) <= MAX_KEY:
        raise PoisonError(f"data_key must be a string of 1 to {MAX_KEY} letters")
    if any("\ud800" <= letter <= "\udfff" for letter in key):
        raise PoisonError("data_key is not valid Unicode")
    number = element.get("id", 0)
    if "id" in element and (type(number) is not int or not 1 <= number < 2**64):
        raise PoisonError("id must be an integer from 1 to 2**64 - 1")
    return ForeignReading(int(seconds.scaleb(6).to_integral_value()), key, value, number)


def _number(element: dict[str, Any], name: str) -> Decimal:
    value = element.get(name)
    if isinstance(value, bool) or not isinstance(value, int | str | Decimal):
        raise PoisonError(f"{name} must be a number")
    try:
        number = Decimal(value)
    except (InvalidOperation, ValueError) as error:
        raise PoisonError(f"{name} must be a number") from error
    if not number.is_finite():
        raise PoisonError(f"{name} must be a finite number")
    return number
