"""Where the archive lives, reduced to what publishing needs: exclusive create and exclusive, atomic rename.

Paths are relative to the archive's root, with ``/``. ``webhdfs.py`` and ``local.py`` implement it under one contract.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from skywave.errors import SkywaveError
from skywave.process.backoff import Backoff

from ..errors import AlreadyExists, TargetUnavailable


class Entry(NamedTuple):
    """One entry of a folder; ``modified`` in seconds since 1970."""

    name: str
    is_folder: bool
    size: int
    modified: float


class Target(ABC):
    """One archive's storage. Safe to use from several threads."""

    where: str
    """For messages: what and where it is."""
    retry_for: float
    """Seconds for which work is tried again while the target does not answer."""

    @abstractmethod
    def entries(self, path: str) -> list[Entry]:
        """What a folder holds, by name; nothing if there is no such folder."""

    @abstractmethod
    def status(self, path: str) -> Entry | None:
        """The entry of one path, or None."""

    @abstractmethod
    def create(self, path: str, chunks: Iterable[bytes]) -> None:
        """Writes a new file in an existing folder; raises ``AlreadyExists`` or ``NotFound``. After any other error the
        file may exist and be short, or hold everything.
        """

    @abstractmethod
    def read(self, path: str, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        """The bytes of a file, in chunks; goes on by itself where a connection breaks. Raises ``NotFound``."""

    @abstractmethod
    def rename(self, source: str, destination: str) -> None:
        """Moves a file or folder, atomically and never onto something; raises ``AlreadyExists`` or ``NotFound``.

        After ``TargetUnavailable``, or when it raised ``NotFound`` for the source, it may have been done by a try whose
        answer got lost.
        """

    @abstractmethod
    def make_folder(self, path: str) -> None:
        """Makes a folder and those above it; fine if it exists."""

    @abstractmethod
    def delete(self, path: str) -> None:
        """Deletes a file, or a folder with all it holds; fine if there is none."""

    @abstractmethod
    def touch(self, path: str) -> None:
        """Sets a file's modification time to now; raises ``NotFound``."""

    @abstractmethod
    def free_bytes(self) -> int | None:
        """Bytes that may still be written, quota and replicas considered; None if it cannot be told."""

    def problems(self, folder: str) -> list[str]:  # noqa: ARG002
        """What is wrong with the target, for ``check``; works in ``folder`` and leaves nothing there."""
        return []

    def prove(self, folder: str) -> None:  # noqa: B027
        """Raises ``TargetUnsafe`` if renames are not exclusive there, or files are made where their folder is gone: what a
        lock and a publish rely on. Works in ``folder`` and leaves nothing there."""

    def unreadable(self, error: TargetUnavailable) -> str:
        """Why one file cannot be read, if that is not because the target is away: its blocks are lost, say. Raises ``error``
        if it is."""
        try:
            self.status("")
        except TargetUnavailable:
            raise error from None
        return f"cannot be read: {error}"

    def read_bytes(self, path: str) -> bytes:
        """A small file's content; raises ``NotFound``."""
        return b"".join(self.read(path))

    def put(self, path: str, content: bytes) -> None:
        """Writes a small file of that content, tried again as often as needed; for names that only we use."""
        for attempt in attempts(self.retry_for):
            try:
                self.create(path, [content])
                return
            except AlreadyExists:
                if self.read_bytes(path) == content:
                    return  # an earlier try of ours, whose answer got lost
                self.delete(path)
            except TargetUnavailable as error:
                attempt.failed(error)


class Attempt:
    """One of several tries; see ``attempts``."""

    def __init__(self, deadline: float) -> None:
        self._deadline = deadline

    def failed(self, error: SkywaveError) -> None:
        """Raises ``error`` if there is no time for another try."""
        if time.monotonic() >= self._deadline:
            raise error


def attempts(seconds: float) -> Iterator[Attempt]:
    """Tries with growing pauses: ``for attempt in attempts(60): …`` until it returns or ``attempt.failed`` raises."""
    deadline = time.monotonic() + seconds
    pause = Backoff(0.2, 5.0)
    while True:
        yield Attempt(deadline)
        time.sleep(min(pause.next(), max(0.0, deadline - time.monotonic())))
