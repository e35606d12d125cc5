"""The accounts: what the clients say they produced and dropped, and what has expired. Small tables without days.

Each is one Parquet file, replaced as a whole, that never loses a row: what is written is the union of what the archive
has and what the store has. So a store that was lost takes no account with it.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from skywave.server.store import Store

from .archive import Archive
from .datafile import DamagedFile
from .source import Shard
from .workspace import HERE, Step, Workspace

FOLDER = "accounts"
Row = tuple[Any, ...]


@dataclass(frozen=True)
class AccountTable:
    """``key`` columns name a row; of two rows with one key, the one with the higher ``version`` column stays."""

    name: str
    columns: dict[str, pa.DataType]
    key: int
    version: int | None

    @property
    def schema(self) -> pa.Schema:
        """The columns of the file."""
        return pa.schema(list(self.columns.items()))

    def merged(self, *parts: list[Row]) -> list[Row]:
        """The union, sorted."""
        rows: dict[Row, Row] = {}
        for part in parts:
            for row in part:
                have = rows.get(row[: self.key])
                if have is None or (self.version is not None and row[self.version] > have[self.version]):
                    rows[row[: self.key]] = row
        return [rows[key] for key in sorted(rows)]


_RANGE = {"client_id": pa.uint32(), "stream": pa.uint64(), "first_seq": pa.uint64(), "last_seq": pa.uint64()}
ACCOUNTS = (
    AccountTable(
        "streams",
        {
            "client_id": pa.uint32(), "stream": pa.uint64(), "last_seq": pa.uint64(), "first_pending": pa.uint64(),
            "oldest_at": pa.int64(), "reported_at": pa.int64(),
        },
        2, 2,
    ),
    AccountTable("dropped", {**_RANGE, "reason": pa.binary(), "reported_at": pa.int64()}, 4, None),
    AccountTable("expired", {**_RANGE, "day": pa.date32()}, 5, None),
)  # fmt: skip


def read_store(store: Store, table: AccountTable) -> list[Row]:
    """A table's rows as the store has them."""
    sql = f"SELECT {', '.join(table.columns)} FROM {store.database}.{table.name} FINAL"

    def read() -> list[Row]:
        rows: list[Row] = []
        for batch in store.stream(sql):
            cast = pa.Table.from_batches([batch]).cast(table.schema)
            rows += zip(*(column.to_pylist() for column in cast.columns), strict=True)
        return rows

    return store.read_whole([table.name], read)


def read_archive(archive: Archive, table: AccountTable) -> list[Row]:
    """A table's rows as the archive has them; raises ``DamagedFile``. The file's name carries its hash."""
    parts = []
    for name in _present(archive, table):
        content = archive.target.read_bytes(f"{FOLDER}/{name}")
        if _name(table, content) != name:
            raise DamagedFile(f"{FOLDER}/{name}: its bytes are not those it was written with")
        columns = pq.read_table(io.BytesIO(content)).cast(table.schema).columns
        parts.append(list(zip(*(column.to_pylist() for column in columns), strict=True)))
    return table.merged(*parts)


def export_accounts(archive: Archive, work: Workspace, shards: list[Shard]) -> int:
    """Brings the archive's accounts up to date; returns how many rows they have."""
    total = 0
    for table in ACCOUNTS:
        rows = table.merged(read_archive(archive, table), *(read_store(shard.store, table) for shard in shards))
        total += len(rows)
        if not rows:
            continue
        content = _encode(table, rows)
        name = _name(table, content)
        present = _present(archive, table)
        if present == [name]:
            continue
        change = work.stage()
        work.target.put(work.staged(f"{change}/{name}"), content)
        steps: list[Step] = [(f"{HERE}/{change}/{name}", f"{FOLDER}/{name}")]
        # The old one goes last: with both there, readers see rows twice but never miss one, and their union is right.
        steps += [(f"{FOLDER}/{old}", f"{HERE}/{change}/old-{old}") for old in present if old != name]
        work.publish(change, steps)
    return total


def restore_accounts(archive: Archive, stores: list[Store], owner: Callable[[int], int]) -> dict[str, int]:
    """Adds what the stores' accounts lack, each client's to its shard; returns rows added, by table.

    A stream comes back without its pending range: unless its client says again that it still holds those readings, what
    neither store nor archive has is missing, and the audit must say so.
    """
    added = {}
    for table in ACCOUNTS:
        archived = read_archive(archive, table)
        added[table.name] = 0
        for number, store in enumerate(stores):
            have = read_store(store, table)
            held = set(have)
            own = [row for row in archived if owner(row[0]) == number]
            rows = [row for row in table.merged(have, own) if row not in held]
            if table.name == "streams":
                rows = [(*row[:3], 0, 0, row[5]) for row in rows]
            store.insert_rows(table.name, tuple(table.columns), rows)
            added[table.name] += len(rows)
    return added


def verify_accounts(archive: Archive) -> list[str]:
    """What is wrong with the accounts' files."""
    problems = []
    for table in ACCOUNTS:
        try:
            read_archive(archive, table)
        except (DamagedFile, pa.ArrowException) as error:
            problems.append(str(error))
    return problems


def _present(archive: Archive, table: AccountTable) -> list[str]:
    """The names of a table's files: one, or two after a crash."""
    return [entry.name for entry in archive.target.entries(FOLDER) if entry.name.startswith(f"{table.name}.")]


def _encode(table: AccountTable, rows: list[Row]) -> bytes:
    columns = list(zip(*rows, strict=True))
    arrays = [pa.array(values, kind) for values, kind in zip(columns, table.columns.values(), strict=True)]
    sink = io.BytesIO()
    content = pa.table(arrays, schema=table.schema)
    pq.write_table(content, sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue()


def _name(table: AccountTable, content: bytes) -> str:
    return f"{table.name}.{hashlib.sha256(content).hexdigest()[:32]}.parquet"
