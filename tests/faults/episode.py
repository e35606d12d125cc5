"""An episode: a system runs, faults come at random moments and overlap, all is healed, and the oracle judges."""

from __future__ import annotations

import random
import signal
import threading
import time
from dataclasses import asdict, dataclass, field

from faults.faults import CATALOGUE, Aim, Fault
from faults.oracle import Verdict, judge
from faults.world import World

PAUSE_S = 1.0
"""Mean time between the beginnings of two faults."""


@dataclass
class Episode:
    """What became of it. ``faults`` counts the injected ones by kind."""

    seed: int
    faults: dict[str, int] = field(default_factory=dict)
    verdict: Verdict = field(default_factory=Verdict)
    restarts: int = 0
    seconds: float = 0.0

    def as_json(self) -> dict:
        return asdict(self)


def run(
    seed: int,
    count: int,
    deck: list[str] | None = None,
    made: type[World] = World,
    catalogue: dict[str, Aim] = CATALOGUE,
) -> Episode:
    """Injects ``count`` faults; ``deck`` are the kinds to take in turn (all, shuffled, if not given).

    Raises ``AssertionError`` when something stays stuck. What was lost or doubled stands in the verdict.
    """
    started = time.monotonic()
    rng = random.Random(seed)
    episode = Episode(seed)
    deck = deck if deck is not None else shuffled(rng, count, catalogue)
    world = made()
    failed = True
    try:
        world.start()
        world.wait_until_it_flows()
        _inject(world, rng, [catalogue[kind] for kind in deck[:count]], episode)
        _heal(world)
        world.settle()
        episode.verdict = judge(world)
        episode.restarts = sum(process.restarts for process in world.processes)
        failed = bool(episode.verdict.wrong)
    finally:
        world.close(keep=failed)
    episode.seconds = round(time.monotonic() - started, 1)
    return episode


def shuffled(rng: random.Random, count: int, catalogue: dict[str, Aim]) -> list[str]:
    """Kinds of faults in random order, each as often as any other."""
    kinds: list[str] = []
    while len(kinds) < count:
        more = sorted(catalogue)
        rng.shuffle(more)
        kinds += more
    return kinds[:count]


def _inject(world: World, rng: random.Random, kinds: list[Aim], episode: Episode) -> None:
    active: dict[int, tuple[Fault, threading.Thread]] = {}
    errors: list[BaseException] = []
    for number, kind in enumerate(kinds):
        while True:
            active = {n: (f, t) for n, (f, t) in active.items() if t.is_alive()}
            assert not errors, errors[0]
            fault = kind(world, rng)
            if not any(fault.locks & other.locks for other, _ in active.values()):
                break
            time.sleep(0.1)
        thread = threading.Thread(target=_carry_out, args=(fault, errors), daemon=True)
        active[number] = (fault, thread)
        print(f"{number + 1:4}/{len(kinds)} {fault.kind}: {fault.target}", flush=True)
        thread.start()
        episode.faults[fault.kind] = episode.faults.get(fault.kind, 0) + 1
        time.sleep(min(rng.expovariate(1 / PAUSE_S), 4 * PAUSE_S))
    for fault, thread in active.values():
        thread.join(180)
        assert not thread.is_alive(), f"{fault.kind} does not end"
    if errors:
        raise errors[0]


def _carry_out(fault: Fault, errors: list[BaseException]) -> None:
    try:
        for seconds in fault.run():
            time.sleep(seconds)
    except BaseException as error:
        error.add_note(f"while injecting {fault.kind} into {fault.target}")
        errors.append(error)


def _heal(world: World) -> None:
    for disk in world.disks.values():
        disk.free()
    for edge in world.edges:
        for proxy in (edge.to_sensor, edge.to_broker, edge.to_outbox):
            if proxy:
                proxy.set("pass")
    for proxy in (*world.to_store, *world.from_servers):
        proxy.set("pass")
    for process in world.processes:
        process.signal(signal.SIGCONT)
    until = time.monotonic() + 60
    while time.monotonic() < until and not all(
        any(s["connected"] for s in edge.client.status().get("sensors", {}).values()) for edge in world.edges
    ):
        time.sleep(0.3)
    time.sleep(3)
