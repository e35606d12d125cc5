"""What must be true when all is healed. What was sent is read from the sensors' ledgers alone."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field

from faults.world import Edge, World
from skywave.emulator.ledger import read_ledger
from skywave.store.accounts import audit_shards

HOP_BYTES = 256 << 10
"""Bytes that may stand between two ends of a TCP connection: both buffers, which the kernel doubles."""
FRAME_BYTES = 11


@dataclass
class Verdict:
    """Of one episode, by readings."""

    sent: int = 0
    stored: int = 0
    tails: int = 0
    """Readings that killed sensors and, with the plain protocol, ended connections took with them."""
    destroyed: int = 0
    """Readings that were in a destroyed outbox alone."""
    dropped: int = 0
    """Readings that a full outbox dropped and declared."""
    missing: int = 0
    """Readings that the audit names as missing: destroyed ones that the server had heard of."""
    wrong: list[str] = field(default_factory=list)
    """Lost, doubled, invented, or accounted for wrongly."""


def judge(world: World) -> Verdict:
    """Compares the ledgers with the table, and the audit with both."""
    verdict = Verdict()
    rows, dropped = [], []
    for store in world.stores():
        readings = (
            "SELECT client_id, data_key, data_value, stream, seq FROM telemetry.telemetry FINAL WHERE client_id < 900"
        )
        losses = "SELECT client_id, stream, first_seq, last_seq FROM telemetry.dropped FINAL"
        rows += store.read_whole(["telemetry"], lambda store=store, sql=readings: store.query(sql))
        dropped += store.read_whole(["dropped"], lambda store=store, sql=losses: store.query(sql))
        store.close()
    account = audit_shards(world.stores())
    stored: dict[int, Counter[float]] = {edge.client_id: Counter() for edge in world.edges}
    for client_id, key, value, _, _ in rows:
        edge = world.edges[client_id - 1]
        if key.decode() != edge.kind:
            verdict.wrong.append(f"edge {client_id}: stored under {key!r}")
        stored[client_id][value] += 1
    for edge in world.edges:
        mine = [(stream, seq, value) for client, _, value, stream, seq in rows if client == edge.client_id]
        ranges = [(stream, first, last) for client, stream, first, last in dropped if client == edge.client_id]
        _judge_edge(edge, stored[edge.client_id], mine, ranges, verdict)
    for item in account.streams:
        edge = world.edges[item.client_id - 1] if item.client_id <= len(world.edges) else None
        if item.doubled or (item.missing and not (edge and edge.gone)):
            verdict.wrong.append(f"audit: {item}")
    counted = account.total("stored") + account.total("ahead")
    # A stream that was killed before its first status, and whose outbox was then destroyed, is known to nobody.
    known = {(item.client_id, int(item.stream)) for item in account.streams}
    counted += sum((row[0], row[3]) not in known and bool(world.edges[row[0] - 1].gone) for row in rows)
    if counted != sum(c.total() for c in stored.values()):
        verdict.wrong.append(f"audit counts {counted} stored, the table has {sum(c.total() for c in stored.values())}")
    missing, destroyed = account.total("missing"), verdict.destroyed
    verdict.missing = missing
    if missing > destroyed:
        verdict.wrong.append(f"audit misses {missing}, destroyed outboxes held {destroyed}")
    if account.total("dropped") != verdict.dropped:
        verdict.wrong.append(f"audit: {account.total('dropped')} dropped, declared {verdict.dropped}")
    if account.total("rejected"):
        verdict.wrong.append(f"audit: {account.total('rejected')} good readings rejected")
    if account.total("pending"):
        verdict.wrong.append(f"audit: {account.total('pending')} pending, the outboxes are empty")
    if archived := world.archived():
        count, wrong = archived
        verdict.wrong += wrong
        if count != len(rows):
            verdict.wrong.append(f"the archive has {count} readings, the table {len(rows)}")
    return verdict


def _judge_edge(
    edge: Edge,
    stored: Counter[float],
    rows: list[tuple[int, int, float]],
    dropped: list[tuple[int, int, int]],
    verdict: Verdict,
) -> None:
    who = f"edge {edge.client_id}"
    connections = read_ledger(edge.ledger)
    sent = [value for values in connections.values() for value in values]
    verdict.sent += len(sent)
    verdict.stored += stored.total()
    if doubled := [value for value, count in stored.items() if count > 1]:
        verdict.wrong.append(f"{who}: {len(doubled)} doubled: {sorted(doubled)[:5]}")
    if invented := stored.keys() - set(sent):
        verdict.wrong.append(f"{who}: {len(invented)} that no sensor sent: {sorted(invented)[:5]}")
    lost = {value for value in sent if not stored[value]}
    verdict.destroyed += len(lost & edge.gone)
    lost -= edge.gone
    declared = {(stream, seq) for stream, first, last in dropped for seq in range(first, last + 1)}
    gone = len(declared - {(stream, seq) for stream, seq, _ in rows})  # a server may have had what was dropped
    verdict.dropped += gone
    near = _near_dropped(rows, dropped, sent)
    tails = 0
    for number, values in connections.items():
        mine = [at for at, value in enumerate(values) if value in lost and value not in near]
        if not mine:
            continue
        tails += 1
        verdict.tails += len(mine)
        after = [
            value for value in values[mine[0] :] if value not in lost and value not in near and value not in edge.gone
        ]
        if after:
            verdict.wrong.append(
                f"{who}: lost in the midst of connection {number}: {len(mine)} from {values[mine[0]]}, before {after[0]}"
            )
        most = (2 * HOP_BYTES) // FRAME_BYTES  # two hops: there is a proxy between
        if len(mine) > most:
            verdict.wrong.append(f"{who}: a tail of {len(mine)}, at most {most} may be under way")
    allowed = edge.sensor_kills + (0 if edge.acknowledged else edge.tails + edge.client.restarts)
    if tails > allowed:
        verdict.wrong.append(f"{who}: {tails} tails lost, {allowed} connections were ended")
    if len(lost & near) > gone + allowed * (2 * HOP_BYTES) // FRAME_BYTES:
        verdict.wrong.append(f"{who}: {len(lost & near)} lost where {gone} were declared dropped")


def _near_dropped(
    rows: list[tuple[int, int, float]], dropped: list[tuple[int, int, int]], sent: list[float]
) -> set[float]:
    """The values that may be among the dropped: those between the stored ones before and after each dropped range.

    An edge has one sensor, whose values only grow; so within a stream values grow with their numbers.
    """
    near: set[float] = set()
    everything = sorted(sent)
    values = sorted(value for _, _, value in rows)
    for stream, first, last in dropped:
        mine = sorted((seq, value) for s, seq, value in rows if s == stream)
        below = max((value for seq, value in mine if seq < first), default=None)
        above = min((value for seq, value in mine if seq > last), default=None)
        if below is None:  # the stream begins with it: after all that was stored before
            below = values[bisect_left(values, above) - 1] if above is not None and bisect_left(values, above) else 0.0
        if above is None:
            at = bisect_left(values, below + 0.5)
            above = values[at] if at < len(values) else float("inf")
        near.update(everything[bisect_left(everything, below + 0.5) : bisect_left(everything, above)])
    return near
