"""Writes what is generated in docs/: configuration.md, from the documentation that each setting carries."""

from __future__ import annotations

import dataclasses
import json
import typing
from pathlib import Path

from skywave_archive.settings import Archive

from skywave import config


def page() -> str:
    """The content of configuration.md."""
    lines = [
        "# Configuration",
        "",
        "TOML, checked strictly: an unknown key is an error that names the nearest known one. `skywave config check FILE`",
        "checks, `skywave config show FILE` prints a file with all defaults; `skywave-archive check`",
        "looks at the archive's and at what it names. Made by `make docs`.",
    ]
    for kind in (*config.KINDS.values(), Archive):
        lines += ["", f"## {kind.__doc__}"]
        lines += section(kind, "")
    return "\n".join(lines) + "\n"


def section(kind: type, path: str) -> list[str]:
    """The settings of one table, then its inner tables."""
    hints = typing.get_type_hints(kind)
    rows, inner = [], []
    for item in dataclasses.fields(kind):
        hint = hints[item.name]
        name = f"{path}.{item.name}" if path else item.name
        element = typing.get_args(hint)[1] if typing.get_args(hint) else None
        if dataclasses.is_dataclass(hint):
            inner += ["", f"### [{name}]", "", str(hint.__doc__), *section(hint, name)]
        elif dataclasses.is_dataclass(element):
            inner += ["", f"### [{name}.NAME]", "", str(element.__doc__), *section(element, f"{name}.NAME")]
        else:
            rows.append(f"| `{item.name}` | {default(item)} | {item.metadata['doc']} |")
    return (["", "| setting | default | meaning |", "|---|---|---|", *rows] if rows else []) + inner


def default(item: dataclasses.Field) -> str:
    """A setting's default as TOML."""
    if item.default is not dataclasses.MISSING:
        return f"`{json.dumps(item.default)}`"
    return "`{}`" if item.default_factory is not dataclasses.MISSING else "required"


if __name__ == "__main__":
    (Path(__file__).parent / "configuration.md").write_text(page())
