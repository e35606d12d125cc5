"""The client's and the server's hot path as Skywave has them in Python; see run.py for what they take and give.

``product.py client FRAMES BATCHES`` and ``product.py server BATCHES``, with the product's own functions.
"""

from __future__ import annotations

import json
import math
import struct
import sys
from array import array
from datetime import date
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from clickhouse_driver.bufferedwriter import BufferedSocketWriter
from clickhouse_driver.columns.service import write_column

from skywave.formats.batch import Name, decode, encode
from skywave.formats.frames import FrameParser
from skywave.server.admission import Admitted, build_block

SIZE, BLOCK_ROWS, CHUNK = 500, 400_000, 64 << 10
CLIENT, STREAM, BEGIN = 1, 77, 1_700_000_000_000_000


def client(frames: Path, batches: Path) -> tuple[int, float, int]:
    parser, written, seq, sums = FrameParser(), 0, 0, []
    created, values = array("q"), array("d")
    with frames.open("rb") as source, batches.open("wb") as sink:

        def flush(count: int) -> None:
            nonlocal written
            name = Name(CLIENT, STREAM, seq - len(values) + 1)
            payload = encode(name, ["temperature"], array("h", bytes(2 * count)), created[:count], values[:count])
            sink.write(struct.pack("<I", len(payload)) + payload)
            written += len(payload)
            del created[:count], values[:count]

        while data := source.read(CHUNK):
            found = parser.feed(data)
            sums.append(math.fsum(found))
            created.extend(range(BEGIN + (seq + 1) * 1000, BEGIN + (seq + len(found) + 1) * 1000, 1000))
            values.extend(found)
            seq += len(found)
            while len(values) >= SIZE:
                flush(SIZE)
        if values:
            flush(len(values))
    return seq, math.fsum(sums), written


class Counter:
    """A socket that counts and forgets."""

    total = 0

    def sendall(self, data: bytes) -> None:
        self.total += len(data)


def server(batches: Path) -> tuple[int, float, int]:
    data, at, seq, sums, counter = batches.read_bytes(), 0, 0, [], Counter()
    day, items, rows = date(2024, 10, 4), [], 0

    def native() -> None:
        block = build_block(day, items)
        words = np.empty(len(block.keys), dtype=object)
        words[:] = block.keys
        columns = (
            ("UInt32", block.client_id), ("UInt64", block.stream), ("UInt64", block.seq), ("Int64", block.created_at),
            ("String", words[block.codes]), ("Float64", block.data_value), ("Int64", block.received_at),
            ("Date", np.full(len(block), np.datetime64(day))),
        )  # fmt: skip
        context = SimpleNamespace(
            client_settings={"use_numpy": True, "strings_as_bytes": True, "strings_encoding": "utf-8"}
        )
        sink = BufferedSocketWriter(counter, 1 << 20)
        for kind, column in columns:
            write_column(context, kind, kind, column, sink)
        sink.flush()
        items.clear()

    while at < len(data):
        (length,) = struct.unpack_from("<I", data, at)
        payload = data[at + 4 : at + 4 + length]
        at += 4 + length
        name = Name(CLIENT, STREAM, seq + 1)
        found = decode(payload, name, SIZE)
        values = found.values.to_numpy()
        items.append(
            Admitted(
                name,
                day,
                None,
                found.keys,
                found.codes.to_numpy(),
                found.created_at.to_numpy(),
                values,
                None,
                False,
                True,
                0.0,
                BEGIN,
                [],
            )
        )
        sums.append(float(values.sum()))
        seq += len(values)
        rows += len(values)
        if rows >= BLOCK_ROWS:
            native()
            rows = 0
    if items:
        native()
    return seq, math.fsum(sums), counter.total


if __name__ == "__main__":
    paths = [Path(word) for word in sys.argv[2:]]
    readings, total, size = client(*paths) if sys.argv[1] == "client" else server(*paths)
    print(json.dumps({"readings": readings, "sum": round(total, 2), "bytes": size}))
