"""What a command did: its output for people or as JSON, its exit code, its metrics, its progress bar."""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from typing import Any

from skywave.errors import EXIT_DATA, EXIT_SOFTWARE, EXIT_TRY_LATER, SkywaveError
from skywave.process.visible import say, say_json

from .archive import Archive
from .settings import Archive as Settings
from .settings import load
from .targets.opening import open_target


@dataclass
class Report:
    """What a command did, for its output, its exit code and its metrics."""

    settings: Settings
    command: str
    as_json: bool
    document: dict[str, Any] = field(default_factory=dict)
    exit_code: int = 0
    rows: int = 0
    bytes: int = 0
    oldest_open: date | None = None
    newest_verified: date | None = None
    started: float = field(default_factory=time.monotonic)

    def line(self, text: str) -> None:
        """One line for people; nothing with --json."""
        if not self.as_json:
            say(text)

    def problem(self, error: SkywaveError, what: str = "") -> None:
        """One thing that went wrong and does not stop the rest."""
        self.exit_code = max(self.exit_code, error.exit_code) if self.exit_code != EXIT_DATA else EXIT_DATA
        self.document.setdefault("problems", []).append(f"{what}{error}")
        say(f"Error: {what}{error}", err=True)
        if error.hint:
            say(f"  {error.hint}", err=True)


@contextmanager
def _reported(path: str, command: str, as_json: bool) -> Iterator[tuple[Archive, Report]]:
    """Opens the archive; at the end prints the document, writes the metrics and exits with the report's code."""
    settings = load(path)
    report = Report(settings, command, as_json)
    code = EXIT_SOFTWARE
    try:
        yield Archive(open_target(settings.target)), report
        code = report.exit_code
    except SkywaveError as error:
        code = error.exit_code
        raise
    except KeyboardInterrupt:
        code = EXIT_TRY_LATER
        say("interrupted; nothing is half done, run it again to go on", err=True)
        sys.exit(code)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else EXIT_SOFTWARE
        raise
    finally:
        if settings.metrics_file and report.command:
            from . import metrics

            try:
                metrics.write(
                    settings.metrics_file,
                    report.command,
                    code,
                    time.monotonic() - report.started,
                    report.rows,
                    report.bytes,
                    report.oldest_open,
                    report.newest_verified,
                )
            except OSError as error:
                say(f"Warning: metrics_file {settings.metrics_file} cannot be written: {error.strerror}", err=True)
    if as_json:
        say_json({**report.document, "exit_code": report.exit_code})
    sys.exit(report.exit_code)


def with_archive(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the archive and its report instead of a path."""

    @functools.wraps(command)
    def wrapped(path: str, as_json: bool, **options: Any) -> None:
        with _reported(path, command.__name__.strip("_"), as_json) as (archive, report):
            command(archive=archive, report=report, **options)

    return wrapped


@contextmanager
def bar(report: Report, label: str, total: int | None, unit: str) -> Iterator[Callable[[int], None]]:
    """A progress bar on a terminal, nothing elsewhere."""
    if report.as_json or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[done]}"), TimeElapsedColumn(),
        TimeRemainingColumn(),
    )  # fmt: skip
    done = 0
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(label, total=total, done="")

        def advance(count: int) -> None:
            nonlocal done
            done += count
            progress.update(task, completed=done, done=f"{done / 1e6:,.1f} M {unit}")

        yield advance
