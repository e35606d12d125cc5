"""A day on its way back into one shard of the target: into tables beside it, compared there, and moved in."""

from __future__ import annotations

import time
from datetime import date
from typing import Any

import numpy as np
import pyarrow as pa

from skywave.errors import StoreUnavailable
from skywave.store.columns import as_column, text
from skywave.store.schema import MODERN_TABLE_SETTINGS
from skywave.store.store import Store

from .errors import NotEmpty, NotTheSame
from .manifest import Manifest
from .replication import BOUND, is_bound_by_quorum
from .tables import TELEMETRY, Hashes, Held, Table, add, digest

MAX_PARTS = 100
"""Of a day that moves into the target; ClickHouse slows INSERTs down from 150 on (18.16)."""
MERGE_S = 1800.0
"""How long the number of a day's parts may stay the same while they are to merge."""


class SideTable:
    """A table beside the target's, for rows of one day that nobody is to see yet. ``rows`` and ``digest`` are those that were
    put there, as this end has counted them."""

    def __init__(self, store: Store, table: Table, day: date, name: str) -> None:
        self.name = name
        self.rows = self.digest = 0
        self._store, self._table, self._day = store, table, day

    def create(self, engine: str = "MergeTree") -> None:
        """Makes it, empty."""
        self.drop()
        self.rows = self.digest = 0
        # Each row group of a file is a part: 18.16 would refuse more than 300 of them.
        settings = "parts_to_delay_insert = 1000000, parts_to_throw_insert = 1000000"
        if self._store.modern:
            settings += f", {MODERN_TABLE_SETTINGS}"
        order = ", ".join(self._table.identity)
        self._store.query(
            f"CREATE TABLE {self.name} AS {self._store.database}.{self._table.name} ENGINE = {engine}() PARTITION BY day"
            f" ORDER BY ({order}) SETTINGS {settings}"
        )
        if engine == "MergeTree":  # its parts merge when they are where they belong
            self._store.query(f"SYSTEM STOP MERGES {self.name}")

    def drop(self) -> None:
        """Drops it; fine if there is none."""
        self._store.drop(f"DROP TABLE IF EXISTS {self.name}")

    def insert(self, batch: pa.RecordBatch, hashes: Hashes) -> None:
        """Inserts rows as one block."""
        columns: dict[str, Any] = {}
        keys: list[bytes] | None = None
        for name in self._table.columns:
            column = batch.column(name)
            if name == "data_key":
                encoded = column.dictionary_encode()
                columns[name], keys = encoded.indices.to_numpy(), encoded.dictionary.to_pylist()
            elif pa.types.is_binary(column.type):
                columns[name] = as_column(name, column.to_pylist())
            else:
                columns[name] = column.to_numpy()
        columns["day"] = np.full(batch.num_rows, np.datetime64(self._day))
        self._store.insert(self.name, columns, keys)
        self.rows += batch.num_rows
        self.digest = add(self.digest, digest(hashes))

    def append(self, other: SideTable) -> None:
        """Adds what was put into another one, in one statement."""
        if other.rows:
            self._store.query(f"ALTER TABLE {self.name} ATTACH PARTITION '{self._day}' FROM {other.name}")
        self.rows += other.rows
        self.digest = add(self.digest, other.digest)

    def merge_parts(self) -> None:
        """Waits until it has few parts: with many more, the target would refuse INSERTs of any day."""
        count = (
            f"SELECT count() FROM system.parts WHERE active AND database = '{self._store.database}'"
            f" AND table = '{self.name.partition('.')[2]}'"
        )
        parts = fewest = int(self._store.query(count)[0][0])
        if parts <= MAX_PARTS:
            return
        self._store.query(f"SYSTEM START MERGES {self.name}")
        until = time.monotonic() + MERGE_S
        while (parts := int(self._store.query(count)[0][0])) > MAX_PARTS:
            if parts < fewest:
                fewest, until = parts, time.monotonic() + MERGE_S
            if time.monotonic() > until:
                raise StoreUnavailable(
                    f"{self.name}: its {parts} parts are not merged", "Look at ClickHouse's log and its disk."
                )
            time.sleep(0.2)


class ShardDay:
    """One day on its way into one shard of the target; ``number`` is that shard's place among them, ``tag`` names what is
    restored. A file's rows are staged in a table of their own until the file was read to its end and found good."""

    def __init__(self, store: Store, table: Table, manifest: Manifest, tag: str, number: int) -> None:
        self.store, self.number = store, number
        self.target = f"{store.database}.{table.name}"
        self._table, self._day, self._tag = table, manifest.day, tag
        self._staging = self._beside("")
        self._file = self._beside("_file")
        self._begun = False

    def _beside(self, suffix: str) -> SideTable:
        name = f"{self.target}_restoring_{self._day:%Y%m%d}{suffix}"
        return SideTable(self.store, self._table, self._day, name)

    # -- what the target has -----------------------------------------------------------------------------------------------

    def count_digest(self) -> Held:
        """Rows and digest of the day in the target."""
        return self._count_digest(f"{self.target} FINAL")

    def _count_digest(self, table: str) -> Held:
        sql = f"SELECT {self._table.digest_sql} FROM {table} WHERE day = '{self._day}'"
        rows, total = self.store.query(sql)[0]
        return int(rows), int(total)

    def done(self, manifest: Manifest | None) -> bool:
        """True if the target's day is what this restore would make it: by its own note, or by the manifest."""
        have = self.count_digest()
        if manifest is not None and have == manifest.held:
            return True
        found = self.store.query(f"SELECT value FROM {self.store.database}.meta FINAL WHERE name = '{self._note}'")
        return bool(have[0]) and bool(found) and text(found[0][0]) == f"{have[0]} {have[1]} {self._tag}"

    @property
    def _note(self) -> str:
        """What the target's note of a day that was restored is called."""
        return f"restored {self._table.name} {self._day}"

    def _marker(self) -> int:
        return int(
            self.store.query(
                "SELECT max(max_block_number) FROM system.parts WHERE active AND"
                f" database = '{self.store.database}' AND table = '{self._table.name}' AND partition = '{self._day}'"
            )[0][0]
        )

    # -- staging -----------------------------------------------------------------------------------------------------------

    def clean(self) -> None:
        """Drops what an interrupted restore left."""

        def drop() -> None:
            for suffix in ("", "_file", "_union", "_united"):
                self._beside(suffix).drop()

        self.store.everywhere(drop)

    def begin_file(self) -> None:
        """Makes room for one file's rows."""
        if not self._begun:
            self._staging.create()
            self._begun = True
        self._file.create()

    def insert(self, batch: pa.RecordBatch, hashes: Hashes) -> None:
        """Inserts rows of the file as one block."""
        self._file.insert(batch, hashes)

    def end_file(self) -> None:
        """Adds the rows of a file that was read to its end and found good."""
        self._staging.append(self._file)
        self._file.drop()

    def drop_file(self) -> None:
        """Forgets the file's rows."""
        self._file.drop()

    # -- moving in ---------------------------------------------------------------------------------------------------------

    def move_in(self, merge: bool, complete: bool) -> int:
        """Moves the day into the target; returns how many rows of it are new there.

        ``complete`` is noted, so that a later run does not take a day with damaged files for done.
        """
        staging = self._staging
        rows, total = self._count_digest(staging.name) if self._begun else (0, 0)
        if (rows, total) != (staging.rows, staging.digest):
            raise NotTheSame(f"{staging.name} has other rows than were put there", "Run the restore again.")
        if not rows:  # REPLACE from an empty partition would empty the target on 18.16
            staging.drop()
            return 0
        marker = self._marker()
        before = self.count_digest()  # after the marker: what arrives in between shows in one of the two
        if merge and before[0]:
            rows, total = self._unite(before)
        if complete:
            row = (self._note, f"{rows} {total} {self._tag}", time.time_ns() // 1000)
            self.store.insert_rows("meta", ("name", "value", "at"), [row])
        if before[0] and is_bound_by_quorum(self.store, self._table, self._day):
            raise NotEmpty(f"{self.target}: {BOUND}", "Restore the day into another database.")
        if (before[0] and not merge) or self._marker() != marker:
            raise NotEmpty(
                f"{self.target} got new rows of {self._day} during the restore", "Stop the servers, and run it again."
            )
        staging.merge_parts()
        if self._table is TELEMETRY:
            self.store.note_arrivals(staging.name, self._day)
        self.store.drop(f"ALTER TABLE {self.target} REPLACE PARTITION '{self._day}' FROM {staging.name}")
        if self._count_digest(self.target) != (rows, total):
            raise NotTheSame(
                f"{self.target} has other rows of {self._day} than were moved there", "Are servers running?"
            )
        self.store.sync()
        staging.drop()
        return rows - before[0]

    def _unite(self, before: Held) -> Held:
        """Adds the target's rows to the staged ones; of a reading that both have, the target's copy stays."""
        staging, union, united = self._staging, self._beside("_union"), self._beside("_united")
        union.create("ReplacingMergeTree")
        united.create()
        columns = ", ".join((*self._table.columns, "day"))
        # Last come, last kept.
        self.store.query(f"INSERT INTO {union.name} ({columns}) SELECT {columns} FROM {staging.name}")
        self.store.query(
            f"INSERT INTO {union.name} ({columns}) SELECT {columns} FROM {self.target} FINAL WHERE day = '{self._day}'"
        )
        # Unlike OPTIMIZE it says how far it is, so that no connection times out over a large day, and it never does nothing.
        self.store.query(f"INSERT INTO {united.name} ({columns}) SELECT {columns} FROM {union.name} FINAL")
        rows, total = self._count_digest(united.name)
        if rows < max(before[0], staging.rows):
            raise NotTheSame(f"{united.name} has {rows} rows, fewer than its parts", "Run the restore again.")
        for table in (staging, union):
            table.drop()
        self.store.query(f"RENAME TABLE {united.name} TO {staging.name}")
        return rows, total
