"""Taking new certificates: every broker is asked, good ones are never rolled back, bad ones always."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading

import pytest
from support.authority import Authority
from support.figures import shows
from support.programs import program

from skywave import config
from skywave.care import broker, certificates
from skywave.care.certificates import take
from skywave.errors import CertificateError

UNIT = "skywave-client.service"


def settings(**more) -> config.Client:
    return config.parse({"client_id": 1, "sensors": {"t": {"port": 1}}, **more}, config.Client)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "client.pem").write_text("OLD")
    (tmp_path / "next").mkdir()
    (tmp_path / "next/client.pem").write_text("NEW")
    return tmp_path


@pytest.fixture(autouse=True)
def systemd(tmp_path, monkeypatch):
    """A systemd whose unit runs, restarts and says what this says."""

    class Systemd:
        text, after_restart = "0 readings/s in", 0
        restarted = False

        def __call__(self, arguments: list[str]) -> tuple[int, str]:
            command = arguments[0]
            self.restarted |= command == "restart"
            return self.after_restart if self.restarted and command == "is-active" else 0, self.text

    made = Systemd()
    monkeypatch.setattr(certificates, "BACK_WITHIN_S", 1.5)
    (tmp_path / "host").mkdir()
    with program("systemctl", tmp_path / "host", made):
        yield made


@pytest.fixture(autouse=True)
def brokers(monkeypatch):
    """What each broker's port answers to the new certificates; a port that is not in it accepts them."""
    answers: dict[int, str] = {}
    monkeypatch.setattr(certificates, "shake_hands", lambda mqtt: answers.get(mqtt.port, ""))
    return answers


def in_use(folder) -> str:
    return (folder / "client.pem").read_text()


def test_good_ones_are_taken_where_the_service_shows_no_figures(folder, systemd):
    assert take(folder, {UNIT: settings()}) == ["client.pem"]
    assert in_use(folder) == "NEW" and systemd.restarted and not (folder / "next").exists()


def test_a_service_without_figures_that_complains_of_its_broker_gets_the_old_ones_back(folder, systemd):
    systemd.text = "STALLED: no broker: refused the connection: Not authorized (12 s); 0 readings/s in"
    with pytest.raises(CertificateError, match="did not come back"):
        take(folder, {UNIT: settings()})
    assert in_use(folder) == "OLD" and (folder / "next/client.pem").exists()


def test_a_service_without_figures_that_dies_gets_the_old_ones_back(folder, systemd):
    systemd.after_restart = 3
    with pytest.raises(CertificateError):
        take(folder, {UNIT: settings()})
    assert in_use(folder) == "OLD"


def test_a_service_that_lost_its_session_by_them_gets_the_old_ones_back(folder, systemd):
    with shows(lambda: {"kind": "client", "connected": not systemd.restarted}) as port, pytest.raises(CertificateError):
        take(folder, {UNIT: settings(http={"port": port})})
    assert in_use(folder) == "OLD"


def test_a_service_that_had_no_session_before_is_not_rolled_back_for_having_none(folder):
    with shows(lambda: {"kind": "client", "connected": False}) as port:
        assert take(folder, {UNIT: settings(http={"port": port})}) == ["client.pem"]


def test_every_broker_is_asked_and_one_that_refuses_them_is_enough(folder, systemd, brokers):
    with socket.create_server(("127.0.0.1", 0)) as second:
        port = second.getsockname()[1]
        brokers[port] = "b2: certificate unknown"
        with pytest.raises(CertificateError, match="b2: certificate unknown"):
            take(folder, {UNIT: settings(mqtt={"others": f"127.0.0.1:{port}"})})
    assert in_use(folder) == "OLD" and not systemd.restarted


def test_a_broker_that_is_away_holds_them_up_only_where_all_are(folder, brokers):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    brokers[port] = "b2: connection refused"
    two = settings(mqtt={"others": f"127.0.0.1:{port}"})
    assert take(folder, {UNIT: two}) == ["client.pem"]
    (folder / "next").mkdir()
    (folder / "next/client.pem").write_text("NEWER")
    brokers[1883] = "b1: connection refused"
    with pytest.raises(CertificateError, match="b1: connection refused"):
        take(folder, {UNIT: two})
    assert in_use(folder) == "NEW"


# -- whom a handshake believes ----------------------------------------------------------------------------------------------


def test_a_server_that_is_no_broker_of_the_fleet_is_not_spoken_to(tmp_path, monkeypatch):
    monkeypatch.setattr(broker, "REFUSAL_S", 0.3)
    authority = Authority(tmp_path, "ours")
    ours, theirs = str(authority.file), str(Authority(tmp_path, "theirs").file)
    (tmp_path / "broker.pem").write_bytes(authority.issue("broker"))
    our_broker = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    our_broker.load_cert_chain(tmp_path / "broker.pem")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        kept = []

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    try:
                        kept.append(our_broker.wrap_socket(connection, server_side=True))
                    except OSError:  # the other side refuses it
                        connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            mqtt = {"host": "127.0.0.1", "port": port}
            assert broker.shake_hands(config.Mqtt(ca_file=ours, **mqtt)) == ""
            assert "VERIFY_FAILED" in broker.shake_hands(config.Mqtt(ca_file=theirs, **mqtt))
            named = config.Mqtt(ca_file=ours, host="localhost", port=port)
            assert "VERIFY_FAILED" in broker.shake_hands(named), "its certificate is for another address"
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()
            for connection in kept:
                connection.close()
