"""docker-compose.yml as it is, run for real; what its sensors noted down is compared with what is stored.

Grafana alone is left out: it is in no package. The other images are made of Debian's packages (see images/Dockerfile).
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest
from support.containers import base_image, docker
from support.hadoop import jars
from support.parts import wait_for

from skywave.emulator.ledger import read_ledger
from skywave.emulator.signals import KINDS

ROOT = Path(__file__).parents[2]
IMAGES = Path(__file__).parent / "images"
STAGES = ("debian", "mosquitto", "postgres", "clickhouse", "hadoop")
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "tests/constraints.txt", "skywave", "archive", "systemd")
CENTRE = ("mosquitto", "clickhouse", "server", "namenode", "datanode1", "datanode2", "archive")
PARTS = (*KINDS, "postgres", "client", *CENTRE)
RATE = 300
CLIENT_KILLS = 2
AUDIT = ("skywave", "audit", "--config", "/etc/skywave/server.toml", "--json")
STATUS = ("skywave", "status", "--config", "/etc/skywave/client.toml", "--json")


def archive(command: str, *options: str) -> tuple[str, ...]:
    return ("skywave-archive", command, "--config", "/etc/skywave/archive.toml", "--json", *options)


def content_hash(files: Iterable[Path], *more: str) -> str:
    digest = hashlib.sha256("\n".join(more).encode())
    for file in sorted(files):
        digest.update(f"{file.relative_to(ROOT)}\0{hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()[:12]


def images(folder: Path) -> dict[str, str]:
    """The images that stand for the official ones, built if their content is new: variables for docker-compose.yml."""
    base = base_image()
    tag = content_hash(IMAGES.iterdir(), base, *(jar.name for jar in jars().glob("*.jar")))
    names = {stage: f"skywave-compose-{stage}:{tag}" for stage in STAGES}
    if not all(docker("images", "--quiet", name).strip() for name in names.values()):
        context = folder / "context"
        shutil.copytree(IMAGES, context)
        shutil.copytree(jars(), context / "jars", ignore=shutil.ignore_patterns(".*"))
        for stage, name in names.items():
            docker("build", "--build-arg", f"BASE={base}", "--target", stage, "--tag", name, str(context))
    return {
        "PYTHON_IMAGE": names["debian"], "MOSQUITTO_IMAGE": names["mosquitto"], "POSTGRES_IMAGE": names["postgres"],
        "CLICKHOUSE_IMAGE": names["clickhouse"], "HADOOP_IMAGE": names["hadoop"],
        "GRAFANA_IMAGE": names["mosquitto"],  # to be created, never to be started
    }  # fmt: skip


class Compose:
    """One stand with names of its own; ``remove`` leaves nothing of it behind but images."""

    def __init__(self, folder: Path) -> None:
        self.project = f"skywavetest{secrets.token_hex(4)}"
        self.secrets = folder / "secrets"
        self.nothing = folder / "empty.env"
        self.nothing.write_text("")
        subprocess.run([ROOT / "ansible/compose/make-secrets", self.secrets], check=True, capture_output=True)
        found = images(folder)
        sources = [file for name in SOURCES for file in (ROOT / name, *(ROOT / name).rglob("*")) if file.is_file()]
        sources = [file for file in sources if "__pycache__" not in file.parts]
        dockerfile = ROOT / "ansible/compose/skywave/Dockerfile"
        self.environment = os.environ | found | {
            "SKYWAVE_IMAGE": f"skywave-compose:{content_hash([*sources, dockerfile], found['PYTHON_IMAGE'])}",
            "SKYWAVE_SECRETS": str(self.secrets), "SENSOR_RATE": str(RATE), "SENSOR_SIGNAL": "counter",
        }  # fmt: skip
        if not docker("images", "--quiet", self.environment["SKYWAVE_IMAGE"]).strip():
            self("build", "client")

    def __call__(self, *arguments: str, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
        """Runs docker-compose, never with the .env of whoever runs this."""
        result = subprocess.run(
            ["/usr/bin/docker-compose", "--env-file", str(self.nothing), "-p", self.project, *arguments],
            cwd=ROOT, env=self.environment | environment, capture_output=True, text=True, check=False, timeout=400,
        )  # fmt: skip
        assert not check or result.returncode == 0, f"{arguments}: {result.stdout[-2000:]}\n{result.stderr[-4000:]}"
        return result

    def up(self, *parts: str) -> None:
        self("up", "-d", *parts)

    def id(self, part: str) -> str:
        labels = {"project": self.project, "service": part}
        filters = [f"--filter=label=com.docker.compose.{name}={value}" for name, value in labels.items()]
        return docker("ps", "--all", "--quiet", *filters).strip()

    def state(self, part: str, what: str) -> str:
        return docker("inspect", "--format", f"{{{{{what}}}}}", self.id(part)).strip()

    def run(self, part: str, *command: str, check: bool = True) -> str:
        """The output of a command in a part's container."""
        return docker("exec", self.id(part), *command, check=check)

    def json(self, part: str, *command: str) -> dict:
        """The document that a command prints; {} if it prints none."""
        output = self.run(part, *command, check=False)
        return json.loads(output) if output.startswith("{") else {}

    def query(self, sql: str) -> list[list[str]]:
        password = (self.secrets / "clickhouse-reader").read_text()
        output = self.run(
            "clickhouse", "clickhouse-client", "--user=skywave_reader", f"--password={password}", "-q", sql
        )
        return [line.split("\t") for line in output.splitlines()]

    def crash(self, part: str) -> None:
        """SIGKILL from outside of docker, as when a process dies: the restart policy has to bring it back."""
        before = int(self.state(part, ".RestartCount"))
        os.kill(int(self.state(part, ".State.Pid")), signal.SIGKILL)
        wait_for(lambda: int(self.state(part, ".RestartCount")) > before, 30, f"{part} is started again", 0.5)

    def sent(self, folder: Path) -> dict[str, dict[int, list[float]]]:
        """What the sensors noted down, by kind and connection."""
        docker("cp", f"{self.id('height')}:/ledgers/.", str(folder))
        return {kind: read_ledger(folder / kind) for kind in KINDS}

    def acknowledged(self) -> int:
        return self.json("client", *STATUS).get("acked_readings", 0)

    def settled(self) -> bool:
        """True when the client has nothing left that the server has not committed."""
        status = self.json("client", *STATUS)
        if not status or any(sensor["connected"] for sensor in status["sensors"].values()):
            return False
        read = sum(sensor["readings"] for sensor in status["sensors"].values())
        return read == status["readings"] and not status["backlog"]["readings"] and not status["in_flight"]

    def remove(self) -> None:
        self("down", "--volumes", "--remove-orphans", "--timeout", "2", check=False)


@pytest.fixture(scope="module")
def compose(tmp_path_factory, request):
    packages = ("docker.io", "docker-compose", "debootstrap", "maven")
    subprocess.run([ROOT / "tests/system-packages.sh", *packages], check=True)
    failed = request.session.testsfailed
    stand = Compose(tmp_path_factory.mktemp("compose"))
    try:
        stand.up(*PARTS)
        yield stand
    finally:
        if request.session.testsfailed > failed or not stand.id("archive"):
            print(
                stand("ps", check=False).stdout, stand("logs", "--no-color", "--tail=30", check=False).stdout[-20_000:]
            )
        stand.remove()


def test_without_secrets_nothing_is_started_and_it_says_what_to_do(compose):
    result = compose("config", check=False, SKYWAVE_SECRETS="")
    assert result.returncode != 0
    assert "run ansible/compose/make-secrets" in result.stderr


def test_only_grafana_has_a_port_and_no_secret_stands_in_an_environment_or_command_line(compose):
    compose("up", "--no-start", "grafana")
    passwords = [file.read_text().strip() for file in compose.secrets.iterdir()]
    assert len(passwords) == 9
    for part in (*PARTS, "archive-root", "grafana"):
        container = docker("inspect", compose.id(part))
        assert not [password for password in passwords if password in container], part
        bindings = json.loads(container)[0]["HostConfig"]["PortBindings"]
        ports = [binding for several in (bindings or {}).values() for binding in several]
        assert [port["HostIp"] for port in ports] == (["127.0.0.1"] if part == "grafana" else []), part


def test_secrets_are_made_once(compose):
    before = {file.name: file.read_text() for file in compose.secrets.iterdir() if "passwords" not in file.name}
    subprocess.run([ROOT / "ansible/compose/make-secrets", compose.secrets], check=True, capture_output=True)
    assert before == {name: (compose.secrets / name).read_text() for name in before}
    assert compose.secrets.stat().st_mode & 0o077 == 0


def test_networks_keep_apart_what_knows_no_password(compose):
    """A stranger at the broker, and the client at ClickHouse or HDFS, gets nowhere."""
    python = ("/opt/skywave/bin/python3", "-c")
    reach = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 2)"
    for part, port in (("clickhouse", "9000"), ("namenode", "9870"), ("datanode1", "9864")):
        networks = json.loads(docker("inspect", "--format", "{{json .NetworkSettings.Networks}}", compose.id(part)))
        for address in (network["IPAddress"] for network in networks.values()):
            compose.run("archive", *python, reach, address, port)
            with pytest.raises(RuntimeError, match=r"timed out|unreachable"):
                compose.run("client", *python, reach, address, port)
    connect = "s.sendall(bytes.fromhex('100d00044d51545404020000000178')); print(s.recv(4).hex())"
    stranger = f"import socket; s = socket.create_connection(('mosquitto', 1883), 5); {connect}"
    assert compose.run("client", *python, stranger).strip() == "20020005", "not refused as not authorised"
    with pytest.raises(RuntimeError, match="Unknown user default"):
        compose.run("clickhouse", "clickhouse-client", "-q", "SELECT 1")


def test_readings_flow_and_every_part_is_healthy(compose):
    wait_for(lambda: compose.json("server", *AUDIT).get("stored", 0) > 3 * RATE, 60, "readings are stored", 1)
    for part in PARTS:
        if part != "archive":
            wait_for(lambda p=part: compose.state(p, ".State.Health.Status") == "healthy", 60, f"{part} is healthy", 1)
    assert compose.json("server", *AUDIT)["clean"]


def test_who_reads_for_grafana_sees_all_that_the_dashboard_asks_and_changes_nothing(compose):
    for table in ("telemetry.telemetry", "telemetry.streams", "system.parts"):
        assert int(compose.query(f"SELECT count() FROM {table}")[0][0]) > 0, table
    for statement in ("DROP TABLE telemetry.telemetry", "INSERT INTO telemetry.meta VALUES ('a', 'b', 1)"):
        with pytest.raises(RuntimeError, match="readonly"):
            compose.query(statement)


def test_nothing_is_lost_or_doubled_when_parts_are_killed(compose, tmp_path):
    """Only the client's death may take something: a tail of what it had not committed yet, of each connection it had."""
    for part in ("mosquitto", "clickhouse"):
        docker("kill", "--signal", "KILL", compose.id(part))
        time.sleep(6)
        status = compose.json("client", *STATUS)
        assert status["backlog"]["readings"] > 3 * RATE, f"{part} is away and the client keeps nothing: {status}"
        docker("start", compose.id(part))
        goes_on(compose, part)
    for part in ("server", "postgres", "client"):
        compose.crash(part)
        goes_on(compose, part)
    everything = [compose.id(part) for part in ("mosquitto", "clickhouse", "server", "postgres", "client")]
    began = time.monotonic()
    docker("kill", "--signal", "KILL", *everything)  # one after the other, so a client may be left without its outbox
    dying = time.monotonic() - began
    docker("start", *reversed(everything))  # in an order in which none finds what it needs
    goes_on(compose, "everything but the sensors")
    compose("stop", *KINDS)
    wait_for(compose.settled, 60, lambda: f"drained: {compose.json('client', *STATUS)}", 1)

    sent = compose.sent(tmp_path)
    rows = compose.query("SELECT data_key, data_value FROM telemetry.telemetry FINAL")
    stored = Counter((kind, float(value)) for kind, value in rows)
    noted = {(kind, value) for kind in KINDS for values in sent[kind].values() for value in values}
    tails = 0
    for kind in KINDS:
        for values in sent[kind].values():
            lost = [at for at, value in enumerate(values) if not stored[kind, value]]
            tails += bool(lost)
            assert lost == list(range(len(values) - len(lost), len(values))), f"{kind}: {len(lost)} lost, not one tail"
            assert len(lost) < RATE * (2 + dying), f"{kind}: a tail of {len(lost)}, the parts died in {dying:.1f} s"
    assert tails <= CLIENT_KILLS * len(KINDS), f"{tails} connections lost a tail"
    assert not [key for key, count in stored.items() if count > 1], "doubled"
    assert not stored.keys() - noted, "stored what no sensor sent"

    def reported() -> dict:
        """The account once the client's next status says all that it produced."""
        found = compose.json("server", *AUDIT)
        return found if not found["ahead"] and not found["pending"] else {}

    account = wait_for(reported, 30, lambda: f"account: {compose.json('server', *AUDIT)}", 1)
    assert account["clean"], account
    assert account["produced"] == account["stored"] == len(stored), account
    assert not (account["rejected"] or account["dropped"]), account
    assert len({stream["stream"] for stream in account["streams"]}) == 1 + CLIENT_KILLS, (
        "one stream for each start of the client"
    )


def goes_on(compose: Compose, part: str) -> None:
    """Until new readings are acknowledged and the backlog is gone."""
    before = compose.acknowledged()

    def caught_up() -> bool:
        status = compose.json("client", *STATUS)
        return bool(status) and status["acked_readings"] > before and status["backlog"]["readings"] < RATE

    wait_for(caught_up, 90, lambda: f"after the death of {part}: {compose.json('client', *STATUS)}", 0.5)


def test_the_day_goes_to_hdfs_and_is_all_there_though_a_datanode_dies(compose):
    stored = int(compose.query("SELECT count() FROM telemetry.telemetry FINAL")[0][0])
    for options in ((), ("--open-day",)):  # both, should midnight have been among this
        exported = compose.json("archive", *archive("export", *options))
        assert exported["exit_code"] == 0, exported
    docker("kill", "--signal", "KILL", compose.id("datanode1"))
    wait_for(lambda: live_datanodes(compose) == 1, 60, "the NameNode gives up on a DataNode", 1)
    verified = compose.json("archive", *archive("verify", "--level", "rows"))
    assert (verified["exit_code"], verified["findings"]) == (0, []), verified
    days = compose.json("archive", *archive("list", "--no-store"))["days"]
    assert sum(day["rows"] for day in days if day["table"] == "telemetry") == stored


def live_datanodes(compose: Compose) -> int:
    bean = "http://namenode:9870/jmx?qry=Hadoop:service=NameNode,name=FSNamesystemState"
    script = "import sys, urllib.request as u; print(u.urlopen(sys.argv[1], timeout=5).read().decode())"
    return json.loads(compose.run("archive", "/opt/skywave/bin/python3", "-c", script, bean))["beans"][0][
        "NumLiveDataNodes"
    ]


def test_volumes_hold_all_state(compose):
    before = compose.json("server", *AUDIT)
    compose("down", "--timeout", "5")
    compose.up(*CENTRE)
    after = compose.json("server", *AUDIT)
    assert (after["clean"], after["stored"], after["produced"]) == (True, before["stored"], before["produced"])
    verified = compose.json("archive", *archive("verify", "--level", "checksum"))
    assert (verified["exit_code"], verified["good"] > 0) == (0, True), verified
