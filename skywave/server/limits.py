"""What one client may use of a day, so that nobody's messages cost the others more than that (docs/security.md)."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import NamedTuple, TypeVar

from ..formats.messages import ClientStatus, Dropped, Produced
from ..process.visible import visible
from ..store.columns import Rejected
from .poison import MAX_REASON

log = logging.getLogger(__name__)
H = TypeVar("H", bound=Hashable)

STREAMS_A_DAY = 1000
"""Most streams of a client whose accounts are kept in a day; a client begins one at each start."""
DROPS_A_DAY = 20_000
"""Most declared losses of a client that are kept in a day."""
LINES_A_DAY = 100
"""Most lines in the log that a client's messages bring about in a day."""


class Report(NamedTuple):
    """What a client says of its streams and its losses."""

    streams: list[Produced]
    dropped: list[Dropped]


@dataclass(slots=True)
class _Usage:
    """What a client has used; ``rejected`` are bytes of poison, -1 while the store was not asked."""

    rejected: int = -1
    over_quota: bool = False
    streams: set[int] = field(default_factory=set)
    drops: set[Dropped] = field(default_factory=set)
    lines: int = 0


class Limits:
    """``reject_quota`` are bytes of poison that are kept of a client in a day, ``rejected_bytes`` asks the store how many it
    has of a client and a day."""

    def __init__(self, reject_quota: int, rejected_bytes: Callable[[int, date], int]) -> None:
        self._reject_quota, self._rejected_bytes = reject_quota, rejected_bytes
        self._day = date.min
        self._used: defaultdict[int, _Usage] = defaultdict(_Usage)

    def begin(self, today: date) -> None:
        """On another day than the last one nothing is used yet."""
        if today != self._day:
            self._day = today
            self._used.clear()

    def tell(self, client_id: int, what: str) -> None:
        """A line in the log about a message of a client, unless it had its share of lines today."""
        usage = self._used[client_id]
        usage.lines += 1
        if usage.lines <= LINES_A_DAY:
            log.warning("client %d: %s", client_id, visible(what, MAX_REASON))
        if usage.lines == LINES_A_DAY:
            log.warning("client %d: nothing more is said of its messages today; see: skywave rejected list", client_id)

    def keeps(self, row: Rejected) -> bool:
        """Counts poison towards its client's quota; False if that is used up, which is told once."""
        usage = self._used[row.client_id]
        if usage.rejected < 0:
            usage.rejected = self._rejected_bytes(row.client_id, row.day)
        if usage.rejected + row.size <= self._reject_quota:
            usage.rejected += row.size
            return True
        if not usage.over_quota:
            usage.over_quota = True
            log.error(
                "client %d: today's quota for rejected messages is used up; nothing more is kept nor acknowledged: %s",
                row.client_id,
                visible(row.reason, MAX_REASON),
            )
        return False

    def report(self, client_id: int, status: ClientStatus) -> Report:
        """What is recorded of a status, with only so many streams and declared losses as are recorded of a client in a day."""
        usage = self._used[client_id]
        # The present stream comes last, and matters most.
        named = _within([item.stream for item in reversed(status.streams)], usage.streams, STREAMS_A_DAY)
        streams = [item for item in status.streams if item.stream in named]
        dropped = _within(status.dropped, usage.drops, DROPS_A_DAY)
        if len(streams) < len(status.streams) or len(dropped) < len(status.dropped):
            self.tell(
                client_id,
                f"its account is too long: {len(status.streams)} streams, {len(status.dropped)} declared losses; "
                f"recorded are {STREAMS_A_DAY} and {DROPS_A_DAY} a day, the rest tomorrow",
            )
        return Report(streams, list(dropped))


def _within(items: Sequence[H], known: set[H], most: int) -> dict[H, None]:
    """Those of ``items`` that are ``known``, and as many others, which become known, as make it ``most``."""
    within: dict[H, None] = {}
    for item in items:
        if item in known or len(known) < most:
            known.add(item)
            within[item] = None
    return within
