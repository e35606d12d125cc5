"""What an export looks at, what ``list`` says of the store, and whether what ``expire`` advises helps."""

from __future__ import annotations

import json
import shutil
from contextlib import closing
from datetime import timedelta

import pytest
from skywave_archive.source import SourceShard
from skywave_archive.tables import TELEMETRY
from support.vault import Vault, days_ago, today

DAY, OLD = days_ago(1), days_ago(2)


@pytest.fixture(params=["18.16", "embedded"])
def snapshots(request, own_clickhouse, database, tmp_path):
    """A vault whose store can be put back to what it was: (vault, take, put back)."""
    data = own_clickhouse.folder / "data" if request.param == "18.16" else tmp_path / "store"
    toml = f"port = {own_clickhouse.port}" if request.param == "18.16" else f'kind = "embedded"\npath = "{data}"'
    vault = Vault({"1": toml}, database, "")

    def copied(source, destination):
        own_clickhouse.stop()
        shutil.rmtree(destination, ignore_errors=True)
        shutil.copytree(source, destination, symlinks=True)
        own_clickhouse.start()

    yield vault, lambda: copied(data, tmp_path / "snapshot"), lambda: copied(tmp_path / "snapshot", data)
    vault.remove()


def test_other_rows_under_the_same_block_number_are_seen_and_expire_s_advice_works(snapshots):
    vault, take, put_back = snapshots
    vault.add(OLD)
    vault.run("export")
    take()
    vault.add(OLD, first=5001, count=10)
    vault.run("export")
    put_back()
    vault.add(OLD, first=6001, count=10)  # as many rows and bytes
    assert vault.run("list")["days"][0]["store"] == "changed"
    vault.run("verify", "--level", "rows")
    assert "run skywave-archive export" in vault.run("expire", "--older-than", "1d", code=1)["days"][0]["why"]
    assert vault.outcomes(vault.run("export")) == [(str(OLD), "added")]
    assert vault.manifest(OLD, 3)["rows"] == 1020

    vault.run("verify", "--level", "rows")
    why = vault.run("expire", "--older-than", "1d", code=1)["days"][0]["why"]
    assert f"skywave-archive restore --day {OLD} --merge" in why
    settings = vault.settings()
    url = f"embedded:{settings.path}" if settings.kind == "embedded" else f"clickhouse://127.0.0.1:{settings.port}"
    into = f"{url}?database={vault.database}" if settings.kind == "embedded" else f"{url}/{vault.database}"
    vault.run("restore", "--day", str(OLD), "--merge", "--into", into)
    vault.run("export")
    assert [day["outcome"] for day in vault.run("expire", "--older-than", "1d")["days"]] == ["dropped"]


def test_a_store_that_only_lost_rows_is_told_how_to_get_them_back(vault):
    """Another export cannot help there, so expire does not ask for one twice."""
    vault.add(OLD)
    vault.run("export")
    vault.run("verify", "--level", "rows")
    with closing(vault.open()) as store:
        store.query(f"ALTER TABLE {vault.database}.telemetry DROP PARTITION '{OLD}'")
    vault.add(OLD, count=10, note=False)
    assert "export" in vault.run("expire", "--older-than", "1d", code=1)["days"][0]["why"]
    vault.run("export")
    assert "restore" in vault.run("expire", "--older-than", "1d", code=1)["days"][0]["why"]


def test_expire_makes_the_next_export_look_whatever_the_marker_says(vault, monkeypatch):
    vault.add(OLD)
    monkeypatch.setattr(SourceShard, "markers", lambda _, table: {OLD: "same"} if table is TELEMETRY else {})
    vault.run("export")
    vault.run("verify", "--level", "rows")
    vault.add(OLD, first=5001)
    assert vault.run("export")["days"] == []
    vault.run("expire", "--older-than", "1d", code=1)
    assert vault.outcomes(vault.run("export")) == [(str(OLD), "added")]


def test_a_day_whose_parts_merged_is_the_same_day(vault, monkeypatch):
    for first in (1, 501):
        vault.add(DAY, first=first, count=500)
    vault.run("export")
    with closing(vault.open()) as store:
        store.query(f"OPTIMIZE TABLE {vault.database}.telemetry PARTITION '{DAY}' FINAL")
    assert vault.run("list")["days"][0]["store"] == "same"
    monkeypatch.setattr(SourceShard, "rows", lambda *_: pytest.fail("its rows were read again"))
    assert vault.outcomes(vault.run("export")) == [(str(DAY), "unchanged")]
    assert vault.run("export")["days"] == []


def test_a_pruned_day_whose_parts_merged_does_not_come_back(vault):
    for first in (1, 501):
        vault.add(OLD, first=first, count=500)
    vault.run("export")
    vault.run("prune", "--delete-data-before", str(DAY), "--confirm")
    with closing(vault.open()) as store:
        store.query(f"OPTIMIZE TABLE {vault.database}.telemetry PARTITION '{OLD}' FINAL")
    assert vault.run("list")["not_archived"] == []
    assert vault.outcomes(vault.run("export")) == []
    vault.add(OLD, first=5001, count=10)
    assert vault.outcomes(vault.run("export")) == [(str(OLD), "exported")]


def test_what_version_0_1_0_noted_of_pruned_days_still_counts(vault):
    vault.add(OLD)
    vault.run("export")
    vault.run("prune", "--delete-data-before", str(DAY), "--confirm")
    path = vault.archive / "_state.json"
    state = json.loads(path.read_text())
    mark = state["markers"][f"telemetry/{OLD}"]
    mark["shards"] = {name: marker.rpartition(":")[0] for name, marker in mark["shards"].items()}
    del mark["held"]
    path.write_text(json.dumps(state))
    assert vault.run("list")["not_archived"] == []
    assert vault.outcomes(vault.run("export")) == []


@pytest.mark.parametrize("engine", ["18.16", "embedded"])
def test_an_open_day_that_got_nothing_since_its_export_is_the_same(engine, request, database, tmp_path):
    toml = f'kind = "embedded"\npath = "{tmp_path}/store"'
    if engine == "18.16":
        toml = f"port = {request.getfixturevalue('clickhouse').port}"
    vault = Vault({"1": toml}, database, "")
    vault.add(today())
    vault.run("export", "--open-day")
    assert vault.run("list")["days"][0]["store"] == "same"
    vault.add(today(), first=5001, count=1)
    assert vault.run("list")["days"][0]["store"] == "changed"
    vault.remove()


def test_from_a_day_long_ago_makes_no_manifests_before_the_first_day_there_is(vault):
    """Empty days between days with rows have one, so that no gap is left open, and they are not called gone."""
    first = days_ago(5)
    vault.add(first)
    vault.add(DAY, first=5001)
    result = vault.run("export", "--from", str(today() - timedelta(days=330)))
    assert vault.outcomes(result) == [
        (str(first), "exported"), *((str(days_ago(n)), "empty") for n in (4, 3, 2)), (str(DAY), "exported"),
    ]  # fmt: skip
    assert {day["store"] for day in vault.run("list")["days"]} == {"same"}
