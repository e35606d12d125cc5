"""Acknowledged intake, the client's side: how far a sensor that numbers its readings was taken in, and what it is told.

After each connect the client says after which reading it goes on, the sensor with which one it begins; then readings come
one way and acknowledgements go the other (``formats/frames.py`` has the words).
"""

from __future__ import annotations

from ..formats.frames import Word, take_word
from ..outbox.outbox import Position

MAX_SEQ = 1 << 62
NOWHERE = Position(0, 0)


class Numbering:
    """``taken`` is what came in, ``committed`` what of that is in the outbox, ``told`` what the sensor knows of that on this
    connection. After a restart it goes on from ``committed``."""

    def __init__(self, committed: Position) -> None:
        self.taken = self.committed = committed
        self.told = NOWHERE
        self._greeting: bytes | None = None  # the sensor's first word while it is awaited

    def connected(self) -> Word:
        """What to say first on a new connection."""
        self._greeting, self.told = b"", NOWHERE
        return Word("after", *self.taken)

    @property
    def greeted(self) -> bool:
        """True when readings are to come: the sensor has said with which one it begins."""
        return self._greeting is None

    def greet(self, data: bytes) -> tuple[bytes, range]:
        """Takes the sensor's first word from ``data``. Returns what follows it, and the numbers of the readings that the
        sensor no longer has. Raises ``ValueError`` if it says anything else."""
        try:
            word, rest = take_word((self._greeting or b"") + data)
            if word is None:
                self._greeting = rest
                return b"", range(0)
            last = self.taken.seq if self.taken.stream == word.stream else 0
            if word.word != "first" or not word.stream or not last < word.seq <= MAX_SEQ:
                raise ValueError(f"{word} after {self.taken}")
        except ValueError as error:
            raise ValueError(f"{error}: this is no acknowledged intake") from error
        self._greeting, self.taken = None, Position(word.stream, word.seq - 1)
        return rest, range(last + 1, word.seq) if last else range(0)

    def take(self, readings: int) -> None:
        """So many more came, malformed ones as well."""
        self.taken = Position(self.taken.stream, self.taken.seq + readings)
