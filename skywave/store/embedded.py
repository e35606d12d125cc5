"""The store inside this process: chDB, the current ClickHouse engine as a library.

Its folder belongs to one process at a time, and one process has one such folder at a time; so all stores of a process
share a session. It costs about 600 MB of memory.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from chdb.session import Session

from .. import config
from ..errors import StoreUnavailable
from .refusals import unavailable
from .sql import NO_DEDUPLICATION, NO_DROP_LIMITS, at_once
from .store import Store

_SETTINGS = {"output_format_arrow_string_as_string": 0, "async_insert": 0, "max_insert_block_size": 1 << 20}


class EmbeddedStore(Store):
    """See ``Store``."""

    modern = True
    parallel = False
    _lock = threading.Lock()
    _session: Session | None = None
    _session_path = ""
    _lock_file = -1
    _users = 0

    def __init__(self, settings: config.Store) -> None:
        super().__init__(settings)
        with EmbeddedStore._lock:
            path = str(Path(settings.path).resolve())
            if EmbeddedStore._users and EmbeddedStore._session_path != path:
                raise StoreUnavailable(
                    f"this process has {EmbeddedStore._session_path} open", "One embedded store at a time."
                )
            if not EmbeddedStore._users:
                self._open(path)
            EmbeddedStore._users += 1
        self._closed = False

    @classmethod
    def _open(cls, path: str) -> None:
        Path(path).mkdir(parents=True, exist_ok=True)
        handle = os.open(f"{path}.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(handle)
            raise StoreUnavailable(
                f"another process has the embedded store {path} open", "Stop that server first, or ask it over HTTP."
            ) from error
        cls._session, cls._session_path, cls._lock_file = Session(path), path, handle
        for name, value in (_SETTINGS | NO_DEDUPLICATION | NO_DROP_LIMITS).items():
            with contextlib.suppress(RuntimeError):  # an older engine does not know it, and needs it not
                cls._session.query(f"SET {name} = {value!r}")

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """See ``Sql.query``."""
        with EmbeddedStore._lock:
            table = self._run(sql, "ArrowTable")
        if not isinstance(table, pa.Table):
            return []
        return list(zip(*(column.to_pylist() for column in table.columns), strict=True))

    def drop(self, statement: str) -> None:
        """See ``Sql.drop``."""
        self.query(at_once(statement))

    def stream(self, sql: str) -> Iterator[pa.RecordBatch]:
        """See ``Sql.stream``. Other statements of the process wait until it is read to its end or given up."""
        with EmbeddedStore._lock:
            if EmbeddedStore._session is None:
                raise StoreUnavailable("embedded store: is closed")
            try:
                with EmbeddedStore._session.send_query(sql, "Arrow") as result:
                    yield from result.record_batch()
            except RuntimeError as error:
                raise _translated(error) from error

    def insert(self, table: str, columns: dict[str, Any], keys: Sequence[bytes] | None = None) -> None:
        """See ``Sql.insert``."""
        arrays = {}
        for name, column in columns.items():
            if keys is not None and name == "data_key":
                arrays[name] = pa.DictionaryArray.from_arrays(pa.array(column), pa.array(keys, pa.binary())).cast(
                    pa.binary()
                )
            elif column.dtype == object:
                arrays[name] = pa.array(column, pa.binary())
            else:
                arrays[name] = pa.array(column)
        block = pa.table(arrays)  # noqa: F841  chDB finds it by its name, in this frame
        names = ", ".join(arrays)
        with EmbeddedStore._lock:
            if EmbeddedStore._session is None:
                raise StoreUnavailable("embedded store: is closed")
            try:
                EmbeddedStore._session.query(f"INSERT INTO {table} ({names}) SELECT {names} FROM Python(block)")
            except RuntimeError as error:
                raise _translated(error) from error

    def close(self) -> None:
        """See ``Sql.close``. The last one of the process frees the folder."""
        with EmbeddedStore._lock:
            if self._closed:
                return
            self._closed = True
            EmbeddedStore._users -= 1
            if not EmbeddedStore._users and EmbeddedStore._session is not None:
                EmbeddedStore._session.close()
                os.close(EmbeddedStore._lock_file)
                EmbeddedStore._session = None

    @staticmethod
    def _run(sql: str, output: str) -> Any:
        if EmbeddedStore._session is None:
            raise StoreUnavailable("embedded store: is closed")
        try:
            return EmbeddedStore._session.query(sql, output)
        except RuntimeError as error:
            raise _translated(error) from error


def _translated(error: RuntimeError) -> StoreUnavailable:
    code = re.search(r"Code: (\d+)", str(error))
    return unavailable(f"embedded store: {str(error).splitlines()[0][:300]}", int(code[1]) if code else 0)
