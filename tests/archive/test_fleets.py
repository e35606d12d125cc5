"""An archive knows its fleet: no other one gets into it, and the fleet itself goes on whatever becomes of its store."""

from __future__ import annotations

from contextlib import closing

import pytest
from support.vault import Vault, days_ago

DAY, OLD = days_ago(1), days_ago(2)


@pytest.fixture
def other(vault, clickhouse):
    """Another fleet's store, whose configuration names the vault's archive by mistake."""
    other = Vault({"1": f"port = {clickhouse.port}"}, f"{vault.database}_other", vault.target)
    yield other
    other.remove()


def new_store(vault) -> None:
    """The store is lost, and installed anew."""
    for shard in vault.stores:
        with closing(vault.open(shard)) as store:
            store.query(f"DROP DATABASE {vault.database}")
            store.migrate()


def content(vault) -> dict[str, bytes]:
    return {
        str(path.relative_to(vault.archive)): path.read_bytes()
        for path in vault.archive.rglob("*")
        if path.is_file() and "_locks" not in path.parts
    }


@pytest.mark.parametrize("exported_elsewhere", [False, True])
def test_another_fleet_gets_nothing_into_the_archive(vault, other, exported_elsewhere):
    vault.add(DAY)
    vault.run("export")
    other.add(DAY, client=2)
    if exported_elsewhere:
        other.configure(target=f'kind = "local"\npath = "{other.archive}"\n')
        other.run("export")
        other.configure()
    before = content(vault)
    for command in (
        ("export",), ("export", "--dry-run"), ("export", "--open-day"), ("export", "--day", str(DAY), "--anew"),
        ("expire", "--older-than", "1d"),
    ):  # fmt: skip
        refused = other.run(*command, code=2)["stderr"]
        assert str(vault.archive) in refused and "fleet" in refused
    assert content(vault) == before
    assert other.run("list", code=2)["days"][0]["store"] is None
    assert [c["name"] for c in other.run("check", code=1)["checks"] if not c["good"]] == ["fleet"]
    assert vault.run("check")["code"] == 0
    vault.run("export")


def test_an_id_that_cannot_be_read_stops_the_export_but_no_restore(vault, clickhouse):
    vault.add(DAY)
    vault.run("export")
    (vault.archive / "_fleet").unlink()
    (vault.archive / "_fleet").mkdir()
    assert "--same-fleet" in vault.run("export", code=75)["stderr"]
    assert vault.run("list", code=75)["days"][0]["store"] is None
    back = f"{vault.database}_back"
    vault.run("restore", "--into", f"clickhouse://127.0.0.1:{clickhouse.port}/{back}")
    vault.assert_restored(vault.open(database=back))
    vault.run("export", "--same-fleet")
    vault.run("export")


def test_an_archive_of_version_0_1_0_is_its_store_s_from_the_next_export_on(vault, other):
    vault.add(DAY)
    vault.run("export")
    (vault.archive / "_fleet").unlink()
    with closing(vault.open()) as store:
        store.query(f"DROP TABLE {vault.database}.meta")
        store.migrate()
    vault.run("list")
    vault.run("export")
    other.run("export", code=2)
    vault.run("export")


@pytest.mark.parametrize("lost", ["archive", "store"])
def test_an_export_that_was_killed_between_the_two_sides_is_made_up_for(vault, lost):
    """The store is told first."""
    vault.add(DAY)
    vault.run("export")
    (vault.archive / "_fleet").unlink()
    if lost == "store":
        new_store(vault)
    vault.run("export")
    assert (vault.archive / "_fleet").exists()


def test_a_restored_store_goes_on_as_the_fleet_s(vault):
    vault.add(OLD)
    vault.run("export")
    new_store(vault)
    assert vault.run("list", "--no-store")["days"]
    assert "restore" in vault.run("export", code=2)["stderr"]
    vault.run("restore", "--into", f"clickhouse://127.0.0.1:{vault.settings().port}/{vault.database}")
    vault.add(DAY, first=5001)
    assert vault.outcomes(vault.run("export")) == [(str(OLD), "unchanged"), (str(DAY), "added")]
    vault.run("drill")


def test_a_new_store_goes_on_without_a_restore_if_somebody_says_so_once(vault):
    vault.add(OLD)
    vault.run("export")
    new_store(vault)
    vault.add(DAY, first=5001)
    vault.run("export", code=2)
    vault.run("export", "--same-fleet", "--dry-run")
    vault.run("export", "--same-fleet")
    vault.add(DAY, first=6001)
    assert vault.outcomes(vault.run("export")) == [(str(DAY), "added")]


def test_a_fleet_goes_on_in_another_shape_and_with_a_shard_more(two_shards, clickhouse):
    sharded, _ = two_shards
    vault = Vault({"1": f"port = {clickhouse.port}"}, f"{sharded.database}_old", "")
    for client in (1, 2):
        vault.add(OLD, client=client, stream=client)
    vault.run("export")
    sharded.configure(target=vault.target)
    sharded.run("export", code=2)
    ports = [sharded.settings(name).port for name in "ab"]
    into = [part for port in ports for part in ("--into", f"clickhouse://127.0.0.1:{port}/{sharded.database}")]
    sharded.run("restore", *into)
    assert sharded.outcomes(sharded.run("export")) == [(str(OLD), "unchanged")]
    with closing(sharded.open("b")) as store:
        store.query(f"DROP TABLE {sharded.database}.meta")  # a shard that is new
        store.migrate()
    sharded.run("export")
    vault.remove()


def test_a_restore_into_another_fleet_s_store_is_refused(vault, other):
    vault.add(OLD)
    vault.run("export")
    other.add(DAY, client=2)
    other.configure(target=f'kind = "local"\npath = "{other.archive}"\n')
    other.run("export")
    into = ("--into", f"clickhouse://127.0.0.1:{other.settings().port}/{other.database}")
    for options in ((), ("--merge",), ("--client", "1")):
        assert "another fleet" in vault.run("restore", *into, *options, code=2)["stderr"]
    with closing(other.open()) as store:
        assert list(other.stored(store)) == [DAY]
    vault.run("restore", *into, "--same-fleet")
    other.run("export", code=2)  # it belongs to the first archive now


def test_a_part_that_was_restored_to_look_at_it_is_no_store_of_the_fleet(vault):
    vault.add(OLD)
    vault.run("export")
    looked_at = Vault(vault.stores, f"{vault.database}_looked_at", vault.target)
    into = f"clickhouse://127.0.0.1:{vault.settings().port}/{looked_at.database}"
    vault.run("restore", "--client", "1", "--into", into)
    looked_at.run("export", code=2)
    looked_at.remove()
