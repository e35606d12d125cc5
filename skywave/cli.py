"""The command line: `skywave …`. Heavy modules are imported by the command that needs them."""

from __future__ import annotations

import contextlib
import getpass
import io
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from . import __version__, config
from .errors import EXIT_SOFTWARE, EXIT_TRY_LATER, EXIT_USAGE, ConfigError, SkywaveError
from .masking import mask
from .service import Signals, Worker, run_until_signal, setup_logging
from .visible import say, say_document, say_json, visible

if TYPE_CHECKING:
    from .accepted import Entry
    from .accepting import What
    from .server.store import Store


SERVICES = ("client", "server", "emulator")


class ErrorGroup(click.Group):
    """Turns expected errors into a message, a hint and an exit code."""

    def invoke(self, ctx: click.Context) -> object:
        """See ``click.Group.invoke``."""
        for stream in (sys.stdout, sys.stderr):  # a terminal without some letter shows another one
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")
        try:
            return super().invoke(ctx)
        except SkywaveError as error:
            say(f"Error: {mask(str(error))}", err=True)
            if error.hint:
                say(*(f"  {line}" for line in error.hint.split("\n")), err=True)
            ctx.exit(error.exit_code)
        except ModuleNotFoundError as error:
            say(f"Error: {error.name} is not installed", err=True)
            say(
                "  Install the part you need: pip install 'skywave[client]', [server], [archive] or [embedded].",
                err=True,
            )
            ctx.exit(EXIT_USAGE)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.filename is not None:
                say(f"Error: {error.filename}: {error.strerror}", err=True)
                # A disk may come back: a service is started again after any code but that of usage.
                ctx.exit(EXIT_TRY_LATER if ctx.invoked_subcommand in SERVICES else EXIT_USAGE)
            say(*traceback.format_exc().splitlines(), err=True)
            ctx.exit(EXIT_SOFTWARE)  # an uncaught error would say 1, which speaks of the data


@click.group(cls=ErrorGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
@click.option(
    "--log-level", default="info", type=click.Choice(["debug", "info", "warning", "error"]), show_default=True
)
def main(log_level: str) -> None:
    """Sensor readings from edge hosts into ClickHouse, none lost, none doubled."""
    setup_logging(log_level)


config_option = click.option(
    "--config", "path", required=True, type=click.Path(dir_okay=False), help="TOML file; see docs/configuration.md."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


@main.command()
@config_option
@click.option("--drain", is_flag=True, help="Read no sensor; bring what the outbox holds to the server, and end.")
def client(path: str, drain: bool) -> None:
    """Read sensors into the outbox and bring their readings to the server."""
    from .client.agent import Agent

    agent = Agent(config.load(path, config.Client))
    agent.drain() if drain else agent.run()


@main.command()
@config_option
def server(path: str) -> None:
    """Commit batches to the store and acknowledge them."""
    from .server.service import ServerProcess

    ServerProcess(config.load(path, config.Server)).run()


@main.command()
@click.option(
    "--kind", default="temperature", show_default=True, type=click.Choice(["temperature", "pressure", "height"])
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=9090, show_default=True, help="Port to listen on.", type=click.IntRange(0, 65535))
@click.option("--rate", default=1000.0, show_default=True, help="Readings/s on each connection; 0: as fast as it goes.",
              type=click.FloatRange(0))  # fmt: skip
@click.option("--signal", "shape", default="random", show_default=True,
              type=click.Choice(["random", "sine", "walk", "counter"]))  # fmt: skip
@click.option("--seed", type=int, help="Same seed, same values.")
@click.option("--ledger", type=click.Path(dir_okay=False), help="File to note every reading in before it is sent.")
@click.option("--limit", type=click.IntRange(1), help="Close each connection after as many readings.")
@click.option("--acknowledged", is_flag=True,
              help="Number the readings and keep them until the client has committed them.")  # fmt: skip
def emulator(
    kind: str,
    host: str,
    port: int,
    rate: float,
    shape: str,
    seed: int | None,
    ledger: str | None,
    limit: int | None,
    acknowledged: bool,
) -> None:
    """Be a sensor: send frames to everybody who connects.

    A frame is a 10-byte header with the payload's length, padded with spaces, and the payload, a decimal number:
    "4         21.5".
    """
    from .emulator.sensor import SensorEmulator

    sensor = SensorEmulator(kind, port, host, rate, shape, seed, ledger, limit, acknowledged)
    worker = Worker("sensor", sensor.run)
    worker.start()
    try:
        run_until_signal(
            lambda: f"dead: {worker.died_of}" if worker.died_of else sensor.health(),
            lambda: f"{sensor.connected} connections, {sensor.sent} readings sent",
        )
    finally:
        sensor.stop()
        worker.join(10)


@main.command()
@click.option("--broker", "brokers", default=["127.0.0.1:1883"], show_default=True, multiple=True,
              help="A broker without certificates, as host:port; several for several.")  # fmt: skip
@click.option("--clients", default=100, show_default=True, type=click.IntRange(1), help="How many clients to be.")
@click.option("--rate", default=1000.0, show_default=True, type=click.FloatRange(0),
              help="Readings a second that each produces; 0: none but the backlog.")  # fmt: skip
@click.option("--seconds", type=click.FloatRange(0), help="For how long they produce. Without it: until Ctrl-C.")
@click.option("--size", default=500, show_default=True, type=click.IntRange(1, 100_000), help="Readings in a batch.")
@click.option("--keys", default=3, show_default=True, type=click.IntRange(1, 1000), help="Series of each client.")
@click.option("--backlog", default=0, show_default=True, type=click.IntRange(0),
              help="Batches that each client has waiting at the beginning, like after an outage.")  # fmt: skip
@click.option("--outages", default=0.0, show_default=True, type=click.FloatRange(0, 0.9),
              help="Share of the clients that are cut off at any time; what they produce comes as a flood after.")  # fmt: skip
@click.option("--outage-seconds", "outage_s", default=10.0, show_default=True, type=click.FloatRange(0.1),
              help="How long they are on the average.")  # fmt: skip
@click.option("--window", default=16, show_default=True, type=click.IntRange(1, 1000),
              help="Unacknowledged batches a client.")  # fmt: skip
@click.option("--first-client-id", default=1, show_default=True, type=click.IntRange(1), help="The first one's number.")
@click.option("--seed", type=int, help="Same seed, same readings and outages.")
@click.option("--ledger", default="", type=click.Path(dir_okay=False),
              help="File for what each client sent; see skywave fleet-check.")  # fmt: skip
@json_option
def fleet(brokers: tuple[str, ...], as_json: bool, **plan: Any) -> None:
    """Be a whole fleet of clients, to press servers and stores; says how fast everything was acknowledged.

    Each client is a connection of its own that speaks what `skywave client` speaks, with resends and accounts. After
    --seconds or Ctrl-C they produce no more, and it ends when all is acknowledged.
    """
    from .emulator.fleet import Fleet, FleetResult, Plan

    try:
        where = [config.Mqtt(host=host, port=port) for host, port in config.addresses(", ".join(brokers))]
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--broker") from error
    if not plan["rate"] and not plan["backlog"]:
        raise click.UsageError("without --rate and --backlog there is nothing to send")
    plan["seconds"] = plan["seconds"] if plan["rate"] else 0.0
    signals = Signals()

    def stopped() -> bool:
        if signals.count > 1:
            raise KeyboardInterrupt  # a second one ends it at once
        return bool(signals)

    load = Fleet(Plan(brokers=where, **plan))
    if not plan["rate"]:
        load.prepare()

    say(f"connecting {plan['clients']} clients to {', '.join(brokers)}", err=True)

    def tick(so_far: FleetResult) -> None:
        waiting = so_far.readings - so_far.acked
        say(f"{so_far.acked:,} acknowledged, {waiting:,} waiting, {so_far.acked_per_s:,} readings/s", err=True)

    result = vars(load.run(stopped, (lambda _: None) if as_json else tick))
    if as_json:
        say_json(result)
    else:
        say(*(f"{name:16} {value}" for name, value in result.items()))


@main.command("fleet-check")
@config_option
@click.argument("ledger", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@json_option
def fleet_check(path: str, ledger: Path, as_json: bool) -> None:
    """Compare what `skywave fleet` sent, by its LEDGER, with the store of a server's --config; exit code 1 if it differs."""
    from .emulator.fleet import compare
    from .server.store import open_shards

    stores = open_shards(config.load(path, config.Server).store)
    try:
        found = compare(ledger, stores)
    finally:
        for store in stores:
            store.close()
    if as_json:
        say_json(found)
    else:
        for client_id, why in found["wrong"].items():
            say(f"client {client_id}: {why}")
        say(f"{found['stored']:,} readings stored, {len(found['wrong'])} clients differ from the ledger")
    sys.exit(1 if found["wrong"] else 0)


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

    from . import view
    from .asking import fetch_status
    from .care.findings import judge, wrong

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
    snapshot = fetch_status(url)
    if as_json:
        say_json(snapshot)
    else:
        Console().print(view.status_panel(snapshot))
    sys.exit(1 if wrong(judge(snapshot)) else 0)


def _numbers(_: click.Context, __: click.Parameter, words: tuple[str, ...]) -> tuple[What, ...]:
    from .accepting import What

    try:
        return tuple(What.parse(word) for word in words)
    except ValueError as error:
        raise click.BadParameter(visible(error)) from error


@main.command()
@config_option
@click.option("--client", "client_id", type=click.IntRange(1), help="Only this client.")
@click.option("--accept", "accepts", multiple=True, callback=_numbers, metavar="CLIENT[/STREAM[/FIRST-LAST]]",
              help="Put on record that what is missing of these numbers now is lost. all: of everybody's.")  # fmt: skip
@click.option("--correct", "corrects", multiple=True, callback=_numbers, metavar="CLIENT/STREAM/LAST",
              help="Put on record that a stream produced no reading after LAST, whatever its client said.")  # fmt: skip
@click.option("--take-back", "takes_back", multiple=True, callback=_numbers, metavar="CLIENT[/STREAM[/FIRST-LAST]]",
              help="Take back what was put on record of these numbers.")  # fmt: skip
@click.option("--reason", default="", help="Why, with --accept, --correct and --take-back.")
@click.option("--by", "name", default="", help="Who says so; the user who runs it if not given.")
@click.option("--accepted", "listing", is_flag=True, help="List what is on record instead.")
@json_option
def audit(
    path: str, client_id: int | None, accepts: tuple[What, ...], corrects: tuple[What, ...],
    takes_back: tuple[What, ...], reason: str, name: str, listing: bool, as_json: bool,
) -> None:  # fmt: skip
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
    from .accepted import LOST, TAKEN_BACK, VOID

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
    from .asking import fetch
    from .audit import audit_shards
    from .errors import StoreUnavailable

    try:
        return audit_shards(_stores(settings), client_id).as_json()
    except StoreUnavailable:
        if settings.store.kind != "embedded" or not settings.http.port:
            raise
        return fetch(f"{settings.http.url}/audit", 600)


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

    from . import accepted, view

    with _opened(settings) as stores:
        entries = [entry.as_json() for store in stores for entry in accepted.entries(store, client_id)]
    if as_json:
        say_json({"accepted": entries})
    else:
        Console().print(view.accepted_table(entries))


def _note_accepted(settings: config.Server, changes: list[tuple[str, What]], reason: str, name: str) -> list[Entry]:
    """Puts the changes on record, one after the other: each is judged by the account as the ones before have left it."""
    from .accepting import note
    from .server.store import place

    name = name or os.environ.get("SUDO_USER") or getpass.getuser()
    noted = []
    with _opened(settings) as stores:
        for kind, what in changes:
            noted += note(stores, place(settings.store), kind, what, reason.strip(), name)
    return noted


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
    from .server.store import open_shards, shard_names

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
    from .server import schema

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


def _installed(path: str | None) -> list[Path]:
    """The given configuration file, or those of this host."""
    kinds = (*config.KINDS, "archive")
    found = [Path(path)] if path else [p for kind in kinds if (p := config.INSTALLED / f"{kind}.toml").exists()]
    if not found:
        raise ConfigError(f"no configuration in {config.INSTALLED}", "Give one with --config.")
    return found


def _services(path: str | None) -> dict[Path, config.Client | config.Server]:
    """The configurations of ``_installed`` but the archive's."""
    return {file: config.load_any(file) for file in _installed(path) if not config.is_archive(file)}


some_config_option = click.option("--config", "path", type=click.Path(dir_okay=False),
                                  help="TOML file; those in /etc/skywave if not given.")  # fmt: skip


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

    from . import view
    from .care.doctor import wait_until_well
    from .care.findings import wrong

    findings = [finding for file in _installed(path) for finding in wait_until_well(file, wait, services)]
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
    from .care.gate import gate

    settings = [found for found in _services(path).values() if isinstance(found, config.Server)]
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
    from .care.bundle import write_bundle

    names = write_bundle(output, _installed(path))
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
    from .care.certificates import CertificateError, expiries, take

    services = {f"skywave-{path.stem}.service": settings for path, settings in _services(None).items()}
    for name in take(folder, services):
        say(f"{name}: taken")
    for expiry in expiries(sorted({*folder.glob("*.crt"), *folder.glob("*.pem")})):
        say(f"{expiry.file}: {expiry.subject} until {expiry.not_after:%Y-%m-%d}")
        if expiry.days < days:
            raise CertificateError(
                f"{expiry.file} expires in {expiry.days:.1f} days", "Run the playbook rotate-certs.yml."
            )


@main.command()
@click.option("--seconds", default=20.0, show_default=True, help="How long the sensors send.", type=click.FloatRange(3))
@click.option("--rate", default=1000.0, show_default=True, help="Readings/s of the three sensors together.",
              type=click.FloatRange(1))  # fmt: skip
@click.option("--seed", type=int, help="Same seed, same values.")
@click.option(
    "--keep", type=click.Path(file_okay=False, path_type=Path), help="Keep configs, logs and data in this folder."
)
@click.option("--picture", type=click.Path(dir_okay=False, path_type=Path), hidden=True)
@json_option
def demo(seconds: float, rate: float, seed: int | None, keep: Path | None, picture: Path | None, as_json: bool) -> None:
    """Run everything on this host, kill the broker in the middle, delete the store and restore it from the archive, and
    account for every reading.

    Exit code 1 if one is lost or doubled.
    """
    signals = Signals()  # before the imports, which take a while
    from .demo import run_demo

    sys.exit(0 if run_demo(seconds, rate, seed, keep, as_json, picture, signals) else 1)


@main.group()
def rejected() -> None:
    """Look at messages that could not be stored, and store them after all."""


def _stores(settings: config.Server) -> list[Store]:
    from .server.store import open_shards

    return open_shards(settings.store)


@contextlib.contextmanager
def _opened(settings: config.Server) -> Iterator[list[Store]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(contextlib.closing(shard)) for shard in _stores(settings)]


@rejected.command("list")
@config_option
@click.option("--client", "client_id", type=click.IntRange(0), help="Only this client.")
@click.option("--limit", default=100, show_default=True, type=click.IntRange(1))
@json_option
def rejected_list(path: str, client_id: int | None, limit: int, as_json: bool) -> None:
    """List rejected messages, oldest first."""
    from rich.console import Console

    from . import view
    from .server import rejected as rejects

    with _opened(config.load(path, config.Server)) as stores:
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
        click.option("--batch", callback=_batch, metavar="STREAM/FIRST_SEQ",
                     help="Of this name, if a client sent the same bytes under several."),
        click.option("--client", "client_id", type=click.IntRange(0), help="Of this client, if several sent the same bytes."),
        click.argument("sha256"),
        config_option,
    ):  # fmt: skip
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
    from .server import rejected as rejects

    with _opened(config.load(path, config.Server)) as stores:
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
    from .server import rejected as rejects

    settings = config.load(path, config.Server)
    with _opened(settings) as stores:
        stored = rejects.replay(stores, settings, sha256, client_id, batch)
    say(f"stored {stored} readings" if stored else "it was stored already")


@main.group("config")
def config_group() -> None:
    """Check and show configuration files."""


@config_group.command("check")
@click.argument("file", type=click.Path(dir_okay=False))
def config_check(file: str) -> None:
    """Say whether FILE is a valid configuration of a client, a server or the archive; exit code 2 if not."""
    found = _settings(file)
    say(f"{file}: a valid {type(found).__name__.lower()} configuration")


@config_group.command("show")
@click.argument("file", type=click.Path(dir_okay=False))
def config_show(file: str) -> None:
    """Print FILE with every setting, its default and its documentation; what looks like a secret is masked."""
    say_document(config.show(_settings(file)))


def _settings(file: str) -> Any:
    if not config.is_archive(file):
        return config.load_any(file)
    from skywave_archive.settings import load

    return load(file)
