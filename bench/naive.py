"""The naive way, as a yardstick: one INSERT and COMMIT a reading at the edge, one INSERT a message into ClickHouse."""

from __future__ import annotations

import json
import threading
import time

import paho.mqtt.client as paho
import psycopg2
from clickhouse_driver import Client
from paho.mqtt.enums import CallbackAPIVersion


def run(dsn: str, broker_port: int, clickhouse_port: int, seconds: float) -> tuple[float, float]:
    """Readings/s of the edge alone (commit, publish), and of the whole path into ClickHouse."""
    connection = psycopg2.connect(dsn)
    with connection, connection.cursor() as cursor:
        cursor.execute(
            "CREATE TABLE IF NOT EXISTS naive (id BIGSERIAL, created_at FLOAT, data_key TEXT, data_value FLOAT)"
        )
    store = Client("127.0.0.1", clickhouse_port)
    store.execute("CREATE DATABASE IF NOT EXISTS naive")
    store.execute(
        "CREATE TABLE IF NOT EXISTS naive.t (client_id UInt32, created_at Float64, data_key String, data_value Float64)"
        " ENGINE = MergeTree ORDER BY (client_id, created_at)"
    )
    stored, done = [0], threading.Event()

    def insert(_client: object, _data: object, message: paho.MQTTMessage) -> None:
        reading = json.loads(message.payload)
        store.execute("INSERT INTO naive.t VALUES", [(1, *reading)])
        stored[0] += 1

    server = paho.Client(CallbackAPIVersion.VERSION2)
    server.on_message = insert
    server.connect("127.0.0.1", broker_port)
    server.subscribe("naive", 1)
    server.loop_start()
    edge = paho.Client(CallbackAPIVersion.VERSION2)
    edge.connect("127.0.0.1", broker_port)
    edge.loop_start()
    started, sent = time.monotonic(), 0
    while time.monotonic() - started < seconds and not done.is_set():
        with connection, connection.cursor() as cursor:
            cursor.execute(
                "INSERT INTO naive (created_at, data_key, data_value) VALUES (%s, %s, %s)",
                (time.time(), "temperature", 21.5),
            )
        edge.publish("naive", json.dumps([time.time(), "temperature", 21.5]), 1)
        sent += 1
    elapsed, whole = time.monotonic() - started, stored[0]
    for client in (edge, server):
        client.disconnect()
        client.loop_stop()
    connection.close()
    return sent / elapsed, whole / elapsed
