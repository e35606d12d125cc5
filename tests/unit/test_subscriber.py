"""A server's side of its brokers: what it answers, what they keep for it, and whose messages it hears."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from datetime import date
from types import SimpleNamespace

import pytest
from support.parts import wait_for

from skywave import config
from skywave.formats import topics
from skywave.formats.batch import CONTENT_TYPE
from skywave.formats.messages import Ack, ClientStatus, ServerStatus
from skywave.mqtt.events import Message
from skywave.mqtt.properties import RECEIVE_MAXIMUM
from skywave.server import subscriber as subscriber_module
from skywave.server.broker import KEPT_BESIDE_OTHERS_S, KEPT_S
from skywave.server.inbox import Inbox
from skywave.server.patience import Patience
from skywave.server.service import STUCK_AFTER_S, UNHEARD_S, ServerProcess
from skywave.server.subscriber import Subscriber

JSON = b'{"created_at": 1, "data_key": "k", "data_value": 1}'


class Wire:
    """A link to one broker: what a subscriber sends over it is noted, what a broker sends is given to it."""

    def __init__(self, brokers, *_, on_up, on_message, session_expiry, **__):
        self.address = f"{brokers[0].host}:{brokers[0].port}"
        self.on_up, self.hear = on_up, on_message
        self.connected, self.session_present, self.session_expiry = True, False, session_expiry
        self.trouble = self.hang = self.error = ""
        self.answered, self.published, self.subscribed, self.connected_for = [], [], set(), []
        self.marker = ()

    def acknowledge(self, number):
        if number:
            self.answered.append(number)

    def subscribe(self, wanted, **_):
        self.subscribed.update(wanted)

    def unsubscribe(self, wanted):
        self.subscribed.difference_update(wanted)

    def publish(self, topic, *_, properties=(), **__):
        self.published.append(topic)
        self.marker = properties

    def reconnect(self, session_expiry):
        self.connected_for.append(session_expiry)

    def comes_up(self, session=False):
        self.session_present = session
        self.on_up()

    @property
    def has_data(self) -> bool:
        return set(topics.ALL_DATA_SHARED) <= self.subscribed


@pytest.fixture(autouse=True)
def wires(monkeypatch):
    """The links of every subscriber are wires."""
    monkeypatch.setattr(subscriber_module, "Link", Wire)


@pytest.fixture
def server():
    """A subscriber with one link that is up, its inbox of 1 MiB, and what goes over the wire."""
    settings = config.parse({"name": "a", "mqtt": {"port": 1}, "ingest": {"pause_after": 0.1}}, config.Server)
    inbox = Inbox(1 << 20)
    subscriber = Subscriber(settings, [inbox])
    (wire,) = subscriber.links
    wire.comes_up()
    return subscriber, inbox, wire


def test_what_a_broker_remembers_of_a_client_that_moved_on_is_passed_over():
    settings = config.parse({"mqtt": {"port": 1, "others": "127.0.0.1:2"}}, config.Server)
    inbox = Inbox(1 << 20)
    subscriber = Subscriber(settings, [inbox])
    old, new = subscriber.links
    offline = Message(topics.client_status(7), b"offline", retained=True)

    old.hear(offline)
    assert len(inbox) == 1, "all that is known of it"
    new.hear(Message(topics.data(7), b"batch"))
    old.hear(offline)
    assert len(inbox) == 2, "it is with the new broker now"
    old.hear(Message(topics.client_status(8), b"another", retained=True))
    old.hear(Message(topics.client_status(7), b"said now"))
    assert len(inbox) == 4
    new.hear(Message(topics.data(7), b"batch"))
    old.hear(Message(topics.client_status(7), b""))
    assert len(inbox) == 5, "it has the old one forget it"
    subscriber.acknowledge(7, Ack("a", date(2026, 11, 30)))
    assert (old.published, new.published) == ([], [topics.ack(7)])


def hear(server, *messages):
    for message in messages:
        server[2].hear(message)


def commit(inbox):
    item = inbox.get()
    item.answer(item)


def other(accepting):
    return Message(topics.server_status("b"), ServerStatus(accepting, date(2026, 11, 30), "1").encode(), packet_id=1)


def test_json_is_answered_when_it_is_committed_and_a_batch_when_it_is_read(server):
    _, inbox, wire = server
    hear(server, Message(topics.data(7), JSON, packet_id=1), Message(topics.data(7), b"", CONTENT_TYPE, packet_id=2))
    assert wire.answered == [2]
    commit(inbox)
    assert wire.answered == [2, 1]


def test_json_that_the_broker_sends_again_while_it_is_held_is_held_once(server):
    _, inbox, wire = server
    hear(server, Message(topics.data(7), JSON, packet_id=1))
    wire.comes_up(session=True)
    hear(server, Message(topics.data(7), JSON, packet_id=1, dup=True))
    assert len(inbox) == 1
    commit(inbox)
    assert wire.answered == [1]


def test_after_the_broker_forgot_the_session_no_later_message_is_answered_by_an_earlier_one(server, caplog):
    _, inbox, wire = server
    hear(server, Message(topics.data(7), JSON, packet_id=1))
    wire.comes_up()
    assert "kept nothing" in caplog.text
    hear(server, Message(topics.data(7), JSON + b" ", packet_id=1))
    commit(inbox)
    assert wire.answered == []
    commit(inbox)
    assert wire.answered == [1]


def test_json_for_which_there_is_no_room_stays_with_the_broker_and_is_asked_for_when_there_is(server):
    subscriber, inbox, wire = server
    hear(server, Message(topics.data(7), bytes(1 << 20), packet_id=1), Message(topics.data(8), JSON, packet_id=2))
    assert (len(inbox), wire.answered, subscriber.accepting) == (1, [], False)
    assert subscriber.foreign_lost == 0
    subscriber.tick()
    subscriber.set_accepting(True)
    assert wire.connected_for == []
    inbox.get()
    subscriber.tick()
    assert wire.connected_for == [KEPT_S]
    subscriber.tick()
    assert len(wire.connected_for) == 1


def test_json_that_nobody_can_send_again_is_counted(server):
    subscriber, _, wire = server
    hear(server, Message(topics.data(7), bytes(1 << 20), packet_id=1), Message(topics.data(8), JSON))
    assert (subscriber.foreign_lost, wire.answered) == (1, [])


def test_a_client_that_fills_its_share_does_not_stop_the_others(server):
    subscriber, inbox, _ = server
    hear(server, *[Message(topics.data(7), bytes(1 << 18), CONTENT_TYPE, packet_id=n) for n in range(1, 9)])
    assert subscriber.accepting and subscriber.dropped == 7
    hear(server, Message(topics.data(8), bytes(1 << 18), CONTENT_TYPE, packet_id=9))
    assert len(inbox) == 2


def test_batches_that_waited_in_the_broker_are_looked_up(server):
    _, inbox, wire = server
    wire.comes_up(session=True)
    batch = Message(topics.data(7), b"", CONTENT_TYPE)
    hear(
        server, batch, Message(topics.server_status("a"), b"{}", "", {"connection": "of an earlier connection"}), batch
    )
    assert [inbox.get().message.dup for _ in range(2)] == [True, True]
    hear(server, Message(topics.server_status("a"), b"{}", "", dict(wire.marker)), batch)
    assert not inbox.get().message.dup


def test_only_where_no_other_server_accepts_does_one_that_cannot_commit_keep_json(server):
    subscriber, _, wire = server
    subscriber.set_accepting(False)
    assert wire.has_data, "the broker keeps it for the only server"
    hear(server, other(accepting=True))
    assert not wire.has_data
    hear(server, other(accepting=False))
    assert wire.has_data
    subscriber.set_accepting(True)
    hear(server, other(accepting=True))
    assert wire.has_data


def test_beside_other_servers_a_broker_keeps_a_session_for_a_minute(server):
    _, _, wire = server
    assert wire.session_expiry == KEPT_S
    hear(server, other(accepting=True))
    wire.session_expiry = wire.connected_for[-1]
    hear(server, other(accepting=False))
    assert wire.connected_for == [KEPT_BESIDE_OTHERS_S], "it may be back at any time"
    hear(server, Message(topics.server_status("b"), b"", packet_id=2))
    assert wire.connected_for == [KEPT_BESIDE_OTHERS_S, KEPT_S], "somebody cleared its status"


def test_a_shard_that_is_away_does_not_take_all_that_may_be_unanswered():
    settings = config.parse({"name": "a", "mqtt": {"port": 1}}, config.Server)
    subscriber = Subscriber(settings, [Inbox(64 << 20), Inbox(64 << 20)], lambda client_id: client_id % 2)
    (wire,) = subscriber.links
    wire.comes_up()
    server = subscriber, None, wire
    hear(server, *[Message(topics.data(2), JSON, packet_id=n) for n in range(1, RECEIVE_MAXIMUM + 1)])
    assert len(wire.answered) == subscriber.foreign_lost == RECEIVE_MAXIMUM // 2
    assert subscriber.accepting


def test_what_the_broker_says_it_dropped_is_told_when_it_grows(server, caplog):
    subscriber, _, _ = server
    for number in (b"0", b"5", b"5", b"9", b"x"):
        hear(server, Message(topics.BROKER_DROPPED, number))
    assert [record.args[1] for record in caplog.records] == [5, 9]
    assert subscriber.broker_dropped == 0


def test_a_server_that_waits_for_a_frozen_store_is_not_stuck():
    """The watchdog would kill it, and the next one would wait as long."""
    process = ServerProcess(config.parse({"name": "s"}, config.Server))
    process._figures = SimpleNamespace(trouble="")  # made when it starts
    (shard,) = process.shards
    answers = threading.Event()

    def frozen():
        shard.progress_at -= 2 * STUCK_AFTER_S
        assert answers.wait(20)

    patience = Patience("store", 5.0, lambda: None, threading.Event(), shard)
    working = threading.Thread(target=patience.until_done, args=[frozen])
    working.start()
    wait_for(lambda: time.monotonic() - shard.progress_at > STUCK_AFTER_S, 20, "it asks")
    try:
        assert process._health() == ""
        assert "does not return" in process.snapshot().stalls["insert"].why
    finally:
        answers.set()
        working.join()
    assert "has not moved" in process._health(), "what does not wait for the store is stuck"


def test_a_server_that_hears_of_waiting_readings_and_gets_none_says_so():
    process = ServerProcess(config.parse({"name": "s"}, config.Server))
    late = ClientStatus(True, "1", oldest_unacked_s=2 * UNHEARD_S)
    (wire,) = process.subscriber.links

    def told():
        return next(cause.why for cause in process._causes() if cause.name == "data")

    process.shards[0].clients[5] = late
    assert not told(), "not yet"
    process.subscriber.data_at -= 2 * UNHEARD_S
    assert "readings of a client wait" in told()
    wire.hear(Message(topics.client_status(5), b"{}"))
    assert told(), "a status is no reading"
    wire.hear(Message(topics.data(6), b"[]"))
    assert not told()
    process.subscriber.data_at -= 2 * UNHEARD_S
    process.shards[0].clients[5] = replace(late, online=False)
    assert not told(), "it is switched off"
