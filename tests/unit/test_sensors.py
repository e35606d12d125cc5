"""The sensors' sockets: what one sensor does, or its name, or its network, is no matter of another one."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import pytest

from skywave import config
from skywave.client import sensors as module
from skywave.client.sensors import Sensors
from skywave.formats.frames import Word, frame, take_word
from skywave.outbox.outbox import Position
from skywave.process.handover import Kept


class Peer:
    """A sensor's listening end, driven by the test and closed after it."""

    opened: ClassVar[list[socket.socket]] = []

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        self.listener = socket.create_server((host, port))
        self.opened.append(self.listener)
        self.listener.settimeout(20)
        self.port = self.listener.getsockname()[1]

    def accept(self) -> socket.socket:
        sock, _ = self.listener.accept()
        sock.settimeout(20)
        self.opened.append(sock)
        return sock


@pytest.fixture(autouse=True)
def peers_are_closed():
    yield
    while Peer.opened:
        Peer.opened.pop().close()


@pytest.fixture
def made():
    """Makes ``Sensors`` of settings by name; they are closed after the test."""
    with contextlib.ExitStack() as stack:

        def make(intake=None, positions=None, inherited=(), **sensors):
            found = Sensors(
                {name: config.Sensor(**settings) for name, settings in sensors.items()},
                intake or config.Intake(reconnect_max=0.3), positions or {}, inherited,
            )  # fmt: skip
            stack.callback(found.close)
            return found

        yield make


def turn_until(sensors, condition, seconds=20):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, sensors.figures()
        sensors.look_after(module.time.monotonic())
        sensors.read_ready(0.01)


def read_by(sensors, name, readings=1):
    return lambda: sensors.figures()[name].readings >= readings


@pytest.fixture
def names(monkeypatch):
    """Addresses by name, beside what the system knows."""
    known, real = {}, socket.getaddrinfo

    def look_up(host, port, *more, **options):
        if host not in known:
            return real(host, port, *more, **options)
        if options.get("flags"):
            raise socket.gaierror(socket.EAI_NONAME, "is a name")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in known[host]]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return known


def test_all_addresses_of_a_name_are_tried_in_turn(made, names, caplog):
    peer = Peer()
    names["dual.test"] = ["127.0.0.2", "127.0.0.3", "127.0.0.1"]
    sensors = made(t={"host": "dual.test", "port": peer.port})
    turn_until(sensors, lambda: sensors.figures()["t"].connected)
    peer.accept().sendall(frame(b"1"))
    turn_until(sensors, read_by(sensors, "t"))
    assert not caplog.records, "nothing is wrong with it"


def test_an_address_where_something_else_listens_is_passed_over(made, names):
    peer = Peer()
    other = Peer("127.0.0.2", peer.port)
    names["dual.test"] = ["127.0.0.2", "127.0.0.1"]
    sensors = made(t={"host": "dual.test", "port": peer.port})
    turn_until(sensors, lambda: sensors.figures()["t"].connected)
    other.accept().close()
    turn_until(sensors, lambda: sensors.figures()["t"].disconnects and sensors.figures()["t"].connected)
    connection = peer.accept()
    connection.sendall(frame(b"1"))
    turn_until(sensors, read_by(sensors, "t"))
    connection.close()  # the address that worked is the first that is tried again
    turn_until(sensors, lambda: sensors.figures()["t"].disconnects == 2 and sensors.figures()["t"].connected)
    peer.accept().sendall(frame(b"2"))
    turn_until(sensors, read_by(sensors, "t", 2))


def test_why_each_address_failed_is_told_once(made, names, caplog):
    free = Peer()
    free.listener.close()
    names["dual.test"] = ["127.0.0.2", "127.0.0.1"]
    sensors = made(t={"host": "dual.test", "port": free.port})
    turn_until(sensors, lambda: len(caplog.records) > 0)
    until = time.monotonic() + 1.5
    turn_until(sensors, lambda: time.monotonic() > until)
    (record,) = caplog.records
    assert "127.0.0.2: ECONNREFUSED; 127.0.0.1: ECONNREFUSED" in record.getMessage()


@pytest.mark.parametrize(
    "host", ["plc..lan", ".lan", "a" * 64 + ".lan", "a" * 300, "", "a b", "a\0b", "ü" * 80, "[::1]"]
)
def test_a_host_name_that_cannot_be_looked_up_is_that_sensors_trouble_alone(made, host):
    peer = Peer()
    sensors = made(bad={"host": host, "port": 9}, good={"port": peer.port})
    turn_until(sensors, lambda: sensors.figures()["bad"].last_error and sensors.figures()["good"].connected)
    peer.accept().sendall(frame(b"21.5"))
    turn_until(sensors, read_by(sensors, "good"))
    assert not sensors.figures()["bad"].connected


@pytest.mark.parametrize(
    "error", [RuntimeError("can't start new thread"), MemoryError(), KeyError("x"), OSError(24, "files")]
)
def test_whatever_goes_wrong_with_one_sensor_is_no_matter_of_another(made, monkeypatch, caplog, error):
    peer = Peer()
    sensors = made(bad={"host": "some.name", "port": 9}, good={"port": peer.port})

    def submit(*_):
        raise error

    monkeypatch.setattr(ThreadPoolExecutor, "submit", submit)
    turn_until(sensors, lambda: sensors.figures()["good"].connected)
    peer.accept().sendall(frame(b"21.5"))
    turn_until(sensors, read_by(sensors, "good"))
    assert sensors.figures()["bad"].last_error
    assert len([record for record in caplog.records if "bad" in record.getMessage()]) <= 2


def test_an_address_waits_for_no_name_server(made, monkeypatch):
    peer, answered = Peer(), threading.Event()
    real = socket.getaddrinfo

    def look_up(host, port, **options):
        if host == "name" and not options["flags"]:
            answered.wait(30)
        return real(host, port, **options)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    sensors = made(**{f"n{i}": {"host": "name", "port": 9} for i in range(8)}, good={"port": peer.port})
    try:
        turn_until(sensors, lambda: sensors.figures()["good"].connected)
    finally:
        answered.set()


class Time:
    """What the module knows of time, moved by the test."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time_ns(self) -> int:
        return 1_780_000_000_000_000_000 + int(self.now * 1e9)


@pytest.fixture
def moved(monkeypatch):
    clock = Time()
    monkeypatch.setattr(module, "time", clock)
    return clock


def pass_by(sensors, clock, seconds):
    for _ in range(int(seconds / 5)):
        clock.now += 5
        sensors.look_after(clock.now)


@pytest.mark.parametrize("pause", [35, 60, 240])
def test_a_sensor_that_usually_pauses_is_told_of_once_a_silence(made, moved, caplog, pause):
    peer = Peer()
    sensors = made(t={"port": peer.port})
    turn_until(sensors, lambda: sensors.figures()["t"].connected)
    sock = peer.accept()
    for number in range(20):
        pass_by(sensors, moved, pause)
        sock.sendall(frame(b"1"))
        turn_until(sensors, read_by(sensors, "t", number + 1))
    assert len(caplog.records) <= 1, "at most once, as long as its pauses are not known"
    caplog.clear()
    pass_by(sensors, moved, 10 * pause)
    assert [record.getMessage()[:16] for record in caplog.records] == ["sensor t: silent"]
    assert sensors.figures()["t"].stalls <= 2


def test_a_sensor_can_have_a_silence_of_its_own(made, moved):
    quick, slow, usual = Peer(), Peer(), Peer()
    sensors = made(
        quick={"port": quick.port, "stall_after": 5},
        slow={"port": slow.port, "stall_after": 600},
        usual={"port": usual.port},
    )
    turn_until(sensors, lambda: all(figures.connected for figures in sensors.figures().values()))
    pass_by(sensors, moved, 20)
    assert [figures.stalls for figures in sensors.figures().values()] == [1, 0, 0]
    pass_by(sensors, moved, 100)
    assert [figures.stalls for figures in sensors.figures().values()] == [1, 0, 1]


def test_a_sensor_that_connects_anew_for_each_reading_makes_one_line(made, caplog):
    peer = Peer()
    sensors = made(t={"port": peer.port})
    for number in range(5):
        turn_until(sensors, lambda: sensors.figures()["t"].connected)
        with peer.accept() as sock:
            sock.sendall(frame(b"1"))
            turn_until(sensors, read_by(sensors, "t", number + 1))
        turn_until(sensors, lambda n=number: sensors.figures()["t"].disconnects == n + 1)
    assert len(caplog.records) == 1


def test_a_sensor_whose_every_other_reading_is_bad_makes_one_line_until_it_was_well_for_a_while(made, moved, caplog):
    peer = Peer()
    sensors = made(t={"port": peer.port})
    turn_until(sensors, lambda: sensors.figures()["t"].connected)
    sock = peer.accept()

    def say(good):
        before = sensors.figures()["t"].readings
        for payload in (b"bad", b"1") if not good else (b"1",):
            malformed = sensors.figures()["t"].malformed
            sock.sendall(frame(payload))
            turn_until(
                sensors, lambda m=malformed: sensors.figures()["t"].malformed > m or read_by(sensors, "t", before + 1)()
            )
            moved.now += 1

    def told():
        return sum("payload" in record.getMessage() for record in caplog.records)

    for _ in range(5):
        say(good=False)
    assert told() == 1
    moved.now += module.QUIET_S
    say(good=True)
    say(good=False)
    assert told() == 2


def test_a_part_names_the_keys_that_occur_in_it_and_no_others(made):
    sent = {"s3": [1.0, 2.0], "s403": [3.0], "s7": [4.0, 5.0, 6.0]}
    peers = {name: Peer() for name in sent}
    names = [f"s{n}" for n in range(500)]
    sensors = made(
        **{
            name: {"port": peers[name].port if name in peers else 9, "key": f"k{n % 400}"}
            for n, name in enumerate(names)
        }
    )
    turn_until(sensors, lambda: all(sensors.figures()[name].connected for name in sent))
    for name, values in sent.items():
        peers[name].accept().sendall(b"".join(frame(b"%d" % value) for value in values))
    turn_until(sensors, lambda: sensors.open == 6)
    parts = sensors.take(4)
    assert [(part.keys, list(part.codes), list(part.values)) for part in parts] == [
        (["k3", "k7"], [0, 0, 1, 1], [1.0, 2.0, 4.0, 5.0]),
        (["k7", "k3"], [0, 1], [6.0, 3.0]),
    ]
    assert all(len(part.created_at) == len(part.values) for part in parts)
    assert not sensors.open and sensors.take(4) == []


def test_a_number_that_no_sensor_can_have_reached_is_refused(made):
    """It would not fit the outbox a few readings later."""
    peer = Peer()
    sensors = made(t={"port": peer.port, "acknowledged": True}, positions={"t": Position(5, 10)})
    turn_until(sensors, lambda: sensors.figures()["t"].connected)
    sock = peer.accept()
    assert take_word(sock.recv(100))[0] == Word("after", 5, 10)
    sock.sendall(Word("first", 6, 2**63 - 1).encode() + frame(b"1") * 5)
    turn_until(sensors, lambda: "no acknowledged intake" in sensors.figures()["t"].last_error)
    assert sensors.moved() == {}


@pytest.mark.parametrize(
    "notes", [{}, {"sensor": "t"}, {"sensor": "t", "address": 5, "rest": ""}, {"sensor": [], "address": [], "rest": ""}]
)
def test_a_connection_with_notes_of_another_release_is_closed(made, notes):
    ours, theirs = socket.socketpair()
    made(t={"port": 9}, inherited=[Kept(theirs, notes)])
    assert ours.recv(1) == b""
    ours.close()


@pytest.fixture(autouse=True)
def warnings_only(caplog):
    caplog.set_level(logging.WARNING)
