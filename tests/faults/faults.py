"""What is broken, and how. Each fault is a generator: it breaks something, yields for how many seconds, and mends it.

``locks`` name what a fault needs for itself: two faults run at once only if they share none. A fault that ends a sensor's
connection or destroys an outbox tells the edge so, for the oracle.
"""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import signal
import sqlite3
import time
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psycopg2
from support.device import Device
from support.parts import Part, wait_for

from faults.proxy import Proxy
from faults.world import Edge, Process, World
from skywave import config
from skywave.formats import topics
from skywave.formats.batch import CONTENT_TYPE, Name, decode, encode
from skywave.formats.messages import Ack, Range
from skywave.outbox.opening import open_outbox

Steps = Iterator[float]


@dataclass(frozen=True)
class Fault:
    """One fault, aimed: ``kind`` is what it is called in tables."""

    kind: str
    target: str
    locks: frozenset[str]
    run: Callable[[], Steps]


Aim = Callable[[World, random.Random], Fault]
CATALOGUE: dict[str, Aim] = {}
FULL_DISKS: set[str] = set()
"""The kinds that need file systems of their own to fill."""


def fault(function: Aim) -> Aim:
    CATALOGUE[function.__name__] = function
    return function


def full_disk(function: Aim) -> Aim:
    FULL_DISKS.add(function.__name__)
    return fault(function)


def _long(rng: random.Random, most: float = 8.0) -> float:
    """Mostly a moment, sometimes as long as time-outs are."""
    return rng.uniform(0.1, 1.5) if rng.random() < 0.5 else rng.uniform(1.5, most)


def _fault(kind: str, target: str, locks: set[str], run: Callable[[], Steps]) -> Fault:
    return Fault(kind, target, frozenset(locks), run)


# -- processes -------------------------------------------------------------------------------------------------------


def _killed(process: Part, rng: random.Random, before: Callable[[], None] = lambda: None) -> Steps:
    before()
    if isinstance(process, Process):
        process.hold_down()
    else:
        process.kill()
    yield _long(rng, 5)
    process.start()


def _frozen(process: Part, seconds: float) -> Steps:
    process.signal(signal.SIGSTOP)
    yield seconds
    process.signal(signal.SIGCONT)


def _edge(world: World, rng: random.Random, fits: Callable[[Edge], bool] = lambda _: True) -> Edge:
    return rng.choice([edge for edge in world.edges if fits(edge)])


Find = Callable[[World, random.Random], tuple[Part, Edge | None]]


def _part(name: str, label: str, find: Find, longest: float, catalogue: dict[str, Aim] = CATALOGUE) -> None:
    """Puts NAME_killed and, if it may be frozen for ``longest`` seconds, NAME_frozen into the catalogue."""

    def target(part: Part) -> str:
        return part.name if isinstance(part, Process) else getattr(part, "lock", name)

    def killed(world: World, rng: random.Random) -> Fault:
        part, edge = find(world, rng)

        def note() -> None:
            if edge:
                edge.tails += 1
                edge.sensor_kills += part is edge.sensor

        return _fault(f"{label} killed", target(part), {target(part)}, lambda: _killed(part, rng, note))

    def frozen(world: World, rng: random.Random) -> Fault:
        part, _ = find(world, rng)
        return _fault(f"{label} frozen", target(part), {target(part)}, lambda: _frozen(part, _long(rng, longest)))

    catalogue[f"{name}_killed"] = killed
    if longest:
        catalogue[f"{name}_frozen"] = frozen


def _client(world: World, rng: random.Random) -> tuple[Part, Edge]:
    edge = _edge(world, rng)
    return edge.client, edge


def _sensor(world: World, rng: random.Random) -> tuple[Part, Edge]:
    edge = _edge(world, rng)
    return edge.sensor, edge


_part("client", "client", _client, 12)
_part("sensor", "sensor", _sensor, 8)
# A frozen server holds batches, whose clients send them again to the other one; thawed, it may insert what it held.
_part("server", "server", lambda world, rng: (rng.choice(world.servers), None), 20)
_part("broker", "broker", lambda world, _: (world.broker, None), 12)  # killed, it starts again empty
# A frozen ClickHouse answers after the server's time-out, but what it was asked for is done.
_part("clickhouse", "ClickHouse", lambda world, _: (world.clickhouse, None), 10)
_part("postgres", "PostgreSQL", lambda world, _: (world.postgres, None), 0)


@fault
def both_servers_killed(world: World, rng: random.Random) -> Fault:
    def run() -> Steps:
        for server in world.servers:
            server.hold_down()
        yield _long(rng, 5)
        for server in world.servers:
            server.start()

    return _fault("both servers killed", "servers", {s.name for s in world.servers}, run)


# -- the network -----------------------------------------------------------------------------------------------------


def _path(proxy: Proxy, mode: str, seconds: float, before: Callable[[], None]) -> Steps:
    before()
    if mode == "reset":
        proxy.reset()
        yield 0.1
        return
    proxy.set(mode)
    yield seconds
    proxy.set("pass")


def _paths(world: World) -> list[tuple[str, Proxy, Edge | None]]:
    found: list[tuple[str, Proxy, Edge | None]] = []
    for edge in world.edges:
        found.append(("client to broker", edge.to_broker, None))
        found.append(("sensor to client", edge.to_sensor, edge))
        if edge.to_outbox:
            found.append(("client to PostgreSQL", edge.to_outbox, None))
    found += [("server to broker", proxy, None) for proxy in world.from_servers]
    found += [("server to ClickHouse", proxy, None) for proxy in world.to_store]
    return found


def _network(mode: str, name: str, most: float) -> Aim:
    def aim(world: World, rng: random.Random) -> Fault:
        where, proxy, edge = rng.choice(_paths(world))

        def note() -> None:
            if edge and mode in ("cut", "reset"):
                edge.tails += 1

        return _fault(
            f"network {name}", where, {f"path {proxy.port}"}, lambda: _path(proxy, mode, _long(rng, most), note)
        )

    return aim


for _mode, _name, _most in [
    ("cut", "cut", 6.0), ("reset", "reset in the midst", 0.1), ("hold", "half-open", 12.0), ("slow", "at 10 kB/s", 8.0),
    ("delay", "half a second away", 8.0), ("hold_up", "deaf one way", 10.0), ("hold_down", "mute one way", 10.0),
]:  # fmt: skip
    CATALOGUE[f"network_{_mode}"] = _network(_mode, _name, _most)


# -- ClickHouse ------------------------------------------------------------------------------------------------------


@fault
def clickhouse_killed_in_an_insert(world: World, rng: random.Random) -> Fault:
    proxy = rng.choice(world.to_store)

    def run() -> Steps:
        proxy.after(rng.randrange(200, 40_000), world.clickhouse.kill)
        yield 3.0
        proxy.forget()
        time.sleep(0.2)
        world.clickhouse.kill()
        world.clickhouse.start()

    return _fault("ClickHouse killed in an INSERT", "clickhouse", {"clickhouse"}, run)


@fault
def clickhouse_answers_too_late(world: World, rng: random.Random) -> Fault:
    """The request arrives, the answer does not: the INSERT is committed, its outcome unknown."""
    proxy = rng.choice(world.to_store)

    def run() -> Steps:
        proxy.set("hold_down")
        yield rng.uniform(4.5, 9)  # the server's time-out is 4 s
        proxy.set("cut")
        proxy.set("pass")

    return _fault("ClickHouse answers too late", "clickhouse", {f"path {proxy.port}"}, run)


@fault
def clickhouse_read_only(world: World, rng: random.Random) -> Fault:
    users = world.clickhouse.folder / "users.xml"

    def run() -> Steps:
        text = users.read_text()
        users.write_text(text.replace("<max_memory_usage>", "<readonly>1</readonly><max_memory_usage>"))
        yield rng.uniform(3, 7)  # it looks at the file every two seconds
        users.write_text(text)
        time.sleep(2.5)

    return _fault("ClickHouse read-only", "clickhouse", {"clickhouse"}, run)


@fault
def table_away(world: World, rng: random.Random) -> Fault:
    """No server may start meanwhile, but one that started while ClickHouse was dead may make a new table."""

    def run() -> Steps:
        store = world.store()
        try:
            store.query("RENAME TABLE telemetry.telemetry TO telemetry.away")
            try:
                yield _long(rng, 5)
            finally:
                if store.query("EXISTS TABLE telemetry.telemetry")[0][0]:
                    store.query("INSERT INTO telemetry.telemetry SELECT * FROM telemetry.away")
                    store.query("DROP TABLE telemetry.away")
                else:
                    store.query("RENAME TABLE telemetry.away TO telemetry.telemetry")
        finally:
            store.close()

    return _fault("table renamed away", "clickhouse", {"clickhouse", *(s.name for s in world.servers)}, run)


def _full(world: World, name: str, what: str, locks: set[str], rng: random.Random) -> Fault:
    def run() -> Steps:
        world.disks[name].fill()
        yield _long(rng, 6)
        world.disks[name].free()

    return _fault(f"{what}: disk full", name, {f"disk {name}", *locks}, run)


@full_disk
def clickhouse_disk_full(world: World, rng: random.Random) -> Fault:
    return _full(world, "clickhouse", "ClickHouse", {"clickhouse"}, rng)


# -- outboxes --------------------------------------------------------------------------------------------------------


@fault
def postgres_killed_in_a_commit(world: World, rng: random.Random) -> Fault:
    edge = _edge(world, rng, lambda e: e.database == "postgresql")
    proxy = edge.to_outbox
    assert proxy

    def run() -> Steps:
        proxy.after(rng.randrange(100, 20_000), world.postgres.kill)
        yield 2.0
        proxy.forget()
        time.sleep(0.2)
        world.postgres.kill()
        world.postgres.start()

    return _fault("PostgreSQL killed in a COMMIT", "postgres", {"postgres"}, run)


@fault
def commit_of_unknown_outcome(world: World, rng: random.Random) -> Fault:
    edge = _edge(world, rng, lambda e: e.database == "postgresql")
    proxy = edge.to_outbox
    assert proxy

    def run() -> Steps:
        proxy.set("hold_down")
        yield rng.uniform(0.3, 2)
        proxy.set("cut")
        yield rng.uniform(0, 1)
        proxy.set("pass")

    return _fault("COMMIT of unknown outcome", edge.client.name, {f"path {proxy.port}"}, run)


@fault
def postgres_out_of_connections(world: World, rng: random.Random) -> Fault:
    def run() -> Steps:
        taken = []
        with contextlib.suppress(psycopg2.Error):
            while len(taken) < 40:
                taken.append(world.sql())
        with contextlib.suppress(psycopg2.Error):
            for connection in taken[:1]:  # those that have one are sent away, so that they need a new one
                connection.cursor().execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'skywave'"
                )
            while len(taken) < 60:
                taken.append(world.sql())
        yield _long(rng, 5)
        for connection in taken:
            connection.close()

    return _fault("PostgreSQL out of connections", "postgres", {"postgres"}, run)


@full_disk
def postgres_disk_full(world: World, rng: random.Random) -> Fault:
    """It may end by that, as it does when it cannot write its log."""

    def run() -> Steps:
        world.disks["postgres"].fill()
        yield _long(rng, 6)
        world.disks["postgres"].free()
        time.sleep(0.5)
        world.postgres.kill()
        world.postgres.start()

    return _fault("PostgreSQL: disk full", "postgres", {"postgres"}, run)


@full_disk
def sqlite_disk_full(world: World, rng: random.Random) -> Fault:
    return _full(world, "sqlite", "SQLite", {"sqlite"}, rng)


@fault
def sqlite_locked(world: World, rng: random.Random) -> Fault:
    edge = _edge(world, rng, lambda e: e.outbox is not None)

    def run() -> Steps:
        with contextlib.closing(sqlite3.connect(edge.outbox, isolation_level=None, timeout=5)) as connection:
            with contextlib.suppress(sqlite3.DatabaseError):  # it is in use, or damaged and not replaced yet
                connection.execute("BEGIN EXCLUSIVE")
            yield _long(rng, 14)  # the client waits 10 s
            if connection.in_transaction:
                connection.execute("ROLLBACK")

    return _fault("SQLite locked", edge.client.name, {edge.client.name, "sqlite"}, run)


@fault
def outbox_at_its_limit(world: World, rng: random.Random) -> Fault:
    edge = _edge(world, rng, lambda e: e.client_id in (2, 4, 5))
    proxy = edge.to_broker

    def run() -> Steps:
        proxy.set("cut")
        yield rng.uniform(8, 16)
        proxy.set("pass")

    return _fault(
        f"outbox at its limit ({edge.policy})", edge.client.name, {f"path {proxy.port}", edge.client.name}, run
    )


def held(world: World, edge: Edge) -> set[float]:
    """The values of the readings in an edge's outbox. Its client is dead."""
    box = open_outbox(
        config.Outbox(kind="sqlite", path=str(edge.outbox))
        if edge.outbox
        else config.Outbox(kind="postgresql", dsn=world.postgres.dsn(f"edge{edge.client_id}"))
    )
    values: set[float] = set()
    with contextlib.closing(box):
        box.create(edge.client_id)  # it may have been killed before it had
        for batch in box.read(0, 1 << 62, 1 << 30):
            name = Name(edge.client_id, batch.stream, batch.first_seq)
            values.update(decode(batch.payload, name, batch.count).values.to_pylist())
    return values


def _plain(edge: Edge) -> bool:
    """What acknowledged intake promises does not outlast an outbox that is destroyed or put back."""
    return not edge.acknowledged and edge.policy == "block"


def _outbox_locks(edge: Edge) -> set[str]:
    return {edge.client.name, "postgres", "sqlite", "disk sqlite", f"path {edge.to_broker.port}"}


def _filled(edge: Edge, rng: random.Random) -> Steps:
    """Readings gather in the outbox, because the broker is out of reach; then the client is killed."""
    edge.to_broker.set("cut")
    yield rng.uniform(0.5, 4)
    edge.tails += 1
    edge.client.hold_down()
    edge.to_broker.set("pass")


@fault
def outbox_lost(world: World, rng: random.Random) -> Fault:
    edge = _edge(world, rng, _plain)

    def run() -> Steps:
        yield from _filled(edge, rng)
        edge.gone |= held(world, edge)
        if edge.outbox:
            for file in edge.outbox.parent.glob(f"{edge.outbox.name}*"):
                file.unlink()
        else:
            with contextlib.closing(world.sql()) as connection, connection.cursor() as cursor:
                _drop_connections(cursor, edge)
                cursor.execute(f"DROP DATABASE edge{edge.client_id}")
                cursor.execute(f"CREATE DATABASE edge{edge.client_id}")
        yield 0.1
        edge.client.start()

    return _fault("outbox lost", edge.client.name, _outbox_locks(edge), run)


def _drop_connections(cursor, edge: Edge) -> None:
    cursor.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname IN (%s, %s)",
        (f"edge{edge.client_id}", f"copy{edge.client_id}"),
    )
    time.sleep(0.3)


@fault
def outbox_damaged(world: World, rng: random.Random) -> Fault:
    """Noise over pages of the file: it is noticed, set aside and reported, and the service starts."""
    edge = _edge(world, rng, lambda e: e.outbox is not None and _plain(e))
    assert edge.outbox

    def run() -> Steps:
        assert edge.outbox
        yield from _filled(edge, rng)
        edge.gone |= held(world, edge)
        with contextlib.closing(sqlite3.connect(edge.outbox)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        size = edge.outbox.stat().st_size
        with edge.outbox.open("r+b") as file:
            for _ in range(rng.randrange(1, 4)):
                at = rng.randrange(0, max(1, size // 4096)) * 4096
                file.seek(at)
                file.write(rng.randbytes(4096))
        yield 0.1
        edge.client.start()

    return _fault("outbox damaged", edge.client.name, _outbox_locks(edge), run)


@fault
def outbox_put_back(world: World, rng: random.Random) -> Fault:
    """An old copy of the outbox takes its place: what it holds was delivered meanwhile, what it lacks is lost."""
    edge = _edge(world, rng, _plain)
    copy = Path(f"{edge.outbox}.copy")

    def run() -> Steps:
        wait_for(edge.client.status, 30, f"{edge.client.name} has an outbox")
        edge.tails += 1
        edge.client.stop()
        if edge.outbox:
            shutil.copy(edge.outbox, copy)
        else:
            with contextlib.closing(world.sql()) as connection, connection.cursor() as cursor:
                cursor.execute(f"DROP DATABASE IF EXISTS copy{edge.client_id}")
                _drop_connections(cursor, edge)
                cursor.execute(f"CREATE DATABASE copy{edge.client_id} TEMPLATE edge{edge.client_id}")
        edge.client.start()
        yield rng.uniform(1, 4)
        yield from _filled(edge, rng)
        edge.gone |= held(world, edge)
        if edge.outbox:
            for suffix in ("-wal", "-shm"):
                Path(f"{edge.outbox}{suffix}").unlink(missing_ok=True)
            copy.replace(edge.outbox)
        else:
            with contextlib.closing(world.sql()) as connection, connection.cursor() as cursor:
                _drop_connections(cursor, edge)
                cursor.execute(f"DROP DATABASE edge{edge.client_id}")
                cursor.execute(f"ALTER DATABASE copy{edge.client_id} RENAME TO edge{edge.client_id}")
        edge.client.start()

    return _fault("outbox put back from a copy", edge.client.name, _outbox_locks(edge), run)


# -- the broker ------------------------------------------------------------------------------------------------------


def _configured(world: World, rng: random.Random, old: str, new: str) -> Steps:
    conf = world.broker.folder / "mosquitto.conf"
    text = conf.read_text()
    assert old in text
    conf.write_text(text.replace(old, new))
    world.broker.kill()
    world.broker.start()
    yield rng.uniform(2, 6)
    conf.write_text(text)
    world.broker.kill()
    world.broker.start()


@fault
def broker_refuses_everybody(world: World, rng: random.Random) -> Fault:
    return _fault("broker refuses everybody", "broker", {"broker"},
                  lambda: _configured(world, rng, "allow_anonymous true", "allow_anonymous false"))  # fmt: skip


@fault
def broker_drops_what_is_queued(world: World, rng: random.Random) -> Fault:
    return _fault("broker drops what it queues", "broker", {"broker"},
                  lambda: _configured(world, rng, "max_queued_messages 100", "max_queued_messages 1"))  # fmt: skip


@fault
def broker_takes_small_messages_only(world: World, rng: random.Random) -> Fault:
    return _fault("broker takes small messages only", "broker", {"broker"},
                  lambda: _configured(world, rng, "max_queued_messages 100", "message_size_limit 1700"))  # fmt: skip


# -- clocks ----------------------------------------------------------------------------------------------------------


def _jumped(process: Process, offset: str, seconds: float) -> Steps:
    process.set_clock(offset)
    yield seconds
    process.set_clock("+0")


@fault
def client_clock_jumps(world: World, rng: random.Random) -> Fault:
    edge = _edge(world, rng)
    offset = rng.choice(["+5h", "-5h", "+40d", f"-{int(time.time())}s"])
    return _fault("client's clock jumps", edge.client.name, {f"clock {edge.client.name}"},
                  lambda: _jumped(edge.client, offset, _long(rng, 6)))  # fmt: skip


@fault
def server_clock_jumps(world: World, rng: random.Random) -> Fault:
    server = rng.choice(world.servers)
    offset = rng.choice(["+5h", "-5h", f"-{int(time.time())}s"])
    return _fault("server's clock jumps", server.name, {"clock servers"},
                  lambda: _jumped(server, offset, _long(rng, 6)))  # fmt: skip


@fault
def midnight(world: World, rng: random.Random) -> Fault:
    """Both servers pass midnight, not at the same moment, and batches are resent across it."""

    def run() -> Steps:
        now = datetime.now(UTC)
        to_midnight = 86_400 - (now.hour * 3600 + now.minute * 60 + now.second) - 2
        for server in world.servers:
            server.set_clock(f"+{to_midnight}s")
            yield rng.uniform(0, 2)
        world.from_servers[0].reset()
        yield rng.uniform(2, 5)
        for server in world.servers:
            server.set_clock("+0")
            yield rng.uniform(0, 2)

    return _fault("midnight", "servers", {"clock servers"}, run)


# -- strangers -------------------------------------------------------------------------------------------------------


def _stranger(world: World, messages: list[tuple[str, bytes, str, dict[str, str]]]) -> None:
    with contextlib.suppress(OSError), contextlib.closing(Device(world.broker.port)) as device:
        for topic, payload, content_type, user in messages:
            with contextlib.suppress(RuntimeError, ValueError):  # the broker is away, or has been told to refuse it
                device.send(topic, payload, content_type, **user)


def poison(rng: random.Random) -> list[tuple[str, bytes, str, dict[str, str]]]:
    """Messages that no server can store, as edge 900 might send them."""
    name = Name(900, rng.randrange(1, 1 << 62), 1)
    good = encode(name, ["k"], array("h", [0] * 50), array("q", range(50)), array("d", range(50)), "lz4")
    today = datetime.now(UTC).date().isoformat()
    user = {"stream": str(name.stream), "first_seq": "1", "count": "50", "day": today, "since": "", "attempt": "0"}
    flipped = bytearray(good)
    for _ in range(3):
        flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
    data = topics.data(900)
    return [
        (data, rng.randbytes(rng.randrange(1, 3000)), "", {}),
        (data, rng.randbytes(500), CONTENT_TYPE, user),
        (data, good[: rng.randrange(len(good))], CONTENT_TYPE, user),
        (data, bytes(flipped), CONTENT_TYPE, {**user, "count": "49"}),
        (data, good, CONTENT_TYPE, {**user, "day": "1970-01-01"}),
        (data, good, CONTENT_TYPE, {**user, "stream": "-1"}),
        (topics.data(901), good, CONTENT_TYPE, user),
        (data, b"[" * 100_000, "", {}),
        (data, json.dumps({"created_at": 1e300, "data_key": "k", "data_value": 1}).encode(), "", {}),
        (data, b'{"created_at": 1, "data_key": "k", "data_value": NaN}', "", {}),
        (data, b'{"created_at": 1, "data_key": "\xff\xfe", "data_value": 1}', "", {}),
        (topics.client_status(900), b'{"online": "perhaps"', "", {}),
        (data, b"x" * (50 << 20) if rng.random() < 0.2 else b"", "", {}),
    ]  # fmt: skip


@fault
def poison_arrives(world: World, rng: random.Random) -> Fault:
    def run() -> Steps:
        _stranger(world, poison(rng))
        yield 0.1

    return _fault("poison", "servers", {"stranger"}, run)


@fault
def hostile_acknowledgements(world: World, rng: random.Random) -> Fault:
    edge = _edge(world, rng)

    def run() -> Steps:
        today = datetime.now(UTC).date()
        streams = [rng.randrange(1, 1 << 63), 0]
        with contextlib.suppress(Exception), contextlib.closing(world.store()) as store:
            rows = store.query(f"SELECT stream FROM telemetry.streams WHERE client_id = {edge.client_id}")
            others = store.query(f"SELECT stream FROM telemetry.streams WHERE client_id != {edge.client_id}")
            streams += [row[0] for row in others]
            mine = [row[0] for row in rows]
            never_sent = [Range(stream, 10**9, 10**9 + 5) for stream in mine] + [
                Range(s, 1 << 62, 1 << 63) for s in mine
            ]
        ranges = [Range(stream, 1, 1 << 62) for stream in streams] + never_sent
        body = json.loads(Ack("hostile", today, ranges, []).encode())
        broken = [
            b"", b"{}", rng.randbytes(300), b'{"v": 1}',
            json.dumps({**body, "stored": [["1", "-5", "99999999999999999999999"]]}).encode(),
            json.dumps({**body, "stored": [[1, 2]]}).encode(), json.dumps({**body, "date": "yesterday"}).encode(),
            json.dumps({**body, "stored": "all"}).encode(), json.dumps(body).encode(),
        ]  # fmt: skip
        _stranger(world, [(topics.ack(edge.client_id), payload, "", {}) for payload in broken])
        yield 0.1

    return _fault("hostile acknowledgements", edge.client.name, {"stranger", "clickhouse"}, run)
