"""What is written of MQTT 5: the properties of our packets, a PUBLISH's size; and the words of a broker's answer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

RECEIVE_MAXIMUM = 1000
"""Without it Mosquitto keeps only 20 messages in flight to a subscriber."""
MAX_PACKET_BYTES = 17 << 20
"""Largest packet that is read, unless a link is told otherwise: above what any broker of ours lets pass."""
MAX_WORDS = 200
"""Characters of a broker's own words that are shown."""
TABLES: dict[str, Any] = vars(Properties(PacketTypes.PUBLISH))
"""What MQTT 5 says of each property. paho makes it anew for each packet, which takes longer than all the rest."""


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
    properties = Properties.__new__(Properties)
    properties.__dict__.update(TABLES, UserProperty=list(user))
    if content_type:
        properties.__dict__["ContentType"] = content_type
    return properties


def publish_bytes(topic: str, payload: bytes, properties: Properties | None) -> int:
    """Bytes of a QoS 1 PUBLISH on the wire (MQTT 5, section 3.3)."""
    rest = 2 + len(topic.encode()) + 2 + (len(properties.pack()) if properties else 1) + len(payload)
    return 1 + max(1, (rest.bit_length() + 6) // 7) + rest


def words_of(reason: Any, properties: Any) -> str:
    """A reason code (paho's) in words, its number, and what the broker adds to it."""
    more = str(getattr(properties, "ReasonString", ""))[:MAX_WORDS]
    return f"{reason} ({reason.value})" + (f": {more!r}" if more else "")
