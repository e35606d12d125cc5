"""paho's client as all of ours are made."""

from __future__ import annotations

from typing import TypeVar

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from .. import config
from .events import Will
from .tls import tls_context

MAX_INFLIGHT = 65535
"""Messages that paho sends before an answer. Our own window bounds them; paho would queue the rest out of sight."""

_Client = TypeVar("_Client", bound=paho.Client)


def new_client(kind: type[_Client], settings: config.Mqtt, client_id: str, will: Will | None = None) -> _Client:
    """A client for one connection, with the credentials of ``settings`` as they are now. Raises ``ConfigError``."""
    client = kind(CallbackAPIVersion.VERSION2, client_id, protocol=paho.MQTTv5, reconnect_on_failure=False)
    client.max_inflight_messages_set(MAX_INFLIGHT)
    if settings.username:
        client.username_pw_set(settings.username, config.secret(settings.password_file) or None)
    if settings.ca_file:
        client.tls_set_context(tls_context(settings))
    if will:
        client.will_set(will.topic, will.payload, 1, retain=True)
    return client
