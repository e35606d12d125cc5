"""The outbox in PostgreSQL.

Each transaction is one round trip: several statements sent as one simple query are one implicit transaction
(postgresql.org/docs/15/protocol-flow.html, "Multiple Statements in a Simple Query").
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any

import psycopg2
import psycopg2.errors
import psycopg2.extensions

from .. import config
from ..errors import CredentialError, OutboxError, OutboxRefused, OutboxUnavailable
from .outbox import Outbox, asks
from .schema import Statement

_LOCK_KEY = 0x736B7977617665  # "skywave"
# Rows up to a page stay in the table: at a thousand readings a second a batch needs no TOAST table nor its index.
# The payload is compressed already.
_STORAGE = (
    "ALTER TABLE batch ALTER payload SET STORAGE EXTERNAL",
    "ALTER TABLE batch SET (toast_tuple_target = 8160, autovacuum_vacuum_scale_factor = 0.1)",
    "ALTER TABLE stream SET (fillfactor = 50)",
    "ALTER TABLE gone SET (fillfactor = 50)",
)
_LOGIN = "Check the user in outbox.dsn and the password in outbox.password_file."
_TLS = "Check sslmode and sslrootcert in outbox.dsn against the server's certificate."
_REFUSALS = (
    (r"authentication failed|no password supplied", _LOGIN),
    (r'role ".*" (does not exist|is not permitted to log in)', _LOGIN),
    (r'database ".*" does not exist', "Check dbname in outbox.dsn, or make the database."),
    (r"permission denied", "Give the user of outbox.dsn the right to connect and to make tables there."),
    (r"pg_hba\.conf", "Let this user in from this host: pg_hba.conf on the server."),
    (r"certificate|SSL was required", _TLS),
    (r"invalid .*value|invalid port number", "Correct outbox.dsn."),
    (r"read-only transaction", "This server only follows another one: name the leading one in outbox.dsn."),
)
"""What a server or libpq says when patience does not help, and what does. Words, because psycopg2 tells no code of a
connection that was not made; a server that speaks another language than English seems to be away."""


@functools.lru_cache(64)
def _pyformat(sql: str) -> str:
    return sql.replace("?", "%s")


class PostgresOutbox(Outbox):
    """See ``Outbox``. A lost connection is made anew by the next call."""

    blob_type = "BYTEA"
    lock_tally = (("SELECT 1 FROM gone FOR UPDATE", ()),)

    def __init__(self, settings: config.Outbox) -> None:
        super().__init__(settings)
        self._connection: psycopg2.extensions.connection | None = None
        self._locked = self._held = False

    def default_disk_path(self) -> str:
        """PostgreSQL's usual folder on Debian."""
        return "/var/lib/postgresql"

    def create(self, client_id: int) -> None:
        """See ``Outbox.create``."""
        super().create(client_id)
        self.transaction([(sql, ()) for sql in _STORAGE])

    @asks
    def transaction(self, statements: Sequence[Statement]) -> None:
        """See ``Outbox.transaction``."""
        try:
            with self._connect().cursor() as cursor:
                parts = [cursor.mogrify(_pyformat(sql), tuple(values)) for sql, values in statements]
                cursor.execute(b";".join(parts))
        except psycopg2.Error as error:
            raise self._translated(error) from error

    @asks
    def query(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """See ``Outbox.query``."""
        try:
            with self._connect().cursor() as cursor:
                cursor.execute(_pyformat(sql), tuple(parameters))
                return cursor.fetchall()
        except psycopg2.Error as error:
            raise self._translated(error) from error

    def lock(self) -> None:
        """Takes a session lock on the database, and takes it again after each reconnect."""
        self._locked = True
        try:
            self._connect()
        except psycopg2.Error as error:
            raise self._translated(error) from error

    def close(self) -> None:
        """See ``Outbox.close``."""
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    def _connect(self) -> psycopg2.extensions.connection:
        if self._connection is None or self._connection.closed:
            try:
                password = config.secret(self._settings.password_file) or None
            except CredentialError as error:
                raise OutboxUnavailable(f"postgresql: {error}", error.hint) from error
            connection = psycopg2.connect(
                self._settings.dsn,
                password=password,
                connect_timeout=5,
                application_name="skywave",
                keepalives_idle=10,
                keepalives_interval=5,
                keepalives_count=3,
                tcp_user_timeout=30_000,
                # The server's side as well: a session that outlives its network would keep the lock.
                options="-c client_min_messages=error -c tcp_keepalives_idle=10 -c tcp_keepalives_interval=5"
                " -c tcp_keepalives_count=3",
            )
            connection.autocommit = True
            self._connection = connection
            if self._locked:
                self._take_lock(connection)
        return self._connection

    def _take_lock(self, connection: psycopg2.extensions.connection) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_try_advisory_lock(%s)", (_LOCK_KEY,))
            row = cursor.fetchone()
        if row is None or not row[0]:
            self.close()
            if self._held:
                raise OutboxUnavailable("the session before this one still has the lock", "PostgreSQL ends it soon.")
            raise OutboxError("another client uses this outbox", "One outbox serves one client; stop the other one.")
        self._held = True

    def _translated(self, error: psycopg2.Error) -> Exception:
        text = str(error).strip().splitlines()
        message = f"postgresql: {text[0] if text else type(error).__name__}"
        permitted = not isinstance(error, psycopg2.errors.InsufficientPrivilege)
        if permitted and not isinstance(
            error, psycopg2.OperationalError | psycopg2.InterfaceError | psycopg2.InternalError
        ):
            return OutboxError(message, "Check the rights of the outbox's user and the schema.")
        self.close()  # whatever state the connection is in, the next call starts from a clean one
        for words, hint in _REFUSALS:
            if re.search(words, message):
                return OutboxRefused(message, hint)
        return OutboxUnavailable(message, "Check that PostgreSQL runs and takes connections from this user.")
