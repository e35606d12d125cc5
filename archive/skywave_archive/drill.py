"""The scheduled proof that the archive works: a random day is restored into a throw-away database, and compared."""

from __future__ import annotations

import random
import secrets
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, replace
from datetime import date
from typing import Any

from skywave import config
from skywave.errors import StoreUnavailable
from skywave.store.shards import open_store

from .archive import Archive
from .errors import BrokenManifest, NewerManifest, NothingThere
from .manifest import Manifest
from .restore import Restorer
from .selection import Selection
from .tables import TELEMETRY


@dataclass
class Drill:
    """What was restored, and whether count and digest are the manifest's."""

    day: date
    rows: int
    digest: str
    passed: bool
    problems: list[str]

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {**asdict(self), "day": self.day.isoformat()}


def drill(
    archive: Archive,
    settings: config.Store,
    day: date | None,
    progress: Callable[[int], None] = lambda _: None,
) -> Drill:
    """Restores a day (a random one by default) next to the store's own database and drops it again."""
    manifest = _choose(archive, day)
    settings = _one_server(settings)
    database = f"{settings.database}_drill_{secrets.token_hex(4)}"
    try:
        with Restorer(archive, [replace(settings, database=database)], Selection(), False, progress) as restorer:
            restorer.prepare()
            result = restorer.restore(TELEMETRY, manifest)
            rows, total = restorer.stores[0].query(
                f"SELECT {TELEMETRY.digest_sql} FROM {database}.{TELEMETRY.name} FINAL"
            )[0]
        passed = (int(rows), int(total)) == (manifest.rows, manifest.digest)
        return Drill(manifest.day, int(rows), str(total), passed and not result.errors, [str(e) for e in result.errors])
    finally:
        with closing(open_store(settings)) as store:
            store.drop(f"DROP DATABASE IF EXISTS {database}")


def _choose(archive: Archive, day: date | None) -> Manifest:
    """The manifest of ``day``, or of any day that has rows; raises ``NothingThere``."""
    generations = archive.generations(TELEMETRY.name)
    days = [found for found in generations if day in (None, found)]
    for found in random.SystemRandom().sample(days, len(days)):
        with suppress(BrokenManifest, NewerManifest):
            manifest = archive.manifest(TELEMETRY.name, found, generations[found][-1])
            if manifest.rows:
                return manifest
    raise NothingThere(f"there is no archived day with rows to restore{f': {day}' if day else ''}", "See the list.")


def _one_server(settings: config.Store) -> config.Store:
    """The store without its shards: one of their servers is enough, and need not replicate what is dropped again."""
    if not settings.shards:
        return settings
    addresses = [address for shard in settings.shards.values() for address in config.addresses(shard.replicas)]
    for host, port in addresses:
        one = replace(settings, host=host, port=port, shards={})
        with suppress(StoreUnavailable), closing(open_store(one)) as store:
            store.query("SELECT 1")
            break
    return one
