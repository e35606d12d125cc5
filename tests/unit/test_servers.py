"""What a client hears of its servers: who accepts, the date, and messages that no server of ours sends."""

from __future__ import annotations

import sys
import threading
from datetime import date

from support.parts import wait_for

from skywave.client.inbox import MESSAGES_AHEAD, Inbox
from skywave.client.servers import LOG_EVERY_S, MAX_SERVERS, UNSERVED_S, Servers
from skywave.formats import topics
from skywave.formats.messages import Ack, ServerStatus
from skywave.mqtt.events import Message

TODAY = date(2026, 11, 24)


def status(server, accepting=True, day=TODAY):
    return Message(topics.server_status(server), ServerStatus(accepting, day, "1").encode())


def test_whether_a_server_accepts_can_be_asked_while_servers_come_and_go():
    servers = Servers(1, None)
    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    over = threading.Event()

    def come_and_go():
        while not over.is_set():
            for n in range(4):
                servers.hear(status(f"s{n}", accepting=False), 0.0)
            servers.forget()

    thread = threading.Thread(target=come_and_go)
    thread.start()
    try:
        for _ in range(100_000):
            assert not servers.accept
    finally:
        sys.setswitchinterval(switch)
        over.set()
        thread.join()


def test_the_date_of_a_server_that_died_long_after_its_start_is_not_taken():
    servers = Servers(1, None)
    for number, (accepting, day) in enumerate([(True, TODAY), (False, date(2026, 11, 20))]):
        servers.hear(status(f"s{number}", accepting, day), 0.0)
        assert servers.heard_date == TODAY


def test_the_date_goes_back_only_when_a_clock_was_mended():
    servers = Servers(1, None)
    for said, heard in ((24, 24), (23, 24), (25, 25), (24, 25), (23, 23)):
        servers.hear(Message(topics.ack(1), Ack("s", date(2026, 11, said)).encode()), 0.0)
        assert servers.heard_date == date(2026, 11, heard)
    servers.hear(status("s", day=date(1970, 1, 1)), 0.0)
    assert servers.heard_date == date(2026, 11, 23), "a clock that was never set"


def test_a_server_accepts_until_it_says_otherwise_or_goes():
    servers = Servers(1, None)
    servers.hear(status("a"), 0.0)
    servers.hear(status("b", accepting=False), 0.0)
    assert servers.accept
    servers.hear(Message(topics.server_status("a"), b""), 0.0)
    assert not servers.accept


def test_that_no_server_accepts_is_told_after_a_while_and_again_after_as_long():
    servers = Servers(1, None)
    assert not servers.are_missing(False, 100.0)
    assert [at for at in range(100, 140) if servers.are_missing(True, float(at))] == [111, 122, 133]
    servers.hear(status("a"), 140.0)
    assert not servers.are_missing(True, 140.0 + 2 * UNSERVED_S)


def test_a_retained_acknowledgement_is_ignored_and_said_once(caplog):
    servers = Servers(1, None)
    retained = Message(topics.ack(1), Ack("x", TODAY).encode(), retained=True)
    for n in range(100):
        assert servers.hear(retained, n * LOG_EVERY_S / 200) is None
    assert servers.bad_messages == 100
    assert len(caplog.records) == 1


def test_more_servers_than_a_client_remembers_are_bad_messages():
    servers = Servers(1, None)
    for n in range(MAX_SERVERS + 5):
        servers.hear(status(f"s{n}", accepting=False), 0.0)
    assert servers.bad_messages == 5


def test_messages_wait_in_the_socket_while_the_uplink_is_busy():
    inbox, done, put = Inbox(), threading.Event(), []

    def receive():
        for number in range(3 * MESSAGES_AHEAD):
            inbox.put_message(Message("x", b""))
            put.append(number)
        done.set()

    threading.Thread(target=receive, daemon=True).start()
    wait_for(lambda: len(put) == MESSAGES_AHEAD, 10, "some wait")
    assert not done.wait(0.3) and len(put) == MESSAGES_AHEAD
    taken = []
    wait_for(lambda: taken.extend(inbox.take(0)) or done.is_set(), 10, "the others come when these are read")
    taken.extend(inbox.take(0))
    assert len(taken) == 3 * MESSAGES_AHEAD


def test_who_waits_for_room_goes_when_the_client_stops():
    inbox = Inbox()
    for _ in range(MESSAGES_AHEAD):
        inbox.put_message(Message("x", b""))
    thread = threading.Thread(target=inbox.put_message, args=(Message("x", b""),), daemon=True)
    thread.start()
    inbox.close()
    thread.join(10)
    assert not thread.is_alive()
