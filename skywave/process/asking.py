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

_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def fetch_status(url: str) -> dict[str, Any]:
    """The snapshot of a running client or server; raises ``NotRunning``."""
    status = fetch(f"{url.rstrip('/')}/status")
    if not isinstance(status, dict) or status.get("kind") not in ("client", "server"):
        raise NotRunning(f"{url} answers, but is no Skywave client or server", "Check http.port.")
    return status


def fetch(url: str, timeout: float = 5) -> dict[str, Any]:
    """A JSON document of a running client or server; raises ``NotRunning``."""
    try:
        document: dict[str, Any] = json.loads(fetch_bytes(url, timeout))
        return document
    except ValueError as error:
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
