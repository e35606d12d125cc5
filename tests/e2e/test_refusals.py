"""What the broker does not grant is named, and asked for again."""

from __future__ import annotations

import json

import pytest
from support.parts import Mosquitto, wait_for

from skywave import config
from skywave.formats import topics
from skywave.mqtt import subscriptions, trouble
from skywave.mqtt.events import PACKET_TOO_LARGE
from skywave.mqtt.link import Link

DYNAMIC_SECURITY = "plugin /usr/lib/x86_64-linux-gnu/mosquitto_dynamic_security.so\nplugin_opt_config_file {}\n"


@pytest.fixture
def broker():
    made = Mosquitto()
    try:
        yield made
    finally:
        made.remove()


@pytest.fixture
def connect(broker):
    """Starts the broker with more settings, and links to it."""
    links = []

    def connected(extra="", *subscriptions, name="l"):
        if broker.process is None:
            with (broker.folder / "mosquitto.conf").open("a") as conf:
                conf.write(extra)
            broker.folder.chmod(0o755)
            broker.start()
        settings = config.Mqtt(host="127.0.0.1", port=broker.port)
        link = Link([settings], name, subscriptions, lambda: None, lambda _: None, lambda _: None)
        links.append(link)
        link.start()
        return link

    yield connected
    for link in links:
        link.stop()


def roles(broker, subscriptions):
    """Configures who may subscribe what: nobody but as listed."""
    acls = [{"acltype": "subscribePattern", "topic": topic, "allow": True} for topic in subscriptions]
    rules = {
        "defaultACLAccess": {
            "publishClientSend": True, "publishClientReceive": True, "subscribe": False, "unsubscribe": True,
        },
        "anonymousGroup": "all",
        "groups": [{"groupname": "all", "roles": [{"rolename": "role"}]}],
        "roles": [{"rolename": "role", "acls": acls}],
        "clients": [],
    }  # fmt: skip
    path = broker.folder / "security.json"
    path.write_text(json.dumps(rules))
    path.chmod(0o644)
    return DYNAMIC_SECURITY.format(path)


def test_a_topic_on_which_the_broker_lets_nobody_publish_is_named_until_it_does(broker, connect):
    acl = broker.folder / "acl"
    acl.write_text("topic write a/status\n")
    acl.chmod(0o644)
    link = connect(f"acl_file {acl}\n")
    wait_for(lambda: link.connected, 10, "it connects")
    refused = []
    link.publish("a/status", b"x")
    arrived = link.publish("a/data", b"x", on_refused=refused.append)
    wait_for(lambda: refused, 10, "it is refused")
    assert (refused[0].code, refused[0].words) == (0x87, "Not authorized (135)")
    words = "the broker answers what is published on a/data with Not authorized (135)"
    assert words in link.refusals.values()
    assert words in link.error and words in link.trouble, "also when it ends the connection over it"
    wait_for(arrived, 10, "it has an answer")
    acl.write_text("topic write a/#\n")
    broker.signal(1)
    wait_for(lambda: link.publish("a/data", b"x") and not link.trouble, 20, "it is granted", 0.2)
    assert len(refused) == 1


def test_a_refused_subscription_is_named_and_asked_for_again_until_it_is_granted(broker, connect, monkeypatch):
    monkeypatch.setattr(subscriptions, "SUBSCRIBE_AGAIN_S", 0.5)
    shared = topics.ALL_DATA_SHARED[0]
    link = connect(roles(broker, ["ok/#"]), "ok/1", shared)
    words = f"the broker answers the subscription of {shared} with Not authorized (135)"
    wait_for(lambda: link.trouble == words, 10, lambda: f"it is named: {link.trouble}")
    roles(broker, ["ok/#", shared])
    broker.stop()
    broker.start()
    wait_for(lambda: link.connected and not link.trouble, 20, lambda: f"it is granted: {link.trouble}")


def test_a_subscription_that_is_not_wanted_any_more_is_no_trouble(broker, connect, monkeypatch):
    monkeypatch.setattr(subscriptions, "SUBSCRIBE_AGAIN_S", 0.2)
    link = connect(roles(broker, []), "x/y")
    wait_for(lambda: link.refusals, 10, "it is refused")
    link.unsubscribe(["x/y"])
    wait_for(lambda: not link.refusals, 10, "it is over")
    link.subscribe(["x/z"])
    wait_for(lambda: link.refusals, 10, "another one is refused")
    assert "x/z" in link.trouble and "x/y" not in link.trouble


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("message_size_limit 30000\n", "Packet too large (149)"),
        ("max_packet_size 30000\n", "at most 30000 bytes"),
    ],
)
def test_a_message_too_large_for_the_broker_is_told_and_no_other_is_held_up(connect, setting, words):
    link = connect(setting)
    wait_for(lambda: link.connected, 10, "it connects")
    refused = []
    link.publish("x/large", b"x" * 40_000, on_refused=refused.append)
    wait_for(lambda: refused, 10, "it is refused")
    assert refused[0].code == PACKET_TOO_LARGE and words in refused[0].words
    link.publish("x/large", b"x" * 50_000, on_refused=refused.append)
    wait_for(lambda: link.connected and link.publish("x/small", b"x" * 20_000), 10, "it is connected, or again")
    wait_for(link.publish("x/small", b"x" * 20_000), 10, "another one arrives")
    assert "x/large" in link.trouble


@pytest.mark.parametrize("spare", [0, 1])
def test_a_message_is_sent_if_it_fits_to_the_last_byte(connect, spare):
    link = connect("max_packet_size 1000\n")
    wait_for(lambda: link.connected, 10, "it connects")
    properties = (("stream", "5"), ("day", "2026-11-24"))
    refused = []

    def publish(size):
        return link.publish(
            "x/y", b"x" * size, content_type="text/plain", properties=properties, on_refused=refused.append
        )

    # Kind 1, length 2, topic 5, number 2; properties: length 1, content type 13, pairs of 12 and 18 bytes.
    arrived = publish(1000 - 54 + spare)
    if spare:
        assert refused and arrived()
    else:
        wait_for(arrived, 10, "it arrives")
    assert link.connected


def test_a_refused_connection_is_told_with_its_reason(connect):
    link = connect("allow_anonymous false\n")
    wait_for(lambda: "Not authorized (135)" in link.trouble, 10, lambda: f"it is told: {link.trouble}")


def test_two_clients_of_one_name_say_so_and_do_not_fill_the_log(connect, caplog):
    caplog.set_level("INFO")
    links = [connect(name="twin"), connect(name="twin")]
    wait_for(
        lambda: all("another client named twin" in link.trouble for link in links), 60,
        lambda: f"both say so: {[link.trouble for link in links]}",
    )  # fmt: skip
    assert len(caplog.records) <= 2 * trouble.LOG_LINES
