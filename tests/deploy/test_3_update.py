"""A release for the fleet, and two that are broken: no reading is lost by any of them."""

import os
import signal
import subprocess
import time

import yaml
from lab import ANSIBLE, wait_for

FIRST, GOOD, MUTE, CUT = "99.0.1", "99.1.0", "99.2.0", "99.3.0"


def running(lab) -> dict[str, str]:
    """The versions that the services themselves tell."""
    kinds = {"edge1": "client", "edge2": "client", "core1": "server"}
    return {host: lab.status(host, kind).get("version") for host, kind in kinds.items()}


def test_a_host_that_is_away_is_left_out_and_named(converged):
    before = running(converged)
    converged.make_release(FIRST)
    nowhere = {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 9}
    away = converged.state / "away.yml"
    away.write_text(yaml.safe_dump({"all": {"hosts": {converged.host("edge2"): nowhere}}}))
    arguments = [*converged.update_arguments(FIRST), "-i", str(away)]
    output = converged.playbook("update.yml", *arguments, name="update.yml, an edge is away")
    assert f"left out: {converged.host('edge2')}." in output
    assert running(converged) == {"edge1": FIRST, "edge2": before["edge2"], "core1": FIRST}
    canary = converged.host("edge1")
    away.write_text(yaml.safe_dump({"all": {"hosts": {canary: nowhere}}}))
    output = converged.playbook("update.yml", *arguments, check=False, name="update.yml, the canary is away")
    assert f"No canary can be reached ({canary})" in output and "Update servers and archives" not in output
    converged.assert_nothing_lost()


def test_an_update_goes_through_the_rings(converged):
    before = running(converged)
    converged.make_release(GOOD)
    converged.run("edge2", "truncate -s 1000 /opt/skywave/wheels/paho*.whl")  # as a power cut may leave it
    output = converged.playbook("update.yml", *converged.update_arguments(GOOD), name="update.yml, a good release")
    assert running(converged) == {"edge1": GOOD, "edge2": GOOD, "core1": GOOD} != before
    assert output.index("Update the canaries") < output.index("Update the others")
    for host in ("edge1", "edge2", "core1"):
        assert converged.release(host)["pending"] is None, "it is confirmed"
        assert converged.release(host)["previous"] == before[host]
    converged.assert_nothing_lost()


def test_a_release_that_starts_but_publishes_nothing_is_caught_at_the_canaries_and_goes_back(converged):
    # Connected, healthy by its own word, and the batches never leave: only the server can tell.
    first = "        client = self._client\n        if client is None or not self.connected:\n"
    converged.make_release(
        MUTE, "skywave/mqtt/link.py", first, f"        if content_type:\n            return lambda: True\n{first}"
    )
    arguments = converged.update_arguments(MUTE, update_within=40)
    output = converged.playbook(
        "update.yml", *arguments, "--limit", "localhost:edges", check=False, name="update.yml, a mute release"
    )
    assert f"{MUTE} does not deliver on {converged.host('edge1')}" in output
    wait_for(lambda: running(converged) == {"edge1": GOOD, "edge2": GOOD, "core1": GOOD}, 30, "the canary is back")
    assert "Update the others" not in output or converged.release("edge2")["current"] == GOOD, (
        "the others were never touched"
    )
    converged.assert_nothing_lost()


def test_an_edge_that_an_update_cut_off_goes_back_by_itself(converged):
    converged.make_release(CUT, "skywave/mqtt/link.py", "broker.host, broker.port, broker.keepalive,",
                           '"192.0.2.1", broker.port, broker.keepalive,')  # fmt: skip
    arguments = converged.update_arguments(CUT, update_within=300, update_confirm_within=25)
    controller = subprocess.Popen(
        converged.command("update.yml", *arguments, "--limit", "localhost:edges"),
        cwd=ANSIBLE, env=converged.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        wait_for(lambda: running(converged)["edge1"] == CUT, 240, "the canary runs it")
    finally:
        os.killpg(controller.pid, signal.SIGKILL)  # the controller cannot reach the edge any more
        controller.wait()
    cut_at = time.monotonic()
    wait_for(lambda: running(converged)["edge1"] == GOOD, 120, "the edge goes back by itself")
    converged.seconds["an edge goes back by itself"] = time.monotonic() - cut_at
    assert "back to" in converged.run("edge1", "journalctl -u skywave-confirm --no-pager")
    assert converged.release("edge1")["pending"] is None
    converged.assert_nothing_lost()


def test_a_rollback_brings_the_release_before_and_three_are_kept(converged):
    converged.playbook("rollback.yml", "--limit", converged.host("edge2"))
    assert running(converged)["edge2"] != GOOD
    converged.playbook("rollback.yml", "--limit", converged.host("edge2"))
    assert running(converged)["edge2"] == GOOD
    assert len(converged.release("edge1")["releases"]) <= 3
    converged.assert_nothing_lost()


def test_services_are_restarted_from_one_place_found_by_their_labels(converged):
    started = converged.status("edge1")["uptime_s"]
    converged.playbook("restart.yml", "--extra-vars", "restart_what=client", "--limit", "edges")
    assert converged.status("edge1")["uptime_s"] < started
    converged.assert_nothing_lost()
