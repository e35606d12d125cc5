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
from skywave.formats.messages import ClientStatus, ServerStatus
from skywave.mqtt.events import Message
from skywave.mqtt.properties import RECEIVE_MAXIMUM
from skywave.server.service import STUCK_AFTER_S, UNHEARD_S, ServerProcess
from skywave.server.subscriber import KEPT_BESIDE_OTHERS_S, KEPT_S, Inbox, Subscriber


def test_what_a_broker_remembers_of_a_client_that_moved_on_is_passed_over():
    settings = config.parse({"mqtt": {"port": 1, "others": "127.0.0.1:2"}}, config.Server)
    inbox = Inbox(1 << 20)
    subscriber = Subscriber(settings, [inbox])
    old, new = subscriber.links
    offline = Message(topics.client_status(7), b"offline", retained=True)

    subscriber._receive(old, offline)
    assert len(inbox) == 1, "all that is known of it"
    subscriber._receive(new, Message(topics.data(7), b"batch"))
    subscriber._receive(old, offline)
    assert len(inbox) == 2, "it is with the new broker now"
    subscriber._receive(old, Message(topics.client_status(8), b"another", retained=True))
    subscriber._receive(old, Message(topics.client_status(7), b"said now"))
    assert len(inbox) == 4
    subscriber._receive(new, Message(topics.data(7), b"batch"))
    subscriber._receive(old, Message(topics.client_status(7), b""))
    assert len(inbox) == 5, "it has the old one forget it"
    assert subscriber._heard_from[7] is new


JSON = b'{"created_at": 1, "data_key": "k", "data_value": 1}'


class Wire:
    """What a subscriber's link would send."""

    def __init__(self, link, monkeypatch):
        self.link, self.answered, self.subscribed, self.connected_for = link, [], set(), []
        link.connected, link.session_present = True, False
        monkeypatch.setattr(link, "acknowledge", lambda number: number and self.answered.append(number))
        monkeypatch.setattr(link, "subscribe", lambda wanted, **_: self.subscribed.update(wanted))
        monkeypatch.setattr(link, "unsubscribe", lambda wanted: self.subscribed.difference_update(wanted))
        monkeypatch.setattr(link, "publish", lambda *_, **more: setattr(self, "marker", more.get("properties")))
        monkeypatch.setattr(link, "reconnect", self.connected_for.append)

    @property
    def has_data(self) -> bool:
        return set(topics.ALL_DATA_SHARED) <= self.subscribed


@pytest.fixture
def server(monkeypatch):
    """A subscriber with one link that is up, its inbox of 1 MiB, and what goes over the wire."""
    settings = config.parse({"name": "a", "mqtt": {"port": 1}, "ingest": {"pause_after": 0.1}}, config.Server)
    inbox = Inbox(1 << 20)
    subscriber = Subscriber(settings, [inbox])
    wire = Wire(subscriber.links[0], monkeypatch)
    comes_up(subscriber, wire)
    return subscriber, inbox, wire


def comes_up(subscriber, wire, session=False):
    wire.link.session_present = session
    subscriber._up(subscriber._brokers[wire.link])


def hear(server, *messages):
    for message in messages:
        server[0]._hear(server[2].link, message)


def other(accepting):
    return Message(topics.server_status("b"), ServerStatus(accepting, date(2026, 11, 30), "1").encode(), packet_id=1)


def test_json_is_answered_when_it_is_committed_and_a_batch_when_it_is_read(server):
    _, inbox, wire = server
    hear(server, Message(topics.data(7), JSON, packet_id=1), Message(topics.data(7), b"", CONTENT_TYPE, packet_id=2))
    assert wire.answered == [2]
    item = inbox.take()
    item.settle(item)
    assert wire.answered == [2, 1]


def test_json_that_the_broker_sends_again_while_it_is_held_is_held_once(server):
    subscriber, inbox, wire = server
    hear(server, Message(topics.data(7), JSON, packet_id=1))
    comes_up(subscriber, wire, session=True)
    hear(server, Message(topics.data(7), JSON, packet_id=1, dup=True))
    assert len(inbox) == 1
    item = inbox.take()
    item.settle(item)
    assert wire.answered == [1]


def test_after_the_broker_forgot_the_session_no_later_message_is_answered_by_an_earlier_one(server, caplog):
    subscriber, inbox, wire = server
    hear(server, Message(topics.data(7), JSON, packet_id=1))
    comes_up(subscriber, wire)
    assert "kept nothing" in caplog.text
    hear(server, Message(topics.data(7), JSON + b" ", packet_id=1))
    item = inbox.take()
    item.settle(item)
    assert wire.answered == []
    item = inbox.take()
    item.settle(item)
    assert wire.answered == [1]


def test_json_for_which_there_is_no_room_stays_with_the_broker_and_is_asked_for_when_there_is(server):
    subscriber, inbox, wire = server
    hear(server, Message(topics.data(7), bytes(1 << 20), packet_id=1), Message(topics.data(8), JSON, packet_id=2))
    assert (len(inbox), wire.answered, subscriber.accepting) == (1, [], False)
    assert subscriber.foreign_lost == 0
    subscriber.tick()
    subscriber.set_accepting(True)
    assert wire.connected_for == []
    inbox.take()
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
    subscriber, inbox, wire = server
    comes_up(subscriber, wire, session=True)
    batch = Message(topics.data(7), b"", CONTENT_TYPE)
    hear(
        server, batch, Message(topics.server_status("a"), b"{}", "", {"connection": "of an earlier connection"}), batch
    )
    assert [inbox.take().message.dup for _ in range(2)] == [True, True]
    hear(server, Message(topics.server_status("a"), b"{}", "", dict(wire.marker)), batch)
    assert not inbox.take().message.dup


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
    assert wire.link.session_expiry == KEPT_S
    hear(server, other(accepting=True))
    wire.link.session_expiry = wire.connected_for[-1]
    hear(server, other(accepting=False))
    assert wire.connected_for == [KEPT_BESIDE_OTHERS_S], "it may be back at any time"
    hear(server, Message(topics.server_status("b"), b"", packet_id=2))
    assert wire.connected_for == [KEPT_BESIDE_OTHERS_S, KEPT_S], "somebody cleared its status"


def test_a_shard_that_is_away_does_not_take_all_that_may_be_unanswered(monkeypatch):
    settings = config.parse({"name": "a", "mqtt": {"port": 1}}, config.Server)
    subscriber = Subscriber(settings, [Inbox(64 << 20), Inbox(64 << 20)], lambda client_id: client_id % 2)
    wire = Wire(subscriber.links[0], monkeypatch)
    comes_up(subscriber, wire)
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

    working = threading.Thread(target=shard._until_done, args=[frozen])
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

    def told():
        return next(cause.why for cause in process._causes() if cause.name == "data")

    process.subscriber.links[0].connected = True
    process.shards[0].clients[5] = late
    assert not told(), "not yet"
    process.subscriber.data_at -= 2 * UNHEARD_S
    assert "readings of a client wait" in told()
    process.subscriber._receive(process.subscriber.links[0], Message(topics.client_status(5), b"{}"))
    assert told(), "a status is no reading"
    process.subscriber._receive(process.subscriber.links[0], Message(topics.data(6), b"[]"))
    assert not told()
    process.subscriber.data_at -= 2 * UNHEARD_S
    process.shards[0].clients[5] = replace(late, online=False)
    assert not told(), "it is switched off"
