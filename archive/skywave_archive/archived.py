"""Which rows of a day the archive has already, told by their identity."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from .archive import day_folder
from .datafile import read_rows
from .errors import DamagedFile
from .manifest import Manifest
from .streams import in_streams
from .tables import Hashes, Table, row_hashes
from .targets.target import Target


class ArchivedRows:
    """The rows that a generation holds, by identity; without a manifest, none. Rows without numbers, and those whose
    numbers the manifest does not name, are told by a hash.

    Raises ``DamagedFile`` if rows without numbers must be read and cannot; with ``lenient`` their file is left out.
    """

    def __init__(self, target: Target, table: Table, manifest: Manifest | None = None, lenient: bool = False) -> None:
        self._table, self._lenient = table, lenient
        self._streams = manifest.streams if manifest else {}
        self._unnamed = np.empty(0, np.uint64)
        if manifest and manifest.unnamed_rows:
            self._unnamed = self._read_unnamed(target, manifest)

    @property
    def unnamed(self) -> int:
        """How many rows without numbers there are."""
        return len(self._unnamed)

    def _read_unnamed(self, target: Target, manifest: Manifest) -> Hashes:
        parts = [self._unnamed]
        for file in manifest.files:
            if any(file.first_client <= client <= file.last_client for client in manifest.unnamed_rows):
                path = f"{day_folder(manifest.table, manifest.day)}/{file.name}"
                try:
                    parts += [
                        row_hashes(self._others(batch), self._table.identity)
                        for batch, _ in read_rows(target, path, self._table, file)
                    ]
                except DamagedFile:
                    if not self._lenient:
                        raise
        return np.sort(np.concatenate(parts))

    def count_unnamed(self, rows: pa.RecordBatch) -> int:
        """How many of a batch's rows without numbers are among them."""
        others = self._others(rows)
        return int(self._in_unnamed(others).sum()) if others.num_rows else 0

    def mask(self, batch: pa.RecordBatch) -> NDArray[np.bool_]:
        """For each row of a batch, whether it is among them."""
        found = self._named(batch)
        if len(self._unnamed) and not found.all():
            found[~found] = self._in_unnamed(batch.filter(pa.array(~found)))
        return found

    def _named(self, batch: pa.RecordBatch) -> NDArray[np.bool_]:
        """For each row, whether it is told by its number."""
        return in_streams(batch, self._streams) if self._table.ranged else np.zeros(batch.num_rows, np.bool_)

    def _others(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        return batch.filter(pa.array(~self._named(batch)))

    def _in_unnamed(self, batch: pa.RecordBatch) -> NDArray[np.bool_]:
        if not len(self._unnamed):
            return np.zeros(batch.num_rows, np.bool_)
        hashes = row_hashes(batch, self._table.identity)
        at = np.minimum(np.searchsorted(self._unnamed, hashes), len(self._unnamed) - 1)
        found: NDArray[np.bool_] = self._unnamed[at] == hashes
        return found


def unnamed_rows(table: Table, batch: pa.RecordBatch) -> pa.RecordBatch:
    """The rows that have no numbers of a stream."""
    return batch.filter(pa.array(batch.column("stream").to_numpy() == 0)) if table.ranged else batch
