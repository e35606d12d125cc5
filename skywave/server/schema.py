"""The tables, portable from ClickHouse 18.16 to current releases.

``day`` is the server's UTC date at a batch's first publish and never changes, so all copies of a reading meet in one
partition and ReplacingMergeTree with FINAL is exact. ``dt`` is for people and dashboards.
"""

from __future__ import annotations

import re

VERSION = 1

READING_COLUMNS = ("client_id", "stream", "seq", "created_at", "data_key", "data_value", "received_at", "day")

DAY_US = 86_400_000_000
LAST_DAY = 49_672
"""Days from 1970 to 2105-12-31, the last one of 18.16."""

_CODECS = {"created_at": "DoubleDelta, LZ4", "seq": "DoubleDelta, LZ4", "received_at": "DoubleDelta, LZ4"}


def tables(database: str, modern: bool, replicated: bool = False) -> list[str]:
    """The statements that create everything that is missing; ``modern`` engines know codecs and can sync files.

    ``replicated`` tables need ZooKeeper or Keeper and the macros ``shard`` and ``replica`` in the server's configuration.
    """
    statements = _tables(database, modern)
    return [_replicated(statement) for statement in statements] if replicated else statements


def reads(database: str, cluster: str) -> list[str]:
    """The statements for reading all shards of a cluster from any of its servers: ``readings`` has each reading once."""
    return [
        *(
            f"CREATE TABLE IF NOT EXISTS {database}.{table}_all AS {database}.{table}"
            f" ENGINE = Distributed('{cluster}', '{database}', '{table}')"
            for table in ("telemetry", "rejected", "streams", "dropped", "expired", "accepted", "arrivals")
        ),
        f"CREATE VIEW IF NOT EXISTS {database}.readings AS"
        f" SELECT {', '.join(READING_COLUMNS)} FROM {database}.telemetry_all FINAL",
    ]


def created_day(created_at: str) -> str:
    """The SQL of ``arrivals.created_day``: the UTC date of a time in µs, or the nearest one that every release can show."""
    return f"toDate(least(greatest(intDiv({created_at}, {DAY_US}), 0), {LAST_DAY}))"


def attachments(database: str) -> dict[str, str]:
    """The replicated tables as ClickHouse up to release 20 keeps them in its ``metadata`` folder, by table.

    With these files and the flag ``force_restore_data`` an empty server takes the place of a replica that lost its disk:
    it finds itself in ZooKeeper and fetches everything (clickhouse.com/docs, "Recovery after complete data loss").
    """
    found = {}
    for statement in tables(database, modern=False, replicated=True):
        if match := re.match(rf"CREATE TABLE IF NOT EXISTS {database}\.(\w+)", statement):
            found[match[1]] = statement.replace(match[0], f"ATTACH TABLE {match[1]}", 1) + "\n"
    return found


def _replicated(statement: str) -> str:
    """The statement for a table that ClickHouse replicates: equal tables of a shard share a path."""
    if not (name := re.search(r"CREATE TABLE IF NOT EXISTS (\S+)", statement)):
        return statement
    path = f"'/clickhouse/tables/{{shard}}/{name[1]}', '{{replica}}'"
    return re.sub(
        r"ENGINE = ReplacingMergeTree(?:\((\w+)\))?",
        lambda found: f"ENGINE = ReplicatedReplacingMergeTree({path}{', ' + found[1] if found[1] else ''})",
        statement,
    )


def _tables(database: str, modern: bool) -> list[str]:
    def codec(column: str) -> str:
        return f" CODEC({_CODECS[column]})" if modern else ""

    settings = " SETTINGS fsync_after_insert = 1, fsync_part_directory = 1" if modern else ""
    dt = "fromUnixTimestamp64Micro(created_at, 'UTC')" if modern else "toDateTime(intDiv(created_at, 1000000), 'UTC')"
    return [
        f"CREATE DATABASE IF NOT EXISTS {database}",
        f"CREATE TABLE IF NOT EXISTS {database}.meta (name String, value String, at UInt64)"
        " ENGINE = ReplacingMergeTree(at) ORDER BY name",
        f"CREATE TABLE IF NOT EXISTS {database}.telemetry (client_id UInt32, stream UInt64, seq UInt64{codec('seq')},"
        f" created_at Int64{codec('created_at')}, data_key String, data_value Float64,"
        f" received_at Int64{codec('received_at')}, day Date, dt ALIAS {dt})"
        " ENGINE = ReplacingMergeTree PARTITION BY day"
        f" ORDER BY (client_id, data_key, created_at, stream, seq){settings}",
        f"CREATE TABLE IF NOT EXISTS {database}.rejected (client_id UInt32, stream UInt64, first_seq UInt64,"
        " count UInt64, sha256 String, topic String, reason String, properties String, payload String,"
        " received_at Int64, day Date)"
        f" ENGINE = ReplacingMergeTree PARTITION BY day ORDER BY (client_id, stream, first_seq, sha256){settings}",
        # What each client says it produced; the version is last_seq, which only grows. Never dropped.
        f"CREATE TABLE IF NOT EXISTS {database}.streams (client_id UInt32, stream UInt64, last_seq UInt64,"
        " first_pending UInt64, oldest_at Int64, reported_at Int64)"
        f" ENGINE = ReplacingMergeTree(last_seq) ORDER BY (client_id, stream){settings}",
        f"CREATE TABLE IF NOT EXISTS {database}.dropped (client_id UInt32, stream UInt64, first_seq UInt64,"
        " last_seq UInt64, reason String, reported_at Int64)"
        f" ENGINE = ReplacingMergeTree ORDER BY (client_id, stream, first_seq, last_seq){settings}",
        # Ranges whose day was archived and then dropped here: for look-ups and the audit they count as stored.
        f"CREATE TABLE IF NOT EXISTS {database}.expired (client_id UInt32, stream UInt64, first_seq UInt64,"
        " last_seq UInt64, day Date)"
        f" ENGINE = ReplacingMergeTree ORDER BY (client_id, stream, first_seq, last_seq, day){settings}",
        # What somebody has put on record about the account, see ``accepted.py``; of equal ranges the latest counts.
        f"CREATE TABLE IF NOT EXISTS {database}.accepted (client_id UInt32, stream UInt64, first_seq UInt64,"
        " last_seq UInt64, what String, reason String, name String, at UInt64)"
        f" ENGINE = ReplacingMergeTree ORDER BY (client_id, stream, first_seq, last_seq, at){settings}",
        # Which days' readings came on which day: what bounds a question about ``created_at`` to the partitions that matter.
        f"CREATE TABLE IF NOT EXISTS {database}.arrivals (created_day Date, day Date)"
        f" ENGINE = ReplacingMergeTree ORDER BY (created_day, day){settings}",
    ]
