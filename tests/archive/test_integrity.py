"""What happens to files after they were published; the numbers are those of the archive's contract."""

from __future__ import annotations

import json

import pytest
from skywave_archive.datafile import read_rows
from skywave_archive.errors import DamagedFile
from skywave_archive.manifest import FORMAT, Manifest
from skywave_archive.settings import Target
from skywave_archive.tables import TELEMETRY
from skywave_archive.targets.local import LocalTarget
from support.vault import days_ago

OLD, MID, NEW = days_ago(3), days_ago(2), days_ago(1)


@pytest.fixture
def filled(vault):
    """Three days; the middle one in two files."""
    for n, day in enumerate((OLD, MID, NEW)):
        vault.add(day, first=1 + 1000 * n)
    vault.run("export")
    vault.add(MID, first=5001)
    vault.run("export")
    assert len(vault.files(MID)) == 2
    return vault


def url(vault, clickhouse, database: str = "back") -> str:
    return f"clickhouse://127.0.0.1:{clickhouse.port}/{vault.database}_{database}"


def flip(path, at: int | None = None) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if at is None else at] ^= 0x10
    path.write_bytes(content)


@pytest.mark.parametrize("level", ["checksum", "rows"])
def test_16_one_flipped_bit_is_named_and_that_file_refused(filled, clickhouse, level):
    bad, good = filled.files(MID)
    flip(bad)
    result = filled.run("verify", "--level", level, code=1)
    assert [(f["day"], f["level"], f["file"]) for f in result["findings"]] == [(str(MID), level, bad.name)]
    assert (result["good"], result["days"]) == (2, 3)
    restored = filled.run("restore", "--into", url(filled, clickhouse), code=1)
    assert bad.name in restored["stderr"]
    assert [outcome for _, outcome in filled.outcomes(restored)] == ["restored", "failed", "restored"]
    # What is not in the damaged file is all there.
    rows = {f["name"]: f["rows"] for f in filled.manifest(MID, 2)["files"]}
    store = filled.open(database=f"{filled.database}_back")
    found = filled.stored(store)
    store.close()
    assert len(found[MID]) == rows[good.name]
    assert all(filled.ledger[MID][key] == row for key, row in found[MID].items())
    # When the file is mended, --merge brings the rest.
    flip(bad)
    filled.run("verify", "--level", level)
    assert "--merge" in filled.run("restore", "--into", url(filled, clickhouse), code=1)["stderr"]
    filled.run("restore", "--into", url(filled, clickhouse), "--merge")
    filled.assert_restored(filled.open(database=f"{filled.database}_back"))


def test_16_a_flipped_bit_anywhere_is_found_at_level_rows(filled):
    path = filled.files(OLD)[0]
    size = path.stat().st_size
    for at in [0, 3, 4, 40, *range(100, size, size // 40), size - 9, size - 8, size - 5, size - 1]:
        flip(path, at)
        result = filled.run("verify", "--level", "rows", "--day", str(OLD), code=1)
        assert [f["file"] for f in result["findings"]] == [path.name], at
        flip(path, at)
    filled.run("verify", "--level", "rows")


@pytest.mark.parametrize("damage", ["missing", "truncated", "changed", "empty"])
def test_17_a_day_with_a_broken_manifest_is_never_silently_restored_or_pruned(filled, clickhouse, damage):
    path = filled.manifest_path(OLD)
    whole = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        changed = whole.replace(b'"sealed": true', b'"sealed": false')
        path.write_bytes({"truncated": whole[: len(whole) // 2], "changed": changed, "empty": b""}[damage])
    listed = filled.run("list", code=1)
    assert [d["day"] for d in listed["days"] if d["status"] == "broken"] == [str(OLD)]
    assert filled.run("verify", "--level", "list", code=1)["good"] == 2
    restored = filled.run("restore", "--into", url(filled, clickhouse), code=None)
    days = dict(filled.outcomes(restored))
    if damage == "missing":
        assert restored["code"] == 1 and str(OLD) in restored["stderr"]
    else:
        assert days[str(OLD)] == "failed" and restored["code"] == 1
    filled.assert_restored(filled.open(database=f"{filled.database}_back"), days=(MID, NEW))
    pruned = filled.run("prune", "--delete-data-before", str(MID), "--day", str(OLD), "--confirm", code=None)
    assert all(item["refused"] for item in pruned["days"])
    assert len(filled.files(OLD)) == 1
    # While the store holds the day, it can be exported anew; the old files are put aside.
    assert "broken" in filled.run("export", "--day", str(OLD), code=1)["stderr"] or damage == "missing"
    filled.run("export", "--day", str(OLD), "--anew")
    assert filled.run("verify", "--level", "rows")["good"] == 3
    filled.run("restore", "--into", url(filled, clickhouse))
    filled.assert_restored(filled.open(database=f"{filled.database}_back"))


def test_18_an_alien_file_is_reported_and_left_alone(filled, clickhouse):
    alien = filled.archive / "telemetry" / f"day={MID}" / "notes.txt"
    alien.write_text("mine")
    result = filled.run("verify", "--level", "rows")
    assert [(f["file"], f["alien"]) for f in result["findings"]] == [("notes.txt", True)]
    filled.add(MID, first=9001)
    filled.run("export")
    filled.run("verify")
    filled.run("prune", "--generations", "1", "--confirm")
    assert alien.read_text() == "mine"
    filled.run("restore", "--into", url(filled, clickhouse))
    filled.assert_restored(filled.open(database=f"{filled.database}_back"))


def test_18_an_alien_file_stays_when_several_files_are_added_or_all_replaced(two_shards, clickhouse):
    vault, _ = two_shards
    for round_, received in enumerate((1, 1, 2)):
        first = 1 if round_ == 2 else 1 + 1000 * round_
        vault.add(MID, first=first, client=2, shard="a", received=received)
        vault.add(MID, first=first, client=1, shard="b", received=received)
        result = vault.run("export")
        assert vault.outcomes(result)[0] == (str(MID), ("exported", "added", "replaced")[round_])
        alien = vault.archive / "telemetry" / f"day={MID}" / f"notes{round_}.txt"
        alien.write_text("mine")
    names = [path.name for path in vault.files(MID)]
    assert len(names) == 5 and names[-3:] == ["notes0.txt", "notes1.txt", "notes2.txt"]
    assert vault.run("verify", "--level", "rows")["good"] == 2
    vault.run("restore", "--into", url(vault, clickhouse))
    vault.assert_restored(vault.open("a", f"{vault.database}_back"))


def test_19_a_file_deleted_by_hand_is_missed_and_the_rest_restored(filled, clickhouse):
    gone = filled.files(MID)[0]
    gone.unlink()
    result = filled.run("verify", "--level", "list", code=1)
    assert [(f["file"], f["problem"]) for f in result["findings"]] == [(gone.name, "missing")]
    restored = filled.run("restore", "--into", url(filled, clickhouse), code=1)
    assert [outcome for _, outcome in filled.outcomes(restored)] == ["restored", "failed", "restored"]


def test_43_a_newer_manifest_version_is_refused_and_says_what_it_needs(filled, clickhouse):
    path = filled.manifest_path(OLD)
    body = json.loads(path.read_text())
    path.write_text(json.dumps({**body, "format": FORMAT + 1, "skywave": "9.1.0"}))
    result = filled.run("restore", "--into", url(filled, clickhouse), code=2)
    assert f"format {FORMAT + 1}" in result["stderr"] and "9.1.0" in result["stderr"]
    assert dict(filled.outcomes(result))[str(OLD)] == "failed"
    filled.assert_restored(filled.open(database=f"{filled.database}_back"), days=(MID, NEW))


def test_damage_in_a_footer_never_reaches_arrow(vault):
    """Arrow aborts the process at some of these; a file whose hash is wrong is not shown to it."""
    vault.add(NEW, count=200)
    vault.run("export")
    path = vault.files(NEW)[0]
    target = LocalTarget(Target(kind="local", path=str(vault.archive)))
    file = Manifest.decode(vault.manifest_path(NEW).read_bytes(), "").files[0]
    content = path.read_bytes()
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    for at in range(footer, len(content), 7):
        for bit in (0, 3, 6):
            damaged = bytearray(content)
            damaged[at] ^= 1 << bit
            path.write_bytes(damaged)
            with pytest.raises(DamagedFile):
                list(read_rows(target, f"telemetry/day={NEW}/{file.name}", TELEMETRY, file))


def test_a_damaged_account_is_found(filled):
    store = filled.open()
    store.record_streams([(1, (7, 100, 0), 0)], 1)
    store.close()
    filled.run("export")
    (file,) = (filled.archive / "accounts").glob("streams.*")
    flip(file)
    assert filled.run("verify", "--level", "list", code=1)["accounts"]
