"""ClickHouse's native protocol before chDB: a current engine that clickhouse-driver meets over a socket.

    python native_server.py PORT FOLDER [--sparse] [--password PASSWORD]

There is no current ClickHouse server to install here, but its engine as a library. This server lets the product's own
connection, over TCP, work with that engine. It speaks the protocol as of revision 54454, the first in which a server may send
a column as it lies on its disk; of it, what a client needs that neither compresses nor cancels. One thread and one chDB
session a connection; the sessions of a process share its folder. Loopback only, for tests only.

``--sparse`` sends each column that may be sparse as a sparse one where a server would: to clients of revision 54454 and later,
if at least 15 of 16 values are defaults.

Source of the formats: clickhouse.com/docs, "Native Protocol", and ClickHouse's src/Core/Protocol.h, ProtocolDefines.h,
src/Formats/NativeWriter.cpp and src/DataTypes/Serializations/SerializationSparse.cpp.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import socket
import socketserver
import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

from chdb.session import Session

CUSTOM_SERIALIZATION = 54454
OLDEST = 54453
"""Revisions: the server's own, and the oldest that it takes from a client."""

HELLO, QUERY, DATA, CANCEL, PING = range(5)
"""Packets of a client."""
SERVER_HELLO, SERVER_DATA, SERVER_EXCEPTION, _, SERVER_PONG, END_OF_STREAM = range(6)
"""Packets of a server."""

WIDTHS = {
    "UInt8": 1, "Int8": 1, "Bool": 1, "Enum8": 1, "UInt16": 2, "Int16": 2, "Date": 2, "Enum16": 2, "UInt32": 4, "Int32": 4,
    "Float32": 4, "Date32": 4, "DateTime": 4, "IPv4": 4, "UInt64": 8, "Int64": 8, "Float64": 8, "DateTime64": 8, "UInt128": 16,
    "Int128": 16, "UUID": 16, "IPv6": 16,
}  # fmt: skip
"""Bytes of a value of the types that have a fixed size."""
END_OF_GRANULE = 1 << 62
PLAIN, SPARSE = b"\0", b"\1\1"
"""How a column is kept, before its bytes: the first says whether in a special way, the second which one."""
BLOCK_INFO = b"\1\0\2\xff\xff\xff\xff\0"
"""Not of totals that overflowed, of no bucket, and the end of the list."""
UNKNOWN_SETTING, UNKNOWN_TYPE, NOT_IMPLEMENTED, AUTHENTICATION_FAILED = 115, 50, 48, 516


class Refused(Exception):
    """What this server itself answers with an exception; ``code`` is ClickHouse's."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"Code: {code}. DB::Exception: {message}")


class Column(NamedTuple):
    """A column of a block: its values as FORMAT Native has them."""

    name: bytes
    kind: str
    values: bytes


def varint(number: int) -> bytes:
    """LEB128."""
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def string(value: str | bytes) -> bytes:
    """A string with its length before it."""
    raw = value if isinstance(value, bytes) else value.encode(errors="surrogateescape")
    return varint(len(raw)) + raw


class Reader:
    """Takes values out of bytes; ``more`` fetches further ones and returns nothing at the end."""

    def __init__(self, data: bytes = b"", more: Callable[[], bytes] = bytes) -> None:
        self._data, self._at, self._more = bytearray(data), 0, more

    def _until(self, end: int) -> None:
        while len(self._data) < end:
            more = self._more()
            if not more:
                raise EOFError
            self._data += more

    def at_end(self) -> bool:
        """True if all that was given is taken."""
        return self._at == len(self._data)

    def forget(self) -> None:
        """Gives up what is taken."""
        del self._data[: self._at]
        self._at = 0

    def take(self, count: int) -> bytes:
        """The next bytes."""
        self._until(self._at + count)
        self._at += count
        return bytes(self._data[self._at - count : self._at])

    def varint(self) -> int:
        """The next number in LEB128."""
        number = shift = 0
        while True:
            byte = self.take(1)[0]
            number |= (byte & 127) << shift
            if byte < 128:
                return number
            shift += 7

    def string(self) -> bytes:
        """The next string."""
        return self.take(self.varint())

    def text(self) -> str:
        """The next string, as text."""
        return self.string().decode(errors="surrogateescape")

    def number(self) -> int:
        """The next number of eight bytes."""
        return int(struct.unpack("<Q", self.take(8))[0])

    def values(self, kind: str, rows: int) -> bytes:
        """The bytes of the next ``rows`` values of a type."""
        began = self._at
        if rows:
            self._skip_state(kind)
            self._skip(kind, rows)
        return bytes(self._data[began : self._at])

    def _skip_state(self, kind: str) -> None:
        self.take(8 * kind.count("LowCardinality("))  # the version of each dictionary

    def _skip(self, kind: str, rows: int) -> None:
        name, _, rest = kind.partition("(")
        of = rest[:-1]
        if name in WIDTHS:
            self.take(WIDTHS[name] * rows)
        elif name == "String":
            self._skip_strings(rows)
        elif name == "FixedString":
            self.take(int(of) * rows)
        elif name == "Nullable":
            self.take(rows)
            self._skip(of, rows)
        elif name == "Array":
            ends = self.take(8 * rows)
            if count := int(struct.unpack("<Q", ends[-8:])[0]) if rows else 0:
                self._skip(of, count)
        elif name == "LowCardinality":
            flags = self.number()
            self._skip(
                of.removeprefix("Nullable(").removesuffix(")") if of.startswith("Nullable") else of, self.number()
            )
            self.take(self.number() << (flags & 3))
        else:
            raise Refused(UNKNOWN_TYPE, f"the test server does not know the type {kind}")

    def _skip_strings(self, rows: int) -> None:
        """A loop of its own, because a block may have a million of them."""
        data, at = self._data, self._at
        for _ in range(rows):
            if at >= len(data):
                self._until(at + 1)
            length = data[at]
            if length < 128:
                at += length + 1
            else:
                self._at = at
                length = self.varint()
                at = self._at + length
        self._until(at)
        self._at = at


def blocks(native: bytes) -> Iterator[tuple[int, list[Column]]]:
    """Rows and columns of each block of FORMAT Native."""
    reader = Reader(native)
    while not reader.at_end():
        count, rows = reader.varint(), reader.varint()
        columns = []
        for _ in range(count):
            name, kind = reader.string(), reader.text()
            columns.append(Column(name, kind, reader.values(kind, rows)))
        yield rows, columns
        reader.forget()


def sparse(column: Column, rows: int) -> bytes | None:
    """The column's bytes if it is sparse: how many defaults precede each other value, then these; None if it is not."""
    name = column.kind.partition("(")[0]
    if name == "String":
        reader = Reader(column.values)
        values = [string(reader.string()) for _ in range(rows)]
        default = b"\0"
    elif name in WIDTHS:
        width = WIDTHS[name]
        values = [column.values[at : at + width] for at in range(0, rows * width, width)]
        default = bytes(width)
    else:
        return None
    others = [number for number, value in enumerate(values) if value != default]
    if not rows or len(others) * 16 > rows:
        return None
    gaps = [number - before - 1 for before, number in zip([-1, *others], others, strict=False)]
    last = rows - 1 - (others[-1] if others else -1)
    return SPARSE + b"".join(map(varint, [*gaps, last | END_OF_GRANULE])) + b"".join(values[n] for n in others)


class Connection(socketserver.StreamRequestHandler):
    """One client."""

    server: NativeServer
    wbufsize = 1 << 20

    def handle(self) -> None:
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.reader = Reader(more=lambda: self.connection.recv(1 << 20))
        self.settings: dict[str, str] = {}
        with (
            contextlib.suppress(EOFError, ConnectionError),
            contextlib.closing(Session(self.server.folder)) as self.session,
        ):
            if self._hello():
                while True:
                    self._packet()

    def _send(self, *parts: bytes) -> None:
        self.wfile.write(b"".join(parts))
        self.wfile.flush()

    def _hello(self) -> bool:
        """Greets; False for a client that is not let in."""
        read = self.reader
        if read.varint() != HELLO:
            return False
        read.string(), read.varint(), read.varint()  # the client's name and version
        self.revision = min(read.varint(), CUSTOM_SERIALIZATION)
        database, user, password = read.text(), read.text(), read.text()
        try:
            if (user or "default", password) != ("default", self.server.password):
                raise Refused(AUTHENTICATION_FAILED, f"{user}: Authentication failed: password is incorrect, or there is no"
                                                     " user with such name.")  # fmt: skip
            if self.revision < OLDEST:
                raise Refused(NOT_IMPLEMENTED, f"the test server does not speak revision {self.revision}")
            if database:
                self.session.query(f"USE {database}")
        except (Refused, RuntimeError) as error:
            self._refuse(error)
            return False
        major, minor, patch = self.server.version
        self._send(
            varint(SERVER_HELLO), string("ClickHouse"), varint(major), varint(minor), varint(CUSTOM_SERIALIZATION),
            string("UTC"), string("native_server"), varint(patch),
        )  # fmt: skip
        return True

    def _packet(self) -> None:
        self.reader.forget()
        packet = self.reader.varint()
        if packet == PING:
            self._send(varint(SERVER_PONG))
        elif packet == QUERY:
            self._query()
        elif packet != CANCEL:  # one that comes when all is done
            raise ConnectionError(f"packet {packet}")

    def _refuse(self, error: Exception) -> None:
        text = str(error)
        code = re.search(r"Code: (\d+)\. ", text)
        message = text[code.end() :] if code else text
        self._send(
            varint(SERVER_EXCEPTION), struct.pack("<i", int(code[1]) if code else 0), string("DB::Exception"),
            string(message), string(""), b"\0",
        )  # fmt: skip

    def _query(self) -> None:
        settings, compressed, sql = self._read_query()
        self._read_data()  # no external tables
        try:
            if compressed:
                raise Refused(NOT_IMPLEMENTED, "the test server does not compress")
            self._set(settings)
            self._run(sql)
        except (Refused, RuntimeError) as error:
            self._refuse(error)
        else:
            self._send(varint(END_OF_STREAM))

    def _read_query(self) -> tuple[dict[str, tuple[bool, str]], bool, str]:
        """Settings (whether each is important, and its value), whether the client compresses, and the statement."""
        read = self.reader
        read.string()  # the query's id
        if read.take(1) != b"\0":  # who asks, and who asked first
            read.string(), read.string(), read.string(), read.take(8 + 1)
            read.string(), read.string(), read.string(), read.varint(), read.varint(), read.varint()
            read.string(), read.varint(), read.varint()
            if read.take(1) != b"\0":  # a trace
                read.take(24), read.string(), read.take(1)
            read.varint(), read.varint(), read.varint()  # parallel replicas
        settings = {}
        while name := read.text():
            settings[name] = (bool(read.take(1)[0] & 1), read.text())
        read.string()  # a secret between servers
        read.varint()  # up to which stage
        return settings, bool(read.varint()), read.text()

    def _set(self, wanted: dict[str, tuple[bool, str]]) -> None:
        """A query has its settings alone. One that the engine does not know is an error only if it is important."""
        for name in self.settings.keys() - wanted.keys():
            self.session.query(f"SET {name} = DEFAULT")
            del self.settings[name]
        for name, (important, value) in wanted.items():
            if self.settings.get(name) == value:
                continue
            quoted = value.replace("\\", "\\\\").replace("'", "\\'")
            try:
                self.session.query(f"SET {name} = '{quoted}'")
            except RuntimeError as error:
                if important or f"Code: {UNKNOWN_SETTING}." not in str(error):
                    raise
            else:
                self.settings[name] = value

    def _run(self, sql: str) -> None:
        word = sql.split(None, 1)[0].upper()
        if word == "INSERT" and (values := re.search(r"\s(VALUES|FORMAT\s+Native)\s*$", sql, re.IGNORECASE)):
            self._insert(sql[: values.start()])
        elif word in ("SELECT", "WITH"):
            self._select(sql)
        elif word in ("SHOW", "DESCRIBE", "EXISTS", "CHECK"):
            for rows, columns in blocks(self.session.query(sql, "Native").bytes()):
                self._send_block(rows, columns)
        else:
            self.session.query(sql)

    def _select(self, sql: str) -> None:
        """First a block without rows, which tells the columns."""
        told = False
        with self.session.send_query(sql, "Native") as result:
            for chunk in result:
                for rows, columns in blocks(bytes(chunk.bytes())):
                    if not told:
                        self._send_block(0, [column._replace(values=b"") for column in columns])
                    told = True
                    self._send_block(rows, columns)
        if not told:
            self._send_block(0, self._columns(sql))

    def _columns(self, select: str) -> list[Column]:
        lines = str(self.session.query(f"DESCRIBE ({select})", "TSVRaw")).splitlines()
        return [Column(name.encode(), kind, b"") for name, kind in (line.split("\t")[:2] for line in lines)]

    def _insert(self, statement: str) -> None:
        target = re.match(r"INSERT\s+INTO\s+([^\s(]+)\s*(?:\((.*)\))?", statement, re.IGNORECASE | re.DOTALL)
        if not target:
            raise Refused(NOT_IMPLEMENTED, f"the test server does not know this INSERT: {statement[:200]}")
        self._send_block(0, self._columns(f"SELECT {target[2] or '*'} FROM {target[1]}"))
        parts = []
        while (block := self._read_data())[0]:
            parts.append(block[1])
        if parts:
            with self.session.send_insert(statement, "Native") as insert:
                for part in parts:
                    insert.append(part)
                insert.finish()

    def _read_data(self) -> tuple[int, bytes]:
        """Rows of the client's next block, and the block in FORMAT Native."""
        read = self.reader
        read.forget()
        if read.varint() != DATA:
            raise ConnectionError("no data, where data should come")
        read.string()  # a table's name
        while field := read.varint():  # block info
            read.take(1 if field == 1 else 4)
        count, rows = read.varint(), read.varint()
        parts = [varint(count), varint(rows)]
        for _ in range(count):
            name, kind = read.string(), read.text()
            if self.revision >= CUSTOM_SERIALIZATION and read.take(1) != PLAIN:
                raise ConnectionError("a column in a special form")
            parts += [string(name), string(kind), read.values(kind, rows)]
        return rows, b"".join(parts)

    def _send_block(self, rows: int, columns: list[Column]) -> None:
        self._send(varint(SERVER_DATA), string(""), BLOCK_INFO, varint(len(columns)), varint(rows))
        for column in columns:
            values = column.values
            if self.revision >= CUSTOM_SERIALIZATION:
                values = (sparse(column, rows) if self.server.sparse else None) or PLAIN + values
            self._send(string(column.name), string(column.kind), values)


class NativeServer(socketserver.ThreadingTCPServer):
    """Listens, and keeps the engine's folder open."""

    allow_reuse_address = daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int, folder: str, password: str = "", sparse: bool = False) -> None:
        self.folder, self.password, self.sparse = folder, password, sparse
        self._open = Session(folder)
        version = str(self._open.query("SELECT version()", "TSVRaw")).strip().split(".")
        self.version = int(version[0]), int(version[1]), int(version[2])
        super().__init__(("127.0.0.1", port), Connection)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("folder")
    parser.add_argument("--sparse", action="store_true")
    parser.add_argument("--password", default="")
    NativeServer(**vars(parser.parse_args())).serve_forever()


if __name__ == "__main__":
    main()
