"""paho's client with bounds on what it reads, whatever a broker sends, and what it reads of each packet.

Whoever imports it has all of paho in this process read properties and reason codes so.
"""

from __future__ import annotations

from socket import socket
from typing import Any, cast

import paho.mqtt.client as paho
from paho.mqtt import _packet
from paho.mqtt.enums import MQTTErrorCode
from paho.mqtt.exception import MalformedPacket
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from .buffered import BufferedSocket
from .packets import read_properties
from .properties import MAX_PACKET_BYTES, TABLES

MAX_ANSWER_BYTES = 1 << 16
"""Largest packet that is no PUBLISH."""


class BoundedClient(paho.Client):
    """paho's client on a ``BufferedSocket``. A packet that is larger than it may be, malformed, or a message with QoS 2 ends
    the connection; the socket's ``error`` says so."""

    max_packet = MAX_PACKET_BYTES

    def _create_socket(self) -> Any:
        return BufferedSocket(cast("socket", super()._create_socket()))

    def _packet_read(self) -> MQTTErrorCode:
        code = super()._packet_read()
        return code if self._is_allowed(self._in_packet["remaining_length"]) else MQTTErrorCode.MQTT_ERR_PROTOCOL

    def _packet_handle(self) -> MQTTErrorCode:
        if not self._is_allowed(len(self._in_packet["packet"])):
            return MQTTErrorCode.MQTT_ERR_PROTOCOL
        try:
            return super()._packet_handle()
        except MalformedPacket as error:
            self._blame(f"the broker sent a malformed packet: {error}")
            raise

    def _is_allowed(self, size: int) -> bool:
        command = self._in_packet["command"]
        published = command & 0xF0 == paho.PUBLISH
        if size > (self.max_packet if published else MAX_ANSWER_BYTES):
            self._blame(f"the broker sent a packet of {size} bytes")
        elif published and command & 0x06 > 0x02:  # paho would keep it until the broker releases it
            self._blame("the broker sent a message with QoS 2, which was not asked for")
        else:
            return True
        return False

    def _blame(self, what: str) -> None:
        if sock := cast("BufferedSocket | None", self.socket()):
            sock.error = MalformedPacket(what)


class BoundedProperties(Properties):
    """Properties of any packet, read in one bounded pass. A PUBLISH goes on without those that cannot be read, for it is
    another client's: its ``fault`` says why. In any other packet the broker is at fault."""

    def __init__(self, packet_type: int) -> None:
        self.__dict__.update(TABLES, packetType=packet_type)

    def unpack(self, buffer: bytes) -> tuple[Properties, int]:
        """See ``Properties.unpack``; raises ``MalformedPacket``."""
        found = read_properties(buffer)
        if found.fault and self.packetType != PacketTypes.PUBLISH:
            raise MalformedPacket(found.fault)
        self.__dict__.update(found.values, fault=found.fault)
        return self, found.size


class AnyReasonCode(ReasonCode):
    """A reason code that may be any number: Mosquitto says "Packet too large" in a PUBACK, where MQTT 5 has no such."""

    def __init__(self, packet_type: int, name: str = "Success", identifier: int = -1) -> None:
        if identifier < 0:
            super().__init__(packet_type, name)
        else:
            self.packetType, self.value = packet_type, identifier

    def unpack(self, buffer: bytes | bytearray) -> int:
        """See ``ReasonCode.unpack``."""
        self.value = buffer[0]
        return 1

    def getName(self) -> str:
        """See ``ReasonCode.getName``."""
        names = self.names.get(self.value, {})
        return next(
            (name for name, packets in names.items() if self.packetType in packets), next(iter(names), "reason")
        )


vars(_packet).update(Properties=BoundedProperties, ReasonCode=AnyReasonCode)
