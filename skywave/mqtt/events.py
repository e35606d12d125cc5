"""What a link hears and says: messages, wills, ends of connections, refusals."""

from __future__ import annotations

from dataclasses import dataclass

NO_SUBSCRIBER, UNSPECIFIED_ERROR, SESSION_TAKEN_OVER, PACKET_TOO_LARGE = 0x10, 0x80, 0x8E, 0x95
"""Reason codes (MQTT 5, section 2.4)."""


@dataclass(frozen=True, slots=True)
class Message:
    """A received message. ``properties`` are its user properties (the last of equal names wins); ``fault`` says why its
    properties were not read, "" if they were. ``packet_id`` is what ``Link.acknowledge`` takes, 0 with QoS 0."""

    topic: str
    payload: bytes
    content_type: str = ""
    properties: dict[str, str] | None = None
    dup: bool = False
    retained: bool = False
    fault: str = ""
    packet_id: int = 0


@dataclass(frozen=True, slots=True)
class Will:
    """What the broker publishes, retained, when this connection breaks."""

    topic: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class Disconnected:
    """Why a connection ended: ``code`` is the broker's reason code, 0 if it gave none; ``wanted`` if this side ended it."""

    code: int
    reason: str
    wanted: bool = False


@dataclass(frozen=True, slots=True)
class Refused:
    """The broker's word on a message that it did not take: ``code`` is the MQTT reason code, ``words`` say it to people."""

    code: int
    words: str
    sent: bool = True
    """False if it was not even sent, because of what the broker had said before."""
