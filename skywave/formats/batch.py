"""What a batch is: its identity, its bytes, and how they are read back without trusting them.

A reading is identified by ``(client_id, stream, seq)``. A batch is an immutable run of readings of one stream,
``first_seq`` to ``last_seq`` without a gap, encoded once; its name is ``(client_id, stream, first_seq)``.

On the wire (MQTT 5) the name and the delivery facts travel as user properties outside the payload, so that even a
payload that cannot be decoded has a name. The payload is one Arrow IPC stream with one record batch:
``data_key`` dictionary<string>, ``created_at`` int64 (microseconds since the epoch, UTC), ``data_value`` float64.
The schema's metadata repeats the name and gives the format version.
"""

from __future__ import annotations

import itertools
import struct
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from typing import Any, NamedTuple

import pyarrow as pa

from ..errors import PoisonError
from .declared import inspect
from .messages import MAX_KEY, MAX_NUMBER

CONTENT_TYPE = "application/vnd.apache.arrow.stream"
FORMAT_VERSION = "1"
MAX_DECODED_BYTES = 16 << 20
"""Most bytes that the buffers of one batch may declare to decompress to. Checked before anything is allocated."""
MAX_SEQ = MAX_NUMBER
REMEMBERED_FROM = 16
REMEMBERED_BYTES = 1 << 14
COMPRESSIONS = ("lz4", "zstd", "none")

# One thread for (de)compression: for buffers this small the hand-over to Arrow's pool costs eight times the work.
_READ = pa.ipc.IpcReadOptions(use_threads=False)
_WRITE = {
    "lz4": pa.ipc.IpcWriteOptions(compression="lz4", use_threads=False),
    "zstd": pa.ipc.IpcWriteOptions(compression=pa.Codec("zstd", 1), use_threads=False),
    "none": pa.ipc.IpcWriteOptions(),
}
_SCHEMA = pa.schema(
    [
        pa.field("data_key", pa.dictionary(pa.int16(), pa.string()), nullable=False),
        pa.field("created_at", pa.int64(), nullable=False),
        pa.field("data_value", pa.float64(), nullable=False),
    ]
)


class Name(NamedTuple):
    """A batch's name; unique for ever, because a stream's number is drawn at random at every start of a client."""

    client_id: int
    stream: int
    first_seq: int


@dataclass(frozen=True, slots=True)
class Batch:
    """An encoded batch as the outbox keeps it.

    ``id`` numbers the outbox's batches in the order of their commits; ``made_at`` is the time of the oldest reading
    (microseconds, UTC); ``since`` is the last server date the client had heard when it made the batch, or None.
    """

    id: int
    stream: int
    first_seq: int
    count: int
    made_at: int
    since: date | None
    payload: bytes

    @property
    def last_seq(self) -> int:
        """Sequence number of the last reading."""
        return self.first_seq + self.count - 1


def encode(
    name: Name,
    keys: Sequence[str],
    codes: array[int],
    created_at: array[int],
    values: array[float],
    compression: str = "lz4",
) -> bytes:
    """The payload of a batch.

    ``codes`` (typecode ``h``) index ``keys``; ``created_at`` (``q``) is in microseconds UTC; ``values`` (``d``).
    All three have the batch's length; the reading at position ``i`` has ``seq = name.first_seq + i``.
    """
    n = len(values)
    indices = pa.Array.from_buffers(pa.int16(), n, [None, pa.py_buffer(codes)])
    columns = [
        pa.DictionaryArray.from_arrays(indices, _strings(keys)),
        pa.Array.from_buffers(pa.int64(), n, [None, pa.py_buffer(created_at)]),
        pa.Array.from_buffers(pa.float64(), n, [None, pa.py_buffer(values)]),
    ]
    schema = _SCHEMA.with_metadata(_metadata(name))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema, options=_WRITE[compression]) as writer:
        writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))
    return bytes(sink.getvalue())


def _strings(keys: Sequence[str]) -> Any:
    """Built from its buffers, because ``pa.array`` of a list imports pandas where it is installed (40 MB)."""
    encoded = [key.encode() for key in keys]
    ends = array("i", [0, *itertools.accumulate(map(len, encoded))])
    return pa.Array.from_buffers(pa.string(), len(encoded), [None, pa.py_buffer(ends), pa.py_buffer(b"".join(encoded))])


def _metadata(name: Name) -> dict[str, str]:
    return {"skywave": FORMAT_VERSION, "batch": f"{name.client_id}/{name.stream}/{name.first_seq}"}


@dataclass(frozen=True, slots=True)
class Readings:
    """Decoded readings of one batch: equally long Arrow arrays (``codes`` int8 to int32 index ``keys``). Batches with equal
    keys may share one list of them, so it must not be changed."""

    keys: list[str]
    codes: Any
    created_at: Any
    values: Any


def decode(payload: bytes, name: Name, count: int) -> Readings:
    """Reads and fully validates a payload that claims to be batch ``name`` of ``count`` readings.

    Raises ``PoisonError`` with the reason if it is anything else. Nothing is decompressed before its declared size is
    known to be within ``MAX_DECODED_BYTES``.
    """
    try:
        declared = inspect(payload)
        if declared.bytes > MAX_DECODED_BYTES:
            raise PoisonError(f"decompresses to more than {MAX_DECODED_BYTES} bytes")
        if declared.record_batches != 1:
            raise PoisonError(f"holds {declared.record_batches} record batches, one is needed")
        reader = pa.ipc.open_stream(payload, options=_READ)
        schema = reader.schema
        if not schema.equals(_SCHEMA):
            _check_columns(schema)
        _check_name(schema.metadata or {}, name)
        columns = reader.read_next_batch()
        columns.validate(full=True)
        keys, created_at, values = columns.columns
        if keys.null_count or keys.dictionary.null_count or created_at.null_count or values.null_count:
            raise PoisonError("has null values")
        if columns.num_rows != count:
            raise PoisonError(f"holds {columns.num_rows} readings, but its properties say {count}")
        return Readings(_names(keys.dictionary), keys.indices, created_at, values)
    except (pa.ArrowException, struct.error, IndexError, StopIteration, UnicodeDecodeError, OSError) as error:
        raise PoisonError(f"is not a valid Arrow stream: {type(error).__name__}: {str(error)[:200]}") from error
    except (ValueError, TypeError, KeyError, MemoryError) as error:
        raise PoisonError(f"is not a valid batch: {type(error).__name__}: {str(error)[:200]}") from error


def _names(dictionary: Any) -> list[str]:
    """The keys of a batch. A client names the same series in each of its batches, so long lists are remembered."""
    if len(dictionary) < REMEMBERED_FROM or dictionary.offset:
        return _checked(dictionary)
    _, ends, text = dictionary.buffers()
    if text is None or ends.size + text.size > REMEMBERED_BYTES:
        return _checked(dictionary)
    return _remembered(len(dictionary), ends.to_pybytes(), text.to_pybytes())


@lru_cache(maxsize=128)
def _remembered(count: int, ends: bytes, text: bytes) -> list[str]:
    return _checked(pa.StringArray.from_buffers(count, pa.py_buffer(ends), pa.py_buffer(text)))


def _checked(keys: Any) -> list[str]:
    names: list[str] = keys.to_pylist()
    if any(len(name) > MAX_KEY for name in names):
        raise PoisonError(f"has a data_key of more than {MAX_KEY} letters")
    return names


def _check_columns(schema: Any) -> None:
    want = (pa.types.is_dictionary, pa.types.is_int64, pa.types.is_float64)
    if schema.names != _SCHEMA.names or not all(ok(kind) for ok, kind in zip(want, schema.types, strict=True)):
        raise PoisonError(f"has columns {', '.join(f'{f.name} {f.type}' for f in schema)[:200]}")
    key = schema.types[0]
    if not pa.types.is_string(key.value_type) or key.index_type not in (pa.int8(), pa.int16(), pa.int32()):
        raise PoisonError(f"has data_key of type {key}")


def _check_name(metadata: Mapping[bytes, bytes], name: Name) -> None:
    want = _metadata(name)
    version = metadata.get(b"skywave", b"").decode(errors="replace")
    if version != FORMAT_VERSION:
        raise PoisonError(f"has format version {version!r}, this server reads {FORMAT_VERSION!r}")
    if metadata.get(b"batch", b"").decode(errors="replace") != want["batch"]:
        raise PoisonError(f"calls itself {metadata.get(b'batch', b'')!r:.100}, its properties say {want['batch']}")
