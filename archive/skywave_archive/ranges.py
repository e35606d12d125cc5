"""Which numbers of a stream there are: collected from rows in any order, kept as ranges, asked for many at once.

Rows come sorted by (client_id, data_key, …), so the numbers of one stream are strewn over its keys and only the end of
the client's rows completes them. Until then a stream is a bitmap in chunks, one bit a reading.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Numbers = NDArray[np.uint64]
_CHUNK_BITS = 16
_CHUNK = 1 << _CHUNK_BITS
MAX_CHUNKS = 1 << 14
"""Of one client at a time: 128 MiB, or a thousand million numbers that follow one another."""
MAX_RANGES = 10_000
"""Of one client in one day. Clients of ours have one, and a few more for each restart and each gap."""


class StreamName(NamedTuple):
    """A stream of one client."""

    client_id: int
    stream: int


class Ranges(NamedTuple):
    """Ascending, disjoint, inclusive ranges; two arrays of equal length."""

    first: Numbers
    last: Numbers

    @property
    def numbers(self) -> int:
        """How many numbers there are."""
        return int((self.last - self.first).sum()) + len(self.first)

    def contain(self, numbers: Numbers) -> NDArray[np.bool_]:
        """For each number, whether it is in a range."""
        at = np.searchsorted(self.first, numbers, side="right")
        inside = at > 0
        inside[inside] = numbers[inside] <= self.last[at[inside] - 1]
        return inside

    def union(self, other: Ranges) -> Ranges:
        """The numbers of both."""
        first, last = np.concatenate([self.first, other.first]), np.concatenate([self.last, other.last])
        if not len(first):
            return self
        order = np.argsort(first, kind="stable")
        first, last = first[order], np.maximum.accumulate(last[order])
        # Unsigned: the difference means something where the first comparison holds.
        apart = (first[1:] > last[:-1]) & (first[1:] - last[:-1] > 1)
        starts = np.flatnonzero(np.append(True, apart))
        return Ranges(first[starts], last[np.append(starts[1:] - 1, len(last) - 1)])

    @classmethod
    def of(cls, pairs: list[list[int]]) -> Ranges:
        """From [first, last] pairs that are in order."""
        columns = np.array(pairs, np.uint64).reshape(-1, 2)
        return cls(columns[:, 0].copy(), columns[:, 1].copy())

    def pairs(self) -> list[list[int]]:
        """As [first, last] pairs."""
        return np.stack(self, axis=1).tolist() if len(self.first) else []


def runs(batch: pa.RecordBatch) -> Iterator[tuple[StreamName, slice]]:
    """The stretches of a batch's rows that have one client and stream; columns client_id, stream and seq."""
    client, stream = batch.column("client_id").to_numpy(), batch.column("stream").to_numpy()
    if not len(client):
        return
    changes = np.flatnonzero((client[1:] != client[:-1]) | (stream[1:] != stream[:-1])) + 1
    for start, end in zip([0, *changes.tolist()], [*changes.tolist(), len(client)], strict=True):
        yield StreamName(int(client[start]), int(stream[start])), slice(start, end)


def in_streams(batch: pa.RecordBatch, streams: Mapping[StreamName, Ranges]) -> NDArray[np.bool_]:
    """For each row of a batch, whether its number is in a range of its stream."""
    found = np.zeros(batch.num_rows, np.bool_)
    seq = batch.column("seq").to_numpy()
    for name, rows in runs(batch):
        if name in streams:
            found[rows] = streams[name].contain(seq[rows])
    return found


def crowded(streams: Mapping[StreamName, Ranges]) -> set[int]:
    """The clients that have more ranges than are kept of one."""
    counts: Counter[int] = Counter()
    for name, ranges in streams.items():
        counts[name.client_id] += len(ranges.first)
    return {client for client, count in counts.items() if count > MAX_RANGES}


class Collector:
    """Takes batches whose clients come one after another; ``finish`` gives the ranges. Stream 0 is left out.

    ``rows`` counts each client's rows with numbers. Unless it is ``unbounded``, ``scattered`` names the clients whose numbers
    make more than ``MAX_RANGES``, or lie too far apart to be collected; they have no ranges then.
    """

    def __init__(self, unbounded: bool = False) -> None:
        self.rows: Counter[int] = Counter()
        self.scattered: set[int] = set()
        self._most_chunks = 1 << 63 if unbounded else MAX_CHUNKS
        self._unbounded = unbounded
        self._done: dict[StreamName, Ranges] = {}
        self._open: dict[StreamName, dict[int, NDArray[np.uint8]]] = {}
        self._chunks = 0
        self._client = -1

    def add(self, batch: pa.RecordBatch) -> None:
        """Adds the rows of a batch."""
        seq = batch.column("seq").to_numpy()
        for name, rows in runs(batch):
            if name.client_id != self._client:
                self._complete()
                self._client = name.client_id
            if name.stream:
                self.rows[name.client_id] += rows.stop - rows.start
                if name.client_id not in self.scattered:
                    self._mark(self._open.setdefault(name, {}), seq[rows])

    def finish(self) -> dict[StreamName, Ranges]:
        """The ranges of every stream seen."""
        self._complete()
        if not self._unbounded:
            self.scattered |= crowded(self._done)
        return {name: ranges for name, ranges in self._done.items() if name.client_id not in self.scattered}

    def _mark(self, chunks: dict[int, NDArray[np.uint8]], numbers: Numbers) -> None:
        which = (numbers >> np.uint64(_CHUNK_BITS)).astype(np.int64)
        changes = (np.flatnonzero(which[1:] != which[:-1]) + 1).tolist()
        if len(changes) > 64 and len(changes) > len(numbers) // 1000:  # in no order: one chunk after another then
            numbers = np.sort(numbers)
            which = (numbers >> np.uint64(_CHUNK_BITS)).astype(np.int64)
            changes = (np.flatnonzero(which[1:] != which[:-1]) + 1).tolist()
        starts = [0, *changes]
        self._chunks += len(set(which[starts].tolist()) - chunks.keys())
        if self._chunks > self._most_chunks:
            self.scattered.add(self._client)
            self._open.clear()
            return
        for start, end in zip(starts, [*changes, len(numbers)], strict=True):
            flags = np.zeros(_CHUNK, np.bool_)
            flags[numbers[start:end] & np.uint64(_CHUNK - 1)] = True
            bits = np.packbits(flags)
            chunk = chunks.get(int(which[start]))
            if chunk is None:
                chunks[int(which[start])] = bits
            else:
                chunk |= bits

    def _complete(self) -> None:
        for name, chunks in self._open.items():
            parts: list[Ranges] = []
            for number in sorted(chunks):
                flags = np.unpackbits(chunks[number]).astype(np.int8)
                edges = np.diff(flags, prepend=np.int8(0), append=np.int8(0))
                base = np.uint64(number << _CHUNK_BITS)
                first = np.flatnonzero(edges == 1).astype(np.uint64) + base
                last = np.flatnonzero(edges == -1).astype(np.uint64) - np.uint64(1) + base
                if parts and int(parts[-1].last[-1]) + 1 == int(first[0]):  # goes on over the chunk's border
                    parts[-1] = Ranges(parts[-1].first, np.append(parts[-1].last[:-1], last[0]))
                    first, last = first[1:], last[1:]
                if len(first):
                    parts.append(Ranges(first, last))
            ranges = Ranges(np.concatenate([p.first for p in parts]), np.concatenate([p.last for p in parts]))
            # A client's rows may come in several stretches when its day was cut into files.
            self._done[name] = self._done[name].union(ranges) if name in self._done else ranges
            if not self._unbounded and len(ranges.first) > MAX_RANGES:
                self.scattered.add(name.client_id)
                del self._done[name]
        self._open.clear()
        self._chunks = 0


def cover(streams: Mapping[StreamName, Ranges], wanted: Mapping[StreamName, Ranges]) -> bool:
    """True if ``streams`` have every number of ``wanted``."""
    for name, ranges in wanted.items():
        have = streams.get(name)
        if have is None or have.union(ranges).numbers != have.numbers:
            return False
    return True


def united(one: Mapping[StreamName, Ranges], other: Mapping[StreamName, Ranges]) -> dict[StreamName, Ranges]:
    """The ranges of both, stream by stream."""
    result = dict(one)
    for name, ranges in other.items():
        result[name] = result[name].union(ranges) if name in result else ranges
    return result
