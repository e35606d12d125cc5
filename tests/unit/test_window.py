"""The window: what may be sent, what an acknowledgement frees, what is due again."""

from __future__ import annotations

import random
from datetime import date

import pytest

from skywave import config
from skywave.client.window import Window
from skywave.formats.batch import Batch
from skywave.formats.messages import Range

DAY = date(2026, 11, 24)


def batch(number, size=100, stream=5):
    return Batch(number, stream, number * 10 + 1, 10, 0, None, b"x" * size)


def window(**settings):
    return Window(config.Uplink(**settings), random.Random(1))


def test_an_ack_removes_only_batches_that_it_covers_wholly():
    w = window()
    for number in range(4):
        w.add(batch(number), DAY, 0, True, 0.0)
    assert [b.id for b in w.acknowledge(Range(5, 1, 25), 0.1)] == [0, 1]
    assert len(w) == 2


def test_acks_of_other_streams_or_of_what_was_never_sent_are_counted_and_ignored():
    w = window()
    w.add(batch(1), DAY, 0, True, 0.0)
    for hostile in (
        Range(6, 0, 2**64 - 1),
        Range(5, 0, 0),
        Range(5, 15, 15),
        Range(5, 2**63, 2**64 - 1),
        Range(5, 20, 11),
    ):
        assert w.acknowledge(hostile, 0.1) == []
    assert w.ignored_acks == 5
    assert len(w) == 1


def test_the_window_is_bounded_in_batches_and_bytes_and_leaves_room_for_live_ones():
    w = window(max_in_flight=16, max_in_flight_bytes=1 << 16)
    for number in range(14):
        w.add(batch(number), DAY, 0, False, 0.0)
    assert w.room(live=False) == 0
    assert w.room(live=True) == 2
    w.add(batch(20, 1 << 17), DAY, 0, True, 0.0)
    assert w.room(live=True) == 0


def test_an_unacknowledged_batch_comes_again_ever_later_and_marked():
    w = window(ack_timeout_min=1.0, ack_timeout_max=8.0)
    w.add(batch(1), DAY, 0, True, 0.0)
    assert w.due(1.9, 9) == []
    now, pauses = 0.0, []
    for attempt in range(1, 7):
        sent_at, now = now, next(iter(w)).due_at
        assert [entry.attempt for entry in w.due(now, 9)] == [attempt]
        pauses.append(now - sent_at)
    assert pauses[:2] == sorted(pauses[:2])
    assert min(pauses[2:]) >= 8.0, "the longest time-out, jittered upwards"
    assert pauses[-1] <= 10.0


def test_the_time_out_follows_the_measured_delay_of_first_publishes_only():
    w = window(ack_timeout_min=0.5)
    for number in range(50):
        w.add(batch(number), DAY, 0, True, float(number))
        w.acknowledge(Range(5, number * 10 + 1, number * 10 + 10), number + 2.0)
    assert 1.9 < w.ack_delay < 2.1
    assert 2.0 <= w.timeout < 3.0
    w.add(batch(99), DAY, 1, True, 100.0)
    w.acknowledge(Range(5, 991, 1000), 190.0)
    assert w.ack_delay < 2.1


def test_after_a_reconnect_everything_is_due():
    w = window()
    for number in range(5):
        w.add(batch(number), DAY, 0, True, 100.0)
    w.rewind()
    assert len(w.due(100.0, 3)) == 3
    assert len(w.due(100.0, 3)) == 2
    assert w.due(100.0, 3) == []


class SlowLink:
    """A first-in, first-out queue that carries so many bytes a second; the server answers at once what has arrived."""

    def __init__(self, rate):
        self.rate, self.free_at, self.queued = rate, 0.0, []

    def send(self, entry, now):
        self.free_at = max(self.free_at, now) + len(entry.batch.payload) / self.rate
        arrives = self.free_at
        self.queued.append((arrives, entry.batch))
        entry.arrived = lambda: self.now >= arrives

    def arrived(self, now):
        self.now = now
        here = [batch for at, batch in self.queued if at <= now]
        self.queued = [item for item in self.queued if item[0] > now]
        return here


@pytest.mark.parametrize(("rate", "size", "every"), [(25_000, 6000, 0.4), (60_000, 15_000, 1.0), (25_000, 30_000, 2.0)])
def test_a_backlog_drains_over_a_link_not_much_faster_than_its_sensors(rate, size, every):
    w, link = window(), SlowLink(rate)
    now, made, acked, next_at = 0.0, 500, 0, every  # 500 batches wait after an outage
    sent = 0
    while acked < made and now < 7200:
        now += 0.1
        while next_at <= now:
            made, next_at = made + 1, next_at + every
        for arrived in link.arrived(now):
            acked += len(w.acknowledge(Range(5, arrived.first_seq, arrived.last_seq), now))
        for entry in w.due(now, 8):
            link.send(entry, now)
        while sent < made and w.room(live=False):
            link.send(w.add(batch(sent, size), DAY, 0, False, now), now)
            sent += 1
    assert acked == made
    assert w.resent == 0
    assert len(link.queued) <= 64


def test_what_arrived_and_was_not_acknowledged_is_due_and_after_a_reconnect_everything_is():
    w = window(ack_timeout_min=1.0)
    here, under_way = (w.add(batch(number), DAY, 0, True, 0.0) for number in range(2))
    under_way.arrived = lambda: False
    assert w.due(10.0, 8) == [here]
    w.rewind()
    assert w.due(10.0, 8) == [here, under_way]
