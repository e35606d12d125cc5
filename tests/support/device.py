"""A device that speaks plain MQTT, without Skywave."""

from __future__ import annotations

import threading

import paho.mqtt.client as paho
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from skywave.formats.messages import Ack


class Device:
    """A plain MQTT 5 client that keeps what it hears."""

    def __init__(self, port: int, *subscriptions: str) -> None:
        self.heard: list[paho.MQTTMessage] = []
        self.client = paho.Client(paho.CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
        self.client.on_message = lambda _c, _d, message: self.heard.append(message)
        subscribed = threading.Event()
        self.client.on_subscribe = lambda *_: subscribed.set()
        self.client.connect("127.0.0.1", port)
        self.client.loop_start()
        if subscriptions:
            self.client.subscribe([(topic, 1) for topic in subscriptions])
            assert subscribed.wait(5)

    def send(self, topic: str, payload: bytes, content_type: str = "", retain: bool = False, **user: object) -> None:
        properties = Properties(PacketTypes.PUBLISH)
        if content_type:
            properties.ContentType = content_type
        for pair in user.items():
            properties.UserProperty = (pair[0], str(pair[1]))
        self.client.publish(topic, payload, 1, retain, properties).wait_for_publish(5)

    def acks(self) -> list[Ack]:
        return [Ack.decode(message.payload) for message in self.heard if message.topic.endswith("/ack")]

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()
