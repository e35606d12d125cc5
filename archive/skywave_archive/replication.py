"""What the replicas of a table share in ZooKeeper, and why a day of theirs cannot always be dropped."""

from __future__ import annotations

from datetime import date

from skywave.store.columns import text
from skywave.store.store import Store

from .tables import Table

BOUND = "this ClickHouse would refuse every later read, because it keeps asking for the part that a quorum wrote"
"""Why a partition cannot be dropped or replaced; see ``is_bound_by_quorum``."""


def replication_paths(store: Store, table: Table) -> list[str]:
    """Where ZooKeeper has what the table's replicas share; nothing if it is not replicated."""
    if not knows_replicas(store):
        return []
    rows = store.query(
        f"SELECT zookeeper_path FROM system.replicas WHERE database = '{store.database}' AND table = '{table.name}'"
    )
    return [text(row[0]) for row in rows]


def knows_replicas(store: Store) -> bool:
    """False for engines that are built without replication."""
    return bool(store.query("SELECT count() FROM system.tables WHERE database = 'system' AND name = 'replicas'")[0][0])


def is_bound_by_quorum(store: Store, table: Table, day: date) -> bool:
    """True if the day must not be dropped or replaced.

    ClickHouse notes the last part of each partition that a quorum wrote. Old releases keep the note when the partition is
    dropped, and then no replica answers a sequentially consistent SELECT any more (error 289; seen with 18.16).
    """
    if store.modern:
        return False
    noted = [
        text(row[0])
        for path in replication_paths(store, table)
        for row in store.query(
            f"SELECT value FROM system.zookeeper WHERE path = '{path}/quorum' AND name = 'last_part'"
        )
    ]
    return any(line.startswith(f"{day:%Y%m%d}\t") for note in noted for line in note.splitlines())
