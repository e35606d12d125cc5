"""A configuration as the TOML that would make it, secrets left out."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from .masking import mask
from .settings import dotted


def show(config: Any, prefix: str = "") -> str:
    """The configuration as TOML, defaults included, each setting under its documentation."""
    lines: list[str] = []
    tables: list[str] = []
    for item in dataclasses.fields(config):
        value, path = getattr(config, item.name), dotted(prefix, item.name)
        if dataclasses.is_dataclass(value):
            tables.append(f"[{path}]  # {type(value).__doc__}\n{show(value, path)}")
        elif value and isinstance(value, dict) and dataclasses.is_dataclass(next(iter(value.values()))):
            tables += [f"[{path}.{_key(name)}]\n{show(inner, f'{path}.{_key(name)}')}" for name, inner in value.items()]
        elif isinstance(value, dict):
            pairs = ", ".join(f"{_key(k)} = {_toml(v)}" for k, v in value.items())
            lines.append(f"# {item.metadata['doc']}\n{item.name} = {{{pairs}}}\n")
        else:
            lines.append(f"# {item.metadata['doc']}\n{item.name} = {_toml(value)}\n")
    return "\n".join(["".join(lines), *tables])


def _key(name: str) -> str:
    return name if name.replace("-", "").replace("_", "").isalnum() and name.isascii() else json.dumps(name)


def _toml(value: Any) -> str:
    return mask(json.dumps(value))
