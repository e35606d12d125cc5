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
from .salvage import salvage

log = logging.getLogger(__name__)


class SqliteOutbox(Outbox):
    """See ``Outbox``."""

    blob_type = "BLOB"

    def __init__(self, settings: config.Outbox) -> None:
        self._path = Path(settings.path)
        super().__init__(settings)
        self._connection: sqlite3.Connection | None = None
        self._lock_file: int | None = None
        self._damaged = Path(f"{self._path}.damaged")  # made when SQLite finds the file damaged, for the next start

    def default_disk_path(self) -> str:
        """The file's folder."""
        return str(self._path.parent)

    def create(self, client_id: int) -> None:
        """See ``Outbox.create``. A file that was found damaged is set aside, and what can be read of it is taken over."""
        if not self._damaged.exists():
            try:
                super().create(client_id)
                return
            except OutboxError:
                if not self._damaged.exists():
                    raise
        aside = self._set_aside()
        super().create(client_id)
        try:
            for statements in salvage(aside):
                self.transaction(statements)
        except (OutboxError, sqlite3.Error) as error:
            log.error("outbox: no more can be read of %s: %s", aside, error)
        found = self.backlog()
        log.error("outbox: %s was damaged and is set aside as %s; %d readings in %d batches were taken over",
                  self._path, aside.name, found.readings, found.batches)  # fmt: skip

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
            raise self._translated(error) from error

    def query(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """See ``Outbox.query``."""
        try:
            return self._connect().execute(sql, tuple(parameters)).fetchall()
        except sqlite3.Error as error:
            raise self._translated(error) from error

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
        self._close_connection()
        if self._lock_file is not None:
            os.close(self._lock_file)
        self._lock_file = None

    def _close_connection(self) -> None:
        """Ends the connection and keeps the lock."""
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    def _connect(self) -> sqlite3.Connection:
        if self._connection is None:
            connection = sqlite3.connect(self._path, timeout=10, isolation_level=None, check_same_thread=False)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            self._connection = connection
        return self._connection

    def _set_aside(self) -> Path:
        self._close_connection()
        aside = Path(f"{self._path}.damaged-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}")
        for suffix in ("", "-wal", "-shm"):
            file = Path(f"{self._path}{suffix}")
            if file.exists():
                file.rename(f"{aside}{suffix}")
        self._damaged.unlink(missing_ok=True)
        return aside

    def _translated(self, error: sqlite3.Error) -> Exception:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            self._damaged.touch()
            return OutboxError(
                f"sqlite: {error}", "The next start sets the file aside and takes over what can be read."
            )
        if isinstance(error, sqlite3.OperationalError):
            return OutboxUnavailable(f"sqlite: {error}", "Check the file's folder, its rights and the free disk space.")
        return OutboxError(f"sqlite: {error}", "This is an error in the program, or another program changed the file.")
