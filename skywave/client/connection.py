"""One sensor's TCP connection, through all its attempts: the look-up of its name, its addresses in turn, back-off.

An address that failed is followed by the next one of the name at once, and the one that worked is the first that is tried
again. When all have failed, the next round waits.
"""

from __future__ import annotations

import errno
import os
import socket
from concurrent.futures import Executor, Future
from typing import Any

from ..process.backoff import Backoff

RECEIVE_BUFFER_BYTES = 64 << 10
"""Small on purpose: what stands in it when the client is killed is lost (the kernel doubles the figure)."""
FIRST_PAUSE_S = 0.25


class Connection:
    """``host`` and ``port`` are as configured. ``sock`` is None while nothing is tried, ``ready`` True once it is connected.

    Times are monotonic seconds. Rounds are ``reconnect_max`` seconds apart at most. ``resolver`` looks names up, because a
    name server that does not answer must not hold up the other sensors.
    """

    def __init__(self, host: str, port: int, reconnect_max: float, resolver: Executor) -> None:
        self.host, self.port = host, port
        self.sock: socket.socket | None = None
        self.ready = False
        self._resolver = resolver
        self._lookup: Future[list[Any]] | None = None
        # The addresses of its name that are not tried yet in this round, why the others failed, and the one that is used.
        self._addresses: list[Any] = []
        self._failures: list[str] = []
        self._used: Any = None
        self._delivered = False
        self._retry_at = 0.0
        self._backoff = Backoff(FIRST_PAUSE_S, reconnect_max)

    def begin(self, now: float) -> socket.socket | None:
        """Begins to connect to the next address, if it is time and the name is looked up. Returns the socket then: ``finish``
        is next when it can be written to. Raises ``OSError``."""
        if now < self._retry_at:
            return None
        if not self._addresses:
            found = _literal(self.host, self.port)
            if not found:
                if self._lookup is None:
                    self._lookup = self._resolver.submit(_look_up, self.host, self.port)
                if not self._lookup.done():
                    return None
                lookup, self._lookup = self._lookup, None
                found = lookup.result()
            self._failures = []
            self._addresses = sorted(found, key=lambda item: bool(item[4] != self._used))
        family, kind, _, _, address = self._addresses.pop(0)
        self._used, self._delivered = address, False
        self.sock = sock = socket.socket(family, kind)
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
        code = sock.connect_ex(address)
        if code not in (0, errno.EINPROGRESS):
            raise _refusal(code)
        return sock

    def finish(self) -> None:
        """It is connected, or raises ``OSError``."""
        assert self.sock is not None
        if code := self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            raise _refusal(code)
        self.ready = True

    def adopt(self, sock: socket.socket) -> None:
        """Goes on with a connection that an earlier process made."""
        sock.setblocking(False)
        self.sock, self.ready = sock, True

    def delivered(self) -> None:
        """A reading came: this is the right address."""
        self._delivered = True
        self._backoff.reset()

    def failed(self, why: str) -> str:
        """This attempt is over; returns why the whole round has failed so far. Close it then."""
        if self._delivered:
            self._addresses, self._failures = [], []
        if self._addresses or self._failures:
            self._failures.append(f"{self._used[0]}: {why}")
            return "; ".join(self._failures)
        return why

    def close(self) -> None:
        """Ends what is open or tried."""
        if self.sock is not None:
            self.sock.close()
        self.sock, self.ready = None, False

    def pause(self, now: float) -> bool:
        """After a failure: False if another address is tried at once, else it pauses before the next round."""
        if self._addresses:
            return False
        self._retry_at = now + self._backoff.next()
        return True


def _look_up(host: str, port: int, flags: int = 0) -> list[Any]:
    try:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
    except ValueError as error:  # an empty label, one of more than 63 letters, a character of code 0
        raise OSError(f"{host[:100]!r} is no host name") from error


def _literal(host: str, port: int) -> list[Any]:
    """The address, if it is one and no name, without asking anybody; nothing if it is a name."""
    try:
        return _look_up(host, port, socket.AI_NUMERICHOST)
    except OSError:
        return []


def _refusal(code: int) -> OSError:
    return OSError(errno.errorcode.get(code, os.strerror(code)))
