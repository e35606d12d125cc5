"""Words to the service manager (sd_notify(3))."""

from __future__ import annotations

import logging
import os
import socket

log = logging.getLogger(__name__)


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
