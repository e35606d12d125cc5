"""Configuration files: what can be set, how it is read and shown, where secrets come from.

Import the package and name what is meant through it: ``config.Client``, ``config.load(path, config.Client)``.
"""

from .loading import INSTALLED, is_archive, load, load_any, load_store, located, parse, secret_files
from .secrets import credential, secret
from .settings import (
    CREDENTIAL,
    DATA,
    KINDS,
    Client,
    Http,
    Ingest,
    Intake,
    Mqtt,
    Outbox,
    Sensor,
    Server,
    Shard,
    Store,
    Uplink,
    addresses,
    setting,
)
from .showing import show

__all__ = [
    "CREDENTIAL", "DATA", "INSTALLED", "KINDS", "Client", "Http", "Ingest", "Intake", "Mqtt", "Outbox", "Sensor", "Server",
    "Shard", "Store", "Uplink", "addresses", "credential", "is_archive", "load", "load_any", "load_store", "located", "parse",
    "secret", "secret_files", "setting", "show",
]  # fmt: skip
