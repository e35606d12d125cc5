"""What one group of messages came to, on its way from the inbox to the acknowledgements."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date

from ..formats.messages import Ack, ClientStatus, Produced, Range, merge
from .admission import Admitted, is_batch
from .inbox import Received
from .poison import Poison

DAYS_IN_A_GROUP = 3
"""Of one client: each day is an INSERT, for which everybody waits. Two lanes at midnight need three."""


@dataclass(slots=True)
class Reply:
    """The acknowledgement of one client in the making."""

    stored: list[Range] = field(default_factory=list)
    rejected: list[Range] = field(default_factory=list)
    recorded: list[Produced] = field(default_factory=list)
    dropped: list[Range] = field(default_factory=list)

    def __bool__(self) -> bool:
        """False if there is nothing to tell: a device without ids waits for no answer."""
        return bool(self.stored or self.rejected or self.recorded or self.dropped)

    def ack(self, server: str, today: date) -> Ack:
        """The message."""
        return Ack(server, today, merge(self.stored), merge(self.rejected), self.recorded, self.dropped)


@dataclass(slots=True)
class Group:
    """``today`` is the server's UTC date for all of it; ``rows`` and ``bytes`` are what its INSERTs will have."""

    today: date
    rows: int = 0
    bytes: int = 0
    received: list[Received] = field(default_factory=list)
    days: defaultdict[int, set[str]] = field(default_factory=lambda: defaultdict(set))
    admitted: list[Admitted] = field(default_factory=list)
    poison: list[Poison] = field(default_factory=list)
    statuses: dict[int, ClientStatus] = field(default_factory=dict)
    remembered: set[int] = field(default_factory=set)
    """Clients whose status is one that the broker kept: perhaps not their last, if there are several brokers."""
    replies: defaultdict[int, Reply] = field(default_factory=lambda: defaultdict(Reply))

    def has_room(self, received: Received) -> bool:
        """False if a batch is of one day too many of its client: it waits for the next group."""
        if not is_batch(received.message):
            return True
        day, days = (received.message.properties or {}).get("day", ""), self.days[received.client_id]
        if day not in days and len(days) == DAYS_IN_A_GROUP:
            return False
        days.add(day)
        return True

    def add(self, admitted: Sequence[Admitted]) -> None:
        """Adds readings that may be stored."""
        self.admitted += admitted
        self.rows += sum(len(item.values) for item in admitted)
        self.bytes += sum(item.size for item in admitted)

    def add_poison(self, poison: Poison) -> None:
        """Adds what cannot be stored as readings."""
        self.poison.append(poison)
        self.bytes += poison.row.size

    def add_status(self, client_id: int, status: ClientStatus, remembered: bool) -> None:
        """Adds what a client says; of several the last counts."""
        self.statuses[client_id] = status
        (self.remembered.add if remembered else self.remembered.discard)(client_id)
