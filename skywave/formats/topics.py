"""The topic grammar.

====================================  ==========  =======================================================
topic                                 sender      content
====================================  ==========  =======================================================
``/telemetry/client/{id}/``           client      a batch (Arrow) or readings (plain JSON)
``/telemetry/client/{id}/ack``        server      which of them are committed (``messages.Ack``)
``/telemetry/client/{id}/status``     client      ``messages.ClientStatus``, retained, with last will
``/telemetry/server/{name}/status``   server      ``messages.ServerStatus``, retained, with last will
====================================  ==========  =======================================================

``{id}`` is the decimal ``client_id``, 1 to 2**32 - 1 without leading zeros; ``{name}`` has no ``/``, ``+`` or ``#``.
A device may leave out the first or the last slash of the data topic.
"""

from __future__ import annotations

import re

MAX_CLIENT_ID = 2**32 - 1

ALL_DATA_SHARED = [
    f"$share/skywave/{first}telemetry/client/+{last}" for first in ("/", "") for last in ("/", "")
]  # fmt: skip
ALL_CLIENT_STATUS = "/telemetry/client/+/status"
ALL_SERVER_STATUS = "/telemetry/server/+/status"
BROKER_DROPPED = "$SYS/broker/publish/messages/dropped"
"""Where Mosquitto tells how many messages it dropped since its start, because a queue was full."""

_CLIENT = re.compile(r"/telemetry/client/([1-9][0-9]{0,9})/(ack|status)|/?telemetry/client/([1-9][0-9]{0,9})/?")
_SERVER = re.compile(r"/telemetry/server/([^/+#]+)/status")


def data(client_id: int) -> str:
    """Topic of a client's batches."""
    return f"/telemetry/client/{client_id}/"


def ack(client_id: int) -> str:
    """Topic of the acknowledgements to a client."""
    return f"/telemetry/client/{client_id}/ack"


def client_status(client_id: int) -> str:
    """Topic of a client's retained status."""
    return f"/telemetry/client/{client_id}/status"


def server_status(name: str) -> str:
    """Topic of a server's retained status."""
    return f"/telemetry/server/{name}/status"


def parse_client(topic: str) -> tuple[int, str] | None:
    """``(client_id, "" | "ack" | "status")`` of a client's topic; None if it is not one."""
    match = _CLIENT.fullmatch(topic)
    if match is None:
        return None
    client_id = int(match[1] or match[3])
    return (client_id, match[2] or "") if client_id <= MAX_CLIENT_ID else None


def parse_server(topic: str) -> str | None:
    """The server's name in a server's status topic; None if it is not one."""
    match = _SERVER.fullmatch(topic)
    return match[1] if match else None
