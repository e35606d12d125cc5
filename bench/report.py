"""The benchmarks' results: printed, and written as JSON and as Markdown tables."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

Row = tuple[str, str, str, bool | None]
_rows: list[Row] = []


def row(what: str, target: str, figure: str, met: bool | None = None) -> None:
    """One line of the result."""
    _rows.append((what, target, figure, met))
    print(f"{what}: {figure} (target {target})", file=sys.stderr, flush=True)


def write(name: str) -> bool:
    """Makes a table of the rows so far; False if a target was missed."""
    words = {True: "met", False: "missed", None: ""}
    table(
        name,
        ("what", "target", "measured", "met"),
        [(what, target, figure, words[met]) for what, target, figure, met in _rows],
    )
    missed = any(met is False for *_, met in _rows)
    _rows.clear()
    return not missed


def table(name: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table and writes it to ``build/NAME.json`` and ``build/NAME.md``."""
    shown = Table(*header, box=box.SIMPLE_HEAD)
    for cells in rows:
        shown.add_row(*(f"[red]{cell}" if cell == "missed" else cell for cell in cells))
    Console(width=130).print(shown)
    out = Path("build")
    out.mkdir(exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps([dict(zip(header, cells, strict=True)) for cells in rows], indent=1))
    lines = [header, ["---"] * len(header), *([cell.replace("|", "\\|") for cell in cells] for cells in rows)]
    (out / f"{name}.md").write_text("".join(f"| {' | '.join(cells)} |\n" for cells in lines))
