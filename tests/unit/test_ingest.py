"""The server's loop where no store is needed to see it: when it accepts, and what it makes of hostile messages."""

from __future__ import annotations

import json
import threading
import time
from datetime import date

import pytest
from support.parts import wait_for

from skywave import config
from skywave.formats import topics
from skywave.mqtt.events import Message
from skywave.process.times import boottime, utc_today
from skywave.server.admission import Admission
from skywave.server.inbox import Inbox, Received
from skywave.server.ingest import Ingest
from skywave.store.columns import Probe
from skywave.store.store import LOOK_UP_AT_ONCE, LOOK_UP_LETTERS, Store

STATUS = {"v": 1, "online": True, "version": "1", "streams": [["5", "10", "0"]]}


class Memory:
    """A store that takes everything and keeps what was rejected."""

    def __init__(self):
        self.poison = []

    def migrate(self):
        pass

    def reject(self, rows):
        self.poison += rows

    def rejected_bytes(self, *_):
        return 0

    def pending_streams(self, _):
        return []

    def record_streams(self, *_):
        time.sleep(0.02)

    record_dropped = record_streams


class Front:
    """The broker's side of an ingest."""

    def __init__(self):
        self.accepting = False

    def start(self):
        pass

    def tick(self):
        pass

    def accepts(self, _):
        return self.accepting

    def set_accepting(self, accepting, _):
        self.accepting = accepting

    def acknowledge(self, *_):
        pass


@pytest.fixture
def stopping():
    return threading.Event()


@pytest.fixture
def ingest(stopping):
    inbox, store, front = Inbox(64 << 20), Memory(), Front()
    settings = config.Server(ingest=config.Ingest(linger=0.0))
    return Ingest(settings, inbox, front, store, stopping), inbox, store, front


def status(client_id, **more):
    body = json.dumps(STATUS | more).encode()
    return Received(Message(topics.client_status(client_id), body), boottime())


def work(loop, inbox):
    while len(inbox):
        loop.work(loop.gather(utc_today()))


def test_a_server_accepts_again_though_statuses_never_cease(ingest, stopping):
    loop, inbox, _, front = ingest
    working = threading.Thread(target=loop.run)
    over = threading.Event()

    def talk():
        number = 0
        while not over.wait(0.002):
            number += 1
            inbox.put(status(number % 1000 + 1, streams=[["5", str(number), "0"]]), 1)

    talking = threading.Thread(target=talk)
    for number in range(2000):
        inbox.put(status(number % 1000 + 1), 1)
    talking.start()
    working.start()
    try:
        wait_for(lambda: front.accepting, 10, "it accepts")
    finally:
        over.set()
        talking.join()
        stopping.set()
        working.join()


@pytest.mark.parametrize(
    "more",
    [
        {"oldest_unacked_s": 1.7e18},
        {"dropped": [["1", "1", "1", "\ud800"]]},
        {"labels": {"site": "\udfff"}},
        {"labels": {"\ud800": "north"}},
        {"host": "\ud800"},
        {"oldest_unacked_s": float("nan")},
    ],
)
def test_a_hostile_status_stops_nobody(ingest, more):
    loop, inbox, _, _ = ingest
    inbox.put(status(7, **more), 1)
    inbox.put(status(8), 1)
    work(loop, inbox)
    assert loop.figures.clients.keys() == {8}


@pytest.mark.parametrize(
    "payload",
    [
        b'{"created_at": 1, "data_key": "k", "data_value": 1e9999999999999999999}',
        *(b'{"created_at": ' + b"[" * depth + b"]" * depth + b', "data_key": "k"}' for depth in range(900, 1000)),
        b'{"created_at": 1, "data_key": "' + b"k" * 1001 + b'", "data_value": 1}',
        b"[" * 100_000,
    ],
)
def test_hostile_json_is_rejected_with_its_bytes_and_stops_nobody(ingest, payload):
    loop, inbox, store, _ = ingest
    inbox.put(Received(Message(topics.data(7), payload), boottime()), 1)
    work(loop, inbox)
    assert len(store.poison) == 1 and store.poison[0].payload


def test_an_error_of_ours_over_a_message_rejects_that_message(ingest, monkeypatch):
    loop, inbox, store, _ = ingest
    monkeypatch.setattr(Admission, "admit", lambda *_: 1 / 0)
    inbox.put(Received(Message(topics.data(7), b"{}"), boottime()), 1)
    work(loop, inbox)
    assert [(row.payload, row.reason) for row in store.poison] == [(b"{}", "division by zero")]


def test_look_ups_are_cut_where_a_statement_would_grow_too_long():
    class Recorder(Store):
        insert = stream = close = drop = None

        def __init__(self):
            self.database, self.statements = "d", []

        def query(self, sql):
            self.statements.append(sql)
            return []

        def look_up(self, probes):
            self.statements.clear()
            assert self.existing(probes) == set()
            return [sql for sql in self.statements if "telemetry" in sql]

    recorder = Recorder()
    probes = [Probe(1, 5, n, "\U0001f600" * 1000, n, date(2026, 1, 1)) for n in range(1, 101)]
    different = [probe._replace(data_key=probe.data_key[:-3] + f"{probe.first_seq:03}") for probe in probes]
    found = recorder.look_up(different)
    assert max(len(sql.encode()) for sql in found) < 262_144
    assert len(found) >= 100 * 1000 / LOOK_UP_LETTERS
    short = [probe._replace(data_key="k") for probe in probes * 25]
    assert len(recorder.look_up(short)) == -(-len(short) // LOOK_UP_AT_ONCE)
