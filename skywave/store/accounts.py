"""What those may ask the store who look after a fleet: the audit, the doctor, the gate, the demo; and the account itself.

produced = stored + pending + rejected + expired + declared lost + accepted, or the account names what is missing.

*Produced* comes from the clients' own statuses; never from the table under test. *Stored* counts distinct identities. A number
that is nowhere is *pending* if its client says that its outbox still holds numbers from there on, *accepted* if somebody has
put on record that it is lost (``accepting.py``), and *missing* otherwise. *Doubled* are identities stored in more than one
place that are not merged when the table is read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from ..formats.spans import NOTHING, Span, Spans
from .columns import Rejected

MAX_RANGES = 1000
FIGURES = (
    "produced", "stored", "pending", "rejected", "expired", "dropped", "accepted", "missing", "doubled", "ahead"
)  # fmt: skip

LOST = "lost"
VOID = "never produced"
TAKEN_BACK = "taken back"


@dataclass(slots=True)
class StreamAccount:
    """The account of one stream of one client; ``absent`` are the numbers that are missing, ``ahead`` readings stored since
    the client's last report."""

    client_id: int
    stream: str
    produced: int
    stored: int = 0
    pending: int = 0
    rejected: int = 0
    expired: int = 0
    dropped: int = 0
    accepted: int = 0
    doubled: int = 0
    ahead: int = 0
    oldest_unacked_s: float = 0.0
    reported_s_ago: float = 0.0
    said: int = 0
    """The last number that its client ever named: more than ``produced`` if that was corrected."""
    highest: int = 0
    """The highest number of which something is known in the store."""
    absent: Spans = NOTHING

    @property
    def missing(self) -> int:
        """How many readings are missing."""
        return self.absent.count

    @property
    def missing_ranges(self) -> list[Span]:
        """The first of their ranges."""
        return self.absent.pairs(MAX_RANGES)

    def as_json(self) -> dict[str, Any]:
        """Its part of the account's document."""
        names = ("client_id", "stream", *FIGURES, "oldest_unacked_s", "reported_s_ago", "missing_ranges")
        return {name: getattr(self, name) for name in names}


@dataclass(slots=True)
class Account:
    """The whole account. ``foreign`` counts readings of streams that no client has reported: of devices that keep no account
    (plain JSON), and of a client that has just started."""

    streams: list[StreamAccount]
    foreign: int

    def total(self, name: str) -> Any:
        """Sum of a figure over all streams."""
        return sum(getattr(stream, name) for stream in self.streams)

    @property
    def clean(self) -> bool:
        """True if nothing is missing and nothing doubled."""
        return not self.total("missing") and not self.total("doubled")

    def as_json(self) -> dict[str, Any]:
        """The document of ``skywave audit --json``."""
        return {
            "clean": self.clean,
            **{name: self.total(name) for name in FIGURES},
            "foreign": self.foreign,
            "oldest_unacked_s": max((s.oldest_unacked_s for s in self.streams), default=0.0),
            "streams": [stream.as_json() for stream in self.streams],
        }


Wanted = tuple[int, int, int, int]
"""Client, stream, first and last number."""


class Entry(NamedTuple):
    """Somebody has put on record that numbers ``first`` to ``last`` of a stream are ``what`` (``LOST``, ``VOID`` or
    ``TAKEN_BACK``); ``at`` is in µs UTC."""

    client_id: int
    stream: int
    first: int
    last: int
    what: str
    reason: str
    name: str
    at: int

    def as_json(self) -> dict[str, Any]:
        """The entry as a JSON document."""
        return {**self._asdict(), "stream": str(self.stream)}


class Tally(NamedTuple):
    """A stream as the table has it: its readings, how many numbers they have, the highest, and the sum of the values, each
    multiplied as was asked and rounded."""

    client_id: int
    stream: int
    readings: int
    numbers: int
    last: int
    sum: int


class Accounts(Protocol):
    """One connection to the store, or to one of its shards, for one thread.

    Every method raises ``StoreUnavailable`` when it got no answer.
    """

    def account(self, client_id: int | None = None) -> Account:
        """The account of all clients, or of one."""

    def accepted(self, client_id: int | None = None) -> list[Entry]:
        """What is on record and was not taken back, of all clients or of one, in the order of the numbers."""

    def accept(self, wanted: Sequence[Wanted], what: str, reason: str, name: str) -> list[Entry]:
        """Puts on record that these numbers are ``what``; returns the entries. Of equal ranges the latest counts."""

    def rejected(self, client_id: int | None = None, sha256: str = "", payload: bool = False) -> list[Rejected]:
        """Poison, oldest first: of all clients or of one, with digests that start so (hexadecimal digits); without
        ``payload`` its bytes are left empty."""

    def delivered(self, clients: Iterable[int], since: int) -> Mapping[int, int]:
        """Readings received since ``since`` (µs UTC), by client. Only the newest two days are searched."""

    def tallies(self, times: int) -> list[Tally]:
        """What the table has of each stream, each reading once, for who knows what was sent. ``times`` makes the values whole
        numbers, whose sum is exact."""

    def values(self, data_key: str) -> list[float]:
        """The values of all readings with a key, each reading once, in no order."""

    def version(self) -> str:
        """The database's version."""

    def check_tables(self) -> list[str]:
        """Which of our tables are missing; raises ``StoreError`` if one that is there is not ours."""

    def replica_states(self) -> dict[str, str]:
        """For each replica of a shard, by host:port, what is wrong with it; "" for one that is in step."""

    def close(self) -> None:
        """Ends the connection."""


def audit_shards(shards: Sequence[Accounts], client_id: int | None = None) -> Account:
    """The account over all shards of a store, whose connections it closes. Raises ``StoreUnavailable``."""
    try:
        accounts = [shard.account(client_id) for shard in shards]
    finally:
        for shard in shards:
            shard.close()
    return Account([stream for account in accounts for stream in account.streams], sum(a.foreign for a in accounts))
