"""The tables, portable from ClickHouse 18.16 to current releases.

``day`` is the server's UTC date at a batch's first publish and never changes, so all copies of a reading meet in one
partition and ReplacingMergeTree with FINAL is exact. ``dt`` is for people and dashboards.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

VERSION = 1

READING_COLUMNS = ("client_id", "stream", "seq", "created_at", "data_key", "data_value", "received_at", "day")

DAY_US = 86_400_000_000
LAST_DAY = 49_672
"""Days from 1970 to 2105-12-31, the last one of 18.16."""

MODERN_TABLE_SETTINGS = (
    "fsync_after_insert = 1, fsync_part_directory = 1, ratio_of_defaults_for_sparse_serialization = 1"
)
"""Of each table on a modern engine: a commit is on the disk, and no column is kept sparse, which not every reader knows."""

_CODECS = {("telemetry", name): "DoubleDelta, LZ4" for name in ("created_at", "seq", "received_at")}
_SHOWN_SECONDS = (0, (LAST_DAY + 1) * 86_400 - 1)
"""The times that a DateTime of 18.16 can show: 1970 to 2105."""
_SHOWN_MICROS = (-2_208_988_800_000_000, 10_413_791_999_999_999)
"""The times that a DateTime64 can show in every release that has it: 1900 to 2299."""


class Table(NamedTuple):
    """One table: its columns by name, its sort key, and the column whose highest value wins among rows of one key."""

    name: str
    columns: Mapping[str, str]
    order: tuple[str, ...]
    version: str = ""
    by_day: bool = False


class Found(NamedTuple):
    """A table as ``system.tables`` and ``system.columns`` describe it."""

    engine: str
    engine_full: str
    sorting_key: str
    partition_key: str
    columns: Mapping[str, str]


TABLES = (
    Table("meta", {"name": "String", "value": "String", "at": "UInt64"}, ("name",), "at"),
    Table(
        "telemetry",
        {"client_id": "UInt32", "stream": "UInt64", "seq": "UInt64", "created_at": "Int64", "data_key": "String",
         "data_value": "Float64", "received_at": "Int64", "day": "Date"},
        ("client_id", "data_key", "created_at", "stream", "seq"), by_day=True,
    ),
    Table(
        "rejected",
        {"client_id": "UInt32", "stream": "UInt64", "first_seq": "UInt64", "count": "UInt64", "sha256": "String",
         "topic": "String", "reason": "String", "properties": "String", "payload": "String", "received_at": "Int64",
         "day": "Date"},
        ("client_id", "stream", "first_seq", "sha256"), by_day=True,
    ),
    # What each client says it produced; the version is last_seq, which only grows. Never dropped.
    Table(
        "streams",
        {"client_id": "UInt32", "stream": "UInt64", "last_seq": "UInt64", "first_pending": "UInt64",
         "oldest_at": "Int64", "reported_at": "Int64"},
        ("client_id", "stream"), "last_seq",
    ),
    Table(
        "dropped",
        {"client_id": "UInt32", "stream": "UInt64", "first_seq": "UInt64", "last_seq": "UInt64", "reason": "String",
         "reported_at": "Int64"},
        ("client_id", "stream", "first_seq", "last_seq"),
    ),
    # Ranges whose day was archived and then dropped here: for look-ups and the audit they count as stored.
    Table(
        "expired",
        {"client_id": "UInt32", "stream": "UInt64", "first_seq": "UInt64", "last_seq": "UInt64", "day": "Date"},
        ("client_id", "stream", "first_seq", "last_seq", "day"),
    ),
    # What somebody has put on record about the account, see ``accepted.py``; of equal ranges the latest counts.
    Table(
        "accepted",
        {"client_id": "UInt32", "stream": "UInt64", "first_seq": "UInt64", "last_seq": "UInt64", "what": "String",
         "reason": "String", "name": "String", "at": "UInt64"},
        ("client_id", "stream", "first_seq", "last_seq", "at"),
    ),
    # Which days' readings came on which day: what bounds a question about ``created_at`` to the partitions that matter.
    Table("arrivals", {"created_day": "Date", "day": "Date"}, ("created_day", "day")),
)  # fmt: skip
_OF_ALL_SHARDS = ("telemetry", "rejected", "streams", "dropped", "expired", "accepted", "arrivals")


def tables(database: str, modern: bool, replicated: bool = False) -> list[str]:
    """The statements that create everything that is missing; ``modern`` engines know codecs and can sync files.

    ``replicated`` tables need ZooKeeper or Keeper and the macros ``shard`` and ``replica`` in the server's configuration.
    """
    return [
        f"CREATE DATABASE IF NOT EXISTS {database}",
        *(_create(database, table, modern, replicated) for table in TABLES),
    ]


def strange(found: Mapping[str, Found], replicated: bool = False) -> list[str]:
    """What stands under our names and is not ours, one sentence each: none where ``tables`` and ``reads`` were run.

    ``found`` is all that a database has, by name. Columns of others' beside ours do no harm.
    """
    sentences = [
        f"{table.name} {why}"
        for table in TABLES
        if table.name in found and (why := _difference(table, found[table.name], replicated))
    ]
    readers = {f"{name}_all": "Distributed" for name in _OF_ALL_SHARDS} | {"readings": "View"} if replicated else {}
    return sentences + [
        f"{name} is a {found[name].engine}, not a {engine}"
        for name, engine in readers.items()
        if name in found and found[name].engine != engine
    ]


def _difference(table: Table, found: Found, replicated: bool) -> str:
    lacks = [f"{name} {kind}" for name, kind in table.columns.items() if found.columns.get(name) != kind]
    if lacks:
        return f"lacks {', '.join(lacks)}"
    if not found.engine.endswith("ReplacingMergeTree") or (replicated and found.engine == "ReplacingMergeTree"):
        return f"is a {found.engine}, not a {'Replicated' if replicated else ''}ReplacingMergeTree"
    arguments = re.match(r"\w+\(([^)]*)\)", found.engine_full)
    version = [word for word in (arguments[1].split(", ") if arguments else []) if word and "'" not in word]
    keys = {
        "version": (", ".join(version), table.version),
        "sort key": (found.sorting_key, ", ".join(table.order)),
        "partition key": (found.partition_key, "day" if table.by_day else ""),
    }
    wrong = [f"the {key} ({has}), not ({wants})" for key, (has, wants) in keys.items() if has != wants]
    return f"has {' and '.join(wrong)}" if wrong else ""


def reads(database: str, cluster: str) -> list[str]:
    """The statements for reading all shards of a cluster from any of its servers: ``readings`` has each reading once."""
    return [
        *(
            f"CREATE TABLE IF NOT EXISTS {database}.{table}_all AS {database}.{table}"
            f" ENGINE = Distributed('{cluster}', '{database}', '{table}')"
            for table in _OF_ALL_SHARDS
        ),
        f"CREATE VIEW IF NOT EXISTS {database}.readings AS"
        f" SELECT {', '.join(READING_COLUMNS)} FROM {database}.telemetry_all FINAL",
    ]


def created_day(created_at: str) -> str:
    """The SQL of ``arrivals.created_day``: the UTC date of a time in µs, or the nearest one that every release can show."""
    return f"toDate({_between(f'intDiv({created_at}, {DAY_US})', (0, LAST_DAY))})"


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


def _create(database: str, table: Table, modern: bool, replicated: bool) -> str:
    codecs = {name: codec for (of, name), codec in _CODECS.items() if modern and of == table.name}
    columns = [
        f"{name} {kind}{f' CODEC({codecs[name]})' if name in codecs else ''}" for name, kind in table.columns.items()
    ]
    if table.name == "telemetry":
        columns.append(f"dt ALIAS {_dt(modern, replicated)}")
    # Equal tables of a shard share a path.
    paths = [f"'/clickhouse/tables/{{shard}}/{database}.{table.name}'", "'{replica}'"] if replicated else []
    arguments = ", ".join([*paths, *filter(None, [table.version])])
    engine = f"{'Replicated' if replicated else ''}ReplacingMergeTree{f'({arguments})' if arguments else ''}"
    partition = " PARTITION BY day" if table.by_day else ""
    order = ", ".join(table.order)
    return (
        f"CREATE TABLE IF NOT EXISTS {database}.{table.name} ({', '.join(columns)})"
        f" ENGINE = {engine}{partition} ORDER BY {f'({order})' if len(table.order) > 1 else order}"
        f"{f' SETTINGS {MODERN_TABLE_SETTINGS}' if modern else ''}"
    )


def _dt(modern: bool, replicated: bool) -> str:
    """A time for people; one that the type cannot show is its first or last one, not some other date.

    Not so in replicated tables: ZooKeeper has their columns, and refuses a replica that comes with another expression
    than the first release's. An existing table is not altered either: see docs/formats.md.
    """
    if modern:
        function, at, bounds = "fromUnixTimestamp64Micro", "created_at", _SHOWN_MICROS
    else:
        function, at, bounds = "toDateTime", "intDiv(created_at, 1000000)", _SHOWN_SECONDS
    return f"{function}({at if replicated else _between(at, bounds)}, 'UTC')"


def _between(sql: str, bounds: tuple[int, int]) -> str:
    return f"least(greatest({sql}, {bounds[0]}), {bounds[1]})"
