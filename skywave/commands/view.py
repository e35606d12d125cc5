"""What people see on a terminal: status, audit, rejected messages."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import islice
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from ..care.findings import Finding, judge, wrong
from ..errors import NotRunning
from ..process.asking import fetch_status
from ..process.snapshot import ClientSnapshot, ServerSnapshot
from ..process.visible import visible

MAX_ROWS = 1000
"""Of streams and of missing ranges on a terminal."""


class Sheet(Table):
    """A table whose cells are what they are: no markup, and nothing that a terminal obeys."""

    def add_row(self, *cells: RenderableType | None, **how: Any) -> None:
        """See ``rich.table.Table.add_row``."""
        super().add_row(*(shown(cell) if isinstance(cell, str) else cell for cell in cells), **how)


def shown(value: object, style: str = "") -> Text:
    """Text, whoever wrote it, for a table, a panel or its title. Rich reads markup and passes control characters on."""
    return Text(visible(value), style)


def watch(url: str, console: Console, interval: float = 1.0) -> None:
    """Shows the status again and again until Ctrl-C."""
    with Live(console=console, auto_refresh=False, screen=False) as live:
        try:
            while True:
                try:
                    live.update(status_panel(fetch_status(url)), refresh=True)
                except NotRunning as error:
                    live.update(Panel(shown(error, "red"), title="status"), refresh=True)
                time.sleep(interval)
        except KeyboardInterrupt:
            return


def status_panel(s: ClientSnapshot | ServerSnapshot) -> RenderableType:
    """A client's or a server's status."""
    return _client_panel(s) if isinstance(s, ClientSnapshot) else _server_panel(s)


def _client_panel(s: ClientSnapshot) -> RenderableType:
    facts = Sheet.grid(padding=(0, 2))
    broker = _state(s.connected, "connected", s.broker_error or "not connected")
    facts.add_row("broker", broker, "server", _state(s.accepting, "accepts", "none accepts"))
    facts.add_row("in", f"{s.readings_per_s:,.0f} /s", "acknowledged", f"{s.acked_per_s:,.0f} /s")
    facts.add_row("committed", f"{s.readings:,}", "acknowledged", f"{s.acked_readings:,}")
    facts.add_row("backlog", f"{s.backlog.readings:,} readings", "bytes", _bytes(s.backlog.bytes))
    facts.add_row("oldest unacked", _seconds(s.oldest_unacked_s), "outbox full in", _seconds(s.time_to_full_s))
    facts.add_row("in flight", f"{s.in_flight} batches", "sent again", f"{s.resent_batches:,}")
    sensors = Sheet("sensor", "state", "readings", "malformed", "disconnects", "stalls", box=box.SIMPLE, pad_edge=False)
    for name, sensor in s.sensors.items():
        state = _state(sensor.connected, "connected", sensor.last_error or "not connected")
        counts = (sensor.readings, sensor.malformed, sensor.disconnects, sensor.stalls)
        sensors.add_row(name, state, *(f"{count:,}" for count in counts))
    labels = " ".join(f"{key}={value}" for key, value in s.labels.items())
    title = f"client {s.client_id} {labels}  v{s.version}  up {_seconds(s.uptime_s)}"
    return Panel(Group(*_verdict(s), facts, sensors), title=shown(title), title_align="left")


def _server_panel(s: ServerSnapshot) -> RenderableType:
    facts = Sheet.grid(padding=(0, 2))
    broker = _state(s.connected, "connected", s.broker_error or "not connected")
    facts.add_row("broker", broker, f"store ({s.store})", _state(s.store_ok, "commits", s.store_error))
    facts.add_row("batches", _state(s.accepting, "accepted", "not accepted"), "rate", f"{s.readings_per_s:,.0f} /s")
    facts.add_row("committed", f"{s.readings:,}", "inserts", f"{s.inserts:,}")
    facts.add_row("duplicates", f"{s.duplicates:,}", "rejected", f"{s.rejected:,}")
    facts.add_row("held", f"{s.held_messages:,} messages", "bytes", _bytes(s.held_bytes))
    clients = Sheet("client", "state", "host", "labels", "backlog", "oldest unacked", box=box.SIMPLE, pad_edge=False)
    for client_id, c in s.clients.items():
        labels = " ".join(f"{key}={value}" for key, value in c.labels.items())
        backlog = f"{c.backlog_readings:,}"
        state = _state(c.online, "online", "offline")
        clients.add_row(client_id, state, c.host, labels, backlog, _seconds(c.oldest_unacked_s))
    title = f"server {s.name}  v{s.version}  up {_seconds(s.uptime_s)}"
    return Panel(Group(*_verdict(s), facts, clients), title=shown(title), title_align="left")


def _verdict(s: ClientSnapshot | ServerSnapshot) -> list[Text]:
    """The first lines: that all is well, or what is not and what to do."""
    bad = wrong(judge(s))
    if not bad:
        return [Text("all is well", "green")]
    return [Text.assemble(shown(f"{check}: {found}", "red"), "\n  ", shown(advice)) for check, _, found, advice in bad]


def audit_table(account: dict[str, Any]) -> RenderableType:
    """The account as a table, its verdict and the missing ranges. Of very many streams those come first that are not clean."""
    streams = account["streams"]
    if len(streams) > MAX_ROWS:
        streams = sorted(streams, key=lambda s: not (s["missing"] or s["doubled"]))[:MAX_ROWS]
    rare = tuple(name for name in ("rejected", "expired", "dropped", "accepted") if account.get(name))
    names = ("produced", "stored", "pending", *rare, "missing", "doubled")
    table = Sheet("client", "stream", *names, "oldest", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in table.columns[2:]:
        column.justify = "right"
    for s in streams:
        cells = [shown(f"{s[name]:,}", "bold red" if name in names[-2:] and s[name] else "") for name in names]
        table.add_row(str(s["client_id"]), f"{s['stream'][:6]}…", *cells, _seconds(s["oldest_unacked_s"] or None))
    totals = [f"{account[name]:,}" for name in names]
    table.add_section()
    table.add_row("all", "", *totals, _seconds(account["oldest_unacked_s"] or None), style="bold")
    lines: list[RenderableType] = [table]
    lost = (
        f"missing: client {s['client_id']} stream {s['stream']} readings {first} to {last}"
        for s in streams
        for first, last in s["missing_ranges"][:20]
    )
    lines += [shown(line, "red") for line in islice(lost, MAX_ROWS)]
    if hidden := len(account["streams"]) - len(streams):
        lines.append(shown(f"{hidden:,} more streams are not shown; --json has them all"))
    if account["foreign"]:
        lines.append(shown(f"{account['foreign']:,} readings of devices that keep no account (plain JSON)"))
    verdict = "nothing missing, nothing doubled" if account["clean"] else "readings are missing or doubled"
    lines.append(shown(verdict, "bold green" if account["clean"] else "bold red"))
    return Group(*lines)


def accepted_table(entries: Sequence[dict[str, Any]]) -> RenderableType:
    """What is on record about the account, a row each."""
    table = Sheet(
        "client", "stream", "readings", "are", "reason", "says", "at (UTC)", box=box.SIMPLE_HEAD, pad_edge=False
    )
    for e in entries:
        at = datetime.fromtimestamp(e["at"] / 1e6, UTC).isoformat(" ", "minutes")[:16]
        numbers = f"{e['first']} to {e['last']}"
        table.add_row(str(e["client_id"]), e["stream"], numbers, e["what"], e["reason"], e["name"], at)
    return table if entries else shown("nothing is on record")


def findings_table(findings: Sequence[Finding]) -> RenderableType:
    """What a doctor found, the advice under what is wrong."""
    table = Sheet("check", "", "found", box=box.SIMPLE_HEAD, pad_edge=False)
    for check, ok, found, advice in findings:
        text = shown(found) if ok else Text.assemble(shown(found, "red"), *(("\n", shown(advice)) if advice else ()))
        table.add_row(check, _state(ok, "ok", "WRONG"), text)
    return table


def rejected_table(rows: list[dict[str, Any]]) -> RenderableType:
    """Rejected messages, a row each."""
    table = Sheet("sha256", "client", "batch", "readings", "day", "reason", box=box.SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        batch = f"{row['stream']}/{row['first_seq']}" if row["count"] and row.get("stream") else ""
        table.add_row(row["sha256"][:12], str(row["client_id"]), batch, f"{row['count']:,}", row["day"], row["reason"])
    return table if rows else shown("nothing was rejected", "green")


def _state(good: bool, yes: str, no: str) -> Text:
    return shown(yes, "green") if good else shown(no, "red")


def _seconds(value: float | None) -> str:
    if value is None:
        return "-"
    if value < 120:
        return f"{value:.1f} s"
    if value < 7200:
        return f"{value / 60:.0f} min"
    return f"{value / 3600:.1f} h" if value < 172_800 else f"{value / 86_400:.1f} d"


def _bytes(value: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"
