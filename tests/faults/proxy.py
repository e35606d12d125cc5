"""A TCP proxy between two parts, with a network's faults. All proxies of a world share one thread.

Faults (``mode``): ``pass``; ``cut`` (refused, and what is open is closed); ``hold`` (both directions stand still, the sockets
stay: as when packets vanish, which TCP sends again later); ``hold_up``, ``hold_down`` (one direction stands still); ``slow``
(10 kB/s); ``delay`` (half a second each way). ``reset`` ends what is open by RST in the middle of a packet.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable

CHUNK = 4096
"""Small, so that little is under way when a connection ends."""
SEGMENT = 1400
"""As on a real network. Loopback's 64 kB are more than the small buffers hold, and then TCP may wait 0.2 s for each
buffer-full (to avoid silly windows): a message of 50 MB took five minutes, and all behind it as long."""
SLOW_BYTES_S = 10_000
DELAY_S = 0.5


class Network:
    """The thread that runs the proxies."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.proxies: list[Proxy] = []
        self._thread = threading.Thread(target=self.loop.run_forever, name="network", daemon=True)
        self._thread.start()

    def call(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(20)

    def close(self) -> None:
        for proxy in self.proxies:
            proxy.close()
        self.call(self._end())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(5)
        if not self._thread.is_alive():
            self.loop.close()

    async def _end(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)


class Proxy:
    """Listens on ``port`` for the part behind ``target_port``."""

    def __init__(self, network: Network, target_port: int) -> None:
        self._network, self._target = network, target_port
        network.proxies.append(self)
        self.mode = "pass"
        self._open: set[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = set()
        self._watch: tuple[int, Callable[[], None]] | None = None
        self._changed = asyncio.Event()
        self._server = network.call(self._listen())
        self.port: int = self._server.sockets[0].getsockname()[1]

    def set(self, mode: str) -> None:
        self._network.call(self._set(mode))

    def reset(self) -> None:
        self._network.call(self._reset())

    def after(self, count: int, what: Callable[[], None]) -> None:
        """Runs ``what``, once, when as many more bytes have gone up: in the middle of what a part is asked for."""
        self._watch = (count, what)

    def forget(self) -> None:
        self._watch = None

    def close(self) -> None:
        self._network.call(self._close())

    async def _close(self) -> None:
        self._server.close()
        await self._set("cut")

    async def _listen(self) -> asyncio.Server:
        sock = _socket()
        sock.bind(("127.0.0.1", 0))
        return await asyncio.start_server(self._accept, sock=sock)

    async def _set(self, mode: str) -> None:
        self.mode = mode
        self._changed.set()
        self._changed = asyncio.Event()
        if mode == "cut":
            for pair in list(self._open):
                for writer in pair:
                    writer.transport.abort()

    async def _reset(self) -> None:
        for pair in list(self._open):
            for writer in pair:
                sock = writer.get_extra_info("socket")
                with contextlib.suppress(OSError):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while self.mode in ("hold", "hold_down", "hold_up"):  # as a SYN that gets lost
            await self._changed.wait()
        if self.mode == "cut":
            writer.transport.abort()
            return
        sock = _socket()
        try:
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self._target))
            there, to_there = await asyncio.open_connection(sock=sock, limit=CHUNK)
        except OSError:
            sock.close()
            writer.transport.abort()
            return
        for one in (writer, to_there):
            one.transport.set_write_buffer_limits(high=CHUNK)
            sock = one.get_extra_info("socket")
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
                sock.setsockopt(socket.SOL_SOCKET, option, CHUNK * 4)
        self._open.add(pair := (writer, to_there))
        try:
            await asyncio.gather(self._carry(reader, to_there, "up"), self._carry(there, writer, "down"))
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self._open.discard(pair)
            for one in pair:
                one.transport.abort()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: str) -> None:
        while data := await reader.read(CHUNK):
            if way == "up" and self._watch:
                left, what = self._watch
                self._watch = (left - len(data), what)
                if left <= len(data):
                    self._watch = None
                    writer.write(data[: len(data) // 2])
                    await asyncio.get_running_loop().run_in_executor(None, what)
                    data = data[len(data) // 2 :]
            if self.mode == "delay":
                await asyncio.sleep(DELAY_S)
            elif self.mode == "slow":
                await asyncio.sleep(len(data) / SLOW_BYTES_S)
            while self.mode in ("hold", f"hold_{way}"):
                await self._changed.wait()
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()


def _socket() -> socket.socket:
    sock = socket.socket()
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, SEGMENT)
    return sock
