"""The command line: `skywave …`. Heavy modules are imported by the command that needs them."""

from __future__ import annotations

import click

from .. import config
from . import look, stand_in, stored  # noqa: F401  (their commands join the group as they are imported)
from .group import config_option, main

__all__ = ["main"]


@main.command()
@config_option
@click.option("--drain", is_flag=True, help="Read no sensor; bring what the outbox holds to the server, and end.")
def client(path: str, drain: bool) -> None:
    """Read sensors into the outbox and bring their readings to the server."""
    from ..client.agent import Agent

    agent = Agent(config.load(path, config.Client))
    agent.drain() if drain else agent.run()


@main.command()
@config_option
def server(path: str) -> None:
    """Commit batches to the store and acknowledge them."""
    from ..server.service import ServerProcess

    ServerProcess(config.load(path, config.Server)).run()
