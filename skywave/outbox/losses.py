"""Readings that are lost: in batches that the disk has altered, or that had to make room. They are declared as far as the
stream's account and the neighbours leave room for them, whatever the disk has made of a batch's own numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..formats.declared import MAX_READINGS
from ..formats.messages import MAX_TOLD, Dropped, Range
from .schema import SOUND, Query, Statement


def lost(query: Query, rows: Sequence[Sequence[Any]], reason: str) -> tuple[list[Dropped], list[Statement]]:
    """What is lost when the batches ``rows`` are removed, given as id, stream, first number and count; and what mends these
    numbers before, so that the tally counts what was there."""
    losses: list[Dropped] = []
    mended: list[Statement] = []
    for batch_id, *name in rows:
        found = _range_of(query, batch_id, *name[1:])
        if found:
            losses.append(Dropped(*found, reason))
        stream, first, last = found or (0, 1, 0)
        if name != [stream, first, last - first + 1]:
            values = (stream, first, last - first + 1, batch_id)
            mended.append(("UPDATE batch SET stream = ?, first_seq = ?, count = ? WHERE id = ?", values))
    return losses, mended


def _range_of(query: Query, batch_id: Any, first: Any, count: Any) -> Range | None:
    """The readings that a batch can have held, whatever the disk has made of its numbers; None if nobody knows.

    Its id tells the stream. Neighbours in the outbox tell between what its readings were, the account tells up to what.
    """
    accounts = query(
        "SELECT stream, first_id, first_id + batches, last_seq FROM stream"
        f" WHERE first_id <= ? AND first_id + batches > ? AND {SOUND}",
        (batch_id, batch_id),
    )
    if not accounts or not isinstance(batch_id, int):
        return None
    (owner, first_id, next_id, last_seq), *_ = accounts
    lowest, highest = 1, last_seq
    only_low, only_high = batch_id == first_id, batch_id == next_id - 1
    neighbour = "SELECT id, first_seq, count FROM batch WHERE id >= ? AND id < ? ORDER BY id {} LIMIT 1"
    for at, begins, holds in query(neighbour.format("DESC"), (first_id, batch_id)):
        if isinstance(begins, int) and isinstance(holds, int) and 1 <= begins + holds - 1 <= last_seq:
            lowest, only_low = begins + holds, at == batch_id - 1
    for at, begins, _ in query(neighbour.format("ASC"), (batch_id + 1, next_id)):
        if isinstance(begins, int) and 1 <= begins <= last_seq:
            highest, only_high = begins - 1, at == batch_id + 1
    if not (only_low and only_high):
        if not (isinstance(first, int) and isinstance(count, int) and 0 < count <= MAX_READINGS):
            return None
        lowest, highest = max(lowest, first), min(highest, first + count - 1)
    return Range(owner, lowest, highest) if lowest <= highest else None


def declare(losses: Sequence[Dropped]) -> list[Statement]:
    """Declares them lost. Doing so again is harmless."""
    return [("INSERT INTO dropped VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING", loss) for loss in losses]


def declared(query: Query) -> list[Dropped]:
    """The first of what was declared lost, as many as a status has room for."""
    rows = query(
        "SELECT stream, first_seq, last_seq, reason FROM dropped"
        f" WHERE first_seq >= 1 AND last_seq >= first_seq ORDER BY stream, first_seq LIMIT {MAX_TOLD}",
        (),
    )
    return [Dropped(*row) for row in rows if isinstance(row[3], str)]


def forget(ranges: Sequence[Range]) -> list[Statement]:
    """Forgets what was declared lost."""
    return [("DELETE FROM dropped WHERE stream = ? AND first_seq = ? AND last_seq = ?", item) for item in ranges]


def gather(query: Query) -> list[Statement]:
    """Makes what no status has room for yet as few rows as it can be: without a network each batch that is dropped would
    leave one for ever."""
    if query("SELECT COUNT(*) FROM dropped", ())[0][0] <= 2 * MAX_TOLD:
        return []
    rows = query("SELECT stream, first_seq, last_seq, reason FROM dropped ORDER BY stream, first_seq", ())
    statements: list[Statement] = []
    stream, first, last, reason = rows[MAX_TOLD]
    for row in rows[MAX_TOLD + 1 :]:
        if row[:2] != (stream, last + 1) or row[3] != reason:
            stream, first, last, reason = row
            continue
        last = row[2]
        statements.append(("DELETE FROM dropped WHERE stream = ? AND first_seq = ?", row[:2]))
        grown = ("UPDATE dropped SET last_seq = ? WHERE stream = ? AND first_seq = ?", (last, stream, first))
        statements.append(grown)
    return statements
