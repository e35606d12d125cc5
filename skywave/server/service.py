"""The server process: wires the subscriber to an ingest and a store for each shard, and shows their figures."""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

from .. import __version__, config
from ..formats.messages import ClientStatus
from ..process.figures import Figure, FiguresServer, Rate, rss_bytes
from ..process.service import Worker, run_until_signal
from ..process.snapshot import ClientState, ServerSnapshot, ShardState
from ..process.stalls import AWAY_S, Cause, Stalls
from ..store.accounts import audit_shards
from ..store.shards import open_shards, shard_names, shard_of, shard_suffix
from .inbox import Inbox
from .ingest import Ingest
from .subscriber import Subscriber

log = logging.getLogger(__name__)

STUCK_AFTER_S = 120.0
UNHEARD_S = 30.0
"""How long clients may say that their readings wait, while the broker brings none of any client."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h

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
    Figure("foreign_lost", "skywave_server_foreign_lost", "Messages of plain JSON for which there was no room.", True),
    Figure("broker_dropped", "skywave_server_broker_dropped", "Messages that the brokers say they dropped since their start."),
    Figure("held_messages", "skywave_server_held_messages", "Messages received and not yet worked on."),
    Figure("held_bytes", "skywave_server_held_bytes", "Bytes of them."),
    Figure("connected", "skywave_server_broker_connected", "1 while the broker is connected."),
    Figure("accepting", "skywave_server_accepting", "1 while batches are taken."),
    Figure("store_ok", "skywave_server_store_ok", "1 while the store does what it is asked."),
    Figure("shards.*.ok", "skywave_server_shard_ok", "1 while the shard does what it is asked.", label="shard"),
    Figure("shards.*.readings", "skywave_server_shard_readings", "Readings committed to it since the start.", True, "shard"),
    Figure("clients.*.online", "skywave_server_client_online", "1 while the client is online.", label="client_id"),
    Figure("clients.*.acknowledged", "skywave_server_client_readings", "Readings acknowledged to it since the start.",
           True, "client_id"),
    Figure("clients.*.backlog_readings", "skywave_server_client_backlog_readings", "Readings in its outbox, as it says.",
           label="client_id"),
    Figure("clients.*.oldest_unacked_s", "skywave_server_client_oldest_unacked_seconds",
           "Age of its oldest unacknowledged reading, as it says.", label="client_id"),
    Figure("stalls.*.for_s", "skywave_server_stalled_seconds", "How long a cause has held it up.", label="cause"),
    Figure("uptime_s", "skywave_server_uptime_seconds", "Time since its start."),
    Figure("rss_bytes", "skywave_server_rss_bytes", "Resident memory."),
]  # fmt: skip


class ServerProcess:
    """One server. ``shards`` are the figures of each shard's ingest."""

    def __init__(self, settings: config.Server) -> None:
        self._settings = settings
        self._stores = open_shards(settings.store)
        self._inboxes = [Inbox(settings.ingest.max_held_bytes) for _ in self._stores]
        self.subscriber = Subscriber(settings, self._inboxes, shard_of(settings.store))
        self._stopping = threading.Event()
        ingests = [
            Ingest(settings, inbox, self.subscriber, store, self._stopping, number)
            for number, (inbox, store) in enumerate(zip(self._inboxes, self._stores, strict=True))
        ]
        self.shards = [ingest.figures for ingest in ingests]
        self._workers = [Worker(self._name("ingest", number), ingest.run) for number, ingest in enumerate(ingests)]
        self._rate = Rate()
        self._stalls = Stalls()
        self._started = time.monotonic()

    def run(self) -> None:
        """Works until SIGTERM or SIGINT; then finishes the group at hand and returns."""
        keep_memory()
        # Nobody else can open an embedded store while this process has it, so this process takes the account.
        more = {"/audit": self._audit} if self._settings.store.kind == "embedded" else {}
        labels = {"server": self._settings.server_name}
        self._figures = FiguresServer(self._settings.http, FIGURES, self.snapshot, labels, more)
        for worker in self._workers:
            worker.start()
        try:
            run_until_signal(self._health, self._status_line)
        finally:
            self._stopping.set()
            for worker in self._workers:
                worker.join(30)
            self.subscriber.stop()
            self._figures.stop()
            for store in self._stores:
                store.close()
            log.info("stopped: %d readings committed", sum(shard.readings for shard in self.shards))

    def _audit(self) -> bytes:
        return json.dumps(audit_shards(open_shards(self._settings.store)).as_json()).encode()

    def _name(self, word: str, number: int) -> str:
        return f"{word}{shard_suffix(self._settings.store, number)}"

    def _causes(self) -> Iterator[Cause]:
        for number, link in enumerate(self.subscriber.links):
            yield Cause(f"broker {link.address}" if number else "broker", AWAY_S, link.trouble)
            yield Cause(f"link {link.address}" if number else "link", 0.0, link.hang)
        late = [
            client_id
            for shard in self.shards
            for client_id, status in shard.clients.copy().items()
            if status.online and status.oldest_unacked_s > UNHEARD_S
        ]
        unheard = self.subscriber.accepting and time.monotonic() - self.subscriber.data_at > UNHEARD_S
        whose = "a client" if len(late) == 1 else f"{len(late)} clients"
        why = f"readings of {whose} wait, and the broker brings none: may they publish, this server subscribe?"
        yield Cause("data", 0.0, why if late and unheard and self.subscriber.connected else "")
        yield Cause("figures", 0.0, self._figures.trouble)
        unset = not all(shard.clock_is_set for shard in self.shards)
        yield Cause("clock", 0.0, "the clock was never set; nothing is taken until it is" if unset else "")
        for number, shard in enumerate(self.shards):
            store, insert = self._name("store", number), self._name("insert", number)
            yield Cause(store, AWAY_S, f"the {store} does not work: {shard.store_error}" if shard.store_error else "")
            hangs = time.monotonic() - shard.progress_at > AWAY_S
            yield Cause(insert, 0.0, f"an {insert} or a look-up does not return" if hangs else "")

    def _health(self) -> str:
        self._stalls.look(self._causes())
        for worker, shard in zip(self._workers, self.shards, strict=True):
            if worker.died_of is not None:
                return f"dead: {worker.name}: {worker.died_of}"
            still = time.monotonic() - shard.progress_at
            if still > STUCK_AFTER_S and not shard.asks_store:  # a restart would only ask it again
                return f"{worker.name} has not moved for {still:.0f} s"
        return ""

    def _status_line(self) -> str:
        s = self._totals()
        return (
            f"{self._stalls}{s.readings_per_s:.0f} readings/s committed, {s.inserts} inserts, "
            f"{s.duplicates} duplicates, {s.rejected} rejected, held {s.held_messages}"
        )

    def snapshot(self) -> ServerSnapshot:
        """The figures of ``skywave status`` and /metrics."""
        clients = {
            client_id: _client(status, shard.delivered.get(client_id, 0))
            for shard in self.shards
            for client_id, status in shard.clients.copy().items()
        }
        return replace(self._totals(), clients={str(client_id): clients[client_id] for client_id in sorted(clients)})

    def _totals(self) -> ServerSnapshot:
        """All but the clients, which may be many."""
        subscriber, shards = self.subscriber, self.shards
        readings = sum(shard.readings for shard in shards)
        errors = [shard.store_error for shard in shards if shard.store_error]
        names = shard_names(self._settings.store)
        return ServerSnapshot(
            version=__version__,
            name=self._settings.server_name,
            uptime_s=round(time.monotonic() - self._started, 1),
            connected=subscriber.connected,
            accepting=subscriber.accepting and subscriber.connected,
            broker_error="; ".join(filter(None, (link.error for link in subscriber.links))),
            store=self._settings.store.kind,
            stalls=self._stalls.current,
            store_ok=not errors,
            store_error=errors[0] if errors else "",
            shards={
                name: ShardState(
                    ok=not shard.store_error, accepting=subscriber.accepts(number), readings=shard.readings
                )
                for number, (name, shard) in enumerate(zip(names, shards, strict=False))
            },
            readings=readings,
            batches=sum(shard.batches for shard in shards),
            inserts=sum(shard.inserts for shard in shards),
            duplicates=sum(shard.duplicates for shard in shards),
            look_ups=sum(shard.look_ups for shard in shards),
            foreign_readings=sum(shard.foreign_readings for shard in shards),
            rejected=sum(shard.rejected for shard in shards),
            over_quota=sum(shard.over_quota for shard in shards),
            readings_per_s=round(self._rate.update(readings), 1),
            insert_s=round(sum(shard.insert_s for shard in shards), 3),
            received=subscriber.received,
            dropped=subscriber.dropped,
            foreign_lost=subscriber.foreign_lost,
            broker_dropped=subscriber.broker_dropped,
            held_messages=sum(map(len, self._inboxes)),
            held_bytes=sum(inbox.bytes for inbox in self._inboxes),
            rss_bytes=rss_bytes(),
        )


def _client(status: ClientStatus, acknowledged: int) -> ClientState:
    """What a client says of itself, without its account."""
    return ClientState(
        online=status.online,
        version=status.version,
        host=status.host,
        labels=status.labels,
        backlog_readings=status.backlog_readings,
        backlog_bytes=status.backlog_bytes,
        oldest_unacked_s=status.oldest_unacked_s,
        acknowledged=acknowledged,
    )


def keep_memory() -> None:
    """Has malloc keep what it got for a group's columns instead of giving it back and asking again for each group: the
    page faults of that were a fifth of the server's CPU time. Only glibc knows mallopt(3)."""
    with contextlib.suppress(AttributeError, OSError):
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, 32 << 20)  # the most that every release takes
        libc.mallopt(M_TRIM_THRESHOLD, 128 << 20)
