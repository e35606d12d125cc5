"""A connection to the broker that keeps coming back.

``Link`` owns one thread. Every attempt makes a new paho client, so nothing that the library queued for an earlier
connection is ever sent on a later one: what has to be sent again is decided by the uplink alone.
The broker's word (a PUBACK) is never taken for delivery; it only tells that a message left this host.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import paho.mqtt.client as paho

from .. import config
from ..errors import ConfigError
from ..process.stalls import AWAY_S
from .brokers import Brokers
from .buffered import LAST_WORDS_S
from .events import UNSPECIFIED_ERROR, Disconnected, Message, Refused, Will
from .properties import MAX_PACKET_BYTES, connect_properties, disconnect_properties, publish_properties, words_of
from .publishing import Publishing
from .subscriptions import Subscriptions
from .transport import Transport
from .trouble import Trouble

log = logging.getLogger(__name__)

_REFUSED = "refused the connection"


class Link:
    """Stays connected to one of the brokers until ``stop``; after each connection that failed or ended the next is tried.

    ``on_up`` runs after each successful connect and subscribe, ``on_down`` after each connection that was up,
    ``on_message`` for each message: all in the link's thread, so they must hand over and return.
    While ``on_message`` waits, the socket is not read: that is the way to press back on the broker.
    With ``session_expiry`` the broker keeps subscriptions, and what came for them with QoS 1, for so many seconds while this
    side is away. It is then told by ``acknowledge`` what need not be sent again on the next connection.
    ``max_packet`` is the largest packet that is read, in bytes.
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
        self.connected = False
        self._on_up, self._on_down, self._on_message = on_up, on_down, on_message
        self._brokers = Brokers(brokers, client_id)
        self._trouble = Trouble()
        self._publishing = Publishing(self._trouble)
        self._subscriptions = Subscriptions(subscriptions, self._trouble)
        self._transport = Transport(client_id, will, max_packet)
        self._client: paho.Client | None = None
        self._leaving = False
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"mqtt {client_id}", daemon=True)

    # -- for any thread ----------------------------------------------------------------------------------------------

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

    def _part(self, client: paho.Client, session_expiry: int | None = None) -> None:
        """Disconnects once the last message is answered, or will not be."""
        if self.connected:
            self._publishing.unanswered.wait(LAST_WORDS_S)
        client.disconnect(properties=disconnect_properties(session_expiry) if session_expiry else None)

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
        return self._publishing.publish(client, topic, payload, qos, retain, props, on_refused)

    def acknowledge(self, packet_id: int) -> None:
        """Tells the broker that a message of a kept session need not be sent again. It is for nothing when the connection
        that brought the message has ended."""
        if packet_id and self.connected and (client := self._client):
            client.ack(packet_id, 1)

    def subscribe(self, topics: Iterable[str], qos: int = 1, retain_as_published: bool = False) -> None:
        """Subscribes more topics on the present connection. With ``retain_as_published`` a message is marked as retained when
        it is published so, and not only when it comes out of the broker's memory."""
        self._subscriptions.add(self._client, topics, qos, retain_as_published)

    def unsubscribe(self, topics: Iterable[str]) -> None:
        """Ends subscriptions on the present connection."""
        self._subscriptions.remove(self._client, topics)

    # -- what it says of itself --------------------------------------------------------------------------------------

    @property
    def address(self) -> str:
        """Host and port of the broker that is used or tried."""
        return self._brokers.address

    @property
    def refusals(self) -> dict[str, str]:
        """What the broker does not grant, with its words: publishing, a subscription, the client id. It is replaced, never
        changed."""
        return self._trouble.refusals

    @property
    def error(self) -> str:
        """What is wrong with the connection, in the broker's words where it gave some; "" if nothing is known to be."""
        return "; ".join(dict.fromkeys(filter(None, [self._trouble.last_error, *self.refusals.values()])))

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
        still = time.monotonic() - self._transport.progress_at
        return (
            f"nothing is read from {self.address} though it is connected" if self.connected and still > AWAY_S else ""
        )

    # -- the link's own thread: one connection after the other -------------------------------------------------------

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._attempt()
            except Exception:  # paho met something it does not expect: a new connection starts from a clean state
                log.exception("broker: connection failed")
            finally:
                self.connected = False
                self._client = None
            self._leaving = False
            self._stopping.wait(self._brokers.go_on(self._trouble.has_rival))

    def _attempt(self) -> None:
        """One connection, from its beginning to its end."""
        try:
            broker = self._brokers.present
            self._client = client = self._transport.new_client(broker)
            client.manual_ack_set(bool(self.session_expiry))
            client.on_connect, client.on_disconnect = self._connected, self._disconnected
            client.on_publish, client.on_subscribe = self._publishing.answered, self._subscriptions.answered
            client.on_message = self._received
            self._publishing.unanswered.forget()
            self._subscriptions.forget()
            client.connect(
                broker.host, broker.port, broker.keepalive,
                clean_start=not self.session_expiry,
                properties=connect_properties(self._transport.max_packet, self.session_expiry),
            )  # fmt: skip
            self._transport.serve(client, self._look_after)
        except (OSError, ValueError, ConfigError) as error:
            self._went_down(Disconnected(0, str(error)))
        except Exception:
            self._went_down(Disconnected(0, "internal error"))
            raise

    def _look_after(self, now: float) -> None:
        """Asks again for what was refused, and forgets another client of this name that does not come back."""
        if self.connected:
            self._trouble.forget_old(now)
        self._subscriptions.ask_again(self._client, now)

    def _connected(self, client: paho.Client, _data: Any, flags: Any, reason: Any, properties: Any) -> None:
        if reason.is_failure:
            self._trouble.failed(f"{_REFUSED}: {words_of(reason, properties)}")
            client.disconnect()
            return
        self._trouble.connected(self.address)
        self._publishing.limit.at_most = getattr(properties, "MaximumPacketSize", 0)
        self.session_present = bool(flags.session_present)
        self.connected = True
        self._brokers.connected()
        self._subscriptions.begin(client)
        self._on_up()

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

    def _disconnected(self, _client: paho.Client, _data: Any, flags: Any, reason: Any, properties: Any) -> None:
        if flags.is_disconnect_packet_from_server:
            self._went_down(Disconnected(reason.value, words_of(reason, properties)))
        elif error := self._transport.error:
            self._went_down(Disconnected(0, str(error)), abrupt=isinstance(error, ConnectionError))
        elif reason.value in (0, UNSPECIFIED_ERROR):
            self._went_down(Disconnected(0, "the broker ended it without a word"), abrupt=True)
        else:
            self._went_down(Disconnected(0, str(reason)))

    def _went_down(self, why: Disconnected, abrupt: bool = False) -> None:
        """A connection has ended, or could not be made. ``abrupt``: by the other side, and without a word."""
        if not self.connected:
            self._brokers.failed()
            if not (self._trouble.last_error.startswith(_REFUSED) or self._stopping.is_set()):
                self._trouble.failed(f"{self.address}: {why.reason}")
            return
        self.connected = False
        wanted = self._stopping.is_set() or self._leaving
        if abrupt and self._trouble.refused_since(self._brokers.connected_at):
            abrupt = False  # Mosquitto 2.0 ends a connection on which it has refused a message
            why = replace(why, reason=f"{why.reason}, after it refused something")
        if rival := self._brokers.lost(why, silent=abrupt and not wanted):
            self._trouble.taken_over(rival)
        elif not wanted:
            self._trouble.failed(f"connection lost: {why.reason}")
        self._on_down(replace(why, wanted=self._leaving))
