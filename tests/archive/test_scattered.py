"""Clients whose numbers have as many gaps as readings: manifests and ``expired`` stay small; nothing is lost or doubled."""

from __future__ import annotations

from contextlib import closing

import pytest
from support.vault import days_ago

DAY, OLD = days_ago(1), days_ago(2)
MANY = 50


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr("skywave_archive.streams.MAX_RANGES", MANY)


def ranges(manifest: dict) -> dict[int, int]:
    return {stream["client_id"]: len(stream["ranges"]) for stream in manifest["streams"]}


@pytest.mark.usefixtures("few")
def test_a_client_with_scattered_numbers_is_archived_completed_replaced_pruned_and_expired(vault):
    vault.add(OLD)
    for client in (7, 8):  # two devices that one server numbered in turns
        vault.add(OLD, client=client, stream=5, first=client - 6, count=400, step=2)
    vault.run("export")
    manifest = vault.manifest(OLD)
    assert (manifest["format"], manifest["scattered"], manifest["unnamed_rows"]) == (2, [7, 8], {"7": 400, "8": 400})
    assert ranges(manifest) == {1: 1}

    vault.add(OLD, client=7, stream=5, first=1, count=400, step=2)  # the same again
    vault.add(OLD, client=7, stream=5, first=2001, count=3)
    result = vault.run("export")
    assert [item["new_rows"] for item in result["days"] if item["table"] == "telemetry"] == [3]
    assert vault.run("verify", "--level", "rows")["findings"] == []
    with closing(vault.open()) as store:
        store.query(f"ALTER TABLE {vault.database}.telemetry DROP PARTITION '{OLD}'")
    into = f"clickhouse://127.0.0.1:{vault.settings().port}/{vault.database}"
    vault.run("restore", "--into", into)

    vault.run("export", "--day", str(OLD), "--anew")
    assert vault.run("verify", "--level", "rows")["findings"] == []
    vault.run("prune", "--generations", "1", "--confirm")
    vault.assert_restored(vault.back())
    [day] = vault.run("expire", "--older-than", "1d")["days"]
    assert day["outcome"] == "dropped" and "client 7, 8" in day["why"]
    with closing(vault.open()) as store:
        rows = store.query(f"SELECT client_id, first_seq, last_seq FROM {vault.database}.expired FINAL")
        assert [tuple(map(int, row)) for row in rows] == [(1, 1, 1000)]


@pytest.mark.usefixtures("few")
def test_late_rows_with_scattered_numbers_join_a_client_whose_numbers_are_in_order(vault):
    vault.add(OLD, client=7)
    vault.run("export")
    for first in (2001, 4001):
        vault.add(OLD, client=7, first=first, count=100, step=2)
        vault.run("export")
    manifest = vault.manifest(OLD, 3)
    assert (ranges(manifest), manifest["unnamed_rows"], manifest["rows"]) == ({7: 1}, {"7": 200}, 1200)
    assert vault.run("export", "--day", str(OLD))["days"][0]["outcome"] == "unchanged"
    vault.add(OLD, client=7, first=9001, count=1)
    assert (str(OLD), "added") in vault.outcomes(vault.run("export"))
    assert vault.run("verify", "--level", "rows")["findings"] == []
    vault.assert_restored(vault.back())


def test_a_manifest_of_before_there_was_a_bound_is_read_added_to_replaced_and_expired(vault, monkeypatch):
    vault.add(OLD, client=7, count=400, step=2)
    vault.add(OLD)
    vault.run("export")
    assert (vault.manifest(OLD)["format"], ranges(vault.manifest(OLD))) == (1, {1: 1, 7: 400})
    monkeypatch.setattr("skywave_archive.streams.MAX_RANGES", MANY)
    vault.add(OLD, client=7, first=9001, count=10, step=2)
    vault.run("export")
    assert [vault.manifest(OLD, 2)[name] for name in ("rows", "scattered")] == [1410, [7]]
    assert vault.run("verify", "--level", "rows")["findings"] == []
    vault.run("export", "--day", str(OLD), "--anew")
    assert ranges(vault.manifest(OLD, 3)) == {1: 1}
    vault.run("verify", "--level", "rows")
    vault.assert_restored(vault.back())
    assert [day["outcome"] for day in vault.run("expire", "--older-than", "1d")["days"]] == ["dropped"]


@pytest.mark.usefixtures("few")
def test_exporting_anew_never_replaces_scattered_rows_that_the_store_has_not(vault):
    vault.add(OLD, client=7, count=400, step=2)
    vault.run("export")
    with closing(vault.open()) as store:
        store.query(f"ALTER TABLE {vault.database}.telemetry DROP PARTITION '{OLD}'")
    vault.add(OLD, client=7, first=10_001, count=400, step=2, note=False)  # as many, and other ones
    assert "nothing was changed" in vault.run("export", "--day", str(OLD), "--anew", code=1)["stderr"]
    vault.assert_restored(vault.back())
