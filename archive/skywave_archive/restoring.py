"""A day on its way back into one shard: staged, counted, published."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pyarrow as pa

from skywave.errors import StoreUnavailable
from skywave.store.columns import as_column, text
from skywave.store.schema import MODERN_TABLE_SETTINGS
from skywave.store.store import Store

from .errors import NotEmpty, NotTheSame
from .manifest import Manifest
from .source import BOUND, is_bound_by_quorum
from .tables import TELEMETRY, Hashes, Table, add, digest

MAX_PARTS = 100
"""Of a day that moves into the target; ClickHouse slows INSERTs down from 150 on (18.16)."""
MERGE_S = 1800.0
"""How long one merge may take."""


class ShardDay:
    """One day on its way into one shard of the target; ``number`` is its place among them."""

    def __init__(self, store: Store, table: Table, manifest: Manifest, tag: str, number: int) -> None:
        self.store, self.table, self.day, self.tag, self.number = store, table, manifest.day, tag, number
        self.target = f"{store.database}.{table.name}"
        self.staging = f"{self.target}_restoring_{manifest.day:%Y%m%d}"
        self.file_staging = f"{self.staging}_file"
        self.union, self.united = f"{self.staging}_union", f"{self.staging}_united"
        self._journal = f"restored {table.name} {manifest.day}"
        self._rows = self._digest = 0
        self._file_rows = self._file_digest = 0
        self._begun = False

    # -- what the target has -----------------------------------------------------------------------------------------------

    def count_digest(self, table: str | None = None) -> tuple[int, int]:
        """Rows and digest of the day in the target, or in another table of its columns."""
        final = " FINAL" if table is None else ""
        rows, total = self.store.query(
            f"SELECT {self.table.digest_sql} FROM {table or self.target}{final} WHERE day = '{self.day}'"
        )[0]
        return int(rows), int(total)

    def done(self, manifest: Manifest | None) -> bool:
        """True if the target's day is what this restore would make it: by its own note, or by the manifest."""
        have = self.count_digest()
        if manifest is not None and have == (manifest.rows, manifest.digest):
            return True
        found = self.store.query(f"SELECT value FROM {self.store.database}.meta FINAL WHERE name = '{self._journal}'")
        return bool(have[0]) and bool(found) and text(found[0][0]) == f"{have[0]} {have[1]} {self.tag}"

    def _marker(self) -> int:
        return int(
            self.store.query(
                "SELECT max(max_block_number) FROM system.parts WHERE active AND"
                f" database = '{self.store.database}' AND table = '{self.table.name}' AND partition = '{self.day}'"
            )[0][0]
        )

    # -- staging -----------------------------------------------------------------------------------------------------------

    def _create(self, name: str, engine: str) -> None:
        self.store.drop(f"DROP TABLE IF EXISTS {name}")
        # Each row group of a file is a part: 18.16 would refuse more than 300 of them.
        settings = "parts_to_delay_insert = 1000000, parts_to_throw_insert = 1000000"
        if self.store.modern:
            settings += f", {MODERN_TABLE_SETTINGS}"
        order = ", ".join(self.table.identity)
        self.store.query(
            f"CREATE TABLE {name} AS {self.target} ENGINE = {engine}() PARTITION BY day ORDER BY ({order})"
            f" SETTINGS {settings}"
        )
        if engine == "MergeTree":  # its parts merge when they are where they belong
            self.store.query(f"SYSTEM STOP MERGES {name}")

    def clean(self) -> None:
        """Drops what an interrupted restore left."""

        def drop() -> None:
            for name in (self.staging, self.file_staging, self.union, self.united):
                self.store.drop(f"DROP TABLE IF EXISTS {name}")

        self.store.everywhere(drop)

    def begin_file(self) -> None:
        """Makes room for one file's rows."""
        if not self._begun:
            self._create(self.staging, "MergeTree")
            self._begun = True
        self._create(self.file_staging, "MergeTree")
        self._file_rows = self._file_digest = 0

    def insert(self, batch: pa.RecordBatch, hashes: Hashes) -> None:
        """Inserts rows of the file as one block."""
        columns: dict[str, Any] = {}
        keys: list[bytes] | None = None
        for name in self.table.columns:
            column = batch.column(name)
            if name == "data_key":
                encoded = column.dictionary_encode()
                columns[name], keys = encoded.indices.to_numpy(), encoded.dictionary.to_pylist()
            elif pa.types.is_binary(column.type):
                columns[name] = as_column(name, column.to_pylist())
            else:
                columns[name] = column.to_numpy()
        columns["day"] = np.full(batch.num_rows, np.datetime64(self.day))
        self.store.insert(self.file_staging, columns, keys)
        self._file_rows += batch.num_rows
        self._file_digest = add(self._file_digest, digest(hashes))

    def end_file(self) -> None:
        """Takes the rows of a file over that was read to its end and found good."""
        if self._file_rows:
            self.store.query(f"ALTER TABLE {self.staging} ATTACH PARTITION '{self.day}' FROM {self.file_staging}")
        self._rows += self._file_rows
        self._digest = add(self._digest, self._file_digest)
        self.drop_file()

    def drop_file(self) -> None:
        """Forgets the file's rows."""
        self.store.drop(f"DROP TABLE IF EXISTS {self.file_staging}")

    # -- taking over -------------------------------------------------------------------------------------------------------

    def publish(self, merge: bool, complete: bool) -> int:
        """Moves the day into the table; returns how many rows of it are new there.

        ``complete`` is noted, so that a later run does not take a day with damaged files for done.
        """
        rows, total = self.count_digest(self.staging) if self._begun else (0, 0)
        if (rows, total) != (self._rows, self._digest):
            raise NotTheSame(f"{self.staging} has other rows than were put there", "Run the restore again.")
        if not rows:  # REPLACE from an empty partition would empty the target on 18.16
            self.store.drop(f"DROP TABLE IF EXISTS {self.staging}")
            return 0
        marker = self._marker()
        before = self.count_digest()  # after the marker: what arrives in between shows in one of the two
        if merge and before[0]:
            rows, total = self._unite(before)
        if complete:
            row = (self._journal, f"{rows} {total} {self.tag}", time.time_ns() // 1000)
            self.store.insert_rows("meta", ("name", "value", "at"), [row])
        if before[0] and is_bound_by_quorum(self.store, self.table, self.day):
            raise NotEmpty(f"{self.target}: {BOUND}", "Restore the day into another database.")
        if (before[0] and not merge) or self._marker() != marker:
            raise NotEmpty(
                f"{self.target} got new rows of {self.day} during the restore", "Stop the servers, and run it again."
            )
        self._merge_parts()
        if self.table is TELEMETRY:
            self.store.note_arrivals(self.staging, self.day)
        self.store.drop(f"ALTER TABLE {self.target} REPLACE PARTITION '{self.day}' FROM {self.staging}")
        if self.count_digest(self.target) != (rows, total):
            raise NotTheSame(
                f"{self.target} has other rows of {self.day} than were moved there", "Are servers running?"
            )
        self.store.sync()
        self.store.drop(f"DROP TABLE IF EXISTS {self.staging}")
        return rows - before[0]

    def _unite(self, before: tuple[int, int]) -> tuple[int, int]:
        """Adds the target's rows to the staged ones; of a reading that both have, the target's copy stays."""
        union, united = self.union, self.united
        self._create(union, "ReplacingMergeTree")
        self._create(united, "MergeTree")
        columns = ", ".join((*self.table.columns, "day"))
        # Last come, last kept.
        self.store.query(f"INSERT INTO {union} ({columns}) SELECT {columns} FROM {self.staging}")
        self.store.query(
            f"INSERT INTO {union} ({columns}) SELECT {columns} FROM {self.target} FINAL WHERE day = '{self.day}'"
        )
        # Unlike OPTIMIZE it says how far it is, so that no connection times out over a large day, and it never does nothing.
        self.store.query(f"INSERT INTO {united} ({columns}) SELECT {columns} FROM {union} FINAL")
        rows, total = self.count_digest(united)
        if rows < max(before[0], self._rows):
            raise NotTheSame(f"{united} has {rows} rows, fewer than its parts", "Run the restore again.")
        for table in (self.staging, union):
            self.store.drop(f"DROP TABLE {table}")
        self.store.query(f"RENAME TABLE {united} TO {self.staging}")
        return rows, total

    def _merge_parts(self) -> None:
        """Waits until the staged day has few parts: with many more, the target would refuse INSERTs of any day."""
        count = (
            f"SELECT count() FROM system.parts WHERE active AND database = '{self.store.database}'"
            f" AND table = '{self.staging.partition('.')[2]}'"
        )
        parts = fewest = int(self.store.query(count)[0][0])
        if parts <= MAX_PARTS:
            return
        self.store.query(f"SYSTEM START MERGES {self.staging}")
        until = time.monotonic() + MERGE_S
        while (parts := int(self.store.query(count)[0][0])) > MAX_PARTS:
            if parts < fewest:
                fewest, until = parts, time.monotonic() + MERGE_S
            if time.monotonic() > until:
                raise StoreUnavailable(
                    f"{self.staging}: its {parts} parts are not merged", "Look at ClickHouse's log and its disk."
                )
            time.sleep(0.2)
