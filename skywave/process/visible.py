"""Text for people's eyes: every line that a command prints or a process logs goes through here.

Much of it was written by others: what a client says of itself, topics, keys, reasons, what a broker or a sensor answered. It
must not move the cursor, change the order of what is read, or look like a line of its own. So whatever is no letter, mark,
number, sign or space is shown as Python writes it (``\\x1b``, ``\\n``, ``\\u202e``), and a line has an end.
"""

from __future__ import annotations

import json
import logging
import unicodedata
from types import TracebackType
from typing import Any

import click

MAX_LETTERS = 2000
"""Of a line in a log, or a cell: nobody reads more, and a log would be full of it."""
MAX_PRINTED = 20_000
"""Of a line that somebody asked for."""


def visible(value: object, most: int = MAX_LETTERS) -> str:
    """The text of ``value`` as one harmless line of at most ``most`` letters."""
    text = str(value)
    if len(text) > most:
        text = f"{text[:most]}… ({len(text):,} letters)"
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escaped(letter) for letter in text)


def _escaped(letter: str) -> str:
    kind = unicodedata.category(letter)
    return letter.encode("unicode_escape").decode() if kind[0] == "C" or kind in ("Zl", "Zp") else letter


def say(*lines: object, err: bool = False) -> None:
    """Prints each of ``lines`` as one line."""
    for line in lines:
        click.echo(visible(line, MAX_PRINTED), err=err)


def say_json(document: Any) -> None:
    """Prints one JSON document as a line."""
    say_document(json.dumps(document))


def say_document(text: str) -> None:
    """Prints what programs read as well, JSON or TOML, as it is: they have their own way to write what cannot be seen."""
    click.echo(text)


class LineFormatter(logging.Formatter):
    """A message is one line. A traceback has more, and none of them can be taken for a message."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """See ``logging.Formatter.formatMessage``."""
        record.message = visible(record.message)
        return super().formatMessage(record)

    def formatException(
        self, ei: tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]
    ) -> str:
        """See ``logging.Formatter.formatException``."""
        return "\n".join(f"  {visible(line)}" for line in super().formatException(ei).split("\n"))
