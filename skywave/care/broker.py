"""What a broker says to this host, tried with the credentials of its service."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Sequence

from .. import config
from ..errors import ConfigError
from ..mqtt.tls import tls_context
from ..mqtt.trying import try_session

PROBE_S = 10.0
REFUSAL_S = 2.0


def shake_hands(mqtt: config.Mqtt) -> str:
    """Connects to the broker as far as TLS goes: nothing, or why the broker or this host refuses the other.

    No MQTT session is opened, because a second one of the same name would end the running service's.
    """
    address = f"{mqtt.host}:{mqtt.port}"
    try:
        with socket.create_connection((mqtt.host, mqtt.port), PROBE_S) as raw:
            if not mqtt.ca_file:
                return ""
            with tls_context(mqtt).wrap_socket(raw, server_hostname=mqtt.host) as tls:
                tls.settimeout(REFUSAL_S)  # in TLS 1.3 the peer's opinion of a certificate comes after the handshake
                return "" if tls.recv(1) else f"{address} closed the connection"
    except ssl.SSLError as error:
        return f"{address}: {error.reason or error}"
    except TimeoutError as error:
        return "" if str(error) == "The read operation timed out" else f"{address}: {error or 'timed out'}"
    except (OSError, ConfigError) as error:
        return f"{address}: {error}"


def open_session(mqtt: config.Mqtt, client_id: str, wanted: Sequence[str]) -> str:
    """Connects as far as MQTT goes and subscribes: nothing, or what the broker refuses. Ends a session of that name."""
    address = f"{mqtt.host}:{mqtt.port}"
    try:
        refusal = try_session(mqtt, client_id, wanted, PROBE_S)
    except (OSError, ValueError, ConfigError) as error:
        refusal = str(error)
    return f"{address}: {refusal}" if refusal else ""


def reachable(mqtt: config.Mqtt) -> bool:
    """Whether something listens at the broker's address."""
    try:
        socket.create_connection((mqtt.host, mqtt.port), PROBE_S).close()
    except OSError:
        return False
    return True
