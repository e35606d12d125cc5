"""Sets of 64-bit numbers, kept as ranges: what they cost follows how many ranges there are, not how long they are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.uint64]
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

    @property
    def count(self) -> int:
        """How many numbers there are."""
        return int((self.last - self.first).sum(dtype=np.uint64)) + len(self.first)

    @property
    def highest(self) -> int:
        """The highest number, 0 if there is none."""
        return int(self.last[-1]) if len(self.last) else 0

    def __and__(self, other: Spans) -> Spans:
        """The numbers that are in both."""
        start = np.searchsorted(other.last, self.first)
        hits = np.maximum(np.searchsorted(other.first, self.last, side="right") - start, 0)
        mine = np.repeat(np.arange(len(self.first)), hits)
        theirs = np.repeat(start - np.cumsum(hits) + hits, hits) + np.arange(len(mine))
        return Spans(np.maximum(self.first[mine], other.first[theirs]), np.minimum(self.last[mine], other.last[theirs]))

    def __sub__(self, other: Spans) -> Spans:
        """The numbers that the other one has not."""
        return self & other._rest() if len(self.first) and len(other.first) else self

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
