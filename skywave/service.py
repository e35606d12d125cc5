"""What every long-running process needs: logging, signals, systemd's notifications and the HTTP endpoint.

The watchdog is fed by progress, not by being alive: ``healthy`` must say that the main loops have turned lately.
"""

from __future__ import annotations

import http.server
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from . import config
from .errors import ConfigError
from .visible import LineFormatter, visible

log = logging.getLogger(__name__)

Snapshot = dict[str, Any]


def setup_logging(level: str = "INFO") -> None:
    """Plain lines on stderr; under systemd without a time (the journal has its own) and with a priority."""
    under_systemd = "JOURNAL_STREAM" in os.environ
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JournalFormatter() if under_systemd else _formatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def _formatter() -> logging.Formatter:
    formatter = LineFormatter("%(asctime)s.%(msecs)03dZ %(levelname)-7s %(message)s", "%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    return formatter


class _JournalFormatter(LineFormatter):
    _PRIORITIES = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6), (0, 7))

    def format(self, record: logging.LogRecord) -> str:
        priority = next(p for level, p in self._PRIORITIES if record.levelno >= level)
        return f"<{priority}>{super().format(record)}"


def notify(state: str, *descriptors: int) -> None:
    """Tells systemd (sd_notify(3)), with open descriptors to keep; does nothing elsewhere."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect(address)
            socket.send_fds(sock, [state.encode()], list(descriptors))
        except OSError as error:
            log.warning("systemd does not listen: %s", error)


def run_until_signal(healthy: Callable[[], str], status_line: Callable[[], str], interval: float = 60.0) -> None:
    """Returns at SIGTERM or SIGINT, or raises ``SystemExit(70)`` when a loop has died.

    ``healthy`` returns "" or what is wrong; while it says "" the watchdog is fed. One status line is logged a period.
    A reason that starts with ``dead`` means that a thread has ended by an error: then the process ends as well.
    """
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    notify("READY=1")
    complaint = ""
    log_at = time.monotonic() + interval
    while not stopping.wait(1.0):
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


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of a process: its path in the snapshot, what it is called for Prometheus, and what it means.

    A ``*`` in the path stands for any key and becomes the label ``label``.
    """

    path: str
    metric: str
    doc: str
    counter: bool = False
    label: str = ""


class _Figures(Collector):
    def __init__(self, figures: list[Figure], snapshot: Callable[[], Snapshot], labels: dict[str, str]) -> None:
        self._figures, self._snapshot, self._labels = figures, snapshot, labels

    def collect(self) -> Iterator[Metric]:
        snapshot = self._snapshot()
        base_names, base_values = list(self._labels), list(self._labels.values())
        for figure in self._figures:
            names = base_names + ([figure.label] if figure.label else [])
            family: type[CounterMetricFamily] | type[GaugeMetricFamily]
            family = CounterMetricFamily if figure.counter else GaugeMetricFamily
            metric = family(figure.metric, figure.doc, labels=names)
            for key, value in _look_up(snapshot, figure.path.split(".")):
                if value is not None:
                    metric.add_metric(base_values + ([key] if figure.label else []), float(value))
            yield metric


def _look_up(value: Any, path: list[str], key: str = "") -> list[tuple[str, Any]]:
    if not path:
        return [(key, value)]
    if path[0] == "*":
        return [found for name, inner in value.items() for found in _look_up(inner, path[1:], name)]
    return _look_up(value[path[0]], path[1:], key) if path[0] in value else []


def serve_figures(
    settings: config.Http,
    figures: list[Figure],
    snapshot: Callable[[], Snapshot],
    labels: dict[str, str],
    more: dict[str, Callable[[], Snapshot]] | None = None,
) -> http.server.ThreadingHTTPServer | None:
    """Serves ``/status`` (the snapshot as JSON), ``/metrics`` (Prometheus) and ``more`` documents in a thread; None if
    it is turned off."""
    if not settings.port:
        return None
    registry = CollectorRegistry()
    registry.register(_Figures(figures, snapshot, labels))

    documents = {"/status": snapshot, **(more or {})}

    class Handler(http.server.BaseHTTPRequestHandler):
        timeout = 10

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path in documents:
                self._answer(200, "application/json", json.dumps(documents[path]()).encode())
            elif path == "/metrics":
                self._answer(200, "text/plain; version=0.0.4; charset=utf-8", generate_latest(registry))
            else:
                self._answer(404, "text/plain", f"try {', '.join([*documents, '/metrics'])}\n".encode())

        def _answer(self, code: int, kind: str, body: bytes) -> None:
            self.send_response(code)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Requests are not worth a line."""

    try:
        server = http.server.ThreadingHTTPServer((settings.host, settings.port), Handler)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on http {settings.host}:{settings.port}: {error.strerror}", "Choose another http.port."
        ) from error
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(1.0,), name="http", daemon=True).start()
    return server


class Rate:
    """Mean change per second of a growing number over the last ``window`` seconds."""

    def __init__(self, window: float = 5.0) -> None:
        self._window = window
        self._points: list[tuple[float, float]] = []
        self._lock = threading.Lock()

    def update(self, value: float) -> float:
        """Notes the present value; returns the rate."""
        now = time.monotonic()
        with self._lock:
            if not self._points or now - self._points[-1][0] > 0.2:
                self._points.append((now, value))
            while len(self._points) > 2 and self._points[1][0] < now - self._window:
                self._points.pop(0)
            (start, first) = self._points[0]
        return (value - first) / (now - start) if now - start > 0.1 else 0.0


def rss_bytes() -> int:
    """Resident memory of this process (proc(5), statm)."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
