"""Which rows of a day the archive has already, told by their identity."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from .archive import day_folder
from .datafile import DamagedFile, read_rows
from .manifest import Manifest
from .ranges import runs
from .tables import Hashes, Table, row_hashes
from .target import Target


class Known:
    """The rows that a generation holds, by identity; without a manifest, none.

    Raises ``DamagedFile`` if rows without numbers must be read and cannot; with ``lenient`` their file is left out.
    """

    def __init__(self, target: Target, table: Table, manifest: Manifest | None = None, lenient: bool = False) -> None:
        self._table, self._lenient = table, lenient
        self.files = manifest.files if manifest else []
        self._streams = manifest.streams if manifest else {}
        self._unnamed = np.empty(0, np.uint64)
        if manifest and manifest.unnamed_rows:
            self._unnamed = self._read_unnamed(target, manifest)

    @property
    def unnamed(self) -> int:
        """How many rows without numbers are known."""
        return len(self._unnamed)

    def _read_unnamed(self, target: Target, manifest: Manifest) -> Hashes:
        parts = [self._unnamed]
        for file in self.files:
            if any(file.first_client <= client <= file.last_client for client in manifest.unnamed_rows):
                path = f"{day_folder(manifest.table, manifest.day)}/{file.name}"
                try:
                    parts += [
                        row_hashes(unnamed_rows(self._table, batch), self._table.identity)
                        for batch, _ in read_rows(target, path, self._table, file)
                    ]
                except DamagedFile:
                    if not self._lenient:
                        raise
        return np.sort(np.concatenate(parts))

    def count_unnamed(self, rows: pa.RecordBatch) -> int:
        """How many of a batch's rows without numbers are known."""
        unnamed = unnamed_rows(self._table, rows)
        return int(self._in_unnamed(unnamed).sum()) if unnamed.num_rows else 0

    def mask(self, batch: pa.RecordBatch) -> NDArray[np.bool_]:
        """For each row, whether it is known."""
        known = np.zeros(batch.num_rows, np.bool_)
        if not self.files:
            return known
        if not self._table.ranged:
            return self._in_unnamed(batch)
        seq = batch.column("seq").to_numpy()
        for name, rows in runs(batch):
            if name.stream == 0:
                known[rows] = self._in_unnamed(batch.slice(rows.start, rows.stop - rows.start))
            elif name in self._streams:
                known[rows] = self._streams[name].contain(seq[rows])
        return known

    def _in_unnamed(self, batch: pa.RecordBatch) -> NDArray[np.bool_]:
        if not len(self._unnamed):
            return np.zeros(batch.num_rows, np.bool_)
        hashes = row_hashes(batch, self._table.identity)
        at = np.minimum(np.searchsorted(self._unnamed, hashes), len(self._unnamed) - 1)
        found: NDArray[np.bool_] = self._unnamed[at] == hashes
        return found


def unnamed_rows(table: Table, batch: pa.RecordBatch) -> pa.RecordBatch:
    """The rows that are not told apart by the numbers of a stream."""
    return batch.filter(pa.array(batch.column("stream").to_numpy() == 0)) if table.ranged else batch
