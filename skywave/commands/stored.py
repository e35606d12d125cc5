"""Commands on what the store holds: store and rejected."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from .. import config
from ..errors import ConfigError
from ..process.visible import say, say_json
from .group import config_option, json_option, main, opened_stores


@main.group()
def store() -> None:
    """Make the tables of the store, on all servers of a cluster, and rebuild a replica."""


@store.command("migrate")
@config_option
@click.option(
    "--fill-arrivals",
    is_flag=True,
    help="Then read all that is stored, and fill the table `arrivals`: once after an upgrade from a release without it.",
)
def store_migrate(path: str, fill_arrivals: bool) -> None:
    """Make or upgrade the tables on every server that is there. Servers do this at their start as well."""
    from ..store.shards import open_shards, shard_names

    settings = config.load(path, config.Server).store
    for name, shard in zip(shard_names(settings) or ["store"], open_shards(settings), strict=True):
        shard.migrate()
        say(f"{name}: tables are there")
        for day in shard.note_all_arrivals() if fill_arrivals else ():
            say(f"{name}: arrivals of {day} are filled")
        shard.close()


@store.command("rebuild")
@config_option
@click.argument("data", type=click.Path(file_okay=False, path_type=Path))
def store_rebuild(path: str, data: Path) -> None:
    """Prepare DATA, the empty data folder of a ClickHouse server, to take the place of a replica that lost its disk.

    Run it on that server's host before the server's start, as ClickHouse's user, with the shard and replica macros that the
    lost one had. The server then fetches everything from its shard's other replicas.
    """
    from ..store import schema

    settings = config.load(path, config.Server).store
    if not settings.shards:
        raise ConfigError(f"{path}: the store has no shards, so it has no replicas", "Restore it from the archive.")
    metadata = data / "metadata" / settings.database
    if any((data / "metadata").glob("*/*.sql")):
        raise ConfigError(
            f"{data} has tables already", "Only an empty data folder can be prepared; nothing was changed."
        )
    metadata.mkdir(parents=True, exist_ok=True)
    for table, statement in schema.attachments(settings.database).items():
        (metadata / f"{table}.sql").write_text(statement, encoding="utf-8")
    (data / "flags").mkdir(exist_ok=True)
    (data / "flags" / "force_restore_data").touch()
    say(f"{data} is prepared; start the server, and look at system.replicas")


@main.group()
def rejected() -> None:
    """Look at messages that could not be stored, and store them after all."""


@rejected.command("list")
@config_option
@click.option("--client", "client_id", type=click.IntRange(0), help="Only this client.")
@click.option("--limit", default=100, show_default=True, type=click.IntRange(1))
@json_option
def rejected_list(path: str, client_id: int | None, limit: int, as_json: bool) -> None:
    """List rejected messages, oldest first."""
    from rich.console import Console

    from ..server import rejected as rejects
    from . import view

    with opened_stores(config.load(path, config.Server)) as stores:
        rows = rejects.find(stores, client_id, limit)
    if as_json:
        say_json(rows)
    else:
        Console().print(view.rejected_table(rows))


def _batch(_: click.Context, __: click.Parameter, value: str | None) -> tuple[int, int] | None:
    if value is None:
        return None
    stream, slash, first = value.partition("/")
    if not (slash and stream.isdecimal() and first.isdecimal()):
        raise click.BadParameter("must be like 8273645/1001")
    return int(stream), int(first)


def _address(command: Callable[..., None]) -> Callable[..., None]:
    """The arguments that name one rejected message."""
    for option in (
        click.option(
            "--batch",
            callback=_batch,
            metavar="STREAM/FIRST_SEQ",
            help="Of this name, if a client sent the same bytes under several.",
        ),
        click.option(
            "--client", "client_id", type=click.IntRange(0), help="Of this client, if several sent the same bytes."
        ),
        click.argument("sha256"),
        config_option,
    ):
        command = option(command)
    return command


@rejected.command("show")
@_address
@click.option("--raw", is_flag=True, help="Write the message's bytes to standard output, and nothing else.")
@json_option
def rejected_show(
    path: str, sha256: str, client_id: int | None, batch: tuple[int, int] | None, raw: bool, as_json: bool
) -> None:
    """Show one rejected message. SHA256 may be cut short as long as it is unambiguous."""
    from ..server import rejected as rejects

    with opened_stores(config.load(path, config.Server)) as stores:
        row = rejects.get(stores, sha256, client_id, batch)
    if raw:
        sys.stdout.buffer.write(row.payload)
        return
    document: dict[str, Any] = rejects.as_json(row)
    document["payload_start"] = repr(row.payload[:200])
    if as_json:
        say_json(document)
    else:
        say(*(f"{name:14} {value}" for name, value in document.items()))


@rejected.command("replay")
@_address
def rejected_replay(path: str, sha256: str, client_id: int | None, batch: tuple[int, int] | None) -> None:
    """Try to store a rejected message with this version, as if it came today.

    It stays among the rejected; the audit counts its readings as stored from then on. Doing it twice changes nothing.
    """
    from ..server import rejected as rejects

    settings = config.load(path, config.Server)
    with opened_stores(settings) as stores:
        stored = rejects.replay(stores, settings, sha256, client_id, batch)
    say(f"stored {stored} readings" if stored else "it was stored already")
