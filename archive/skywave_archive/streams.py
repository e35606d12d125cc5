"""The numbers of a day's streams: collected from rows, looked up for rows, put together, compared.

Rows come sorted by (client_id, data_key, …), so the numbers of one stream are strewn over its keys and only the end of
the client's rows completes them. Until then a stream is a bitmap, afterwards ranges, of which a client has a bounded number.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from skywave.formats.spans import NOTHING, Bitmap, Spans

MAX_CHUNKS = 1 << 14
"""Of the bitmaps of one client at a time: 128 MiB, or a thousand million numbers that follow one another."""
MAX_RANGES = 10_000
"""Of one client in one day. Clients of ours have one, and a few more for each restart and each gap."""


class StreamName(NamedTuple):
    """A stream of one client."""

    client_id: int
    stream: int


Streams = Mapping[StreamName, Spans]
"""The numbers that there are of each stream."""


def runs(batch: pa.RecordBatch) -> Iterator[tuple[StreamName, slice]]:
    """The stretches of a batch's rows that have one client and stream; columns client_id, stream and seq."""
    client, stream = batch.column("client_id").to_numpy(), batch.column("stream").to_numpy()
    if not len(client):
        return
    changes = np.flatnonzero((client[1:] != client[:-1]) | (stream[1:] != stream[:-1])) + 1
    for start, end in zip([0, *changes.tolist()], [*changes.tolist(), len(client)], strict=True):
        yield StreamName(int(client[start]), int(stream[start])), slice(start, end)


def in_streams(batch: pa.RecordBatch, streams: Streams) -> NDArray[np.bool_]:
    """For each row of a batch, whether ``streams`` have its number."""
    found = np.zeros(batch.num_rows, np.bool_)
    seq = batch.column("seq").to_numpy()
    for name, rows in runs(batch):
        if name in streams:
            found[rows] = streams[name].contain(seq[rows])
    return found


def united(one: Streams, other: Streams) -> dict[StreamName, Spans]:
    """The numbers of both, stream by stream."""
    result = dict(one)
    for name, numbers in other.items():
        result[name] = result[name] | numbers if name in result else numbers
    return result


def cover(streams: Streams, wanted: Streams) -> bool:
    """True if ``streams`` have every number of ``wanted``."""
    return all((numbers & streams.get(name, NOTHING)).count == numbers.count for name, numbers in wanted.items())


def crowded(streams: Streams) -> set[int]:
    """The clients that have more ranges than are kept of one."""
    counts: Counter[int] = Counter()
    for name, numbers in streams.items():
        counts[name.client_id] += len(numbers.first)
    return {client for client, count in counts.items() if count > MAX_RANGES}


class Collector:
    """Collects the numbers of batches whose clients come one after another. Stream 0 is left out.

    ``rows`` counts each client's rows with numbers. Unless it is ``unbounded``, ``scattered`` names the clients whose numbers
    make more than ``MAX_RANGES``, or lie too far apart to be collected; they have no ranges then. ``chunks`` of 8 KiB are in
    memory.
    """

    def __init__(self, unbounded: bool = False) -> None:
        self.rows: Counter[int] = Counter()
        self.scattered: set[int] = set()
        self.chunks = 0
        self._unbounded = unbounded
        self._most_chunks = 1 << 63 if unbounded else MAX_CHUNKS
        self._done: dict[StreamName, Spans] = {}
        self._open: dict[StreamName, Bitmap] = {}
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
                    self.chunks += self._open.setdefault(name, Bitmap()).add(seq[rows], self._most_chunks - self.chunks)
                    if self.chunks > self._most_chunks:
                        self.scattered.add(name.client_id)
                        self._forget_bitmaps()

    def finish(self) -> dict[StreamName, Spans]:
        """The numbers of every stream seen."""
        self._complete()
        if not self._unbounded:
            self.scattered |= crowded(self._done)
        return {name: numbers for name, numbers in self._done.items() if name.client_id not in self.scattered}

    def _complete(self) -> None:
        for name, bitmap in self._open.items():
            numbers = bitmap.spans()
            # A client's rows may come in several stretches when its day was cut into files.
            self._done[name] = self._done[name] | numbers if name in self._done else numbers
            if not self._unbounded and len(numbers.first) > MAX_RANGES:
                self.scattered.add(name.client_id)
                del self._done[name]
        self._forget_bitmaps()

    def _forget_bitmaps(self) -> None:
        self._open.clear()
        self.chunks = 0
