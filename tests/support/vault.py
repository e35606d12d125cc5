"""An archive and a store for one test, with the ledger of every reading that was put into the store."""

from __future__ import annotations

import json
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
from collections import defaultdict
from contextlib import closing
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
from click.testing import CliRunner
from skywave_archive.cli import main

from skywave import config
from skywave.store.columns import Block, Rejected
from skywave.store.shards import open_store

COLUMNS = ("client_id", "data_key", "created_at", "stream", "seq", "data_value", "received_at")
STREAM = 0xFEDCBA9876543210


def today() -> date:
    return datetime.now(UTC).date()


def days_ago(n: int) -> date:
    return today() - timedelta(days=n)


def bits(value: float) -> int:
    return struct.unpack("<q", struct.pack("<d", value))[0]


def day_start(day: date) -> int:
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()) * 1_000_000


class Vault:
    """``stores`` is the TOML of [store] for each shard ("1" for the only one), ``target`` that of [target]."""

    def __init__(self, stores: dict[str, str], database: str, target: str, extra: str = "") -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="skywave-vault-"))
        self.database = database
        self.archive = self.folder / "archive"
        self.stores = stores
        self.target = target or f'kind = "local"\npath = "{self.archive}"\n'
        self.ledger: dict[date, dict[tuple, tuple]] = defaultdict(dict)
        self.configure(extra)
        for name in stores:
            store = self.open(name)
            store.migrate()
            store.close()

    def configure(self, extra: str = "", target: str | None = None) -> None:
        tables = f'[store]\ndatabase = "{self.database}"\n'
        if list(self.stores) == ["1"]:
            tables += self.stores["1"]
        else:
            tables += "quorum = 1\n" + "".join(
                f'[store.shards.{name}]\nreplicas = "127.0.0.1:{self.settings(name).port}"\n' for name in self.stores
            )
        self.path = self.folder / "archive.toml"
        self.path.write_text(f"{tables}\n[target]\n{target or self.target}\n[export]\nlock_ttl = 1.0\n{extra}\n")

    def settings(self, name: str = "1", database: str | None = None) -> config.Store:
        import tomllib

        body = tomllib.loads(self.stores[name])
        return config.parse({**body, "database": database or self.database, "timeout": 60}, config.Store)

    def open(self, name: str = "1", database: str | None = None):
        return open_store(self.settings(name, database))

    # -- the ledger --------------------------------------------------------------------------------------------------------

    def add(
        self, day: date, first: int = 1, count: int = 1000, client: int = 1, stream: int = STREAM,
        keys: tuple[bytes, ...] = (b"temperature", b"pressure", b"height"), values=None, shard: str = "1",
        note: bool = True, received: int = 5, step: int = 1,
    ) -> None:  # fmt: skip
        """Inserts readings ``first``, ``first + step`` … of a stream, as one block, and notes them."""
        seq = np.arange(first, first + count * step, step, dtype=np.uint64)
        codes = (np.arange(count) + first) % len(keys)
        created = day_start(day) + seq.astype(np.int64) * 1000 + codes * 7
        values = np.sin(np.arange(count) + first) if values is None else np.asarray(values, np.float64)
        block = Block(
            np.full(count, client, np.uint32), np.full(count, stream, np.uint64), seq, created, list(keys), codes, values,
            np.full(count, received, np.int64), day,
        )  # fmt: skip
        store = self.open(shard)
        store.insert_readings(block)
        store.close()
        if note:
            for n in range(count):
                row = (
                    client, keys[codes[n]], int(created[n]), stream, int(seq[n]), bits(values[n]), received,
                )  # fmt: skip
                self.ledger[day][row[:5]] = row

    def reject(self, day: date, number: int, payload: bytes = b"poison\0") -> None:
        store = self.open(next(iter(self.stores)))
        store.reject([Rejected(9, 0, 0, 0, f"{number:064x}", "/t", "bad", "{}", payload, day_start(day) + number, day)])
        store.close()

    @property
    def rows(self) -> int:
        return sum(len(rows) for rows in self.ledger.values())

    @staticmethod
    def stored(store, day: date | None = None) -> dict[date, dict[tuple, tuple]]:
        """The rows of a store as the ledger has them; fails if two have one identity."""
        where = f" WHERE day = '{day}'" if day else ""
        found: dict[date, dict[tuple, tuple]] = defaultdict(dict)
        sql = f"SELECT {', '.join(COLUMNS)}, toString(day) AS d FROM {store.database}.telemetry FINAL{where}"
        for batch in store.stream(sql):
            columns = [batch.column(i) for i in range(8)]
            lists = [c.to_pylist() for c in columns]
            lists[5] = columns[5].to_numpy().view(np.int64).tolist()
            for *row, text in zip(*lists, strict=True):
                bucket = found[date.fromisoformat(text.decode())]
                assert tuple(row[:5]) not in bucket, f"doubled: {row}"
                bucket[tuple(row[:5])] = tuple(row)
        return found

    def assert_restored(self, *stores, days=None) -> None:
        """The stores together hold exactly what the ledger says, to the last bit; closes them."""
        found: dict[date, dict] = defaultdict(dict)
        for store in stores:
            for day, rows in self.stored(store).items():
                assert not rows.keys() & found[day].keys(), "doubled over shards"
                found[day].update(rows)
            store.close()
        expected = {day: rows for day, rows in self.ledger.items() if rows and (days is None or day in days)}
        assert found.keys() == expected.keys()
        for day, rows in expected.items():
            assert found[day] == rows, f"{day}: {len(found[day])} rows, expected {len(rows)}"

    # -- running -----------------------------------------------------------------------------------------------------------

    def run(self, *args: str, code: int | None = 0) -> dict:
        """``skywave-archive`` in this process with --json; its document, with what it said to stderr as "stderr"."""
        command, *rest = args
        result = CliRunner().invoke(main, [command, "--config", str(self.path), "--json", *rest])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert code is None or result.exit_code == code, f"{args}: {result.exit_code}\n{result.output}"
        lines = [line for line in result.stdout.splitlines() if line.startswith("{")]
        return {**(json.loads(lines[-1]) if lines else {}), "stderr": result.stderr, "code": result.exit_code}

    def outcomes(self, document: dict) -> list[tuple[str, str]]:
        return [(item["day"], item["outcome"]) for item in document["days"] if item["table"] == "telemetry"]

    def popen(self, *args: str, **kwargs) -> subprocess.Popen:
        command, *rest = args
        return subprocess.Popen(
            [sys.executable, "-m", "skywave_archive", command, "--config", str(self.path), *rest],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            # A shell that ran the tests in the background may have taken Ctrl-C from them.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), **kwargs,
        )  # fmt: skip

    def back(self):
        """What the archive holds, restored into a database of its own beside the first shard's."""
        shard, name = next(iter(self.stores)), f"{self.database}_back"
        self.run("restore", "--into", f"clickhouse://127.0.0.1:{self.settings(shard).port}/{name}")
        return self.open(shard, name)

    def drop(self, day) -> None:
        with closing(self.open()) as store:
            store.query(f"ALTER TABLE {self.database}.telemetry DROP PARTITION '{day}'")

    # -- looking at a local archive ------------------------------------------------------------------------------------------

    def files(self, day: date, table: str = "telemetry") -> list[Path]:
        return sorted((self.archive / table / f"day={day}").glob("*"))

    def manifest(self, day: date, generation: int = 1, table: str = "telemetry") -> dict:
        return json.loads(self.manifest_path(day, generation, table).read_text())

    def manifest_path(self, day: date, generation: int = 1, table: str = "telemetry") -> Path:
        return self.archive / "_manifests" / table / f"{day}.gen-{generation:04}.json"

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
