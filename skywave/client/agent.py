"""The client process: wires the intake and the uplink to the outbox, and shows its figures."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime

from .. import __version__, config
from ..errors import OutboxUnavailable
from ..outbox.opening import open_outbox
from ..outbox.outbox import Outbox
from ..process.figures import Figure, FiguresServer, Rate, rss_bytes
from ..process.handover import take_over
from ..process.service import Worker, run_until_signal
from ..process.snapshot import BacklogState, ClientSnapshot, SensorState
from ..process.stalls import AWAY_S, Cause, Stalls
from .intake import Intake
from .uplink import Uplink

log = logging.getLogger(__name__)

STUCK_AFTER_S = 30.0
ANSWERS_WITHIN_S = 1.0
"""A database that takes longer is what a thread waits for, not one that it asks again and again."""
UNACKED_S = 30.0
"""How long all that was sent may be without an acknowledgement before it is called a stall."""

FIGURES = [
    Figure("readings", "skywave_client_readings", "Readings committed to the outbox since the start.", True),
    Figure("commits", "skywave_client_commits", "Commits of batches since the start.", True),
    Figure("acked_readings", "skywave_client_acked_readings", "Readings acknowledged as stored.", True),
    Figure(
        "rejected_readings", "skywave_client_rejected_readings", "Readings in batches that a server rejected.", True
    ),
    Figure("resent_batches", "skywave_client_resent_batches", "Publishes of a batch after its first.", True),
    Figure("ignored_acks", "skywave_client_ignored_acks", "Acknowledged ranges that covered no batch in flight.", True),
    Figure("bad_messages", "skywave_client_bad_messages", "Messages that could not be read.", True),
    Figure("backlog.readings", "skywave_client_backlog_readings", "Readings in the outbox."),
    Figure("backlog.batches", "skywave_client_backlog_batches", "Batches in the outbox."),
    Figure("backlog.bytes", "skywave_client_backlog_bytes", "Bytes of batches in the outbox."),
    Figure("in_flight", "skywave_client_in_flight_batches", "Batches that wait for an acknowledgement."),
    Figure(
        "set_aside", "skywave_client_set_aside_batches", "Batches that the broker refuses; they stay in the outbox."
    ),
    Figure("oldest_unacked_s", "skywave_client_oldest_unacked_seconds", "Age of the oldest unacknowledged reading."),
    Figure("time_to_full_s", "skywave_client_time_to_full_seconds", "When the outbox is full at the present rates."),
    Figure("ack_delay_s", "skywave_client_ack_delay_seconds", "Smoothed time from publish to acknowledgement."),
    Figure("connected", "skywave_client_broker_connected", "1 while the broker is connected."),
    Figure("accepting", "skywave_client_server_accepting", "1 while some server accepts batches."),
    Figure("clock_is_set", "skywave_client_clock_set", "1 unless the clock shows a date before 2025."),
    Figure("outbox_full", "skywave_client_outbox_full", "1 while the outbox is full."),
    Figure("sensors.*.connected", "skywave_client_sensor_connected", "1 while connected.", label="sensor"),
    Figure("sensors.*.readings", "skywave_client_sensor_readings", "Readings taken in.", True, "sensor"),
    Figure("sensors.*.malformed", "skywave_client_sensor_malformed", "Payloads that are no numbers.", True, "sensor"),
    Figure(
        "sensors.*.broken_frames", "skywave_client_sensor_broken_frames", "Times the framing was lost.", True, "sensor"
    ),
    Figure("sensors.*.disconnects", "skywave_client_sensor_disconnects", "Connections that ended.", True, "sensor"),
    Figure("sensors.*.stalls", "skywave_client_sensor_stalls", "Times the sensor fell silent.", True, "sensor"),
    Figure(
        "sensors.*.missed",
        "skywave_client_sensor_missed",
        "Readings that a sensor had no more when it was asked.",
        True,
        "sensor",
    ),
    Figure("stalls.*.for_s", "skywave_client_stalled_seconds", "How long a cause has held it up.", label="cause"),
    Figure("uptime_s", "skywave_client_uptime_seconds", "Time since its start."),
    Figure("rss_bytes", "skywave_client_rss_bytes", "Resident memory."),
]


class Agent:
    """One client. Raises ``OutboxUnavailable`` or ``OutboxError`` if the outbox cannot be opened at the start."""

    def __init__(self, settings: config.Client) -> None:
        self._settings = settings
        # A stream is drawn anew at every start, so a restored or cloned outbox never reuses an identity. 63 bits,
        # because PostgreSQL and SQLite hold signed numbers.
        stream = random.SystemRandom().randrange(1, 2**63)
        self._intake_outbox, self._uplink_outbox = _open(settings)
        first_id = self._intake_outbox.start_stream(stream)
        if first_id == 1:
            log.info("outbox: this one never held a reading")
        self.uplink = Uplink(settings, self._uplink_outbox, stream, first_id)
        self.intake = Intake(settings, self._intake_outbox, stream, first_id, self.uplink, take_over())
        self._workers = [Worker("intake", self.intake.run), Worker("uplink", self.uplink.run)]
        self._in_rate, self._ack_rate, self._growth = Rate(), Rate(), Rate(30.0)
        self._stalls = Stalls()
        self._acked_before = 0
        self._started = time.monotonic()

    def run(self) -> None:
        """Works until SIGTERM or SIGINT; then commits what is in memory and returns."""
        self._figures = FiguresServer(
            self._settings.http,
            FIGURES,
            self.snapshot,
            {"client_id": str(self._settings.client_id), **{f"label_{k}": v for k, v in self._settings.labels.items()}},
        )
        for worker in self._workers:
            worker.start()
        try:
            run_until_signal(self._health, self._status_line)
        finally:
            self.intake.stop()
            self._workers[0].join(20)
            self.uplink.stop()
            self._workers[1].join(10)
            self._figures.stop()
            self._intake_outbox.close()
            self._uplink_outbox.close()
            log.info(
                "stopped: %d readings committed, %d in the outbox",
                self.intake.readings,
                self.uplink.account.backlog.readings,
            )

    def drain(self) -> None:
        """Brings what the outbox holds to the server without reading a sensor; returns when it is empty."""
        worker = self._workers[1]
        worker.start()
        try:
            while self.uplink.account.backlog.readings and worker.died_of is None:
                time.sleep(0.2)
            if worker.died_of is not None:
                raise worker.died_of
        finally:
            self.uplink.stop()
            worker.join(10)
            self._intake_outbox.close()
            self._uplink_outbox.close()
        log.info("the outbox is empty")

    def _causes(self) -> Iterator[Cause]:
        intake, uplink = self.intake, self.uplink
        accepting = uplink.accepting
        yield Cause("broker", AWAY_S, uplink.link.trouble)
        yield Cause("server", AWAY_S, "no server accepts batches" if uplink.link.connected and not accepting else "")
        unmoved = accepting and len(uplink.window) > 0 and uplink.counts.acked_batches == self._acked_before
        self._acked_before = uplink.counts.acked_batches
        yield Cause("acknowledgement", UNACKED_S, "nothing that was sent is acknowledged" if unmoved else "")
        waits = (
            "the oldest readings are dropped"
            if self._settings.outbox.when_full == "drop_oldest"
            else "the sensors wait"
        )
        yield Cause("outbox full", 1.0, f"the outbox is full, {waits}: {intake.full}" if intake.full else "")
        wrong = intake.unavailable or uplink.unavailable
        yield Cause("outbox", AWAY_S, f"the outbox does not work: {wrong}" if wrong else "")
        aside = len(uplink.refusals)
        yield Cause(
            "set aside", 0.0, f"the broker refuses {aside} batches; they are tried again by and by" if aside else ""
        )
        yield Cause("clock", 0.0, self._clock_trouble())
        yield Cause("figures", 0.0, self._figures.trouble)
        for name, progress_at, outbox in self._loops():
            hangs = time.monotonic() - progress_at > AWAY_S
            why = ": the outbox's database or disk does not answer" if _waits_for(outbox) else ""
            yield Cause(name, 0.0, f"the {name} hangs{why}" if hangs else "")
        yield Cause("link", 0.0, uplink.link.hang)

    def _loops(self) -> Iterator[tuple[str, float, Outbox]]:
        """Each worker's name, when its loop last turned, and the outbox that it may wait for."""
        yield "intake", self.intake.progress_at, self._intake_outbox
        yield "uplink", self.uplink.progress_at, self._uplink_outbox

    def _clock_trouble(self) -> str:
        today, heard = datetime.now(UTC).date(), self.uplink.heard_date
        if not self.intake.clock.is_set:
            return "the clock was never set; readings get the times that it shows"
        # Two servers may be on both sides of midnight, and this host on either side of them.
        if self.uplink.accepting and heard and abs((today - heard).days) > 1:
            return f"the clock shows {today}, the servers have {heard}; readings get the times that it shows"
        return ""

    def _health(self) -> str:
        self._stalls.look(self._causes())
        for worker in self._workers:
            if worker.died_of is not None:
                return f"dead: {worker.name}: {worker.died_of}"
        for name, progress_at, outbox in self._loops():
            still = time.monotonic() - progress_at
            # A restart would lose what is in memory, and wait for the same database.
            if still > STUCK_AFTER_S and not _waits_for(outbox):
                return f"{name} has not moved for {still:.0f} s"
        return ""

    def _status_line(self) -> str:
        s = self.snapshot()
        return (
            f"{self._stalls}{s.readings_per_s:.0f} readings/s in, {s.acked_per_s:.0f} acknowledged, "
            f"backlog {s.backlog.readings}, oldest {s.oldest_unacked_s:.1f} s"
        )

    def snapshot(self) -> ClientSnapshot:
        """The figures of ``skywave status`` and /metrics."""
        intake, uplink = self.intake, self.uplink
        backlog = uplink.account.backlog
        growth = self._growth.update(backlog.bytes)
        free = self._settings.outbox.max_bytes - backlog.bytes
        return ClientSnapshot(
            version=__version__,
            client_id=self._settings.client_id,
            labels=self._settings.labels,
            uptime_s=round(time.monotonic() - self._started, 1),
            connected=uplink.link.connected,
            accepting=uplink.accepting,
            broker_error=uplink.link.error,
            readings=intake.readings,
            readings_per_s=round(self._in_rate.update(intake.readings), 1),
            commits=intake.commits,
            acked_readings=uplink.counts.acked_readings,
            acked_per_s=round(self._ack_rate.update(uplink.counts.acked_readings), 1),
            rejected_readings=uplink.counts.rejected_readings,
            resent_batches=uplink.window.resent,
            ignored_acks=uplink.window.ignored_acks,
            bad_messages=uplink.servers.bad_messages,
            backlog=BacklogState(**asdict(backlog)),
            in_flight=len(uplink.window),
            set_aside=len(uplink.refusals),
            oldest_unacked_s=round(uplink.account.oldest_unacked_s(), 3),
            time_to_full_s=round(free / growth) if growth > 1 and free > 0 else None,
            ack_delay_s=round(uplink.window.ack_delay, 3),
            stalls=self._stalls.current,
            clock_is_set=intake.clock.is_set,
            outbox_full=bool(intake.full),
            outbox_full_why=intake.full,
            outbox_error=intake.unavailable or uplink.unavailable,
            sensors={name: SensorState(**asdict(figures)) for name, figures in intake.sensors.items()},
            rss_bytes=rss_bytes(),
        )


def _open(settings: config.Client) -> tuple[Outbox, Outbox]:
    """The intake's connection to the outbox and the uplink's. Raises ``OutboxUnavailable`` also for what is wrong with a disk:
    it may be mounted or repaired, and a client that is started again then goes on."""
    if why := settings.outbox.missing_mount():
        raise OutboxUnavailable(why, "Mount the outbox's disk; the client starts again by itself.")
    try:
        intake, uplink = open_outbox(settings.outbox), open_outbox(settings.outbox)
        intake.lock()
        intake.create(settings.client_id)
    except OSError as error:
        raise OutboxUnavailable(f"outbox: {error}", "Check the disk and the rights of its folder.") from error
    return intake, uplink


def _waits_for(outbox: Outbox) -> bool:
    """True while one question to the outbox's database takes long."""
    asked_at = outbox.asked_at
    return asked_at > 0 and time.monotonic() - asked_at > ANSWERS_WITHIN_S
