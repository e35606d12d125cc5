"""The sensor framing, byte by byte."""

from __future__ import annotations

import contextlib
import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skywave.formats.frames import FrameParser, frame, take_word

finite = st.floats(allow_nan=False, allow_infinity=False)


def test_the_documents_own_frame():
    assert FrameParser().feed(b"1         7") == [7.0]


@given(st.lists(finite), st.lists(st.integers(0, 400)))
def test_frames_cut_at_any_byte_give_the_same_numbers(values, cuts):
    data = b"".join(frame(repr(value).encode()) for value in values)
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    parser = FrameParser()
    got = [v for a, b in itertools.pairwise(edges) for v in parser.feed(data[a:b])]
    assert got == values
    assert not parser.broken
    assert not parser.malformed


@pytest.mark.parametrize(
    "payload", [b"", b"seven", b"nan", b"inf", b"-Infinity", b"1_000", b"\xff\x00", b"1,5", b"0x10"]
)
def test_a_payload_that_is_no_decimal_number_is_skipped_and_counted(payload):
    parser = FrameParser()
    assert parser.feed(frame(b"1") + frame(payload) + frame(b"2")) == [1.0, 2.0]
    assert parser.malformed == 1
    assert parser.sample == payload
    assert not parser.broken


def test_an_underscore_cut_off_from_its_frame_is_still_noticed():
    parser = FrameParser()
    data = frame(b"1_0")
    assert parser.feed(data[:12]) + parser.feed(data[12:]) == []
    assert parser.malformed == 1


@pytest.mark.parametrize(
    "header", [b"-5        ", b"abc       ", b"          ", b"65        ", b"9999999999", b" 5        ", b"1 1       "]
)
def test_a_wild_header_breaks_the_framing_but_keeps_what_came_before(header):
    parser = FrameParser()
    assert parser.feed(frame(b"1.5") + header + b"12345") == [1.5]
    assert parser.broken


@given(st.binary(max_size=300))
def test_random_bytes_never_raise_and_only_give_finite_numbers(data):
    assert all(math.isfinite(value) for value in FrameParser().feed(data))


_number = st.integers(0, 1 << 65).map(b"%d".__mod__)
_words = (
    st.tuples(st.sampled_from([b"after", b"first", b"ack", b"nack", b""]), _number, _number).map(b" ".join).map(frame)
)


@given(st.lists(_words | st.binary(max_size=12), max_size=5).map(b"".join))
def test_no_bytes_break_the_words_of_acknowledged_intake(data):
    left = data
    with contextlib.suppress(ValueError):
        while True:
            word, rest = take_word(left)
            if word is None:
                assert rest == left
                break
            assert 0 <= word.stream < 1 << 63 and 0 <= word.seq < 1 << 63 and len(rest) < len(left)
            left = rest
