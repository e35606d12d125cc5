"""The live lane and the backlog lane together own every batch of the outbox."""

from __future__ import annotations

import pytest

from skywave import config
from skywave.batch import Batch
from skywave.client.outbox import open_outbox
from skywave.client.uplink import Uplink


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
