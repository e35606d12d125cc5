"""A process's figures without the process: a document at an address, as skywave serves it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@contextmanager
def answers(body: Callable[[], bytes], host: str = "127.0.0.1") -> Iterator[int]:
    """Answers every request with what ``body`` returns; the port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body())

        def log_message(self, *_: object) -> None:
            """Requests are not worth a line."""

    with ThreadingHTTPServer((host, 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def shows(document: Callable[[], dict[str, Any]], host: str = "127.0.0.1") -> Iterator[int]:
    """Shows the JSON document that ``document`` returns; the port."""
    with answers(lambda: json.dumps(document()).encode(), host) as port:
        yield port
