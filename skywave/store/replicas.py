"""How one server of a cluster stands to its shard, as its system tables tell."""

from __future__ import annotations

import time
from collections.abc import Sequence

from ..errors import StoreUnavailable
from .sql import Replication, Sql, quote

NEVER_LOOKED_S = 1_000_000_000
"""A replica that has not read its shard's log since it started says that it is behind by all of the time since 1970."""
MAX_DELAY_S = 300
"""A replica that is further behind is not in step."""


def replication(sql: Sql) -> Replication:
    """Its state in short."""
    tables, blind, delay = sql.query(
        "SELECT count(), sum(is_readonly), toUInt64(max(absolute_delay)) FROM system.replicas"
        f" WHERE database = '{sql.database}'"
    )[0]
    return Replication(int(tables), bool(blind), int(delay))


def wait_until_whole(sql: Sql, tables: Sequence[str], address: str) -> None:
    """Returns when the server has read its shard's log so far, and has fetched each part that is named there. Raises
    ``StoreUnavailable`` after the connection's ``timeout``; ``address`` names the server then.

    SYSTEM SYNC REPLICA would wait for merges as well, which take hours in large tables.
    """
    of_tables = f"database = '{sql.database}' AND table IN ({', '.join(map(quote, tables))})"
    until = time.monotonic() + sql.settings.timeout
    missing: set[bytes] | None = None
    while True:
        behind = {
            table
            for table, blind, pointer, last, path in sql.query(
                f"SELECT table, is_readonly OR absolute_delay > {NEVER_LOOKED_S}, toUInt64(log_pointer),"
                f" toUInt64(log_max_index), zookeeper_path FROM system.replicas WHERE {of_tables}"
            )
            if blind or (pointer <= last and (pointer or _has_log(sql, path)))
        }
        if not behind:
            queue = {
                table + b" " + part
                for table, part in sql.query(
                    "SELECT table, new_part_name FROM system.replication_queue"
                    f" WHERE {of_tables} AND type NOT IN ('MERGE_PARTS', 'MUTATE_PART')"
                )
            }
            missing = queue if missing is None else missing & queue
            if not missing:
                return
        if time.monotonic() > until:
            lacks = [f"parts of {table.decode()}" for table in behind] or [part.decode() for part in missing or ()]
            raise StoreUnavailable(
                f"clickhouse: {address} has not all that its shard has: {', '.join(sorted(lacks)[:5])}",
                "Wait for it; system.replicas and system.replication_queue there tell what holds it up.",
            )
        time.sleep(0.1)


def _has_log(sql: Sql, path: bytes) -> bool:
    """False if nothing was ever written to a table, whose last entry then seems to be number 0."""
    return bool(sql.query(f"SELECT count() FROM system.zookeeper WHERE path = {quote(path.decode() + '/log')}")[0][0])
