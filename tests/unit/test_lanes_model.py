"""Lanes, window and refusals together, in the hands of hypothesis: the clock, the network, the outbox and the broker's moods
are its own, so that each of the three meets every state of the others.

Promised after every step: a batch is published under one day for ever, the one that was heard when it first was, and as a
first attempt once; nothing leaves the outbox that no server has. Promised when all is healed: everything is delivered.
``test_protocol_model.py`` promises the same of the whole client, with a real outbox and two servers.
"""

from __future__ import annotations

import os
import random
from dataclasses import dataclass
from datetime import date, timedelta

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from skywave import config
from skywave.client.lanes import FRESH_LIMIT, Lanes
from skywave.client.refusals import ASIDE_MAX_S, STRIKES, Refusals
from skywave.client.window import InFlight, Window
from skywave.formats.batch import Batch
from skywave.formats.messages import Range
from skywave.mqtt.events import PACKET_TOO_LARGE, Disconnected, Refused
from skywave.outbox.days import Days

DAY = date(2026, 11, 24)
WINDOW = 9
AT_ONCE = 4
TOO_LARGE = Refused(PACKET_TOO_LARGE, "Packet too large")


class Away(Exception):
    """The outbox does not answer."""


class Outbox:
    """Batches and day rules. ``trouble`` is what happens to the next changes of the rules."""

    def __init__(self) -> None:
        self.batches: dict[int, Batch] = {}
        self.days = Days([])
        self.trouble: list[str] = []

    def read(self, first: int, last: int, limit: int) -> list[Batch]:
        return [batch for number, batch in sorted(self.batches.items()) if first <= number <= last][:limit]

    def fix_day(self, ids: range, day: date | None) -> Days:
        what = self.trouble.pop() if self.trouble else ""
        if what != "lost":
            self.days = self.days.put(ids.start, ids.stop, day)
        if what:
            raise Away
        return Days(self.days.rules)


@dataclass
class Copy:
    """One that was published. ``taken`` tells whether the broker has answered it."""

    batch: Batch
    taken: bool = False


class Lanework(RuleBasedStateMachine):
    """One client on one connection at a time, through its starts."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.today = 1000.0, DAY
        self.connected = self.accepting = self.answers = False
        self.outbox = Outbox()
        self.copies: list[Copy] = []  # on the present connection
        self.stored: set[int] = set()
        self.deadly: set[int] = (
            set()
        )  # batches at which the broker ends the connection, or that it refuses in its answer
        self.speaks = True
        self.committed = 0
        self.published: dict[int, date] = {}
        self.attempted: set[int] = set()
        self.start()

    @rule()
    def start(self) -> None:
        """A new process, whose predecessor was killed."""
        self.connected = False
        self.copies.clear()
        self.first_id = self.committed + 1
        self.outbox.days = self.outbox.days.put(self.first_id, None, None)
        self.lanes = Lanes(self.first_id, Days(self.outbox.days.rules))
        self.window = Window(config.Uplink(max_in_flight=WINDOW), random.Random(1))
        self.refusals = Refusals(random.Random(1))

    # -- what the uplink does ----------------------------------------------------------------------------------------

    @rule(trouble=st.lists(st.sampled_from(["", "lost", "unknown"]), max_size=3), late=st.booleans())
    def turn(self, trouble: list[str], late: bool = False) -> None:
        """With ``late`` the intake commits in the midst of it."""
        self.outbox.trouble = list(trouble)
        self.lanes.take_offered()
        try:
            today = self.today if self.connected and self.accepting else None
            for ids in self.lanes.unused_days(today):
                self.lanes.taken_back(ids, self.outbox.fix_day(ids, None))
            if today:
                self.publish(today)
        except Away:
            pass
        if late:
            self.commit(1, "offered")
            self.commit(1, "skipped")
        self.lanes.shelve()
        self.outbox.trouble = []

    def publish(self, today: date) -> None:
        if self.refusals.one_at_a_time:
            if entry := self.refusals.next_alone(self.window):
                self.send(self.window.again(entry, self.now))
            return
        for entry in self.window.due(self.now, AT_ONCE):
            self.send(entry)
        for batch in self.lanes.fresh(self.window.room(live=True)):
            self.publish_first(batch, True, today)
        if (due := self.refusals.due(self.now)) is not None and self.window.room(live=False):
            self.refusals.tried(due)
            self.publish_first(self.outbox.batches[due], False, today)
        room = min(self.window.room(live=False), AT_ONCE)
        if room and (ids := self.lanes.backlog()):
            batches = self.outbox.read(*ids, room)
            for batch in batches:
                if not (batch.id in self.lanes.acked or batch.id in self.refusals or batch.id in self.window):
                    self.publish_first(batch, False, today)
            self.lanes.walked(batches, room)

    def publish_first(self, batch: Batch, live: bool, today: date) -> None:
        assert batch.id not in self.window, "it is on its way"
        assert self.window.room(live), "there is no room"
        if ids := self.lanes.without_day(batch.id, today):
            self.lanes.fixed(self.outbox.fix_day(ids, today))
        day = self.lanes.published(batch.id)
        attempt = int(batch.id < self.lanes.first_id or batch.id in self.refusals)
        self.send(self.window.add(batch, day, attempt, live, self.now))

    def send(self, entry: InFlight) -> None:
        batch = entry.batch
        assert batch.id in self.outbox.batches, "it has left the outbox"
        assert self.outbox.days.of(batch.id) == entry.day, "its day is not in the outbox"
        if batch.id not in self.published and batch.id >= self.first_id:
            assert entry.day == self.today, "the day of an earlier connection"
        assert self.published.setdefault(batch.id, entry.day) == entry.day, "published under two days"
        assert entry.attempt or batch.id not in self.attempted, "a second first attempt"
        self.attempted.add(batch.id)
        copy = Copy(batch)
        self.copies.append(copy)
        entry.arrived = lambda: copy.taken

    def set_aside(self, number: int, why: str) -> None:
        self.window.remove(number)
        self.refusals.set_aside(number, why, self.now)

    # -- what comes to pass ------------------------------------------------------------------------------------------

    @rule(size=st.integers(1, 5), how=st.sampled_from(["offered", "skipped", "deadly"]))
    def commit(self, size: int, how: str) -> None:
        self.committed += 1
        batch = Batch(self.committed, self.first_id, self.committed, 1, 0, None, b"x" * size)
        self.outbox.batches[batch.id] = batch
        if how == "deadly":
            self.deadly.add(batch.id)
        if how == "skipped":
            self.lanes.leave(batch.id)
        else:
            self.lanes.offer(batch)

    @rule(seconds=st.sampled_from([0.3, 3.0, 40.0, 400.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: not self.connected)
    @rule(answers=st.booleans(), accepting=st.booleans())
    def connect(self, answers: bool, accepting: bool) -> None:
        """To a broker that answers the first status, or a link so poor that the answer does not come."""
        self.connected, self.answers, self.accepting = True, answers, accepting
        self.copies.clear()
        self.window.rewind()
        self.refusals.connected(self.now)
        self.refusals.greeted(lambda: self.answers)

    @precondition(lambda self: self.connected)
    @rule(why=st.sampled_from([Disconnected(0, "cut"), Disconnected(0x8B, "shutting down"), Disconnected(0, "", True)]))
    def disconnect(self, why: Disconnected) -> None:
        self.connected = False
        if found := self.refusals.disconnected(why, self.window):
            self.set_aside(found[0].id, found[1])

    @precondition(lambda self: self.connected and self.copies)
    @rule(count=st.integers(1, WINDOW))
    def arrive(self, count: int) -> None:
        """The oldest copies come to the broker, in order, and through it to a server."""
        for copy in [copy for copy in self.copies if not copy.taken][:count]:
            if copy.batch.id not in self.deadly:
                self.stored.add(copy.batch.id)
            elif self.speaks:
                if self.refusals.refused(TOO_LARGE) and copy.batch.id in self.window:
                    self.set_aside(copy.batch.id, TOO_LARGE.words)
            else:
                self.disconnect(Disconnected(0, "the broker ended it"))
                return
            copy.taken = True

    @rule(speaks=st.booleans())
    def mood(self, speaks: bool) -> None:
        """Whether the broker says what it refuses, or ends the connection over it without a word."""
        self.speaks = speaks

    @rule(data=st.data())
    def acknowledge(self, data: st.DataObject) -> None:
        """A server says what it has stored, perhaps for the second time, or what this client never sent."""
        number = data.draw(st.sampled_from(sorted(self.stored) or [0]))
        self.heard(Range(data.draw(st.sampled_from([self.first_id, 7])), number, number))

    def heard(self, acked: Range) -> None:
        batches = self.window.acknowledge(acked, self.now)
        self.lanes.acked += [batch.id for batch in batches]
        self.refusals.acknowledged(batch.id for batch in batches)

    @rule()
    def acknowledge_all(self) -> None:
        for entry in list(self.window):
            if entry.batch.id in self.stored:
                self.heard(Range(entry.batch.stream, entry.batch.first_seq, entry.batch.last_seq))

    @rule()
    def delete(self) -> None:
        for number in self.lanes.acked:
            assert number in self.stored, "no server has it"
            del self.outbox.batches[number]
        self.lanes.acked.clear()

    @precondition(lambda self: self.connected)
    @rule()
    def pause(self) -> None:
        """The servers take batches, or do not any more."""
        self.accepting = not self.accepting

    @rule()
    def midnight(self) -> None:
        self.today += timedelta(1)

    # -- what is promised --------------------------------------------------------------------------------------------

    @invariant()
    def nothing_left_the_outbox_that_is_not_stored(self) -> None:
        assert set(range(1, self.committed + 1)) <= self.stored | self.outbox.batches.keys()

    @invariant()
    def the_window_and_the_memory_are_bounded(self) -> None:
        assert len(self.window) <= WINDOW
        assert len(self.lanes.fresh(1 << 30)) <= FRESH_LIMIT

    @invariant()
    def what_is_set_aside_was_refused(self) -> None:
        assert self.refusals.reasons.keys() <= self.published.keys()

    def teardown(self) -> None:
        """Everything works from now on; in a bounded time all is delivered, and no day is left on what was not published."""
        self.deadly.clear()
        if self.connected:
            self.disconnect(Disconnected(0, "", True))
        self.connect(True, True)
        for _ in range(20 + 3 * self.committed + STRIKES):
            self.now += ASIDE_MAX_S
            self.turn([])
            self.arrive(WINDOW)
            self.acknowledge_all()
            self.delete()
        assert not self.outbox.batches, "it drains"
        assert not self.window and not self.refusals
        self.pause()
        self.turn([])
        assert self.outbox.days.of(self.committed + 1) is None, "the day of what comes is fixed when it comes"


TestLanework = Lanework.TestCase
TestLanework.settings = settings(
    max_examples=int(os.environ.get("SKYWAVE_EXAMPLES", 400)),
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
