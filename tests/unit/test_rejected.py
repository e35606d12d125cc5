"""Work on what was rejected."""

from __future__ import annotations

import hashlib
import json
from array import array
from datetime import timedelta

import pytest

from skywave import config
from skywave.errors import ConfigError, PoisonError
from skywave.formats import topics
from skywave.formats.batch import CONTENT_TYPE, Name, encode
from skywave.process.times import utc_today
from skywave.server import rejected
from skywave.store.columns import Rejected

READING = b'{"created_at": 1, "data_key": "k", "data_value": 1}'


class Shelf:
    """A store of rejected messages; what is inserted is kept."""

    def __init__(self, *rows):
        self.rows, self.blocks = list(rows), []

    def rejected(self, client_id=None, sha256="", payload=False):
        assert payload
        return [row for row in self.rows if client_id in (None, row.client_id) and row.sha256.startswith(sha256)]

    def existing(self, probes):
        names = {
            (int(c), int(s), int(q)) for b in self.blocks for c, s, q in zip(b.client_id, b.stream, b.seq, strict=True)
        }
        return {probe[:3] for probe in probes} & names

    def insert_readings(self, block):
        self.blocks.append(block)


def row(client_id, payload=READING, day=None, notes=None, topic=None):
    notes = {"content_type": ""} if notes is None else notes
    digest = hashlib.sha256(payload).hexdigest()
    topic = topics.data(client_id) if topic is None else topic
    return Rejected(client_id, 0, 0, 0, digest, topic, "no", json.dumps(notes), payload, 5, day or utc_today())


def batch_row(day, arrived):
    payload = encode(Name(7, 5, 1), ["k"], array("h", [0]), array("q", [1]), array("d", [2.0]))
    notes = {"content_type": CONTENT_TYPE, "stream": "5", "first_seq": "1", "count": "1", "day": day.isoformat(),
             "since": "", "attempt": "0"}  # fmt: skip
    return row(7, payload, arrived, notes)


def replay(shelf, name):
    return rejected.replay([shelf], config.Server(), name)


def test_a_batch_of_a_day_that_was_in_the_future_is_replayed_when_it_has_come():
    today = utc_today()
    come, coming = batch_row(today - timedelta(7), today - timedelta(10)), batch_row(today + timedelta(7), today)
    assert replay(Shelf(come), come.sha256) == 1
    with pytest.raises(PoisonError, match="has day"):
        replay(Shelf(coming), coming.sha256)


def test_a_batch_that_was_young_enough_when_it_came_is_replayed_at_any_time():
    today = utc_today()
    old = batch_row(today - timedelta(700), today - timedelta(650))
    assert replay(Shelf(old), old.sha256) == 1


def test_json_keeps_the_day_of_its_arrival():
    shelf = Shelf(row(7, day=utc_today() - timedelta(3)))
    assert replay(shelf, shelf.rows[0].sha256) == 1
    assert shelf.blocks[0].day == utc_today() - timedelta(3)


def test_equal_bytes_of_two_clients_are_two_messages():
    shelf = Shelf(row(8), row(9))
    digest = shelf.rows[0].sha256
    with pytest.raises(ConfigError, match=r"client 8 .* client 9 "):
        replay(shelf, digest)
    for client_id in (9, 8):
        assert rejected.get([shelf], digest, client_id).client_id == client_id
        assert rejected.replay([shelf], config.Server(), digest, client_id) == 1
        assert rejected.replay([shelf], config.Server(), digest, client_id) == 0
    assert [int(block.client_id[0]) for block in shelf.blocks] == [9, 8]


def test_what_came_on_no_client_s_topic_is_nobody_s_reading():
    shelf = Shelf(row(0, topic="/telemetry/client/007/"))
    with pytest.raises(PoisonError):
        replay(shelf, shelf.rows[0].sha256)


@pytest.mark.parametrize("name", ["", "xyz", "12", "abcd' OR 1"])
def test_a_name_that_is_none_is_refused(name):
    with pytest.raises(ConfigError):
        rejected.get([Shelf(row(8))], name)
