"""The outbox in a SQLite file: nothing to install, for the demo and for hosts without PostgreSQL.

Write-ahead log with ``synchronous=FULL``: a commit is on the disk when it returns (sqlite.org/pragma.html).
"""

from __future__ import annotations

import fcntl
import logging
import os
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import config
from ..errors import OutboxError, OutboxUnavailable
from .outbox import Outbox, Statement

log = logging.getLogger(__name__)


class SqliteOutbox(Outbox):
    """See ``Outbox``."""

    blob_type = "BLOB"

    def __init__(self, settings: config.Outbox) -> None:
        self._path = Path(settings.path)
        super().__init__(settings)
        self._connection: sqlite3.Connection | None = None
        self._lock_file: int | None = None

    def default_disk_path(self) -> str:
        """The file's folder."""
        return str(self._path.parent)

    def create(self, client_id: int) -> None:
        """See ``Outbox.create``. A file that is no database any more is set aside, and a new one is begun."""
        try:
            super().create(client_id)
        except OutboxError as error:
            if not isinstance(error.__cause__, sqlite3.DatabaseError):
                raise
            self._set_aside(str(error))
            super().create(client_id)

    def transaction(self, statements: Sequence[Statement]) -> None:
        """See ``Outbox.transaction``."""
        try:
            connection = self._connect()
            connection.execute("BEGIN IMMEDIATE")
            try:
                for sql, parameters in statements:
                    connection.execute(sql, tuple(parameters))
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise _translated(error) from error

    def query(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """See ``Outbox.query``."""
        try:
            return self._connect().execute(sql, tuple(parameters)).fetchall()
        except sqlite3.Error as error:
            raise _translated(error) from error

    def lock(self) -> None:
        """Locks a file beside the database, because SQLite's own locks end with each transaction."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._lock_file = os.open(f"{self._path}.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock_file)
            self._lock_file = None
            raise OutboxError(
                f"another client uses the outbox {self._path}", "One outbox serves one client; stop the other one."
            ) from error

    def close(self) -> None:
        """See ``Outbox.close``."""
        if self._connection is not None:
            self._connection.close()
        self._connection = None
        if self._lock_file is not None:
            os.close(self._lock_file)
        self._lock_file = None

    def _connect(self) -> sqlite3.Connection:
        if self._connection is None:
            connection = sqlite3.connect(self._path, timeout=10, isolation_level=None, check_same_thread=False)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            self._connection = connection
        return self._connection

    def _set_aside(self, why: str) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
        for suffix in ("", "-wal", "-shm"):
            file = Path(f"{self._path}{suffix}")
            if file.exists():
                file.rename(f"{file}.damaged-{stamp}")
        log.error("outbox: %s; %s is set aside as %s.damaged-%s", why, self._path, self._path, stamp)


def _translated(error: sqlite3.Error) -> Exception:
    if isinstance(error, sqlite3.OperationalError):
        return OutboxUnavailable(f"sqlite: {error}", "Check the file's folder, its rights and the free disk space.")
    return OutboxError(f"sqlite: {error}", "The file is damaged; set it aside, its readings may be lost.")
