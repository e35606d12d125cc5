"""One shard of the store as the archive sees it: which days it has, their rows, count and digest.

Duplicates are hidden with FINAL inside the partition. A day's *marker* changes with every insert, so that a day with the
marker of the last look need not be looked at. It names when the table was made or altered, the highest block number of the
day's parts, and, as a store that was put back to a snapshot gives the same numbers to other rows, what tells those apart: a
digest of the parts, or of a replicated table the last transaction of ZooKeeper that allocated a block in that partition.
Merges change the parts, so another marker does not mean other rows.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date

import pyarrow as pa

from skywave import config
from skywave.store.columns import text
from skywave.store.shards import open_shard, shard_names
from skywave.store.store import Store

from .errors import SchemaChanged
from .replication import replication_paths
from .tables import Held, Table, add

log = logging.getLogger(__name__)
Clients = tuple[int, int]
"""First and last client_id of a range."""


class SourceShard:
    """One connection to one shard; for one thread."""

    def __init__(self, name: str, settings: config.Store) -> None:
        self.name = name
        self.settings = settings
        self.store: Store = open_shard(settings, name)

    def close(self) -> None:
        """Ends the connection."""
        self.store.close()

    def another(self) -> SourceShard:
        """A second connection."""
        return SourceShard(self.name, self.settings)

    def version(self) -> str:
        """The database's version."""
        return self.store.version()

    def ddl(self, table: Table) -> str:
        """The statement that made the table."""
        return text(self.store.query(f"SHOW CREATE TABLE {self._table(table)}")[0][0])

    def markers(self, table: Table) -> dict[date, str]:
        """Each day that has rows, with its marker."""
        return self.store.read_whole([table.name], lambda: self._markers(table))

    def _markers(self, table: Table) -> dict[date, str]:
        query, database = self.store.query, self.store.database
        made = query(
            "SELECT toUInt64(toUnixTimestamp(metadata_modification_time)) FROM system.tables"
            f" WHERE database = '{database}' AND name = '{table.name}'"
        )
        if not made:
            raise SchemaChanged(
                f"{self._table(table)} is missing on shard {self.name}", "Start its server once: it makes it."
            )
        allocated: dict[str, int] = {}
        if paths := replication_paths(self.store, table):  # the same on each replica, unlike times and sets of parts
            zookeeper = f"FROM system.zookeeper WHERE path = '{paths[0]}"
            made = query(f"SELECT toUInt64(mzxid) {zookeeper}' AND name = 'metadata'")
            blocks = query(f"SELECT name, toUInt64(pzxid) {zookeeper}/block_numbers'")
            allocated = {text(partition): int(transaction) for partition, transaction in blocks}
        # 18.16 has no hash of a part's files; a part made anew has at least another time.
        content = "hash_of_all_files" if self.store.modern else "toUInt64(toUnixTimestamp(modification_time))"
        rows = query(
            "SELECT partition, any(partition_id), max(max_block_number),"
            f" sum(cityHash64(name, rows, bytes_on_disk, {content})) FROM system.parts"
            f" WHERE active AND database = '{database}' AND table = '{table.name}' AND rows > 0"
            " GROUP BY partition ORDER BY partition"
        )
        found = {}
        for day, name, block, parts in rows:
            try:
                key = date.fromisoformat(text(day))
            except ValueError:  # 18.16 calls the day number 0 so, which no server of ours writes
                log.warning("%s: the partition %s is no day, and is left out", self._table(table), text(day))
                continue
            found[key] = f"{int(made[0][0])}:{int(block)}:{allocated.get(text(name), int(parts))}"
        return found

    def marker(self, table: Table, day: date) -> str:
        """The marker of one day; empty if it has no rows."""
        return self.markers(table).get(day, "")

    def client_ranges(self, table: Table, day: date, most: int, least_rows: int) -> list[Clients | None]:
        """Ranges of clients that have about as many rows each: at most ``most``, of at least ``least_rows``. They cover all
        clients; [None] for one range."""
        rows = self.store.query(
            f"SELECT client_id, count() FROM {self._table(table)} WHERE {_on(day)} GROUP BY client_id ORDER BY client_id"
        )
        total = sum(count for _, count in rows)
        parts = max(1, min(most, int(total) // least_rows, len(rows)))
        ends: list[int] = []
        so_far = 0
        for client, count in rows:
            so_far += int(count)
            if so_far * parts >= total * (len(ends) + 1) and len(ends) < parts - 1:
                ends.append(int(client))
        starts = [0, *(end + 1 for end in ends)]
        return list(zip(starts, [*ends, (1 << 32) - 1], strict=True)) if ends else [None]

    def count_digest(self, table: Table, day: date, clients: Clients | None = None) -> Held:
        """Rows and digest of a day."""
        sql = f"SELECT {table.digest_sql} FROM {self._table(table)} FINAL WHERE {_on(day, clients)}"
        rows, total = self.store.read_whole([table.name], lambda: self.store.query(sql))[0]
        return int(rows), int(total)

    def rows(self, table: Table, day: date, clients: Clients | None = None) -> Iterator[pa.RecordBatch]:
        """A day's rows, sorted as the table, as batches of the table's columns."""
        self.check_columns(table)
        columns = ", ".join(table.columns)
        # 18.16's FINAL is one merged stream in the table's order; current engines split it unless told to sort.
        modern = self.store.modern
        order = f" ORDER BY {', '.join(table.identity)}" if modern else ""
        settings = f"max_block_size = {table.block_rows}"
        if modern:
            settings += ", do_not_merge_across_partitions_select_final = 1, optimize_read_in_order = 1"
        sql = f"SELECT {columns} FROM {self._table(table)} FINAL WHERE {_on(day, clients)}{order} SETTINGS {settings}"
        for batch in self.store.read_whole([table.name], lambda: self.store.stream(sql)):
            yield batch.cast(table.schema)

    def replica_lag(self) -> int | None:
        """Seconds by which the most delayed table of this replica is behind; None if nothing is replicated."""
        found = self.store.replication()
        return None if not found.tables else 1 << 31 if found.read_only else found.delay_s

    def check_columns(self, table: Table) -> None:
        """Raises ``SchemaChanged`` if the table's columns are not those that are archived."""
        found = self.store.query(
            "SELECT name, type FROM system.columns"
            f" WHERE database = '{self.store.database}' AND table = '{table.name}' AND default_kind != 'ALIAS'"
        )
        have = {text(name): text(kind) for name, kind in found}
        want = {**{name: _SQL_TYPES[str(kind)] for name, kind in table.columns.items()}, "day": "Date"}
        if have != want:
            differ = sorted(f"{name} {kind}" for name, kind in have.items() ^ want.items())
            raise SchemaChanged(
                f"{self._table(table)} on shard {self.name} has other columns than this version archives:"
                f" {', '.join(differ)}",
                "Nothing was exported. Use the Skywave version that made the table, or undo the change.",
            )

    def _table(self, table: Table) -> str:
        return f"{self.store.database}.{table.name}"


_SQL_TYPES = {"uint32": "UInt32", "uint64": "UInt64", "int64": "Int64", "double": "Float64", "binary": "String"}


def columns_of(table: Table) -> list[list[str]]:
    """The columns as a manifest records them."""
    return [[name, _SQL_TYPES[str(kind)]] for name, kind in table.columns.items()]


def _on(day: date, clients: Clients | None = None) -> str:
    some = f" AND client_id >= {clients[0]} AND client_id <= {clients[1]}" if clients else ""
    return f"day = '{day.isoformat()}'{some}"


def held_by(shards: list[SourceShard], table: Table, day: date) -> Held:
    """Rows and digest of a day in all shards together, whatever their shape."""
    found = [shard.count_digest(table, day) for shard in shards]
    return sum(rows for rows, _ in found), add(*(total for _, total in found))


def names_of(settings: config.Store) -> list[str]:
    """The shards' names; the one of a store without shards is called 1."""
    return shard_names(settings) or ["1"]


@contextmanager
def open_source(settings: config.Store) -> Iterator[list[SourceShard]]:
    """All shards; raises ``StoreUnavailable`` if one does not answer: no day is whole without it."""
    shards = [SourceShard(name, settings) for name in names_of(settings)]
    try:
        for shard in shards:
            shard.version()
        yield shards
    finally:
        for shard in shards:
            shard.close()
