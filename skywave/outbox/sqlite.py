"""The outbox in a SQLite file: nothing to install, for the demo and for hosts without PostgreSQL.

Write-ahead log with ``synchronous=FULL``: a commit is on the disk when it returns (sqlite.org/pragma.html).
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from .. import config
from ..errors import OutboxError, OutboxUnavailable
from ..process.systemd import notify
from .outbox import Outbox, asks
from .salvage import salvage
from .schema import Statement

log = logging.getLogger(__name__)

CHECKED_BYTES = 256 << 20
"""Up to this size a file is checked at the start, in less than half a second."""
_FILES = ("", "-wal", "-shm")


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
        """See ``Outbox.create``. A file that is found damaged is set aside, and what can be read of it is taken over."""
        if not self._damaged.exists():
            try:
                super().create(client_id)
                self._check()
                if self.has_impossible_accounts():
                    raise self._found_damaged("the streams' accounts have impossible numbers")
                return
            except OutboxError:
                if not self._damaged.exists():
                    raise
        self._replace_damaged(client_id)
        super().create(client_id)

    def _check(self) -> None:
        """Finds damage before readings are added to it, unless the file is so large that the start would be late."""
        if self._path.stat().st_size <= CHECKED_BYTES:
            found = self.query("PRAGMA quick_check(1)")[0][0]
            if found != "ok":
                raise self._found_damaged(found)

    def _replace_damaged(self, client_id: int) -> None:
        """Puts a new file with what can be read of the damaged one in its place. May be interrupted and done again."""
        self._close_connection()
        fresh = Path(f"{self._path}.new")
        aside = Path(f"{self._path}.damaged-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}")
        if self._path.exists():
            for suffix in _FILES:
                Path(f"{fresh}{suffix}").unlink(missing_ok=True)
            with contextlib.closing(SqliteOutbox(replace(self._settings, path=str(fresh)))) as box:
                Outbox.create(box, client_id)
                for statements in salvage(self._path):
                    box.transaction(statements)
                    notify("EXTEND_TIMEOUT_USEC=60000000")  # the start may take as long as this goes on
                found = box.backlog()
                box.settle()
            log.error(
                "outbox: %s is damaged and is set aside as %s; %d readings in %d batches are taken over",
                self._path,
                aside.name,
                found.readings,
                found.batches,
            )
        # From here on the new file is whole. The old write-ahead log must not meet it.
        for suffix in _FILES:
            if (old := Path(f"{self._path}{suffix}")).exists():
                old.rename(f"{aside}{suffix}")
        if fresh.exists():
            fresh.rename(self._path)
        self._damaged.unlink(missing_ok=True)

    @asks
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

    @asks
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

    def settle(self) -> None:
        """Brings everything from the write-ahead log into the file; SQLite itself says nothing when a full disk forbids it."""
        if self.query("PRAGMA wal_checkpoint(TRUNCATE)")[0][0] != 0:
            raise OutboxUnavailable(f"sqlite: {self._path} cannot be written whole", "Make room on its disk.")

    def _connect(self) -> sqlite3.Connection:
        if self._connection is None:
            connection = sqlite3.connect(self._path, timeout=10, isolation_level=None, check_same_thread=False)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.text_factory = lambda data: data.decode(errors="replace")  # damage is ours to notice
            self._connection = connection
        return self._connection

    def _translated(self, error: sqlite3.Error) -> Exception:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            return self._found_damaged(error)
        if isinstance(error, sqlite3.OperationalError):
            return OutboxUnavailable(f"sqlite: {error}", "Check the file's folder, its rights and the free disk space.")
        return OutboxError(f"sqlite: {error}", "This is an error in the program, or another program changed the file.")

    def _found_damaged(self, what: object) -> OutboxError:
        self._damaged.touch()
        return OutboxError(f"sqlite: {what}", "The next start sets the file aside and takes over what can be read.")
