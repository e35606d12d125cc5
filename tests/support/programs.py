"""Programs of a host in PATH that say what a test wants, and reach nothing of the host."""

from __future__ import annotations

import json
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

PROGRAM = """#!{python} -SE
import json, socket, sys
with socket.socket(socket.AF_UNIX) as sock:
    sock.connect({address!r})
    sock.sendall(json.dumps(sys.argv[1:]).encode())
    sock.shutdown(socket.SHUT_WR)
    code, said = json.load(sock.makefile())
sys.stdout.write(said)
sys.exit(code)
"""


@contextmanager
def program(name: str, folder: Path, answer: Callable[[list[str]], tuple[int, str]]) -> Iterator[None]:
    """While the block lasts, the program ``name`` ends with the code and prints the text that ``answer`` gives for its
    arguments. ``folder`` is where it stands."""
    address = str(folder / f"{name}.socket")
    file = folder / name
    file.write_text(PROGRAM.format(python=sys.executable, address=address))
    file.chmod(0o755)
    with socket.socket(socket.AF_UNIX) as listener, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(folder), prepend=":")
        listener.bind(address)
        listener.listen()
        thread = threading.Thread(target=_serve, args=(listener, answer))
        thread.start()
        try:
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def _serve(listener: socket.socket, answer: Callable[[list[str]], tuple[int, str]]) -> None:
    while True:
        try:
            peer, _ = listener.accept()
        except OSError:  # it was shut down
            return
        with peer, peer.makefile() as question:
            peer.sendall(json.dumps(answer(json.load(question))).encode())
