"""Which readings and which days a restore is about."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from skywave.errors import SkywaveError

from .archive import Archive, day_folder, within
from .errors import BrokenManifest
from .manifest import File, Manifest
from .tables import Table


@dataclass(frozen=True)
class Selection:
    """Which rows to restore; times in µs UTC, ``until`` excluded."""

    client_id: int | None = None
    key: bytes | None = None
    since: int | None = None
    until: int | None = None

    @property
    def everything(self) -> bool:
        """True if nothing is left out."""
        return self == Selection()

    def concerns(self, file: File) -> bool:
        """Whether a file can hold chosen rows."""
        return (
            (self.client_id is None or file.first_client <= self.client_id <= file.last_client)
            and (self.since is None or file.max_time >= self.since)
            and (self.until is None or file.min_time < self.until)
        )

    def mask(self, batch: pa.RecordBatch) -> NDArray[np.bool_]:
        """For each row, whether it is chosen."""
        chosen = np.ones(batch.num_rows, np.bool_)
        if self.client_id is not None:
            chosen &= batch.column("client_id").to_numpy() == self.client_id
        if self.key is not None:
            chosen &= pc.equal(batch.column("data_key"), pa.scalar(self.key, pa.binary())).to_numpy(
                zero_copy_only=False
            )
        if self.since is not None:
            chosen &= batch.column("created_at").to_numpy() >= self.since
        if self.until is not None:
            chosen &= batch.column("created_at").to_numpy() < self.until
        return chosen


def chosen_days(
    archive: Archive, table: Table, first: date | None, last: date | None
) -> Iterator[tuple[date, Manifest | SkywaveError]]:
    """The days to restore, oldest first, each with its newest manifest or why it cannot be read; broken ones come last."""
    for day, manifest in archive.manifests(table.name):
        if within(day, first, last):
            yield day, manifest
    for day in archive.orphans(table.name):
        if within(day, first, last):
            yield day, BrokenManifest(f"{day_folder(table.name, day)} has files but no manifest", "Verify the archive.")
