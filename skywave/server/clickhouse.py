"""The store in a ClickHouse server, over the native protocol."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from clickhouse_driver import Client, errors

from .. import config
from ..errors import StoreUnavailable
from .store import Store

MODERN_SINCE = (21, 11)
MAX_BLOCK_ROWS = 1 << 20
# Settings that current engines need and 18.16 does not know: an INSERT must be one part, at once.
_MODERN_SETTINGS = {"async_insert": 0}
logging.getLogger("clickhouse_driver").setLevel(logging.ERROR)


class ClickHouseStore(Store):
    """See ``Store``. Every failed statement closes the connection, so that the next starts from a clean one."""

    parallel = True

    def __init__(self, settings: config.Store) -> None:
        super().__init__(settings)
        self._client: Client | None = None

    @property
    def modern(self) -> bool:  # type: ignore[override]
        """Asked of the server at each use; only ``migrate`` uses it."""
        version = self.query("SELECT version()")[0][0].decode()
        return tuple(int(part) for part in version.split(".")[:2]) >= MODERN_SINCE

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """See ``Store.query``."""
        # By columns: rows of mixed integers would come as one matrix of floats, which rounds 64-bit numbers.
        columns = self._run(lambda client: client.execute(sql, columnar=True))
        return list(zip(*(column.tolist() for column in columns), strict=True)) if isinstance(columns, list) else []

    def stream(self, sql: str) -> Iterator[pa.RecordBatch]:
        """See ``Store.stream``."""
        reader = self._run(lambda client: client.query_arrow_stream(sql, field_metadata=False))
        while (batch := self._run(lambda _: next(reader, None))) is not None:
            yield batch

    def insert(self, table: str, columns: dict[str, Any], keys: Sequence[bytes] | None = None) -> None:
        """See ``Store.insert``."""
        if keys is not None:
            words = np.empty(len(keys), dtype=object)
            words[:] = keys
            columns = {**columns, "data_key": words[columns["data_key"]]}
        statement = f"INSERT INTO {table} ({', '.join(columns)}) VALUES"
        self._run(lambda client: client.execute(statement, list(columns.values()), columnar=True))

    def close(self) -> None:
        """See ``Store.close``."""
        if self._client is not None:
            self._client.disconnect()
        self._client = None

    def _run(self, work: Any) -> Any:
        try:
            return work(self._connect())
        except errors.ServerException as error:
            self.close()
            message = f"clickhouse: {str(error.message).splitlines()[0][:300]} (code {error.code})"
            raise StoreUnavailable(message, "Check the server, the user's rights and the tables' schema.") from error
        except (errors.Error, OSError, EOFError) as error:
            self.close()
            raise StoreUnavailable(
                f"clickhouse: {self.settings.host}:{self.settings.port}: {error or type(error).__name__}",
                "Check that ClickHouse runs and listens there.",
            ) from error

    def _connect(self) -> Client:
        if self._client is None:
            s = self.settings
            client = Client(
                s.host,
                s.port,
                user=s.user,
                password=config.secret(s.password_file),
                secure=bool(s.ca_file),
                ca_certs=config.credential(s.ca_file) or None,
                client_name="skywave",
                connect_timeout=5,
                send_receive_timeout=s.timeout,
                sync_request_timeout=5,
                tcp_keepalive=(10, 5, 3),
                settings={"use_numpy": True, "strings_as_bytes": True, "insert_block_size": MAX_BLOCK_ROWS},
            )
            version = client.execute("SELECT version()", columnar=True)[0][0].decode()
            if tuple(int(part) for part in version.split(".")[:2]) >= MODERN_SINCE:
                client.settings.update(_MODERN_SETTINGS)
            self._client = client
        return self._client
