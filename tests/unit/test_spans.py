"""Sets of numbers as ranges do what sets do, up to the last of 64 bits."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from skywave.formats.spans import NOTHING, Bitmap, Spans

TOP = 2**64 - 1
NEAR = st.integers(0, 40) | st.integers(TOP - 40, TOP)
PAIRS = st.lists(
    st.tuples(NEAR, st.integers(0, 12)).map(lambda pair: (pair[0], min(pair[0] + pair[1], TOP))), max_size=8
)


def members(spans):
    return {number for first, last in spans.pairs() for number in range(first, last + 1)}


def numbers(pairs):
    return {number for first, last in pairs for number in range(first, last + 1)}


@settings(deadline=None)
@given(PAIRS, PAIRS)
def test_ranges_do_what_sets_of_their_numbers_do(one, other):
    a, b = Spans.of(one), Spans.of(other)
    assert members(a) == numbers(one)
    assert members(a & b) == numbers(one) & numbers(other)
    assert members(a - b) == numbers(one) - numbers(other)
    assert members(Spans.union([a, b])) == members(a | b) == numbers(one) | numbers(other)
    assert bool(a) == bool(numbers(one))
    probes = [*range(60), *range(TOP - 60, TOP + 1)]
    assert a.contain(np.array(probes, np.uint64)).tolist() == [probe in numbers(one) for probe in probes]
    assert a.count == len(numbers(one))
    assert a.highest == max(numbers(one), default=0)
    for spans in (a, b, a & b, a - b, Spans.union([a, b])):
        assert all(
            second.first - first.last > 1 for first, second in zip(spans.pairs(), spans.pairs()[1:], strict=False)
        )


def test_what_is_counted_may_be_as_long_as_64_bits_allow():
    everything = Spans.of([(1, TOP)])
    assert everything.count == TOP
    assert (everything - Spans.of([(5, 6), (TOP, TOP)])).pairs() == [(1, 4), (7, TOP - 1)]
    assert Spans.of([(7, 3)]).count == NOTHING.count == Spans.union([]).count == 0


@settings(deadline=None)
@given(st.lists(st.lists(NEAR | st.integers(65_500, 65_600), min_size=1, max_size=80), max_size=5))
def test_a_bitmap_knows_what_came_and_refuses_what_would_take_too_much(parts):
    bitmap, chunks = Bitmap(), 0
    for part in parts:
        chunks += bitmap.add(np.array(part, np.uint64), 3)
    came = {number for part in parts for number in part}
    assert members(bitmap.spans()) == came
    assert chunks == len({number >> 16 for number in came})
    assert bitmap.add(np.array([1 << 20, 1 << 30, 1 << 40], np.uint64), 2) == 3
    assert members(bitmap.spans()) == came
