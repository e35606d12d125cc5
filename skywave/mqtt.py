"""A connection to the broker that keeps coming back.

``Link`` owns one thread. Every attempt makes a new paho client, so nothing that the library queued for an earlier
connection is ever sent on a later one: what has to be sent again is decided by the uplink alone.
The broker's word (a PUBACK) is never taken for delivery; it only tells that a message left this host.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import select
import socket
import ssl
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from . import config
from .errors import ConfigError

log = logging.getLogger(__name__)

PACKET_TOO_LARGE = 0x95
RECONNECT_MAX_S = 5.0
STEADY_S = 5.0
"""A connection that held as long was good: the next attempt comes at once. Shorter ones back off like failures."""
LAST_WORDS_S = 1.0
RECEIVE_MAXIMUM = 1000
"""Without it Mosquitto keeps only 20 messages in flight to a subscriber."""
TURN_S = 0.02
"""For so long packets are read before what they brought about is written: answers, acknowledgements, pings."""
MANY_UNANSWERED = 256
READ_AHEAD_BYTES = 1 << 16
WRITE_TOGETHER_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Message:
    """A received message. ``properties`` are its user properties (the last of equal names wins); ``packet_id`` is what
    ``Link.acknowledge`` takes, 0 with QoS 0."""

    topic: str
    payload: bytes
    content_type: str = ""
    properties: dict[str, str] | None = None
    dup: bool = False
    retained: bool = False
    packet_id: int = 0


@dataclass(frozen=True, slots=True)
class Will:
    """What the broker publishes, retained, when this connection breaks."""

    topic: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class Disconnected:
    """Why a connection ended: ``code`` is the MQTT reason code, if the broker gave one; ``wanted`` if this side ended it."""

    code: int
    reason: str
    wanted: bool = False


class Link:
    """Stays connected to one of the brokers until ``stop``; after each connection that failed or ended the next is tried.

    ``on_up`` runs after each successful connect and subscribe, ``on_down`` after each connection that was up,
    ``on_message`` for each message: all in the link's thread, so they must hand over and return.
    While ``on_message`` waits, the socket is not read: that is the way to press back on the broker.

    With ``session_expiry`` the broker keeps subscriptions, and what came for them with QoS 1, for so many seconds while this
    side is away. It is then told by ``acknowledge`` what need not be sent again on the next connection.

    Raises ``ConfigError`` when the credentials cannot be read; they are read again for each connection.
    """

    def __init__(
        self,
        brokers: Sequence[config.Mqtt],
        client_id: str,
        subscriptions: Iterable[str],
        on_up: Callable[[], None],
        on_down: Callable[[Disconnected], None],
        on_message: Callable[[Message], None],
        will: Will | None = None,
        session_expiry: int = 0,
    ) -> None:
        self.session_expiry = session_expiry
        self.session_present = False
        self._brokers = brokers
        self._at = 0
        self._leaving = False
        self._settings = settings = brokers[0]
        if settings.ca_file:
            tls_context(settings)
        config.secret(settings.password_file)
        self._client_id = client_id
        self._subscriptions = list(subscriptions)
        self._on_up, self._on_down, self._on_message = on_up, on_down, on_message
        self._will = will
        self._client: paho.Client | None = None
        self._answers = threading.Lock()
        self._said = self._last_answered = 0
        self._unanswered: deque[tuple[int, paho.MQTTMessageInfo]] = deque()
        self._stopping = threading.Event()
        self.connected = False
        self.connected_at = 0.0
        self.last_error = ""
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        weakref.finalize(self, os.close, self._wake).atexit = False
        self._thread = threading.Thread(target=self._run, name=f"mqtt {client_id}", daemon=True)

    def start(self) -> None:
        """Starts connecting in the background."""
        self._thread.start()

    def stop(self, session_expiry: int | None = None) -> None:
        """Disconnects cleanly (the last will stays unsaid) and waits for the thread; the broker keeps the session for
        ``session_expiry`` seconds, if there is one.

        What was published just before is heard first: a socket that is closed with unread bytes is reset, and takes what
        the broker has not read yet with it.
        """
        self._stopping.set()
        if client := self._client:
            with self._answers:
                last = self._unanswered[-1][1] if self._unanswered else None
            if self.connected and last:
                with contextlib.suppress(RuntimeError, ValueError):  # it never left this host
                    last.wait_for_publish(LAST_WORDS_S)
            client.disconnect(properties=disconnect_properties(session_expiry) if session_expiry else None)
        if self._thread.is_alive():
            self._thread.join(5)

    @property
    def address(self) -> str:
        """Host and port of the broker that is used or tried."""
        return f"{self._settings.host}:{self._settings.port}"

    @property
    def trouble(self) -> str:
        """Why there is no broker; "" while one is connected, and before ``start``."""
        if self.connected or self._thread.ident is None:
            return ""
        return f"no broker: {self.last_error or f'{self.address}: not connected'}"

    def acknowledge(self, packet_id: int) -> None:
        """Tells the broker that a message of a kept session need not be sent again. Any thread may call it; it is for
        nothing when the connection that brought the message has ended."""
        if packet_id and self.connected and (client := self._client):
            client.ack(packet_id, 1)

    def reconnect(self, session_expiry: int) -> None:
        """Connects anew: the broker sends again what was not acknowledged, and keeps the session for so many seconds from
        then on."""
        self.session_expiry = session_expiry
        if client := self._client:
            self._leaving = True
            client.disconnect()

    def leave(self, why: str, forget: str) -> None:
        """Goes on to the next broker, if there is another one; this one forgets what it retained of the topic ``forget``."""
        if len(self._brokers) > 1 and (client := self._client):
            self._leaving = True
            log.warning("broker: leaves %s: %s", self.address, why)
            client.publish(forget, b"", 1, retain=True)
            client.disconnect()

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: int = 1,
        retain: bool = False,
        content_type: str = "",
        properties: Iterable[tuple[str, str]] = (),
    ) -> Callable[[], bool]:
        """Hands a message to the network, or to nobody if the link is down. Returns what tells whether the broker has taken
        it, or has passed it over: it answers QoS 1 in order, so what it has not answered before a later one is lost."""
        client = self._client
        if client is None or not self.connected:
            return lambda: False
        props = publish_properties(content_type, properties) if content_type or properties else None
        said = client.publish(topic, payload, qos, retain, props)
        if said.rc != paho.MQTT_ERR_SUCCESS or not qos:
            return lambda: False
        with self._answers:
            self._said += 1
            number = self._said
            self._unanswered.append((number, said))
        if len(self._unanswered) > MANY_UNANSWERED:
            self._answered()
        return lambda: number <= self._answered()

    def _answered(self) -> int:
        """The number of the latest message that the broker has answered; forgets all up to it."""
        with self._answers:
            latest = next((number for number, said in reversed(self._unanswered) if said.is_published()), 0)
            while self._unanswered and self._unanswered[0][0] <= latest:
                self._unanswered.popleft()
            self._last_answered = max(self._last_answered, latest)
            return self._last_answered

    def subscribe(self, topics: Iterable[str], qos: int = 1, retain_as_published: bool = False) -> None:
        """Subscribes more topics on the present connection. With ``retain_as_published`` a message is marked as retained when
        it is published so, and not only when it comes out of the broker's memory."""
        options = SubscribeOptions(qos=qos, retainAsPublished=retain_as_published)
        wanted = [(topic, options) for topic in topics]
        if wanted and (client := self._client):
            client.subscribe(wanted)

    def unsubscribe(self, topics: Iterable[str]) -> None:
        """Ends subscriptions on the present connection."""
        if client := self._client:
            client.unsubscribe(list(topics))

    def _run(self) -> None:
        pause = 0.1
        while not self._stopping.is_set():
            self.connected_at = 0.0
            try:
                self._client = client = self._new_client()
                with self._answers:
                    self._unanswered.clear()
                client.connect(
                    self._settings.host, self._settings.port, self._settings.keepalive,
                    clean_start=not self.session_expiry, properties=connect_properties(self.session_expiry),
                )  # fmt: skip
                self._serve(client)
            except (OSError, ValueError, ConfigError) as error:
                self._note(f"{self.address}: {error}")
                if self.connected:
                    self._went_down(Disconnected(0, str(error)))
            except Exception:  # paho met something it does not expect: a new connection starts from a clean state
                log.exception("broker: connection failed")
                if self.connected:
                    self._went_down(Disconnected(0, "internal error"))
            finally:
                self._client = None
            self._leaving = False
            self._at = (self._at + 1) % len(self._brokers)
            self._settings = self._brokers[self._at]
            steady = self.connected_at and time.monotonic() - self.connected_at > STEADY_S
            pause = 0.1 if steady else min(pause * 2, RECONNECT_MAX_S)
            self._stopping.wait(pause * random.uniform(0.5, 1.0))

    def _serve(self, client: paho.Client) -> None:
        """Reads and writes until the connection ends; raises ``OSError`` if it breaks while what is queued is written."""
        poll = select.poll()  # select() does not take the descriptors of a process with a thousand sensors
        poll.register(self._wake, select.POLLIN)
        while (sock := cast("_BufferedSocket | None", client.socket())) is not None:
            writes = client.want_write() or sock.unsent
            poll.register(sock, select.POLLIN | (select.POLLOUT if writes else 0))
            events = dict(poll.poll(0 if sock.pending() else 1000))
            if self._wake in events:
                os.eventfd_read(self._wake)
            if events.get(sock.fileno(), 0) & ~select.POLLOUT or sock.pending():
                until = time.monotonic() + TURN_S
                while True:
                    if client.loop_read() != paho.MQTT_ERR_SUCCESS or client.socket() is None:
                        return
                    if not sock.pending() or time.monotonic() > until:
                        break
            if client.loop_write() != paho.MQTT_ERR_SUCCESS:  # also if there is nothing: paho tells of the next again
                return
            sock.flush()
            if client.loop_misc() != paho.MQTT_ERR_SUCCESS:
                return

    def _note(self, error: str) -> None:
        if error != self.last_error:
            log.warning("broker: %s", error)
        self.last_error = error

    def _new_client(self) -> paho.Client:
        client = _Client(CallbackAPIVersion.VERSION2, self._client_id, protocol=paho.MQTTv5, reconnect_on_failure=False)
        client.manual_ack_set(bool(self.session_expiry))
        client.max_inflight_messages_set(65535)  # our own window bounds it; paho would queue the rest out of sight
        if self._settings.username:
            client.username_pw_set(self._settings.username, config.secret(self._settings.password_file) or None)
        if self._settings.ca_file:
            client.tls_set_context(tls_context(self._settings))
        # With it a publish only queues, and this link's thread writes. Otherwise paho writes in both threads, without a
        # lock: one message's bytes in the midst of another's (seen when the socket was full), and two threads in one
        # TLS session, which OpenSSL does not allow (seen: bad record mac).
        client.on_socket_register_write = self._has_to_write
        if self._will:
            client.will_set(self._will.topic, self._will.payload, 1, retain=True)
        client.on_connect = self._connected
        client.on_disconnect = self._disconnected
        client.on_message = self._received
        client.on_socket_open = _tune_socket
        return client

    def _connected(self, client: paho.Client, _data: Any, flags: Any, reason: Any, _properties: Any) -> None:
        if reason.is_failure:
            self._note(f"refused the connection: {reason}")
            client.disconnect()
            return
        log.info("broker: connected to %s", self.address)
        self.last_error = ""
        self.session_present = bool(flags.session_present)
        self.connected = True
        self.connected_at = time.monotonic()
        self.subscribe(self._subscriptions)
        self._on_up()

    def _has_to_write(self, _client: paho.Client, _data: Any, _sock: Any) -> None:
        if threading.current_thread() is not self._thread:
            os.eventfd_write(self._wake, 1)

    def _disconnected(self, _client: paho.Client, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        if self.connected:
            self._went_down(Disconnected(reason.value, str(reason), self._leaving))

    def _went_down(self, why: Disconnected) -> None:
        self.connected = False
        if not self._stopping.is_set() and not why.wanted:
            self._note(f"connection lost: {why.reason}")
        self._on_down(why)

    def _received(self, _client: paho.Client, _data: Any, message: paho.MQTTMessage) -> None:
        content_type, user = "", None
        if properties := message.properties:
            content_type = getattr(properties, "ContentType", "")
            user = dict(getattr(properties, "UserProperty", ()))
        try:
            topic = message.topic
        except UnicodeDecodeError:
            topic = ""
        try:
            self._on_message(Message(topic, bytes(message.payload), content_type, user, message.dup, message.retain,
                                     message.mid if message.qos else 0))  # fmt: skip
        except Exception:  # a raise here would end paho's thread, and with it the service
            log.exception("message on %r was not handled", topic)


class _BufferedSocket:
    """What paho takes for its socket: reads ahead, and writes many packets at once.

    paho asks the system four times for each packet that it reads, once for each that it writes. With two threads that
    share an interpreter each of these is also a chance to wait for the other one.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._read = b""
        self._at = 0
        self.unsent = bytearray()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def recv(self, size: int) -> bytes:
        if self._at == len(self._read):
            if size >= READ_AHEAD_BYTES:
                return self._sock.recv(size)
            self._read, self._at = self._sock.recv(READ_AHEAD_BYTES), 0
        data = self._read[self._at : self._at + size]
        self._at += len(data)
        return data

    def pending(self) -> int:
        """Bytes that can be read although the system knows nothing of them any more."""
        return len(self._read) - self._at + (self._sock.pending() if isinstance(self._sock, ssl.SSLSocket) else 0)

    def send(self, data: bytes) -> int:
        if len(self.unsent) + len(data) > WRITE_TOGETHER_BYTES:
            self.flush()
            if self.unsent:
                raise BlockingIOError
            if len(data) > WRITE_TOGETHER_BYTES:
                return self._sock.send(data)
        self.unsent += data
        return len(data)

    def flush(self) -> None:
        """Writes what the system takes now; raises ``OSError``."""
        try:
            while self.unsent:
                del self.unsent[: self._sock.send(self.unsent)]
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            pass
        except OSError:
            self.unsent.clear()  # ``close`` need not try
            raise

    def close(self) -> None:
        """Writes the rest, which ends with paho's DISCONNECT, and closes."""
        with contextlib.suppress(OSError):
            self._sock.settimeout(LAST_WORDS_S)
            self._sock.sendall(self.unsent)
        self.unsent.clear()
        self._sock.close()


class _Client(paho.Client):
    def _create_socket(self) -> Any:
        return _BufferedSocket(cast("socket.socket", super()._create_socket()))


def connect_properties(session_expiry: int = 0) -> Properties:
    """With which every client of ours connects."""
    properties = Properties(PacketTypes.CONNECT)
    properties.ReceiveMaximum = RECEIVE_MAXIMUM
    if session_expiry:
        properties.SessionExpiryInterval = session_expiry
    return properties


def disconnect_properties(session_expiry: int) -> Properties:
    """With which a client goes whose session is to be kept for so many seconds."""
    properties = Properties(PacketTypes.DISCONNECT)
    properties.SessionExpiryInterval = session_expiry
    return properties


def publish_properties(content_type: str, user: Iterable[tuple[str, str]]) -> Properties:
    """A PUBLISH's properties, past paho's __setattr__, which searches its tables by name for each of them."""
    properties = Properties(PacketTypes.PUBLISH)
    if content_type:
        object.__setattr__(properties, "ContentType", content_type)
    object.__setattr__(properties, "UserProperty", list(user))
    return properties


# -- Reading a PUBLISH's properties ----------------------------------------------------------------------------------
# paho copies the rest of the packet for each property it reads and searches its tables by name: a third of a server's
# whole CPU time. The two properties that batches carry are read here; anything else is left to paho.

_CONTENT_TYPE, _USER_PROPERTY = 3, 38  # MQTT 5, 2.2.2.2


class _PublishProperties(Properties):
    def unpack(self, buffer: bytes) -> tuple[Properties, int]:
        if self.packetType == PacketTypes.PUBLISH and (found := _publish_properties(buffer)):
            content_type, pairs, size = found
            for name, value in (("ContentType", content_type), ("UserProperty", pairs)):
                if value:
                    object.__setattr__(self, name, value)
            return self, size
        found_all: tuple[Properties, int] = super().unpack(buffer)  # type: ignore[no-untyped-call]
        return found_all


def _publish_properties(buffer: bytes) -> tuple[str, list[tuple[str, str]], int] | None:
    """Content type, user properties and length of a PUBLISH's properties; None if paho had better read them."""
    if len(buffer) < 2 or (buffer[0] & 0x80 and buffer[1] & 0x80):
        return None
    at, end = (1, 1 + buffer[0]) if buffer[0] < 0x80 else (2, 2 + (buffer[0] & 0x7F) + (buffer[1] << 7))
    if end > len(buffer):
        return None
    content_type = ""
    pairs: list[tuple[str, str]] = []
    try:
        while at < end:
            kind = buffer[at]
            name, at = _utf8(buffer, at + 1)
            if kind == _USER_PROPERTY:
                value, at = _utf8(buffer, at)
                pairs.append((name, value))
            elif kind == _CONTENT_TYPE and not content_type:
                content_type = name
            else:
                return None
    except (IndexError, UnicodeDecodeError):
        return None
    return (content_type, pairs, end) if at == end else None


def _utf8(buffer: bytes, at: int) -> tuple[str, int]:
    stop = at + 2 + (buffer[at] << 8 | buffer[at + 1])
    return buffer[at + 2 : stop].decode(), stop


with contextlib.suppress(ImportError, AttributeError):  # a paho that is built otherwise reads its own properties
    from paho.mqtt import _packet

    _packet.Properties = _PublishProperties  # type: ignore[attr-defined]


def tls_context(settings: config.Mqtt) -> ssl.SSLContext:
    """A client's TLS 1.2+ context that verifies the peer against ``ca_file`` alone; raises ``ConfigError``."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    files = [config.credential(file) for file in (settings.ca_file, settings.cert_file, settings.key_file)]
    try:
        context.load_verify_locations(files[0])
        if files[1]:
            context.load_cert_chain(files[1], files[2] or None)
    except OSError as error:  # ssl.SSLError is one
        raise ConfigError(
            f"mqtt: certificates {', '.join(filter(None, files))}: {error}",
            "ca_file, cert_file and key_file must be PEM files that belong together and can be read by the service.",
        ) from error
    return context


def _tune_socket(_client: paho.Client, _data: Any, sock: Any) -> None:
    """Notices a peer that vanished without a word within half a minute, also while data waits for its TCP ack."""
    with contextlib.suppress(OSError, AttributeError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
