"""The delivery protocol itself: a real outbox, uplink and two servers' ingests, with the network, the clocks and the store
in the hands of hypothesis, which drops, doubles, reorders, crashes and interleaves as it likes.

The store is a set of identities, as a ReplacingMergeTree is when it is read with FINAL. Promised after every step: nothing
has left the outbox that is not stored. Promised when all is healed: everything ever committed is stored, under one day.

Two layers guard against doubles, and each hides what the other one does wrong; so each is watched by itself as well: a batch
is published under one day for ever and as a first attempt once, and a server asks the store where it has to.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from array import array
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from types import SimpleNamespace

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from skywave import config
from skywave.client import uplink as uplink_module
from skywave.client.inbox import MESSAGES_AHEAD
from skywave.client.uplink import Uplink
from skywave.errors import StoreUnavailable
from skywave.formats import topics
from skywave.formats.batch import Batch, Name, encode
from skywave.formats.messages import Ack, Produced, Range, ServerStatus
from skywave.mqtt.events import Disconnected, Message
from skywave.outbox.opening import open_outbox
from skywave.server import ingest as ingest_module
from skywave.server import inserting as inserting_module
from skywave.server.group import Group
from skywave.server.inbox import Received
from skywave.server.ingest import Ingest
from skywave.store.columns import Block

CLIENT = 1
DAY = date(2026, 11, 24)
SERVERS = ("north", "south")


class Killed(BaseException):
    """A server's end in the midst of its work."""


class Table:
    """What is stored, and the clients' accounts. ``trouble`` is done in the midst of the next statements, in turn."""

    def __init__(self) -> None:
        self.readings: set[tuple[date, int, int, float]] = set()
        self.accounts: dict[int, Produced] = {}
        self.dropped: set[tuple[int, int, int]] = set()
        self.trouble: list[str] = []
        self.meanwhile = lambda: None
        self.must_ask: set[tuple[int, int]] = set()
        self.before: set[tuple[date, int, int, float]] = set()

    def _statement(self, done) -> None:
        what = self.trouble_now = self.trouble.pop() if self.trouble else ""
        if what == "lost":
            raise StoreUnavailable("it was never done")
        if what == "killed":
            raise Killed
        if what == "raced":
            meanwhile, self.meanwhile = self.meanwhile, lambda: None
            meanwhile()
        done()
        if what == "unknown":
            raise StoreUnavailable("it was done, but the answer did not come")

    def existing(self, probes):
        found = set()
        self._statement(lambda: None)
        for probe in probes:
            for day, stream, seq, _ in self.readings:
                if (stream, seq) == (probe.stream, probe.first_seq) and (probe.since is None or day >= probe.since):
                    found.add((probe.client_id, stream, seq))
        return found

    def insert_readings(self, block: Block) -> None:
        columns = (block.stream.tolist(), block.seq.tolist(), block.data_value.tolist())
        rows = {(block.day, *row) for row in zip(*columns, strict=True)}
        again = {row[1:3] for row in rows & self.before}
        assert not again & self.must_ask, "inserted again, though it had to ask whether it is there"

        def done() -> None:
            self.readings |= rows
            if self.trouble_now == "unknown":
                self.before |= rows
                self.must_ask |= {row[1:3] for row in rows}

        self._statement(done)

    def sync(self) -> None:
        """What is in the set is on the disk."""

    def pending_streams(self, _clients):
        return [(CLIENT, account) for account in self.accounts.values() if account.first_pending]

    def record_streams(self, rows, _reported_at) -> None:
        def done() -> None:
            for _, account, _ in rows:
                self.accounts[account.stream] = account

        self._statement(done)

    def record_dropped(self, rows, _reported_at) -> None:
        self._statement(lambda: self.dropped.update(row[:3] for _, row in rows))


class Server:
    """An ingest whose inbox is ``held``; what it acknowledges goes to the network of the model."""

    def __init__(self, model: Delivery, name: str) -> None:
        self.model, self.name = model, name
        self.day = DAY
        self.held: list[Received] = []
        self.accepting = True
        settings = config.parse({"name": name}, config.Server)
        never = SimpleNamespace(wait=lambda _: None, is_set=lambda: False)
        self.ingest = Ingest(settings, None, self, model.table, never)

    def acknowledge(self, client_id: int, ack: Ack) -> None:
        self.model.acks.append(Message(topics.ack(client_id), ack.encode()))

    def set_accepting(self, accepting: bool, _shard: int = 0) -> None:
        self.accepting = accepting

    def work(self) -> None:
        """One group of all that it holds, as in ``Ingest.run``."""
        held, self.held = self.held, []
        ingest_module.utc_today = lambda: self.day
        group = Group(self.day)
        table = self.model.table
        outer = table.before, table.must_ask  # of the server whose work this one races
        table.before, table.must_ask = set(table.readings), set()
        for received in held:
            self.ingest.admit(received, group)
            sent = received.message.properties or {}
            late = self.model.now - received.at > inserting_module.HELD_TOO_LONG_S
            if "stream" in sent and (sent["attempt"] != "0" or received.message.dup or late):
                table.must_ask.add((int(sent["stream"]), int(sent["first_seq"])))
        try:
            self.ingest.work(group)
        except Killed:
            self.model.restart_server(self.name)
        finally:
            table.before, table.must_ask = outer

    def status(self) -> Message:
        return Message(topics.server_status(self.name), ServerStatus(self.accepting, self.day, "1").encode())


class Link:
    """The client's connection: what it publishes goes to the network while it is connected."""

    def __init__(self, model: Delivery, on_up, on_down, on_message) -> None:
        self.model, self.on_up, self.on_down, self.on_message = model, on_up, on_down, on_message
        self.connected, self.last_error = False, ""
        self.waiting = 0

    def hear(self, message: Message) -> None:
        """A message comes; the link's thread would wait for the uplink if it were one too many."""
        if self.waiting == MESSAGES_AHEAD:
            self.model.step()
        self.waiting += 1
        self.on_message(message)

    def publish(self, topic, payload, *, content_type="", properties=(), **_):
        if self.connected:
            sent = dict(properties)
            self.model.network.append(Message(topic, payload, content_type, sent))
            if topic == topics.data(CLIENT):
                name = sent["stream"], sent["first_seq"]
                if name not in self.model.published and int(sent["stream"]) == self.model.stream:
                    assert sent["day"] == str(self.model.client.heard_date), "the day of an earlier connection"
                assert self.model.published.setdefault(name, sent["day"]) == sent["day"], "published under two days"
                assert sent["attempt"] != "0" or name not in self.model.attempted, "a second first attempt"
                self.model.attempted.add(name)
        return lambda arrived=self.connected: arrived

    def leave(self, _why: str, _forget: str) -> None:
        """There is one broker."""


class Delivery(RuleBasedStateMachine):
    """One client, two servers."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(
            tempfile.mkdtemp(prefix="skywave-model-", dir="/dev/shm" if Path("/dev/shm").exists() else None)
        )
        self.now = 1000.0
        self.originals = (uplink_module.time, uplink_module.Link, inserting_module.boottime, ingest_module.utc_today)
        uplink_module.time = SimpleNamespace(monotonic=lambda: self.now)
        uplink_module.Link = lambda *_, on_up, on_down, on_message, **__: Link(self, on_up, on_down, on_message)
        inserting_module.boottime = lambda: self.now
        self.table = Table()
        self.network: list[Message] = []
        self.acks: list[Message] = []
        self.committed: dict[tuple[int, int], float] = {}
        self.published: dict[tuple[str, str], str] = {}
        self.attempted: set[tuple[str, str]] = set()
        self.next_value = 0.0
        self.streams = 0
        self.client = None
        self.servers = {name: Server(self, name) for name in SERVERS}
        self.settings = config.parse(
            {
                "client_id": CLIENT, "sensors": {"t": {"port": 1}}, "uplink": {"max_in_flight": 3},
                "outbox": {"path": str(self.folder / "outbox"), "min_free_disk": 0},
            }, config.Client,
        )  # fmt: skip
        self._start()

    def teardown(self) -> None:
        try:
            self.heal()
        finally:
            self.outbox.close()
            uplink_module.time, uplink_module.Link, inserting_module.boottime, ingest_module.utc_today = self.originals
            shutil.rmtree(self.folder)

    # -- the client --------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        self.streams += 1
        self.stream, self.next_seq = self.streams, 1
        self.outbox = open_outbox(self.settings.outbox)
        self.outbox.create(CLIENT)
        self.next_id = self.outbox.start_stream(self.stream)
        self.client = Uplink(self.settings, self.outbox, self.stream, self.next_id)

    @rule(count=st.integers(1, 5), offered=st.booleans())
    def commit(self, count: int, offered: bool) -> None:
        """The intake commits a batch; it is offered, or the uplink is said to be behind."""
        values = [self.next_value + n for n in range(count)]
        self.next_value += count
        name = Name(CLIENT, self.stream, self.next_seq)
        payload = encode(name, ["t"], array("h", [0] * count), array("q", range(count)), array("d", values))
        batch = Batch(self.next_id, self.stream, self.next_seq, count, 0, self.client.heard_date, payload)
        self.outbox.append([batch])
        self.committed |= {(self.stream, self.next_seq + n): value for n, value in enumerate(values)}
        self.next_id, self.next_seq = self.next_id + 1, self.next_seq + count
        if offered:
            self.client.offer(batch)
        else:
            self.client.leave(batch.id)

    @rule()
    def step(self) -> None:
        self.client.turn(0)
        self.client.link.waiting = 0

    @rule()
    def restart_client(self) -> None:
        """Killed at any moment: what it knew is gone, what was under way is not."""
        self.outbox.close()
        self._start()

    @precondition(lambda self: self.client.link.connected)
    @rule(lost=st.booleans())
    def disconnect(self, lost: bool) -> None:
        self.client.link.connected = False
        self.client.link.on_down(Disconnected(0x80, "cut"))
        if lost:
            self.network.clear()
            self.acks.clear()

    @precondition(lambda self: not self.client.link.connected)
    @rule()
    def connect(self) -> None:
        self.client.link.connected = True
        self.client.link.on_up()
        for server in self.servers.values():
            self.client.link.hear(server.status())

    @rule(seconds=st.sampled_from([0.3, 3.0, 40.0, 400.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    # -- the network -------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.network)
    @rule(data=st.data(), name=st.sampled_from(SERVERS), again=st.booleans())
    def arrive(self, data: st.DataObject, name: str, again: bool) -> None:
        """A message, not the oldest perhaps, comes to one of the servers; it may come again, marked as such."""
        message = self.network.pop(data.draw(st.integers(0, len(self.network) - 1)))
        self.servers[name].held.append(Received(message, self.now))
        if again:
            self.network.append(replace(message, dup=True))

    @rule(name=st.sampled_from(SERVERS))
    def flow(self, name: str) -> None:
        """Everything goes its way for once."""
        self.step()
        self.servers[name].held += [Received(message, self.now) for message in self.network]
        self.network.clear()
        self.servers[name].work()
        if self.client.link.connected:
            for message in self.acks:
                self.client.link.hear(message)
            self.acks.clear()

    @precondition(lambda self: self.network)
    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        self.network.pop(data.draw(st.integers(0, len(self.network) - 1)))

    @precondition(lambda self: self.acks)
    @rule(data=st.data(), stays=st.booleans())
    def hear(self, data: st.DataObject, stays: bool) -> None:
        at = data.draw(st.integers(0, len(self.acks) - 1))
        message = self.acks[at] if stays else self.acks.pop(at)
        if self.client.link.connected:
            self.client.link.hear(message)

    @rule(first=st.integers(1, 20), length=st.integers(0, 20), shift=st.integers(1, 3), name=st.sampled_from(SERVERS))
    def hear_of_another_stream(self, first: int, length: int, shift: int, name: str) -> None:
        """An acknowledgement of what this client never sent."""
        ack = Ack(name, self.servers[name].day, [Range(self.streams + shift, first, first + length)], [])
        self.client.link.hear(Message(topics.ack(CLIENT), ack.encode()))

    # -- the servers -------------------------------------------------------------------------------------------------

    @precondition(lambda self: any(server.held for server in self.servers.values()))
    @rule(
        name=st.sampled_from(SERVERS),
        trouble=st.lists(st.sampled_from(["lost", "unknown", "raced", "killed"]), max_size=2),
    )
    def work(self, name: str, trouble: list[str]) -> None:
        """With ``raced`` the other server does its work between this one's look-up and its insert, or before."""
        other = self.servers[SERVERS[1 - SERVERS.index(name)]]

        def race() -> None:
            other.work()
            ingest_module.utc_today = lambda: self.servers[name].day

        self.table.trouble, self.table.meanwhile = list(trouble), race
        self.servers[name].work()
        self.table.trouble = []

    @rule(name=st.sampled_from(SERVERS))
    def restart_server(self, name: str) -> None:
        """What it held and remembered is gone."""
        server = Server(self, name)
        server.day = self.servers[name].day
        self.servers[name] = server

    @rule(name=st.sampled_from(SERVERS))
    def midnight(self, name: str) -> None:
        """It passes at the two servers one after the other."""
        if self.servers[name].day == min(server.day for server in self.servers.values()):
            self.servers[name].day += timedelta(1)
            if self.client.link.connected:
                self.client.link.hear(self.servers[name].status())

    @rule(name=st.sampled_from(SERVERS), accepting=st.booleans())
    def pause(self, name: str, accepting: bool) -> None:
        self.servers[name].set_accepting(accepting)
        if self.client.link.connected:
            self.client.link.hear(self.servers[name].status())

    # -- what is promised --------------------------------------------------------------------------------------------

    @invariant()
    def nothing_left_the_outbox_that_is_not_stored(self) -> None:
        stored = {(stream, seq) for _, stream, seq, _ in self.table.readings}
        held = {
            (batch.stream, batch.first_seq + n)
            for batch in self.outbox.read(0, 1 << 62, 1000)
            for n in range(batch.count)
        }
        assert not self.committed.keys() - stored - held

    @invariant()
    def what_is_forgotten_is_accounted_for(self) -> None:
        known = {account.stream for account in self.outbox.streams()}
        held = self.outbox.read(0, 1 << 62, 1000)
        assert {batch.stream for batch in held} <= known
        assert self.outbox.backlog().readings == sum(batch.count for batch in held)
        for stream, seq in self.committed:
            if stream not in known:
                assert stream in self.table.accounts and self.table.accounts[stream].last_seq >= seq

    @invariant()
    def nothing_is_stored_twice_or_altered(self) -> None:
        names = [(stream, seq) for _, stream, seq, _ in self.table.readings]
        assert len(names) == len(set(names))
        assert all(self.committed[stream, seq] == value for _, stream, seq, value in self.table.readings)

    def heal(self) -> None:
        """Everything works from now on; in a bounded time all is delivered and the accounts are closed."""
        for server in self.servers.values():
            server.accepting = True
        if not self.client.link.connected:
            self.connect()
        else:
            for server in self.servers.values():
                self.client.link.hear(server.status())
        for _ in range(200):
            self.now += 30.0
            self.step()
            server = self.servers["north"]
            server.held += [Received(message, self.now) for message in self.network]
            self.network.clear()
            for one in self.servers.values():
                one.work()
            for message in self.acks:
                self.client.link.hear(message)
            self.acks.clear()
            if not self.outbox.backlog().batches and len(self.outbox.streams()) == 1:
                break
        assert self.outbox.backlog().batches == 0, "it drains"
        assert [account.stream for account in self.outbox.streams()] == [self.stream], "ended streams are forgotten"
        stored = {(stream, seq): value for _, stream, seq, value in self.table.readings}
        assert stored == self.committed
        self.nothing_is_stored_twice_or_altered()


TestDelivery = Delivery.TestCase
TestDelivery.settings = settings(
    max_examples=int(os.environ.get("SKYWAVE_EXAMPLES", 400)),
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
