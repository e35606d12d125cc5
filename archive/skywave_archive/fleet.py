"""Whose archive it is: two fleets in one would be mixed for good, since nothing else tells their rows apart.

A fleet has a random id. Its store keeps it in the table ``meta``, each shard the same, and its archive in a file; the first
export makes it, or gives what one side has to the other. A restore of everything gives it to the new store, so that the fleet
goes on there. A store without one is no proof where the archive has one: somebody must say that they belong together.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence

from skywave.store.columns import text
from skywave.store.store import Store

from .archive import FLEET, Archive
from .errors import AnotherFleet, UnknownFleet
from .workspace import Workspace

_NAME = "fleet"


def check_fleet(archive: Archive, stores: Sequence[Store]) -> None:
    """Raises ``AnotherFleet`` unless the store's shards and the archive belong together or may still be joined."""
    _compare(archive, [_fleet_of(store) for store in stores])


def join(archive: Archive, work: Workspace, stores: Sequence[Store], same: bool) -> None:
    """Makes the store's shards and the archive know their fleet; raises ``AnotherFleet`` if they are of different ones, unless
    somebody said that they are the ``same``."""
    found = [_fleet_of(store) for store in stores]
    if not same:
        _compare(archive, found)
    written = archive.fleet()
    fleet = written or next(filter(None, found), secrets.token_hex(16))
    _give(stores, found, fleet)
    if not written:  # last: an archive that alone has an id would refuse its store
        work.replace(FLEET, f"{fleet}\n".encode())


def join_restored(archive: Archive, stores: Sequence[Store], whole: bool, same: bool) -> None:
    """Before a restore: raises ``AnotherFleet`` if a target is another fleet's, unless somebody said that it is the ``same``.
    With a restore of the ``whole``, a new target becomes the fleet's. Where the id cannot be read, nothing is compared: the
    readings come back all the same."""
    fleet = archive.fleet()
    found = [_fleet_of(store) for store in stores]
    if fleet and not same and any(theirs not in ("", fleet) for theirs in found):
        raise AnotherFleet(
            f"the target is another fleet's store, and {archive.where} is not its archive",
            "Restore into another database. If it belongs to the archive's fleet from now on, say --same-fleet.",
        )
    if fleet and (whole or same):
        _give(stores, found, fleet)


def _compare(archive: Archive, found: Sequence[str]) -> None:
    stores, fleet = set(found) - {""}, archive.fleet()
    if fleet is None:
        raise UnknownFleet(
            f"{archive.where}/{FLEET} cannot be read: nothing says whose archive it is",
            "Try again when its DataNodes are back. If its blocks are lost and the archive is this store's, export"
            " --same-fleet writes it anew.",
        )
    if len(stores) > 1:
        raise AnotherFleet(
            "the shards are stores of different fleets",
            "Check [store.shards]. If they are of one fleet from now on, say --same-fleet once.",
        )
    if stores and fleet and fleet not in stores:
        raise AnotherFleet(
            f"{archive.where} is the archive of another fleet than the store's",
            "Give each fleet an archive of its own: check target.path and [store]."
            " If the store belongs to the archive's fleet from now on, say export --same-fleet once.",
        )
    if fleet and not stores:
        raise AnotherFleet(
            f"{archive.where} is a fleet's archive, and nothing says that the store is that fleet's",
            "If the store is new: restore the archive into it, or say export --same-fleet once."
            " Otherwise check target.path and [store].",
        )


def _fleet_of(store: Store) -> str:
    sql = f"SELECT value FROM {store.database}.meta FINAL WHERE name = '{_NAME}'"
    found = store.read_whole(["meta"], lambda: store.query(sql))
    return text(found[0][0]) if found else ""


def _give(stores: Sequence[Store], found: Sequence[str], fleet: str) -> None:
    for store, theirs in zip(stores, found, strict=True):
        if theirs != fleet:
            store.insert_rows("meta", ("name", "value", "at"), [(_NAME, fleet, time.time_ns() // 1000)])
            store.sync()
