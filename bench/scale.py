"""`make bench-scale`: how the costs grow with clients, series and servers, on real parts of this host.

Writes build/scale.json. CPU-seconds a million readings (s/M) are what to compare: at equal batch size a fleet of a thousand
clients should cost about what one client costs.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import measure
from parts import wait_for
from report import row, write
from run import Parts, cpu, fresh

from skywave import config
from skywave.emulator.fleet import Fleet, Plan

READINGS = 4_000_000
SIZE = 500
HELD_TO = 0.2
"""Share of a core that each server may use where the server is to be the bottleneck."""
STORM_CLIENTS = 1000


def plan(p: Parts, clients: int, keys: int = 3, readings: int = READINGS) -> Plan:
    backlog = readings // SIZE // clients
    return Plan(
        brokers=[config.Mqtt(port=p.broker.port)], clients=clients, rate=0, seconds=0, size=SIZE, keys=keys, backlog=backlog,
        window=max(16, 64 // clients),
    )  # fmt: skip


def cost(p: Parts, wanted: Plan) -> dict[str, float]:
    """s/M of server, broker and ClickHouse while a fleet delivers what it has encoded before."""
    fleet = Fleet(wanted)
    fleet.prepare()
    watched = {"server": p.stand.parts["server"], "broker": p.broker, "clickhouse": p.clickhouse}
    before = cpu(watched)
    result = fleet.run()
    time.sleep(2)  # merges of what came last
    return {name: (after - before[name]) / result.readings * 1e6 for name, after in cpu(watched).items()}


def growth(what: str, plans: dict[int, Plan], p: Parts) -> dict[int, dict[str, float]]:
    """Measures each plan twice, in turn, and takes the cheaper one: what disturbs only adds."""
    cost(p, next(iter(plans.values())))  # warm
    found: dict[int, dict[str, float]] = {}
    for _ in range(2):
        for number, wanted in plans.items():
            now = cost(p, wanted)
            if number not in found or sum(now.values()) < sum(found[number].values()):
                found[number] = now
    for number, each in found.items():
        parts = ", ".join(f"{name} {seconds:.2f}" for name, seconds in each.items())
        row(f"{number:,} {what}: CPU", "-", f"{sum(each.values()):.2f} s/M ({parts})")
    ratio = max(sum(each.values()) for each in found.values()) / min(sum(each.values()) for each in found.values())
    row(f"… the most ÷ the least, of {what}", "≤ 1.3", f"{ratio:.2f}", ratio <= 1.3)
    return found


def by_clients() -> dict[int, dict[str, float]]:
    with fresh() as p:
        accepting(p)
        return growth("clients", {clients: plan(p, clients) for clients in (1, 10, 100, 1000)}, p)


def by_series() -> dict[int, dict[str, float]]:
    with fresh() as p:
        accepting(p)
        return growth("series", {3 * keys: plan(p, 3, keys) for keys in (1, 10, 100, 1000)}, p)


def accepting(p: Parts, *names: str) -> None:
    for name in names or ("server",):
        server = p.stand.add_server(name)
        wait_for(lambda server=server: server.status().get("accepting"), 20, name)


@contextlib.contextmanager
def held(pids: list[int], share: float) -> Iterator[None]:
    """Each process may use a share of one core (cgroups, version 1 or 2; needs root)."""
    root = Path("/sys/fs/cgroup")
    old = (root / "cpu").is_dir()
    folders = []
    for pid in pids:
        folder = (root / "cpu" if old else root) / f"skywave-bench-{pid}"
        folder.mkdir()
        folders.append(folder)
        if old:
            (folder / "cpu.cfs_period_us").write_text("50000")
            (folder / "cpu.cfs_quota_us").write_text(str(int(50_000 * share)))
        else:
            (folder / "cpu.max").write_text(f"{int(50_000 * share)} 50000")
        (folder / "cgroup.procs").write_text(str(pid))
    try:
        yield
    finally:
        for folder in folders:
            for pid in (folder / "cgroup.procs").read_text().split():
                (folder.parent / "cgroup.procs").write_text(pid)
            folder.rmdir()


def two_servers() -> dict[int, float]:
    """Readings a second that one and two servers acknowledge, each held to a fifth of a core."""
    rates: dict[int, float] = {}
    for count in (1, 2):
        with fresh() as p:
            names = ["server", "server-2"][:count]
            accepting(p, *names)
            fleet = Fleet(plan(p, 100, readings=count * READINGS // 4))
            fleet.prepare()
            with held([p.stand.parts[name].process.pid for name in names], HELD_TO):
                rates[count] = fleet.run().acked_per_s
        row(f"{count} server(s) held to {HELD_TO} core", "-", f"{rates[count]:,.0f} /s")
    ratio = rates[2] / rates[1]
    row("two servers ÷ one", "≥ 1.8", f"{ratio:.2f}", ratio >= 1.8)
    return rates


def storm() -> dict[str, float]:
    """Memory of a thousand clients, and what a restart of their broker costs."""
    with fresh() as p:
        accepting(p)
        parts = {"server": p.stand.parts["server"], "broker": p.broker}
        empty = {name: measure.rss(part.process.pid) for name, part in parts.items()}
        wanted = replace(plan(p, STORM_CLIENTS), rate=20.0, seconds=45.0, size=20, backlog=0, seed=1)
        fleet = Fleet(wanted)
        done: list[object] = []
        thread = threading.Thread(target=lambda: done.append(fleet.run()))
        thread.start()
        wait_for(lambda: len(p.stand.parts["server"].status()["clients"]) >= STORM_CLIENTS, 60, "all clients are known")
        time.sleep(5)
        full = {name: measure.rss(part.process.pid) - empty[name] for name, part in parts.items()}
        for name, size in full.items():
            row(f"{name}: memory for {STORM_CLIENTS} clients", "-", f"{size / 2**20:.1f} MB")
        fleet.forget_first_acks()
        p.broker.kill()
        time.sleep(1)
        p.broker.start()
        thread.join()
        result = done[0]
        row(f"broker killed for 1 s under {STORM_CLIENTS} clients: first acknowledgement after, median", "-",
            f"{result.first_ack_p50_s:.1f} s")  # fmt: skip
        row("… of the last client", "≤ 30 s", f"{result.first_ack_max_s:.1f} s", result.first_ack_max_s <= 30)
        row("… resent ÷ produced", "-", f"{result.resent * wanted.size / result.readings:.2f}")
        return {**{f"{name}_bytes": size for name, size in full.items()}, **asdict(result)}


def main() -> None:
    found = {"clients": by_clients(), "series": by_series(), "servers": two_servers(), "storm": storm()}
    write("scale")
    Path("build/scale-figures.json").write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
