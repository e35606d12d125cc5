"""The parts of a link: what is answered, which broker is next and when, and what is said of it."""

from __future__ import annotations

import pytest
from paho.mqtt.client import MQTTMessageInfo

from skywave import config
from skywave.mqtt import brokers, trouble
from skywave.mqtt.brokers import Brokers
from skywave.mqtt.events import SESSION_TAKEN_OVER, Disconnected
from skywave.mqtt.publishing import SizeLimit
from skywave.mqtt.trouble import Trouble
from skywave.mqtt.unanswered import MANY_UNANSWERED, Unanswered


class Sent(MQTTMessageInfo):
    """paho's handle of a message that the broker answers when the test says so."""

    answered = False

    def is_published(self) -> bool:
        return self.answered


def test_what_is_not_answered_before_a_later_one_is_passed_over():
    unanswered, infos = Unanswered(), [Sent(number) for number in range(3)]
    first, second, third = [unanswered.add(info, "x", 1, None) for info in infos]
    infos[1].answered = True
    assert (first(), second(), third()) == (True, True, False)
    assert unanswered.find(0) is None and unanswered.find(2).info is infos[2]


def test_a_new_connection_answers_for_an_earlier_one_only_by_what_it_answers_itself():
    unanswered, after = Unanswered(), Sent(1)
    before = unanswered.add(Sent(1), "x", 1, None)
    unanswered.forget()
    assert not before()
    unanswered.add(after, "x", 1, None)
    assert not before()
    after.answered = True
    assert before()


def test_what_is_answered_is_forgotten_though_nobody_asks():
    unanswered = Unanswered()
    for _ in range(2 * MANY_UNANSWERED):
        info = Sent(7)
        info.answered = True
        unanswered.add(info, "x", 1, None)
    for number in range(MANY_UNANSWERED):
        unanswered.add(Sent(number + 100), "x", 1, None)
    assert unanswered.find(7) is None


@pytest.fixture
def clock(monkeypatch):
    """The monotonic clock, in the test's hand."""

    class Clock:
        now = 1000.0

    monkeypatch.setattr("time.monotonic", lambda: Clock.now)
    return Clock


@pytest.fixture(autouse=True)
def no_chance(monkeypatch):
    """Pauses are not shortened."""
    monkeypatch.setattr("random.uniform", lambda _least, most: most)


def test_each_attempt_is_for_the_next_broker_and_failures_are_tried_more_and_more_seldom():
    two = Brokers([config.Mqtt(host="a"), config.Mqtt(host="b")], "l")
    tried, pauses = [], []
    for _ in range(8):
        tried.append(two.address)
        two.failed()
        pauses.append(two.go_on(rival=False))
    assert tried == ["a:1883", "b:1883"] * 4
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]


def test_a_connection_that_held_is_tried_again_at_once_and_a_short_one_is_not(clock):
    one, lost = Brokers([config.Mqtt()], "l"), Disconnected(0, "gone")
    for _ in range(4):
        one.go_on(rival=False)
    one.connected()
    clock.now += brokers.STEADY_S
    one.lost(lost, silent=False)
    assert one.go_on(rival=False) == 1.6
    one.connected()
    clock.now += brokers.STEADY_S + 0.1
    one.lost(lost, silent=False)
    assert one.go_on(rival=False) == 0.1


def test_a_rival_is_known_by_its_word_or_by_silence_and_waited_for_longer_and_longer():
    one = Brokers([config.Mqtt()], "l")
    silence, word = Disconnected(0, "no word"), Disconnected(SESSION_TAKEN_OVER, "taken over")
    said = []
    for _ in range(3):
        one.connected()
        said.append(one.lost(silence, silent=True))
        one.go_on(rival=False)
    assert said[:2] == ["", ""] and "another client named l" in said[2]
    one.connected()
    assert "is connected to the broker: taken over" in one.lost(word, silent=False)
    assert [one.go_on(rival=True) for _ in range(2)] == [16.0, 16.0]
    for _ in range(3):
        one.connected()
        one.lost(word, silent=False)
    assert one.go_on(rival=True) == brokers.RIVAL_PAUSE_MAX_S
    one.failed()
    one.connected()
    assert one.lost(silence, silent=True) == "", "it has not come back since the broker was away"


def test_a_connection_that_flaps_says_so_and_then_waits(clock, caplog):
    made = Trouble()
    for number in range(3 * trouble.LOG_LINES):
        made.failed(f"connection lost: {number}")
    assert len(caplog.records) == trouble.LOG_LINES
    assert caplog.records[-1].message.endswith("further lines on this connection wait")
    clock.now += trouble.LOG_PERIOD_S + 1
    made.failed("connection lost: again")
    assert caplog.records[-1].message == "broker: connection lost: again"
    assert made.last_error == "connection lost: again"


def test_a_refusal_is_over_when_it_was_not_heard_again_for_long(clock, caplog):
    caplog.set_level("INFO")
    made = Trouble()
    made.refused("publish x", "not you")
    made.refused("publish x", "not you")
    clock.now += trouble.REFUSAL_HOLDS_S
    made.forget_old(clock.now)
    assert made.refusals == {"publish x": "not you"}
    made.forget_old(clock.now + 1)
    assert not made.refusals
    assert [record.message for record in caplog.records] == ["broker: not you", "broker: over: not you"]


def test_a_size_that_was_refused_is_tried_again_later(clock):
    limit = SizeLimit()
    assert not limit.forbids("x", bytes(10_000), None)
    limit.refused(1000)
    assert "it refused 1000 bytes" in limit.forbids("x", bytes(1000), None)
    assert not limit.forbids("x", bytes(999), None)
    clock.now += 31
    assert not limit.forbids("x", bytes(1000), None)
