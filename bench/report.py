"""The benchmarks' result: one row a figure, printed, and written as JSON and as a Markdown table."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

Row = tuple[str, str, str, bool | None]
ROWS: list[Row] = []


def row(what: str, target: str, figure: str, met: bool | None = None) -> None:
    """One line of the result."""
    ROWS.append((what, target, figure, met))
    print(f"{what}: {figure} (target {target})", file=sys.stderr, flush=True)


def write(name: str) -> None:
    """Prints the rows and writes ``build/NAME.json`` and ``build/NAME.md``."""
    table = Table("what", "target", "measured", "", box=box.SIMPLE_HEAD)
    for what, target, figure, met in ROWS:
        table.add_row(what, target, figure, {True: "[green]met", False: "[red]missed", None: ""}[met])
    Console(width=130).print(table)
    out = Path("build")
    out.mkdir(exist_ok=True)
    rows = [dict(zip(("what", "target", "measured", "met"), r, strict=True)) for r in ROWS]
    (out / f"{name}.json").write_text(json.dumps(rows, indent=1))
    lines = ["| what | target | measured | |", "|---|---|---|---|"]
    cells = [[w, t, f, "met" if m else "missed" if m is False else ""] for w, t, f, m in ROWS]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells]
    (out / f"{name}.md").write_text("\n".join(lines) + "\n")
