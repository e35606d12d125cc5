"""`make bench-scale`: how the costs grow with clients, series, batches and servers, on real parts of this host, what a
shard of three replicas costs, and by that what whole fleets need.

Writes build/scale.json, build/capacity.json and docs/plots/scale.svg. CPU-seconds a million readings (s/M) are what to
compare: at equal batch size a fleet of a thousand clients should cost about what one client costs.
"""

from __future__ import annotations

import contextlib
import json
import random
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from datetime import date
from pathlib import Path
from typing import Any

import capacity
import measure
import plot
from report import row, write
from run import Parts, cpu, fresh
from support.cluster import Cluster
from support.parts import Mosquitto, wait_for
from support.stand import Stand

from skywave import config
from skywave.client.window import InFlight
from skywave.emulator.fleet import Fleet
from skywave.emulator.plan import Plan
from skywave.emulator.production import Production
from skywave.formats import topics
from skywave.formats.batch import CONTENT_TYPE, Batch
from skywave.mqtt.properties import publish_properties

READINGS = 4_000_000
SIZE = 500
SIZES = (50, 100, 500, 2000)
HELD_TO = 0.2
"""Share of a core that each server may use where the server is to be the bottleneck."""
STORM_CLIENTS = 1000


def plan(broker: Mosquitto, clients: int, keys: int = 3, readings: int = READINGS, size: int = SIZE) -> Plan:
    backlog = readings // size // clients
    return Plan(
        brokers=[config.Mqtt(port=broker.port)], clients=clients, rate=0, seconds=0, size=size, keys=keys, backlog=backlog,
        window=max(16, 64 // clients),
    )  # fmt: skip


def cost(watched: dict[str, Any], wanted: Plan) -> tuple[dict[str, float], float]:
    """s/M of each part while a fleet delivers what it has encoded before, and the readings a second."""
    fleet = Fleet(wanted)
    fleet.prepare()
    before = cpu(watched)
    result = fleet.run()
    time.sleep(2)  # merges of what came last
    after = cpu(watched)
    return {name: (after[name] - before[name]) / result.readings * 1e6 for name in watched}, result.acked_per_s


def growth(what: str, plans: dict[int, Plan], p: Parts) -> dict[int, dict[str, float]]:
    """Measures each plan twice, in turn, and takes the cheaper one: what disturbs only adds."""
    watched = {"server": p.stand.parts["server"], "broker": p.broker, "ClickHouse": p.clickhouse}
    cost(watched, next(iter(plans.values())))  # warm
    found: dict[int, dict[str, float]] = {}
    for _ in range(2):
        for number, wanted in plans.items():
            now, _ = cost(watched, wanted)
            if number not in found or sum(now.values()) < sum(found[number].values()):
                found[number] = now
    for number, each in found.items():
        cost_row(f"{number:,} {what}", each)
    return found


def cost_row(what: str, each: dict[str, float]) -> None:
    row(f"{what}: CPU", "-", f"{sum(each.values()):.2f} s/M ({listed(each)})")


def listed(each: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.2f}" for name, value in each.items())


def within(what: str, found: dict[int, dict[str, float]]) -> None:
    """From the smallest to the largest: all together, and each part."""
    least, most = found[min(found)], found[max(found)]
    each = {name: most[name] / least[name] for name in least}
    ratio = sum(most.values()) / sum(least.values())
    title = f"{max(found):,} ÷ {min(found)} {what}"
    row(f"… {title}, all together", "≤ 1.3", f"{ratio:.2f}", ratio <= 1.3)
    row(f"… {title}, each", "≤ 1.3", listed(each), max(each.values()) <= 1.3)


def by_clients() -> dict[int, dict[str, float]]:
    with fresh() as p:
        accepting(p.stand)
        # At least 16 s of each client, so that what it costs at its beginning does not count for much.
        plans = {n: plan(p.broker, n, readings=max(READINGS, n * 16_000)) for n in (1, 10, 100, 1000)}
        found = growth("clients", plans, p)
        within("clients", found)
        return found


def by_series() -> dict[int, dict[str, float]]:
    with fresh() as p:
        accepting(p.stand)
        found = growth("series", {3 * keys: plan(p.broker, 3, keys) for keys in (1, 10, 100, 1000)}, p)
        within("series", found)
        return found


def by_batches() -> dict[int, dict[str, float]]:
    with fresh() as p:
        accepting(p.stand)
        return growth("readings a batch", {size: plan(p.broker, 100, size=size) for size in SIZES}, p)


def wire() -> dict[int, float]:
    """Bytes a reading in the PUBLISH of a batch, by the batch's size."""
    found = {}
    for size in SIZES:
        one = Plan(brokers=[config.Mqtt()], clients=1, size=size, backlog=1)
        payload = Production(1, one, random.Random(), time.time()).take(date.today()).payload
        batch = Batch(1, 1 << 62, 1, size, 0, None, payload)
        properties = publish_properties(CONTENT_TYPE, InFlight(batch, date.today(), 0, True, 0.0, 0.0).properties())
        found[size] = (len(payload) + len(properties.pack()) + len(topics.data(1000)) + 8) / size
        row(f"batches of {size:,}: on the wire", "-", f"{found[size]:.1f} B a reading")
    return found


def one_shard() -> dict[int, dict[str, float]]:
    """s/M of each part, and the rate, of one server with a shard of three replicas and a quorum of two."""
    cluster, broker = Cluster(1, 3), Mosquitto()
    found = {}
    try:
        cluster.start()
        broker.start()
        stand = Stand(broker, cluster.toml(quorum=2), "telemetry")
        try:
            accepting(stand)
            watched = {"server": stand.parts["server"], "broker": broker, "ZooKeeper": cluster.zookeeper}
            watched |= {f"replica {number}": node for number, node in enumerate(cluster.all, 1)}
            cost(watched, plan(broker, 100, readings=READINGS // 4))  # warm
            for size in (100, 500):
                each, rate = cost(watched, plan(broker, 100, size=size))
                found[size] = {**each, "rate": rate}
                cost_row(f"a shard of 3 replicas, quorum 2, batches of {size}", each)
                row("… all of them on these cores", "-", f"{rate:,.0f} /s")
        finally:
            stand.remove()
    finally:
        broker.remove()
        cluster.remove()
    return found


def accepting(stand: Stand, *names: str) -> None:
    for name in names or ("server",):
        server = stand.add_server(name)
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
            accepting(p.stand, *names)
            fleet = Fleet(plan(p.broker, 100, readings=count * READINGS))
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
        accepting(p.stand)
        parts = {"server": p.stand.parts["server"], "broker": p.broker}
        empty = {name: measure.rss(part.process.pid) for name, part in parts.items()}
        wanted = replace(plan(p.broker, STORM_CLIENTS), rate=20.0, seconds=45.0, size=20, backlog=0, seed=1)
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
    clients, series, batches = by_clients(), by_series(), by_batches()
    found = {
        "clients": clients, "series": series, "batches": batches, "wire": wire(), "shard": one_shard(),
        "servers": two_servers(), "storm": storm(),
    }  # fmt: skip
    write("scale")
    Path("build/scale-figures.json").write_text(json.dumps(found, indent=1))
    panels = {"clients, batches of 500": clients, "series, 3 clients, batches of 500": series}
    plot.stacked("scale", "CPU-seconds a million readings", {**panels, "readings a batch, 100 clients": batches})
    capacity.main()


if __name__ == "__main__":
    main()
