"""What is wrong with one day, one file or one number stops no other day."""

from __future__ import annotations

import json
from contextlib import closing

import pytest
from skywave_archive.errors import TargetUnavailable
from skywave_archive.targets.local import LocalTarget
from support.vault import Vault, days_ago

OLD, BAD, DAY = days_ago(3), days_ago(2), days_ago(1)


def restored(vault, *options: str, code: int = 0):
    name = f"{vault.database}_back"
    into = f"clickhouse://127.0.0.1:{vault.settings().port}/{name}"
    return vault.run("restore", "--into", into, *options, code=code), vault.open(database=name)


@pytest.fixture
def unreadable(monkeypatch):
    """Makes a file of a local archive unreadable, as a lost block does in HDFS."""
    lost: set[str] = set()
    read = LocalTarget.read

    def reading(self, path, offset=0, length=None):
        if any(name in path for name in lost):
            raise TargetUnavailable(f"{path}: no block is left")
        return read(self, path, offset, length)

    monkeypatch.setattr(LocalTarget, "read", reading)
    return lost


def test_a_day_that_the_store_cannot_read_stops_no_other(own_clickhouse, database):
    vault = Vault({"1": f"port = {own_clickhouse.port}"}, database, "")
    for n, day in enumerate((OLD, BAD, DAY)):
        vault.add(day, first=1 + 5000 * n)
    [column] = (own_clickhouse.folder / "data" / "data" / database / "telemetry").glob(f"{BAD:%Y%m%d}_*/data_value.bin")
    content = bytearray(column.read_bytes())
    content[len(content) // 2] ^= 1
    column.write_bytes(content)
    result = vault.run("export", code=75)
    assert vault.outcomes(result) == [(str(OLD), "exported"), (str(BAD), "failed"), (str(DAY), "exported")]
    assert str(BAD) in result["stderr"]
    vault.run("verify", "--level", "rows")
    expired = vault.run("expire", "--older-than", "1d", code=1)["days"]
    assert [(day["day"], day["outcome"]) for day in expired] == [(str(OLD), "dropped"), (str(BAD), "kept")]
    vault.remove()


def test_a_day_that_a_later_version_exported_stops_no_other(vault):
    vault.add(BAD)
    vault.run("export")
    manifest = json.loads(vault.manifest_path(BAD).read_text())
    vault.manifest_path(BAD).write_text(json.dumps({**manifest, "format": 99}))
    vault.add(BAD, first=5001, count=10)
    vault.add(DAY, first=9001)
    result = vault.run("export", code=2)
    assert vault.outcomes(result) == [(str(BAD), "failed"), (str(DAY), "added")]
    assert "format 99" in result["stderr"]


def test_a_file_that_cannot_be_read_stops_neither_verify_nor_restore(vault, unreadable):
    for n, day in enumerate((OLD, BAD, DAY)):
        vault.add(day, first=1 + 5000 * n)
    vault.run("export")
    unreadable.add(vault.files(BAD)[0].name)
    for level in ("checksum", "rows"):
        result = vault.run("verify", "--level", level, code=1)
        assert result["good"] == 2 and "no block is left" in result["findings"][0]["problem"]
    result, store = restored(vault, code=1)
    assert [day["outcome"] for day in result["days"]] == ["restored", "failed", "restored"]
    vault.assert_restored(store, days=(OLD, DAY))


def test_a_manifest_that_cannot_be_read_makes_its_day_broken_and_no_other(vault, unreadable):
    for n, day in enumerate((OLD, BAD, DAY)):
        vault.add(day, first=1 + 5000 * n)
    vault.run("export")
    unreadable.add(f"{BAD}.gen-0001.json")
    assert [day["status"] for day in vault.run("list", code=1)["days"]] == ["sealed", "broken", "sealed"]
    vault.add(DAY, first=20_001, count=10)
    vault.run("export")
    _, store = restored(vault, code=1)
    vault.assert_restored(store, days=(OLD, DAY))


def test_notes_that_cannot_be_read_are_made_again(vault, unreadable):
    vault.add(DAY)
    vault.run("export")
    unreadable.add("_state.json")
    assert vault.outcomes(vault.run("export")) == [(str(DAY), "unchanged")]
    vault.run("list")


def test_an_archive_that_is_away_is_no_damaged_day(vault, monkeypatch):
    vault.add(DAY)
    vault.run("export")

    def away(*_):
        raise TargetUnavailable("nobody answers")

    monkeypatch.setattr(LocalTarget, "read", away)
    monkeypatch.setattr(LocalTarget, "status", away)
    for command in ("export", "verify", "list"):
        assert "nobody answers" in vault.run(command, code=75)["stderr"]


def test_rows_of_impossible_days_stop_nothing_and_make_no_hundreds_of_manifests(vault):
    """No server writes them; somebody's INSERT does."""
    with closing(vault.open()) as store:
        for number, day in enumerate(("toDate(0)", "toDate(9000)", "toDate(49000)")):
            store.query(
                f"INSERT INTO {vault.database}.telemetry (client_id, stream, seq, created_at, data_key, data_value,"
                f" received_at, day) SELECT toUInt32(9), toUInt64(9), toUInt64({number + 1}), toInt64(0), 'k', toFloat64(1),"
                f" toInt64(0), {day}"
            )
    vault.add(DAY)
    assert vault.outcomes(vault.run("export")) == [("1994-08-23", "exported"), (str(DAY), "exported")]
    assert vault.run("export")["days"] == []
    assert vault.run("list")["not_archived"] == []
    vault.run("verify", "--level", "rows")
    vault.run("expire", "--older-than", "1d")
