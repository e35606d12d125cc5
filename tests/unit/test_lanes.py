"""The uplink's books: the live lane and the backlog lane together own every batch, and who is set aside."""

from __future__ import annotations

from datetime import date

import pytest

from skywave import config, topics
from skywave.batch import Batch
from skywave.client.outbox import open_outbox
from skywave.client.uplink import TOO_LARGE_STRIKES, Uplink
from skywave.messages import ServerStatus
from skywave.mqtt import PACKET_TOO_LARGE, Disconnected, Message


@pytest.fixture
def uplink(tmp_path):
    settings = config.parse(
        {"client_id": 1, "sensors": {"t": {"port": 1}}, "outbox": {"path": str(tmp_path / "o.sqlite")}}, config.Client
    )
    outbox = open_outbox(settings.outbox)
    outbox.create(1)
    yield Uplink(settings, outbox, 5, outbox.start_stream(5))
    outbox.close()


def batch(number):
    return Batch(number, 5, number * 10 + 1, 10, 0, None, b"x")


def test_a_batch_skipped_before_later_ones_were_handed_over_joins_the_backlog(uplink):
    uplink._cursor, uplink._top = 101, 100  # no backlog; up to 200 all was live
    uplink._skipped_to = 201
    uplink._fresh = [batch(202), batch(203)]
    uplink._shelve_fresh()
    assert uplink._cursor <= 201
    assert uplink._top == 203


def test_live_batches_without_room_begin_the_backlog_where_they_begin(uplink):
    uplink._cursor, uplink._top = 101, 100
    uplink._fresh = [batch(150), batch(151)]
    uplink._shelve_fresh()
    assert (uplink._cursor, uplink._top) == (150, 151)
    assert uplink._fresh == []


def in_flight(uplink, size):
    large = Batch(1, 5, 1, 10, 0, None, b"x" * size)
    entry = uplink._window.add(large, date(2026, 11, 24), 0, True, 0.0)
    entry.arrived = lambda: False
    return entry


def test_a_large_batch_that_was_in_flight_at_every_loss_is_set_aside(uplink):
    in_flight(uplink, 100_000)
    for _ in range(TOO_LARGE_STRIKES - 1):
        uplink._disconnected(Disconnected(0, "reset"))
    assert not uplink.set_aside
    uplink._disconnected(Disconnected(0, "reset"))
    assert uplink.set_aside == {1: "broker: reset"}


def test_a_broker_that_says_a_packet_is_too_large_is_believed_at_once(uplink):
    in_flight(uplink, 1000)
    uplink._disconnected(Disconnected(PACKET_TOO_LARGE, "too large"))
    assert 1 in uplink.set_aside


def test_a_broker_that_was_left_has_refused_nothing(uplink):
    in_flight(uplink, 100_000)
    for _ in range(2 * TOO_LARGE_STRIKES):
        uplink._disconnected(Disconnected(0, "left", wanted=True))
    assert not uplink.set_aside


def test_a_batch_that_was_not_sent_or_was_taken_is_not_refused(uplink):
    in_flight(uplink, 100_000)
    uplink._up_at = 1.0  # connected again, and nothing sent since
    for _ in range(2 * TOO_LARGE_STRIKES):
        uplink._disconnected(Disconnected(0, "Keep alive timeout"))
    assert not uplink.set_aside
    uplink._up_at = 0.0
    in_flight(uplink, 100_000).arrived = lambda: True
    for _ in range(2 * TOO_LARGE_STRIKES):
        uplink._disconnected(Disconnected(0, "Keep alive timeout"))
    assert not uplink.set_aside


def test_the_date_of_a_server_that_died_long_after_its_start_is_not_taken(uplink):
    today, start = date(2026, 11, 24), date(2026, 11, 20)
    for number, (accepting, day) in enumerate([(True, today), (False, start)]):
        uplink._receive(Message(topics.server_status(f"s{number}"), ServerStatus(accepting, day, "1").encode()))
        assert uplink.heard_date == today
