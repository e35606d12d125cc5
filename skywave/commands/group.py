"""The group of all commands, its errors and exit codes, and what several of them share: options and what these open."""

from __future__ import annotations

import contextlib
import io
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .. import __version__, config
from ..config.masking import mask
from ..errors import EXIT_SOFTWARE, EXIT_TRY_LATER, EXIT_USAGE, ConfigError, SkywaveError
from ..process.service import setup_logging
from ..process.visible import say

if TYPE_CHECKING:
    from ..store.store import Store

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
some_config_option = click.option(
    "--config", "path", type=click.Path(dir_okay=False), help="TOML file; those in /etc/skywave if not given."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


def installed_files(path: str | None) -> list[Path]:
    """The given configuration file, or those of this host; raises ``ConfigError`` if there is none."""
    kinds = (*config.KINDS, "archive")
    found = [Path(path)] if path else [p for kind in kinds if (p := config.INSTALLED / f"{kind}.toml").exists()]
    if not found:
        raise ConfigError(f"no configuration in {config.INSTALLED}", "Give one with --config.")
    return found


def service_configs(path: str | None) -> dict[Path, config.Client | config.Server]:
    """The settings in ``installed_files`` but the archive's."""
    return {file: config.load_any(file) for file in installed_files(path) if not config.is_archive(file)}


@contextlib.contextmanager
def opened_stores(settings: config.Server) -> Iterator[list[Store]]:
    """The store of each shard, closed at the end of the block."""
    from ..store.shards import open_shards

    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(contextlib.closing(shard)) for shard in open_shards(settings.store)]


def any_settings(file: str) -> Any:
    """The settings in a file of any kind, the archive's as well; raises ``ConfigError``."""
    if not config.is_archive(file):
        return config.load_any(file)
    from skywave_archive.settings import load

    return load(file)
