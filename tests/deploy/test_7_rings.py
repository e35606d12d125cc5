"""Which hosts of a fleet an update reaches, and who goes back: on bare containers with a stand-in for the release's programs.

Every host's connection breaks as soon as there is a file of its name in the folder ``cut``, so that hosts can be away from the
start and vanish in the middle.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from lab import ANSIBLE
from support.containers import base_image, docker

EDGES = ["e1", "e2", "e3", "e4", "e5"]
PROGRAM = """#!/bin/sh
# skywave-release and skywave: writes down what it is asked, and cuts the host off or fails where the test wants it.
name=$(cat /name)
echo "$*" >>/state/$name.calls
if [ -e "/state/cut-after-$1-$name" ]; then touch "/state/cut/$name"; fi
case $1 in
    activate) echo "1 -> $2" ;;
    gate) test ! -e "/state/mute-$2" ;;
esac
"""


class Fleet:
    """A server, a canary ``e1`` and four other edges."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.state = folder, folder / "state"
        self.name = f"rings{os.getpid()}"
        image = base_image()
        (self.state / "cut").mkdir(parents=True)
        for part in ("client", "emulator", "server"):
            wheels = folder / "wheels/2"
            wheels.mkdir(parents=True, exist_ok=True)
            (wheels / f"{part}.txt").write_text("skywave==2\n")
        (folder / "program").write_text(PROGRAM)
        self.hosts = ["s1", *EDGES]
        for host in self.hosts:
            docker("run", "--detach", "--name", self.container(host), "--network", "none", "--volume", f"{self.state}:/state",
                   "--volume", f"{folder}/program:/program:ro", image, "sleep", "infinity")  # fmt: skip
            script = (
                f"echo {host} >/name; mkdir -p /opt/skywave/bin /opt/skywave/current/bin /opt/skywave/releases/2;"
                " for program in /opt/skywave/bin/skywave-release /opt/skywave/current/bin/skywave; do"
                " cp /program $program; chmod +x $program; done; echo skywave==2 >/opt/skywave/releases/2/installed.txt"
            )
            docker("exec", self.container(host), "sh", "-c", script)

    def container(self, host: str) -> str:
        return f"{self.name}-{host}"

    def reached(self, host: str) -> dict[str, object]:
        """How Ansible reaches a host until it is cut; by its own name, because it may be asked on another's behalf."""
        cut = f"('{self.state}/cut/{host}') is file"
        return {
            "ansible_connection": f"{{{{ 'ssh' if {cut} else 'community.docker.docker' }}}}",
            "ansible_host": f"{{{{ '127.0.0.1' if {cut} else '{self.container(host)}' }}}}",
            "ansible_port": 9,
            "ansible_python_interpreter": "/usr/bin/python3",
            "fleet_name": "rings",
        }

    def inventory(self) -> Path:
        edges = {
            host: {"client_id": int(host[1:]), "client_labels": {"ring": "canary"} if host == "e1" else {}}
            for host in EDGES
        }
        groups = {"servers": {"s1": {}}, "edges": edges}
        inventory = {
            name: {"hosts": {h: self.reached(h) | more for h, more in hosts.items()}} for name, hosts in groups.items()
        }
        path = self.folder / "hosts.yml"
        path.write_text(yaml.safe_dump(inventory))
        return path

    def update(self, *, away=(), mute=(), cut_after=(), **more: object) -> tuple[int, str]:
        """Runs update.yml: its exit code and output."""
        for file in [*self.state.glob("*.calls"), *self.state.glob("cut/*"), *self.state.glob("*-*")]:
            file.unlink()
        names = [f"cut/{host}" for host in away] + [f"mute-{host[1:]}" for host in mute]
        for name in names + [f"cut-after-{step}-{host}" for step, host in cut_after]:
            (self.state / name).touch()
        variables = {"skywave_version": "2", "common_wheelhouse": str(self.folder / "wheels"), **more}
        arguments = ["-i", str(self.inventory()), str(ANSIBLE / "playbooks/update.yml"), "-e", json.dumps(variables)]
        result = subprocess.run(
            ["ansible-playbook", *arguments],
            cwd=ANSIBLE, capture_output=True, text=True, check=False,
            env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "ANSIBLE_NOCOLOR": "1",
                 "ANSIBLE_CONFIG": str(ANSIBLE / "ansible.cfg")},
        )  # fmt: skip
        return result.returncode, " ".join((result.stdout + result.stderr).split())

    def ended(self) -> dict[str, str]:
        """What each host was told last: activate, confirm or rollback; nothing if it was never asked."""
        ends = {}
        for host in self.hosts:
            calls = self.state / f"{host}.calls"
            asked = [line.split()[0] for line in calls.read_text().splitlines()] if calls.exists() else []
            ends[host] = next((call for call in reversed(asked) if call in ("activate", "confirm", "rollback")), "")
        return ends


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    made = Fleet(tmp_path_factory.mktemp("rings"))
    try:
        yield made
    finally:
        docker("rm", "--force", *(made.container(host) for host in made.hosts), check=False)


def test_a_host_that_is_away_is_left_out_and_named_and_the_others_are_updated(fleet):
    code, output = fleet.update(away=["e4"])
    assert code == 0, output[-3000:]
    assert "Not there, and left out: e4." in output
    assert fleet.ended() == {
        "s1": "confirm",
        "e1": "confirm",
        "e2": "confirm",
        "e3": "confirm",
        "e4": "",
        "e5": "confirm",
    }


def test_within_the_tolerated_share_a_host_goes_back_alone_and_the_others_go_on(fleet):
    code, output = fleet.update(mute=["e4"], update_tolerated=34)
    assert code != 0 and "e4 did not take 2" in output
    assert fleet.ended() == {host: "rollback" if host == "e4" else "confirm" for host in fleet.hosts}


def test_beyond_the_tolerated_share_the_ring_goes_back_and_nothing_else_is_updated(fleet):
    code, output = fleet.update(mute=["e1"])
    assert code != 0 and "2 does not deliver on e1; the ring went back" in output
    assert fleet.ended() == {"s1": "confirm", "e1": "rollback"} | dict.fromkeys(EDGES[1:], "")


def test_a_ring_whose_hosts_vanish_in_the_middle_goes_back_with_those_that_are_left(fleet):
    code, output = fleet.update(
        cut_after=[("activate", "e3"), ("activate", "e4")], mute=["e3", "e4"], update_tolerated=34
    )
    assert code != 0 and "does not deliver on e3, e4; the ring went back" in output
    ended = fleet.ended()
    assert (ended["e2"], ended["e5"]) == ("confirm", "rollback")
    assert (ended["e3"], ended["e4"]) == ("activate", "activate"), "those decide by themselves"


def test_a_server_that_vanishes_before_it_says_whether_a_ring_delivers_leaves_nobody_behind(fleet):
    code, _ = fleet.update(cut_after=[("confirm", "s1")])
    assert code != 0
    assert fleet.ended() == {"s1": "confirm", "e1": "rollback"} | dict.fromkeys(EDGES[1:], "")


def test_without_a_canary_at_hand_nothing_is_updated(fleet):
    code, output = fleet.update(away=["e1"])
    assert code != 0 and "No canary can be reached (e1)" in output
    assert not any(fleet.ended().values())
