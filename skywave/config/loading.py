"""Configuration: TOML into frozen dataclasses, strictly.

A key that is unknown is an error that names the nearest known one; so is a value of the wrong type or out of range.
Every setting carries its own documentation (``doc``), from which ``config show`` and docs/configuration.md are made.
Secrets never stand in a configuration: a setting that ends in ``_file`` names a file that holds one, or a certificate. A
relative path there is looked up in ``$CREDENTIALS_DIRECTORY`` (systemd's ``LoadCredential=``) when that is set; a command
that is given a file of an installed host sets it by itself. Any other relative path counts from the service's state
directory, elsewhere from the folder of the configuration file, and never from where a command was started.
"""

from __future__ import annotations

import dataclasses
import difflib
import logging
import os
import tomllib
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from ..errors import ConfigError
from .masking import mask
from .settings import CREDENTIAL, DATA, STATE, Check, Client, Server, Store, dotted, shown

log = logging.getLogger(__name__)
T = TypeVar("T")
INSTALLED = Path("/etc/skywave")
"""Where an installed host has its configurations, and in ``credentials`` what they name."""


def load(path: str | Path, kind: type[T]) -> T:
    """Reads the TOML file ``path`` as ``kind``; raises ``ConfigError`` with the file and key in its message."""
    return _located(parse(_read(path), kind, str(path)), Path(path).absolute())


def load_any(path: str | Path) -> Client | Server:
    """Reads a file whose kind is told by its content: a client has sensors, an archive a target. Raises ``ConfigError`` for
    an archive's as well."""
    body = _read(path)
    if "target" in body:
        raise ConfigError(f"{path}: an archive's configuration", "skywave-archive reads it.")
    file = Path(path).absolute()
    if "client_id" in body or "sensors" in body:
        return _located(parse(body, Client, str(path)), file)
    return _located(parse(body, Server, str(path)), file)


def is_archive(path: str | Path) -> bool:
    """True if a file is a configuration of the archive; raises ``ConfigError`` if it cannot be read."""
    return "target" in _read(path)


def parse(body: dict[str, Any], kind: type[T], where: str = "configuration") -> T:
    """Builds the dataclass ``kind`` from a TOML table; see ``load``."""
    built: T = _build(body, kind, where, "")
    return built


def load_store(path: str | Path) -> Store:
    """The ``[store]`` of any configuration file; raises ``ConfigError``."""
    store: Store = _build(_read(path).get("store", {}), Store, str(path), "store")
    return _located(store, Path(path).absolute())


def _located(config: T, file: Path) -> T:
    """The settings of ``file`` with its relative paths made absolute."""
    changes: dict[str, Any] = {}
    for item in dataclasses.fields(config):  # type: ignore[arg-type]
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            changes[item.name] = _located(value, file)
        elif value and (leads_to := item.metadata.get("path", "")):
            changes[item.name] = located(value, file, leads_to)
    return dataclasses.replace(config, **changes)  # type: ignore[type-var]


def located(path: str, file: Path, leads_to: str = DATA) -> str:
    """The path of a setting in the configuration file ``file``: absolute, but for a credential that systemd provides."""
    if leads_to == CREDENTIAL:
        return path if "CREDENTIALS_DIRECTORY" in os.environ else str(file.parent / path)
    if file.parent == INSTALLED:
        place = Path(STATE.format(file.stem), path)
    else:
        place = Path(os.environ.get("STATE_DIRECTORY", "").split(":")[0] or file.parent, path)
    here = Path(path).absolute()
    if here != place and here.exists() and not place.exists():  # release 0.1.0 counted from where it was started
        log.warning("%s is gone on with, as %s does not exist: move it there, or give its absolute path", here, place)
        return str(here)
    return str(place)


def secret_files(path: str | Path) -> list[str]:
    """The files of passwords that the settings of a configuration name; raises ``ConfigError``."""
    file = Path(path).absolute()

    def named(table: dict[str, Any]) -> Iterator[str]:
        for key, value in table.items():
            if isinstance(value, dict):
                yield from named(value)
            elif key.endswith("password_file") and isinstance(value, str):
                yield located(value, file, CREDENTIAL)

    return list(named(_read(path)))


def _read(path: str | Path) -> dict[str, Any]:
    if Path(path).absolute().parent == INSTALLED:
        os.environ.setdefault("CREDENTIALS_DIRECTORY", str(INSTALLED / "credentials"))
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))  # some editors begin a file with a mark
    except OSError as error:
        raise ConfigError(
            f"{path}: {error.strerror}", "Give the path of a configuration file with --config."
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path}: not TOML: {error}", 'A table is [mqtt], a setting port = 1883, a text "in quotes".'
        ) from error


def _build(body: Any, kind: Any, where: str, prefix: str) -> Any:
    if not isinstance(body, dict):
        raise ConfigError(f"{where}: {prefix or 'the file'} must be a table, not {shown(body)}")
    fields = {f.name: f for f in dataclasses.fields(kind)}
    hints = typing.get_type_hints(kind)
    for key in body:
        if key not in fields:
            near = difflib.get_close_matches(key, fields, 1, 0.5)
            hint = f"Did you mean {dotted(prefix, near[0])}?" if near else f"Known here: {', '.join(fields)}."
            raise ConfigError(f"{where}: unknown setting {dotted(prefix, key)}", hint)
    values = {}
    for name, item in fields.items():
        if name in body:
            value = _value(body[name], hints[name], item.metadata.get("check"), where, dotted(prefix, name))
            if isinstance(value, str):
                _check_text(value, item, where, prefix, "password_file" in fields)
            values[name] = value
        elif item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{where}: {dotted(prefix, name)} is missing", str(item.metadata["doc"]))
    built = kind(**values)
    if hasattr(built, "check"):
        built.check(where, prefix)
    return built


def _check_text(value: str, item: dataclasses.Field[Any], where: str, prefix: str, has_file: bool) -> None:
    path = dotted(prefix, item.name)
    if "\0" in value:
        raise ConfigError(f"{where}: {path} has a character of code 0")
    if mask(value) != value:
        place = (
            f"Put it into a file of its own, and name that in {dotted(prefix, 'password_file')}." if has_file else ""
        )
        raise ConfigError(f"{where}: {path} has a password in it", place or "Secrets never stand in a configuration.")
    if item.metadata.get("path") and (value.startswith("~") or (not value.strip() and value != item.default)):
        raise ConfigError(
            f"{where}: {path} must be a path, not {shown(value)}",
            "Write it in full: a service has no home folder, and an empty path is a mistake.",
        )


def _value(value: Any, hint: Any, check: Check | None, where: str, path: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return _build(value, hint, where, path)
    if isinstance(hint, types.GenericAlias):
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: {path} must be a table")
        inner = typing.get_args(hint)[1]
        return {key: _value(item, inner, None, where, dotted(path, key)) for key, item in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, hint) or isinstance(value, bool) is not (hint is bool):
        raise ConfigError(f"{where}: {path} must be {_type_name(hint)}, not {shown(value)}")
    if check and isinstance(check[0], str):
        if value not in check:
            raise ConfigError(f"{where}: {path} must be one of {', '.join(map(str, check))}, not {shown(value)}")
    elif check:
        low, high = typing.cast(tuple[float | None, float | None], check)
        if not ((low is None or value >= low) and (high is None or value <= high)):  # NaN fails both
            bounds = " and ".join(
                f"{word} {b:g}" for word, b in (("at least", low), ("at most", high)) if b is not None
            )
            raise ConfigError(f"{where}: {path} must be {bounds}, not {shown(value)}")
    return value


def _type_name(hint: type) -> str:
    return {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}[hint]
