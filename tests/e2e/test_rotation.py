"""New certificates on a host with a real broker and a real client: what the broker refuses is never in use for long."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from pathlib import Path

import pytest
from support.authority import Authority
from support.manager import ServiceManager
from support.parts import Mosquitto, free_port, running, wait_for
from support.programs import program

from skywave import config
from skywave.care import certificates
from skywave.care.certificates import take
from skywave.errors import CertificateError, NotRunning
from skywave.process.asking import fetch_status

UNIT = "skywave-client.service"


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path, "fleet")


@pytest.fixture
def broker(authority, tmp_path):
    """One that knows its clients by the common name in their certificates, and lets nobody in without one."""
    pem = tmp_path / "broker.pem"
    pem.write_bytes(authority.issue("broker"))
    yield from running(Mosquitto(
        f"cafile {authority.file}\ncertfile {pem}\nkeyfile {pem}\nrequire_certificate true\n"
        "use_identity_as_username true\nuser root\nlog_type all\n"
    ))  # fmt: skip


@pytest.fixture
def folder(authority, tmp_path, monkeypatch):
    """The host's credentials, with which its client works."""
    made = tmp_path / "credentials"
    (made / "next").mkdir(parents=True)
    shutil.copy(authority.file, made / "ca.crt")
    (made / "client.pem").write_bytes(authority.issue("edge-old"))
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(made))
    return made


class Unit:
    """The client's unit, as systemd would run it: each start has its own copy of the credentials."""

    def __init__(self, manager: ServiceManager, folder: Path, path: Path) -> None:
        self._manager, self._folder, self._path = manager, folder, path
        self._process: subprocess.Popen | None = None

    def restart(self) -> None:
        if self._process:
            self._process.terminate()
            self._process.wait(60)
        copy = self._path.parent / "credentials-of-the-unit"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(self._folder, copy, ignore=shutil.ignore_patterns("next", "previous", "trial"))
        self._process = self._manager.start(
            "-m", "skywave", "client", "--config", str(self._path), CREDENTIALS_DIRECTORY=str(copy)
        )
        self._manager.wait_for("READY=1")

    def __call__(self, arguments: list[str]) -> tuple[int, str]:
        """What systemctl answers."""
        command, *rest = arguments
        assert rest[-1] == UNIT
        if command in ("restart", "try-restart"):
            self.restart()
        if command == "is-active":
            return 0 if self._process and self._process.poll() is None else 3, ""
        said = [state for state in self._manager.states if "STATUS=" in state]
        return 0, said[-1].partition("STATUS=")[2] if said else ""


@pytest.fixture
def unit(broker, folder, tmp_path):
    """Starts the unit with figures at a port (0: none), which then has its session; its settings."""
    manager = ServiceManager(tmp_path)
    path = tmp_path / "client.toml"
    unit = Unit(manager, folder, path)

    def made(http: int) -> config.Client:
        path.write_text(
            f"client_id = 1\n[sensors.t]\nport = 1\n[mqtt]\nport = {broker.port}\nca_file = 'ca.crt'\n"
            f"cert_file = 'client.pem'\n[http]\nport = {http}\n[outbox]\npath = '{tmp_path}/outbox.sqlite'\n"
        )
        unit.restart()
        settings = config.load(path, config.Client)
        wait_for(lambda: known_as(broker)[-1:] == ["edge-old"], 30, lambda: f"it connects: {broker.log()}")
        wait_for(lambda: not http or connected(settings), 30, "it shows its session")
        return settings

    (tmp_path / "host").mkdir()
    try:
        with program("systemctl", tmp_path / "host", unit):
            yield made
    finally:
        manager.close()


def known_as(broker: Mosquitto) -> list[str]:
    """The common names with which clients began sessions."""
    return [line.rpartition("u'")[2].partition("'")[0] for line in broker.log().splitlines() if "New client" in line]


def connected(settings: config.Client) -> bool:
    try:
        return fetch_status(settings.http.url).connected
    except NotRunning:
        return False


@pytest.mark.parametrize("shows_figures", [True, False])
def test_a_client_goes_over_to_certificates_that_the_broker_accepts(
    broker, authority, folder, unit, shows_figures, monkeypatch
):
    monkeypatch.setattr(certificates, "STEADY_S", 3.0)
    settings = unit(free_port() if shows_figures else 0)
    new = authority.issue("edge-new")
    (folder / "next/client.pem").write_bytes(new)
    assert take(folder, {UNIT: settings}) == ["client.pem"]
    assert (folder / "client.pem").read_bytes() == new
    assert {path.name for path in folder.iterdir()} == {"ca.crt", "client.pem"}
    wait_for(lambda: known_as(broker)[-1] == "edge-new", 30, lambda: f"it comes back: {broker.log()}")


@pytest.mark.parametrize("wrong", ["of another authority", "expired", "no certificate"])
def test_what_the_broker_does_not_accept_is_never_in_use(broker, authority, folder, unit, tmp_path, wrong):
    (tmp_path / "other").mkdir()
    settings = unit(0)
    old = (folder / "client.pem").read_bytes()
    (folder / "next/client.pem").write_bytes({
        "of another authority": lambda: Authority(tmp_path / "other", "other").issue("edge-new"),
        "expired": lambda: authority.issue("edge-new", days=-0.1),
        "no certificate": lambda: b"a page of a proxy",
    }[wrong]())  # fmt: skip
    with pytest.raises(CertificateError, match="the new certificates do not work"):
        take(folder, {UNIT: settings})
    assert (folder / "client.pem").read_bytes() == old
    assert {path.name for path in folder.iterdir()} == {"ca.crt", "client.pem", "next"}
    assert known_as(broker) == ["edge-old"], "nothing was restarted"


def test_a_client_that_gets_no_session_with_them_goes_back(broker, authority, folder, unit, monkeypatch):
    """TLS accepts a certificate without a name, MQTT does not: only the restart shows it."""
    monkeypatch.setattr(certificates, "BACK_WITHIN_S", 4.0)
    settings = unit(free_port())
    old = (folder / "client.pem").read_bytes()
    (folder / "next/client.pem").write_bytes(authority.issue(""))
    with pytest.raises(CertificateError, match="did not come back"):
        take(folder, {UNIT: settings})
    assert (folder / "client.pem").read_bytes() == old and (folder / "next/client.pem").exists()
    wait_for(lambda: connected(settings), 30, lambda: f"it is back with the old one: {broker.log()}")


def test_files_are_taken_on_a_host_whose_unit_systemctl_does_not_know(authority, broker, folder, tmp_path):
    settings = config.parse(
        {"client_id": 1, "sensors": {"t": {"port": 1}},
         "mqtt": {"port": broker.port, "ca_file": "ca.crt", "cert_file": "client.pem"}}, config.Client,
    )  # fmt: skip
    (folder / "next/client.pem").write_bytes(authority.issue("edge-new"))
    there = contextlib.nullcontext() if shutil.which("systemctl") else program("systemctl", tmp_path, lambda _: (4, ""))
    with there:
        assert take(folder, {"skywave-of-no-host.service": settings}) == ["client.pem"]
    assert not (folder / "next").exists()
