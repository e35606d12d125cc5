"""Sensors that number their readings: a killed client loses none of them and doubles none, at any rate."""

from __future__ import annotations

import random
import socket
import time

import pytest
from support.parts import wait_for

from skywave.emulator.series import KEEP, Series
from skywave.formats.frames import Word, frame, take_word


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
@pytest.mark.parametrize("rate", [3_000, 0], ids=["paced", "flood"])
def test_a_killed_client_loses_and_doubles_nothing(stand, postgres, kind, rate):
    stand.add_server()
    outbox = stand.sqlite(1) if kind == "sqlite" else f'kind = "postgresql"\ndsn = "{postgres.new_database()}"'
    client = stand.add_client(1, outbox, rate, acknowledged=True)
    rng = random.Random(f"{kind} {rate}")
    for _ in range(6):
        wait_for(lambda: client.status().get("readings", 0) > 300, 20, "it takes readings in")
        time.sleep(rng.uniform(0, 0.5))
        client.kill()
        client.start()
    wait_for(lambda: client.status()["connected"], 20, "it is back")
    stand.finish(90)
    assert stand.verify() > 3000  # without an allowance for the kills


def test_a_connection_that_breaks_or_comes_twice_costs_nothing(stand):
    stand.add_server()
    client = stand.add_client(1, stand.sqlite(1), 3000, acknowledged=True)
    wait_for(lambda: client.status()["readings"] > 1000, 20, "it takes readings in")
    port = int((stand.folder / "client-1.toml").read_text().split("port = ")[1].split()[0])
    for _ in range(5):  # a stranger that asks takes the sensor over, for a moment; what it hears was not acknowledged
        with socket.create_connection(("127.0.0.1", port)) as sock:
            sock.sendall(Word("after", 0, 0).encode())
            assert take_word(sock.recv(1000))[0].word == "first"
        time.sleep(0.3)
    assert client.status()["sensors"]["temperature"]["disconnects"] >= 3
    stand.finish()
    assert stand.verify() > 1000


def test_a_sensor_that_does_not_keep_to_it_is_refused_and_told_so(stand):
    stand.add_server()
    listener = socket.create_server(("127.0.0.1", 0))  # it stays: a refused attempt would be the latest error
    listener.settimeout(20)
    port = listener.getsockname()[1]
    said = []

    def speak(*frames: bytes) -> str:
        with listener.accept()[0] as sock:
            sock.settimeout(20)
            said.append(take_word(sock.recv(100))[0])
            sock.sendall(b"".join(frames))
            while sock.recv(100):  # until the client hangs up
                pass
            return client.status()["sensors"]["odd"]["last_error"]

    client = stand.add_client(
        1, stand.sqlite(1), 300, f"[sensors.odd]\nport = {port}\nacknowledged = true\n[intake]\nreconnect_max = 0.2\n"
    )
    assert "no acknowledged intake" in speak(frame(b"21.5"))
    assert "no acknowledged intake" in speak(Word("ack", 5, 1).encode())
    assert "no acknowledged intake" in speak(b"99999999999999")
    assert "not a length" in speak(Word("first", 5, 1).encode() + frame(b"1") + frame(b"hot") + frame(b"3") + b"x" * 10)
    assert "no acknowledged intake" in speak(Word("first", 5, 2).encode())
    assert said[-1] == Word("after", 5, 3)  # the malformed one has a number too
    assert "no acknowledged intake" in speak(Word("first", 6, 0).encode())
    assert "not a length" in speak(Word("first", 5, 10).encode() + frame(b"10") + b"x" * 10)
    status = client.status()["sensors"]["odd"]
    assert status["missed"] == 6 and status["readings"] == 3 and status["malformed"] == 1
    for _ in range(2):  # the second commit from here on holds all that was read before the first
        committed = client.status()["readings"]
        wait_for(lambda committed=committed: client.status()["readings"] > committed, 10, "the others are committed")
    client.kill()
    client.start()
    with listener:
        speak(b"x" * 10)
    assert said[-1] == Word("after", 5, 10)


def test_a_series_keeps_what_is_not_acknowledged_and_no_more_than_it_may():
    noted = []
    series = Series((b"%d" % n for n in range(1, 10**6)), noted.extend)
    series.measure(10)
    assert series.since(3, 4) == [b"3", b"4", b"5", b"6"]
    series.acknowledge(series.stream + 1, 9)
    assert series.next_after(0, 0) == 1
    series.acknowledge(series.stream, 4)
    assert series.next_after(0, 0) == 5 and series.next_after(series.stream, 7) == 8 and series.kept == 6
    assert series.since(5, 99) == [b"5", b"6", b"7", b"8", b"9", b"10"]
    series.measure(2 * KEEP)
    assert series.kept == KEEP and len(noted) == KEEP + 4
