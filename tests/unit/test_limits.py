"""What one client may cost the others: each limit of docs/security.md that the server keeps by itself."""

from __future__ import annotations

import json
import logging
import threading
from array import array
from datetime import timedelta

import pytest
from support.parts import wait_for

from skywave import config
from skywave.errors import PoisonError, StoreBusy, StoreUnavailable
from skywave.formats import topics
from skywave.formats.batch import CONTENT_TYPE, Name, encode
from skywave.formats.declared import MAX_READINGS
from skywave.formats.messages import MAX_TOLD, Produced, Range
from skywave.mqtt.events import Message
from skywave.process.times import boottime, utc_today
from skywave.server import admission, foreign, ingest, inserting, limits
from skywave.server.admission import Admission
from skywave.server.group import DAYS_IN_A_GROUP
from skywave.server.inbox import CLIENT_SHARE, Inbox, Received
from skywave.server.ingest import Ingest
from skywave.server.patience import Stopped
from skywave.server.poison import MAX_NOTES
from skywave.store.columns import REJECTED_OVERHEAD

INBOX = 64 << 20


class Memory:
    """A store that takes everything and keeps what was rejected and recorded."""

    def __init__(self):
        self.poison, self.blocks, self.streams, self.dropped = [], [], [], []

    def reject(self, rows):
        self.poison += rows

    def rejected_bytes(self, *_):
        return 0

    def insert_readings(self, block):
        self.blocks.append(block)

    def existing(self, _):
        return set()

    def pending_streams(self, _):
        return []

    def record_streams(self, rows, _):
        self.streams += rows

    def record_dropped(self, rows, _):
        self.dropped += rows


class Front:
    """The broker's side of an ingest."""

    def __init__(self):
        self.accepting, self.acks = True, []

    def set_accepting(self, accepting, _):
        self.accepting = accepting

    def acknowledge(self, client_id, ack):
        self.acks.append((client_id, ack))


class Loop:
    """An ingest on these. It is told to stop, so that a group that gathers waits for no more messages than there are."""

    def __init__(self, **settings):
        self.store, self.front, self.inbox = Memory(), Front(), Inbox(INBOX)
        settings = config.Server(ingest=config.Ingest(**{"linger": 0.0, **settings}))
        self.stopping = threading.Event()
        self.stopping.set()
        self.ingest = Ingest(settings, self.inbox, self.front, self.store, self.stopping)

    def put(self, message: Message) -> bool:
        return self.inbox.put(Received(message, boottime(), topics.parse_client(message.topic)[0]), 0)

    def work(self, *messages: Message) -> None:
        for message in messages:
            assert self.put(message)
        while len(self.inbox):
            self.group()

    def group(self) -> None:
        self.ingest.work(self.ingest.gather(utc_today()))


@pytest.fixture
def loop():
    return Loop()


def batch(client_id: int, first: int, days_ago: int = 0, keys=("k",), count: int = 1) -> Message:
    payload = encode(
        Name(client_id, 5, first), keys, array("h", [0]) * count, array("q", [1]) * count, array("d", [1.0]) * count
    )
    day = (utc_today() - timedelta(days_ago)).isoformat()
    properties = {"stream": "5", "first_seq": str(first), "count": str(count), "day": day, "attempt": "0"}
    return Message(topics.data(client_id), payload, CONTENT_TYPE, properties)


def status(client_id: int, **more: object) -> Message:
    body = {"v": 1, "online": True, "version": "1", **more}
    return Message(topics.client_status(client_id), json.dumps(body).encode())


def test_a_client_has_a_share_of_the_inbox_in_which_properties_count():
    inbox = Inbox(INBOX)
    properties = {f"k{n}": "x" * 60_000 for n in range(100)}
    taken = 0
    while inbox.put(Received(Message(topics.data(7), b"", "", properties), 0.0, 7), 0):
        taken += 1
    assert taken * 6_000_000 <= INBOX // CLIENT_SHARE
    assert inbox.put(Received(Message(topics.data(8), bytes(1 << 20)), 0.0, 8), 0), "there is room for others"
    held = inbox.bytes
    assert held >= taken * 6_000_000
    while inbox.get():
        pass
    assert inbox.bytes == 0
    assert inbox.put(Received(Message(topics.data(7), bytes(INBOX)), 0.0, 7), 0), "one message is always taken"


def test_many_properties_count_even_when_they_are_empty():
    inbox = Inbox(INBOX)
    assert inbox.put(Received(Message(topics.data(7), b"", "", {str(n): "" for n in range(10_000)}), 0.0, 7), 0)
    assert inbox.bytes > 10_000 * 100


def test_poison_counts_towards_the_quota_with_all_that_is_kept_of_it():
    loop = Loop(reject_quota=20 * REJECTED_OVERHEAD)
    properties = {f"k{n}": "x" * 60_000 for n in range(10)} | {"stream": "x"}
    loop.work(*[Message(topics.data(7), b"", "", properties)] * 50)
    assert 0 < len(loop.store.poison) < 20
    assert sum(row.size for row in loop.store.poison) <= 20 * REJECTED_OVERHEAD
    assert loop.ingest.figures.over_quota == 50 - len(loop.store.poison)
    assert max(len(row.properties) for row in loop.store.poison) < MAX_NOTES


def test_one_bad_message_is_one_row_and_one_line_and_answers_each_id(loop, caplog):
    elements = [0] * 5000 + [{"id": number} for number in range(1, 5001)]
    loop.work(Message(topics.data(7), json.dumps(elements).encode()))
    assert len(loop.store.poison) == 1
    assert json.loads(loop.store.poison[0].payload) == elements
    assert len(caplog.records) == 1
    ((client_id, ack),) = loop.front.acks
    assert client_id == 7
    assert ack.rejected == [Range(0, 1, 5000)]


def test_what_is_kept_of_a_message_with_good_elements_is_the_bad_ones(loop):
    good = {"created_at": 1, "data_key": "k", "data_value": 1}
    loop.work(Message(topics.data(7), json.dumps([good, 1, good, 2]).encode()))
    assert [json.loads(row.payload) for row in loop.store.poison] == [[1, 2]]
    assert sum(map(len, loop.store.blocks)) == 2


def test_lines_about_a_client_are_bounded_in_length_in_number_and_obey_nothing(loop, caplog):
    loop.work(status(7, v="x" * 100_000), status(7, v="a\nforged \x1b[2J line"))
    for record in caplog.records:
        assert len(record.getMessage()) < 1000
        assert record.getMessage().isprintable()
    loop.work(*[Message(topics.data(7), b"%d" % number) for number in range(300)])
    assert len(caplog.records) <= limits.LINES_A_DAY + 1
    assert len(loop.store.poison) == 300
    loop.work(Message(topics.data(8), b"x"))
    assert "client 8" in caplog.records[-1].getMessage()


def test_the_accounts_of_a_client_are_bounded_a_day(loop):
    for more in range(5):
        streams = [[str(more * 20_000 + number), "9", "1"] for number in range(1, 2001)]
        loop.work(status(7, streams=streams, dropped=[["1", "1", str(more + 1), "why"]]))
    assert len(loop.store.streams) == limits.STREAMS_A_DAY
    assert {item.last for _, item in loop.store.dropped} == {1, 2, 3, 4, 5}
    recorded = {item.stream for _, ack in loop.front.acks for item in ack.recorded}
    assert recorded == {item.stream for _, item, _ in loop.store.streams}, "nothing is forgotten that was not kept"
    loop.work(status(8, streams=[["5", "1", "1"]]))
    assert loop.store.streams[-1][0] == 8


def test_the_present_stream_of_a_client_with_many_is_recorded_first(loop):
    streams = [[str(number), "9", "1"] for number in range(1, 2001)]
    loop.work(status(7, streams=streams))
    assert 2000 in {item.stream for _, item, _ in loop.store.streams}


@pytest.mark.parametrize(("count", "gone"), [(2, {77}), (MAX_TOLD, set())])
def test_only_a_status_that_names_all_streams_says_that_another_one_is_in_no_outbox(loop, count, gone):
    loop.store.pending_streams = lambda _: [(7, Produced(77, 50, 10))]
    loop.work(status(7, streams=[[str(100 + number), "9", "1"] for number in range(count)]))
    assert {item.stream for _, item, _ in loop.store.streams if not item.first_pending} == gone


def test_the_declared_losses_of_a_client_are_bounded_a_day(loop, monkeypatch):
    monkeypatch.setattr(limits, "DROPS_A_DAY", 1500)
    for more in range(3):
        dropped = [["1", str(number), str(number), "why"] for number in range(more * 1000 + 1, more * 1000 + 1001)]
        loop.work(status(7, streams=[["1", "9999", "1"]], dropped=dropped))
    assert len(loop.store.dropped) == 1500
    assert sum(item.last - item.first + 1 for _, ack in loop.front.acks for item in ack.dropped) == 1500


def test_a_message_has_a_bound_in_bytes_and_in_readings(loop):
    reading = {"created_at": 1, "data_key": "k", "data_value": 1}
    too_many = json.dumps([reading] * (foreign.MAX_READINGS + 1)).encode()
    too_long = json.dumps([{**reading, "note": "x" * admission.MAX_MESSAGE_BYTES}]).encode()
    loop.work(Message(topics.data(7), too_many), Message(topics.data(7), too_long), batch(7, 1, count=MAX_READINGS + 1))
    assert [row.payload for row in loop.store.poison[:2]] == [too_many, too_long]
    assert "at most" in loop.store.poison[0].reason and "at most" in loop.store.poison[1].reason
    assert len(loop.store.poison) == 3 and not loop.store.blocks
    loop.work(
        Message(topics.data(7), json.dumps([reading] * foreign.MAX_READINGS).encode()), batch(7, 1, count=MAX_READINGS)
    )
    assert sum(map(len, loop.store.blocks)) == foreign.MAX_READINGS + MAX_READINGS


def test_few_days_of_a_client_are_in_a_group_and_the_rest_comes_later():
    loop = Loop(linger=5.0, max_rows=100)
    messages = [batch(7, number + 1, number % 20) for number in range(100)]
    for message in [*messages, batch(8, 1)]:
        assert loop.put(message)
    group = loop.ingest.gather(utc_today())
    days = {(item.name.client_id, item.day) for item in group.admitted}
    assert len(days) == DAYS_IN_A_GROUP + 1, "and the other client is among them"
    loop.ingest.work(group)
    loop.work()
    assert sum(map(len, loop.store.blocks)) == 101
    assert loop.inbox.bytes == 0


def test_an_insert_has_a_bound_in_bytes_with_the_keys_of_each_reading(monkeypatch):
    for module in (admission, ingest, inserting):
        monkeypatch.setattr(module, "MAX_INSERT_BYTES", 10_000_000)
    loop = Loop(linger=5.0)
    keys = ["\U0001f600" * 1000]
    messages = [batch(7, number * 1000 + 1, keys=keys, count=1000) for number in range(10)]
    loop.work(*messages)
    assert max(map(len, loop.store.blocks)) == 2000
    assert sum(map(len, loop.store.blocks)) == 10_000
    with pytest.raises(PoisonError, match="bytes in the store"):
        Admission(config.Ingest(), 9).admit(7, batch(7, 1, keys=keys, count=3000), utc_today(), 0.0)


def test_a_group_counts_the_keys_that_no_reading_uses(monkeypatch):
    monkeypatch.setattr(ingest, "MAX_INSERT_BYTES", 10_000_000)
    loop = Loop(linger=5.0)
    keys = [f"{number:0900}" for number in range(5000)]
    for number in range(10):
        assert loop.put(batch(7, number + 1, keys=keys))
    assert len(loop.ingest.gather(utc_today()).admitted) == 3


def test_a_store_that_is_busy_for_long_is_taken_for_away_and_told():
    loop = Loop(pause_after=0.2)
    loop.stopping.clear()

    def busy():
        raise StoreBusy("another insert waits for its quorum")

    loop.store.migrate = busy
    working = threading.Thread(target=loop.ingest.run)
    working.start()
    try:
        wait_for(lambda: not loop.front.accepting, 20, "it does not accept")
        assert "quorum" in loop.ingest.figures.store_error
    finally:
        loop.stopping.set()
        working.join()


def test_a_group_that_waits_for_the_store_is_given_up_when_the_server_stops(loop):
    loop.store.insert_readings = lambda _: (_ for _ in ()).throw(StoreUnavailable("away"))
    with pytest.raises(Stopped):
        loop.work(batch(7, 1))
    assert not loop.front.acks


def test_what_a_busy_store_takes_in_its_turn_is_no_trouble(loop, caplog):
    loop.stopping.clear()
    tries = []
    insert = loop.store.insert_readings

    def work(block):
        tries.append(1)
        if len(tries) < 4:
            raise StoreBusy("another insert waits for its quorum")
        insert(block)

    loop.store.insert_readings = work
    with caplog.at_level(logging.INFO):
        loop.work(batch(7, 1))
    assert not caplog.records
    assert loop.front.accepting
    assert len(loop.store.blocks) == 1
