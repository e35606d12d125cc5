"""A batch survives its encoding; anything else is poison, whatever it is, and never more than an error."""

from __future__ import annotations

import math
from array import array

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skywave.errors import PoisonError
from skywave.formats.batch import MAX_DECODED_BYTES, Name, decode, encode
from skywave.formats.declared import inspect

NAME = Name(7, 2**63 - 1, 1001)
KEYS = ["temperature", "pressure", "höhe"]


def sample(n=300, compression="lz4", name=NAME):
    codes = array("h", [i % 3 for i in range(n)])
    return encode(name, KEYS, codes, array("q", range(n)), array("d", [i / 7 for i in range(n)]), compression)


def arrow(columns, metadata=None, batches=1):
    table = pa.record_batch(columns).replace_schema_metadata(
        metadata or {"skywave": "1", "batch": f"{NAME.client_id}/{NAME.stream}/{NAME.first_seq}"}
    )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        for _ in range(batches):
            writer.write_batch(table)
    return sink.getvalue().to_pybytes()


def columns(**other):
    keys = pa.array(["a", "b"]).dictionary_encode()
    return {"data_key": keys, "created_at": pa.array([1, 2]), "data_value": pa.array([1.0, 2.0]), **other}


@pytest.mark.parametrize("compression", ["lz4", "zstd", "none"])
def test_what_was_encoded_is_decoded(compression):
    readings = decode(sample(compression=compression), NAME, 300)
    assert readings.keys == KEYS
    assert [KEYS[code] for code in readings.codes.to_pylist()[:4]] == ["temperature", "pressure", "höhe", "temperature"]
    assert readings.created_at.to_pylist() == list(range(300))
    assert readings.values.to_pylist() == [i / 7 for i in range(300)]


def test_batches_with_many_equal_keys_share_one_list_of_them_and_others_do_not():
    names = [f"series-{number}" for number in range(100)]
    columns = array("h", range(100)), array("q", range(100)), array("d", range(100))
    other = Name(8, 5, 1)
    first, second = (decode(encode(name, names, *columns), name, 100).keys for name in (NAME, other))
    assert first is second
    assert first == names
    names[50] = "other"
    assert decode(encode(NAME, names, *columns), NAME, 100).keys == names
    huge = [f"{number}" * 400 for number in range(100)]
    assert decode(encode(NAME, huge, *columns), NAME, 100).keys == huge


def test_nan_infinities_and_minus_zero_keep_their_bits():
    values = [math.nan, math.inf, -math.inf, -0.0]
    payload = encode(NAME, KEYS, array("h", [0] * 4), array("q", [0] * 4), array("d", values))
    got = decode(payload, NAME, 4).values.to_pylist()
    assert [math.copysign(1, v) if v == 0 else str(v) for v in got] == ["nan", "inf", "-inf", -1.0]


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "batch"),
        (b"\x00" * 100, "Arrow"),
        (sample()[:-40], "Arrow|cut short"),
        (sample()[:200], "0 record batches"),
        (sample(name=Name(8, 1, 1)), "calls itself"),
        (arrow(columns(), {"skywave": "9", "batch": "7/9223372036854775807/1001"}), "format version"),
        (arrow(columns(data_value=pa.array([1, 2]))), "columns"),
        (arrow(columns(data_key=pa.array(["a", "b"]))), "columns"),
        (arrow(columns(data_key=pa.array([1, 2]).dictionary_encode())), "data_key"),
        (arrow(columns(created_at=pa.array([1, None], pa.int64()))), "null"),
        (arrow({"x": pa.array([1])}), "columns"),
        (arrow(columns(), batches=2), "record batches"),
    ],
)
def test_anything_else_is_poison_with_a_reason(payload, reason):
    with pytest.raises(PoisonError, match=reason):
        decode(payload, NAME, 2)


def test_a_wrong_count_is_poison():
    with pytest.raises(PoisonError, match="300 readings"):
        decode(sample(), NAME, 299)


def test_a_bomb_is_refused_before_anything_is_decompressed():
    payload = bytearray(sample(3000))
    declared = (3000 * 8).to_bytes(8, "little")
    at = payload.index(declared)
    payload[at : at + 8] = (1 << 40).to_bytes(8, "little")
    assert inspect(bytes(payload)).bytes > MAX_DECODED_BYTES
    with pytest.raises(PoisonError, match="decompresses to more"):
        decode(bytes(payload), NAME, 3000)


@given(st.data())
def test_flipped_bits_give_poison_or_readings_and_nothing_else(data):
    payload = bytearray(sample(50))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(payload) - 1))
        payload[at] ^= 1 << data.draw(st.integers(0, 7))
    try:
        readings = decode(bytes(payload), NAME, 50)
    except PoisonError:
        return
    assert len(readings.values) == len(readings.codes) == len(readings.created_at) == 50
    assert all(0 <= code < len(readings.keys) for code in readings.codes.to_pylist())


@given(st.binary(max_size=400))
def test_random_bytes_are_poison(data):
    with pytest.raises(PoisonError):
        decode(data, NAME, 1)
