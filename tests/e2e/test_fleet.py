"""A fleet in one process: hundreds of connections with outages and floods, and its ledger against the store."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from contextlib import closing

from support.parts import wait_for
from support.stand import skywave

from skywave.store.audit import audit


def test_hundreds_of_clients_with_outages_lose_and_double_nothing(stand):
    server = stand.add_server()
    wait_for(lambda: server.status().get("accepting"), 20, "server accepts")
    ledger = stand.folder / "ledger"
    command = [
        sys.executable, "-m", "skywave", "fleet", "--broker", f"127.0.0.1:{stand.broker.port}", "--clients", "300",
        "--rate", "50", "--size", "20", "--seconds", "12", "--outages", "0.2", "--outage-seconds", "2", "--backlog", "5",
        "--ledger", str(ledger), "--json",
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as fleet:
        try:
            wait_for(lambda: server.status()["readings"] > 50_000, 30, "it delivers")
            stand.broker.kill()
            time.sleep(1)
            stand.broker.start()
            out, _ = fleet.communicate(timeout=300)
        finally:
            fleet.kill()
    assert fleet.returncode == 0
    result = json.loads(out)
    assert result["acked"] == result["readings"] > 300 * 50 * 10
    # Each outage is a reconnect, and so is each client that the broker's death has found connected.
    assert result["outages"] > 100 and result["reconnects"] > result["outages"] + 20 and result["resent"]
    assert result["first_ack_max_s"] < 60
    wait_for(
        lambda: [client["online"] for client in server.status()["clients"].values()] == [False] * 300,
        10,
        "goodbyes arrive",
    )
    server.stop()
    config = str(stand.folder / "server.toml")
    found = json.loads(skywave("fleet-check", "--config", config, str(ledger), "--json").stdout)
    assert found == {"stored": result["acked"], "wrong": {}}
    with closing(stand.open_store()) as store:
        account = audit(store)
        assert account.clean and account.total("stored") == result["acked"] and account.total("pending") == 0
        store.query(
            f"INSERT INTO {store.database}.telemetry (client_id, stream, seq, created_at, data_key, data_value,"
            " received_at, day) SELECT client_id, stream, seq + 1000000, created_at, data_key, data_value, received_at, day"
            f" FROM {store.database}.telemetry WHERE client_id = 7 AND seq = 1"
        )
    assert "client 7" in skywave("fleet-check", "--config", config, str(ledger), check=1).stdout
