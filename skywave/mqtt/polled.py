"""A connection for a loop of its owner's, which serves thousands of them in one thread."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from selectors import EVENT_READ, EVENT_WRITE
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.subscribeoptions import SubscribeOptions

from .. import config
from .clients import new_client
from .events import Will
from .properties import connect_properties, publish_properties


class PolledConnection:
    """One connection, which begins when it is made and is never made again. It has no thread: its owner waits for the socket
    and calls ``read``, ``write`` and ``keep_alive``, which return False when the connection has ended.

    ``watch(socket, events)`` tells what to wait for, in the words of ``selectors``; 0: for nothing any more. ``on_up`` is
    called when the broker has granted the connection, ``on_down`` when it has not, or has ended it, and
    ``on_message(topic, payload)`` for each message. Making it raises ``OSError``, ``ValueError`` or ``ConfigError``.
    """

    def __init__(
        self,
        settings: config.Mqtt,
        client_id: str,
        will: Will,
        watch: Callable[[Any, int], None],
        on_up: Callable[[], None],
        on_down: Callable[[], None],
        on_message: Callable[[str, bytes], None],
    ) -> None:
        self._watch = watch
        self._client = client = new_client(paho.Client, settings, client_id, will)
        client.on_connect = lambda _client, _data, _flags, reason, _: on_down() if reason.is_failure else on_up()
        client.on_disconnect = lambda *_: on_down()
        client.on_message = lambda _client, _data, message: on_message(message.topic, bytes(message.payload))
        client.on_socket_open = lambda _client, _data, sock: watch(sock, EVENT_READ)
        client.on_socket_close = lambda _client, _data, sock: watch(sock, 0)
        client.on_socket_register_write = lambda _client, _data, sock: watch(sock, EVENT_READ | EVENT_WRITE)
        client.on_socket_unregister_write = lambda _client, _data, sock: watch(sock, EVENT_READ)
        client.connect(
            settings.host, settings.port, settings.keepalive, clean_start=True, properties=connect_properties()
        )

    def read(self) -> bool:
        """Reads what the socket has."""
        return self._client.loop_read() == paho.MQTT_ERR_SUCCESS

    def write(self) -> bool:
        """Writes what waits."""
        return self._client.loop_write() == paho.MQTT_ERR_SUCCESS

    def keep_alive(self) -> bool:
        """Pings if it is time to; to be called about once a second."""
        return not self._client.socket() or self._client.loop_misc() == paho.MQTT_ERR_SUCCESS

    def subscribe(self, topics: Iterable[str]) -> None:
        """Subscribes with QoS 1."""
        self._client.subscribe([(topic, SubscribeOptions(qos=1)) for topic in topics])

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        retain: bool = False,
        content_type: str = "",
        properties: Iterable[tuple[str, str]] = (),
    ) -> Callable[[], bool]:
        """Publishes with QoS 1; returns what tells whether the broker has answered."""
        props = publish_properties(content_type, properties) if content_type or properties else None
        return self._client.publish(topic, payload, 1, retain, props).is_published

    def stop(self) -> None:
        """Says goodbye to the broker."""
        self._client.disconnect()
        self._client.loop_write()

    def cut(self) -> None:
        """Ends it without a word."""
        if sock := self._client.socket():
            self._watch(sock, 0)
            with contextlib.suppress(OSError):
                sock.close()
