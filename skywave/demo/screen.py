"""What is seen of the demo: a picture that lives on a terminal, or else a line now and then."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from ..process.snapshot import ClientSnapshot, ServerSnapshot
from ..process.visible import say

LINE_EVERY_S = 2.0
EVENTS = 6
"""So many of the last events stand in the picture."""


@dataclass(frozen=True)
class Scene:
    """The demo at one moment: ``elapsed`` of ``seconds``, ``rate`` readings/s wanted of ``sending`` sensors, and what the
    client and the server say, None while they do not answer."""

    elapsed: float
    seconds: float
    rate: float
    sending: int
    broker_up: bool
    client: ClientSnapshot | None
    server: ServerSnapshot | None


class Screen:
    """Shows scenes and events on a terminal, or as lines. ``quiet`` leaves the events alone, on stderr."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._console = Console()
        self._on_terminal = self._console.is_terminal and not quiet
        self._live: Live | None = None
        self._line_at = 0.0
        self._events: list[str] = []

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """On a terminal the picture is there until the end of the block."""
        if not self._on_terminal:
            yield
            return
        with Live(console=self._console, auto_refresh=False, transient=False) as self._live:
            yield
        self._live = None

    def note(self, elapsed: float, event: str) -> None:
        """Something happened."""
        self._events.append(f"{elapsed:6.1f} s  {event}")
        if not self._on_terminal:
            say(self._events[-1], err=self._quiet)

    def show(self, look: Callable[[], Scene]) -> None:
        """Shows what ``look`` finds, if it is time to show something."""
        if self._live:
            self._live.update(self._picture(look()), refresh=True)
        elif time.monotonic() > self._line_at and not self._quiet:
            self._line_at = time.monotonic() + LINE_EVERY_S
            say(_line(look()))

    def draw(self, scene: Scene, path: Path) -> None:
        """Writes the picture as SVG."""
        with Path("/dev/null").open("w") as nowhere:
            console = Console(record=True, width=96, file=nowhere, force_terminal=True)
            console.print(self._picture(scene))
            console.save_svg(str(path), title="skywave demo")

    def _picture(self, scene: Scene) -> RenderableType:
        events = [Text(event, "dim") for event in self._events[-EVENTS:]]
        title = f"skywave demo  {min(max(0.0, scene.elapsed), scene.seconds):.0f} of {scene.seconds:.0f} s"
        return Panel(Group(_flow(scene), *_outbox(scene), Text(""), *events), title=title, title_align="left")


def _line(scene: Scene) -> str:
    client, server = scene.client or ClientSnapshot(), scene.server or ServerSnapshot()
    return (
        f"{scene.elapsed:6.1f} s  in {client.readings_per_s:,.0f}/s  acknowledged {client.acked_per_s:,.0f}/s  "
        f"backlog {client.backlog.readings:,}  stored {server.readings:,}"
    )


def _flow(scene: Scene) -> RenderableType:
    """The parts in the order in which a reading passes them."""
    client, server = scene.client or ClientSnapshot(), scene.server or ServerSnapshot()
    flow = Table(box=box.ROUNDED, expand=True, show_header=True, header_style="bold")
    for title in ("sensors", "client + outbox", "broker", "server", "store"):
        flow.add_column(title, justify="center", ratio=1)
    flow.add_row(
        Text(f"{scene.sending} sending", "green" if scene.sending else "dim"),
        Text(f"{client.readings_per_s:,.0f} /s in", "green" if client.readings_per_s else "dim"),
        Text("up", "green") if scene.broker_up else Text("KILLED", "bold white on red"),
        Text("accepts", "green") if server.accepting else Text("no broker" if scene.server else "-", "yellow"),
        Text(f"{server.readings:,}", "bold"),
    )
    backlog = client.backlog.readings
    flow.add_row(
        "",
        Text(f"backlog {backlog:,}", "yellow" if backlog > scene.rate else ""),
        "",
        f"{server.readings_per_s:,.0f} /s",
        f"{server.inserts:,} inserts",
    )
    return flow


def _outbox(scene: Scene) -> Iterator[Text]:
    """The backlog as a bar of 10 letters a second, and how far the acknowledgements are."""
    client = scene.client or ClientSnapshot()
    backlog = client.backlog.readings
    bar = min(60, int(backlog / max(scene.rate, 1) * 10))
    yield Text.assemble(("outbox  ", "bold"), ("█" * bar or "▏", "yellow"), f" {backlog:,} readings wait")
    yield Text.assemble(
        ("acked   ", "bold"),
        f"{client.acked_readings:,} of {client.readings:,}",
        f"   {client.acked_per_s:,.0f} /s   oldest unacknowledged {client.oldest_unacked_s:.1f} s",
    )
