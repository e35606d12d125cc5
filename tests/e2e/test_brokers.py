"""Several brokers: a client goes on to the next one, servers listen to all."""

from __future__ import annotations

import threading
import time

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion
from support.parts import Mosquitto, wait_for
from support.stand import Stand, delivers, skywave


@pytest.fixture
def stand_of_two(broker, clickhouse, database):
    other = Mosquitto()
    other.start()
    stand = Stand(broker, f"port = {clickhouse.port}\n", database, other)
    try:
        yield stand, broker, other
    finally:
        stand.remove()
        other.remove()


def test_either_broker_may_die_and_nothing_is_lost(stand_of_two, rng):
    stand, first, second = stand_of_two
    servers = [stand.add_server("server"), stand.add_server("server-2")]
    clients = [stand.add_client(number, stand.sqlite(number), 2000) for number in (1, 2)]
    for _ in range(2):
        for broker in (first, second):
            for client in clients:
                delivers(client, 1000, 40)
            broker.kill()
            time.sleep(rng.uniform(0, 2))
            for client in clients:
                delivers(client, 1000, 40)
            broker.start()
            wait_for(lambda: all(not s.status()["broker_error"] for s in servers), 30, "servers listen to it again")
    stand.finish(60)
    assert stand.verify() > 10_000


def test_a_broker_without_a_server_is_left(stand_of_two):
    stand, first, second = stand_of_two
    stand.mqtt = f"[mqtt]\nport = {second.port}\n"
    stand.add_server()
    stand.mqtt = f'[mqtt]\nport = {first.port}\nothers = "127.0.0.1:{second.port}"\n'
    client = stand.add_client(1, stand.sqlite(1), 1000)
    delivers(client, 1000, 40)
    assert "leaves 127.0.0.1" in client.log()
    assert (
        f"127.0.0.1:{second.port} answers"
        in skywave("doctor", "--config", str(stand.folder / "client-1.toml"), check=None).stdout
    )
    assert retained(first, "/telemetry/client/1/status") == [], "the broker that it left does not speak of it any more"
    assert len(retained(second, "/telemetry/client/1/status")) == 1
    stand.finish()
    assert stand.verify() > 1000


def retained(broker: Mosquitto, topic: str) -> list[bytes]:
    """What the broker has kept of a topic."""
    heard, answered = [], threading.Event()
    client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
    client.on_message = lambda _client, _data, message: (
        heard.append(message.payload) if message.retain else answered.set()
    )
    client.connect("127.0.0.1", broker.port)
    client.loop_start()
    client.subscribe([(topic, 1), ("x/echo", 1)])
    client.publish("x/echo", b"x", 1)  # comes after what is retained
    assert answered.wait(10)
    client.disconnect()
    client.loop_stop()
    return heard
