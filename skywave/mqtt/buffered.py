"""The socket beneath a link: it reads ahead and writes many packets at once."""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from typing import Any

LAST_WORDS_S = 1.0
"""A connection that this side ends waits for so long until the broker has read what was said last."""
READ_AHEAD_BYTES = 1 << 16
READ_AT_ONCE_BYTES = 1 << 20
WRITE_TOGETHER_BYTES = 1 << 16


class BufferedSocket:
    """What paho takes for its socket: reads ahead, and writes many packets at once.

    paho asks the system four times for each packet that it reads, once for each that it writes. With two threads that
    share an interpreter each of these is also a chance to wait for the other one.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._read = b""
        self._at = 0
        self.unsent = bytearray()
        self.error: Exception | None = None  # what ended it; paho keeps it to itself

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def recv(self, size: int) -> bytes:
        """See ``socket.recv``."""
        if self._at == len(self._read):
            if size >= READ_AHEAD_BYTES:
                return self._received(min(size, READ_AT_ONCE_BYTES))
            self._read, self._at = self._received(READ_AHEAD_BYTES), 0
        data = self._read[self._at : self._at + size]
        self._at += len(data)
        return data

    def _received(self, size: int) -> bytes:
        try:
            return self._sock.recv(size)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except OSError as error:
            self.error = error
            raise

    def pending(self) -> int:
        """Bytes that can be read although the system knows nothing of them any more."""
        return len(self._read) - self._at + (self._sock.pending() if isinstance(self._sock, ssl.SSLSocket) else 0)

    def send(self, data: bytes) -> int:
        """Takes all of it, or raises ``BlockingIOError``."""
        if self.error:
            return len(data)  # what it was is told when the broker's last words are read
        if len(self.unsent) + len(data) > WRITE_TOGETHER_BYTES:
            self.flush()
            if self.unsent:
                raise BlockingIOError
            if len(data) > WRITE_TOGETHER_BYTES:
                return self._sock.send(data)
        self.unsent += data
        return len(data)

    def flush(self) -> None:
        """Writes what the system takes now; ``error`` tells if the connection is broken."""
        try:
            while self.unsent:
                del self.unsent[: self._sock.send(self.unsent)]
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            pass
        except OSError as error:
            self.error = error
            self.unsent.clear()  # ``close`` need not try

    def close(self) -> None:
        """Writes the rest, which ends with paho's DISCONNECT, and closes when the broker has.

        A socket that is closed with unread bytes is reset, and takes what the broker has not read yet with it.
        """
        until = time.monotonic() + LAST_WORDS_S
        with contextlib.suppress(OSError):
            self._sock.settimeout(LAST_WORDS_S)
            self._sock.sendall(self.unsent)
            self._sock.shutdown(socket.SHUT_WR)
            while time.monotonic() < until and self._sock.recv(READ_AT_ONCE_BYTES):
                pass
        self.unsent.clear()
        self._sock.close()


def tune_socket(sock: Any) -> None:
    """Notices a peer that vanished without a word within half a minute, also while data waits for its TCP ack."""
    with contextlib.suppress(OSError, AttributeError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
