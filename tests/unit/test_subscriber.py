"""A server that listens to several brokers."""

from __future__ import annotations

from dataclasses import replace

from skywave import config, topics
from skywave.messages import ClientStatus
from skywave.mqtt import Message
from skywave.server.service import UNHEARD_S, ServerProcess
from skywave.server.subscriber import Inbox, Subscriber


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
