"""Opens the store that the settings name, a connection for each of its shards, and tells the shard of a client."""

from __future__ import annotations

from collections.abc import Callable

from .. import config
from .store import Store


def open_shards(settings: config.Store) -> list[Store]:
    """A new connection to each shard; a store without shards is one."""
    return [open_shard(settings, name) for name in shard_names(settings) or [""]]


def open_shard(settings: config.Store, name: str) -> Store:
    """A new connection to a shard, or to the whole of a store without shards."""
    if not settings.shards:
        return open_store(settings)
    from .clickhouse import ClickHouseStore

    return ClickHouseStore(settings, settings.shards[name])


def open_store(settings: config.Store) -> Store:
    """A new connection to the configured store, which has no shards."""
    if settings.kind == "embedded":
        from .embedded import EmbeddedStore

        return EmbeddedStore(settings)
    from .clickhouse import ClickHouseStore

    return ClickHouseStore(settings)


def shard_names(settings: config.Store) -> list[str]:
    """The shards' names in the order of ``open_shards``: by name, so that a file's order decides nothing."""
    return sorted(settings.shards)


def shard_suffix(settings: config.Store, number: int) -> str:
    """How messages name a shard by its position: " of shard NAME", nothing where it is the only one."""
    names = shard_names(settings)
    return f" of shard {names[number]}" if len(names) > 1 else ""


def shard_of(settings: config.Store) -> Callable[[int], int]:
    """A function that tells the shard of a client, as a position in ``open_shards``. A client's shard never changes when
    shards are added as documented."""
    starts = [settings.shards[name].first_client for name in shard_names(settings)] or [0]
    if len(starts) == 1:
        return lambda _: 0

    def find(client_id: int) -> int:
        latest = max(start for start in starts if start <= client_id)
        sharing = [at for at, start in enumerate(starts) if start == latest]
        return sharing[client_id % len(sharing)]

    return find
