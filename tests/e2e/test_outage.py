"""After an outage: memory does not grow with the backlog, it drains, and live readings do not wait behind it."""

from __future__ import annotations

import time

import pytest
from support.outage import STREAM, fill
from support.parts import wait_for

from skywave import config

READINGS = 2_000_000
"""bench/day_of_outage.py does it with a day's 86 million."""


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_long_backlog_drains_in_constant_memory_while_live_readings_stay_fresh(stand, postgres, kind):
    dsn = postgres.new_database() if kind == "postgresql" else ""
    path = f"{stand.folder}/outbox-1.sqlite"
    fill(config.Outbox(kind=kind, path=path, dsn=dsn, min_free_disk=0), READINGS)
    outbox = stand.sqlite(1) if kind == "sqlite" else f'kind = "postgresql"\ndsn = "{dsn}"'
    client = stand.add_client(1, outbox, rate=1000)  # there is no server yet
    wait_for(lambda: client.status().get("readings", 0) > 1000, 30, "it takes readings in")
    before = client.status()
    assert before["backlog"]["readings"] >= READINGS
    stand.add_server()
    wait_for(lambda: client.status()["acked_readings"] > READINGS // 10, 60, "it drains")
    low = client.status()["rss_bytes"]
    wait_for(lambda: client.status()["acked_readings"] > READINGS * 8 // 10, 120, "it drains")
    assert client.status()["rss_bytes"] < 1.2 * low
    assert client.status()["rss_bytes"] < 160 << 20
    wait_for(lambda: client.status()["backlog"]["readings"] < 3000, 60, "it is empty, but for live readings")
    time.sleep(1)
    store = stand.open_store()
    table = f"{store.database}.telemetry FINAL"
    own = f"stream = {STREAM}"
    count, distinct, last = store.query(f"SELECT count(), uniqExact(seq), max(received_at) FROM {table} WHERE {own}")[0]
    assert (count, distinct) == (READINGS, READINGS)
    early = store.query(f"SELECT count() FROM {table} WHERE NOT {own} AND received_at < {int(last)}")[0][0]
    assert early > 500, "live readings were stored before the backlog was"
    store.close()
    for name, part in stand.parts.items():
        if not name.startswith("server"):
            assert part.stop() == 0
    stand.parts["server"].stop()
