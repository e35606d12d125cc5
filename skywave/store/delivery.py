"""What a server may do with the store, and nothing else: make the tables, ask what is there, put down, and be sure of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import date
from typing import Protocol

from ..formats.messages import Dropped, Produced
from .columns import Block, Probe, Reading, Rejected


class Delivery(Protocol):
    """One connection, for one thread. What is put down is committed when a call returns, as durably as the store makes it.

    Every method raises ``StoreUnavailable`` when a statement was not done or its outcome is unknown, and ``StoreError`` when
    trying again cannot help.
    """

    def migrate(self) -> None:
        """Creates what is missing. Raises ``StoreError`` if a newer Skywave made the tables, or if something else than ours
        has one of their names; then nothing was made."""

    # -- readings ----------------------------------------------------------------------------------------------------

    def existing(self, probes: Sequence[Probe]) -> set[tuple[int, int, int]]:
        """Which of the batches are stored (or were, and are archived since): ``(client_id, stream, first_seq)``."""

    def known_readings(self, readings: Sequence[Reading]) -> set[Reading]:
        """Which of the readings are stored, under whatever name and day."""

    def insert_readings(self, block: Block) -> None:
        """Commits a block as one part: all of it or nothing. Raises ``StoreBusy`` if it was not begun."""

    def sync(self) -> None:
        """Everything that is committed so far is as durable as what this connection commits: for what ``existing`` finds."""

    # -- poison ------------------------------------------------------------------------------------------------------

    def reject(self, rows: Sequence[Rejected]) -> None:
        """Commits poison; the same message again changes nothing."""

    def rejected_bytes(self, client_id: int, day: date) -> int:
        """Bytes of poison kept for a client on a day: the sum of their ``Rejected.size``."""

    # -- what clients say of themselves ------------------------------------------------------------------------------

    def record_streams(self, rows: Iterable[tuple[int, Produced, int]], reported_at: int) -> None:
        """Keeps what clients say they produced: client, account, and the time of its oldest unacknowledged reading. Times in
        µs UTC, 0 for none."""

    def pending_streams(self, clients: Iterable[int]) -> list[tuple[int, Produced]]:
        """The streams of these clients that were said to have readings in an outbox."""

    def record_dropped(self, rows: Iterable[tuple[int, Dropped]], reported_at: int) -> None:
        """Keeps what clients declare lost; ``reported_at`` in µs UTC."""
