"""The sensors' framing: a 10-byte ASCII header with the payload's length, left-justified and padded with spaces, then
the payload, a decimal number in ASCII (``b"4         21.5"``).

Acknowledged intake uses the same frames for three words, each with a stream and a number (``b"after 17 4711"``). A sensor's
stream is a random number that it draws when it starts; its readings count 1, 2, 3 … within it.

* ``after`` (client, once): go on after this reading; stream 0 if the client knows of none.
* ``first`` (sensor, once): the number of the reading that comes next, and of which stream; then come readings only.
* ``ack`` (client, after each commit): readings up to this one are in the outbox, the sensor may forget them.
"""

from __future__ import annotations

import math
from typing import NamedTuple

HEADER_BYTES = 10
MAX_PAYLOAD = 64
"""Longest payload taken for a number. A longer one means that the framing is lost, which only a new connection mends."""


class FrameParser:
    """Turns the bytes of one connection into numbers, whatever the bytes are.

    ``malformed`` counts the well-framed payloads that are not finite decimal numbers (they are skipped), ``sample`` is
    the latest of them. ``broken`` says why the framing is lost ("" while it is not); then nothing more is read.
    """

    def __init__(self, rest: bytes = b"") -> None:
        self.malformed = 0
        self.sample = b""
        self.broken = ""
        self._rest = rest
        self._lengths: dict[bytes, int] = {}

    @property
    def rest(self) -> bytes:
        """The begun frame, to go on with in another parser."""
        return self._rest

    def feed(self, data: bytes) -> list[float]:
        """The numbers of all frames that ``data`` completes, in order."""
        buffer = self._rest + data if self._rest else data
        values: list[float] = []
        position, end = 0, len(buffer)
        lengths = self._lengths
        while (body := position + HEADER_BYTES) <= end:
            header = buffer[position:body]
            length = lengths.get(header)
            if length is None:
                length = self._read_header(header)
                if self.broken:
                    break
            position = body + length
            if position > end:
                position = body - HEADER_BYTES
                break
            try:
                values.append(float(buffer[body:position]))
            except ValueError:
                self._skip(buffer[body:position])
        self._rest = b"" if self.broken else buffer[position:]
        # float() also takes nan, inf and 1_000. One sum and one search find the rare chunk that has to be read again.
        if not math.isfinite(sum(values)) or b"_" in buffer:
            return self._read_strictly(buffer[:position])
        return values

    def _read_header(self, header: bytes) -> int:
        try:
            self._lengths[header] = length = _length(header)
        except ValueError as error:
            self.broken = str(error)
            return 0
        return length

    def _read_strictly(self, frames: bytes) -> list[float]:
        values = []
        position = 0
        while position < len(frames):
            body = position + HEADER_BYTES
            position = body + self._lengths[frames[position:body]]
            payload = frames[body:position]
            try:
                value = float(payload)
            except ValueError:
                continue  # counted when it was first read
            if math.isfinite(value) and b"_" not in payload:
                values.append(value)
            else:
                self._skip(payload)
        return values

    def _skip(self, payload: bytes) -> None:
        self.malformed += 1
        self.sample = payload


def _length(header: bytes) -> int:
    """The length that a header announces; ``ValueError`` if it announces none, or more than a payload may have."""
    text = header.rstrip(b" ")
    if not text.isdigit():
        raise ValueError(f"header {header!r} is not a length")
    if (length := int(text)) > MAX_PAYLOAD:
        raise ValueError(f"header announces {length} bytes, a number has at most {MAX_PAYLOAD}")
    return length


def frame(payload: bytes) -> bytes:
    """``payload`` as a frame."""
    return b"%-10d%b" % (len(payload), payload)


class Word(NamedTuple):
    """A word of acknowledged intake: ``word`` is after, first or ack."""

    word: str
    stream: int
    seq: int

    def encode(self) -> bytes:
        """The word as a frame."""
        return frame(f"{self.word} {self.stream} {self.seq}".encode())


def take_word(buffer: bytes) -> tuple[Word | None, bytes]:
    """The word that ``buffer`` begins with, and what follows it; None while it is not whole. ``ValueError``: no word."""
    if len(buffer) < HEADER_BYTES:
        return None, buffer
    end = HEADER_BYTES + _length(buffer[:HEADER_BYTES])
    if len(buffer) < end:
        return None, buffer
    payload = buffer[HEADER_BYTES:end]
    word, *numbers = payload.split(b" ")
    if word not in (b"after", b"first", b"ack") or len(numbers) != 2 or not all(n.isdigit() for n in numbers):
        raise ValueError(f"{payload!r} is no word of acknowledged intake")
    stream, seq = map(int, numbers)
    if stream >= 1 << 63 or seq >= 1 << 63:
        raise ValueError(f"{payload!r} has a number past 63 bits")
    return Word(word.decode(), stream, seq), buffer[end:]
