"""What people and schedulers see of ``skywave-archive``."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from click.testing import CliRunner
from skywave_archive.cli import main
from support.parts import wait_for
from support.vault import STREAM, day_start, days_ago

from skywave.store.columns import Block

DAY = days_ago(1)


def say(vault, *args: str, code: int = 0) -> str:
    result = CliRunner().invoke(main, [args[0], "--config", str(vault.path), *args[1:]])
    assert result.exit_code == code, result.output
    return result.output


def million(vault, day, millions: int = 2) -> None:
    store = vault.open()
    for n in range(millions * 2):
        seq = np.arange(n * 500_000 + 1, (n + 1) * 500_000 + 1, dtype=np.uint64)
        created = day_start(day) + seq.astype(np.int64)
        values = np.random.default_rng(n).random(500_000)
        one = np.ones(500_000)
        store.insert_readings(
            Block(
                one.astype(np.uint32), np.full(500_000, STREAM, np.uint64), seq, created, [b"a"],
                one.astype(np.int8) * 0, values, created, day,
            )
        )  # fmt: skip
    store.close()


def test_one_line_a_day_for_logs_and_a_table_for_people(vault):
    vault.add(DAY)
    vault.reject(DAY, 1)
    assert f"would look at telemetry {DAY}" in say(vault, "export", "--dry-run")
    lines = say(vault, "export").splitlines()
    assert [line.split(",")[0] for line in lines] == [f"telemetry {DAY}: exported", f"rejected {DAY}: exported"]
    assert "1,000 rows (1,000 new)" in lines[0]
    assert say(vault, "export") == "nothing new\n"
    table = say(vault, "list")
    assert all(word in table for word in (str(DAY), "sealed", "1,000", "never", "same"))
    vault.add(DAY, first=5001)
    vault.add(days_ago(2))
    table = say(vault, "list")
    assert "changed" in table and f"not archived yet: {days_ago(2)}" in table
    assert "2 of 2 days are good at level rows" in say(vault, "verify", "--level", "rows")
    assert "rows 20" in say(vault, "list")
    assert "add --confirm to do it" in say(vault, "prune", "--delete-data-before", str(days_ago(0)), code=1)
    assert all(line.startswith("ok") for line in say(vault, "check").splitlines())
    assert "the restored day is the archived one" in say(vault, "drill")


def test_metrics_are_written_for_success_and_failure(vault):
    body = vault.path.read_text()
    vault.path.write_text(f'metrics_file = "{vault.folder}/metrics/archive.prom"\n{body}')
    vault.add(DAY)
    vault.run("export")
    file = vault.folder / "metrics" / "archive_export.prom"

    def figure(name: str) -> float:
        prefix = f'skywave_archive_{name}{{command="export"}} '
        return next(
            float(line.removeprefix(prefix)) for line in file.read_text().splitlines() if line.startswith(prefix)
        )

    first = figure("last_success_timestamp_seconds")
    assert abs(first - time.time()) < 60
    assert (figure("last_rows"), figure("last_exit_code")) == (1000, 0)
    assert figure("last_bytes") == vault.files(DAY)[0].stat().st_size
    vault.manifest_path(DAY).write_text("{")
    vault.add(DAY, first=5001)
    vault.run("export", code=1)
    assert (figure("last_success_timestamp_seconds"), figure("last_exit_code")) == (first, 1)
    assert figure("oldest_unarchived_day_timestamp_seconds") == day_start(DAY) / 1e6
    vault.run("export", "--day", str(DAY), "--anew")
    vault.run("verify", "--level", "rows")
    text = (vault.folder / "metrics" / "archive_verify.prom").read_text()
    assert "newest_verified_day_timestamp_seconds" in text


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_a_stop_leave_nothing_half_done(vault, number):
    million(vault, DAY, 4)
    process = vault.popen("export")
    wait_for(lambda: list(vault.archive.glob("_staging/*/change-*/read/*.parquet")), 30, "the export begins", 0.01)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 75 and "run it again" in said
    assert list((vault.archive / "_staging").iterdir()) == []
    assert [path.name[8:] for path in (vault.archive / "_locks").iterdir()] == [".free"]
    assert not vault.files(DAY)
    assert vault.outcomes(vault.run("export")) == [(str(DAY), "exported")]
    assert vault.manifest(DAY)["rows"] == 4_000_000


def test_a_progress_bar_on_a_terminal_and_none_in_a_log(vault):
    million(vault, DAY)
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "skywave_archive", "export", "--config", str(vault.path)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=theirs, env={**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    )
    os.close(theirs)
    seen = b""
    try:
        while chunk := os.read(ours, 65536):
            seen += chunk
    except OSError:
        pass  # the terminal's other end was closed
    os.close(ours)
    assert process.stdout
    out = process.stdout.read().decode()
    process.stdout.close()
    assert process.wait() == 0
    assert b"M rows" in seen and b"export" in seen
    assert "\x1b" not in out and "2,000,000 rows" in out


def test_a_config_that_is_wrong_says_where(vault):
    vault.path.write_text("[targets]\n")
    assert "unknown setting targets" in say(vault, "export", code=2)
    assert "Did you mean target?" in say(vault, "list", code=2)


def test_an_empty_or_mistyped_archive_is_no_success(vault):
    into = ("--into", f"clickhouse://127.0.0.1:{vault.settings().port}/{vault.database}_x")
    assert "no such day" in vault.run("restore", *into, code=1)["stderr"]
    assert "has no day" in vault.run("verify", code=1)["stderr"]
    vault.run("drill", code=1)


def test_other_commands_do_not_silence_the_alert_on_the_nightly_export(vault):
    body = vault.path.read_text()
    vault.path.write_text(f'metrics_file = "{vault.folder}/metrics/archive.prom"\n{body}')
    vault.add(DAY)
    vault.run("export", "--dry-run")
    vault.run("export", "--day", str(DAY))
    vault.run("export", "--open-day")
    written = sorted(path.name for path in (vault.folder / "metrics").iterdir())
    assert written == ["archive_export-days.prom", "archive_export-open-day.prom"]
    vault.run("export")
    assert (vault.folder / "metrics" / "archive_export.prom").exists()


def test_figures_can_be_read_by_the_collector_and_stop_nothing_if_they_cannot_be_written(vault):
    vault.add(DAY)
    vault.configure(extra="")
    whole = vault.path.read_text()
    vault.path.write_text(f'metrics_file = "{vault.folder}/figures.prom"\n{whole}')
    before = os.umask(0o077)
    try:
        vault.run("export")
    finally:
        os.umask(before)
    assert (vault.folder / "figures_export.prom").stat().st_mode & 0o777 == 0o644
    vault.path.write_text(f'metrics_file = "/proc/nowhere/figures.prom"\n{whole}')
    assert "cannot be written" in vault.run("export")["stderr"]
