"""`make bench-archive`: the archive against the pipes an operator would write. Writes build/bench-archive.json.

Export and restore of 20 million rows, to and from a real HDFS, turn by turn with the pipes, medians of 5; bytes a row on
three kinds of sensors; memory from 1 to 100 million rows; a night with nothing new over 365 archived days. Every figure of
ours is of the whole command, its start included.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import requests
from report import row, write
from support.hadoop import Hdfs
from support.parts import ClickHouse
from support.vault import Vault, day_start, days_ago

from skywave.store.columns import Block

CLIENTS = 20
KEYS = [b"temperature", b"pressure", b"height"]
ROUNDS = 5
BLOCK = 400_000
STATUS = "SELECT count() FROM system.merges"


def fill(vault: Vault, day: date, rows: int, kind: str) -> None:
    """Rows as a fleet makes them: each block holds every client, each client's readings take turns over its keys."""
    rng = np.random.default_rng(1)
    store = vault.open()
    at_once = min(BLOCK, rows)
    each = at_once // CLIENTS
    level = np.zeros((CLIENTS, len(KEYS)))
    step = 86_400_000_000 // (rows // CLIENTS)
    for start in range(0, rows // CLIENTS, each):
        seq = np.arange(start + 1, start + each + 1, dtype=np.uint64)
        values = np.empty((CLIENTS, each))
        for k in range(len(KEYS)):
            n = len(range(k, each, len(KEYS)))
            if kind == "walk":
                moves = rng.normal(0, 0.1, (CLIENTS, n)).cumsum(axis=1) + level[:, [k]]
                level[:, k] = moves[:, -1]
                part = np.round(moves, 3)
            elif kind == "sine":
                part = 20 + 5 * np.sin((np.arange(n) + start) / 500 + k) + np.zeros((CLIENTS, 1))
            else:
                part = rng.random((CLIENTS, n))
            values[:, k :: len(KEYS)] = part
        created = day_start(day) + np.tile(seq, CLIENTS).astype(np.int64) * step + rng.integers(0, 2000, at_once)
        client = np.repeat(np.arange(1, CLIENTS + 1), each)
        store.insert_readings(
            Block(
                client.astype(np.uint32),
                client.astype(np.uint64) * 0x123456789ABCDEF,
                np.tile(seq, CLIENTS),
                created,
                KEYS,
                np.tile(np.arange(each) % len(KEYS), CLIENTS),
                values.ravel(),
                created + 150_000,
                day,
            )
        )
    while store.query(STATUS)[0][0]:
        time.sleep(0.5)
    store.close()


class Yard:
    """The servers, and both ways of doing it."""

    def __init__(self) -> None:
        self.clickhouse, self.hdfs = ClickHouse(), Hdfs()
        self.clickhouse.start()
        self.hdfs.start()
        self.number = 0

    def vault(self, database: str) -> Vault:
        target = f'kind = "hdfs"\nurls = "{self.hdfs.url}"\npath = "{self.hdfs.new_root()}"\n'
        return Vault({"1": f"port = {self.clickhouse.port}"}, database, target)

    def location(self, method: str, path: str, op: str) -> str:
        query = {"op": op, "user.name": "root", "overwrite": "true"}
        answer = requests.request(
            method, f"{self.hdfs.url}/webhdfs/v1{path}", params=query, allow_redirects=False, timeout=30
        )
        return answer.headers["location"]

    def pipe_out(self, sql: str, path: str, compressor: str) -> float:
        target = self.location("PUT", path, "CREATE")
        client = f'clickhouse-client --port {self.clickhouse.port} -q "{sql} FORMAT Native"'
        return timed(f"set -o pipefail; {client} | {compressor} | curl -sSf -T - '{target}'")

    def pipe_back(self, table: str, path: str) -> float:
        source = self.location("GET", path, "OPEN")
        client = f'clickhouse-client --port {self.clickhouse.port} -q "INSERT INTO {table} FORMAT Native"'
        return timed(f"set -o pipefail; curl -sSf '{source}' | zstd -d | {client}")

    def remove(self) -> None:
        self.clickhouse.remove()
        self.hdfs.remove()


def timed(command: str) -> float:
    started = time.monotonic()
    subprocess.run(["bash", "-c", command], check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - started


def ours(vault: Vault, *args: str) -> tuple[float, float, int]:
    """Wall seconds, CPU-seconds and peak RSS in bytes of one command."""
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "skywave_archive", args[0], "--config", str(vault.path), *args[1:]],
        stdout=subprocess.DEVNULL,
    )
    peak = 0
    while True:
        # Not ru_maxrss: a child inherits that from the process that started it.
        with contextlib.suppress(OSError, StopIteration):
            lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
            peak = max(peak, next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024)
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            break
        time.sleep(0.02)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, args
    return time.monotonic() - started, usage.ru_utime + usage.ru_stime, peak


def speed(yard: Yard, rows: int) -> None:
    day = days_ago(2)
    vault = yard.vault("speed")
    fill(vault, day, rows, "walk")
    store = vault.open()
    sql = f"SELECT * FROM speed.telemetry WHERE day = '{day}'"
    store.query("CREATE TABLE speed.piped AS speed.telemetry")
    times: dict[str, list[float]] = {}
    cpu: dict[str, list[float]] = {}

    def note(name: str, seconds: float, used: float = 0.0) -> None:
        times.setdefault(name, []).append(seconds)
        cpu.setdefault(name, []).append(used)
        print(f"  {name}: {rows / seconds / 1e6:.2f} M rows/s, {used / rows * 1e6:.3f} CPU-s/M", file=sys.stderr)

    peak = 0
    for number in range(ROUNDS):
        root = yard.hdfs.new_root()
        vault.configure(target=f'kind = "hdfs"\nurls = "{yard.hdfs.url}"\npath = "{root}"\n')
        note("zstd pipe", yard.pipe_out(sql, "/pipe.zst", "zstd -1 -c -q"))
        if number == 0:
            note("gzip pipe", yard.pipe_out(sql, "/pipe.gz", "gzip -1"))
        seconds, used, memory = ours(vault, "export", "--day", str(day))
        note("export", seconds, used)
        peak = max(peak, memory)
        note("pipe back", yard.pipe_back("speed.piped", "/pipe.zst"))
        store.query("TRUNCATE TABLE speed.piped")
        into = f"clickhouse://127.0.0.1:{yard.clickhouse.port}/speed_back"
        seconds, used, memory = ours(vault, "restore", "--into", into)
        note("restore", seconds, used)
        peak = max(peak, memory)
        store.query("DROP DATABASE speed_back")
        yard.hdfs.op("DELETE", root, "DELETE", recursive="true")
    store.query("DROP DATABASE speed")
    store.close()
    median = {name: rows / statistics.median(values) / 1e6 for name, values in times.items()}
    used = {name: statistics.median(values) / rows * 1e6 for name, values in cpu.items()}
    ratio = median["export"] / median["zstd pipe"]
    row(
        "export, 20 M rows to HDFS", "≥ 0.5 x the zstd -1 pipe, which verifies nothing",
        f"{ratio:.2f} x ({median['export']:.2f} of {median['zstd pipe']:.2f} M rows/s, {used['export']:.2f} CPU-s/M)",
        ratio >= 0.5,
    )  # fmt: skip
    row("… against the gzip -1 pipe", "above it",
        f"{median['export'] / median['gzip pipe']:.1f} x ({median['gzip pipe']:.2f} M rows/s)",
        median["export"] > median["gzip pipe"])  # fmt: skip
    ratio = median["restore"] / median["pipe back"]
    row(
        "restore, 20 M rows, digest checked", "≥ 0.7 x the pipe backwards",
        f"{ratio:.2f} x ({median['restore']:.2f} of {median['pipe back']:.2f} M rows/s, {used['restore']:.2f} CPU-s/M)",
        ratio >= 0.7,
    )  # fmt: skip
    row("… peak RSS", "≤ 512 MiB", f"{peak / 2**20:.0f} MiB", peak <= 512 * 2**20)


def sizes(yard: Yard, rows: int) -> None:
    for kind, limit in (("walk", 0.8), ("sine", 0.8), ("noise", 1.0)):
        day = days_ago(2)
        vault = yard.vault(f"sizes_{kind}")
        fill(vault, day, rows, kind)
        sql = f"SELECT * FROM {vault.database}.telemetry WHERE day = '{day}' FORMAT Native"
        client = f'clickhouse-client --port {yard.clickhouse.port} -q "{sql}" | zstd -3 -c -q | wc -c'
        native = int(subprocess.run(["bash", "-c", client], check=True, capture_output=True).stdout)
        vault.run("export", "--day", str(day))
        size = vault.run("list", "--no-store")["days"][0]["bytes"]
        row(f"bytes a row, {kind}", f"≤ {limit} x Native | zstd -3",
            f"{size / native:.2f} x ({size / rows:.2f} of {native / rows:.2f} B)", size <= limit * native)  # fmt: skip
        store = vault.open()
        store.query(f"DROP DATABASE {vault.database}")
        store.close()


def memory(yard: Yard, most: int) -> None:
    peaks = []
    for rows in (1_000_000, most // 10, most):
        vault = yard.vault(f"memory_{rows}")
        fill(vault, days_ago(2), rows, "walk")
        peaks.append(ours(vault, "export")[2] / 2**20)
        into = f"clickhouse://127.0.0.1:{yard.clickhouse.port}/memory_back"
        back = ours(vault, "restore", "--into", into)[2] / 2**20
        print(f"  {rows:,} rows: export {peaks[-1]:.0f} MiB, restore {back:.0f} MiB", file=sys.stderr)
        peaks.append(back)
        store = vault.open()
        store.query(f"DROP DATABASE {vault.database}")
        store.query("DROP DATABASE memory_back")
        store.close()
    export, back = peaks[::2], peaks[1::2]
    good = max(peaks) <= 512 and export[2] <= export[1] * 1.15 and back[2] <= back[1] * 1.15
    row(
        f"peak RSS at 1, {most / 1e7:g} and {most / 1e6:g} M rows",
        "≤ 512 MiB, flat",
        f"export {', '.join(f'{p:.0f}' for p in export)}; restore {', '.join(f'{p:.0f}' for p in back)} MiB", good,
    )  # fmt: skip


def idle(yard: Yard, days: int) -> None:
    vault = yard.vault("idle")
    for n in range(days):
        vault.add(days_ago(1) - timedelta(days=n), first=1 + 100 * n, count=100, note=False)
    vault.run("export")
    seconds = statistics.median(ours(vault, "export")[0] for _ in range(ROUNDS))
    assert vault.run("export")["days"] == []
    row(f"a night with nothing new, {days} days", "≤ 5 s", f"{seconds:.1f} s", seconds <= 5)


def main() -> None:
    scale = float(os.environ.get("BENCH_SCALE", "1"))
    yard = Yard()
    try:
        parts: list[Callable[[], None]] = [
            lambda: speed(yard, int(20_000_000 * scale)),
            lambda: sizes(yard, int(4_000_000 * scale)),
            lambda: idle(yard, 365),
            lambda: memory(yard, int(100_000_000 * scale)),
        ]
        chosen = sys.argv[1:] or ["speed", "sizes", "idle", "memory"]
        for name, part in zip(("speed", "sizes", "idle", "memory"), parts, strict=True):
            if name in chosen:
                part()
    finally:
        yard.remove()
    sys.exit(0 if write("bench-archive") else 1)


if __name__ == "__main__":
    main()
