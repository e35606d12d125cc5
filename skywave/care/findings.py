"""What is wrong with a running client or server, judged by its snapshot alone.

The one place where a snapshot becomes a verdict: ``skywave status`` shows it, the doctor adds what can only be seen on the
host, the gate of an update lets nobody pass on the word of a server that is not well, and ``health.yml`` collects what the
doctors say. A cause that holds a process up now is always a finding.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from ..process.snapshot import ClientSnapshot, ServerSnapshot, Snapshot

LATE_S = 120.0


class Finding(NamedTuple):
    """One check: ``advice`` says what to do when it is not ``ok``."""

    check: str
    ok: bool
    found: str
    advice: str = ""


STALLS = {
    "broker": ("session", "Check the broker, the way to it, its log, and that no other host has this name or number."),
    "server": ("server", "Run skywave doctor on the servers; until one accepts, readings wait in the outbox."),
    "acknowledgement": ("delivery", "Run skywave doctor on the servers, and look whether the broker lets them read and this "
                                    "client write."),
    "outbox full": ("outbox", "Bring the servers back, make room on the disk, or raise outbox.max_bytes."),
    "outbox": ("outbox", "Check the database and its disk; until then the sensors are not read."),
    "intake": ("", "Check the outbox's database and its disk; until then the sensors are not read."),
    "uplink": ("", "Check the outbox's database and its disk; until then nothing is sent."),
    "set aside": ("set aside", "Raise the broker's message_size_limit."),
    "store": ("commits", "Check the store, its disk and the way to it; clients keep their readings meanwhile."),
    "insert": ("", "Check the store: its load, its disk, its locks."),
    "data": ("", "Look at the broker's log and its ACL: may this server read /telemetry/client/+/ there, and clients write?"),
    "link": ("", "Look what the process waits for: its outbox or store, processor time; it reads on by itself."),
    "figures": ("", "Give it a free http.port, or an address of this host; nothing else is held up."),
    "clock": ("", "Set the clock: a client's dates readings, a server's their day."),
}  # fmt: skip
"""By the beginning of a cause: the check that says the same where it is wrong, and what to do."""
OTHER = ("", "The process's log says more: journalctl -u skywave-client or skywave-server.")


def judge(snapshot: ClientSnapshot | ServerSnapshot) -> list[Finding]:
    """The findings on a snapshot, each check once: a stall that a check tells already is not told again."""
    found = list(_client(snapshot) if isinstance(snapshot, ClientSnapshot) else _server(snapshot))
    told = {finding.check for finding in wrong(found)}
    for cause, stall in snapshot.stalls.items():
        check, advice = next((STALLS[name] for name in STALLS if cause.startswith(name)), OTHER)
        if check not in told:
            found.append(Finding(f"stall: {cause}", False, str(stall), advice))
    return found


def wrong(findings: Iterable[Finding]) -> list[Finding]:
    """Those that are not ok."""
    return [finding for finding in findings if not finding.ok]


def _client(s: ClientSnapshot) -> Iterator[Finding]:
    yield _session(s, STALLS["broker"][1])
    accepts = "accepts batches" if s.accepting else _held(s, "server") or "no server accepts batches"
    yield Finding("server", s.accepting, accepts, STALLS["server"][1])
    outbox = _held(s, "outbox") or s.outbox_error or ("is full" if s.outbox_full else "")
    waiting = f"{s.backlog.readings:,} readings wait"
    yield Finding("outbox", not outbox, outbox or waiting, STALLS["outbox full" if s.outbox_full else "outbox"][1])
    unmoved = _held(s, "acknowledgement")
    oldest = f"the oldest unacknowledged reading is {s.oldest_unacked_s:.1f} s old"
    late = s.oldest_unacked_s > LATE_S
    yield Finding(
        "delivery",
        not late and not unmoved,
        f"{unmoved}; {oldest}" if unmoved else oldest,
        STALLS["acknowledgement"][1],
    )
    for name, sensor in s.sensors.items():
        found = "connected" if sensor.connected else sensor.last_error or "not connected"
        yield Finding(f"sensor {name}", sensor.connected, found, "Check the sensor, its address and its port.")
    if s.set_aside:
        found = f"the broker refuses {s.set_aside} batches"
        yield Finding("set aside", False, _held(s, "set aside") or found, STALLS["set aside"][1])


def _server(s: ServerSnapshot) -> Iterator[Finding]:
    not_yet = not s.connected and not s.broker_error  # it connects once its store answers
    yield _session(s, "It waits for its store: see below." if not_yet else STALLS["broker"][1])
    yield Finding(
        "accepting",
        s.accepting,
        "batches are taken" if s.accepting else "no batches are taken",
        "It waits for the broker or the store, or is full: see there.",
    )
    store = _held(s, "store") or s.store_error
    yield Finding("commits", s.store_ok and not store, store or "the store does what it is asked", STALLS["store"][1])


def _session(s: Snapshot, advice: str) -> Finding:
    trouble = s.broker_error or ("" if s.connected else "not connected yet")
    found = (_held(s, "broker") or trouble) if trouble else "connected to the broker"
    return Finding("session", not trouble, found, advice)


def _held(s: Snapshot, cause: str) -> str:
    """What holds the process up by this cause (or any that begins so), and for how long; "" if nothing does."""
    return "; ".join(str(stall) for name, stall in s.stalls.items() if name.startswith(cause))
