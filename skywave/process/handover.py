"""Open connections that outlive a restart, in the service manager's descriptor store.

The plain sensor protocol has no acknowledgement: what stands in a socket's buffer is lost when the socket is closed. So a
client that stops gives its sensors' sockets to systemd, which gives them to the next process (sd_notify(3), FDSTORE;
``FileDescriptorStoreMax=`` in the unit). Elsewhere nothing is kept, and the sockets are closed as usual.
"""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Sequence
from typing import Any, NamedTuple

from .systemd import notify

log = logging.getLogger(__name__)

FIRST_DESCRIPTOR = 3  # sd_listen_fds(3)
NOTES = "notes"


class Kept(NamedTuple):
    """A socket and what its owner wants to know of it afterwards (JSON)."""

    sock: socket.socket
    notes: dict[str, Any]


def hand_over(connections: Sequence[Kept]) -> None:
    """Gives the sockets to the service manager, if there is one. They must still be open."""
    if not connections or "NOTIFY_SOCKET" not in os.environ:
        return
    notes = os.memfd_create(NOTES)
    with os.fdopen(notes, "w", encoding="utf-8") as file:
        json.dump([kept.notes for kept in connections], file)
        file.flush()
        notify(f"FDSTORE=1\nFDNAME={NOTES}", notes)
    for number, kept in enumerate(connections):
        notify(f"FDSTORE=1\nFDNAME=socket-{number}", kept.sock.fileno())


def take_over() -> list[Kept]:
    """What the process before handed over, each once; the service manager forgets it."""
    if os.environ.pop("LISTEN_PID", "") != str(os.getpid()):
        return []
    names = os.environ.pop("LISTEN_FDNAMES", "").split(":")
    count = int(os.environ.pop("LISTEN_FDS", "0"))
    found = {name: FIRST_DESCRIPTOR + number for number, name in enumerate(names[:count])}
    for name in found:
        notify(f"FDSTOREREMOVE=1\nFDNAME={name}")
    notes = _read_notes(found.pop(NOTES)) if NOTES in found else []
    sockets = {name: socket.socket(fileno=descriptor) for name, descriptor in found.items()}
    kept = [Kept(sockets.pop(f"socket-{n}"), note) for n, note in enumerate(notes) if f"socket-{n}" in sockets]
    for stray in sockets.values():  # their notes are gone: nobody knows where a frame begins
        stray.close()
    return kept


def _read_notes(descriptor: int) -> list[dict[str, Any]]:
    """No notes if the process before was killed while it wrote them, or was of a release that wrote others."""
    with os.fdopen(descriptor, encoding="utf-8") as file:
        file.seek(0)
        try:
            return [dict(note) for note in json.load(file)]
        except (ValueError, TypeError) as error:
            log.warning("connections that were handed over are given up, their notes cannot be read: %s", error)
            return []
