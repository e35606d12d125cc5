"""Opens the outbox that the settings name."""

from __future__ import annotations

from .. import config
from .outbox import Outbox


def open_outbox(settings: config.Outbox) -> Outbox:
    """A new connection to the configured outbox."""
    if settings.kind == "postgresql":
        from .postgres import PostgresOutbox

        return PostgresOutbox(settings)
    from .sqlite import SqliteOutbox

    return SqliteOutbox(settings)
