"""Which database should hold the outbox? Durable commits of batches, deletes, disk writes and a restart, on this disk.

PostgreSQL and SQLite as Skywave uses them (``open_outbox``), and three that the registries offer beside them: LMDB (a B+ tree
in mapped memory), RocksDB (a log-structured tree) and UnQLite (a document store). Each commits ``BATCHES`` batches, one at a
time, durably; deletes them as acknowledgements come, eleven at a time; and is then opened with ``WAITING`` batches by a new
process.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import measure
from report import row, write
from support.parts import Postgres

from skywave import config
from skywave.formats.batch import Batch
from skywave.outbox.opening import open_outbox

READINGS = 100
BYTES = 1500
"""Of a batch: 1000 readings a second, committed every 0.1 s; they compress to about 15 bytes each."""
BATCHES = 2000
WAITING = 50_000
AT_ONCE = 11
"""What is acknowledged in a second, with the commit's own."""


def payload(number: int) -> bytes:
    return random.Random(number).randbytes(BYTES)


class Own:
    """The product's outbox."""

    def __init__(self, kind: str, where: str) -> None:
        settings = {"path": where} if kind == "sqlite" else {"dsn": where}
        self._box = open_outbox(config.Outbox(kind=kind, **settings))
        self._box.create(1)
        self._next = self._box.start_stream(random.SystemRandom().randrange(1, 1 << 62))
        self._stream = self._box.streams()[-1].stream
        self._seq = 1

    def append(self, count: int = 1) -> None:
        batches = []
        for _ in range(count):
            batches.append(Batch(self._next, self._stream, self._seq, READINGS, 0, None, payload(self._next)))
            self._next, self._seq = self._next + 1, self._seq + READINGS
        self._box.append(batches)

    def delete(self, numbers: list[int]) -> None:
        self._box.delete(numbers)

    def first(self) -> Any:
        return self._box.read(0, 1 << 60, 1)[0]


class Lmdb:
    def __init__(self, where: str) -> None:
        import lmdb

        self._env = lmdb.open(where, map_size=1 << 32, subdir=True)
        self._next = 1

    def append(self, count: int = 1) -> None:
        with self._env.begin(write=True) as transaction:
            for _ in range(count):
                transaction.put(self._next.to_bytes(8, "big"), payload(self._next))
                self._next += 1

    def delete(self, numbers: list[int]) -> None:
        with self._env.begin(write=True) as transaction:
            for number in numbers:
                transaction.delete(number.to_bytes(8, "big"))

    def first(self) -> Any:
        with self._env.begin() as transaction:
            cursor = transaction.cursor()
            cursor.first()
            return cursor.item()


class Rocks:
    def __init__(self, where: str) -> None:
        from rocksdict import Options, Rdict, WriteBatch, WriteOptions

        self._db = Rdict(where, Options(raw_mode=True))
        self._batch = lambda: WriteBatch(raw_mode=True)
        self._sync = WriteOptions()
        self._sync.sync = True
        self._next = 1

    def append(self, count: int = 1) -> None:
        batch = self._batch()
        for _ in range(count):
            batch.put(self._next.to_bytes(8, "big"), payload(self._next))
            self._next += 1
        self._db.write(batch, self._sync)

    def delete(self, numbers: list[int]) -> None:
        batch = self._batch()
        for number in numbers:
            batch.delete(number.to_bytes(8, "big"))
        self._db.write(batch, self._sync)

    def first(self) -> Any:
        return next(iter(self._db.items()))


class Documents:
    def __init__(self, where: str) -> None:
        from unqlite import UnQLite

        self._db = UnQLite(f"{where}.unqlite")
        self._next = 1

    def append(self, count: int = 1) -> None:
        with self._db.transaction():
            for _ in range(count):
                self._db[f"{self._next:016}"] = payload(self._next)
                self._next += 1

    def delete(self, numbers: list[int]) -> None:
        with self._db.transaction():
            for number in numbers:
                del self._db[f"{number:016}"]

    def first(self) -> Any:
        with self._db.cursor() as cursor:
            cursor.first()
            return cursor.key(), cursor.value()


MADE: dict[str, Any] = {
    "PostgreSQL": lambda where: Own("postgresql", where), "SQLite": lambda where: Own("sqlite", f"{where}.sqlite"),
    "LMDB": Lmdb, "RocksDB": Rocks, "UnQLite": Documents,
}  # fmt: skip


def work(name: str, where: str, server: int) -> None:
    """In a process of its own: says what it cost. ``server`` is the database's process, 0 if it is in here."""
    pids = [os.getpid(), *([server] if server else [])]
    box = MADE[name](where)
    for _ in range(20):
        box.append()
    box.delete(list(range(1, 21)))
    cpu, written, began = _cpu(server), sum(map(measure.written, pids)), time.monotonic()
    for number in range(BATCHES):
        box.append()
        if number % AT_ONCE == AT_ONCE - 1:
            box.delete(list(range(20 + number - AT_ONCE + 2, 20 + number + 2)))
    seconds = time.monotonic() - began
    cost = {
        "commits_per_s": BATCHES / seconds,
        "cpu_s_per_million": (_cpu(server) - cpu) / BATCHES / READINGS * 1e6,
        "written_per_reading": (sum(map(measure.written, pids)) - written) / BATCHES / READINGS,
    }
    for _ in range(WAITING // 500):
        box.append(500)
    print(json.dumps(cost))


def _cpu(server: int) -> float:
    own = resource.getrusage(resource.RUSAGE_SELF)
    return own.ru_utime + own.ru_stime + (measure.cpu_seconds(server) if server else 0.0)


def restart(name: str, where: str) -> None:
    """In a new process: seconds until the first of the batches that wait is read."""
    began = time.monotonic()
    MADE[name](where).first()
    print(json.dumps({"first_batch_s": time.monotonic() - began}))


def main() -> None:
    postgres = Postgres()
    postgres.start()
    folder = Path(tempfile.mkdtemp(prefix="skywave-bench-", dir="."))
    try:
        for name in MADE:
            where = postgres.new_database() if name == "PostgreSQL" else str(folder / name)
            server = postgres.process.pid if name == "PostgreSQL" else 0
            found: dict[str, float] = {}
            for words in (["work", name, where, str(server)], ["restart", name, where]):
                command = [sys.executable, __file__, *words]
                found |= json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            row(f"{name}: durable commits", "-", f"{found['commits_per_s']:,.0f} /s")
            row("… CPU, database included", "-", f"{found['cpu_s_per_million']:.2f} s/M")
            row("… written to the disk", "-", f"{found['written_per_reading']:.0f} B a reading")
            row(f"… opened with {WAITING:,} batches", "-", f"first batch after {found['first_batch_s'] * 1000:.0f} ms")
    finally:
        postgres.remove()
        shutil.rmtree(folder)
    write("alternatives-local-database")


if __name__ == "__main__":
    if len(sys.argv) == 1:
        main()
    elif sys.argv[1] == "work":
        work(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    else:
        restart(sys.argv[2], sys.argv[3])
