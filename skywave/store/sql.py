"""SQL of ClickHouse over one connection: what the store is made of, and what the archive works with.

Every method raises ``StoreUnavailable`` when a statement was not done or its outcome is unknown, ``StoreError`` when trying
again cannot help.
"""

from __future__ import annotations

import ctypes
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from .. import config
from ..errors import ConfigError, StoreUnavailable
from .columns import as_column

if TYPE_CHECKING:
    import pyarrow as pa

T = TypeVar("T")
NO_DEDUPLICATION = {"insert_deduplicate": 0, "deduplicate_insert": "disable", "deduplicate_insert_select": "disable"}
"""A block that was written once without reaching its quorum would be taken for done when it is written again, and be
acknowledged. The first name is that of releases up to 26.1; later ones obey the others alone."""
NO_DROP_LIMITS = {"max_table_size_to_drop": 0, "max_partition_size_to_drop": 0}
"""Settings of current engines, which else refuse to drop or replace a day of more than 50 GB."""


class Replication(NamedTuple):
    """How a server stands to its shard: how many of our tables are replicated, whether one cannot be written, and how many
    seconds the most delayed one is behind."""

    tables: int
    read_only: bool
    delay_s: int


class Sql(ABC):
    """One connection, for one thread. ``database`` is ours."""

    modern: bool
    """True for engines that know codecs and fsync settings (any release of the last years)."""

    parallel: bool
    """True if several connections of one process can work at the same time."""

    replicas = 1
    """How many servers can be asked in turn."""

    def __init__(self, settings: config.Store) -> None:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", settings.database):
            raise ConfigError(
                f"store.database {settings.database!r} must be a plain name", "Use letters, digits and _."
            )
        self.settings = settings
        self.database = settings.database

    # -- statements --------------------------------------------------------------------------------------------------

    @abstractmethod
    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """Runs a statement; the rows of a SELECT, strings as bytes (zero bytes at their end may be cut off)."""

    @abstractmethod
    def stream(self, sql: str) -> Iterator[pa.RecordBatch]:
        """The rows of a SELECT as Arrow, block by block; strings as binary, to the last bit."""

    @abstractmethod
    def insert(self, table: str, columns: dict[str, Any], keys: Sequence[bytes] | None = None) -> None:
        """One INSERT of one block. ``columns`` are numpy arrays; with ``keys``, ``data_key`` holds codes into them."""

    def insert_rows(self, table: str, names: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> None:
        """One INSERT of a few rows of Python values; ``table`` without its database."""
        if rows:
            columns = {
                name: as_column(name, values) for name, values in zip(names, zip(*rows, strict=True), strict=True)
            }
            self.insert(f"{self.database}.{table}", columns)

    @abstractmethod
    def drop(self, statement: str) -> None:
        """Runs a DROP, or an ALTER that drops or replaces a partition, whatever the size. A modern engine has freed the
        disk when a DROP returns, and not minutes later."""

    def sync(self) -> None:
        """With ``sync = "filesystem"``: everything committed so far is on the disk when this returns (syncfs(2))."""
        if self.settings.sync == "filesystem":
            sync_filesystem(self.settings.data_path)

    @abstractmethod
    def close(self) -> None:
        """Ends the connection."""

    # -- the servers of a shard --------------------------------------------------------------------------------------

    def read_whole(self, tables: Sequence[str], work: Callable[[], T]) -> T:  # noqa: ARG002
        """What ``work`` returns, which reads ``tables`` from one replica that has all that its shard has."""
        return work()

    def not_whole(self, tables: Sequence[str]) -> list[str]:  # noqa: ARG002
        """Waits until each replica has all of ``tables`` that its shard has, for ``timeout`` each; returns which lack what."""
        return []

    def everywhere(self, work: Callable[[], object]) -> list[str]:
        """Has ``work`` done on every replica; returns which did not do it all, and why."""
        work()
        return []

    def replication(self) -> Replication:
        """How the server that is used stands to its shard."""
        return Replication(0, False, 0)

    def replica_states(self) -> dict[str, str]:
        """For each replica of a shard, by host:port, what is wrong with it; "" for one that is in step."""
        return {}


def quote(value: str) -> str:
    """A string as an SQL literal."""
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def at_once(statement: str) -> str:
    """A DROP for a modern engine, whose databases would keep what is dropped for eight minutes; others as they are."""
    return f"{statement} SYNC" if statement.startswith("DROP ") else statement


def sync_filesystem(path: str) -> None:
    """Writes the file system that holds ``path`` to its disk (syncfs(2)); raises ``StoreUnavailable``."""
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise StoreUnavailable(
            f"store.data_path {path}: {error.strerror}", "Name a folder on the store's disk."
        ) from error
    try:
        if libc.syncfs(handle) != 0:
            raise StoreUnavailable(f"syncfs {path}: {os.strerror(ctypes.get_errno())}", "Check the disk.")
    finally:
        os.close(handle)
