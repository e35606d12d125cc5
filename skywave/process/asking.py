"""Asking a running client or server of the fleet for its figures.

Its address is this host's or the fleet's own, so no proxy of the environment stands between: one that is set for package
downloads would make everything look dead.
"""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from typing import Any

from ..errors import NotRunning
from .snapshot import ClientSnapshot, ServerSnapshot, decode

_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def fetch_status(url: str) -> ClientSnapshot | ServerSnapshot:
    """The snapshot of the client or server that shows its figures at ``url``; raises ``NotRunning``."""
    return decode(fetch_status_document(url), url)


def fetch_status_document(url: str) -> Any:
    """What is behind that snapshot, as it is, whoever answers; raises ``NotRunning``."""
    return fetch(f"{url.rstrip('/')}/status")


def fetch(url: str, timeout: float = 5) -> Any:
    """A JSON document of a running client or server; raises ``NotRunning``. ``timeout`` in seconds."""
    try:
        return json.loads(fetch_bytes(url, timeout))
    except (ValueError, RecursionError) as error:  # not JSON, or nested without end
        raise NotRunning(f"{url}: {error}", "Check http.port.") from error


def fetch_bytes(url: str, timeout: float = 5) -> bytes:
    """What is answered, as it is; raises ``NotRunning``. ``timeout`` in seconds."""
    try:
        with _DIRECT.open(url, timeout=timeout) as answer:
            body: bytes = answer.read()
            return body
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise NotRunning(f"{url}: {reason}", "Start it, or set http.port in its configuration.") from error
