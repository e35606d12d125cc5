"""A wall clock that was never set."""

from __future__ import annotations

import time

from support.parts import wait_for

from faults.world import Process


def test_a_server_in_1970_takes_nothing_and_rejects_nothing(stand):
    server = stand.add_server(made=Process, clock=True)
    client = stand.add_client(1, stand.sqlite(1), 3000)
    wait_for(lambda: client.status().get("acked_readings", 0) > 0, 20, "it delivers")
    server.set_clock(f"-{int(time.time())}s")
    wait_for(lambda: "clock" in server.status().get("stalls", {}), 20, "it notices")
    wait_for(lambda: not client.status()["accepting"], 20, "it says so")
    client.kill()
    client.start()  # a new stream, whose day only that server could tell
    server.kill()
    server.start()
    wait_for(lambda: client.status().get("backlog", {}).get("readings", 0) > 3000, 20, "readings wait")
    wait_for(lambda: "clock" in server.status().get("stalls", {}), 20, "it knows after its start")
    assert not server.status()["accepting"] and not client.status()["accepting"]
    server.set_clock("+0")
    wait_for(lambda: client.status()["accepting"], 20, "it goes on")
    stand.finish()
    assert server.process.returncode == 0
    assert stand.verify(client_kills=1) > 3000
    store = stand.open_store()
    assert store.query(f"SELECT count() FROM {store.database}.rejected")[0][0] == 0
    store.close()
