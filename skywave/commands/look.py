"""Commands that look after what runs: status, audit, doctor, gate, bundle, certificates, config."""

from __future__ import annotations

import getpass
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .. import config
from ..errors import ConfigError
from ..process.visible import say, say_document, say_json, visible
from .group import (
    any_settings,
    config_option,
    installed_files,
    json_option,
    main,
    opened_stores,
    service_configs,
    some_config_option,
)

if TYPE_CHECKING:
    from ..store.accepting import What
    from ..store.accounts import Entry


@main.command()
@click.option("--config", "path", type=click.Path(dir_okay=False), help="The client's or server's TOML file.")
@click.option("--url", help="Its HTTP endpoint instead, for example http://10.0.0.7:9101.")
@click.option("--watch", is_flag=True, help="Show it live until Ctrl-C.")
@json_option
def status(path: str | None, url: str | None, watch: bool, as_json: bool) -> None:
    """Show the progress of a running client or server, and what is wrong with it.

    Exit code 0 if all is well, 1 if not (the doctor finds the same), 75 if it does not run.
    """
    from rich.console import Console

    from ..care.findings import judge, wrong
    from ..process.asking import fetch_status_document
    from ..process.snapshot import decode
    from . import view

    if (path is None) == (url is None):
        raise click.UsageError("give either --config or --url")
    if url is None:
        http = config.load_any(str(path)).http
        if not http.port:
            raise ConfigError(f"{path}: http.port is not set", "Add [http] with a port and restart the process.")
        url = http.url
    if watch:
        view.watch(url, Console())
        return
    document = fetch_status_document(url)
    snapshot = decode(document, url)
    if as_json:
        say_json(document)
    else:
        Console().print(view.status_panel(snapshot))
    sys.exit(1 if wrong(judge(snapshot)) else 0)


def _numbers(_: click.Context, __: click.Parameter, words: tuple[str, ...]) -> tuple[What, ...]:
    from ..store.accepting import What

    try:
        return tuple(What.parse(word) for word in words)
    except ValueError as error:
        raise click.BadParameter(visible(error)) from error


@main.command()
@config_option
@click.option("--client", "client_id", type=click.IntRange(1), help="Only this client.")
@click.option(
    "--accept",
    "accepts",
    multiple=True,
    callback=_numbers,
    metavar="CLIENT[/STREAM[/FIRST-LAST]]",
    help="Put on record that what is missing of these numbers now is lost. all: of everybody's.",
)
@click.option(
    "--correct",
    "corrects",
    multiple=True,
    callback=_numbers,
    metavar="CLIENT/STREAM/LAST",
    help="Put on record that a stream produced no reading after LAST, whatever its client said.",
)
@click.option(
    "--take-back",
    "takes_back",
    multiple=True,
    callback=_numbers,
    metavar="CLIENT[/STREAM[/FIRST-LAST]]",
    help="Take back what was put on record of these numbers.",
)
@click.option("--reason", default="", help="Why, with --accept, --correct and --take-back.")
@click.option("--by", "name", default="", help="Who says so; the user who runs it if not given.")
@click.option("--accepted", "listing", is_flag=True, help="List what is on record instead.")
@json_option
def audit(
    path: str,
    client_id: int | None,
    accepts: tuple[What, ...],
    corrects: tuple[What, ...],
    takes_back: tuple[What, ...],
    reason: str,
    name: str,
    listing: bool,
    as_json: bool,
) -> None:
    """Account for every reading: produced = stored + pending + rejected + expired + declared lost + accepted.

    CONFIG is the server's file. Produced is what the clients say, never what the table holds. Exit code 1 if a reading
    is missing or doubled, 75 if the store cannot be asked.

    After a disaster, or with an outbox that was destroyed, readings are missing for ever. Once you know why, accept them with
    a reason: `--accept 12 --reason "edge 12 burnt down"`. They leave the verdict and stay in the account, as accepted; what
    goes missing later is seen, and what arrives after all is stored. Only what is missing at that moment is put on record.

    A status that was forged or damaged names readings that never were: `--correct 12/8273645/5000` says that this stream ended
    with reading 5000. If that client still runs, restart it then: it begins a new stream, with an account of its own.

    What is doubled cannot be accepted: it is in the table, and can be deleted there.
    """
    from ..store.accounts import LOST, TAKEN_BACK, VOID

    settings = config.load(path, config.Server)
    changes = [(TAKEN_BACK, what) for what in takes_back]
    changes += [(VOID, what) for what in corrects] + [(LOST, what) for what in accepts]
    if bool(changes) != bool(reason.strip()):
        raise click.UsageError("--accept, --correct and --take-back need a --reason, and a --reason needs one of them")
    if listing:
        if changes:
            raise click.UsageError("--accepted only lists")
        _list_accepted(settings, client_id, as_json)
        return
    noted = _note_accepted(settings, changes, reason, name) if changes else []
    document = _account(settings, client_id) | ({"noted": [entry.as_json() for entry in noted]} if changes else {})
    _show_account(document, as_json)
    sys.exit(0 if document["clean"] else 1)


def _account(settings: config.Server, client_id: int | None) -> dict[str, Any]:
    from ..errors import StoreUnavailable
    from ..process.asking import fetch
    from ..store.accounts import audit_shards
    from ..store.shards import open_shards

    try:
        return audit_shards(open_shards(settings.store), client_id).as_json()
    except StoreUnavailable:
        if settings.store.kind != "embedded" or not settings.http.port:
            raise
        document: dict[str, Any] = fetch(f"{settings.http.url}/audit", 600)
        return document


def _show_account(document: dict[str, Any], as_json: bool) -> None:
    from rich.console import Console

    from . import view

    if as_json:
        say_json(document)
    else:
        if entries := document.get("noted"):
            Console().print(view.accepted_table(entries))
        Console().print(view.audit_table(document))


def _list_accepted(settings: config.Server, client_id: int | None, as_json: bool) -> None:
    from rich.console import Console

    from . import view

    with opened_stores(settings) as stores:
        entries = [entry.as_json() for store in stores for entry in store.accepted(client_id)]
    if as_json:
        say_json({"accepted": entries})
    else:
        Console().print(view.accepted_table(entries))


def _note_accepted(settings: config.Server, changes: list[tuple[str, What]], reason: str, name: str) -> list[Entry]:
    """Puts the changes on record, one after the other: each is judged by the account as the ones before have left it."""
    from ..store.accepting import note
    from ..store.shards import shard_of

    name = name or os.environ.get("SUDO_USER") or getpass.getuser()
    noted = []
    with opened_stores(settings) as stores:
        for kind, what in changes:
            noted += note(stores, shard_of(settings.store), kind, what, reason.strip(), name)
    return noted


@main.command()
@some_config_option
@click.option(
    "--wait", default=0.0, help="Look again until all is well, for as many seconds.", type=click.FloatRange(0)
)
@click.option("--services", is_flag=True, help="Only what this host's services do, not how replicas and HDFS are.")
@json_option
def doctor(path: str | None, wait: float, services: bool, as_json: bool) -> None:
    """Examine this host's client, server and archive: configuration, clock, certificates, broker, outbox, disk, sensors,
    store and each of its replicas, HDFS.

    Says what is wrong and what to do. Exit code 0 if all is well, 1 if not. Run it as root on an installed host, where
    only root may read the certificates.
    """
    from rich.console import Console

    from ..care.doctor import wait_until_well
    from ..care.findings import wrong
    from . import view

    findings = [finding for file in installed_files(path) for finding in wait_until_well(file, wait, services)]
    if as_json:
        say_json([finding._asdict() for finding in findings])
    else:
        Console().print(view.findings_table(findings))
    sys.exit(1 if wrong(findings) else 0)


@main.command("gate")
@click.argument("clients", nargs=-1, required=True, type=click.IntRange(1))
@click.option("--release", required=True, help="The version that they must run.")
@click.option("--within", default=60.0, show_default=True, type=click.FloatRange(1), help="Seconds to look for.")
@some_config_option
@json_option
def gate_command(clients: tuple[int, ...], release: str, within: float, path: str | None, as_json: bool) -> None:
    """Ask this host's server whether CLIENTS (numbers) deliver with a release: the gate of an update.

    Exit code 0 as soon as all of them steadily do, 1 if not all do in time.
    """
    from ..care.gate import gate

    settings = [found for found in service_configs(path).values() if isinstance(found, config.Server)]
    if not settings:
        raise ConfigError("this host has no server", "Run it on a server.")
    passages = gate(settings[0], clients, release, within)
    if as_json:
        say_json([passage._asdict() for passage in passages])
    else:
        for passage in passages:
            say(f"client {passage.client_id}: {'passed' if passage.passed else 'FAILED'}: {passage.seen}")
    sys.exit(0 if all(passage.passed for passage in passages) else 1)


@main.command()
@some_config_option
@click.option("--output", default="skywave-bundle.tar.gz", show_default=True, type=click.Path(path_type=Path))
def bundle(path: str | None, output: Path) -> None:
    """Write a debug bundle: versions, configuration, findings, figures, journal. No secret is in it."""
    from ..care.bundle import write_bundle

    names = write_bundle(output, installed_files(path))
    say(f"{output}: {len(names)} files")


@main.group()
def certificates() -> None:
    """This host's certificates: new ones are tried before they are used."""


@certificates.command("take")
@click.option(
    "--folder",
    default=config.INSTALLED / "credentials",
    show_default=True,
    type=click.Path(path_type=Path, file_okay=False),
)
@click.option("--days", default=14, show_default=True, help="Fail if one expires within as many days.")
def certificates_take(folder: Path, days: int) -> None:
    """Put the files of FOLDER/next in place if the brokers accept them, restart what uses them, and go back if a service
    does not come back. Then look when the certificates in use expire.
    """
    from ..care.certificates import expiries, take
    from ..errors import CertificateError

    services = {f"skywave-{path.stem}.service": settings for path, settings in service_configs(None).items()}
    for name in take(folder, services):
        say(f"{name}: taken")
    for expiry in expiries(sorted({*folder.glob("*.crt"), *folder.glob("*.pem")})):
        say(f"{expiry.file}: {expiry.subject} until {expiry.not_after:%Y-%m-%d}")
        if expiry.days < days:
            raise CertificateError(
                f"{expiry.file} expires in {expiry.days:.1f} days", "Run the playbook rotate-certs.yml."
            )


@main.group("config")
def config_group() -> None:
    """Check and show configuration files."""


@config_group.command("check")
@click.argument("file", type=click.Path(dir_okay=False))
def config_check(file: str) -> None:
    """Say whether FILE is a valid configuration of a client, a server or the archive; exit code 2 if not."""
    found = any_settings(file)
    say(f"{file}: a valid {type(found).__name__.lower()} configuration")


@config_group.command("show")
@click.argument("file", type=click.Path(dir_okay=False))
def config_show(file: str) -> None:
    """Print FILE with every setting, its default and its documentation; what looks like a secret is masked."""
    say_document(config.show(any_settings(file)))
