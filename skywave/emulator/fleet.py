"""A fleet of clients in one process, to press servers as thousands of edge hosts do; without sensors and outboxes.

Each client is one MQTT connection with a stream, a window, resends and an account of its own, as ``skywave client`` has
them. One thread serves all connections. What a batch holds follows from its client and its number, so a backlog of
millions of readings takes no memory, a resent batch has the same bytes, and the ledger is a few numbers a client:
how many readings it produced, and the sum of their values.

Outages end connections without a word, as a cut cable does; what their clients produce meanwhile comes as a flood after.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ..errors import SkywaveError
from .fleet_client import TICK_S, FleetClient, FleetFigures, Loop
from .ledger import write_accounts
from .plan import Plan

CONNECT_WITHIN_S = 60.0
LAST_WORDS_S = 10.0
"""For so long the clients wait until the broker has heard their last status."""


@dataclass(frozen=True)
class FleetResult:
    """What a fleet has done: ``readings`` were produced, ``acked`` of them acknowledged, and so many batches ``resent``.
    ``seconds`` and ``acked_per_s`` count from the first publish to the last acknowledgement, ``delay`` from publish to
    acknowledgement, and ``first_ack`` from the loss of a connection (or the start) to the first acknowledgement after."""

    clients: int
    readings: int
    acked: int
    seconds: float
    acked_per_s: float
    resent: int
    outages: int
    reconnects: int
    delay_p50_s: float
    delay_p99_s: float
    first_ack_p50_s: float
    first_ack_max_s: float


class Every:
    """Tells once in so many seconds that it is time."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._at = 0.0

    def is_due(self, now: float) -> bool:
        """Whether it is time again."""
        due = now >= self._at
        if due:
            self._at = now + self._seconds
        return due


class Fleet:
    """All clients. ``prepare`` encodes the backlog before the clock starts, so that what is measured is the other side."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._rng = random.Random(plan.seed)
        self._loop = Loop()
        self._figures = FleetFigures()
        ids = range(plan.first_client_id, plan.first_client_id + plan.clients)
        self._clients = [FleetClient(client_id, plan, self._loop, self._figures, self._rng) for client_id in ids]
        self._last_cut = 0.0

    def prepare(self) -> None:
        """Encodes every batch of the backlog."""
        for client in self._clients:
            client.production.prepare()

    def run(
        self,
        stopped: Callable[[], bool] = lambda: False,
        on_tick: Callable[[FleetResult], None] = lambda _: None,
        drain_s: float = 600.0,
    ) -> FleetResult:
        """Produces, until ``seconds`` are over or it is ``stopped``; then waits until all is acknowledged. ``on_tick`` hears
        each second what was done so far.

        Raises ``SkywaveError`` if that takes longer than ``drain_s``; the ledger is written then, too.
        """
        self._connect_all(stopped)
        began = time.monotonic()
        for client in self._clients:
            client.begin(began)
        until = began + (self._plan.seconds if self._plan.seconds is not None else float("inf"))
        drained_by = began + drain_s
        sweep, alive, status, tick = Every(TICK_S), Every(1.0), Every(self._plan.status_interval), Every(1.0)
        speakers: Iterator[FleetClient] = iter(())
        try:
            while True:
                served = self._loop.turn()
                now = time.monotonic()
                for client in served:
                    client.publish(now)
                if not sweep.is_due(now):
                    continue
                producing = not stopped() and now < until
                if producing:
                    drained_by = now + drain_s
                for client in self._clients:
                    if producing:
                        client.production.produce(now)
                    client.publish(now)
                if producing:
                    self._cut_some(now)
                elif all(client.done for client in self._clients):
                    return self.result(now)
                elif now > drained_by:
                    raise SkywaveError(f"not everything was acknowledged within {drain_s:.0f} s", "Is a server there?")
                if alive.is_due(now):
                    for client in self._clients:
                        client.keep_alive()
                if status.is_due(now):
                    speakers = iter(self._clients)
                for client in itertools.islice(speakers, self._speakers_a_sweep):
                    client.say()
                if tick.is_due(now):
                    on_tick(self.result(now, delays=False))
        finally:
            if self._plan.ledger:
                write_accounts(self._plan.ledger, [client.production.account() for client in self._clients])
            self._say_goodbye()

    @property
    def _speakers_a_sweep(self) -> int:
        """How many clients say their status in one sweep: a part of them each time, so that they do not speak in step."""
        return 1 + int(len(self._clients) * TICK_S / self._plan.status_interval)

    def _connect_all(self, stopped: Callable[[], bool]) -> None:
        until = time.monotonic() + CONNECT_WITHIN_S
        for client in self._clients:
            self._loop.at(0.0, client)
        while not all(client.up for client in self._clients) and not stopped():
            self._loop.turn()
            if time.monotonic() > until:
                up = sum(client.up for client in self._clients)
                raise SkywaveError(f"{up} of {len(self._clients)} clients could connect", "Start the broker first.")

    def _cut_some(self, now: float) -> None:
        """Each client is cut off as often as makes the wanted share of them absent."""
        plan = self._plan
        elapsed, self._last_cut = (now - self._last_cut if self._last_cut else 0.0), now
        if plan.outages:
            chance = elapsed * plan.outages / ((1 - plan.outages) * plan.outage_s)
            for client in self._clients:
                if client.up and self._rng.random() < chance:
                    client.cut()

    def _say_goodbye(self) -> None:
        for client in self._clients:
            client.say(goodbye=True)
        until = time.monotonic() + LAST_WORDS_S
        while not all(client.heard for client in self._clients) and time.monotonic() < until:
            self._loop.turn()
        for client in self._clients:
            client.stop()
        self._loop.close()

    def forget_first_acks(self) -> None:
        """From now on the figures of first acknowledgements are those of reconnects."""
        self._figures.first_acks.clear()

    def result(self, now: float, delays: bool = True) -> FleetResult:
        """What was done so far; without ``delays``, which take a while to sort, those figures are 0."""
        figures, plan = self._figures, self._plan
        waits, first_acks = (sorted(figures.delays), sorted(figures.first_acks)) if delays else ([], [])
        seconds = (figures.last_at or now) - (figures.first_at or now)
        return FleetResult(
            clients=plan.clients,
            readings=sum(client.production.batches for client in self._clients) * plan.size,
            acked=figures.acked,
            seconds=round(seconds, 3),
            acked_per_s=round(figures.acked / seconds) if seconds else 0,
            resent=sum(client.resent for client in self._clients),
            outages=figures.outages,
            reconnects=figures.reconnects,
            delay_p50_s=_quantile(waits, 0.5),
            delay_p99_s=_quantile(waits, 0.99),
            first_ack_p50_s=_quantile(first_acks, 0.5),
            first_ack_max_s=_quantile(first_acks, 1.0),
        )


def _quantile(ordered: list[float], share: float) -> float:
    return round(ordered[min(int(len(ordered) * share), len(ordered) - 1)], 4) if ordered else 0.0
