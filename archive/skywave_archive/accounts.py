"""The accounts: what the clients say they produced and dropped, what has expired, and what somebody has put on record. Small
tables without days.

Each is one Parquet file, replaced as a whole, that never loses a row: what is written is the union of what the archive
has and what the store has. So a store that was lost takes no account with it.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from skywave.store.store import Store

from .archive import Archive
from .errors import DamagedAccounts, TargetUnavailable
from .source import SourceShard
from .workspace import HERE, Step, Workspace

FOLDER = "accounts"
Row = tuple[Any, ...]


@dataclass(frozen=True)
class AccountTable:
    """``key`` columns name a row; of two rows with one key, the one with the higher ``version`` column stays. A store that
    no server of this release has started yet lacks ``new`` ones."""

    name: str
    columns: dict[str, pa.DataType]
    key: int
    version: int | None
    new: bool = False

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
    AccountTable(
        "accepted",
        {**_RANGE, "at": pa.uint64(), "what": pa.binary(), "reason": pa.binary(), "name": pa.binary()},
        5, None, new=True,
    ),
)  # fmt: skip


def read_store(store: Store, table: AccountTable) -> list[Row]:
    """A table's rows as the store has them."""
    there = f"SELECT count() FROM system.tables WHERE database = '{store.database}' AND name = '{table.name}'"
    if table.new and not store.query(there)[0][0]:
        return []
    sql = f"SELECT {', '.join(table.columns)} FROM {store.database}.{table.name} FINAL"

    def read() -> list[Row]:
        rows: list[Row] = []
        for batch in store.stream(sql):
            cast = pa.Table.from_batches([batch]).cast(table.schema)
            rows += zip(*(column.to_pylist() for column in cast.columns), strict=True)
        return rows

    return store.read_whole([table.name], read)


def read_archive(archive: Archive, table: AccountTable) -> tuple[list[Row], list[DamagedAccounts]]:
    """A table's rows as the archive has them, and what is wrong with its files. The file's name carries its hash."""
    parts, problems = [], []
    for name in _present(archive, table):
        try:
            content = archive.target.read_bytes(f"{FOLDER}/{name}")
        except TargetUnavailable as error:
            archive.target.unreadable(error)
            problems.append(DamagedAccounts(FOLDER, name))
            continue
        if _name(table, content) != name:
            problems.append(DamagedAccounts(FOLDER, name))
            continue
        columns = pq.read_table(io.BytesIO(content)).cast(table.schema).columns
        parts.append(list(zip(*(column.to_pylist() for column in columns), strict=True)))
    return table.merged(*parts), problems


def export_accounts(archive: Archive, work: Workspace, shards: list[SourceShard]) -> tuple[int, list[DamagedAccounts]]:
    """Brings the archive's accounts up to date; returns how many rows they have, and what is wrong with their files. A
    damaged one stays where it is, unless the store has all that it had."""
    total = 0
    problems: list[DamagedAccounts] = []
    for table in ACCOUNTS:
        archived, damaged = read_archive(archive, table)
        rows = table.merged(archived, *(read_store(shard.store, table) for shard in shards))
        total += len(rows)
        if not rows:
            problems += damaged
            continue
        content = _encode(table, rows)
        name = _name(table, content)
        problems += [problem for problem in damaged if problem.name != name]
        bad = {problem.name for problem in damaged}
        present = [file for file in _present(archive, table) if file not in bad]
        if present == [name]:
            continue
        change = work.stage()
        work.target.put(work.staged(f"{change}/{name}"), content)
        steps: list[Step] = [(f"{FOLDER}/{name}", f"{HERE}/{change}/bad-{name}")] if name in bad else []
        steps.append((f"{HERE}/{change}/{name}", f"{FOLDER}/{name}"))
        # The old one goes last: with both there, readers see rows twice but never miss one, and their union is right.
        steps += [(f"{FOLDER}/{old}", f"{HERE}/{change}/old-{old}") for old in present if old != name]
        work.carry_out(change, steps)
    return total, problems


def restore_accounts(
    archive: Archive, stores: list[Store], owner: Callable[[int], int]
) -> tuple[dict[str, int], list[DamagedAccounts]]:
    """Adds what the stores' accounts lack, each client's to its shard; returns rows added, by table, and what is wrong with
    the archive's files: what can be read is added all the same.

    A stream comes back without its pending range: unless its client says again that it still holds those readings, what
    neither store nor archive has is missing, and the audit must say so.
    """
    added = {}
    problems: list[DamagedAccounts] = []
    for table in ACCOUNTS:
        archived, damaged = read_archive(archive, table)
        problems += damaged
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
    return added, problems


def verify_accounts(archive: Archive) -> list[DamagedAccounts]:
    """What is wrong with the accounts' files."""
    return [problem for table in ACCOUNTS for problem in read_archive(archive, table)[1]]


def _present(archive: Archive, table: AccountTable) -> list[str]:
    """The names of a table's files: one, or two after a crash. Others, like an operator's copy, are left alone."""
    ours = re.compile(rf"{table.name}\.[0-9a-f]{{32}}\.parquet")
    return [entry.name for entry in archive.target.entries(FOLDER) if ours.fullmatch(entry.name)]


def _encode(table: AccountTable, rows: list[Row]) -> bytes:
    columns = list(zip(*rows, strict=True))
    arrays = [pa.array(values, kind) for values, kind in zip(columns, table.columns.values(), strict=True)]
    sink = io.BytesIO()
    content = pa.table(arrays, schema=table.schema)
    pq.write_table(content, sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue()


def _name(table: AccountTable, content: bytes) -> str:
    return f"{table.name}.{hashlib.sha256(content).hexdigest()[:32]}.parquet"
