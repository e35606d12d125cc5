"""A process that makes no progress though it should says so: in its status, its metrics and its log."""

from __future__ import annotations

import signal
import urllib.error
import urllib.request

import pytest
from support.parts import Mosquitto, wait_for
from support.stand import Skywave, Stand, skywave


def stalled(part: Skywave, cause: str, seconds: float = 25) -> str:
    """Waits until the part names the cause; returns why."""
    held = wait_for(
        lambda: part.status().get("stalls", {}).get(cause),
        seconds,
        lambda: f"{part.name} stalls by {cause}: {part.status()}",
    )
    with urllib.request.urlopen(f"http://127.0.0.1:{part.http}/metrics", timeout=5) as answer:
        metric = f"skywave_{part.status()['kind']}_stalled_seconds"
        lines = [line for line in answer.read().decode().splitlines() if metric in line and f'cause="{cause}"' in line]
    assert lines and float(lines[0].split()[-1]) >= 0
    assert f"no progress: {held['why']}" in part.log()
    panel = skywave("status", "--url", f"http://127.0.0.1:{part.http}", check=None).stdout
    assert held["why"] in " ".join(panel.replace("│", " ").split())  # as it is, over as many lines as it takes
    return held["why"]


def test_a_broker_a_server_and_room_that_are_missing_are_told(stand):
    server = stand.add_server()
    client = stand.add_client(1, stand.sqlite(1) + "\nmax_bytes = 65536", 3000)
    wait_for(lambda: client.status().get("acked_readings", 0) > 0, 20, "it delivers")
    assert not client.status()["stalls"] and not server.status()["stalls"]
    stand.broker.kill()
    why = stalled(client, "outbox full")
    assert "the sensors wait" in why and "outbox.max_bytes 64.0 KiB" in why
    assert "no broker" in stalled(client, "broker")
    assert "no broker" in stalled(server, "broker")
    server.stop()
    stand.broker.start()
    assert "no server accepts" in stalled(client, "server")
    server.start()
    wait_for(lambda: not client.status()["stalls"] and not server.status()["stalls"], 20, "all goes on")
    assert "goes on after" in client.log()
    stand.finish()
    assert stand.verify() > 1000


def test_a_store_that_does_not_answer_is_told_on_both_sides(broker, own_clickhouse, database):
    stand = Stand(broker, f"port = {own_clickhouse.port}\ntimeout = 90.0\n", database)
    try:
        server = stand.add_server()
        client = stand.add_client(1, stand.sqlite(1))
        wait_for(lambda: client.status().get("acked_readings", 0) > 0, 20, "it delivers")
        own_clickhouse.signal(signal.SIGSTOP)
        assert "does not return" in stalled(server, "insert")
        assert "nothing that was sent is acknowledged" in stalled(client, "acknowledgement", 60)
        own_clickhouse.signal(signal.SIGCONT)
        stand.finish()
        assert stand.verify() > 1000
    finally:
        own_clickhouse.signal(signal.SIGCONT)
        stand.remove()


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_what_looks_at_the_figures_can_change_nothing(stand, method):
    client = stand.add_client(1, stand.sqlite(1))
    for path in ("/status", "/metrics", "/"):
        request = urllib.request.Request(f"http://127.0.0.1:{client.http}{path}", b"{}", method=method)
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=5)
        with refused.value as answer:
            assert answer.code in (404, 405, 501)


def test_what_the_broker_refuses_is_named_and_nobody_is_content(clickhouse, database):
    broker = Mosquitto()
    acl = broker.folder / "acl"
    acl.write_text(
        "topic readwrite /telemetry/server/#\ntopic read /telemetry/client/#\ntopic write /telemetry/client/+/status\n"
    )
    with (broker.folder / "mosquitto.conf").open("a") as settings:
        settings.write(f"acl_file {acl}\n")
    acl.chmod(0o644)
    broker.folder.chmod(0o755)
    stand = Stand(broker, f"port = {clickhouse.port}\n", database)
    try:
        broker.start()
        stand.add_server()
        client = stand.add_client(1, stand.sqlite(1))
        wait_for(lambda: "Not authorized" in client.status().get("broker_error", ""), 30, lambda: str(client.status()))
        path = str(stand.folder / "client-1.toml")
        for command in (("status", "--config", path), ("doctor", "--config", path)):
            assert "Not authorized (135)" in skywave(*command, check=1).stdout
    finally:
        stand.remove()
        broker.remove()
