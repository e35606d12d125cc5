"""`make bench`: the targets of the main job, measured on real parts on this host. Writes build/bench.json.

Absolute figures depend on the host; the ratios and CPU-seconds a million readings (s/M) are what to compare.
"""

from __future__ import annotations

import json
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import measure
import naive
import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from report import row, write
from support.outage import fill
from support.parts import ClickHouse, Mosquitto, Postgres, free_port, wait_for
from support.stand import Skywave, Stand

from skywave import config
from skywave.emulator.fleet import Fleet
from skywave.emulator.plan import Plan
from skywave.emulator.signals import KINDS
from skywave.formats import topics
from skywave.formats.batch import Name, decode
from skywave.formats.messages import Ack


class Parts:
    """Fresh servers and a stand on them."""

    def __init__(self) -> None:
        self.clickhouse, self.broker, self.postgres = ClickHouse(), Mosquitto(), Postgres()
        for part in (self.clickhouse, self.broker, self.postgres):
            part.start()
        self.stand = Stand(self.broker, f"port = {self.clickhouse.port}\n", "telemetry")

    @property
    def outbox(self) -> str:
        return f'kind = "postgresql"\ndsn = "{self.postgres.dsn()}"'


@contextmanager
def fresh() -> Iterator[Parts]:
    parts = Parts()
    try:
        yield parts
    finally:
        parts.stand.remove()
        for part in (parts.clickhouse, parts.broker, parts.postgres):
            part.remove()


def cpu(parts: dict[str, Any]) -> dict[str, float]:
    return {name: measure.cpu_seconds(part.process.pid) for name, part in parts.items()}


def server_path() -> None:
    with fresh() as p:
        server = p.stand.add_server()
        wait_for(lambda: server.status().get("accepting"), 20, "server")
        watched = {"server": server, "broker": p.broker, "clickhouse": p.clickhouse}
        rates, server_cpu, all_cpu = [], [], []
        plan = Plan(brokers=[config.Mqtt(port=p.broker.port)], rate=0, seconds=0, backlog=200)
        for _ in range(3):
            fleet = Fleet(plan)
            fleet.prepare()
            before = cpu(watched)
            result = fleet.run()
            used = {name: (after - before[name]) / result.readings * 1e6 for name, after in cpu(watched).items()}
            rates.append(result.acked_per_s)
            server_cpu.append(used["server"])
            all_cpu.append(sum(used.values()))
        rate, one, three = (statistics.median(x) for x in (rates, server_cpu, all_cpu))
        row("server path, 100 clients, batches of 500", "≥ 600 000 /s", f"{rate:,.0f} /s", rate >= 600_000)
        row("… CPU, server process", "≤ 0.9 s/M", f"{one:.2f} s/M", one <= 0.9)
        row("… CPU, server + broker + ClickHouse", "≤ 2.2 s/M", f"{three:.2f} s/M", three <= 2.2)
        row("… RSS of the server", "-", f"{measure.rss(server.process.pid) >> 20} MB")
        forget = Fleet(replace(plan, window=1_000_000))
        forget.prepare()
        free = forget.run().acked_per_s
        row("price of the guarantee: window of 16 ÷ no window", "≥ 0.70", f"{rate / free:.2f}", rate / free >= 0.7)


def client_load(p: Parts, rate: float, seconds: float, extra: str = "") -> dict[str, float]:
    p.stand.add_server()
    client = p.stand.add_client(1, p.outbox, rate=rate, extra=extra, interval=5)
    time.sleep(5)
    watched, database = {"client": client, "postgres": p.postgres}, p.postgres.process.pid
    before, status, began, bytes_before = cpu(watched), client.status(), time.monotonic(), measure.written(database)
    time.sleep(seconds)
    after, end, elapsed = cpu(watched), client.status(), time.monotonic() - began
    acked = end["acked_readings"] - status["acked_readings"]
    return {
        "acked_per_s": acked / elapsed,
        "cpu_per_million": sum(after[name] - before[name] for name in watched) / acked * 1e6,
        "client_core": (after["client"] - before["client"]) / elapsed * 100,
        "rss_mb": end["rss_bytes"] / 2**20,
        "commits_per_s": (end["commits"] - status["commits"]) / elapsed,
        "bytes_per_reading": (measure.written(database) - bytes_before) / acked,
    }


def client_path() -> float:
    with fresh() as p:
        f = client_load(p, 0, 10)
        row("client path, as fast as it goes", "≥ 200 000 /s", f"{f['acked_per_s']:,.0f} /s", f["acked_per_s"] >= 2e5)
        met = f["cpu_per_million"] <= 2.5
        row("… CPU, client + PostgreSQL", "≤ 2.5 s/M", f"{f['cpu_per_million']:.2f} s/M", met)
        fastest = f["acked_per_s"]
    for linger in (0.1, 0.5, 2.0):
        with fresh() as p:
            f = client_load(p, 1000, 20, f"[intake]\nlinger = {linger}\n")
            name, default = f"1000 readings/s, linger {linger}", linger == 0.1
            row(
                f"{name}: client",
                "≤ 2 % of a core",
                f"{f['client_core']:.1f} %",
                f["client_core"] <= 2 if default else None,
            )
            row(f"{name}: written", "≤ 150 B a reading" if default else "-", f"{f['bytes_per_reading']:.0f} B",
                f["bytes_per_reading"] <= 150 if default else None)  # fmt: skip
            if default:
                row(f"{name}: RSS", "≤ 100 MB", f"{f['rss_mb']:.0f} MB", f["rss_mb"] <= 100)
                row(f"{name}: commits of batches", "≤ 12 /s with deletions", f"{f['commits_per_s']:.1f} /s + 1",
                    f["commits_per_s"] <= 11)  # fmt: skip
    return fastest


def baseline(fastest: float) -> None:
    with fresh() as p:
        edge, whole = naive.run(p.postgres.dsn(), p.broker.port, p.clickhouse.port, 10)
    row("naive edge: a commit a reading", "-", f"{edge:,.0f} /s")
    row("naive whole path: an INSERT a message", "-", f"{whole:,.0f} /s")
    row("client path ÷ naive edge", "≥ 200", f"{fastest / edge:,.0f}", fastest / edge >= 200)
    row("whole path ÷ naive whole path", "≥ 500", f"{fastest / whole:,.0f}", fastest / whole >= 500)


class AckWatch:
    """Hears batches and acknowledgements of a client beside the server, and times each batch's way.

    ``delays`` holds, for each live batch acknowledged, seconds from its oldest reading's arrival to its acknowledgement.
    """

    def __init__(self, port: int, client_id: int) -> None:
        self.delays: list[float] = []
        self.first_batch_at = 0.0
        self.live_stream: str | None = None
        self._made: dict[tuple[int, int], float] = {}
        self._ids = (topics.data(client_id), topics.ack(client_id))
        self._client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
        self._client.on_message = self._hear
        self._client.connect("127.0.0.1", port)
        self._client.subscribe([(topic, 0) for topic in self._ids])
        self._client.loop_start()

    def _hear(self, _client: object, _data: object, message: paho.MQTTMessage) -> None:
        now = time.time()
        if message.topic == self._ids[0]:
            self.first_batch_at = self.first_batch_at or now
            user = dict(message.properties.UserProperty)
            if user["attempt"] == "0":
                stream, first = int(user["stream"]), int(user["first_seq"])
                readings = decode(message.payload, Name(1, stream, first), int(user["count"]))
                self._made[stream, first] = min(readings.created_at.to_pylist()) / 1e6
        else:
            for item in Ack.decode(message.payload).stored:
                for key in [k for k in self._made if k[0] == item.stream and item.first <= k[1] <= item.last]:
                    self.delays.append(now - self._made.pop(key))

    def percentiles(self) -> tuple[float, float]:
        ordered = sorted(self.delays)
        return ordered[len(ordered) // 2], ordered[int(len(ordered) * 0.99)]

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


def latency() -> float:
    with fresh() as p:
        p.stand.add_server()
        p.stand.add_client(1, p.outbox, rate=1000, interval=5)
        time.sleep(3)
        watch = AckWatch(p.broker.port, 1)
        time.sleep(20)
        p50, p99 = watch.percentiles()
        watch.close()
    row(
        "latency at 1000 /s: oldest reading of a batch → committed",
        "p99 ≤ 1 s",
        f"p50 {p50:.2f} s, p99 {p99:.2f} s",
        p99 <= 1,
    )
    return p99


def backlog(calm_p99: float, readings: int = 10_000_000, watched_s: float = 15) -> None:
    """Drains ``readings`` for ``watched_s`` seconds, or to the end if that is 0."""
    with fresh() as p:
        settings = config.Outbox(kind="postgresql", dsn=p.postgres.dsn())
        fill(settings, readings)
        server = p.stand.add_server()
        wait_for(lambda: server.status().get("accepting"), 20, "server")
        for kind in KINDS:
            p.stand.add_sensor(kind, 1, 1000 / 3)
        watch = AckWatch(p.broker.port, 1)
        extra = "".join(f"[sensors.{kind}]\nport = {p.stand.parts[f'{kind}-1'].arguments[4]}\n" for kind in KINDS)
        began = time.time()
        client = start_client(p, extra)
        wait_for(lambda: watch.first_batch_at, 30, "first resend", 0.01)
        first = watch.first_batch_at - began
        name = f"{readings / 1e6:g} M readings waiting: start of the process → first resend"
        row(name, "≤ 2 s", f"{first:.2f} s", first <= 2)
        time.sleep(2)
        low, start = measure.rss(client.process.pid), time.monotonic()
        before = client.status()
        if watched_s:
            time.sleep(watched_s)
        else:
            wait_for(lambda: client.status()["backlog"]["readings"] < 5000, 7200, "it drains", 1)
        end, elapsed = client.status(), time.monotonic() - start
        rate = (end["acked_readings"] - before["acked_readings"]) / elapsed
        growth = measure.rss(client.process.pid) / low - 1
        p99 = watch.percentiles()[1]
        watch.close()
    how = f"all in {elapsed:.0f} s, " if not watched_s else ""
    row("… drains, while 1000 /s come in", "≥ 10 000 /s", f"{how}{rate:,.0f} /s", rate >= 10_000)
    row("… RSS growth while it drains", "< 10 %", f"{growth * 100:.1f} % of {low >> 20} MB", growth < 0.1)
    row("… live p99 ÷ live p99 without backlog", "< 2", f"{p99 / calm_p99:.2f} ({p99:.2f} s)", p99 / calm_p99 < 2)


def start_client(p: Parts, extra: str) -> Skywave:
    path = p.stand.folder / "client-1.toml"
    http = free_port()
    path.write_text(
        f"client_id = 1\n{extra}[mqtt]\nport = {p.broker.port}\n[outbox]\n{p.outbox}\n[http]\nport = {http}\n"
    )
    client = Skywave(p.stand, "client-1", "client", "--config", str(path), http=http)
    p.stand.parts["client-1"] = client
    client.start()
    return client


def foreign_json() -> None:
    with fresh() as p:
        server = p.stand.add_server()
        wait_for(lambda: server.status().get("accepting"), 20, "server")
        edge = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
        edge.connect("127.0.0.1", p.broker.port)
        edge.loop_start()
        messages = [
            json.dumps([
                {"created_at": 1.7e9 + i, "data_key": "t", "data_value": i / 7, "id": n * 500 + i + 1} for i in range(500)
            ]) for n in range(600)
        ]  # fmt: skip
        before, began = measure.cpu_seconds(server.process.pid), time.monotonic()
        for message in messages:
            edge.publish(topics.data(9), message, 1)
        wait_for(lambda: server.status()["readings"] >= 300_000, 120, "JSON is stored")
        elapsed = time.monotonic() - began
        used = (measure.cpu_seconds(server.process.pid) - before) / 0.3
        edge.disconnect()
        edge.loop_stop()
    row("plain JSON, 500 readings a message", "reported", f"{300_000 / elapsed:,.0f} /s, {used:.1f} s/M in the server")


def guarded(work: Callable[[], Any]) -> Any:
    began = time.monotonic()
    result = work()
    print(
        f"  ({work.__name__ if hasattr(work, '__name__') else 'step'}: {time.monotonic() - began:.0f} s)",
        file=sys.stderr,
    )
    return result


def main() -> None:
    guarded(server_path)
    fastest = guarded(client_path)
    baseline(fastest)
    backlog(guarded(latency))
    guarded(foreign_json)
    write("bench")


if __name__ == "__main__":
    threading.excepthook = lambda args: print("thread:", args.exc_value, file=sys.stderr)
    main()
