"""``export --anew``: what it may replace, and what it never does."""

from __future__ import annotations

import pytest
from support.vault import days_ago

DAY, OLD = days_ago(1), days_ago(2)


def test_a_day_whose_only_file_was_deleted_can_be_exported_anew(vault):
    vault.add(DAY)
    vault.run("export")
    vault.files(DAY)[0].unlink()
    vault.run("export", "--day", str(DAY), "--anew")
    assert vault.run("verify", "--level", "rows")["good"] == 1
    vault.assert_restored(vault.back())


def test_exporting_anew_twice_leaves_alien_files_alone(vault):
    vault.add(DAY)
    vault.run("export")
    alien = vault.archive / "telemetry" / f"day={DAY}" / "_SUCCESS"
    alien.write_text("")
    for _ in range(3):
        vault.run("export", "--day", str(DAY), "--anew")
        assert alien.exists()
    assert vault.run("verify", "--level", "rows")["good"] == 1
    vault.assert_restored(vault.back())


def test_exporting_anew_never_replaces_what_the_store_has_not(vault):
    vault.add(DAY)
    vault.add(OLD, first=5001)
    vault.run("export")
    vault.drop(DAY)
    assert "nothing was changed" in vault.run("export", "--day", str(DAY), "--anew", code=1)["stderr"]
    vault.manifest_path(DAY).write_text("{")
    vault.run("export", "--day", str(DAY), "--anew", code=1)
    assert len(vault.files(DAY)) == 1


def test_a_day_whose_manifest_is_gone_is_not_replaced_by_nothing_or_less(vault):
    vault.add(DAY)
    vault.add(OLD, first=5001)
    vault.run("export")
    vault.manifest_path(DAY).unlink()
    vault.drop(DAY)
    assert "nothing was changed" in vault.run("export", "--day", str(DAY), "--anew", code=1)["stderr"]
    vault.add(DAY, first=9001, count=3, note=False)
    vault.run("export", "--day", str(DAY), "--anew", code=1)
    assert len(vault.files(DAY)) == 1
    assert not vault.manifest_path(DAY).exists()


def test_an_older_generation_counts_where_the_newest_is_broken(vault):
    vault.add(DAY)
    vault.run("export")
    vault.add(DAY, first=2001, count=10)
    vault.run("export")
    vault.manifest_path(DAY, 2).write_text("{")
    vault.drop(DAY)
    vault.add(DAY, first=9001, count=2000, note=False)  # more rows than the archive has, and other ones
    vault.run("export", "--day", str(DAY), "--anew", code=1)
    assert len(vault.files(DAY)) == 2


def test_files_whose_newest_manifest_is_missing_make_the_day_broken(vault):
    vault.add(DAY)
    vault.run("export")
    vault.add(DAY, first=2001, count=10)
    vault.run("export")
    vault.manifest_path(DAY, 2).unlink()
    (finding,) = vault.run("verify", "--level", "list", code=1)["findings"]
    assert (finding["problem"], finding["alien"]) == ("the manifest of its generation is missing", False)
    restored = vault.run(
        "restore", "--into", f"clickhouse://127.0.0.1:{vault.settings().port}/{vault.database}_less", code=1
    )
    assert "-gen0002-" in restored["stderr"]
    assert "--anew" in vault.run("export", "--day", str(DAY), code=1)["stderr"]
    vault.run("export", "--day", str(DAY), "--anew")
    assert vault.run("verify", "--level", "rows")["good"] == 1
    vault.assert_restored(vault.back())


@pytest.mark.parametrize("command", [(), ("--anew",)])
def test_rows_without_numbers_are_not_replaced_by_as_many_other_ones(vault, monkeypatch, command):
    monkeypatch.setattr("skywave_archive.export.MAX_FILES", 2)
    today = days_ago(0)
    for n in range(3):
        vault.add(today, first=1 + 100 * n, count=100, client=7, stream=0)
        vault.run("export", "--open-day")
    vault.drop(today)
    vault.add(today, first=5001, count=400, client=7, stream=0)
    monkeypatch.setattr("skywave_archive.export.utc_today", lambda: days_ago(-1))
    monkeypatch.setattr("skywave_archive.cli.utc_today", lambda: days_ago(-1))
    vault.run("export", "--day", str(today), *command, code=1 if command else 0)
    assert len(vault.files(today)) == (3 if command else 4)
    if command:
        for number in range(5001, 5401):  # they are in the store alone
            for key in [row for row in vault.ledger[today] if row[4] == number]:
                del vault.ledger[today][key]
    vault.assert_restored(vault.back())
