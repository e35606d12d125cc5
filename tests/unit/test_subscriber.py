"""A server that listens to several brokers."""

from __future__ import annotations

from skywave import config, topics
from skywave.mqtt import Message
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
