"""Faults on the fleet: the audit is clean at the end, and what the senders sent is there."""

import json
import time

import pytest
from lab import EDGES, docker, wait_for


def wrong(lab, host: str) -> set[str]:
    """The doctor's checks that are not well."""
    found = lab.run(host, "/opt/skywave/current/bin/skywave doctor --json", check=False)
    return {finding["check"] for finding in json.loads(found) if not finding["ok"]}


def back(lab, host: str) -> None:
    wait_for(lambda: lab.status(host).get("connected") and lab.status(host).get("accepting"), 90, f"{host} delivers")


def test_an_edge_that_is_switched_off_in_order_and_on_again_loses_nothing(converged):
    converged.run("edge2", "systemctl poweroff", check=False)
    wait_for(lambda: "false" in docker("inspect", "-f", "{{.State.Running}}", converged.host("edge2")), 60, "it is off")
    docker("start", converged.host("edge2"))
    back(converged, "edge2")
    converged.assert_nothing_lost()


def test_an_edge_without_network_keeps_its_readings_and_delivers_them_later(converged):
    network, host = converged.name, converged.host("edge1")
    docker("network", "disconnect", network, host)
    try:
        wait_for(lambda: converged.status("edge1")["backlog"]["readings"] > 3000, 60, "readings pile up")
        wait_for(lambda: {"broker", "server"} <= wrong(converged, "edge1"), 60, "the doctor says what is wrong")
    finally:
        docker("network", "connect", "--ip", converged.address("edge1"), network, host)
    back(converged, "edge1")
    converged.assert_nothing_lost()


@pytest.mark.parametrize(
    ("host", "unit"),
    [
        ("core1", "mosquitto"),
        ("core1", "clickhouse-server"),
        ("core1", "skywave-server"),
        ("edge1", "postgresql@15-main"),
    ],
)
def test_a_killed_part_comes_back_and_nothing_is_lost(converged, host, unit):
    converged.run(host, f"systemctl kill -s KILL {unit}")
    time.sleep(5)
    wait_for(
        lambda: converged.run(host, f"systemctl is-active {unit}", check=False).strip() == "active",
        60,
        f"{unit} is back",
    )
    for edge in EDGES:
        back(converged, edge)
    converged.assert_nothing_lost()


def test_a_killed_client_comes_back_and_the_audit_is_clean(converged):
    converged.run("edge1", "systemctl kill -s KILL skywave-client")
    time.sleep(3)
    back(converged, "edge1")
    wait_for(lambda: converged.audit().get("clean"), 60, "the audit is clean")
