"""Sets of 64-bit numbers, kept as ranges: what they cost follows how many ranges there are, not how long they are.

The audit and the archive reckon with them. Numbers that come strewn, one by one, are collected in a ``Bitmap`` first.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.uint64]
_CHUNK_BITS = 16
_CHUNK = 1 << _CHUNK_BITS
_HIGHEST = np.uint64(2**64 - 1)
_ONE = np.uint64(1)


class Span(NamedTuple):
    """Numbers ``first`` to ``last`` (inclusive) of a stream."""

    first: int
    last: int


@dataclass(frozen=True, slots=True, eq=False)
class Spans:
    """Numbers from 0 to 2**64 - 1, as two equally long arrays of ascending, inclusive ranges that neither meet nor touch."""

    first: Numbers
    last: Numbers

    @classmethod
    def of(cls, pairs: Iterable[tuple[int, int]]) -> Spans:
        """The numbers of the ranges ``first`` to ``last``, in any order; one that ends before it begins has none."""
        columns = np.array([pair for pair in pairs if pair[0] <= pair[1]], np.uint64).reshape(-1, 2)
        parts = cls(columns[:, 0], columns[:, 1])
        return parts if len(columns) < 2 else cls.union([parts, NOTHING])

    @classmethod
    def union(cls, parts: Iterable[Spans]) -> Spans:
        """The numbers of all parts."""
        parts = list(parts)
        if len(parts) < 2:
            return parts[0] if parts else NOTHING
        first, last = np.concatenate([part.first for part in parts]), np.concatenate([part.last for part in parts])
        order = np.argsort(first, kind="stable")
        first, last = first[order], np.maximum.accumulate(last[order])
        # Unsigned: the difference means something where the first comparison holds.
        apart = (first[1:] > last[:-1]) & (first[1:] - last[:-1] > 1)
        return cls(first[np.append(True, apart)[: len(first)]], last[np.append(apart, True)[: len(last)]])

    def __bool__(self) -> bool:
        """Whether there is any number."""
        return bool(len(self.first))

    @property
    def count(self) -> int:
        """How many numbers there are."""
        return int((self.last - self.first).sum(dtype=np.uint64)) + len(self.first)

    @property
    def highest(self) -> int:
        """The highest number, 0 if there is none."""
        return int(self.last[-1]) if len(self.last) else 0

    def contain(self, numbers: Numbers) -> NDArray[np.bool_]:
        """For each of some numbers, whether it is one of these."""
        at = np.searchsorted(self.first, numbers, side="right")
        inside = at > 0
        inside[inside] = numbers[inside] <= self.last[at[inside] - 1]
        return inside

    def __or__(self, other: Spans) -> Spans:
        """The numbers that are in one of the two."""
        return Spans.union([self, other])

    def __and__(self, other: Spans) -> Spans:
        """The numbers that are in both."""
        start = np.searchsorted(other.last, self.first)
        hits = np.maximum(np.searchsorted(other.first, self.last, side="right") - start, 0)
        mine = np.repeat(np.arange(len(self.first)), hits)
        theirs = np.repeat(start - np.cumsum(hits) + hits, hits) + np.arange(len(mine))
        return Spans(np.maximum(self.first[mine], other.first[theirs]), np.minimum(self.last[mine], other.last[theirs]))

    def __sub__(self, other: Spans) -> Spans:
        """The numbers that the other one has not."""
        return self & other._rest() if self and other else self

    def _rest(self) -> Spans:
        """All other numbers."""
        first, last = np.append(np.uint64(0), self.last + _ONE), np.append(self.first - _ONE, _HIGHEST)
        inner = np.full(len(self.first) - 1, True)
        there = np.concatenate([[self.first[0] > 0], inner, [self.last[-1] < _HIGHEST]])
        return Spans(first[there], last[there])

    def pairs(self, most: int | None = None) -> list[Span]:
        """The ranges in order, at most ``most`` of them."""
        return [
            Span(first, last) for first, last in zip(self.first[:most].tolist(), self.last[:most].tolist(), strict=True)
        ]


NOTHING = Spans(np.empty(0, np.uint64), np.empty(0, np.uint64))


class Bitmap:
    """Numbers as they come, in any order and perhaps several times, at one bit each.

    The bits stand in chunks of 65,536 numbers (8 KiB). A chunk is made for the first number that falls into it, so what
    this costs follows how far apart the numbers lie.
    """

    def __init__(self) -> None:
        self._chunks: dict[int, NDArray[np.uint8]] = {}

    def add(self, numbers: Numbers, most: int) -> int:
        """Adds numbers, at least one, unless that takes more than ``most`` new chunks; returns how many it takes."""
        which, starts = _chunks_of(numbers)
        if len(starts) > max(65, len(numbers) // 1000):  # in no order: one chunk after another then
            numbers = np.sort(numbers)
            which, starts = _chunks_of(numbers)
        new = len(set(which[starts].tolist()) - self._chunks.keys())
        if new > most:
            return new
        for start, end in zip(starts, [*starts[1:], len(numbers)], strict=True):
            flags = np.zeros(_CHUNK, np.bool_)
            flags[numbers[start:end] & np.uint64(_CHUNK - 1)] = True
            bits = np.packbits(flags)
            chunk = self._chunks.get(int(which[start]))
            if chunk is None:
                self._chunks[int(which[start])] = bits
            else:
                chunk |= bits
        return new

    def spans(self) -> Spans:
        """The numbers that came."""
        parts: list[Spans] = []
        for number in sorted(self._chunks):
            flags = np.unpackbits(self._chunks[number]).astype(np.int8)
            edges = np.diff(flags, prepend=np.int8(0), append=np.int8(0))
            base = np.uint64(number << _CHUNK_BITS)
            first = np.flatnonzero(edges == 1).astype(np.uint64) + base
            last = np.flatnonzero(edges == -1).astype(np.uint64) - _ONE + base
            parts.append(Spans(first, last))
        return Spans.union(parts)


def _chunks_of(numbers: Numbers) -> tuple[NDArray[np.int64], list[int]]:
    """The chunk of each number, and where a stretch of numbers of one chunk begins."""
    which = (numbers >> np.uint64(_CHUNK_BITS)).astype(np.int64)
    return which, [0, *(np.flatnonzero(which[1:] != which[:-1]) + 1).tolist()]
