"""What is read of a packet is bounded, whatever a client has a broker pass on, and whatever a broker sends itself."""

from __future__ import annotations

import socket
import threading

import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from support.parts import wait_for

from skywave import config
from skywave.errors import PoisonError
from skywave.mqtt.events import PACKET_TOO_LARGE, Message
from skywave.mqtt.link import Link
from skywave.mqtt.packets import MAX_PROPERTIES, MAX_PROPERTIES_BYTES, read_properties
from skywave.server.admission import Admission


def varint(number):
    digits = bytearray()
    while True:
        number, digit = divmod(number, 128)
        digits.append(digit | (0x80 if number else 0))
        if not number:
            return bytes(digits)


def packet(first, rest):
    return bytes([first]) + varint(len(rest)) + rest


def publish(properties, payload=b"x", topic=b"x/y", first=0x30):
    number = b"\0\1" if first & 0x06 else b""
    return packet(
        first, len(topic).to_bytes(2, "big") + topic + number + varint(len(properties)) + properties + payload
    )


USER = b"\x26\0\1a\0\1b"


def test_properties_are_read_as_paho_reads_them(rng):
    values = {
        "PayloadFormatIndicator": 1, "MessageExpiryInterval": 70_000, "ContentType": "text/plain", "ResponseTopic": "a/b",
        "CorrelationData": b"\0\xff", "SubscriptionIdentifier": [300], "TopicAlias": 7,
        "UserProperty": [("a", ""), ("\u00e4" * 200, "2"), ("a", "3")],
    }  # fmt: skip
    for _ in range(50):
        written = Properties(PacketTypes.PUBLISH)
        chosen = rng.sample(sorted(values), rng.randrange(len(values) + 1))
        for name in chosen:
            setattr(written, name, values[name])
        found = read_properties(written.pack() + b"payload")
        expected = {name: values[name] if name != "SubscriptionIdentifier" else 300 for name in chosen}
        assert (found.values, found.size, found.fault) == (expected, len(written.pack()), "")


@pytest.mark.parametrize(
    ("properties", "fault"),
    [
        (USER * (MAX_PROPERTIES + 1), "more than"),
        (USER * 3_000_000, "bytes of properties"),
        (b"\x26\0\0\0\0" * 1_600_000, "bytes of properties"),
        (b"\x26\0\1\xff\0\1b", "cannot be read"),
        (b"\x26\0\1a\0\x09b", "cannot be read"),
        (b"\x26\0", "cannot be read"),
        (b"\x03\0\1a\x03\0\1a", "two of ContentType"),
        (b"\x7f\0", "cannot be read"),
        (b"\x0b\xff\xff\xff\xff\xff", "cannot be read"),
        (b"\x02\0\0", "cannot be read"),
    ],
)
def test_what_cannot_be_or_is_too_much_is_not_read_and_the_rest_of_the_packet_is_found(properties, fault):
    found = read_properties(varint(len(properties)) + properties + b"payload")
    assert fault in found.fault and found.values == {}
    assert found.size == len(varint(len(properties)) + properties)


def test_as_much_as_is_allowed_is_read():
    assert len(read_properties(varint(700) + USER * MAX_PROPERTIES).values["UserProperty"]) == MAX_PROPERTIES
    long = b"\x26\0\1a" + (60_000).to_bytes(2, "big") + b"x" * 60_000
    assert len(long) < MAX_PROPERTIES_BYTES
    assert read_properties(varint(len(long)) + long).values["UserProperty"] == [("a", "x" * 60_000)]


@pytest.mark.parametrize("buffer", [b"", b"\xff\xff\xff\xff\xff", b"\x05\0", b"\xff"])
def test_a_length_that_cannot_be_true_is_an_error(buffer):
    with pytest.raises(ValueError, match=r"properties|number"):
        read_properties(buffer)


def test_a_message_whose_properties_were_not_read_is_poison():
    settings = config.parse({"name": "s"}, config.Server).ingest
    message = Message("/telemetry/client/5/", b"[]", fault="has 461000 bytes of properties, at most 65536 are read")
    with pytest.raises(PoisonError, match="461000"):
        Admission(settings, 9).admit(5, message, None, 0.0)


class RogueBroker:
    """Accepts one connection after the other and sends what it is told to."""

    def __init__(self):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.connections = []
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self):
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            connection.recv(1 << 16)
            connection.sendall(b"\x20\x03\0\0\0")
            self.connections.append(connection)

    def say(self, data):
        self.connections[-1].sendall(data)


@pytest.fixture
def rogue():
    broker = RogueBroker()
    broker.heard, broker.ends, broker.may_go_on = [], [], threading.Event()
    broker.may_go_on.set()

    def hear(message):
        broker.heard.append(message)
        broker.may_go_on.wait(20)

    settings = config.Mqtt(host="127.0.0.1", port=broker.port)
    link = Link([settings], "a", [], lambda: None, broker.ends.append, hear)
    link.start()
    wait_for(lambda: link.connected, 10, "it connects")
    broker.link = link
    yield broker
    broker.listener.close()
    for connection in broker.connections:
        connection.close()
    link.stop()


@pytest.mark.parametrize(
    "properties", [b"\x26\0\0\0\0" * 92_000, USER * 1000, b"\x26\0\1\xff\0\1b", b"\x03\0\1\0" * 2, b"\x55" * 50]
)
@pytest.mark.parametrize("first", [0x30, 0x32])
def test_a_message_with_hostile_properties_does_not_hold_up_the_next(rogue, properties, first):
    rogue.say(publish(properties, first=first) + publish(USER))
    wait_for(lambda: len(rogue.heard) == 2, 10, "both are heard")
    hostile, honest = rogue.heard
    assert hostile.fault and not hostile.properties and hostile.payload == b"x"
    assert not honest.fault and honest.properties == {"a": "b"}
    assert not rogue.ends


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\x30\xff\xff\xff\x7f\0\3x/y", "268435455 bytes"),
        (b"\x90\xff\xff\xff\x7f\0\1\0", "268435455 bytes"),
        (packet(0x90, b"\0\1\0" + b"\x87" * 100_000), "100003 bytes"),
        (publish(b"", first=0x34), "QoS 2"),
        (packet(0xE0, b"\x00" + varint(60_000) + b"\x26\0\0\0\0" * 12_000), "malformed"),
        (packet(0x40, b"\0\1\0" + varint(60_000) + b"\x26\0\0\0\0" * 12_000), "malformed"),
        (packet(0xE0, b"\x8b\0"), "Server shutting down (139)"),
        (packet(0xE0, b"\x97\x12\x1f\0\x0ftoo\nmany of you"), r"Quota exceeded (151): 'too\nmany of you'"),
        (packet(0xE0, b"\xee"), "reason (238)"),
    ],
    ids=["publish", "suback", "many codes", "qos 2", "disconnect", "puback", "shut down", "quota", "unknown"],
)
def test_a_broker_that_breaks_the_rules_or_gives_a_reason_is_left_with_that_word(rogue, data, words):
    rogue.say(data)
    wait_for(lambda: rogue.ends, 10, "the connection ends")
    assert words in rogue.ends[0].reason
    wait_for(lambda: len(rogue.connections) == 2, 20, "it comes back")


def test_a_packet_too_large_in_an_answer_is_told_of_the_message_that_it_answers(rogue):
    refused = []
    arrived = rogue.link.publish("x/1", b"x", on_refused=refused.append)
    wait_for(lambda: rogue.connections[-1].recv(100), 10, "it is sent")
    rogue.say(packet(0x40, b"\0\1\x95"))
    wait_for(lambda: refused, 10, "the answer is heard")
    assert (refused[0].code, refused[0].words) == (PACKET_TOO_LARGE, "Packet too large (149)")
    wait_for(arrived, 10, "it has an answer")
    assert not rogue.ends


def test_many_answers_that_the_broker_does_not_read_do_not_fill_the_memory(rogue, monkeypatch):
    monkeypatch.setattr("skywave.mqtt.transport.MAX_UNWRITTEN", 1000)
    rogue.connections[-1].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    rogue.connections[-1].settimeout(1)
    wanted = publish(b"", first=0x32) * 100_000
    sent = 0
    with pytest.raises(TimeoutError):  # nothing more is read
        while sent < 400 * len(wanted):
            sent += rogue.connections[-1].send(wanted)
    heard = len(rogue.heard)
    assert rogue.link.connected and heard > 1000
    rogue.connections[-1].settimeout(20)
    answered = 0
    while answered < 4 * heard:  # bytes; it reads on as soon as its answers are read
        answered += len(rogue.connections[-1].recv(1 << 20))


def test_a_connection_whose_thread_does_not_move_says_so(rogue, monkeypatch):
    monkeypatch.setattr("skywave.mqtt.link.AWAY_S", 0.3)
    rogue.may_go_on.clear()
    rogue.say(publish(b""))
    wait_for(lambda: rogue.link.hang, 10, "it is told")
    rogue.may_go_on.set()
    wait_for(lambda: not rogue.link.hang, 10, "it goes on")


def test_brokers_that_die_in_turn_are_not_taken_for_a_rival():
    brokers = [RogueBroker(), RogueBroker()]
    settings = [config.Mqtt(host="127.0.0.1", port=broker.port) for broker in brokers]
    ends = []
    link = Link(settings, "a", [], lambda: None, ends.append, lambda _: None)
    link.start()
    try:
        for number in range(4):
            wait_for(lambda: link.connected, 20, "it connects")
            brokers[number % 2].connections[-1].close()
            wait_for(lambda number=number: len(ends) == number + 1, 10, "the connection ends")
        assert "another client" not in link.error
    finally:
        for broker in brokers:
            broker.listener.close()
        link.stop()


def test_a_rival_is_named_and_given_way_to(rogue, caplog):
    rogue.say(packet(0xE0, b"\x8e"))
    wait_for(lambda: rogue.ends, 10, "the connection ends")
    assert "another client named a is connected to the broker: Session taken over (142)" in rogue.link.trouble
    wait_for(lambda: rogue.link.connected, 20, "it comes back")
    assert "another client named a" in rogue.link.trouble, "it may come back too"
    assert "another client named a" in rogue.link.error
    assert len([record for record in caplog.records if "another client" in record.message]) == 1
