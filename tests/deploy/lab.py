"""The lab's hosts, and how the tests look into them. What was sent is read from the emulators' ledgers, never from tables."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from support.containers import DOCKER, docker, image_with
from support.parts import wait_for as wait_for_often

REPOSITORY = Path(__file__).parents[2]
ANSIBLE = REPOSITORY / "ansible"
PACKAGES = [
    *("python3-venv", "python3-cryptography", "python3-psycopg2", "nftables"),
    *("mosquitto", "postgresql", "clickhouse-server", "zookeeper", "openjdk-17-jre-headless"),
]
EDGES = {"edge1": 1, "edge2": 2}
SENSORS = ("temperature", "pressure", "height")
SOURCES = (
    "pyproject.toml",
    "README.md",
    "LICENSE",
    "CHANGELOG.md",
    "skywave",
    "archive",
    "systemd",
)
QUERY = """
import json, os, sys
os.environ["CREDENTIALS_DIRECTORY"] = "/etc/skywave/credentials"
from skywave import config
from skywave.store.columns import text
from skywave.store.shards import open_shards
shards = open_shards(config.load("/etc/skywave/server.toml", config.Server).store)
rows = [row for shard in shards for row in shard.query(sys.argv[1])]
print(json.dumps([[text(v) if isinstance(v, bytes) else v for v in row] for row in rows], default=str))
"""


wait_for = partial(wait_for_often, pause=0.5)  # each look is a command on a host


class Lab:
    """The hosts of a Molecule scenario, named after this run. ``edges`` are its edge hosts with their clients' numbers."""

    def __init__(self, scenario: str = "default", edges: dict[str, int] = EDGES, subnet: int = 213) -> None:
        run = os.environ.get("SKYWAVE_LAB") or f"lab{os.getpid()}{scenario[0]}"
        self.scenario, self.edges = scenario, edges
        self.without: set[str] = set()
        self.keep = "SKYWAVE_LAB" in os.environ  # a lab that was named is there to be looked at
        self.name = run
        subnet = os.environ.get("SKYWAVE_LAB_SUBNET") or f"10.{subnet}.{os.getpid() % 250}"
        self.state = Path(tempfile.mkdtemp(prefix="skywave-lab-"))
        self.authority = Path.home() / ".skywave" / run
        # Molecule's own folder is one for all labs of a scenario, whichever clone they are of.
        self.made = Path.home() / ".cache/skywave-tests" / f"molecule-{run}-{self.scenario}"
        self.made.mkdir(parents=True, exist_ok=True)
        self.seconds: dict[str, float] = {}
        self.env = {
            **os.environ,
            "MOLECULE_EPHEMERAL_DIRECTORY": str(self.made),
            "SKYWAVE_LAB": run,
            "SKYWAVE_LAB_SUBNET": subnet,
            "SKYWAVE_LAB_IMAGE": image_with(PACKAGES),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "ANSIBLE_CONFIG": str(ANSIBLE / "ansible.cfg"),
            "ANSIBLE_NOCOLOR": "1",
            "NO_COLOR": "1",
        }

    # -- the lab ---------------------------------------------------------------------------------------------------

    def molecule(self, *arguments: str, check: bool = True) -> str:
        started = time.monotonic()
        result = subprocess.run(
            ["molecule", *arguments, "--scenario-name", self.scenario],
            cwd=ANSIBLE,
            env=self.env,
            capture_output=True,
            text=True,
            check=False,
        )
        self.seconds[f"molecule {arguments[0]}"] = time.monotonic() - started
        output = result.stdout + result.stderr
        assert not check or result.returncode == 0, f"molecule {arguments}:\n{output[-6000:]}"
        return output

    def create(self) -> None:
        self.molecule("create")

    def converge(self) -> None:
        """Makes the bare hosts a fleet, once."""
        if "site.yml on bare hosts" not in self.seconds:
            self.playbook("site.yml", "-e", "authority=new", name="site.yml on bare hosts")

    def destroy(self) -> None:
        for step, seconds in self.seconds.items():
            print(f"{step:40} {seconds:6.1f} s")
        if self.keep:
            return
        self.molecule("destroy", check=False)
        shutil.rmtree(self.made, ignore_errors=True)
        shutil.rmtree(self.authority, ignore_errors=True)
        shutil.rmtree(self.state, ignore_errors=True)

    @property
    def inventory(self) -> str:
        """Where Molecule put it."""
        hosts = self.made / "inventory/ansible_inventory.yml"
        return self._smaller(hosts) if self.without else str(hosts.parent)

    def _smaller(self, hosts: Path) -> str:
        """A copy of the inventory that lacks the hosts in ``without``: those that the fleet has not yet."""
        folder = self.state / "inventory"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(hosts.parent, folder)
        inventory = yaml.safe_load(hosts.read_text())
        absent = {self.host(name) for name in self.without}

        def pruned(node: Any) -> Any:
            return (
                {key: pruned(value) for key, value in node.items() if key not in absent}
                if isinstance(node, dict)
                else node
            )

        (folder / hosts.name).write_text(yaml.safe_dump(pruned(inventory)))
        return str(folder)

    def command(self, playbook: str, *arguments: str) -> list[str]:
        return ["ansible-playbook", "-i", self.inventory, str(ANSIBLE / "playbooks" / playbook), *arguments]

    def playbook(
        self, playbook: str, *arguments: str, check: bool = True, name: str = "", home: Path | None = None
    ) -> str:
        """Runs a playbook on the lab, perhaps from another home folder; its output."""
        started = time.monotonic()
        env = {**self.env, "HOME": str(home)} if home else self.env
        result = subprocess.run(
            self.command(playbook, *arguments), cwd=ANSIBLE, env=env, capture_output=True, text=True, check=False
        )
        self.seconds[name or f"{playbook} {' '.join(arguments)}"[:40]] = time.monotonic() - started
        output = result.stdout + result.stderr
        (self.state / f"{len(self.seconds):02}-{Path(playbook).name}.log").write_text(output)
        if check:
            assert result.returncode == 0, f"{playbook}:\n{_without_noise(output)[-6000:]}"
        else:
            assert result.returncode != 0, f"{playbook} was meant to fail:\n{output[-3000:]}"
        return output

    def play(self, play: dict[str, Any], *arguments: str, check: bool = True, name: str = "") -> str:
        """Runs a play that is no part of what is shipped, with the roles that are."""
        file = self.state / "play.yml"
        file.write_text(yaml.safe_dump([{"gather_facts": False, **play}], sort_keys=False))
        return self.playbook(str(file), *arguments, check=check, name=name)

    # -- the hosts -------------------------------------------------------------------------------------------------

    def host(self, host: str) -> str:
        return f"{self.name}-{host}"

    def address(self, host: str) -> str:
        numbers = yaml.safe_load((ANSIBLE / "inventories/lab/group_vars/all.yml").read_text())["lab_hosts"]
        return f"{self.env['SKYWAVE_LAB_SUBNET']}.{numbers[host]['address']}"

    def run(self, host: str, command: str, check: bool = True) -> str:
        """A shell command on a host, as root; its standard output (with the errors, if it may fail)."""
        result = subprocess.run(
            [DOCKER, "exec", self.host(host), "sh", "-c", command], capture_output=True, text=True, check=False
        )
        assert not check or result.returncode == 0, (
            f"{host}: {command}: {result.stdout[-2000:]} {result.stderr[-2000:]}"
        )
        return result.stdout if check else result.stdout + result.stderr

    def python(self, host: str, script: str, *arguments: str) -> str:
        """A Python script on a host, with the packages of its release."""
        command = [DOCKER, "exec", "-i", self.host(host), "/opt/skywave/current/bin/python", "-", *arguments]
        result = subprocess.run(command, input=script, capture_output=True, text=True, check=False, timeout=120)
        assert result.returncode == 0, f"{host}: {result.stderr[-3000:]}"
        return result.stdout

    def status(self, host: str, kind: str = "client") -> dict[str, Any]:
        found = self.run(
            host, f"/opt/skywave/current/bin/skywave status --config /etc/skywave/{kind}.toml --json", check=False
        )
        try:
            return json.loads(found)
        except ValueError:
            return {}

    def release(self, host: str) -> dict[str, Any]:
        return json.loads(self.run(host, "/opt/skywave/bin/skywave-release list"))

    def query(self, sql: str) -> list[list[Any]]:
        """Rows of the final table, asked as the server's own user."""
        return json.loads(self.python("core1", QUERY, sql))

    def audit(self) -> dict[str, Any]:
        return json.loads(self.run("core1", "CREDENTIALS_DIRECTORY=/etc/skywave/credentials /opt/skywave/current/bin/skywave"
                                            " audit --config /etc/skywave/server.toml --json", check=False))  # fmt: skip

    # -- the oracle ------------------------------------------------------------------------------------------------

    def sent(self, host: str, sensor: str) -> Counter[float]:
        """What the sensor's ledger says."""
        lines = self.run(host, f"cat /var/lib/skywave-emulator/{sensor}.ledger").splitlines()
        return Counter(float(line.split()[1]) for line in lines)

    def stored(self, host: str, sensor: str) -> Counter[float]:
        """What ClickHouse has of it, duplicates as it would show them."""
        rows = self.query("SELECT data_value, count() FROM telemetry.telemetry FINAL"
                          f" WHERE client_id = {self.edges[host]} AND data_key = '{sensor}' GROUP BY data_value")  # fmt: skip
        return Counter(dict(rows))

    def stop_sensors(self) -> None:
        for host in self.edges:
            self.run(host, f"systemctl stop {' '.join(f'skywave-emulator@{s}' for s in SENSORS)}")

    def start_sensors(self) -> None:
        for host in self.edges:
            self.run(host, f"systemctl start {' '.join(f'skywave-emulator@{s}' for s in SENSORS)}")

    def assert_nothing_lost(self) -> int:
        """Lets the sensors stop, everything arrive, and compares each ledger with the table; the readings sent."""
        self.stop_sensors()
        try:
            for host in self.edges:
                self._drains(host)
            total = 0
            for host in self.edges:
                for sensor in SENSORS:
                    sent = self.sent(host, sensor)
                    missing, beyond = sent - self.stored(host, sensor), self.stored(host, sensor) - sent
                    assert not missing, (
                        f"{host} {sensor}: {missing.total()} of {sent.total()} lost: {sorted(missing)[:5]}…"
                    )
                    assert not beyond, f"{host} {sensor}: {beyond.total()} doubled: {sorted(beyond)[:5]}…"
                    total += sent.total()
            wait_for(lambda: self.audit().get("clean"), 30, "the audit is clean")
            return total
        finally:
            self.start_sensors()

    @contextmanager
    def nothing_is_lost_meanwhile(self) -> Iterator[None]:
        """Compares what the sensors send from here to the end of the block with what is stored more by then. It needs no
        ledger of the time before: a client that was killed may have lost a tail then."""
        self.stop_sensors()
        for host in self.edges:
            self.run(host, "rm -f /var/lib/skywave-emulator/*.ledger")
            self._drains(host)
        before = self._all_stored()
        self.start_sensors()
        yield
        self.stop_sensors()
        for host in self.edges:
            self._drains(host)
        for (host, sensor), stored in self._all_stored().items():
            sent, more = self.sent(host, sensor), stored - before[host, sensor]
            assert sent.total() > 1000
            assert more == sent, f"{host} {sensor}: {(sent - more).total()} lost, {(more - sent).total()} too many"
        self.start_sensors()
        assert self.audit()["clean"]

    def _all_stored(self) -> dict[tuple[str, str], Counter[float]]:
        return {(host, sensor): self.stored(host, sensor) for host in self.edges for sensor in SENSORS}

    def _drains(self, host: str) -> None:
        wait_for(lambda: self.status(host).get("backlog", {}).get("readings") == 0, 60, f"{host} drains")

    # -- releases --------------------------------------------------------------------------------------------------

    def make_release(self, version: str, file: str = "", old: str = "", new: str = "") -> None:
        """A release made of this tree, with one change perhaps, in a wheelhouse of the lab's own."""
        source = self.state / f"source-{version}"
        for name in SOURCES:
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            copy = shutil.copytree if (REPOSITORY / name).is_dir() else shutil.copyfile
            copy(REPOSITORY / name, source / name)
        start = source / "skywave/__init__.py"
        start.write_text(re.sub(r'__version__ = ".+"', f'__version__ = "{version}"', start.read_text()))
        if file:
            text = (source / file).read_text()
            assert text.count(old) == 1, f"{file} has changed: mend this test"
            (source / file).write_text(text.replace(old, new))
        subprocess.run(
            [sys.executable, str(ANSIBLE / "scripts/wheelhouse.py"), f"--source={source}", f"--output={self.wheelhouse}",
             ], check=True, stdout=subprocess.DEVNULL, env=self.env,
        )  # fmt: skip

    @property
    def wheelhouse(self) -> Path:
        return self.state / "wheelhouse"

    def update_arguments(self, version: str, **more: object) -> list[str]:
        variables = {"skywave_version": version, "common_wheelhouse": str(self.wheelhouse), **more}
        return ["--extra-vars", json.dumps(variables)]


def _without_noise(output: str) -> str:
    quiet = ("ok:", "skipping:", "TASK", "changed:", "included:", "RUNNING", "PLAY")
    return "\n".join(line for line in output.splitlines() if line and not line.startswith(quiet) and " ***" not in line)


__all__ = ["ANSIBLE", "EDGES", "REPOSITORY", "SENSORS", "Lab", "docker", "wait_for"]
