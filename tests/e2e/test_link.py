"""The connection to a broker when both directions are full, on a plain socket and under TLS."""

from __future__ import annotations

import logging
import subprocess
import threading
import time
from hashlib import sha256
from pathlib import Path

import pytest
from support.parts import Mosquitto, wait_for

from skywave import config
from skywave.mqtt.events import Will
from skywave.mqtt.link import Link


def _certificate(folder: Path) -> None:
    """A certificate for the loopback, which is its own authority."""
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "key.pem", "-out", "cert.pem"],
        cwd=folder, check=True, capture_output=True,
    )  # fmt: skip
    (folder / "key.pem").chmod(0o644)
    folder.chmod(0o755)


@pytest.fixture(params=["plain", "tls"])
def link(request):
    """A link to a broker of its own that hears its own messages."""
    broker = Mosquitto()
    try:
        ca_file = ""
        if request.param == "tls":
            _certificate(broker.folder)
            with (broker.folder / "mosquitto.conf").open("a") as conf:
                conf.write(f"cafile {broker.folder}/cert.pem\ncertfile {broker.folder}/cert.pem\n")
                conf.write(f"keyfile {broker.folder}/key.pem\n")
            ca_file = str(broker.folder / "cert.pem")
        broker.start()
        settings = config.Mqtt(host="127.0.0.1", port=broker.port, ca_file=ca_file)
        up, heard, down = threading.Event(), [], []
        made = Link([settings], "a", ["x/#"], up.set, down.append, heard.append)
        made.start()
        assert up.wait(10)
        yield made, heard, down, settings
        made.stop()
    finally:
        broker.remove()


def test_messages_stay_whole_when_the_socket_is_full(link):
    made, heard, down, _ = link
    sent = [bytes([number % 251]) * 200_000 for number in range(300)]
    arrived = [made.publish("x/y", payload) for payload in sent]
    assert not arrived[-1]()
    wait_for(lambda: down or len(heard) == len(sent), 30, "all are heard")
    assert not down, "two threads wrote into one connection"
    wait_for(lambda: all(has_arrived() for has_arrived in arrived), 10, "the broker has answered all")
    assert [sha256(m.payload).digest() for m in heard] == [sha256(p).digest() for p in sent]


def test_a_message_waits_for_nobody(link):
    made, heard, _, _ = link
    took = []
    for number in range(1, 301):
        started = time.monotonic()
        made.publish("x/y", b"x" * 20_000)
        wait_for(lambda number=number: len(heard) == number, 5, "it is heard", 0.001)
        took.append(time.monotonic() - started)
    # A select that nobody wakes sleeps a second. A host that is busy elsewhere may be late now and then.
    assert sorted(took)[-10] < 0.5, took


def test_a_clean_end_is_no_trouble_and_leaves_no_will(link, caplog):
    _, heard, _, settings = link
    up = threading.Event()
    leaver = Link([settings], "b", [], up.set, lambda _: None, lambda _: None, Will("x/will", b"it broke"))
    leaver.start()
    assert up.wait(10)
    leaver.publish("x/last", b"bye")
    leaver.stop()
    wait_for(lambda: heard, 5, "its last message is heard")
    time.sleep(0.5)
    assert [message.topic for message in heard] == ["x/last"]
    assert not leaver.error
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
