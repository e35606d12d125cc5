"""The properties of MQTT 5 packets, read in bounded time and memory (MQTT 5, section 2.2.2).

Whoever may publish chooses the properties of a PUBLISH, and a broker passes on megabytes of them. One pass reads them here,
and ends at bounds that no message of ours comes near. paho copies the rest of the packet for each property.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

MAX_PROPERTIES = 100
"""Properties of one packet that are read: a batch carries seven."""
MAX_PROPERTIES_BYTES = 1 << 16
_USER_PROPERTY = 38


class PacketProperties(NamedTuple):
    """``values`` by paho's names (``UserProperty`` is a list of pairs), ``size`` in bytes with the length before them, and
    ``fault``, why they were not read to their end; then ``values`` is empty."""

    values: dict[str, Any]
    size: int
    fault: str = ""


def read_properties(buffer: bytes | bytearray) -> PacketProperties:
    """What a packet's properties say; raises ``ValueError`` if not even their length can be true."""
    length, start = _varint(bytes(buffer[:4]), 0, 4)
    end = start + length
    if end > len(buffer):
        raise ValueError("properties reach beyond the packet")
    if length > MAX_PROPERTIES_BYTES:
        return PacketProperties({}, end, f"has {length} bytes of properties, at most {MAX_PROPERTIES_BYTES} are read")
    try:
        values, at = _values(bytes(buffer), start, end)
    except (KeyError, IndexError, ValueError) as error:
        return PacketProperties({}, end, f"has properties that cannot be read: {error}")
    if at < end:
        return PacketProperties({}, end, f"has more than {MAX_PROPERTIES} properties")
    return PacketProperties(values, end)


def _values(buffer: bytes, at: int, end: int) -> tuple[dict[str, Any], int]:
    """Up to ``MAX_PROPERTIES`` of them, and the place behind the last."""
    values: dict[str, Any] = {}
    pairs: list[tuple[str, str]] = []
    for _ in range(MAX_PROPERTIES):
        if at >= end:
            break
        kind = buffer[at]
        if kind == _USER_PROPERTY:  # nearly all of them: without a call
            middle = at + 3 + (buffer[at + 1] << 8 | buffer[at + 2])
            stop = middle + 2 + (buffer[middle] << 8 | buffer[middle + 1])
            if stop > end:
                raise ValueError("a value reaches beyond its place")
            pairs.append((buffer[at + 3 : middle].decode(), buffer[middle + 2 : stop].decode()))
            at = stop
        else:
            name, read = _PROPERTIES[kind]
            if name in values:
                raise ValueError(f"two of {name}")
            values[name], at = read(buffer, at + 1, end)
    if pairs:
        values["UserProperty"] = pairs
    return values, at


# Each reads a value that begins at ``at`` and gives it with the place behind it; raises if it reaches beyond ``end``.


def _varint(buffer: bytes, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    for place in range(at, min(at + 4, end, len(buffer))):
        value |= (buffer[place] & 0x7F) << shift
        if buffer[place] < 0x80:
            return value, place + 1
        shift += 7
    raise ValueError("a number without an end")


def _binary(buffer: bytes, at: int, end: int) -> tuple[bytes, int]:
    stop = at + 2 + (buffer[at] << 8 | buffer[at + 1])
    if stop > end:
        raise ValueError("a value reaches beyond its place")
    return buffer[at + 2 : stop], stop


def _text(buffer: bytes, at: int, end: int) -> tuple[str, int]:
    value, stop = _binary(buffer, at, end)
    return value.decode(), stop


def _unsigned(size: int) -> Callable[[bytes, int, int], tuple[int, int]]:
    def read(buffer: bytes, at: int, end: int) -> tuple[int, int]:
        if at + size > end:
            raise ValueError("a value reaches beyond its place")
        return int.from_bytes(buffer[at : at + size], "big"), at + size

    return read


_byte, _two_bytes, _four_bytes = _unsigned(1), _unsigned(2), _unsigned(4)

_PROPERTIES: dict[int, tuple[str, Callable[[bytes, int, int], tuple[Any, int]]]] = {
    1: ("PayloadFormatIndicator", _byte),
    2: ("MessageExpiryInterval", _four_bytes),
    3: ("ContentType", _text),
    8: ("ResponseTopic", _text),
    9: ("CorrelationData", _binary),
    11: ("SubscriptionIdentifier", _varint),
    17: ("SessionExpiryInterval", _four_bytes),
    18: ("AssignedClientIdentifier", _text),
    19: ("ServerKeepAlive", _two_bytes),
    21: ("AuthenticationMethod", _text),
    22: ("AuthenticationData", _binary),
    26: ("ResponseInformation", _text),
    28: ("ServerReference", _text),
    31: ("ReasonString", _text),
    33: ("ReceiveMaximum", _two_bytes),
    34: ("TopicAliasMaximum", _two_bytes),
    35: ("TopicAlias", _two_bytes),
    36: ("MaximumQoS", _byte),
    37: ("RetainAvailable", _byte),
    39: ("MaximumPacketSize", _four_bytes),
    40: ("WildcardSubscriptionAvailable", _byte),
    41: ("SubscriptionIdentifierAvailable", _byte),
    42: ("SharedSubscriptionAvailable", _byte),
}
