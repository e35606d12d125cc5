"""One session, to see what a broker refuses."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.subscribeoptions import SubscribeOptions

from .. import config
from .clients import new_client


def try_session(settings: config.Mqtt, client_id: str, wanted: Sequence[str], seconds: float) -> str:
    """Connects as ``client_id``, subscribes and leaves; "" or what the broker refuses and why. Ends the session that has this
    name, if there is one. Raises ``OSError`` and ``ConfigError``."""
    said: list[str] = []
    done = threading.Event()

    def connected(client: paho.Client, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        if reason.is_failure:
            tell(f"refuses the connection: {reason}")
        else:
            client.subscribe([(topic, SubscribeOptions(qos=1)) for topic in wanted])

    def subscribed(_client: paho.Client, _data: Any, _mid: int, reasons: Any, _properties: Any) -> None:
        refused = [f"{topic}: {reason}" for topic, reason in zip(wanted, reasons, strict=False) if reason.is_failure]
        tell(*(f"refuses the subscription of {each}" for each in refused))

    def tell(*words: str) -> None:
        if not done.is_set():
            said.extend(words)
            done.set()

    client = new_client(paho.Client, settings, client_id)
    client.on_connect, client.on_subscribe = connected, subscribed
    client.on_disconnect = lambda _client, _data, _flags, reason, _properties: tell(f"ends the connection: {reason}")
    client.connect(settings.host, settings.port, clean_start=True)
    client.loop_start()
    if not done.wait(seconds):
        tell("does not answer")
    client.disconnect()
    client.loop_stop()
    return "; ".join(said)
