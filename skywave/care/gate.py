"""The gate of an update: does the server see that these clients deliver with the new release?

The edge is not asked, because an edge that runs and is connected may still deliver nothing. Versions and backlogs are what
the clients told this server, deliveries are rows that the store received since the last look.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from .. import config
from ..errors import ConfigError, NotRunning, SkywaveError
from ..process.asking import fetch_status
from ..process.snapshot import ClientState, ServerSnapshot
from ..store.accounts import Accounts
from ..store.shards import open_shards
from .findings import judge, wrong

LATE_S = 15.0
LOOK_EVERY_S = 5.0
LOOKS = 3
"""So many looks in a row must find all well, each by what came since the one before: what an old release left in the broker,
or a release that dies after a moment, does not pass."""


class Passage(NamedTuple):
    """What the gate saw of one client."""

    client_id: int
    passed: bool
    seen: str


def gate(settings: config.Server, clients: Sequence[int], release: str, within: float) -> list[Passage]:
    """Looks until all ``clients`` steadily pass or ``within`` seconds are over. A server or a store that does not answer
    lets nobody pass."""
    if not settings.http.port:
        raise ConfigError("http.port is 0", "Set it, so that the server can be asked.")
    since, until = time.time_ns() // 1000, time.monotonic() + within
    good = 0
    stores = open_shards(settings.store)
    try:
        while True:
            try:
                now = time.time_ns() // 1000
                snapshot = fetch_status(settings.http.url)
                if not isinstance(snapshot, ServerSnapshot):
                    raise NotRunning(
                        f"{settings.http.url} is of a client", "Give each service an http.port of its own."
                    )
                passages = look(snapshot.clients, _delivered(stores, clients, since), clients, release)
                if bad := wrong(judge(snapshot)):
                    why = "; ".join(f"{finding.check}: {finding.found}" for finding in bad)
                    passages = [
                        p._replace(passed=False, seen=f"{p.seen}; the server is not well: {why}") for p in passages
                    ]
                since = now
            except SkywaveError as error:
                passages = [Passage(client_id, False, str(error)) for client_id in clients]
            good = good + 1 if all(passage.passed for passage in passages) else 0
            if good >= LOOKS:
                return passages
            if time.monotonic() >= until:
                return [p._replace(passed=False, seen="not steadily") for p in passages] if good else passages
            time.sleep(LOOK_EVERY_S)
    finally:
        for store in stores:
            store.close()


def look(
    statuses: dict[str, ClientState], delivered: dict[int, int], clients: Sequence[int], release: str
) -> list[Passage]:
    """One look. ``statuses`` are the server's clients by number, ``delivered`` their readings since the look before."""
    passages = []
    for client_id in clients:
        status, count = statuses.get(str(client_id)), delivered.get(client_id, 0)
        if status is None or not status.online:
            passages.append(Passage(client_id, False, "is not online"))
        elif status.version != release:
            passages.append(Passage(client_id, False, f"runs {status.version}"))
        elif status.oldest_unacked_s > LATE_S:
            passages.append(Passage(client_id, False, f"its oldest reading waits since {status.oldest_unacked_s} s"))
        elif not count and status.backlog_readings:
            passages.append(Passage(client_id, False, "has delivered nothing, and readings wait"))
        else:
            passages.append(Passage(client_id, True, f"delivered {count} readings"))
    return passages


def _delivered(stores: Sequence[Accounts], clients: Sequence[int], since: int) -> Counter[int]:
    """Readings received since ``since`` (µs UTC) by client."""
    counts: Counter[int] = Counter()
    for store in stores:
        counts.update(store.delivered(clients, since))
    return counts
