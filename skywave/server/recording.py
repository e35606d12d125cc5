"""The step that keeps what clients say they produced and lost: the account of ``skywave audit``."""

from __future__ import annotations

import time
from dataclasses import replace

from ..formats.messages import MAX_TOLD, ClientStatus, Dropped, Produced, Range
from ..store.delivery import Delivery
from .figures import ShardFigures
from .group import Group
from .limits import Limits, Report
from .patience import Patience


class Recorder:
    """Keeps the clients' accounts in the store and their statuses in the figures, and tells which accounts are kept."""

    def __init__(self, store: Delivery, patience: Patience, limits: Limits, figures: ShardFigures) -> None:
        self._store, self._patience, self._limits, self._figures = store, patience, limits, figures
        self._recorded: dict[int, Report] = {}
        self._named: dict[int, set[int]] = {}

    def record(self, group: Group) -> None:
        """Records what is new in a group's statuses, and adds that to its replies. Raises ``Stopped``."""
        now = time.time_ns() // 1000
        reports: dict[int, Report] = {}
        streams: list[tuple[int, Produced, int]] = []
        dropped: list[tuple[int, Dropped]] = []
        for client_id, status in group.statuses.items():
            self._remember(client_id, status)
            reports[client_id] = report = self._limits.report(client_id, status)
            if any(report) and self._recorded.get(client_id) != report:
                oldest = now - int(status.oldest_unacked_s * 1e6) if status.oldest_unacked_s else 0
                streams += [(client_id, item, oldest if item.first_pending else 0) for item in report.streams]
                dropped += [(client_id, item) for item in report.dropped]
        named = self._newly_named(group)
        streams += self._in_no_outbox(named)
        if streams:
            self._patience.until_done(lambda: self._store.record_streams(streams, now))
        self._named.update(named)
        if dropped:
            self._patience.until_done(lambda: self._store.record_dropped(dropped, now))
        self._recorded.update(reports)
        for client_id, report in reports.items():
            # Only what can be forgotten is worth an answer: ended streams and declared losses.
            if len(report.streams) > 1 or report.dropped:
                group.replies[client_id].recorded += report.streams
                group.replies[client_id].dropped += [Range(*item[:3]) for item in report.dropped]

    def _remember(self, client_id: int, status: ClientStatus) -> None:
        clients = self._figures.clients
        if not status.streams and client_id in clients:  # a last will knows nothing but that it is offline
            clients[client_id] = replace(clients[client_id], online=False)
        else:
            clients[client_id] = status

    def _newly_named(self, group: Group) -> dict[int, set[int]]:
        """The streams of each client that has just named all that its outbox has, if they are others than it named before."""
        named = {}
        for client_id, status in group.statuses.items():
            streams = {item.stream for item in status.streams}
            whole = 0 < len(streams) < MAX_TOLD
            if whole and self._named.get(client_id) != streams and client_id not in group.remembered:
                named[client_id] = streams
        return named

    def _in_no_outbox(self, named: dict[int, set[int]]) -> list[tuple[int, Produced, int]]:
        """A stream that its client no longer names is in no outbox: if readings of it are not stored, they are lost."""
        if not named:
            return []
        pending = self._patience.until_done(lambda: self._store.pending_streams(named))
        return [
            (client, item._replace(first_pending=0), 0) for client, item in pending if item.stream not in named[client]
        ]
