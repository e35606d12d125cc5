"""The server process: wires the subscriber, the ingest and the store, and shows its figures."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict

from .. import __version__, config
from ..audit import audit
from ..service import Figure, Rate, Snapshot, Worker, rss_bytes, run_until_signal, serve_figures
from ..stalls import Cause, Stalls
from .ingest import Ingest
from .store import open_store
from .subscriber import Inbox, Subscriber

STUCK_AFTER_S = 120.0
AWAY_S = 10.0
"""How long another part may be away, or an INSERT may last, before it is called a stall."""

FIGURES = [
    Figure("readings", "skywave_server_readings", "Readings committed and acknowledged since the start.", True),
    Figure("batches", "skywave_server_batches", "Batches committed.", True),
    Figure("inserts", "skywave_server_inserts", "INSERTs done.", True),
    Figure("insert_s", "skywave_server_insert_seconds", "Time spent in INSERTs.", True),
    Figure("duplicates", "skywave_server_duplicates", "Batches that were stored already.", True),
    Figure("look_ups", "skywave_server_look_ups", "Batches the store was asked about.", True),
    Figure("foreign_readings", "skywave_server_foreign_readings", "Readings that came as plain JSON.", True),
    Figure("rejected", "skywave_server_rejected", "Messages put among the rejected.", True),
    Figure("over_quota", "skywave_server_over_quota", "Poison beyond a client's quota, neither kept nor acknowledged.", True),
    Figure("received", "skywave_server_received", "Messages received.", True),
    Figure("dropped", "skywave_server_dropped", "Messages dropped while full; their clients send them again.", True),
    Figure("held_messages", "skywave_server_held_messages", "Messages received and not yet worked on."),
    Figure("held_bytes", "skywave_server_held_bytes", "Bytes of them."),
    Figure("connected", "skywave_server_broker_connected", "1 while the broker is connected."),
    Figure("accepting", "skywave_server_accepting", "1 while batches are taken."),
    Figure("store_ok", "skywave_server_store_ok", "1 while the store does what it is asked."),
    Figure("clients.*.online", "skywave_server_client_online", "1 while the client is online.", label="client_id"),
    Figure("clients.*.acknowledged", "skywave_server_client_readings", "Readings acknowledged to it since the start.",
           True, "client_id"),
    Figure("clients.*.backlog_readings", "skywave_server_client_backlog_readings", "Readings in its outbox, as it says.",
           label="client_id"),
    Figure("clients.*.oldest_unacked_s", "skywave_server_client_oldest_unacked_seconds",
           "Age of its oldest unacknowledged reading, as it says.", label="client_id"),
    Figure("stalls.*.for_s", "skywave_server_stalled_seconds", "How long a cause has held it up.", label="cause"),
    Figure("rss_bytes", "skywave_server_rss_bytes", "Resident memory."),
]  # fmt: skip


class ServerProcess:
    """One server."""

    def __init__(self, settings: config.Server) -> None:
        self._settings = settings
        self._inbox = Inbox(settings.ingest.max_held_bytes)
        self._store = open_store(settings.store)
        self.subscriber = Subscriber(settings, self._inbox)
        self.ingest = Ingest(settings, self._inbox, self.subscriber, self._store)
        self._worker = Worker("ingest", self.ingest.run)
        self._rate = Rate()
        self._stalls = Stalls()
        self._started = time.monotonic()

    def run(self) -> None:
        """Works until SIGTERM or SIGINT; then finishes the group at hand and returns."""
        # Nobody else can open an embedded store while this process has it, so this process takes the account.
        more = {"/audit": self._audit} if self._settings.store.kind == "embedded" else {}
        labels = {"server": self._settings.server_name}
        http = serve_figures(self._settings.http, FIGURES, self.snapshot, labels, more)
        self._worker.start()
        try:
            run_until_signal(self._health, self._status_line)
        finally:
            self.ingest.stop()
            self._worker.join(30)
            self.subscriber.stop()
            if http:
                http.shutdown()
            self._store.close()

    def _audit(self) -> Snapshot:
        store = open_store(self._settings.store)
        try:
            return audit(store).as_json()
        finally:
            store.close()

    def _causes(self) -> Iterator[Cause]:
        ingest, link = self.ingest, self.subscriber.link
        yield Cause("broker", AWAY_S, "" if link.connected else f"no broker: {link.last_error or 'not connected'}")
        yield Cause(
            "clock", 0.0, "" if ingest.clock_is_set else "the clock was never set; nothing is taken until it is"
        )
        yield Cause("store", AWAY_S, f"the store does not work: {ingest.store_error}" if ingest.store_error else "")
        hangs = time.monotonic() - ingest.progress_at > AWAY_S
        yield Cause("insert", 0.0, "an INSERT or a look-up does not return" if hangs else "")

    def _health(self) -> str:
        self._stalls.look(self._causes())
        if self._worker.died_of is not None:
            return f"dead: ingest: {self._worker.died_of}"
        still = time.monotonic() - self.ingest.progress_at
        return f"ingest has not moved for {still:.0f} s" if still > STUCK_AFTER_S else ""

    def _status_line(self) -> str:
        s = self.snapshot()
        stalled = f"STALLED: {self._stalls}; " if s["stalls"] else ""
        return (
            f"{stalled}{s['readings_per_s']:.0f} readings/s committed, {s['inserts']} inserts, "
            f"{s['duplicates']} duplicates, {s['rejected']} rejected, held {s['held_messages']}"
        )

    def snapshot(self) -> Snapshot:
        """The figures of ``skywave status`` and /metrics."""
        ingest, subscriber = self.ingest, self.subscriber
        return {
            "kind": "server",
            "version": __version__,
            "name": self._settings.server_name,
            "uptime_s": round(time.monotonic() - self._started, 1),
            "connected": subscriber.link.connected,
            "accepting": subscriber.accepting and subscriber.link.connected,
            "broker_error": subscriber.link.last_error,
            "store": self._settings.store.kind,
            "stalls": self._stalls.current,
            "store_ok": not ingest.store_error,
            "store_error": ingest.store_error,
            "readings": ingest.readings,
            "readings_per_s": round(self._rate.update(ingest.readings), 1),
            "batches": ingest.batches,
            "inserts": ingest.inserts,
            "insert_s": round(ingest.insert_s, 3),
            "duplicates": ingest.duplicates,
            "look_ups": ingest.look_ups,
            "foreign_readings": ingest.foreign_readings,
            "rejected": ingest.rejected,
            "over_quota": ingest.over_quota,
            "received": subscriber.received,
            "dropped": subscriber.dropped,
            "held_messages": len(self._inbox),
            "held_bytes": self._inbox.bytes,
            "clients": {
                str(client_id): _client(asdict(s)) | {"acknowledged": ingest.delivered.get(client_id, 0)}
                for client_id, s in sorted(ingest.clients.copy().items())
            },
            "rss_bytes": rss_bytes(),
        }


def _client(status: Snapshot) -> Snapshot:
    del status["streams"], status["dropped"]
    return status
