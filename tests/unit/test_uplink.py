"""The uplink: who is set aside, what gathers while something fails, days, messages that no server of ours sends."""

from __future__ import annotations

import gc
import threading
import time
from datetime import date, timedelta

import pytest
from support.parts import wait_for

from skywave import config
from skywave.client import refusals as refusals_module
from skywave.client import uplink as uplink_module
from skywave.client.inbox import Offered
from skywave.client.lanes import DAY_AHEAD, FRESH_LIMIT
from skywave.client.refusals import ASIDE_MAX_S, ASIDE_S, STRIKES
from skywave.client.uplink import READ_AT_ONCE, Uplink
from skywave.errors import OutboxUnavailable
from skywave.formats import topics
from skywave.formats.batch import Batch
from skywave.formats.messages import Ack, Produced, Range, ServerStatus
from skywave.mqtt.events import PACKET_TOO_LARGE, Disconnected, Message, Refused
from skywave.outbox.opening import open_outbox

TODAY = date(2026, 11, 24)


class Link:
    """The uplink's link without a network. The broker answers what it is told to; what was published is kept."""

    def __init__(self, *_, on_up, on_down, on_message, **__):
        self.on_up, self.on_down, self.hear = on_up, on_down, on_message
        self.connected, self.greets, self.answers = False, True, lambda _payload: True
        self.sent, self.refused = [], {}

    def start(self):
        """There is no thread."""

    stop = start

    def publish(self, topic, payload, *, properties=(), on_refused=None, **_):
        if topic == topics.client_status(1):
            return lambda: self.greets
        self.sent.append((payload, dict(properties)))
        self.refused[payload] = on_refused
        answered = bool(self.answers(payload))
        return lambda: answered


class Broker:
    """A client's outbox and uplink, and the broker and the server that it talks to."""

    def __init__(self, settings, outbox, stream):
        self.settings, self.outbox, self.stream = settings, outbox, stream
        self.next_id, self.next_seq = outbox.start_stream(stream), 1
        self.uplink = Uplink(settings, outbox, stream, self.next_id)
        self.link = self.uplink.link
        self.made = {}

    @property
    def sent(self):
        return self.link.sent

    def commit(self, *payloads, offered=True):
        """The intake commits batches of ten readings. Those that are not offered are backlog."""
        batches = []
        for payload in payloads:
            batches.append(Batch(self.next_id, self.stream, self.next_seq, 10, 0, None, payload))
            self.next_id, self.next_seq = self.next_id + 1, self.next_seq + 10
        self.outbox.append(batches)
        self.made |= {batch.id: batch for batch in batches}
        if offered:
            for batch in batches:
                self.uplink.offer(batch)
        else:
            self.uplink.leave(self.next_id - 1)
            self.step()
        return list(payloads)

    def connect(self, greets=True, day=TODAY):
        """A new connection on which a server accepts, on a day of its."""
        self.sent.clear()
        self.link.greets = greets
        self.link.connected = True
        self.link.on_up()
        self.hear_server(day)
        self.step()

    def hear_server(self, day=TODAY, accepting=True):
        self.link.hear(Message(topics.server_status("s"), ServerStatus(accepting, day, "1").encode()))

    def step(self, times=1):
        for _ in range(times):
            self.uplink.turn(0)

    def end(self, code=0, why="Connection reset by peer", wanted=False):
        self.link.connected = False
        self.link.on_down(Disconnected(code, why, wanted))
        self.step()

    def acknowledge(self, *batches):
        """The server has them."""
        stored = [Range(batch.stream, batch.first_seq, batch.last_seq) for batch in batches]
        self.link.hear(Message(topics.ack(1), Ack("s", self.uplink.heard_date, stored).encode()))

    def acknowledge_all(self):
        self.acknowledge(*(entry.batch for entry in self.uplink.window))


@pytest.fixture
def broker(tmp_path, monkeypatch):
    monkeypatch.setattr(uplink_module, "Link", Link)
    monkeypatch.setattr(uplink_module, "RETRY_S", 0)
    settings = config.parse(
        {"client_id": 1, "sensors": {"t": {"port": 1}}, "outbox": {"path": str(tmp_path / "o.sqlite")}}, config.Client
    )
    outbox = open_outbox(settings.outbox)
    outbox.create(1)
    yield Broker(settings, outbox, 5)
    outbox.close()


def hold(broker, *sizes):
    """Has the outbox hold batches of these sizes, as backlog; returns their payloads."""
    numbers = range(broker.next_id, broker.next_id + len(sizes))
    made = [number.to_bytes(2, "big") * (size // 2) for number, size in zip(numbers, sizes, strict=True)]
    return broker.commit(*made, offered=False)


def test_a_poor_link_sets_nothing_aside_however_often_it_breaks(broker):
    hold(broker, *[70_000] * 10)
    broker.link.answers = lambda _payload: False
    for _ in range(20):
        broker.connect(greets=False)
        broker.step(3)
        broker.end()
    broker.link.answers = lambda _payload: True
    broker.connect()
    broker.step(30)
    assert not broker.uplink.refusals.reasons
    assert {payload for payload, _ in broker.sent} == {batch.payload for batch in broker.outbox.read(0, 99, 99)}


def test_a_broker_that_says_a_packet_is_too_large_is_believed_at_once(broker):
    hold(broker, 1000, 2000, 1000)
    broker.link.answers = lambda _payload: False
    broker.connect()
    broker.end(PACKET_TOO_LARGE, "Packet too large (149)")
    assert broker.uplink.refusals.reasons == {2: "broker: Packet too large (149)"}


def test_a_batch_that_the_broker_answers_as_too_large_is_set_aside_and_no_other(broker):
    payloads = hold(broker, 1000, 2000, 1000)
    broker.connect()
    broker.link.refused[payloads[0]](Refused(PACKET_TOO_LARGE, "Packet too large (149)"))
    broker.link.refused[payloads[1]](Refused(0x87, "Not authorized (135)"))
    broker.step()
    assert broker.uplink.refusals.reasons == {1: "broker: Packet too large (149)"}
    assert len(broker.uplink.window) == 2


def test_a_batch_at_which_the_broker_ends_each_connection_without_a_word_is_found_and_the_others_go_on(broker):
    payloads = hold(broker, 3000, 9000, 1000, 9500, 2000)
    deadly = payloads[1]
    broker.link.answers = lambda payload: payload != deadly
    connections = 0
    while not broker.uplink.refusals.reasons and connections < 20:
        connections += 1
        broker.connect()
        for _ in range(20):
            if any(payload == deadly for payload, _ in broker.sent):
                break
            broker.step()
        broker.end(why="the broker ended it without a word")
    assert list(broker.uplink.refusals.reasons) == [2]
    assert connections <= 2 * STRIKES + 1
    broker.connect()
    broker.step(20)
    assert {payload for payload, _ in broker.sent} == {*payloads} - {deadly}
    broker.acknowledge(*(broker.made[number] for number in (1, 3, 4, 5)))
    fresh = hold(broker, 500)
    broker.step(5)
    assert broker.sent[-1][0] == fresh[0], "all goes its way again"


def test_a_small_batch_alone_on_its_way_is_no_reason_while_the_broker_has_not_answered_anything(broker):
    hold(broker, 100)
    broker.link.answers = lambda _payload: False
    for _ in range(10):
        broker.connect(greets=False)
        broker.end()
    assert not broker.uplink.refusals.reasons


@pytest.mark.parametrize("end", [{"wanted": True}, {"code": 0x8E}, {"code": 0x8B}])
def test_an_end_that_has_another_reason_is_no_word_on_a_batch(broker, end):
    hold(broker, 100_000)
    broker.link.answers = lambda _payload: False
    for _ in range(20):
        broker.connect()
        broker.step(3)
        broker.end(**end)
    assert not broker.uplink.refusals.reasons


def test_what_is_set_aside_is_tried_again_by_itself_and_less_and_less_often(broker, monkeypatch):
    (payload,) = hold(broker, 100_000)
    now, pauses = time.monotonic(), []
    monkeypatch.setattr(uplink_module.time, "monotonic", lambda: now)
    broker.connect()
    tried_at = now
    for _ in range(7):
        assert broker.sent
        broker.sent.clear()
        broker.link.refused[payload](Refused(PACKET_TOO_LARGE, "Packet too large (149)"))
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
    broker.acknowledge_all()
    broker.step()
    assert not broker.uplink.refusals.reasons and not broker.uplink.window


def test_what_is_set_aside_and_then_dropped_is_forgotten(broker, monkeypatch):
    (payload,) = hold(broker, 100_000)
    broker.connect()
    broker.link.refused[payload](Refused(PACKET_TOO_LARGE, "Packet too large (149)"))
    broker.step()
    broker.outbox.drop_oldest(1)
    now = time.monotonic() + 2 * ASIDE_S
    monkeypatch.setattr(uplink_module.time, "monotonic", lambda: now)
    broker.step()
    assert not broker.uplink.refusals.reasons


def test_a_broker_that_refuses_everything_does_not_fill_the_memory(broker, monkeypatch):
    monkeypatch.setattr(refusals_module, "MAX_ASIDE", 10)
    hold(broker, *[100] * 100)
    broker.connect()
    for _ in range(100):
        for payload, _ in broker.sent:
            broker.link.refused[payload](Refused(PACKET_TOO_LARGE, "Packet too large (149)"))
        broker.sent.clear()
        broker.step()
    assert 10 <= len(broker.uplink.refusals.reasons) <= 10 + READ_AT_ONCE


# -- what gathers while something fails ----------------------------------------------------------------------------------


def in_memory(kind):
    return sum(isinstance(item, kind) for item in gc.get_objects())


def test_batches_do_not_gather_in_memory_while_only_the_uplinks_outbox_fails(broker, monkeypatch):
    payloads = broker.commit(*(b"%d" % number for number in range(1000)), offered=False)
    names = [(batch.id, batch.first_seq) for batch in broker.made.values()]
    broker.made.clear()
    uplink, before = broker.uplink, in_memory(Batch)
    with monkeypatch.context() as patch:
        patch.setattr(broker.outbox, "transaction", _away)
        patch.setattr(broker.outbox, "query", _away)
        thread = threading.Thread(target=uplink.run)
        thread.start()
        try:
            for number, (batch_id, seq) in enumerate(names):
                uplink.offer(Batch(batch_id, broker.stream, seq, 10, 0, None, payloads[number]))
                if number % 50 == 0:
                    assert in_memory(Batch) - before <= 2 * FRESH_LIMIT + 1 and in_memory(Offered) <= 2 * FRESH_LIMIT
            wait_for(lambda: in_memory(Batch) <= before and uplink.unavailable, 10, "they are left to the backlog")
        finally:
            uplink.stop()
            thread.join(10)
    broker.connect()
    for _ in range(100):
        broker.acknowledge_all()
        broker.step()
    assert sorted(payload for payload, _ in broker.sent) == sorted(payloads)


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
def test_a_forged_account_changes_nothing(broker, ack):
    hold(broker, 100)
    broker.outbox.transaction([("INSERT INTO stream VALUES (4, 1, 10, 1, 100)", ())])
    broker.outbox.transaction([("UPDATE batch SET stream = 4", ())])  # an earlier start's, not yet delivered
    before = broker.outbox.streams(), broker.outbox.backlog()
    started = time.process_time()
    broker.link.hear(Message(topics.ack(1), ack.encode()))
    broker.step()
    assert (broker.outbox.streams(), broker.outbox.backlog()) == before
    assert time.process_time() - started < 5


# -- days ----------------------------------------------------------------------------------------------------------------


def restarted(broker):
    """A new process on the same outbox, which has no word of the one before."""
    return Broker(broker.settings, broker.outbox, broker.stream + 1)


def commit(broker, count):
    """The intake commits batches; returns their payloads."""
    return broker.commit(*(b"%d %d" % (broker.stream, broker.next_id + n) for n in range(count)))


def days(broker, payloads):
    """The days under which they were published on this connection."""
    found = {payload: properties["day"] for payload, properties in broker.sent}
    return {found[payload] for payload in payloads}


def later(number):
    return TODAY + timedelta(number)


def end_killed(broker):
    """SIGKILL, a power cut: nothing more is done."""


def end_stopped(broker):
    broker.uplink.stop()
    broker.uplink.run()


def end_disconnected(broker):
    broker.end()
    broker.step()


def end_refused(broker):
    """The connection holds, and no server accepts any more."""
    broker.hear_server(accepting=False)
    broker.step()


def end_without_outbox(broker):
    """The outbox is away when the connection ends, and comes back."""
    outbox = broker.outbox
    outbox.transaction, real = _away, outbox.transaction
    broker.end()
    assert broker.uplink.unavailable
    outbox.transaction = real
    broker.step()


def _away(*_):
    raise OutboxUnavailable("away")


ENDS = [end_killed, end_stopped, end_disconnected, end_refused, end_without_outbox]


def test_a_backlog_whose_day_cannot_be_fixed_at_once_is_published_when_it_can(broker, monkeypatch):
    payloads = hold(broker, 10, 10, 10)
    with monkeypatch.context() as patch:
        patch.setattr(broker.outbox, "fix_day", _away)
        broker.connect()
    assert broker.uplink.unavailable and not broker.sent
    broker.step()
    assert [payload for payload, _ in broker.sent] == payloads


@pytest.mark.parametrize("end", ENDS)
def test_what_was_never_published_gets_the_day_of_its_first_publish_however_publishing_ended(broker, end):
    broker.connect()
    first = commit(broker, 3)
    broker.step(3)
    assert days(broker, first) == {str(TODAY)}
    end(broker)
    week = commit(broker, 3) if end is not end_killed else []
    offline = restarted(broker)
    week += commit(offline, 3)
    offline.step()
    late = restarted(offline)
    fresh = commit(late, 2)
    late.connect(day=later(9))
    late.step(5)
    assert days(late, week + fresh) == {str(later(9))}
    assert days(late, first) == {str(TODAY)}, "a resend keeps its day"


def test_a_connection_to_no_avail_leaves_no_day(broker):
    """Commissioned, connected and shut down without a reading; what comes later is of a later day."""
    broker.connect()
    end_killed(broker)
    late = restarted(broker)
    week = commit(late, 3)
    late.connect(day=later(400))
    late.step(3)
    assert days(late, week) == {str(later(400))}


@pytest.mark.parametrize("end", ENDS)
def test_a_drain_that_is_cut_leaves_the_rest_for_the_day_on_which_it_goes_on(broker, end):
    backlog = hold(broker, *[10] * 1000)
    broker.connect()
    broker.step(20)
    sent = [payload for payload, _ in broker.sent]
    fresh = commit(broker, 2)
    broker.step()
    end(broker)
    late = restarted(broker)
    late.connect(day=later(30))
    for _ in range(200):
        late.step()
        late.acknowledge_all()
    unsent = backlog[len(sent) :]
    if end is end_killed:  # nobody was asked: some were ready to be published
        unsent = unsent[DAY_AHEAD:]
    assert days(late, unsent) == {str(later(30))}
    assert days(late, sent + fresh) == {str(TODAY)}


def test_what_is_published_after_midnight_has_the_new_day(broker):
    backlog = hold(broker, *[10] * 300)
    broker.connect()
    broker.step(20)
    before = {payload for payload, _ in broker.sent}
    broker.hear_server(later(1))
    for _ in range(50):
        broker.acknowledge_all()
        broker.step()
    assert days(broker, before) == {str(TODAY)}
    assert days(broker, set(backlog) - before) == {str(later(1))}


def test_a_day_costs_one_commit_for_many_batches(broker, monkeypatch):
    hold(broker, *[10] * 1000)
    commits = []
    real = broker.outbox.fix_day
    monkeypatch.setattr(broker.outbox, "fix_day", lambda *args: commits.append(args) or real(*args))
    broker.connect()
    for _ in range(200):
        broker.step()
        broker.acknowledge_all()
    assert len(broker.sent) == 1000
    assert len(commits) <= 1000 / DAY_AHEAD + 2
    assert len(broker.outbox.days().rules) <= 3
