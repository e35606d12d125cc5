"""The command line: `skywave …`. Heavy modules are imported by the command that needs them."""

from __future__ import annotations

import click

from . import __version__, config
from .errors import SkywaveError
from .service import setup_logging


class _Group(click.Group):
    """Turns expected errors into a message, a hint and an exit code."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except SkywaveError as error:
            click.echo(f"Error: {error}", err=True)
            if error.hint:
                click.echo(f"  {error.hint}", err=True)
            ctx.exit(error.exit_code)
        except ModuleNotFoundError as error:
            click.echo(f"Error: {error.name} is not installed", err=True)
            click.echo("  Install the part you need: pip install 'skywave[client]', [server] or [embedded].", err=True)
            ctx.exit(2)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
@click.option("--log-level", default="info", type=click.Choice(["debug", "info", "warning", "error"]), show_default=True)
def main(log_level: str) -> None:
    """Sensor readings from edge hosts into ClickHouse, none lost, none doubled."""
    setup_logging(log_level)


@main.command()
@click.option("--config", "path", required=True, type=click.Path(dir_okay=False), help="TOML file.")
def client(path: str) -> None:
    """Read sensors into the outbox and bring their readings to the server."""
    from .client.agent import Agent

    Agent(config.load(path, config.Client)).run()


@main.command()
@click.option("--config", "path", required=True, type=click.Path(dir_okay=False), help="TOML file.")
def server(path: str) -> None:
    """Commit batches to the store and acknowledge them."""
    from .server.service import ServerProcess

    ServerProcess(config.load(path, config.Server)).run()


@main.command()
@click.option("--kind", type=click.Choice(["temperature", "pressure", "height"]), default="temperature")
@click.option("--host", default="127.0.0.1")
@click.option("--port", default=9090)
@click.option("--rate", default=1000.0)
@click.option("--signal", default="random")
@click.option("--seed", type=int)
@click.option("--ledger")
@click.option("--limit", type=int)
def emulator(kind, host, port, rate, signal, seed, ledger, limit) -> None:
    from .emulator.sensor import SensorEmulator
    import signal as sg
    e = SensorEmulator(kind, port, host, rate, signal, seed, ledger, limit)
    sg.signal(sg.SIGTERM, lambda *_: e.stop())
    sg.signal(sg.SIGINT, lambda *_: e.stop())
    e.run()
