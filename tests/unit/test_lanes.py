"""The uplink's books: the live lane and the backlog lane together own every batch, and who is set aside."""

from __future__ import annotations

import sys
import threading
import time
from datetime import date, timedelta

import pytest
from support.parts import wait_for

from skywave import config
from skywave.client import uplink as uplink_module
from skywave.client.uplink import (
    ASIDE_MAX_S,
    ASIDE_S,
    DAY_AHEAD,
    FRESH_LIMIT,
    MESSAGES_AHEAD,
    READ_AT_ONCE,
    STRIKES,
    Uplink,
    _Up,
)
from skywave.errors import OutboxUnavailable
from skywave.formats import topics
from skywave.formats.batch import Batch
from skywave.formats.messages import Ack, Produced, Range, ServerStatus
from skywave.mqtt.events import Disconnected, Message, Refused
from skywave.mqtt.link import PACKET_TOO_LARGE
from skywave.outbox.opening import open_outbox


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


TODAY = date(2026, 11, 24)


class Broker:
    """What the uplink's link talks to: it answers what it is told to, and keeps what was published on a connection."""

    def __init__(self, uplink):
        self.uplink, self.answers = uplink, lambda _payload: True
        self.sent, self.refused = [], {}
        uplink.link.publish = self.publish

    def publish(self, topic, payload, *, properties=(), on_refused=None, **_):
        if topic == topics.client_status(1):
            return lambda: self.greets
        self.sent.append((payload, dict(properties)))
        self.refused[payload] = on_refused
        answered = bool(self.answers(payload))
        return lambda: answered

    def connect(self, greets=True, day=TODAY):
        """A new connection on which a server accepts, on a day of its."""
        self.sent.clear()
        self.greets = greets
        self.uplink.link.connected = True
        self.uplink._handle(_Up())
        self.uplink._servers["s"] = ServerStatus(True, day, "1")
        self.uplink._hear_date(day)
        self.step()

    def step(self, times=1):
        for _ in range(times):
            self.uplink._more = True  # it does not wait for events
            self.uplink._take_events()
            self.uplink._step(time.monotonic())

    def end(self, code=0, why="Connection reset by peer", wanted=False):
        self.uplink.link.connected = False
        self.uplink._handle(Disconnected(code, why, wanted))

    def acknowledge(self, *numbers):
        for n in numbers:
            ack = Ack("s", TODAY, [Range(5, n * 10 + 1, n * 10 + 10)])
            self.uplink._handle(Message(topics.ack(1), ack.encode()))

    def acknowledge_all(self):
        for entry in list(self.uplink._window):
            ack = Ack(
                "s", self.uplink.heard_date, [Range(entry.batch.stream, entry.batch.first_seq, entry.batch.last_seq)]
            )
            self.uplink._handle(Message(topics.ack(1), ack.encode()))


@pytest.fixture
def broker(uplink):
    return Broker(uplink)


def hold(uplink, *sizes):
    """Has the outbox hold batches of these sizes, as backlog; returns their payloads."""
    made = [
        Batch(number, 5, number * 10 + 1, 10, 0, None, number.to_bytes(2, "big") * (size // 2))
        for number, size in enumerate(sizes, uplink._top + 1)
    ]
    for item in made:
        uplink._outbox.append([item])
    uplink._top += len(made)
    return [item.payload for item in made]


def test_a_poor_link_sets_nothing_aside_however_often_it_breaks(uplink, broker):
    hold(uplink, *[70_000] * 10)
    broker.answers = lambda _payload: False
    for _ in range(20):
        broker.connect(greets=False)
        broker.step(3)
        broker.end()
    broker.answers = lambda _payload: True
    broker.connect()
    broker.step(30)
    assert not uplink.set_aside
    assert {payload for payload, _ in broker.sent} == {batch.payload for batch in uplink._outbox.read(0, 99, 99)}


def test_a_broker_that_says_a_packet_is_too_large_is_believed_at_once(uplink, broker):
    hold(uplink, 1000, 2000, 1000)
    broker.answers = lambda _payload: False
    broker.connect()
    broker.end(PACKET_TOO_LARGE, "Packet too large (149)")
    assert uplink.set_aside == {2: "broker: Packet too large (149)"}


def test_a_batch_that_the_broker_answers_as_too_large_is_set_aside_and_no_other(uplink, broker):
    payloads = hold(uplink, 1000, 2000, 1000)
    broker.connect()
    broker.refused[payloads[0]](Refused(PACKET_TOO_LARGE, "Packet too large (149)"))
    broker.refused[payloads[1]](Refused(0x87, "Not authorized (135)"))
    broker.step()
    assert uplink.set_aside == {1: "broker: Packet too large (149)"}
    assert len(uplink.window) == 2


def test_a_batch_at_which_the_broker_ends_each_connection_without_a_word_is_found_and_the_others_go_on(uplink, broker):
    payloads = hold(uplink, 3000, 9000, 1000, 9500, 2000)
    deadly = payloads[1]
    broker.answers = lambda payload: payload != deadly
    connections = 0
    while not uplink.set_aside and connections < 20:
        connections += 1
        broker.connect()
        for _ in range(20):
            if any(payload == deadly for payload, _ in broker.sent):
                break
            broker.step()
        broker.end(why="the broker ended it without a word")
    assert list(uplink.set_aside) == [2]
    assert connections <= 2 * STRIKES + 1
    broker.connect()
    broker.step(20)
    assert {payload for payload, _ in broker.sent} == {*payloads} - {deadly}
    broker.acknowledge(1, 3, 4, 5)
    fresh = hold(uplink, 500)
    broker.step(5)
    assert broker.sent[-1][0] == fresh[0], "all goes its way again"


def test_a_small_batch_alone_on_its_way_is_no_reason_while_the_broker_has_not_answered_anything(uplink, broker):
    hold(uplink, 100)
    broker.answers = lambda _payload: False
    for _ in range(10):
        broker.connect(greets=False)
        broker.end()
    assert not uplink.set_aside


@pytest.mark.parametrize("end", [{"wanted": True}, {"code": 0x8E}, {"code": 0x8B}])
def test_an_end_that_has_another_reason_is_no_word_on_a_batch(uplink, broker, end):
    hold(uplink, 100_000)
    broker.answers = lambda _payload: False
    for _ in range(20):
        broker.connect()
        broker.step(3)
        broker.end(**end)
    assert not uplink.set_aside


def test_what_is_set_aside_is_tried_again_by_itself_and_less_and_less_often(uplink, broker, monkeypatch):
    (payload,) = hold(uplink, 100_000)
    now, pauses = time.monotonic(), []
    monkeypatch.setattr(uplink_module.time, "monotonic", lambda: now)
    broker.connect()
    tried_at = now
    for _ in range(7):
        assert broker.sent
        broker.sent.clear()
        broker.refused[payload](Refused(PACKET_TOO_LARGE, "Packet too large (149)"))
        broker.step()
        while not broker.sent and now - tried_at < 2 * ASIDE_MAX_S:
            now += 5
            broker.step()
        pauses.append(now - tried_at)
        tried_at = now
    assert ASIDE_S <= pauses[0] < 2 * ASIDE_S
    assert pauses[1] > 1.5 * pauses[0]
    assert ASIDE_MAX_S <= max(pauses) < 1.5 * ASIDE_MAX_S
    assert broker.sent[0][1]["attempt"] != "0", "it was sent before: the server has to look it up"
    broker.acknowledge(1)
    assert not uplink.set_aside and not uplink.window


def test_what_is_set_aside_and_then_dropped_is_forgotten(uplink, broker, monkeypatch):
    (payload,) = hold(uplink, 100_000)
    broker.connect()
    broker.refused[payload](Refused(PACKET_TOO_LARGE, "Packet too large (149)"))
    broker.step()
    uplink._outbox.drop_oldest(1)
    now = time.monotonic() + 2 * ASIDE_S
    monkeypatch.setattr(uplink_module.time, "monotonic", lambda: now)
    broker.step()
    assert not uplink.set_aside


def test_a_broker_that_refuses_everything_does_not_fill_the_memory(uplink, broker, monkeypatch):
    monkeypatch.setattr(uplink_module, "MAX_ASIDE", 10)
    hold(uplink, *[100] * 100)
    broker.connect()
    for _ in range(100):
        for payload, _ in broker.sent:
            broker.refused[payload](Refused(PACKET_TOO_LARGE, "Packet too large (149)"))
        broker.sent.clear()
        broker.step()
    assert 10 <= len(uplink.set_aside) <= 10 + READ_AT_ONCE


# -- what gathers while something fails ----------------------------------------------------------------------------------


def test_batches_do_not_gather_in_memory_while_only_the_uplinks_outbox_fails(uplink, monkeypatch):
    def away(*_):
        raise OutboxUnavailable("too many connections")

    monkeypatch.setattr(uplink._outbox, "transaction", away)
    monkeypatch.setattr(uplink._outbox, "query", away)
    monkeypatch.setattr(uplink.link, "start", lambda: None)
    thread = threading.Thread(target=uplink.run)
    thread.start()
    try:
        for number in range(1, 5000):
            uplink.offer(batch(number))
            assert len(uplink._fresh) <= 2 * FRESH_LIMIT
        wait_for(lambda: not uplink._fresh and uplink.unavailable, 10, "they are left to the backlog")
        assert uplink._top >= 1 and uplink._events.qsize() <= FRESH_LIMIT
    finally:
        uplink.stop()
        thread.join(10)


def test_messages_wait_in_the_socket_while_the_uplink_is_busy(uplink):
    done = threading.Event()

    def receive():
        for _ in range(3 * MESSAGES_AHEAD):
            uplink._heard(Message("x", b""))
        done.set()

    threading.Thread(target=receive, daemon=True).start()
    wait_for(lambda: uplink._events.qsize() == MESSAGES_AHEAD, 10, "some wait")
    assert not done.wait(0.3)
    wait_for(lambda: uplink._take_events() or done.is_set(), 10, "the others come when these are read")


def test_whether_a_server_accepts_can_be_asked_while_servers_come_and_go(uplink):
    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    over = threading.Event()

    def come_and_go():
        while not over.is_set():
            for n in range(4):
                uplink._receive(Message(topics.server_status(f"s{n}"), ServerStatus(False, TODAY, "1").encode()))
            uplink._servers.clear()

    uplink.link.connected = True
    thread = threading.Thread(target=come_and_go)
    thread.start()
    try:
        for _ in range(100_000):
            assert not uplink.accepting
    finally:
        sys.setswitchinterval(switch)
        over.set()
        thread.join()


# -- messages that no server of ours sends -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ack",
    [
        Ack("x", TODAY, recorded=[Produced(7, 2**63, 0)]),
        Ack("x", TODAY, recorded=[Produced(2**64 - 1, 2**64 - 1, 0)]),
        Ack("x", TODAY, dropped=[Range(2**63, 1, 2**64 - 1)]),
        Ack("x", TODAY, stored=[Range(5, 1, 2**64 - 1)], rejected=[Range(2**64 - 1, 0, 0)]),
        Ack("x", TODAY, recorded=[Produced(4, 10, 0)]),
        Ack("x", TODAY, recorded=[Produced(n, n, 0) for n in range(1, 20_000)]),
    ],
)
def test_a_forged_account_changes_nothing(uplink, ack):
    hold(uplink, 100)
    uplink._outbox.transaction([("INSERT INTO stream VALUES (4, 1, 10, 1, 100)", ())])
    uplink._outbox.transaction([("UPDATE batch SET stream = 4", ())])  # an earlier start's, not yet delivered
    before = uplink._outbox.streams(), uplink._outbox.backlog()
    started = time.process_time()
    uplink._handle(Message(topics.ack(1), ack.encode()))
    assert (uplink._outbox.streams(), uplink._outbox.backlog()) == before
    assert time.process_time() - started < 5


def test_a_retained_acknowledgement_is_ignored_and_said_once(uplink, caplog):
    for _ in range(100):
        uplink._handle(Message(topics.ack(1), Ack("x", TODAY).encode(), retained=True))
    assert uplink.bad_messages == 100
    assert len(caplog.records) == 1


# -- days ----------------------------------------------------------------------------------------------------------------


def restarted(uplink):
    """The broker of a new process on the same outbox, which has no word of the one before."""
    stream = uplink._stream + 1
    return Broker(Uplink(uplink._settings, uplink._outbox, stream, uplink._outbox.start_stream(stream)))


def commit(uplink, count):
    """The intake commits batches; returns their payloads."""
    first, seq = uplink._outbox.query("SELECT first_id + batches, last_seq + 1 FROM stream ORDER BY first_id DESC")[0]
    made = [
        Batch(first + n, uplink._stream, seq + n * 10, 10, 0, None, b"%d %d" % (uplink._stream, seq + n * 10))
        for n in range(count)
    ]
    for item in made:
        uplink._outbox.append([item])
        uplink.offer(item)
    return [item.payload for item in made]


def days(broker, payloads):
    """The days under which they were published on this connection."""
    found = {payload: properties["day"] for payload, properties in broker.sent}
    return {found[payload] for payload in payloads}


def later(number):
    return TODAY + timedelta(number)


def end_killed(broker):
    """SIGKILL, a power cut: nothing more is done."""


def end_stopped(broker):
    broker.uplink._say_goodbye()


def end_disconnected(broker):
    broker.end()
    broker.step()


def end_refused(broker):
    """The connection holds, and no server accepts any more."""
    broker.uplink._servers["s"] = ServerStatus(False, TODAY, "1")
    broker.step()


def end_without_outbox(broker):
    """The outbox is away when the connection ends, and comes back."""
    outbox = broker.uplink._outbox
    outbox.transaction, real = _away, outbox.transaction
    broker.end()
    with pytest.raises(OutboxUnavailable):
        broker.step()
    outbox.transaction = real
    broker.step()


def _away(*_):
    raise OutboxUnavailable("away")


ENDS = [end_killed, end_stopped, end_disconnected, end_refused, end_without_outbox]


def test_a_backlog_whose_day_cannot_be_fixed_at_once_is_published_when_it_can(uplink, broker, monkeypatch):
    payloads = hold(uplink, 10, 10, 10)
    with monkeypatch.context() as patch:
        patch.setattr(uplink._outbox, "fix_day", _away)
        with pytest.raises(OutboxUnavailable):
            broker.connect()
    assert not broker.sent
    broker.step()
    assert [payload for payload, _ in broker.sent] == payloads


@pytest.mark.parametrize("end", ENDS)
def test_what_was_never_published_gets_the_day_of_its_first_publish_however_publishing_ended(uplink, broker, end):
    broker.connect()
    first = commit(uplink, 3)
    broker.step(3)
    assert days(broker, first) == {str(TODAY)}
    end(broker)
    week = commit(uplink, 3) if end is not end_killed else []
    offline = restarted(uplink)
    week += commit(offline.uplink, 3)
    offline.step()
    late = restarted(offline.uplink)
    fresh = commit(late.uplink, 2)
    late.connect(day=later(9))
    late.step(5)
    assert days(late, week + fresh) == {str(later(9))}
    assert days(late, first) == {str(TODAY)}, "a resend keeps its day"


def test_a_connection_to_no_avail_leaves_no_day(uplink, broker):
    """Commissioned, connected and shut down without a reading; what comes later is of a later day."""
    broker.connect()
    end_killed(broker)
    late = restarted(uplink)
    week = commit(late.uplink, 3)
    late.connect(day=later(400))
    late.step(3)
    assert days(late, week) == {str(later(400))}


@pytest.mark.parametrize("end", ENDS)
def test_a_drain_that_is_cut_leaves_the_rest_for_the_day_on_which_it_goes_on(uplink, broker, end):
    backlog = hold(uplink, *[10] * 1000)
    broker.connect()
    broker.step(20)
    sent = [payload for payload, _ in broker.sent]
    fresh = commit(uplink, 2)
    broker.step()
    end(broker)
    late = restarted(uplink)
    late.connect(day=later(30))
    for _ in range(200):
        late.step()
        late.acknowledge_all()
    unsent = backlog[len(sent) :]
    if end is end_killed:  # nobody was asked: some were ready to be published
        unsent = unsent[DAY_AHEAD:]
    assert days(late, unsent) == {str(later(30))}
    assert days(late, sent + fresh) == {str(TODAY)}


def test_what_is_published_after_midnight_has_the_new_day(uplink, broker):
    backlog = hold(uplink, *[10] * 300)
    broker.connect()
    broker.step(20)
    before = {payload for payload, _ in broker.sent}
    broker.uplink._hear_date(later(1))
    for _ in range(50):
        broker.acknowledge_all()
        broker.step()
    assert days(broker, before) == {str(TODAY)}
    assert days(broker, set(backlog) - before) == {str(later(1))}


def test_a_day_costs_one_commit_for_many_batches(uplink, broker, monkeypatch):
    hold(uplink, *[10] * 1000)
    commits = []
    real = uplink._outbox.fix_day
    monkeypatch.setattr(uplink._outbox, "fix_day", lambda *args: commits.append(args) or real(*args))
    broker.connect()
    for _ in range(200):
        broker.step()
        broker.acknowledge_all()
    assert len(broker.sent) == 1000
    assert len(commits) <= 1000 / DAY_AHEAD + 2
    assert len(uplink._outbox.days().rules) <= 3


def test_the_date_of_a_server_that_died_long_after_its_start_is_not_taken(uplink):
    today, start = date(2026, 11, 24), date(2026, 11, 20)
    for number, (accepting, day) in enumerate([(True, today), (False, start)]):
        uplink._receive(Message(topics.server_status(f"s{number}"), ServerStatus(accepting, day, "1").encode()))
        assert uplink.heard_date == today
