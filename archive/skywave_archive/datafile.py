"""Parquet files of the archive: written as a stream, read as a stream, hashed on the way.

zstd, page checksums, row groups of half a million rows in the order of the table. ``seq`` and the times are delta encoded (a
tenth of their plain size). For ``data_value`` the first rows decide: a dictionary if values repeat, byte stream split
otherwise; see docs/decisions.
"""

from __future__ import annotations

import hashlib
import io
import queue
import threading
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from .errors import DamagedFile, NotFound, TargetUnavailable
from .manifest import File
from .tables import Hashes, Table, add, digest, row_hashes
from .targets.target import Target

GROUP_ROWS = 1 << 19
_SAMPLE_ROWS = 1 << 16
_CHUNK = 1 << 20
_QUEUED_CHUNKS = 8
_TAIL = 1 << 16
"""Arrow reads as many bytes at a file's end at once, whatever the footer's length."""
_DELTA = ("seq", "created_at", "received_at", "first_seq", "count")


class Upload:
    """A file-like object that sends what is written to it to a new file of the target, from a thread of its own.

    ``close`` returns when the target has everything; ``abort`` makes the transfer fail.
    """

    def __init__(self, target: Target, path: str) -> None:
        self._target, self._path = target, path
        self._queue: queue.Queue[bytes | BaseException | None] = queue.Queue(_QUEUED_CHUNKS)
        self._buffer = bytearray()
        self._failed: BaseException | None = None
        self._hash = hashlib.sha256()
        self.bytes = 0
        self.closed = False
        self._thread = threading.Thread(target=self._send, name="upload", daemon=True)
        self._thread.start()

    @property
    def sha256(self) -> str:
        """Of everything written."""
        return self._hash.hexdigest()

    def write(self, data: Any) -> int:
        """Takes bytes; raises what the transfer failed with."""
        view = memoryview(data)
        self._buffer += view
        self.bytes += len(view)
        if len(self._buffer) >= _CHUNK:
            self._hand_over()
        return len(view)

    def tell(self) -> int:
        """Bytes written."""
        return self.bytes

    def flush(self) -> None:
        """Nothing: the transfer keeps up by itself."""

    def close(self) -> None:
        """Ends the file; raises what the transfer failed with."""
        if self.closed:
            return
        self.closed = True
        if self._buffer:
            self._hand_over()
        self._put(None)
        self._thread.join()
        self._check()

    def abort(self, error: BaseException) -> None:
        """Makes the transfer fail; the file stays short or missing."""
        if not self.closed:
            self.closed = True
            if self._failed is None:
                self._put(error)
            self._thread.join()

    def _hand_over(self) -> None:
        chunk = bytes(self._buffer)
        self._buffer.clear()
        self._hash.update(chunk)
        self._put(chunk)

    def _put(self, item: bytes | BaseException | None) -> None:
        while True:
            if self._failed is not None:
                if isinstance(item, bytes):
                    raise self._failed
                return
            try:
                self._queue.put(item, timeout=0.2)
                return
            except queue.Full:
                continue

    def _check(self) -> None:
        if self._failed is not None:
            raise self._failed

    def _send(self) -> None:
        try:
            self._target.create(self._path, self._chunks())
        except BaseException as error:
            self._failed = error

    def _chunks(self) -> Iterator[bytes]:
        while (item := self._queue.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item


class Writer:
    """Writes rows of a table to one new data file. Batches must hold the table's columns in the table's order."""

    def __init__(self, target: Target, path: str, table: Table, shard: str) -> None:
        self.table, self.shard, self.path = table, shard, path
        self.rows = 0
        self._digest = 0
        self._clients: list[int] = []
        self._times: list[int] = []
        self._upload = Upload(target, path)
        self._parquet: pq.ParquetWriter | None = None
        self._target = target

    @property
    def bytes(self) -> int:
        """Bytes written so far."""
        return self._upload.bytes

    def write(self, group: pa.RecordBatch) -> None:
        """Writes one row group."""
        self._digest = add(self._digest, digest(row_hashes(group)))
        self.rows += group.num_rows
        client, times = group.column("client_id").to_numpy(), group.column(self.table.time_column).to_numpy()
        self._clients += [int(client.min()), int(client.max())]
        self._times += [int(times.min()), int(times.max())]
        if self._parquet is None:
            self._parquet = pq.ParquetWriter(self._upload, self.table.schema, **_encodings(self.table, group))
        self._parquet.write_batch(group, row_group_size=group.num_rows)

    def finish(self) -> File:
        """Ends the file and reads it back: what the manifest says of it is what the target returns."""
        if self._parquet is not None:
            self._parquet.close()
        self._upload.close()
        name = self.path.rpartition("/")[2]
        file = File(
            name,
            self.shard,
            self.rows,
            self._digest,
            self._upload.bytes,
            self._upload.sha256,
            min(self._clients),
            max(self._clients),
            min(self._times),
            max(self._times),
        )
        check_bytes(self._target, self.path, file)
        return file

    def abort(self, error: BaseException) -> None:
        """Gives the file up."""
        self._upload.abort(error)


def _encodings(table: Table, group: pa.RecordBatch) -> dict[str, Any]:
    columns = table.schema.names
    delta = {name: "DELTA_BINARY_PACKED" for name in columns if name in _DELTA}
    choice: dict[str, Any] = {
        "compression": "zstd", "compression_level": 1, "write_page_checksum": True,
        "column_encoding": delta, "use_dictionary": [name for name in columns if name not in delta],
    }  # fmt: skip
    if "data_value" not in columns:
        return choice
    split = {
        **choice,
        "column_encoding": {**delta, "data_value": "BYTE_STREAM_SPLIT"},
        "use_dictionary": [name for name in choice["use_dictionary"] if name != "data_value"],
    }
    sample = pa.Table.from_batches([group.slice(0, _SAMPLE_ROWS)]).select(["data_value"])
    sizes = []
    for dictionary in (True, False):
        encoding = {} if dictionary else {"column_encoding": {"data_value": "BYTE_STREAM_SPLIT"}}
        sink = io.BytesIO()
        pq.write_table(sample, sink, compression="zstd", compression_level=1, use_dictionary=dictionary, **encoding)
        sizes.append(sink.tell())
    return choice if sizes[0] <= sizes[1] else split


def check_bytes(target: Target, path: str, file: File) -> None:
    """Reads a file and compares length and SHA-256; raises ``DamagedFile``."""
    found = hashlib.sha256()
    length = 0
    try:
        for chunk in target.read(path):
            found.update(chunk)
            length += len(chunk)
    except NotFound as error:
        raise DamagedFile(f"{path}: missing") from error
    if length != file.bytes:
        raise DamagedFile(f"{path}: has {length} bytes, not {file.bytes}")
    if found.hexdigest() != file.sha256:
        raise DamagedFile(f"{path}: its SHA-256 is not the manifest's")


class _Window(io.RawIOBase):
    """A file of which only some stretches are in memory; reading anywhere else is an error."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.stretches: dict[int, bytes] = {}
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + (0, self._at, self.size)[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, length: int = -1) -> bytes:
        length = min(self.size - self._at if length is None or length < 0 else length, self.size - self._at)
        for start, content in self.stretches.items():
            if start <= self._at and self._at + length <= start + len(content):
                found = content[self._at - start : self._at - start + length]
                self._at += length
                return found
        raise OSError(f"bytes {self._at} to {self._at + length} are not in memory")


def read_rows(target: Target, path: str, table: Table, file: File) -> Iterator[tuple[pa.RecordBatch, Hashes]]:
    """A data file's rows and their hashes, one row group at a time and with one in memory.

    Its bytes are read twice, since Arrow can be crashed by damaged ones: it sees only a file whose SHA-256 is right.
    Rows and digest are checked as well; raises ``DamagedFile``, perhaps only at the end, so take nothing for good before.
    """
    try:
        check_bytes(target, path, file)
        parquet, window = _open(target, path, file.bytes)
        metadata = parquet.metadata
        ends = [_group_end(metadata.row_group(number)) for number in range(metadata.num_row_groups)]
        found, start, position, rows, total = hashlib.sha256(), 0, 0, 0, 0
        pieces: list[bytes] = []
        group = 0
        for chunk in target.read(path):
            found.update(chunk)
            pieces.append(chunk)
            position += len(chunk)
            while group < len(ends) and ends[group] <= position:
                content = b"".join(pieces)
                window.stretches[start] = content
                read = parquet.read_row_group(group, use_threads=False)
                del window.stretches[start]
                pieces, start = [content[ends[group] - start :]], ends[group]
                del content
                group += 1
                for batch in read.select(table.schema.names).cast(table.schema).combine_chunks().to_batches():
                    rows += batch.num_rows
                    hashes = row_hashes(batch)
                    total = add(total, digest(hashes))
                    yield batch, hashes
            if group == len(ends):
                pieces.clear()
        if position != file.bytes or found.hexdigest() != file.sha256:
            raise DamagedFile(f"{path}: its bytes are not those of the manifest")
        if (rows, total) != (file.rows, file.digest):
            raise DamagedFile(f"{path}: its rows are not those of the manifest")
    except NotFound as error:
        raise DamagedFile(f"{path}: missing") from error
    except TargetUnavailable as error:
        raise DamagedFile(f"{path}: {target.unreadable(error)}") from error
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise DamagedFile(f"{path}: cannot be decoded: {' '.join(str(error).split())[:200]}") from error


def count_rows(target: Target, path: str, size: int) -> int:
    """How many rows a file of ``size`` bytes says it has, without its manifest; 0 if it cannot say."""
    try:
        return int(_open(target, path, size)[0].metadata.num_rows)
    except (DamagedFile, NotFound, pa.ArrowException, OSError, ValueError):
        return 0


def _open(target: Target, path: str, size: int) -> tuple[pq.ParquetFile, _Window]:
    if size < 12:
        raise DamagedFile(f"{path}: too short")
    window = _Window(size)
    tail = b"".join(target.read(path, size - 8, 8))
    footer = int.from_bytes(tail[:4], "little") + 8
    if tail[4:] != b"PAR1" or footer > size:
        raise DamagedFile(f"{path}: no Parquet footer at its end")
    start = max(0, size - max(footer, _TAIL))
    window.stretches[start] = b"".join(target.read(path, start, size - start))
    return pq.ParquetFile(window, page_checksum_verification=True, pre_buffer=False), window


def _group_end(group: Any) -> int:
    columns = [group.column(number) for number in range(group.num_columns)]
    starts = [c.dictionary_page_offset or c.data_page_offset for c in columns]
    return max(int(start) + int(c.total_compressed_size) for start, c in zip(starts, columns, strict=True))
