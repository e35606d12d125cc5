"""Nothing lost, nothing doubled, whatever is killed: against the emulators' ledgers."""

from __future__ import annotations

import signal
import time

import pytest
from support.parts import wait_for
from support.stand import Skywave, Stand, delivers


def outbox_of(kind: str, stand: Stand, request: pytest.FixtureRequest, client_id: int = 1) -> str:
    if kind == "sqlite":
        return stand.sqlite(client_id)
    return f'kind = "postgresql"\ndsn = "{request.getfixturevalue("postgres").new_database()}"'


def at_a_random_moment(client: Skywave, rng) -> None:
    """Returns a random time after the client has delivered."""
    delivers(client, 1000, 30)
    time.sleep(rng.uniform(0, 0.5))


@pytest.mark.parametrize("outbox", ["sqlite", "postgresql"])
def test_every_reading_sent_is_stored_once(stand, outbox, request):
    stand.add_server()
    delivers(stand.add_client(1, outbox_of(outbox, stand, request), rate=3000), 6000, 60)
    stand.finish()
    assert stand.verify() > 5000


@pytest.mark.parametrize("outbox", ["sqlite", "postgresql"])
@pytest.mark.parametrize("victim", ["client-1", "server", "broker"])
def test_a_kill_at_any_moment_loses_and_doubles_nothing(stand, outbox, victim, request, rng):
    stand.add_server()
    client = stand.add_client(1, outbox_of(outbox, stand, request), rate=5000)
    kills = 3
    for _ in range(kills):
        at_a_random_moment(client, rng)
        part = stand.broker if victim == "broker" else stand.parts[victim]
        part.kill()
        time.sleep(rng.uniform(0, 1.0))
        part.start()
    delivers(client, 2500, 60)
    stand.finish()
    assert stand.verify(client_kills=kills if victim == "client-1" else 0) > 5000


def test_clickhouse_killed_under_load_loses_and_doubles_nothing(broker, own_clickhouse, database, rng):
    stand = Stand(broker, f"port = {own_clickhouse.port}\ntimeout = 5.0\n", database)
    try:
        stand.add_server(extra="[ingest]\npause_after = 0.5\n")
        client = stand.add_client(1, stand.sqlite(1), rate=5000)
        for _ in range(3):
            at_a_random_moment(client, rng)
            own_clickhouse.kill()
            time.sleep(rng.uniform(0.2, 2.0))
            own_clickhouse.start()
        delivers(client, 2500, 60)
        stand.finish()
        assert stand.verify() > 5000
    finally:
        stand.remove()


def test_postgresql_killed_under_load_loses_and_doubles_nothing(stand, own_postgres, rng):
    """The outcome of the commit that the kill hits is unknown to the client."""
    stand.add_server()
    client = stand.add_client(1, f'kind = "postgresql"\ndsn = "{own_postgres.new_database()}"', rate=5000)
    for _ in range(3):
        at_a_random_moment(client, rng)
        own_postgres.kill()
        time.sleep(rng.uniform(0, 1.0))
        own_postgres.start()
    delivers(client, 2500, 60)
    stand.finish()
    assert stand.verify() > 5000


def test_two_servers_share_the_load_and_one_frozen_or_killed_harms_nothing(stand, rng):
    stand.add_server("server-a")
    stand.add_server("server-b")
    extra = "ack_timeout_min = 0.5\n"
    clients = [stand.add_client(number, stand.sqlite(number), rate=3000, extra=extra) for number in (1, 2)]
    wait_for(lambda: all(stand.parts[f"server-{x}"].status().get("readings") for x in "ab"), 20, "both servers work")
    for _ in range(2):
        stand.parts["server-a"].signal(signal.SIGSTOP)
        time.sleep(rng.uniform(1.0, 3.0))
        stand.parts["server-a"].signal(signal.SIGCONT)
        time.sleep(rng.uniform(0.2, 0.6))
        stand.parts["server-b"].kill()
        time.sleep(rng.uniform(0.5, 1.5))
        stand.parts["server-b"].start()
    for client in clients:
        delivers(client, 5000, 90)
    stand.finish()
    assert stand.verify() > 10000


def test_readings_made_while_there_is_no_server_wait_in_the_outbox(stand):
    client = stand.add_client(1, stand.sqlite(1), rate=3000)
    before = wait_for(lambda: (s := client.status())["backlog"]["readings"] > 2000 and s, 30, "the outbox fills")
    assert before["in_flight"] == 0, "published without a server"
    client.kill()
    client.start()
    stand.add_server()
    delivers(client, 5000, 60)
    stand.finish()
    assert stand.verify(client_kills=1) > 5000


def test_sigterm_commits_what_is_in_memory_and_ends_at_once(stand):
    """With a linger far longer than the run, everything read is in memory when the signal comes."""
    client = stand.add_client(1, stand.sqlite(1), rate=3000, extra="[intake]\nlinger = 60.0\n")
    wait_for(lambda: all(s["readings"] for s in client.status()["sensors"].values()), 10, "readings come in")
    for kind in ("temperature", "pressure", "height"):
        stand.parts[f"{kind}-1"].stop()
    wait_for(lambda: not any(s["connected"] for s in client.status()["sensors"].values()), 10, "sensors end")
    assert client.status()["commits"] == 0
    started = time.monotonic()
    assert client.stop() == 0
    assert time.monotonic() - started < 30, "it does not wait for linger"
    client.start()
    stand.add_server()
    stand.finish()
    assert stand.verify() > 500
