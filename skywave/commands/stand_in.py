"""Commands that stand in for sensors, clients and a whole system: emulator, fleet, fleet-check, demo."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from .. import config
from ..process.service import Signals, Worker, run_until_signal
from ..process.visible import say, say_json
from .group import config_option, json_option, main


@main.command()
@click.option(
    "--kind", default="temperature", show_default=True, type=click.Choice(["temperature", "pressure", "height"])
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=9090, show_default=True, help="Port to listen on.", type=click.IntRange(0, 65535))
@click.option(
    "--rate",
    default=1000.0,
    show_default=True,
    help="Readings/s on each connection; 0: as fast as it goes.",
    type=click.FloatRange(0),
)
@click.option(
    "--signal", "shape", default="random", show_default=True, type=click.Choice(["random", "sine", "walk", "counter"])
)
@click.option("--seed", type=int, help="Same seed, same values.")
@click.option("--ledger", type=click.Path(dir_okay=False), help="File to note every reading in before it is sent.")
@click.option("--limit", type=click.IntRange(1), help="Close each connection after as many readings.")
@click.option(
    "--acknowledged", is_flag=True, help="Number the readings and keep them until the client has committed them."
)
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
    from ..emulator.sensor import SensorEmulator

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
@click.option(
    "--broker",
    "brokers",
    default=["127.0.0.1:1883"],
    show_default=True,
    multiple=True,
    help="A broker without certificates, as host:port; several for several.",
)
@click.option("--clients", default=100, show_default=True, type=click.IntRange(1), help="How many clients to be.")
@click.option(
    "--rate",
    default=1000.0,
    show_default=True,
    type=click.FloatRange(0),
    help="Readings a second that each produces; 0: none but the backlog.",
)
@click.option("--seconds", type=click.FloatRange(0), help="For how long they produce. Without it: until Ctrl-C.")
@click.option("--size", default=500, show_default=True, type=click.IntRange(1, 100_000), help="Readings in a batch.")
@click.option("--keys", default=3, show_default=True, type=click.IntRange(1, 1000), help="Series of each client.")
@click.option(
    "--backlog",
    default=0,
    show_default=True,
    type=click.IntRange(0),
    help="Batches that each client has waiting at the beginning, like after an outage.",
)
@click.option(
    "--outages",
    default=0.0,
    show_default=True,
    type=click.FloatRange(0, 0.9),
    help="Share of the clients that are cut off at any time; what they produce comes as a flood after.",
)
@click.option(
    "--outage-seconds",
    "outage_s",
    default=10.0,
    show_default=True,
    type=click.FloatRange(0.1),
    help="How long they are on the average.",
)
@click.option(
    "--window", default=16, show_default=True, type=click.IntRange(1, 1000), help="Unacknowledged batches a client."
)
@click.option("--first-client-id", default=1, show_default=True, type=click.IntRange(1), help="The first one's number.")
@click.option("--seed", type=int, help="Same seed, same readings and outages.")
@click.option(
    "--ledger",
    default="",
    type=click.Path(dir_okay=False),
    help="File for what each client sent; see skywave fleet-check.",
)
@json_option
def fleet(brokers: tuple[str, ...], as_json: bool, **plan: Any) -> None:
    """Be a whole fleet of clients, to press servers and stores; says how fast everything was acknowledged.

    Each client is a connection of its own that speaks what `skywave client` speaks, with resends and accounts. After
    --seconds or Ctrl-C they produce no more, and it ends when all is acknowledged.
    """
    from ..emulator.fleet import Fleet, FleetResult
    from ..emulator.plan import Plan

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
    from ..emulator.ledger import compare
    from ..store.shards import open_shards

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
@click.option("--seconds", default=20.0, show_default=True, help="How long the sensors send.", type=click.FloatRange(3))
@click.option(
    "--rate",
    default=1000.0,
    show_default=True,
    help="Readings/s of the three sensors together.",
    type=click.FloatRange(1),
)
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
    from ..demo.demo import run_demo

    sys.exit(0 if run_demo(seconds, rate, seed, keep, as_json, picture, signals) else 1)
