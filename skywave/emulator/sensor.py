"""A sensor: listens on TCP and sends frames (see ``formats/frames.py``) to everybody who connects.

With a ledger it first writes down what it is about to send. The ledger is the oracle of every zero-loss test: what was
sent is known from the sender, never from the table under test.

With acknowledged intake it serves one client, keeps what that has not acknowledged, and goes on where the client says.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import select
import socket
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from ..errors import SkywaveError
from ..formats.frames import Word, frame, take_word
from .series import Series
from .signals import Measurements

log = logging.getLogger(__name__)

SEND_BUFFER_BYTES = 64 << 10
FAST_CHUNK = 500
"""Readings sent at once where the rate is bounded by the reader alone."""
SEND_AT_ONCE = 5000
TICK_S = 0.002
GREETING_S = 10.0
"""For so long a client may be silent before it says where to go on."""
STOP_GRACE_S = 10.0
"""For so long a sensor that stops waits until its readings are acknowledged."""
STUCK_AFTER_S = 30.0


class SensorEmulator:
    """Listens on ``port`` (0 picks a free one; read it back from ``port``). ``rate`` is readings/s on each connection,
    0 as fast as the reader takes them; ``limit`` ends each connection after as many readings. ``acknowledged`` turns
    acknowledged intake on: then there is one client, and ``limit`` counts over all its connections.

    ``sent`` counts readings, ``connected`` the connections that are open. Raises ``SkywaveError`` if the port is taken.
    """

    def __init__(
        self,
        kind: str,
        port: int = 0,
        host: str = "127.0.0.1",
        rate: float = 1000.0,
        signal: str = "random",
        seed: int | None = None,
        ledger: str | Path | None = None,
        limit: int | None = None,
        acknowledged: bool = False,
    ) -> None:
        self._kind, self._rate = kind, rate
        self._measured = Measurements(kind, signal, seed, limit, ledger)
        self._stopping = threading.Event()
        self._stopped_at = 0.0
        self._threads: list[threading.Thread] = []
        try:
            self._listener = socket.create_server((host, port))
        except OSError as error:
            raise SkywaveError(
                f"cannot listen on {host}:{port}: {error.strerror}",
                "Choose another --port, or a --host of this machine.",
            ) from error
        self._listener.settimeout(0.2)
        self.port: int = self._listener.getsockname()[1]
        self._series = self._new_series() if acknowledged else None
        self._taken_over: socket.socket | None = None
        self._serving = threading.Lock()
        self.sent = 0
        self.connected = 0
        self._turned_at = time.monotonic()

    def run(self) -> None:
        """Serves until ``stop``; then every connection is closed after its last whole frame."""
        with self._listener:
            while not self._stopping.is_set() or self._unsaid():
                self._turned_at = time.monotonic()
                try:
                    sock, peer = self._listener.accept()
                except TimeoutError:
                    continue
                number = self._measured.new_connection()
                thread = threading.Thread(target=self._serve, args=(sock, peer, number), daemon=True)
                self._threads = [t for t in self._threads if t.is_alive()] + [thread]
                thread.start()
        for thread in self._threads:
            thread.join(5)
        self._measured.close()

    def stop(self) -> None:
        """Asks ``run`` to return."""
        self._stopped_at = time.monotonic()
        self._stopping.set()

    def health(self) -> str:
        """Nothing, or why this sensor can take no connection."""
        still = time.monotonic() - self._turned_at
        return f"takes no connections since {still:.0f} s" if still > STUCK_AFTER_S else ""

    def _serve(self, sock: socket.socket, peer: tuple[str, int], number: int) -> None:
        log.info("%s: connection %d from %s:%d", self._kind, number, *peer[:2])
        self.connected += 1
        with sock, contextlib.suppress(OSError):
            # Small buffers: what stands in them when the reader is killed is lost with it.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._series:
                self._send_acknowledged(sock, self._series)
            else:
                self._send(sock, number)
        self.connected -= 1
        log.info("%s: connection %d ended", self._kind, number)

    def _send(self, sock: socket.socket, number: int) -> None:
        payloads = self._measured.payloads(number)
        for count in self._pace():
            chunk = list(itertools.islice(payloads, count))
            if not chunk:
                break
            self._measured.note(number, chunk)
            sock.sendall(b"".join(map(frame, chunk)))
            self.sent += len(chunk)

    # -- acknowledged intake -----------------------------------------------------------------------------------------

    def _new_series(self) -> Series:
        number = self._measured.new_connection()  # in the ledger, a series is what a connection is otherwise
        return Series(self._measured.payloads(number), partial(self._measured.note, number))

    def _send_acknowledged(self, sock: socket.socket, series: Series) -> None:
        if before := self._taken_over:
            with contextlib.suppress(OSError):
                before.shutdown(socket.SHUT_RDWR)
        self._taken_over = sock
        with self._serving:
            sock.settimeout(GREETING_S)
            words: list[Word] = []
            buffer = b""
            while not words:
                words, buffer = _hear(sock, buffer)
            seq = series.next_after(words[0].stream, words[0].seq)
            sock.sendall(Word("first", series.stream, seq).encode())
            sock.settimeout(None)
            for count in itertools.chain(self._pace(), self._last_words()):
                series.measure(count)
                chunk = series.since(seq, SEND_AT_ONCE)
                sock.sendall(b"".join(map(frame, chunk)))
                seq += len(chunk)
                self.sent += len(chunk)
                while select.select([sock], [], [], 0 if chunk else TICK_S)[0]:
                    words, buffer = _hear(sock, buffer)
                    for word in words:
                        series.acknowledge(word.stream, word.seq)
                if series.done:
                    break

    def _last_words(self) -> Iterator[int]:
        """A stopping sensor measures no more, but waits a while until its readings are acknowledged."""
        while self._unsaid():
            yield 0

    def _unsaid(self) -> bool:
        return bool(self._series and self._series.kept and time.monotonic() < self._stopped_at + STOP_GRACE_S)

    def _pace(self) -> Iterator[int]:
        """How many readings to send now, again and again, sleeping in between."""
        if not self._rate:
            while not self._stopping.is_set():
                yield FAST_CHUNK
            return
        started = time.monotonic()
        sent = 0
        while not self._stopping.is_set():
            due = int((time.monotonic() - started) * self._rate) - sent
            if due > 0:
                # A reader that pushes back makes the sensor late; it does not catch up by more than a second's worth.
                late = max(0, due - max(1, int(self._rate)))
                due -= late
                sent += due + late
                yield due
            self._stopping.wait(max(TICK_S, (sent + 1) / self._rate - (time.monotonic() - started)))


def _hear(sock: socket.socket, buffer: bytes) -> tuple[list[Word], bytes]:
    """Reads once; the words that are whole and what is left. ``OSError`` if there is nothing to hear or it is no word."""
    data = sock.recv(4096)
    if not data:
        raise ConnectionResetError
    words, buffer = [], buffer + data
    try:
        while (found := take_word(buffer))[0]:
            words.append(found[0])
            buffer = found[1]
    except ValueError as error:
        log.warning("%s", error)
        raise ConnectionAbortedError from error
    return words, buffer
