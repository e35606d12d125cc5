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
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from .. import config
from ..errors import ConfigError
from ..process.stalls import AWAY_S
from .buffered import (
    LAST_WORDS_S,
    MANY_UNANSWERED,
    MAX_PACKET_BYTES,
    BoundedClient,
    BufferedSocket,
    hear_last_words,
    tune_socket,
)
from .events import Disconnected, Message, Refused, Will
from .properties import (
    connect_properties,
    disconnect_properties,
    publish_bytes,
    publish_properties,
    words_of,
)
from .tls import tls_context

log = logging.getLogger(__name__)

NO_SUBSCRIBER, UNSPECIFIED_ERROR, SESSION_TAKEN_OVER, PACKET_TOO_LARGE = 0x10, 0x80, 0x8E, 0x95  # MQTT 5, section 2.4
RECONNECT_MAX_S = 5.0
STEADY_S = 5.0
"""A connection that held as long was good: the next attempt comes at once. Shorter ones back off like failures."""
TURN_S = 0.02
"""For so long packets are read before what they brought about is written: answers, acknowledgements, pings."""
MAX_UNWRITTEN = 10_000
"""Packets that may wait to be written before nothing more is read: what is read has to be answered."""
SUBSCRIBE_AGAIN_S = 30.0
MANY_RIVALS = 3
"""Older brokers end a session that is taken over without a word: after so many in a row that is what it probably was."""
RIVAL_PAUSE_MAX_S = 30.0
REFUSAL_HOLDS_S = 120.0
"""What the broker has not refused again for so long, while it was connected, is over: another client of the same name would
have come back, a message would have been sent again."""
TOO_LARGE_HOLDS_S = 30.0
"""For so long nothing is sent that is as large as what the broker refused for its size: some end the connection as well."""
LOG_LINES, LOG_PERIOD_S = 20, 600.0
"""A connection that flaps says at most so much in so many seconds."""
_REFUSED = "refused the connection"


@dataclass(frozen=True, slots=True)
class _Sent:
    """A QoS 1 message on its way."""

    number: int
    info: paho.MQTTMessageInfo
    topic: str
    size: int
    on_refused: Callable[[Refused], None] | None


class Link:
    """Stays connected to one of the brokers until ``stop``; after each connection that failed or ended the next is tried.

    ``on_up`` runs after each successful connect and subscribe, ``on_down`` after each connection that was up,
    ``on_message`` for each message: all in the link's thread, so they must hand over and return.
    While ``on_message`` waits, the socket is not read: that is the way to press back on the broker.
    With ``session_expiry`` the broker keeps subscriptions, and what came for them with QoS 1, for so many seconds while this
    side is away. It is then told by ``acknowledge`` what need not be sent again on the next connection.
    ``refusals`` is what the broker does not grant, with its words: publishing, a subscription, the client id. It is
    replaced, never changed. A refused subscription is asked for again every half minute.
    Credentials are read for each connection; while they cannot be read, that is its ``trouble``.
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
        max_packet: int = MAX_PACKET_BYTES,
        session_expiry: int = 0,
    ) -> None:
        self.session_expiry = session_expiry
        self.session_present = False
        self._brokers = brokers
        self._at = 0
        self._leaving = False
        self._settings = brokers[0]
        self._client_id = client_id
        self._subscriptions = list(subscriptions)
        self._on_up, self._on_down, self._on_message = on_up, on_down, on_message
        self._will = will
        self._client: paho.Client | None = None
        self._max_packet = max_packet
        self._answers = threading.Lock()
        self._said = self._last_answered = 0
        self._unanswered: deque[_Sent] = deque()
        self._options: dict[str, SubscribeOptions] = {}  # by subscription
        self._subscribing: dict[int, list[str]] = {}  # by packet id, until the broker answers
        self._again: dict[str, float] = {}  # refused subscriptions: when to ask again
        self._broker_takes = 0  # bytes of a packet at most; 0: the broker names no bound
        self._too_large = (0, float("-inf"))  # bytes that the broker refused, and when
        self._refused_at: dict[str, float] = {}
        self._socket: BufferedSocket | None = None
        self._rivals: dict[str, int] = {}  # by broker: connections in a row that another client ended, or may have
        self._lines: deque[float] = deque(maxlen=LOG_LINES)
        self._stopping = threading.Event()
        self.refusals: dict[str, str] = {}
        self.progress_at = time.monotonic()
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
            self._part(client, session_expiry)
        if self._thread.is_alive():
            self._thread.join(5)

    def _part(self, client: paho.Client, session_expiry: int | None = None) -> None:
        """Disconnects once the last message is answered, or will not be."""
        with self._answers:
            last = self._unanswered[-1].info if self._unanswered else None
        if self.connected and last:
            with contextlib.suppress(RuntimeError, ValueError):  # it never left this host
                last.wait_for_publish(LAST_WORDS_S)
        client.disconnect(properties=disconnect_properties(session_expiry) if session_expiry else None)

    @property
    def address(self) -> str:
        """Host and port of the broker that is used or tried."""
        return f"{self._settings.host}:{self._settings.port}"

    @property
    def error(self) -> str:
        """What is wrong with the connection, in the broker's words where it gave some; "" if nothing is known to be."""
        return "; ".join(dict.fromkeys(filter(None, [self.last_error, *self.refusals.values()])))

    @property
    def trouble(self) -> str:
        """Why there is no broker, or what it refuses; "" if it takes everything, and before ``start``."""
        if self._thread.ident is None:
            return ""
        if self.connected:
            return "; ".join(self.refusals.values())
        return f"no broker: {self.error or f'{self.address}: not connected'}"

    @property
    def hang(self) -> str:
        """That the thread of an open connection has not moved for some time; "" if it has."""
        still = time.monotonic() - self.progress_at
        return (
            f"nothing is read from {self.address} though it is connected" if self.connected and still > AWAY_S else ""
        )

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
        """Goes on to the next broker, if there is another one; this one forgets what it retained of the topic ``forget``.

        Waits a moment for the broker's answer, as ``stop`` does.
        """
        if len(self._brokers) > 1 and (client := self._client):
            self._leaving = True
            log.warning("broker: leaves %s: %s", self.address, why)
            self.publish(forget, b"", retain=True)
            self._part(client)

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: int = 1,
        retain: bool = False,
        content_type: str = "",
        properties: Iterable[tuple[str, str]] = (),
        on_refused: Callable[[Refused], None] | None = None,
    ) -> Callable[[], bool]:
        """Hands a message to the network, or to nobody if the link is down. Returns what tells whether the broker has
        answered it, or has passed it over: it answers QoS 1 in order, so what it has not answered before a later one is
        lost. ``on_refused`` is called, in any thread, if the broker says that it did not take it."""
        client = self._client
        if client is None or not self.connected:
            return lambda: False
        props = publish_properties(content_type, properties) if content_type or properties else None
        if words := self._is_too_large(topic, payload, props):
            self._refusal(f"publish {topic}", f"the broker takes no large messages on {topic}: {words}")
            if on_refused:
                on_refused(Refused(PACKET_TOO_LARGE, words, sent=False))
            return lambda: True
        said = client.publish(topic, payload, qos, retain, props)
        if said.rc != paho.MQTT_ERR_SUCCESS or not qos:
            return lambda: False
        with self._answers:
            self._said += 1
            number = self._said
            self._unanswered.append(_Sent(number, said, topic, len(payload), on_refused))
        if len(self._unanswered) > MANY_UNANSWERED:
            self._answered()
        return lambda: number <= self._answered()

    def _is_too_large(self, topic: str, payload: bytes, properties: Properties | None) -> str:
        """Why the broker would not take a message of this size; "" if it may."""
        if self._broker_takes and (size := publish_bytes(topic, payload, properties)) > self._broker_takes:
            return f"at most {self._broker_takes} bytes, one has {size} with its properties"
        least, since = self._too_large
        if len(payload) >= least and time.monotonic() - since < TOO_LARGE_HOLDS_S:
            return f"it refused {least} bytes, one has {len(payload)}"
        return ""

    def _answered(self) -> int:
        """The number of the latest message that the broker has answered; forgets all up to it."""
        with self._answers:
            latest = next((sent.number for sent in reversed(self._unanswered) if sent.info.is_published()), 0)
            while self._unanswered and self._unanswered[0].number <= latest:
                self._unanswered.popleft()
            self._last_answered = max(self._last_answered, latest)
            return self._last_answered

    def subscribe(self, topics: Iterable[str], qos: int = 1, retain_as_published: bool = False) -> None:
        """Subscribes more topics on the present connection. With ``retain_as_published`` a message is marked as retained when
        it is published so, and not only when it comes out of the broker's memory."""
        options = SubscribeOptions(qos=qos, retainAsPublished=retain_as_published)
        wanted = list(topics)
        self._options.update(dict.fromkeys(wanted, options))
        self._ask(wanted)

    def _ask(self, wanted: list[str]) -> None:
        if wanted and (client := self._client):
            with self._answers:  # so that the answer does not come before it is known to what
                _, number = client.subscribe([(topic, self._options[topic]) for topic in wanted])
                if number is not None:
                    self._subscribing[number] = wanted

    def unsubscribe(self, topics: Iterable[str]) -> None:
        """Ends subscriptions on the present connection."""
        ended = list(topics)
        with self._answers:
            for topic in ended:
                self._again.pop(topic, None)
        for topic in ended:
            self._granted(f"subscribe {topic}")
        if client := self._client:
            client.unsubscribe(ended)

    def _run(self) -> None:
        pause = 0.1
        while not self._stopping.is_set():
            self.progress_at = time.monotonic()
            self.connected_at = 0.0
            try:
                self._attempt()
            except Exception:  # paho met something it does not expect: a new connection starts from a clean state
                log.exception("broker: connection failed")
            finally:
                self.connected = False
                self._client = None
            self._leaving = False
            self._at = (self._at + 1) % len(self._brokers)
            self._settings = self._brokers[self._at]
            held = time.monotonic() - self.connected_at if self.connected_at else 0.0
            if "client id" in self.refusals:  # or the two would end each other's sessions for ever
                pause = min(2.0 ** min(max(self._rivals.values(), default=0), 10), RIVAL_PAUSE_MAX_S)
            else:
                pause = 0.1 if held > STEADY_S else min(pause * 2, RECONNECT_MAX_S)
            self._stopping.wait(pause * random.uniform(0.5, 1.0))

    def _attempt(self) -> None:
        """One connection, from its beginning to its end."""
        try:
            self._client = client = self._new_client()
            with self._answers:
                self._unanswered.clear()
                self._subscribing.clear()
                self._again.clear()
            client.connect(
                self._settings.host, self._settings.port, self._settings.keepalive,
                clean_start=not self.session_expiry,
                properties=connect_properties(self._max_packet, self.session_expiry),
            )  # fmt: skip
            self._serve(client)
        except (OSError, ValueError, ConfigError) as error:
            self._went_down(Disconnected(0, str(error)))
        except Exception:
            self._went_down(Disconnected(0, "internal error"))
            raise

    def _serve(self, client: paho.Client) -> None:
        """Reads and writes until the connection ends; raises ``OSError`` if it breaks while what is queued is written and
        the broker has left no word."""
        poll = select.poll()  # select() does not take the descriptors of a process with a thousand sensors
        poll.register(self._wake, select.POLLIN)
        while (sock := cast("BufferedSocket | None", client.socket())) is not None:
            self.progress_at = now = time.monotonic()
            self._look_after(now)
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
                hear_last_words(client, sock)
                if client.socket() is None:
                    return
                raise sock.error
            if client.loop_misc() != paho.MQTT_ERR_SUCCESS:
                return

    def _look_after(self, now: float) -> None:
        """Asks again for what was refused, and forgets another client of this name that does not come back."""
        if self.connected:
            for what in [what for what in self.refusals if now - self._refused_at.get(what, now) > REFUSAL_HOLDS_S]:
                self._granted(what)
        if self._again:
            with self._answers:
                due = [topic for topic, at in self._again.items() if at <= now]
                for topic in due:
                    del self._again[topic]
            self._ask(due)

    def _note(self, error: str) -> None:
        if error != self.last_error:
            self._log(logging.WARNING, error)
        self.last_error = error

    def _refusal(self, what: str, words: str) -> None:
        with self._answers:
            news = self.refusals.get(what) != words
            self.refusals = {**self.refusals, what: words}
            self._refused_at[what] = time.monotonic()
        if news:
            self._log(logging.ERROR, words)

    def _granted(self, what: str) -> None:
        with self._answers:
            over = self.refusals.get(what)
            self.refusals = {key: words for key, words in self.refusals.items() if key != what}
            self._refused_at.pop(what, None)
        if over:
            self._log(logging.INFO, f"over: {over}")

    def _log(self, level: int, text: str) -> None:
        """A line, unless there were many of late."""
        now = time.monotonic()
        if len(self._lines) < LOG_LINES or now - self._lines[0] > LOG_PERIOD_S:
            self._lines.append(now)
            last = len(self._lines) == LOG_LINES and now - self._lines[0] <= LOG_PERIOD_S
            log.log(level, "broker: %s%s", text, "; further lines on this connection wait" if last else "")

    def _new_client(self) -> paho.Client:
        client = BoundedClient(
            CallbackAPIVersion.VERSION2, self._client_id, protocol=paho.MQTTv5, reconnect_on_failure=False
        )
        client.max_packet = self._max_packet
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
        client.on_publish = self._answer_to_publish
        client.on_subscribe = self._answer_to_subscribe
        client.on_message = self._received
        client.on_socket_open = self._opened
        return client

    def _opened(self, _client: paho.Client, _data: Any, sock: Any) -> None:
        self._socket = sock
        tune_socket(sock)

    def _connected(self, client: paho.Client, _data: Any, flags: Any, reason: Any, properties: Any) -> None:
        if reason.is_failure:
            self._note(f"{_REFUSED}: {words_of(reason, properties)}")
            client.disconnect()
            return
        self._log(logging.INFO, f"connected to {self.address}")
        self._broker_takes = getattr(properties, "MaximumPacketSize", 0)
        self.last_error = ""
        self.session_present = bool(flags.session_present)
        self.connected = True
        self.connected_at = time.monotonic()
        self.subscribe(self._subscriptions)
        self._on_up()

    def _answer_to_publish(self, _client: paho.Client, _data: Any, number: int, reason: Any, properties: Any) -> None:
        if not (reason.is_failure or reason.value == NO_SUBSCRIBER or self.refusals):
            return
        with self._answers:
            sent = next((sent for sent in self._unanswered if sent.info.mid == number), None)
        if sent is None:
            return
        if not (reason.is_failure or (reason.value == NO_SUBSCRIBER and sent.on_refused)):
            self._granted(f"publish {sent.topic}")
            return
        words = words_of(reason, properties)
        if reason.value == PACKET_TOO_LARGE:
            self._too_large = (sent.size, time.monotonic())
        self._refusal(f"publish {sent.topic}", f"the broker answers what is published on {sent.topic} with {words}")
        if sent.on_refused:
            sent.on_refused(Refused(reason.value, words))

    def _answer_to_subscribe(
        self, _client: paho.Client, _data: Any, number: int, reasons: list[Any], properties: Any
    ) -> None:
        with self._answers:
            topics = self._subscribing.pop(number, [])
        for topic, reason in zip(topics, reasons, strict=False):
            if not reason.is_failure or topic.startswith("$SYS/"):  # what a broker tells of itself is nobody's right
                self._granted(f"subscribe {topic}")
                continue
            words = f"the broker answers the subscription of {topic} with {words_of(reason, properties)}"
            self._refusal(f"subscribe {topic}", words)
            with self._answers:
                self._again[topic] = time.monotonic() + SUBSCRIBE_AGAIN_S

    def _has_to_write(self, _client: paho.Client, _data: Any, _sock: Any) -> None:
        if threading.current_thread() is not self._thread:
            os.eventfd_write(self._wake, 1)

    def _disconnected(self, _client: paho.Client, _data: Any, flags: Any, reason: Any, properties: Any) -> None:
        error = self._socket.error if self._socket else None
        if flags.is_disconnect_packet_from_server:
            self._went_down(Disconnected(reason.value, words_of(reason, properties)))
        elif error:
            self._went_down(Disconnected(0, str(error)), abrupt=isinstance(error, ConnectionError))
        elif reason.value in (0, UNSPECIFIED_ERROR):
            self._went_down(Disconnected(0, "the broker ended it without a word"), abrupt=True)
        else:
            self._went_down(Disconnected(0, str(reason)))

    def _went_down(self, why: Disconnected, abrupt: bool = False) -> None:
        if not self.connected:
            self._rivals.pop(self.address, None)
            if not (self.last_error.startswith(_REFUSED) or self._stopping.is_set()):
                self._note(f"{self.address}: {why.reason}")
            return
        self.connected = False
        wanted = self._stopping.is_set() or self._leaving
        taken_over = why.code == SESSION_TAKEN_OVER
        if abrupt and any(at >= self.connected_at for at in list(self._refused_at.values())):
            abrupt = False  # Mosquitto 2.0 ends a connection on which it has refused a message
            why = replace(why, reason=f"{why.reason}, after it refused something")
        before = self._rivals.get(self.address, 0) if time.monotonic() - self.connected_at < REFUSAL_HOLDS_S else 0
        self._rivals[self.address] = rivals = before + 1 if taken_over or (abrupt and not wanted) else 0
        if taken_over or rivals >= MANY_RIVALS:
            named = f"another client named {self._client_id}"
            self.last_error = (
                f"{named} is connected to the broker: {why.reason}" if taken_over else
                f"the broker ended {MANY_RIVALS} sessions in a row and more without a reason, as it does when {named} connects"
            )  # fmt: skip
            self._refusal("client id", self.last_error)
        elif not wanted:
            self._note(f"connection lost: {why.reason}")
        self._on_down(replace(why, wanted=self._leaving))

    def _received(self, _client: paho.Client, _data: Any, message: paho.MQTTMessage) -> None:
        content_type, user, fault = "", None, ""
        if properties := message.properties:
            content_type = getattr(properties, "ContentType", "")
            user = dict(getattr(properties, "UserProperty", ()))
            fault = getattr(properties, "fault", "")
        try:
            topic = message.topic
        except UnicodeDecodeError:
            topic = ""
        number = message.mid if message.qos else 0
        try:
            self._on_message(
                Message(topic, bytes(message.payload), content_type, user, message.dup, message.retain, fault, number)
            )
        except Exception:  # a raise here would end paho's thread, and with it the service
            log.exception("message on %r was not handled", topic)
