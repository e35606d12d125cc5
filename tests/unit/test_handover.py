"""A service's open connections go through the service manager to its next process, with what stands in them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time

import pytest
from support.manager import ServiceManager
from support.parts import wait_for

from skywave import config
from skywave.formats.batch import Name, decode
from skywave.outbox.opening import open_outbox

GIVE = """
import socket, sys
from skywave.process.handover import Kept, hand_over
hand_over([Kept(socket.create_connection(("127.0.0.1", int(sys.argv[1]))), {"number": n}) for n in range(3)])
"""
TAKE = """
import json
from skywave.process.handover import take_over
print(json.dumps([[kept.notes, kept.sock.recv(100).decode()] for kept in take_over()]))
"""


@pytest.fixture
def manager(tmp_path):
    made = ServiceManager(tmp_path)
    yield made
    made.close()


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as made:
        made.settimeout(60)
        yield made


def output(process: subprocess.Popen) -> str:
    said, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    return said


def test_the_next_process_goes_on_with_each_connection_by_its_notes(manager, listener):
    output(manager.start("-c", GIVE, str(listener.getsockname()[1])))
    peers = [listener.accept()[0] for _ in range(3)]
    wait_for(lambda: len(manager.store) == 4, 30, lambda: f"the manager has them: {manager.store}")
    for number, peer in enumerate(peers):
        peer.sendall(f"sent to nobody {number}".encode())
    taken = json.loads(output(manager.start("-c", TAKE)))
    assert taken == [[{"number": number}, f"sent to nobody {number}"] for number in range(3)]
    wait_for(lambda: not manager.store, 30, lambda: f"what was taken is forgotten: {manager.store}")
    for peer in peers:
        assert peer.recv(1) == b"", "the process that took it has ended, and nobody else has it"
        peer.close()


def test_a_process_without_a_manager_closes_its_connections(listener, monkeypatch):
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    subprocess.run([sys.executable, "-c", GIVE, str(listener.getsockname()[1])], check=True, timeout=60)
    for _ in range(3):
        with listener.accept()[0] as peer:
            assert peer.recv(1) == b""


def test_a_manager_that_is_gone_holds_no_process_up(listener, monkeypatch, tmp_path):
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "absent"))
    subprocess.run([sys.executable, "-c", GIVE, str(listener.getsockname()[1])], check=True, timeout=60)
    with listener.accept()[0] as peer:
        assert peer.recv(1) == b""


def test_what_was_given_to_another_process_is_not_taken(manager, monkeypatch):
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    monkeypatch.setenv("LISTEN_FDS", "1")
    monkeypatch.setenv("LISTEN_FDNAMES", "socket-0")
    assert json.loads(output(manager.start("-c", TAKE))) == []


@pytest.fixture
def kept(manager):
    """The peer of a connection that the manager has."""
    ours, theirs = socket.socketpair()
    manager.store["socket-0"] = theirs.detach()
    with ours:
        yield ours


def keep_notes(manager: ServiceManager, notes: bytes) -> None:
    manager.store["notes"] = os.memfd_create("notes")
    os.write(manager.store["notes"], notes)


@pytest.mark.parametrize("notes", [None, b"", b"[", b"7", b"[7]", b'[{"sensor": 1}, 5]'])
def test_a_connection_whose_notes_are_not_there_or_cannot_be_read_is_closed(manager, kept, notes):
    """Nobody knows where a frame begins in it."""
    if notes is not None:
        keep_notes(manager, notes)
    assert json.loads(output(manager.start("-c", TAKE))) == []
    wait_for(lambda: not manager.store, 30, "they are forgotten")
    assert kept.recv(1) == b"", "it is closed"


def test_a_connection_is_taken_though_one_that_was_noted_with_it_was_not_kept(manager, kept):
    keep_notes(manager, b'[{"number": 0}, {"number": 1}]')
    kept.sendall(b"1")
    assert json.loads(output(manager.start("-c", TAKE))) == [[{"number": 0}, "1"]]


class Sensor(threading.Thread):
    """Counts aloud to whoever connects: 1, 2, 3 …, each a frame of the plain protocol, as fast as about 2000 a second."""

    def __init__(self, listener: socket.socket) -> None:
        super().__init__(daemon=True)
        self._listener, self._over = listener, threading.Event()
        self.sent = self.connections = 0

    def run(self) -> None:
        while not self._over.is_set():
            connection, _ = self._listener.accept()
            self.connections += 1
            with connection:
                while not self._over.wait(0.005):
                    for _ in range(10):
                        payload = str(self.sent + 1).encode()
                        connection.sendall(f"{len(payload):<10}".encode() + payload)
                        self.sent += 1

    def stop(self) -> None:
        self._over.set()
        self.join()


def test_a_client_that_is_restarted_takes_every_reading_of_a_plain_sensor_once(manager, listener, tmp_path):
    path = tmp_path / "client.toml"
    path.write_text(
        f"client_id = 1\n[sensors.t]\nport = {listener.getsockname()[1]}\n[mqtt]\nport = 1\n"
        f"[outbox]\nkind = 'sqlite'\npath = '{tmp_path}/outbox.sqlite'\n"
    )
    sensor = Sensor(listener)
    sensor.start()
    for _ in range(3):
        before = sensor.sent
        client = manager.start("-m", "skywave", "client", "--config", str(path))
        manager.wait_for("READY=1")
        wait_for(lambda before=before: sensor.sent > before + 500, 30, "it reads")
        client.terminate()
        assert client.wait(60) == 0, client.communicate()[1]
        wait_for(lambda: set(manager.store) == {"notes", "socket-0"}, 30, lambda: f"it hands over: {manager.states}")
        time.sleep(0.3)  # the sensor goes on though nobody reads
    sensor.stop()
    client = manager.start("-m", "skywave", "client", "--config", str(path))
    manager.wait_for("READY=1")
    wait_for(lambda: len(values(tmp_path)) == sensor.sent, 30, lambda: f"{len(values(tmp_path))} of {sensor.sent}")
    assert values(tmp_path) == list(range(1, sensor.sent + 1))
    assert sensor.connections == 1
    client.terminate()
    assert client.wait(60) == 0


def values(folder) -> list[float]:
    """What is in the client's outbox, in the order in which it was committed."""
    outbox = open_outbox(config.Outbox(kind="sqlite", path=str(folder / "outbox.sqlite")))
    try:
        batches = outbox.read(1, 1 << 40, 10_000)
    finally:
        outbox.close()
    found: list[float] = []
    for batch in batches:
        found += decode(batch.payload, Name(1, batch.stream, batch.first_seq), batch.count).values.to_pylist()
    return found
