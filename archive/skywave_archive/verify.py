"""Whether the archive still is what its manifests say.

Levels, each including the one before: ``list`` (manifests readable, files there with their sizes, nothing alien),
``checksum`` (every byte), ``rows`` (every row decoded: count, digest and numbers of the streams).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import date
from typing import Any

import numpy as np
import pyarrow as pa

from skywave.errors import SkywaveError

from .archive import Archive, day_folder, within
from .datafile import check_bytes, read_rows
from .errors import DamagedFile, TargetUnavailable
from .manifest import File, Manifest
from .streams import Collector, in_streams
from .tables import BY_DAY

LEVELS = ("list", "checksum", "rows")
LOST = "the manifest of its generation is missing"
PUBLISHING_S = 3


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong. ``alien`` files are reported and left alone; they do not make a day bad."""

    table: str
    day: str
    level: str
    file: str
    problem: str
    alien: bool = False

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return asdict(self)


@dataclass
class DayCheck:
    """What was looked at, and what was found; ``manifest`` is None if it cannot be read."""

    table: str
    day: date
    manifest: Manifest | None
    findings: list[Finding]

    @property
    def good(self) -> bool:
        """True if the day can be restored as far as the level tells."""
        return not any(not finding.alien for finding in self.findings)


def in_subset(day: date, subset: tuple[int, int] | None) -> bool:
    """Whether a day belongs to part n of t: with t nights, each day's turn comes once."""
    return subset is None or day.toordinal() % subset[1] == subset[0] - 1


def verify_day(
    archive: Archive, manifest: Manifest, level: str, progress: Callable[[int], None] = lambda _: None
) -> list[Finding]:
    """Looks at one day; ``progress`` is called with bytes read."""
    findings: list[Finding] = []
    where = (manifest.table, manifest.day.isoformat())
    files = archive.day_files(manifest)
    findings += [Finding(*where, "list", name, "not in the manifest; left alone", True) for name in files.alien]
    findings += [Finding(*where, "list", name, LOST) for name in files.lost]
    good: list[File] = []
    for file in manifest.files:
        entry = files.listed.get(file.name)
        if entry is None:
            findings.append(Finding(*where, "list", file.name, "missing"))
        elif entry.size != file.bytes:
            findings.append(Finding(*where, "list", file.name, f"has {entry.size} bytes, not {file.bytes}"))
        else:
            good.append(file)
    streams = Collector(unbounded=True)  # no more than the manifest names
    for file in good if level != "list" else []:
        path = f"{day_folder(manifest.table, manifest.day)}/{file.name}"
        try:
            if level == "checksum":
                check_bytes(archive.target, path, file)
            else:
                for batch, _ in read_rows(archive.target, path, BY_DAY[manifest.table], file):
                    if BY_DAY[manifest.table].ranged:
                        streams.add(_named(manifest, batch) if manifest.scattered else batch)
        except DamagedFile as error:
            findings.append(Finding(*where, level, file.name, str(error)))
        except TargetUnavailable as error:
            findings.append(Finding(*where, level, file.name, archive.target.unreadable(error)))
        progress(file.bytes)
    if level == "rows" and not any(not finding.alien for finding in findings):
        found = {name: numbers.pairs() for name, numbers in streams.finish().items()}
        if found != {name: numbers.pairs() for name, numbers in manifest.streams.items()}:
            findings.append(Finding(*where, level, "", "the rows' streams and numbers are not those of the manifest"))
    return findings


def _named(manifest: Manifest, batch: pa.RecordBatch) -> pa.RecordBatch:
    """Without the rows of scattered clients whose numbers the manifest has not."""
    others = np.isin(batch.column("client_id").to_numpy(), manifest.scattered) & ~in_streams(batch, manifest.streams)
    return batch.filter(pa.array(~others))


def verify(
    archive: Archive,
    level: str,
    first: date | None = None,
    last: date | None = None,
    subset: tuple[int, int] | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> Iterator[DayCheck]:
    """Looks at every chosen day of every table, oldest first."""
    for name in BY_DAY:
        for day in archive.orphans(name):
            if _chosen(day, first, last, subset):
                problem = "the day has files but no manifest: it cannot be restored"
                yield DayCheck(name, day, None, [Finding(name, day.isoformat(), "list", "", problem)])
        for day, manifest in archive.manifests(name):
            if not _chosen(day, first, last, subset):
                continue
            if isinstance(manifest, SkywaveError):
                yield DayCheck(name, day, None, [Finding(name, day.isoformat(), "list", "", str(manifest))])
                continue
            findings = verify_day(archive, manifest, level, progress)
            for _ in range(PUBLISHING_S):  # an export moves a file first, and its manifest right after it
                if not any(finding.problem == LOST for finding in findings):
                    break
                time.sleep(1)
                findings = verify_day(archive, manifest, level, progress)
            newest = archive.generations(name).get(day, []) if findings else []
            if findings and (not newest or newest[-1] != manifest.generation):
                if not newest:
                    continue  # pruned while it was looked at
                manifest = archive.manifest(name, day, newest[-1])  # replaced meanwhile: look at the new one
                findings = verify_day(archive, manifest, level, progress)
            yield DayCheck(name, day, manifest, findings)


def _chosen(day: date, first: date | None, last: date | None, subset: tuple[int, int] | None) -> bool:
    return within(day, first, last) and in_subset(day, subset)
