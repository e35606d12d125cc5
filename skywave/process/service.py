"""How a long-running process of ours lives: its log, the signals that end it, the watchdog that it feeds, its threads.

The watchdog is fed by progress, not by being alive: ``healthy`` must say that the main loops have turned lately.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

from ..config.masking import mask
from .systemd import notify
from .visible import LineFormatter, visible

log = logging.getLogger(__name__)


def setup_logging(level: str = "INFO") -> None:
    """Plain lines on stderr; under systemd without a time (the journal has its own) and with a priority."""
    under_systemd = "JOURNAL_STREAM" in os.environ
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JournalFormatter() if under_systemd else _formatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def _formatter() -> logging.Formatter:
    formatter = _Formatter("%(asctime)s.%(msecs)03dZ %(levelname)-7s %(message)s", "%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    return formatter


class _Formatter(LineFormatter):
    """No password gets into a log, whatever library wrote the line."""

    def format(self, record: logging.LogRecord) -> str:
        return mask(super().format(record))


class _JournalFormatter(_Formatter):
    _PRIORITIES = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6), (0, 7))

    def format(self, record: logging.LogRecord) -> str:
        priority = next(p for level, p in self._PRIORITIES if record.levelno >= level)
        return f"<{priority}>{super().format(record)}"


class Signals:
    """SIGTERM and SIGINT as a flag; ``count`` says how many came.

    A handler runs between any two steps of the main thread: while that holds a lock, prints, or renders a screen. So it sets a
    flag and does nothing else. The flag is an eventfd as well, which takes no lock and ends a wait at once.
    """

    def __init__(self) -> None:
        self.count = 0
        self._flag = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        weakref.finalize(self, os.close, self._flag).atexit = False
        self._poll = select.poll()
        self._poll.register(self._flag, select.POLLIN)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)

    def _note(self, *_: Any) -> None:
        self.count += 1
        os.eventfd_write(self._flag, 1)

    def __bool__(self) -> bool:
        return self.count > 0

    def wait(self, seconds: float) -> bool:
        """Waits until a signal has come, but not longer than that; True if one has."""
        self._poll.poll(max(0.0, seconds) * 1000)
        return self.count > 0


def run_until_signal(healthy: Callable[[], str], status_line: Callable[[], str], interval: float = 60.0) -> None:
    """Returns at SIGTERM or SIGINT, or raises ``SystemExit(70)`` when a loop has died.

    ``healthy`` returns "" or what is wrong; while it says "" the watchdog is fed. A status line is logged every ``interval``
    seconds. A reason that starts with ``dead`` means that a thread has ended by an error: then the process ends as well.
    """
    signals = Signals()
    notify("READY=1")
    complaint = ""
    log_at = time.monotonic() + interval
    while not signals.wait(1.0):
        problem = healthy()
        if problem.startswith("dead"):
            log.critical("%s; the service ends, so that it can be started afresh", problem)
            notify(f"STATUS={visible(problem)}")
            raise SystemExit(70)
        if problem and problem != complaint:
            log.error("no progress: %s", problem)
        complaint = problem
        if not problem:
            notify(f"WATCHDOG=1\nSTATUS={visible(status_line())}")
        if time.monotonic() >= log_at:
            log_at += interval
            log.info("%s", status_line())
    notify("STOPPING=1")


class Worker(threading.Thread):
    """A thread that remembers what killed it."""

    def __init__(self, name: str, target: Callable[[], None]) -> None:
        super().__init__(name=name, daemon=True)
        self._work = target
        self.died_of: BaseException | None = None

    def run(self) -> None:
        """Runs the target; an error ends up in the log and in ``died_of``."""
        try:
            self._work()
        except BaseException as error:
            self.died_of = error
            log.critical("%s has ended by an error", self.name, exc_info=error)
