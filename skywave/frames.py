"""The sensors' framing: a 10-byte ASCII header with the payload's length, left-justified and padded with spaces, then
the payload, a decimal number in ASCII (``b"4         21.5"``)."""

from __future__ import annotations

import math

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
        text = header.rstrip(b" ")
        if not text.isdigit():
            self.broken = f"header {header!r} is not a length"
            return 0
        length = int(text)
        if length > MAX_PAYLOAD:
            self.broken = f"header announces {length} bytes, a number has at most {MAX_PAYLOAD}"
            return 0
        self._lengths[header] = length
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


def frame(payload: bytes) -> bytes:
    """``payload`` as a frame."""
    return b"%-10d%b" % (len(payload), payload)
