"""From the sensors into the outbox: a clock that was never set, a disk that is not there, a database that does not answer."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import threading
import time
from array import array
from datetime import UTC, date, datetime, timedelta

import pytest
from support.parts import free_port, wait_for

from skywave import config
from skywave.client import agent as agent_module
from skywave.client import clock as clock_module
from skywave.client import held
from skywave.client.agent import Agent
from skywave.client.clock import EARLIEST_US, Clock
from skywave.client.intake import Intake
from skywave.errors import CredentialError, OutboxUnavailable
from skywave.formats.batch import Name, decode
from skywave.formats.frames import frame
from skywave.outbox.opening import open_outbox
from skywave.process.service import Worker

SINCE_BOOT_NS = 100 * 10**9


class WallClock:
    """Shows 1970 until it is set."""

    def __init__(self, monkeypatch) -> None:
        self.wrong_by_ns = time.time_ns() - SINCE_BOOT_NS
        self.real = time.time_ns
        monkeypatch.setattr(time, "time_ns", lambda: self.real() - self.wrong_by_ns)

    def set(self) -> None:
        self.wrong_by_ns = 0


class Receiver:
    """The uplink, as far as the intake knows it."""

    def __init__(self) -> None:
        self.heard_date: date | None = None
        self.accepting = False
        self.offered: list[int] = []
        self.left = 0

    def offer(self, batch) -> None:
        self.offered.append(batch.id)

    def leave(self, last_id: int) -> None:
        self.left = last_id


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "outbox.sqlite")


@contextlib.contextmanager
def running_intake(path, **more):
    """An intake with one sensor that sends a number every few milliseconds: (intake, receiver)."""
    listener, over = socket.create_server(("127.0.0.1", 0)), threading.Event()

    def send() -> None:
        with contextlib.suppress(OSError), listener, listener.accept()[0] as sock:
            number = 0
            while not over.is_set():
                number += 1
                sock.sendall(frame(b"%d" % number))
                over.wait(0.01)

    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    settings = config.parse(
        {
            "client_id": 7, "sensors": {"t": {"port": listener.getsockname()[1]}},
            "outbox": {"path": path, "min_free_disk": 0}, "intake": {"linger": 0.02, "poll_interval": 0.01, **more},
        },
        config.Client,
    )  # fmt: skip
    outbox = open_outbox(settings.outbox)
    outbox.lock()
    outbox.create(7)
    receiver = Receiver()
    intake = Intake(settings, outbox, 5, outbox.start_stream(5), receiver)
    worker = Worker("intake", intake.run)
    worker.start()
    try:
        yield intake, receiver
        assert worker.died_of is None, worker.died_of
    finally:
        over.set()
        intake.stop()
        worker.join(20)
        sender.join(20)
        outbox.close()


def times(path):
    """The times of all readings in an outbox, in the order of their numbers."""
    box = open_outbox(config.Outbox(path=path))
    try:
        batches = box.read(0, 10**9, 10**6)
        assert box.backlog().bytes == sum(len(b.payload) for b in batches)
        found = []
        for batch in batches:
            readings = decode(batch.payload, Name(7, batch.stream, batch.first_seq), batch.count)
            assert batch.made_at == min(readings.created_at.to_pylist())
            found += readings.created_at.to_pylist()
        return found
    finally:
        box.close()


def test_times_of_a_clock_that_was_never_set_are_corrected_once_it_is_before_they_are_sent(path, monkeypatch):
    monkeypatch.setattr(held, "CORRECT_AT_ONCE", 3)  # in many steps
    began = time.time_ns() // 1000
    wall = WallClock(monkeypatch)
    with running_intake(path) as (intake, receiver):
        wait_for(lambda: intake.commits > 10, 20, "it commits")
        receiver.accepting = True  # the network is there; a time server answers a little later
        assert not intake.clock.is_set and receiver.offered == [] and receiver.left == 0
        wall.set()
        wait_for(lambda: receiver.left, 20, "they are handed on")
        wait_for(lambda: receiver.offered, 20, "later ones are offered")
        assert min(receiver.offered) == receiver.left + 1
    found = times(path)
    assert len(found) == intake.readings and found == sorted(found)
    assert began <= found[0] and found[-1] <= time.time_ns() // 1000
    gaps = [after - before for before, after in itertools.pairwise(found)]
    assert max(gaps) < 20e6, "the jump is nowhere among them"


def test_a_clock_that_nobody_sets_holds_readings_up_for_a_moment_only(path, monkeypatch, caplog):
    monkeypatch.setattr(held, "CLOCK_GRACE_S", 0.3)
    wall = WallClock(monkeypatch)
    with running_intake(path) as (intake, receiver):
        wait_for(lambda: intake.commits > 3, 20, "it commits")
        assert not receiver.offered and not receiver.left, "no server is there, so nothing is lost by waiting"
        receiver.accepting = True
        wait_for(lambda: receiver.left and receiver.offered, 20, "they go on as they are")
        wall.set()
        wait_for(lambda: "lack" in caplog.text, 20, "by how much they were wrong is told")
    assert min(times(path)) < EARLIEST_US


def test_a_clock_that_is_set_while_the_client_stops_still_corrects(path, monkeypatch):
    wall = WallClock(monkeypatch)
    with running_intake(path) as (intake, _receiver):
        wait_for(lambda: intake.commits > 3, 20, "it commits")
        wall.set()
    assert min(times(path)) > EARLIEST_US


def test_an_outbox_that_is_away_while_times_are_corrected_is_not_asked_and_told_of_without_end(
    path, monkeypatch, caplog
):
    monkeypatch.setattr(held, "RETRY_S", 0.2)
    wall = WallClock(monkeypatch)
    box = open_outbox(config.Outbox(path=path))
    waiting = held.HeldBack(
        config.parse({"client_id": 7, "sensors": {"t": {"port": 1}}}, config.Client), box, lambda: False
    )
    assert waiting.keeps(1, 0.0)
    wall.set()

    def away(*_):
        raise OutboxUnavailable("away")

    with contextlib.closing(box), monkeypatch.context() as patch:
        patch.setattr(box, "query", away)
        for _ in range(100):
            assert not waiting.look(time.monotonic(), 1)
        assert not waiting.correct_all(1, within=0.5)
    assert 1 < len(caplog.records) < 8
    with contextlib.closing(box):
        box.create(7)
        assert waiting.correct_all(1, within=5), "it works again, and nothing is left that waits"


def test_a_good_clock_delays_and_changes_nothing(path):
    with running_intake(path) as (intake, receiver):
        wait_for(lambda: intake.commits > 3, 20, "it commits")
        assert receiver.offered[:3] == [1, 2, 3] and not receiver.left


def test_the_jump_is_the_one_between_the_two_clocks(monkeypatch):
    now, up = 50 * 10**9, 40 * 10**9
    monkeypatch.setattr(clock_module.time, "time_ns", lambda: now)
    monkeypatch.setattr(clock_module.time, "clock_gettime_ns", lambda _clock: up)
    clock = Clock()
    assert not clock.is_set
    up += 7 * 10**9  # seven seconds pass, and in them the clock is set
    now = 1_790_000_000 * 10**9
    early = array("q", [50 * 10**6, 55 * 10**6, 1_790_000_000 * 10**6])
    assert clock.corrected(early) == early, "not known yet"
    clock.look()
    assert clock.is_set
    assert list(clock.corrected(early)) == [1_789_999_993 * 10**6, 1_789_999_998 * 10**6, 1_790_000_000 * 10**6]


# -- the client as a whole -----------------------------------------------------------------------------------------------


def settings(tmp_path, **outbox):
    return config.parse(
        {
            "client_id": 7, "sensors": {"t": {"port": 1}}, "mqtt": {"port": 1}, "http": {"port": free_port()},
            "outbox": {"path": str(tmp_path / "outbox.sqlite"), **outbox},
        },
        config.Client,
    )  # fmt: skip


@contextlib.contextmanager
def started(agent):
    for worker in agent._workers:
        worker.start()
    agent._figures = agent_module.FiguresServer(config.Http(), [], agent.snapshot, {})
    try:
        yield agent
    finally:
        agent.intake.stop()
        agent.uplink.stop()
        for worker in agent._workers:
            worker.join(20)
        agent._intake_outbox.close()
        agent._uplink_outbox.close()


def test_a_client_waits_for_its_outboxs_disk_and_begins_no_outbox_on_another(tmp_path):
    mount = tmp_path / "ssd"
    mount.mkdir()
    wanted = settings(tmp_path, path=str(mount / "outbox.sqlite"), require_mount=str(mount))
    with pytest.raises(OutboxUnavailable, match="nothing is mounted") as error:
        Agent(wanted)
    assert error.value.exit_code == 75 and not list(mount.iterdir())
    with started(Agent(settings(tmp_path, require_mount="/"))):
        pass


@pytest.mark.parametrize("place", ["/proc/no/outbox.sqlite", "/dev/null/outbox.sqlite", "/proc/outbox.sqlite"])
def test_a_disk_that_cannot_be_written_is_a_matter_of_a_restart(tmp_path, place):
    with pytest.raises(OutboxUnavailable) as error:
        Agent(settings(tmp_path, path=place))
    assert error.value.exit_code == 75


def test_credentials_that_cannot_be_read_stop_the_broker_and_not_the_sensors(tmp_path):
    wanted = config.parse(
        {
            "client_id": 7, "sensors": {"t": {"port": 1}}, "outbox": {"path": str(tmp_path / "outbox.sqlite")},
            "mqtt": {"port": 1, "ca_file": str(tmp_path / "absent.crt")},
        },
        config.Client,
    )  # fmt: skip
    with started(Agent(wanted)) as agent:
        wait_for(lambda: "absent.crt" in agent.uplink.link.trouble, 20, "it is told")
        assert agent._health() == ""
    with pytest.raises(CredentialError) as error:
        config.secret(str(tmp_path / "absent"))
    assert error.value.exit_code == 75


def test_a_full_outbox_names_its_reason_in_stall_and_status(tmp_path, monkeypatch):
    with started(Agent(settings(tmp_path))) as agent:
        agent.intake.full = "/ has 1.0 MiB free of outbox.min_free_disk 256.0 MiB"
        agent._health()
        monkeypatch.setattr(agent_module, "AWAY_S", 0.0)
        wait_for(lambda: agent._health() or "outbox full" in agent.snapshot().stalls, 10, "it is told")
        assert "outbox.min_free_disk" in agent.snapshot().stalls["outbox full"].why
        assert agent.snapshot().outbox_full is True
        assert "min_free_disk" in agent.snapshot().outbox_full_why


def test_a_clock_that_disagrees_with_the_servers_is_told(tmp_path, monkeypatch):
    today = datetime.now(UTC).date()
    with started(Agent(settings(tmp_path))) as agent:
        monkeypatch.setattr(type(agent.uplink), "accepting", True)
        for days, told in ((0, False), (1, False), (-1, False), (2, True), (-2, True), (-4000, True)):
            agent.uplink.servers.heard_date = today + timedelta(days)
            agent._health()
            assert ("clock" in agent.snapshot().stalls) is told, days
        agent.intake.clock.is_set = False
        agent._health()
        assert "never set" in agent.snapshot().stalls["clock"].why


def test_a_client_that_waits_for_a_frozen_database_is_not_stuck(tmp_path, own_postgres, monkeypatch):
    """The watchdog would kill it, and with it what is in memory."""
    monkeypatch.setattr(agent_module, "STUCK_AFTER_S", 2.0)
    monkeypatch.setattr(agent_module, "AWAY_S", 2.0)
    wanted = settings(tmp_path, kind="postgresql", dsn=own_postgres.dsn())
    with started(Agent(wanted)) as agent:
        boxes = (agent._intake_outbox, agent._uplink_outbox)
        backends = [box.query("SELECT pg_backend_pid()")[0][0] for box in boxes]
        for pid in backends:
            os.kill(pid, signal.SIGSTOP)
        try:
            wait_for(
                lambda: agent._health() == "" and "does not answer" in str(agent.snapshot().stalls.get("uplink")),
                30, lambda: f"it says what it waits for: {agent.snapshot().stalls}",
            )  # fmt: skip
            assert time.monotonic() - agent.uplink.progress_at > 2.0 and agent._health() == ""
        finally:
            for pid in backends:
                os.kill(pid, signal.SIGCONT)
        wait_for(lambda: agent._health() == "" and not agent.snapshot().stalls.get("uplink"), 30, "it goes on")


def test_a_loop_that_hangs_for_another_reason_is_stuck(tmp_path):
    with started(Agent(settings(tmp_path))) as agent:
        pass
    agent.intake.progress_at -= 100
    assert "has not moved" in agent._health()
    agent._intake_outbox.asked_at = time.monotonic() - 50
    agent.uplink.progress_at = time.monotonic()
    assert agent._health() == ""


def test_an_outbox_that_never_held_a_reading_is_told(tmp_path, caplog):
    """Perhaps it is on another disk than the one that holds the backlog."""
    caplog.set_level("INFO")
    with started(Agent(settings(tmp_path))):
        assert caplog.text.count("never held a reading") == 1
