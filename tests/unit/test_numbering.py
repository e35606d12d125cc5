"""Acknowledged intake without a socket: where a sensor that numbers its readings goes on, and what it is told."""

from __future__ import annotations

import pytest

from skywave.client.numbering import MAX_SEQ, NOWHERE, Numbering
from skywave.formats.frames import Word
from skywave.outbox.outbox import Position


def first(stream, seq):
    return Word("first", stream, seq).encode()


def connected(numbering, says):
    """What follows the sensor's first word, and what it no longer has."""
    numbering.connected()
    assert not numbering.greeted
    return numbering.greet(says)


def test_it_goes_on_after_what_was_taken_in_and_after_a_restart_after_what_is_committed():
    numbering = Numbering(Position(5, 10))
    assert numbering.connected() == Word("after", 5, 10)
    assert numbering.greet(first(5, 11) + b"frames") == (b"frames", range(0))
    numbering.take(7)
    assert numbering.taken == (5, 17) and numbering.committed == (5, 10)
    assert numbering.connected() == Word("after", 5, 17)
    assert Numbering(numbering.committed).connected() == Word("after", 5, 10)


def test_a_word_may_come_in_pieces():
    numbering = Numbering(NOWHERE)
    numbering.connected()
    whole = first(3, 1) + b"rest"
    for at in range(len(first(3, 1)) - 1):
        assert numbering.greet(whole[at : at + 1]) == (b"", range(0))
        assert not numbering.greeted
    assert numbering.greet(whole[len(first(3, 1)) - 1 :]) == (b"rest", range(0))
    assert numbering.greeted


def test_readings_that_the_sensor_no_longer_has_are_named_within_a_stream_alone():
    assert connected(Numbering(Position(5, 10)), first(5, 15)) == (b"", range(11, 15))
    assert connected(Numbering(Position(5, 10)), first(6, 15)) == (b"", range(0)), "it began anew"


def test_what_it_was_told_is_forgotten_with_the_connection():
    numbering = Numbering(Position(5, 10))
    numbering.told = Position(5, 10)
    numbering.connected()
    assert numbering.told == NOWHERE


@pytest.mark.parametrize(
    "says", [first(5, 10), first(0, 1), first(6, MAX_SEQ + 1), Word("ack", 5, 11).encode(), b"x" * 99]
)
def test_anything_else_is_no_acknowledged_intake(says):
    numbering = Numbering(Position(5, 10))
    with pytest.raises(ValueError, match="no acknowledged intake"):
        connected(numbering, says)
    assert numbering.taken == (5, 10)
