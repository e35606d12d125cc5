"""Puts on record what somebody knows of the account: readings that are lost, and numbers that were never produced.

After a disaster, or with an outbox that was destroyed, readings are missing for ever, and a status that was forged or
damaged names readings that never were. Both would keep the account unclean, and hide what goes missing next. Each entry is
judged by the account as it is at that moment.

What is *doubled* cannot be accepted: it is in the table, and can be mended there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from ..errors import ConfigError
from ..formats.spans import Spans
from .accounts import LOST, TAKEN_BACK, Accounts, Entry, StreamAccount, Wanted

MAX_ENTRIES = 100_000
"""Ranges that one acceptance may put on record."""
_WHAT = re.compile(r"all|([1-9]\d{0,9})(?:/([1-9]\d{0,19})(?:/([1-9]\d{0,19})(?:-([1-9]\d{0,19}))?)?)?", re.ASCII)


class What(NamedTuple):
    """Which numbers are meant: of all clients, or of one, of a stream of it, or some of that. None leaves it open."""

    client_id: int | None = None
    stream: int | None = None
    first: int | None = None
    last: int | None = None

    @classmethod
    def parse(cls, word: str) -> What:
        """``all`` or ``CLIENT[/STREAM[/FIRST[-LAST]]]``; raises ``ValueError``."""
        match = _WHAT.fullmatch(word)
        if match is None:
            raise ValueError(f"{word!r} is neither all nor CLIENT, CLIENT/STREAM, CLIENT/STREAM/FIRST-LAST")
        client, stream, first, last = (int(number) if number else None for number in match.groups())
        if max(stream or 0, first or 0, last or 0) >= 2**64 or (last is not None and (first or 0) > last):
            raise ValueError(f"{word!r} names numbers that there cannot be")
        return cls(client, stream, first, first if last is None else last)

    def has(self, client_id: int, stream: int) -> bool:
        """True if it means numbers of this stream."""
        return self.client_id in (None, client_id) and self.stream in (None, stream)

    def covers(self, first: int, last: int) -> bool:
        """True if it means all of these numbers."""
        return self.first is None or self.last is None or (self.first <= first and last <= self.last)

    def numbers(self, spans: Spans) -> Spans:
        """Those of ``spans`` that it means."""
        return spans if self.first is None or self.last is None else spans & Spans.of([(self.first, self.last)])


def note(
    shards: Sequence[Accounts], shard_of: Callable[[int], int], kind: str, what: What, reason: str, name: str
) -> list[Entry]:
    """Puts on record that the numbers of ``what`` are ``kind``, or takes that back; returns the new entries.

    ``shard_of`` tells the shard of a client. Raises ``ConfigError`` if it cannot be so, and ``StoreUnavailable``.
    """
    if kind == TAKEN_BACK:
        wanted = taken_back([entry for shard in shards for entry in shard.accepted(what.client_id)], what)
    else:
        accounts = [account for shard in shards for account in shard.account(what.client_id).streams]
        wanted = (lost if kind == LOST else void)(accounts, what)
    noted = []
    for number, shard in enumerate(shards):
        if own := [numbers for numbers in wanted if shard_of(numbers[0]) == number]:
            noted += shard.accept(own, kind, reason, name)
    return noted


def lost(accounts: Iterable[StreamAccount], what: What) -> list[Wanted]:
    """The missing numbers that ``what`` means. Raises ``ConfigError`` if none of them is missing, or too many ranges are."""
    found = [
        (account.client_id, int(account.stream), *span)
        for account in accounts
        if what.has(account.client_id, int(account.stream))
        for span in what.numbers(account.absent).pairs(MAX_ENTRIES + 1)
    ]
    if not found:
        raise ConfigError("nothing of that is missing, so there is nothing to accept", "See: skywave audit")
    if len(found) > MAX_ENTRIES:
        raise ConfigError(
            f"these are more than {MAX_ENTRIES} ranges", "Accept them client by client, or stream by stream."
        )
    return found


def void(accounts: Iterable[StreamAccount], what: What) -> list[Wanted]:
    """The numbers above ``what.first`` that its client named: this is the last that the stream produced. Raises
    ``ConfigError`` if there are none, or if something above is known."""
    for account in accounts:
        if what.first is None or not what.has(account.client_id, int(account.stream)):
            continue
        if what.first >= account.said:
            raise ConfigError(f"its client named {account.said} as the last number", "See: skywave audit")
        if what.first < account.highest:
            raise ConfigError(
                f"reading {account.highest} of that stream has arrived, so at least as many were produced",
                "Accept the numbers that are missing below it instead.",
            )
        return [(account.client_id, int(account.stream), what.first + 1, account.said)]
    raise ConfigError("no client has named that stream", "Give CLIENT/STREAM/LAST; see: skywave audit")


def taken_back(known: Iterable[Entry], what: What) -> list[Wanted]:
    """The ranges on record that lie within ``what``. Raises ``ConfigError`` if there are none."""
    found = [entry[:4] for entry in known if what.has(*entry[:2]) and what.covers(entry.first, entry.last)]
    if not found:
        raise ConfigError("nothing of that is on record", "See: skywave audit --accepted")
    return found
