"""The network side of a link: a paho client for each connection, and the loop that reads and writes for it."""

from __future__ import annotations

import os
import select
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any, cast

import paho.mqtt.client as paho

from .. import config
from .bounded import BoundedClient
from .buffered import BufferedSocket, tune_socket
from .clients import new_client
from .events import Will

TURN_S = 0.02
"""For so long packets are read before what they brought about is written: answers, acknowledgements, pings."""
MAX_UNWRITTEN = 10_000
"""Packets that may wait to be written before nothing more is read: what is read has to be answered."""
LAST_PACKETS = 256
"""So many packets are read of a connection that is broken, for the DISCONNECT among them."""


class Transport:
    """Makes the clients and serves them, one after the other, in one thread. The others only queue, and wake it to write."""

    def __init__(self, client_id: str, will: Will | None, max_packet: int) -> None:
        self.max_packet = max_packet
        self.progress_at = time.monotonic()
        """When the loop turned last, by the monotonic clock."""
        self._client_id, self._will = client_id, will
        self._thread = 0
        self._socket: BufferedSocket | None = None
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        weakref.finalize(self, os.close, self._wake).atexit = False

    @property
    def error(self) -> Exception | None:
        """What broke the latest connection; None if it is open, or ended otherwise."""
        return self._socket.error if self._socket else None

    def new_client(self, settings: config.Mqtt) -> paho.Client:
        """A client that is to be served by the thread that calls. Raises ``ConfigError``."""
        client = new_client(BoundedClient, settings, self._client_id, self._will)
        client.max_packet = self.max_packet
        # With it a publish only queues, and this link's thread writes. Otherwise paho writes in both threads, without a
        # lock: one message's bytes in the midst of another's (seen when the socket was full), and two threads in one
        # TLS session, which OpenSSL does not allow (seen: bad record mac).
        client.on_socket_register_write = self._has_to_write
        client.on_socket_open = self._opened
        self._thread = threading.get_ident()
        return client

    def serve(self, client: paho.Client, each_turn: Callable[[float], None]) -> None:
        """Reads and writes until the connection ends; raises ``OSError`` if it breaks while what is queued is written and
        the broker has left no word. ``each_turn`` is called once a second at least, with the monotonic clock."""
        poll = select.poll()  # select() does not take the descriptors of a process with a thousand sensors
        poll.register(self._wake, select.POLLIN)
        while (sock := cast("BufferedSocket | None", client.socket())) is not None:
            self.progress_at = now = time.monotonic()
            each_turn(now)
            writes = client.want_write() or sock.unsent
            reads = len(client._out_packet) < MAX_UNWRITTEN
            poll.register(sock, (select.POLLIN if reads else 0) | (select.POLLOUT if writes else 0))
            events = dict(poll.poll(0 if reads and sock.pending() else 1000))
            if self._wake in events:
                os.eventfd_read(self._wake)
            if reads and (events.get(sock.fileno(), 0) & ~select.POLLOUT or sock.pending()):
                until = time.monotonic() + TURN_S
                while True:
                    if client.loop_read() != paho.MQTT_ERR_SUCCESS or client.socket() is None:
                        return
                    if not sock.pending() or time.monotonic() > until:
                        break
            if client.loop_write() != paho.MQTT_ERR_SUCCESS:  # also if there is nothing: paho tells of the next again
                return
            sock.flush()
            if sock.error:
                _hear_last_words(client, sock)
                if client.socket() is None:
                    return
                raise sock.error
            if client.loop_misc() != paho.MQTT_ERR_SUCCESS:
                return

    def _opened(self, _client: paho.Client, _data: Any, sock: Any) -> None:
        self._socket = sock
        tune_socket(sock)

    def _has_to_write(self, _client: paho.Client, _data: Any, _sock: Any) -> None:
        if threading.get_ident() != self._thread:
            os.eventfd_write(self._wake, 1)


def _hear_last_words(client: paho.Client, sock: BufferedSocket) -> None:
    """Reads what came before the connection broke: a DISCONNECT says why."""
    for _ in range(LAST_PACKETS):
        if client.loop_read() != paho.MQTT_ERR_SUCCESS or client.socket() is None or not sock.pending():
            return
