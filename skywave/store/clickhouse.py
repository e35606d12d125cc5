"""The store in a ClickHouse server, over the native protocol."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from clickhouse_driver import Client, errors

from .. import config
from ..errors import StoreBusy, StoreUnavailable
from . import schema
from .columns import as_column
from .refusals import unavailable, unreachable
from .replicas import MAX_DELAY_S, replication, wait_until_whole
from .sql import NO_DEDUPLICATION, NO_DROP_LIMITS, Replication, at_once
from .store import Store

if TYPE_CHECKING:
    import pyarrow as pa

MODERN_SINCE = (22, 1)
MAX_BLOCK_ROWS = 1 << 20
UNSATISFIED_QUORUM = 286
"""The INSERT was not begun: ClickHouse does one with a quorum at a time in a table (ErrorCodes.cpp,
UNSATISFIED_QUORUM_FOR_PREVIOUS_WRITE)."""
NOT_IN_QUORUM = 289
"""The replica has not yet the newest part that a quorum has (REPLICA_IS_NOT_IN_QUORUM)."""
# Settings that current engines need and 18.16 does not know: an INSERT must be one part, at once.
_MODERN_SETTINGS = {"async_insert": 0, "insert_quorum_parallel": 0, **NO_DEDUPLICATION}
REVISION_WITHOUT_SPARSE_COLUMNS = 54453
"""Of the protocol. To a client of a later one a server sends columns of mostly default values as they lie on its disk, and
clickhouse-driver (0.2.11) makes a tuple of one, or fails (ClickHouse's ProtocolDefines.h, WITH_CUSTOM_SERIALIZATION)."""
T = TypeVar("T")
log = logging.getLogger(__name__)
logging.getLogger("clickhouse_driver").setLevel(logging.ERROR)


class _Behind(StoreUnavailable):
    """A replica that must be asked has not yet what a quorum has."""


class ClickHouseStore(Store):
    """One server, or one shard of a cluster on whichever of its replicas works. See ``Store``.

    Every failed statement closes the connection, so that the next starts from a clean one."""

    parallel = True

    def __init__(self, settings: config.Store, shard: config.Shard | None = None) -> None:
        super().__init__(settings)
        for file in (settings.password_file, settings.ca_file):
            config.secret(file)  # here, so that one that is missing is known at the start
        self._replicated = shard is not None
        self._addresses = config.addresses(shard.replicas) if shard else [(settings.host, settings.port)]
        self._at = 0  # which of them is used
        self._fixed = False  # no other will do
        self.replicas = len(self._addresses)
        self._client: Client | None = None
        self._modern = False  # is the server of the connection

    @property
    def modern(self) -> bool:  # type: ignore[override]
        """Of the server that is used."""
        return bool(self._read(lambda _: self._modern))

    def drop(self, statement: str) -> None:
        """See ``Sql.drop``. An old server has these limits in its configuration alone."""
        if not self.modern:
            self.query(statement)
            return
        self._run(lambda client: client.execute(at_once(statement), settings=NO_DROP_LIMITS))

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """See ``Sql.query``."""
        # By columns: rows of mixed integers would come as one matrix of floats, which rounds 64-bit numbers.
        run = self._read if sql.startswith(("SELECT", "SHOW")) else self._run
        columns = run(lambda client: client.execute(sql, columnar=True))
        return list(zip(*(column.tolist() for column in columns), strict=True)) if isinstance(columns, list) else []

    def stream(self, sql: str) -> Iterator[pa.RecordBatch]:
        """See ``Sql.stream``. Begins at once; what breaks in its midst is not begun again elsewhere."""
        reader = self._read(lambda client: client.query_arrow_stream(sql, field_metadata=False))
        return iter(lambda: self._run(lambda _: next(reader, None)), None)

    def migrate(self) -> None:
        """See ``Delivery``. A shard's tables are made on each replica that is there, which must be a quorum."""
        if not self._replicated:
            super().migrate()
            return
        self.everywhere(self.check_tables)  # before anything is made on one of them
        made = []
        failed: StoreUnavailable | None = None
        for at in range(self.replicas):
            with self._on(at):
                try:
                    self._create_tables()
                    made.append(at)
                except StoreUnavailable as error:
                    failed = error
                    continue
                try:
                    for statement in schema.reads(self.database, self.settings.cluster):
                        self.query(statement)
                except StoreUnavailable as error:
                    log.warning("no tables for reads of all shards: %s", error)
        if failed and len(made) < self.settings.quorum:
            raise failed
        for at in made:
            try:
                with self._on(at):
                    self._check_version()
                return
            except StoreUnavailable as error:
                failed = error
        assert failed
        raise failed

    def read_whole(self, tables: Sequence[str], work: Callable[[], T]) -> T:
        """See ``Sql.read_whole``. A replica that came back, or came new, answers with what it has so far: sequential
        consistency asks only for the newest part of each partition, and the older ones may come after it."""
        for left in reversed(range(self.replicas)):
            at, self._fixed = self._at, True
            try:
                wait_until_whole(self, tables, self._address)
                return work()
            except StoreUnavailable:
                if not left:
                    raise
                self._go_to((at + 1) % self.replicas)
            finally:
                self._fixed = False
        raise AssertionError("there is at least one replica")

    def everywhere(self, work: Callable[[], object]) -> list[str]:
        """See ``Sql.everywhere``."""
        failed = []
        for at in range(self.replicas):
            try:
                with self._on(at):
                    work()
            except StoreUnavailable as error:
                failed.append(str(error))
        return failed

    def not_whole(self, tables: Sequence[str]) -> list[str]:
        """See ``Sql.not_whole``."""
        if self.replicas == 1:
            return []
        return self.everywhere(lambda: wait_until_whole(self, tables, self._address))

    def replication(self) -> Replication:
        """See ``Sql.replication``."""
        return replication(self)

    def replica_states(self) -> dict[str, str]:
        """See ``Sql.replica_states``."""
        states = {}
        for at in range(self.replicas if self._replicated else 0):
            with self._on(at):
                address = self._address
                try:
                    found = self.replication()
                except StoreUnavailable as error:
                    states[address] = str(error)
                    continue
            late = f"is {found.delay_s} s behind" if found.delay_s > MAX_DELAY_S else ""
            blind = "is read-only: it has no ZooKeeper" if found.read_only else ""
            states[address] = blind or late if found.tables else "has no replicated table"
        return states

    def insert(self, table: str, columns: dict[str, Any], keys: Sequence[bytes] | None = None) -> None:
        """See ``Sql.insert``."""
        if keys is not None:
            columns = {**columns, "data_key": as_column("data_key", keys)[columns["data_key"]]}
        statement = f"INSERT INTO {table} ({', '.join(columns)}) VALUES"
        self._run(lambda client: client.execute(statement, list(columns.values()), columnar=True))

    def close(self) -> None:
        """See ``Sql.close``."""
        if self._client is not None:
            self._client.disconnect()
        self._client = None
        self._noted.clear()  # a server that died may have lost what it had not synced

    def _read(self, work: Any) -> Any:
        """Asks one replica after the other: one may be away, or behind what a quorum has. If it must be this one, waits."""
        for _ in range(0 if self._fixed else self.replicas - 1):
            with contextlib.suppress(StoreUnavailable):
                return self._run(work)
        until = time.monotonic() + self.settings.timeout
        while self._fixed and time.monotonic() < until:
            with contextlib.suppress(_Behind):
                return self._run(work)
            time.sleep(0.1)
        return self._run(work)

    def _run(self, work: Any) -> Any:
        try:
            return work(self._connect())
        except errors.ServerException as error:
            message = f"clickhouse: {_first_line(error.message)} (code {error.code})"
            if error.code == UNSATISFIED_QUORUM:
                raise StoreBusy(f"clickhouse: another insert waits for its quorum (code {error.code})") from error
            if error.code == NOT_IN_QUORUM and self._fixed:
                raise _Behind(message, "Wait for it.") from error
            self._give_up()
            raise unavailable(message, error.code) from error
        except (errors.Error, OSError, EOFError) as error:
            address = self._address
            self._give_up()
            raise unreachable(f"clickhouse: {address}: {error or type(error).__name__}") from error

    @property
    def _address(self) -> str:
        """Host and port of the server that is used, for messages."""
        host, port = self._addresses[self._at]
        return f"{host}:{port}"

    def _give_up(self) -> None:
        """Leaves this server; the next statement goes to the next replica."""
        self._go_to((self._at + 1) % self.replicas)

    @contextlib.contextmanager
    def _on(self, at: int) -> Iterator[None]:
        """For what concerns one replica alone; goes back to the one that was used before."""
        before, self._fixed = self._at, True
        self._go_to(at)
        try:
            yield
        finally:
            self._fixed = False
            self._go_to(before)

    def _go_to(self, at: int) -> None:
        self.close()
        self._at = at

    def _connect(self) -> Client:
        if self._client is None:
            s = self.settings
            host, port = self._addresses[self._at]
            client = Client(
                host,
                port,
                user=s.user,
                password=config.secret(s.password_file),
                secure=bool(s.ca_file),
                ca_certs=config.credential(s.ca_file) or None,
                client_name="skywave",
                connect_timeout=5,
                send_receive_timeout=s.timeout,
                sync_request_timeout=5,
                tcp_keepalive=(10, 5, 3),
                client_revision=REVISION_WITHOUT_SPARSE_COLUMNS,
                settings={"use_numpy": True, "strings_as_bytes": True, "insert_block_size": MAX_BLOCK_ROWS},
            )
            version = client.execute("SELECT version()", columnar=True)[0][0].decode()
            self._modern = tuple(int(part) for part in version.split(".")[:2]) >= MODERN_SINCE
            if self._modern:
                client.settings.update(_MODERN_SETTINGS)
            if self._replicated:
                client.settings.update(_replicated_settings(s))
            self._client = client
        return self._client


def _first_line(message: str) -> str:
    """What an exception says, without the name of its class and what it has to say of itself."""
    line = message.partition("\n")[0].removeprefix("DB::Exception: ").removesuffix("Stack trace:").strip()
    return line[:300]


def _replicated_settings(settings: config.Store) -> dict[str, Any]:
    """What makes an INSERT wait for its quorum, and a SELECT see what has one, and nothing else.

    Without deduplication: a block that was written once without reaching its quorum would be taken for done when it is
    written again, and be acknowledged.
    """
    return {
        "insert_deduplicate": 0,
        "insert_quorum": settings.quorum if settings.quorum > 1 else 0,
        "insert_quorum_timeout": int(settings.timeout * 500),
        "select_sequential_consistency": int(settings.quorum > 1),
    }
