"""A day is dropped from the store only when the archive provably has all of it."""

from __future__ import annotations

from contextlib import closing

import pytest
from skywave_archive.source import SourceShard
from support.vault import day_start, days_ago

from skywave.formats.messages import Produced
from skywave.store.audit import audit
from skywave.store.columns import Probe
from skywave.store.store import Store

DAYS = (days_ago(3), days_ago(2), days_ago(1))
OLD, DAY = DAYS[1:]


@pytest.mark.every_engine
def test_expire_drops_a_day_only_when_the_archive_provably_has_it(archived):
    with closing(archived.open()) as store:
        store.record_streams([(client, Produced(client * 11, 3000, 0), 0) for client in range(1, 6)], 1)
        before = audit(store)

    def outcomes(*options, code=1):
        return [
            (d["outcome"], d["why"]) for d in archived.run("expire", "--older-than", "1d", *options, code=code)["days"]
        ]

    assert all(outcome == "kept" and "verify" in why for outcome, why in outcomes())
    archived.run("verify", "--level", "checksum")
    assert all(outcome == "kept" for outcome, _ in outcomes())
    archived.run("verify", "--level", "rows", "--to", str(DAYS[1]))
    archived.add(DAYS[0], first=9001, client=1, stream=11, count=5)  # late rows, not archived yet
    assert [outcome for outcome, _ in outcomes("--dry-run")] == ["kept", "ready"]
    assert [outcome for outcome, _ in outcomes()] == ["kept", "dropped"]
    archived.run("export")
    assert [outcome for outcome, _ in outcomes()] == ["kept"]  # the new generation is not verified
    archived.run("verify", "--level", "rows", "--day", str(DAYS[0]))
    file = archived.files(DAYS[0])[0]
    content = file.read_bytes()
    file.unlink()
    assert outcomes() == [("kept", "its archive is damaged: missing")]
    file.write_bytes(content)
    assert [outcome for outcome, _ in outcomes(code=0)] == ["dropped"]
    with closing(archived.open()) as store:
        assert [
            str(row[0]) for row in store.query(f"SELECT DISTINCT toString(day) FROM {store.database}.telemetry")
        ] == [f"b'{DAYS[2]}'"]
        after = audit(store)
        assert after.total("missing") == before.total("missing") and after.total("expired") == 3000
        # A batch of a dropped day that comes again after a year is known.
        probe = Probe(3, 33, 101, "height", day_start(DAYS[0]), None)
        assert store.existing([probe]) == {(3, 33, 101)}
    # What has expired stays whole in the archive, whatever the nights bring.
    assert archived.outcomes(archived.run("export")) == []
    archived.run("export", "--day", str(DAYS[1]))
    name = f"{archived.database}_all"
    archived.run("restore", "--into", f"clickhouse://127.0.0.1:{archived.settings().port}/{name}")
    archived.assert_restored(archived.open(database=name))


def test_expire_keeps_days_that_are_not_archived_or_not_sealed_or_younger(vault):
    for n, day in enumerate(DAYS):
        vault.add(day, first=1 + 1000 * n)
    result = vault.run("expire", "--older-than", "2d", code=1)
    assert [(d["day"], d["outcome"]) for d in result["days"]] == [(str(DAYS[0]), "kept")]
    assert "not archived" in result["days"][0]["why"]
    for age in ("0d", "90", "-1d", "xd", "d"):
        vault.run("expire", "--older-than", age, code=2)


@pytest.mark.parametrize("late", ["before", "after"])
def test_expire_keeps_a_day_that_gets_rows_at_the_last_moment(vault, monkeypatch, late):
    vault.add(OLD)
    vault.run("export")
    vault.run("verify", "--level", "rows")
    original, calls = SourceShard.count_digest, []

    def counting(self, table, day, clients=None):
        calls.append(1)
        if len(calls) == 2 and late == "before":  # the comparison was made, the drop comes next
            vault.add(OLD, first=9001, count=50)
        return original(self, table, day, clients)

    monkeypatch.setattr(SourceShard, "count_digest", counting)
    if late == "after":  # the ranges are written, the last look comes next
        insert_rows = Store.insert_rows

        def inserting(self, table, names, rows):
            insert_rows(self, table, names, rows)
            if table == "expired":
                vault.add(OLD, first=9001, count=50)

        monkeypatch.setattr(Store, "insert_rows", inserting)
    result = vault.run("expire", "--older-than", "1d", code=1)
    assert [item["outcome"] for item in result["days"]] == ["kept"]
    with closing(vault.open()) as store:
        assert len(vault.stored(store)[OLD]) == 1050


def test_expire_ended_between_two_shards_is_completed(two_shards, monkeypatch):
    vault, _ = two_shards
    vault.add(OLD, client=2, shard="a")
    vault.add(OLD, client=1, shard="b")
    vault.run("export")
    vault.run("verify", "--level", "rows")
    insert_rows, begun = Store.insert_rows, []

    def dying(self, table, names, rows):
        if table == "expired":
            begun.append(self)
            if len(begun) == 2:  # shard a was dropped, and b comes next
                raise KeyboardInterrupt
        insert_rows(self, table, names, rows)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "insert_rows", dying)
        vault.run("expire", "--older-than", "1d", code=75)
    vault.run("export")
    # Half of the day is nowhere else now.
    assert vault.run("prune", "--delete-data-before", str(DAY), "--confirm", code=1)["days"][0]["refused"]
    assert [i["outcome"] for i in vault.run("expire", "--older-than", "1d")["days"]] == ["dropped"]
    vault.assert_restored(vault.back())


def test_late_rows_of_an_expired_day_expire_as_well(two_shards):
    vault, _ = two_shards
    vault.add(OLD, client=2, shard="a")
    vault.add(OLD, client=1, shard="b")
    for late in (False, True):
        if late:
            vault.add(OLD, client=2, first=7001, count=10, shard="a")
        vault.run("export")
        vault.run("verify", "--level", "rows")
        assert [d["outcome"] for d in vault.run("expire", "--older-than", "1d")["days"]] == ["dropped"]
    assert vault.manifest(OLD, 2)["rows"] == 2010
    vault.assert_restored(vault.back())


def test_a_day_expires_after_a_shard_was_added(two_shards):
    vault, _ = two_shards
    added = vault.stores.pop("b")
    vault.configure()
    vault.add(OLD, shard="a")
    vault.run("export")
    vault.run("verify", "--level", "rows")
    vault.stores["b"] = added
    vault.configure()
    assert [d["outcome"] for d in vault.run("expire", "--older-than", "1d")["days"]] == ["dropped"]
