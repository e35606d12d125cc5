"""Figures for Prometheus' textfile collector: one file, written whole and moved into place after each command."""

from __future__ import annotations

import os
import time
from datetime import UTC, date, datetime
from pathlib import Path

from prometheus_client import CollectorRegistry, Gauge, write_to_textfile

PREFIX = "skywave_archive_"


def write(
    path: str,
    command: str,
    exit_code: int,
    seconds: float,
    rows: int,
    size: int,
    oldest_open: date | None,
    newest_verified: date | None,
) -> None:
    """Writes the figures of a command; ``path`` is a file for each command: its name is put before the suffix.

    ``oldest_open`` is the oldest day that has rows not yet archived, ``newest_verified`` the newest day whose newest
    generation was verified row by row.
    """
    registry = CollectorRegistry()
    file = Path(path)
    file = file.with_name(f"{file.stem}_{command}{file.suffix or '.prom'}")

    def gauge(name: str, doc: str, value: float) -> None:
        Gauge(f"{PREFIX}{name}", doc, ["command"], registry=registry).labels(command).set(value)

    success = time.time() if exit_code == 0 else _last_success(file, command)
    gauge("last_success_timestamp_seconds", "When the command last ended with exit code 0.", success)
    gauge("last_run_timestamp_seconds", "When the command last ended.", time.time())
    gauge("last_exit_code", "Its exit code.", exit_code)
    gauge("last_rows", "Rows it handled.", rows)
    gauge("last_bytes", "Bytes it handled.", size)
    gauge("last_seconds", "How long it took.", seconds)
    if oldest_open:
        gauge(
            "oldest_unarchived_day_timestamp_seconds", "Start of the oldest closed day to archive.", _start(oldest_open)
        )
    if newest_verified:
        gauge(
            "newest_verified_day_timestamp_seconds",
            "Start of the newest day verified row by row.",
            _start(newest_verified),
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    write_to_textfile(os.fspath(file), registry)
    file.chmod(0o644)  # the collector is another user


def _start(day: date) -> float:
    return datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()


def _last_success(file: Path, command: str) -> float:
    name = f'{PREFIX}last_success_timestamp_seconds{{command="{command}"}} '
    try:
        for line in file.read_text(encoding="ascii").splitlines():
            if line.startswith(name):
                return float(line.removeprefix(name))
    except (OSError, ValueError):
        pass
    return 0.0
