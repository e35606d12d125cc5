"""MQTT 5 properties and reason codes, written and read past paho's tables."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from paho.mqtt import _packet
from paho.mqtt.exception import MalformedPacket
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from .buffered import MAX_PACKET_BYTES
from .packets import read_properties

RECEIVE_MAXIMUM = 1000
"""Without it Mosquitto keeps only 20 messages in flight to a subscriber."""
MAX_WORDS = 200


def connect_properties(max_packet: int = MAX_PACKET_BYTES, session_expiry: int = 0) -> Properties:
    """With which every client of ours connects; ``max_packet`` in bytes, ``session_expiry`` in seconds."""
    properties = Properties(PacketTypes.CONNECT)
    properties.ReceiveMaximum = RECEIVE_MAXIMUM
    properties.MaximumPacketSize = max_packet
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


def publish_bytes(topic: str, payload: bytes, properties: Properties | None) -> int:
    """Bytes of a QoS 1 PUBLISH on the wire (MQTT 5, section 3.3)."""
    rest = 2 + len(topic.encode()) + 2 + (len(properties.pack()) if properties else 1) + len(payload)
    return 1 + max(1, (rest.bit_length() + 6) // 7) + rest


def words_of(reason: Any, properties: Any) -> str:
    """A reason code, and what the broker adds to it."""
    more = str(getattr(properties, "ReasonString", ""))[:MAX_WORDS]
    return f"{reason} ({reason.value})" + (f": {more!r}" if more else "")


# -- What paho reads of a packet -------------------------------------------------------------------------------------


class BoundedProperties(Properties):
    """Properties of any packet, read in one bounded pass. A PUBLISH goes on without those that cannot be read, for it is
    another client's; in any other packet the broker is at fault."""

    _tables: ClassVar[dict[str, Any]] = vars(Properties(PacketTypes.PUBLISH))

    def __init__(self, packet_type: int) -> None:
        self.__dict__.update(self._tables, packetType=packet_type)

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


vars(_packet).update(Properties=BoundedProperties, ReasonCode=AnyReasonCode)  # what paho reads of each packet
