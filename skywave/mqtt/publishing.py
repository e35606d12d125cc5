"""What a link publishes, and what the broker answers."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.properties import Properties

from .events import NO_SUBSCRIBER, PACKET_TOO_LARGE, Refused
from .properties import publish_bytes, words_of
from .trouble import Trouble
from .unanswered import Unanswered

TOO_LARGE_HOLDS_S = 30.0
"""For so long nothing is sent that is as large as what the broker refused for its size: some end the connection as well."""


class SizeLimit:
    """Which sizes the broker does not take: ``at_most`` bytes of a packet by its own word, 0 if it names no bound; and for
    a while those that it has refused."""

    def __init__(self) -> None:
        self.at_most = 0
        self._refused = (0, float("-inf"))  # bytes, and when; replaced as one, for it is read in other threads

    def refused(self, size: int) -> None:
        """The broker did not take a payload of so many bytes."""
        self._refused = (size, time.monotonic())

    def forbids(self, topic: str, payload: bytes, properties: Properties | None) -> str:
        """Why the broker would not take a message of this size; "" if it may."""
        if self.at_most and (size := publish_bytes(topic, payload, properties)) > self.at_most:
            return f"at most {self.at_most} bytes, one has {size} with its properties"
        least, since = self._refused
        if len(payload) >= least and time.monotonic() - since < TOO_LARGE_HOLDS_S:
            return f"it refused {least} bytes, one has {len(payload)}"
        return ""


class Publishing:
    """Hands messages to the present connection, and each refusal to who sent the message. Any thread may publish."""

    def __init__(self, trouble: Trouble) -> None:
        self.limit = SizeLimit()
        self.unanswered = Unanswered()
        self._trouble = trouble

    def publish(
        self,
        client: paho.Client,
        topic: str,
        payload: bytes,
        qos: int,
        retain: bool,
        properties: Properties | None,
        on_refused: Callable[[Refused], None] | None,
    ) -> Callable[[], bool]:
        """See ``Link.publish``."""
        if words := self.limit.forbids(topic, payload, properties):
            self._trouble.refused(f"publish {topic}", f"the broker takes no large messages on {topic}: {words}")
            if on_refused:
                on_refused(Refused(PACKET_TOO_LARGE, words, sent=False))
            return lambda: True
        info = client.publish(topic, payload, qos, retain, properties)
        if info.rc != paho.MQTT_ERR_SUCCESS or not qos:
            return lambda: False
        return self.unanswered.add(info, topic, len(payload), on_refused)

    def answered(self, _client: paho.Client, _data: Any, packet_id: int, reason: Any, properties: Any) -> None:
        """The broker's answer to a message: paho's ``on_publish``."""
        if not (reason.is_failure or reason.value == NO_SUBSCRIBER or self._trouble.refusals):
            return
        if (sent := self.unanswered.find(packet_id)) is None:
            return
        if not (reason.is_failure or (reason.value == NO_SUBSCRIBER and sent.on_refused)):
            self._trouble.granted(f"publish {sent.topic}")
            return
        words = words_of(reason, properties)
        if reason.value == PACKET_TOO_LARGE:
            self.limit.refused(sent.size)
        self._trouble.refused(
            f"publish {sent.topic}", f"the broker answers what is published on {sent.topic} with {words}"
        )
        if sent.on_refused:
            sent.on_refused(Refused(reason.value, words))
