"""Devices that publish plain JSON and keep nothing: the broker keeps it until it is committed."""

from __future__ import annotations

import json
import signal
import time

import pytest
from support.device import Device
from support.parts import ClickHouse, Mosquitto, wait_for
from support.stand import Stand

from skywave.formats import topics
from skywave.formats.messages import Range
from skywave.store.audit import audit

NOW = 1796000000


def reading(number: int, **more: object) -> bytes:
    return json.dumps({"created_at": NOW + number, "data_key": "level", "data_value": number, **more}).encode()


@pytest.fixture
def fragile(broker, own_clickhouse, database):
    """A stand whose store may be stopped."""
    stand = Stand(broker, f"port = {own_clickhouse.port}\ntimeout = 2.0\n", database)
    try:
        yield stand
    finally:
        stand.remove()


def accepts(server) -> bool:
    status = server.status()
    return bool(status.get("accepting") and status["store_ok"])


def values(stand, client_id: int) -> list[int]:
    """What is stored of a client, each as often as it is there."""
    store = stand.open_store()
    rows = store.query(
        f"SELECT data_value FROM {store.database}.telemetry FINAL WHERE client_id = {client_id} ORDER BY data_value"
    )
    store.close()
    return [int(value) for (value,) in rows]


def has_all(stand, client_id: int, numbers: range, seconds: float = 30) -> None:
    wait_for(
        lambda: set(values(stand, client_id)) >= set(numbers), seconds,
        lambda: f"stored of {len(numbers)}: {values(stand, client_id)}", 0.3,
    )  # fmt: skip


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_json_without_id_that_comes_while_the_server_is_away_is_stored_when_it_is_back(stand, device, end):
    server = stand.add_server()
    wait_for(lambda: accepts(server), 20, "server accepts")
    box = device()
    for number in range(60):
        if number in (20, 40):
            if end == signal.SIGKILL:
                server.kill()
            else:
                server.stop()
        box.send(topics.data(9) if number % 2 else "/telemetry/client/9", reading(number))
        if number in (30, 50):
            server.start()
    has_all(stand, 9, range(60))


def test_json_without_id_that_comes_while_the_store_is_away_is_stored_once_when_it_is_back(
    fragile, device, own_clickhouse
):
    server = fragile.add_server(extra="[ingest]\npause_after = 0.5\n")
    wait_for(lambda: accepts(server), 20, "server accepts")
    box = device()
    box.send(topics.data(9), reading(0))
    has_all(fragile, 9, range(1))
    own_clickhouse.kill()
    for number in range(1, 3001):  # more than may be on its way unanswered
        box.client.publish(topics.data(9), reading(number), 1)
    box.send(topics.data(9), reading(3001))
    wait_for(lambda: not server.status()["accepting"], 20, "server says that it does not accept")
    assert server.status()["foreign_lost"] == 0
    own_clickhouse.start()
    has_all(fragile, 9, range(3002))
    assert values(fragile, 9) == list(range(3002))


def test_json_for_which_there_was_no_room_is_sent_again_by_the_broker(fragile, device, own_clickhouse):
    server = fragile.add_server(extra="[ingest]\npause_after = 0.5\nmax_held_bytes = 1048576\n")
    wait_for(lambda: accepts(server), 20, "server accepts")
    box = device()
    box.send(topics.data(9), reading(0))
    has_all(fragile, 9, range(1))
    own_clickhouse.kill()
    for number in range(1, 41):
        box.send(topics.data(9 + number % 2), reading(number, note="x" * 100_000))
    wait_for(lambda: server.status()["dropped"] > 0, 20, "the inbox is full")
    own_clickhouse.start()
    has_all(fragile, 9, range(0, 41, 2), 60)
    has_all(fragile, 10, range(1, 41, 2), 60)
    assert server.status()["foreign_lost"] == 0


def test_beside_another_server_json_outlives_a_restart_and_batches_go_to_the_one_that_is_there(stand, device):
    """What comes for a server that was killed waits a minute for it, and no longer."""
    servers = [stand.add_server(name) for name in ("server-a", "server-b")]
    wait_for(lambda: all(accepts(server) for server in servers), 20, "both accept")
    stand.add_client(1, stand.sqlite(1), rate=600, extra="ack_timeout_min = 0.5\n")
    box = device()
    for number in range(90):
        if number == 30:
            servers[0].kill()
        if number == 60:
            servers[0].start()
        if number == 75:
            wait_for(lambda: accepts(servers[0]), 20, "it is back")
            assert servers[1].stop() == 0
        box.send(topics.data(9), reading(number))
        time.sleep(0.02)
    has_all(stand, 9, range(90))
    servers[1].start()
    stand.finish()
    store = stand.open_store()
    account = audit(store)
    store.close()
    assert account.clean, account.as_json()
    assert account.total("produced") == account.total("stored") > 500


def test_a_retained_reading_is_stored_once_whoever_starts_when(stand, device):
    box = device()
    box.send(topics.data(9), reading(1), retain=True)
    box.send(topics.data(10), reading(2, id=7), retain=True)
    server = stand.add_server()
    wait_for(lambda: accepts(server), 20, "server accepts")
    for client_id in (9, 10):
        has_all(stand, client_id, range(client_id - 8, client_id - 7))
    box.send(topics.data(11), reading(3), retain=True)
    box.send(topics.data(12), b"[" + reading(4) + b"," + reading(5) + b"]", retain=True)
    has_all(stand, 12, range(4, 6))
    server.kill()
    box.send(topics.data(13), reading(6), retain=True)
    other = stand.add_server("other")
    server.start()
    wait_for(lambda: accepts(server) and accepts(other), 20, "both accept")
    server.stop()
    server.start()
    wait_for(lambda: accepts(server), 20, "server accepts")
    box.send(topics.data(9), reading(7))
    has_all(stand, 9, range(7, 8))
    assert {client_id: values(stand, client_id) for client_id in range(9, 14)} == {
        9: [1, 7], 10: [2], 11: [3], 12: [4, 5], 13: [6]
    }  # fmt: skip


def test_a_bad_element_with_an_id_is_answered_and_one_message_is_one_row(stand, device):
    server = stand.add_server()
    wait_for(lambda: accepts(server), 20, "server accepts")
    box = device(topics.ack(9))
    elements = [reading(n, id=str(n)) if n % 2 else reading(n, id=n, data_value="NaN") for n in range(1, 2001)]
    box.send(topics.data(9), b"[" + b",".join(elements) + b"]")
    wait_for(lambda: any(ack.rejected for ack in box.acks()), 10, "the answer")
    (ack,) = [ack for ack in box.acks() if ack.rejected]
    assert ack.rejected == [Range(0, n, n) for n in range(2, 2001, 2)]
    assert ack.stored == [Range(0, n, n) for n in range(1, 2001, 2)]
    store = stand.open_store()
    ((reason, _),) = store.query(f"SELECT reason, properties FROM {store.database}.rejected FINAL")
    store.close()
    assert b"1000 of 2000 elements" in reason
    assert server.log().count("WARNING") == 1


def test_what_the_broker_drops_is_told(database, clickhouse: ClickHouse):
    broker = Mosquitto("max_queued_messages 0\nmax_queued_bytes 20000\nsys_interval 1\n")
    broker.start()
    stand = Stand(broker, f"port = {clickhouse.port}\n", database)
    box = Device(broker.port)
    try:
        server = stand.add_server()
        wait_for(lambda: accepts(server), 20, "server accepts")
        server.stop()
        for number in range(200):
            box.send(topics.data(9), reading(number, note="x" * 1000))
        server.start()
        wait_for(lambda: server.status().get("broker_dropped"), 20, "the server hears of it")
        assert "because a queue was full" in server.log()
        box.close()
        broker.kill()
        broker.start()
        wait_for(lambda: "kept nothing for this server" in server.log(), 20, "the server tells of the lost session")
    finally:
        stand.remove()
        broker.remove()
