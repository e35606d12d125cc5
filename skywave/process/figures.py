"""The figures of a service over HTTP, its snapshot as JSON and its metrics for Prometheus; and how some are measured."""

from __future__ import annotations

import http.server
import logging
import os
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

from .. import config
from .snapshot import Snapshot

log = logging.getLogger(__name__)

LISTEN_RETRY_S = 5.0


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of a process: its path in the snapshot, what it is called for Prometheus, and what it means.

    A path is names of fields with dots between; ``*`` stands for any key and becomes the label ``label``.
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
    return _look_up(getattr(value, path[0]), path[1:], key)


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, host: str, port: int, handler: type[http.server.BaseHTTPRequestHandler]) -> None:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, *_, address = min(found, key=lambda item: item[0] != socket.AF_INET)
        self.address_family = family
        super().__init__((str(address[0]), port), handler)

    def handle_error(self, _request: Any, _client_address: Any) -> None:
        """Who asks may go away at any time; anything else is told."""
        if not isinstance(error := sys.exc_info()[1], OSError):
            log.error("figures cannot be shown", exc_info=error)


class FiguresServer:
    """Serves ``/status`` (the snapshot as JSON), ``/metrics`` (Prometheus) and ``more`` JSON documents by their path in a
    thread, unless ``settings.port`` is 0.

    Figures are secondary: while the port is taken, or the address not there yet, the process works without them,
    ``trouble`` says why, and it is tried again.
    """

    def __init__(
        self,
        settings: config.Http,
        figures: list[Figure],
        snapshot: Callable[[], Snapshot],
        labels: dict[str, str],
        more: dict[str, Callable[[], bytes]] | None = None,
    ) -> None:
        self._settings = settings
        self._handler = _handler(figures, snapshot, labels, more or {})
        self._stopping = threading.Event()
        self._server: _Server | None = None
        self.trouble = ""
        if settings.port:
            threading.Thread(target=self._run, name="http", daemon=True).start()

    def _run(self) -> None:
        host, port = self._settings.host, self._settings.port
        while not self._stopping.is_set():
            try:
                self._server = server = _Server(host, port, self._handler)
            except (OSError, ValueError) as error:
                why = error.strerror if isinstance(error, OSError) else error
                self.trouble = f"nobody can ask for the figures: cannot listen on http {host}:{port}: {why}"
                self._stopping.wait(LISTEN_RETRY_S)
                continue
            self.trouble = ""
            with server:
                server.serve_forever(1.0)
            return

    def stop(self) -> None:
        """Ends it."""
        self._stopping.set()
        if self._server:
            self._server.shutdown()


def _handler(
    figures: list[Figure],
    snapshot: Callable[[], Snapshot],
    labels: dict[str, str],
    more: dict[str, Callable[[], bytes]],
) -> type[http.server.BaseHTTPRequestHandler]:
    registry = CollectorRegistry()
    registry.register(_Figures(figures, snapshot, labels))
    documents = {"/status": lambda: snapshot().encode(), **more}

    class Handler(http.server.BaseHTTPRequestHandler):
        timeout = 10

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path in documents:
                self._answer(200, "application/json", documents[path]())
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

    return Handler


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
