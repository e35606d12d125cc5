"""What an Arrow stream declares of itself, read before anything is allocated for it."""

from __future__ import annotations

import struct
from typing import NamedTuple

from ..errors import PoisonError

MAX_READINGS = 100_000
"""Most readings in one batch that a server takes. Far below one INSERT's bound of a million rows."""


# -- The size a stream declares, read from its flatbuffers -----------------------------------------------------------
# Arrow allocates what a compressed buffer's 8-byte prefix says before it looks at the data, so a message of 100 bytes
# could ask for 100 GB. Layout: arrow.apache.org/docs/format/Columnar.html (IPC), flatbuffers.dev/internals.

_SCHEMA_MESSAGE, _DICTIONARY_MESSAGE, _RECORD_MESSAGE = 1, 2, 3
_MAX_MESSAGES = 8


class Declared(NamedTuple):
    """What an Arrow IPC stream says of itself: the size of its buffers once decompressed, and its record batches."""

    bytes: int
    record_batches: int


def inspect(payload: bytes) -> Declared:
    """Reads the framing alone; raises ``PoisonError``, ``struct.error`` or ``IndexError`` if it is broken."""
    total = position = record_batches = 0
    view = memoryview(payload)
    for _ in range(_MAX_MESSAGES):
        if position >= len(payload):
            break
        marker, size = struct.unpack_from("<Ii", payload, position)
        if marker != 0xFFFFFFFF or size < 0:
            raise PoisonError("is not an Arrow stream")
        if size == 0:
            break
        kind, body_bytes, sizes = _message(view[position + 8 : position + 8 + size], view[position + 8 + size :])
        record_batches += kind == _RECORD_MESSAGE
        total += sizes
        position += 8 + size + body_bytes
    else:
        raise PoisonError(f"holds more than {_MAX_MESSAGES} Arrow messages")
    return Declared(total, record_batches)


def _message(message: memoryview, body: memoryview) -> tuple[int, int, int]:
    root = struct.unpack_from("<I", message, 0)[0]
    kind = _field(message, root, 1)
    body_field = _field(message, root, 3)
    body_bytes = struct.unpack_from("<q", message, body_field)[0] if body_field else 0
    if not 0 <= body_bytes <= len(body):
        raise PoisonError("is cut short")
    header_kind = message[kind] if kind else 0
    if header_kind == _SCHEMA_MESSAGE:
        return header_kind, body_bytes, 0
    header = _table(message, _field(message, root, 2))
    if header_kind == _DICTIONARY_MESSAGE:
        header = _table(message, _field(message, header, 1))
    elif header_kind != _RECORD_MESSAGE:
        raise PoisonError(f"holds an Arrow message of kind {header_kind}")
    rows_field = _field(message, header, 0)
    rows = struct.unpack_from("<q", message, rows_field)[0] if rows_field else 0
    if not 0 <= rows <= MAX_READINGS:
        raise PoisonError(f"declares {rows} rows, at most {MAX_READINGS} are taken")
    return header_kind, body_bytes, _buffers(message, header, body[:body_bytes])


def _buffers(message: memoryview, header: int, body: memoryview) -> int:
    field = _field(message, header, 2)
    if not field:
        return 0
    vector = _table(message, field)
    count = struct.unpack_from("<I", message, vector)[0]
    compressed = bool(_field(message, header, 3))
    total = 0
    for offset, length in struct.iter_unpack("<qq", message[vector + 4 : vector + 4 + 16 * count]):
        if offset < 0 or length < 0 or offset + length > len(body):
            raise PoisonError("has a buffer outside its body")
        if compressed and length >= 8:
            declared = struct.unpack_from("<q", body, offset)[0]
            length = max(declared, length) if declared != -1 else length
        total += length
    return total


def _table(message: memoryview, field: int) -> int:
    if not field:
        raise PoisonError("lacks a part of its Arrow header")
    return field + int(struct.unpack_from("<I", message, field)[0])


def _field(message: memoryview, table: int, index: int) -> int:
    """Position of a table's field in the flatbuffer, 0 if the field is absent."""
    vtable = table - struct.unpack_from("<i", message, table)[0]
    if vtable < 0:
        raise PoisonError("has a broken Arrow header")
    size = struct.unpack_from("<H", message, vtable)[0]
    slot = 4 + 2 * index
    offset: int = struct.unpack_from("<H", message, vtable + slot)[0] if slot < size else 0
    return table + offset if offset else 0
