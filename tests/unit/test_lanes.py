"""The lanes: the live lane and the backlog lane together own every batch, and each gets the day of its first publish."""

from __future__ import annotations

from datetime import date

import pytest

from skywave.client.lanes import DAY_AHEAD, FRESH_LIMIT, MAX_UNPUBLISHED_GAPS, Lanes
from skywave.formats.batch import Batch
from skywave.outbox.days import Days

TODAY, TOMORROW = date(2026, 11, 24), date(2026, 11, 25)


def batch(number):
    return Batch(number, 5, number * 10 + 1, 10, 0, None, b"x")


@pytest.fixture
def lanes():
    """Up to 100 all is backlog, and walked through; up to 200 all was live and has a day."""
    found = Lanes(101, Days([(1, TODAY)]))
    found.walked([], 1)
    offer(found, 200)
    publish(found)
    assert found.backlog() is None
    return found


def offer(lanes, *numbers):
    taken = [lanes.offer(batch(number)) for number in numbers]
    lanes.take_offered()
    return taken


def publish(lanes, room=FRESH_LIMIT):
    """Publishes what the live lane has, up to ``room``, and leaves the rest to the backlog."""
    sent = [item.id for item in lanes.fresh(room)]
    for number in sent:
        lanes.published(number)
    lanes.shelve()
    return sent


def test_a_batch_skipped_before_later_ones_were_handed_over_joins_the_backlog(lanes):
    lanes.leave(201)
    offer(lanes, 202, 203)
    publish(lanes, room=0)
    first, last = lanes.backlog()
    assert first <= 201
    assert last == 203


def test_a_batch_skipped_before_later_ones_were_published_joins_the_backlog(lanes):
    lanes.leave(201)
    offer(lanes, 202, 203)
    assert publish(lanes) == [202, 203]
    first, last = lanes.backlog()
    assert first <= 201 <= last


def test_live_batches_without_room_begin_the_backlog_where_they_begin(lanes):
    offer(lanes, 250, 251)
    publish(lanes, room=0)
    assert lanes.backlog() == (250, 251)
    assert not lanes.fresh(FRESH_LIMIT)


def test_what_the_live_lane_has_room_for_is_not_in_the_backlog(lanes):
    offer(lanes, 201, 202, 203)
    assert publish(lanes, room=2) == [201, 202]
    assert lanes.backlog() == (203, 203)


def test_what_the_backlog_lane_has_already_is_not_live_as_well(lanes):
    lanes.leave(210)
    lanes.shelve()
    offer(lanes, 205)
    assert lanes.fresh(FRESH_LIMIT) == []


def test_beyond_a_bound_batches_are_left_to_the_backlog(lanes):
    taken = [lanes.offer(batch(number)) for number in range(201, 201 + 2 * FRESH_LIMIT)]
    assert taken == [True] * FRESH_LIMIT + [False] * FRESH_LIMIT
    lanes.take_offered()
    assert len(publish(lanes)) == FRESH_LIMIT
    first, last = lanes.backlog()
    assert first <= 201 + FRESH_LIMIT and last == 200 + 2 * FRESH_LIMIT


def test_a_walk_that_is_cut_short_begins_again_where_it_began(lanes):
    lanes.leave(230)
    lanes.shelve()
    assert lanes.backlog() == (101, 230), "what was live and is delivered is no longer in the outbox"
    lanes.walked([batch(number) for number in range(201, 211)], 10)
    assert lanes.backlog() == (211, 230)
    assert lanes.backlog() == (211, 230), "nothing was published of what was read since"
    lanes.walked([batch(211), batch(230)], 10)
    assert lanes.backlog() is None, "there were no others"


# -- days ----------------------------------------------------------------------------------------------------------------


def fix(lanes, days, number, today):
    """As the uplink and its outbox do; returns the rules then, and the ids whose day was fixed."""
    ids = lanes.without_day(number, today)
    if ids:
        days = days.put(ids.start, ids.stop, today)
        lanes.fixed(days)
    return days, ids


def test_a_day_is_fixed_for_many_and_taken_back_from_those_that_were_not_published():
    days = Days([(1, None)])
    lanes = Lanes(1, days)
    days, ids = fix(lanes, days, 1, TODAY)
    assert ids == range(1, 1 + DAY_AHEAD)
    for number in (1, 2, 4):
        assert not lanes.without_day(number, TODAY)
        assert lanes.published(number) == TODAY
    assert lanes.unused_days(TODAY) == []
    assert lanes.unused_days(TOMORROW) == lanes.unused_days(None) == [range(5, 1 + DAY_AHEAD), range(3, 4)]
    for unused in lanes.unused_days(None):
        days = days.put(unused.start, unused.stop, None)
        lanes.taken_back(unused, days)
    assert lanes.unused_days(None) == []
    assert [bool(lanes.without_day(number, TOMORROW)) for number in range(1, 6)] == [False, False, True, False, True]


def test_a_day_that_could_not_be_fixed_for_sure_is_taken_back_for_sure():
    lanes = Lanes(1, Days([(1, None)]))
    for _ in range(3):
        assert lanes.without_day(7, TODAY) == range(7, 7 + DAY_AHEAD)
    assert lanes.unused_days(None) == [range(7, 7 + DAY_AHEAD)]


def test_a_day_that_may_have_been_taken_back_is_fixed_anew_before_it_is_used():
    """The outbox went away in the midst of the commit: whether it has the day still, nobody knows."""
    days = Days([(1, None)])
    lanes = Lanes(1, days)
    days, ids = fix(lanes, days, 5, TODAY)
    assert lanes.unused_days(None) == [ids]
    assert lanes.without_day(5, TODAY) == ids
    lanes.fixed(days)
    assert lanes.published(5) == TODAY
    assert lanes.unused_days(None) == [range(6, ids.stop)]


def test_a_day_never_reaches_into_what_has_one():
    lanes = Lanes(1, Days([(1, None), (20, TODAY)]))
    assert lanes.without_day(5, TOMORROW) == range(5, 20)


def test_days_are_taken_back_when_too_many_gaps_are_left():
    days = Days([(1, None)])
    lanes = Lanes(1, days)
    fix(lanes, days, 1, TODAY)
    for number in range(2, 2 * MAX_UNPUBLISHED_GAPS + 2, 2):
        assert not lanes.unused_days(TODAY)
        lanes.published(number)
    assert len(lanes.unused_days(TODAY)) == MAX_UNPUBLISHED_GAPS + 1


def test_nothing_is_published_without_a_day():
    lanes = Lanes(1, Days([(1, None)]))
    with pytest.raises(AssertionError, match="day"):
        lanes.published(1)
