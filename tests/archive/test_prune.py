"""What is removed from the archive, and what never is; the numbers are those of the archive's contract."""

from __future__ import annotations

import pytest
from skywave_archive import verify
from support.vault import Vault, days_ago

OLD, MID, NEW = days_ago(3), days_ago(2), days_ago(1)


def restored(vault, days=None):
    name = f"{vault.database}_back"
    vault.run("restore", "--into", f"clickhouse://127.0.0.1:{vault.settings().port}/{name}")
    vault.assert_restored(vault.open(database=name), days=days)


@pytest.fixture
def generations(vault):
    """OLD was replaced twice; MID got an additional file; NEW is as it was."""
    for n, day in enumerate((OLD, MID, NEW)):
        vault.add(day, first=1 + 10_000 * n)
    vault.run("export")
    for received in (7, 8):
        vault.add(OLD, first=1, count=10, received=received)
        vault.run("export")
    vault.add(MID, first=15_001)
    vault.run("export")
    assert [d["generations"] for d in vault.run("list")["days"]] == [3, 2, 1]
    return vault


def test_33_prune_waits_for_an_export_and_confuses_no_verification(generations, crasher, monkeypatch):
    vault = generations
    pid = crasher.stop_at("export", "--day", str(NEW), "--config", str(vault.path), step=9)
    assert pid is not None
    assert "locked by" in vault.run("prune", "--generations", "1", "--confirm", code=75)["stderr"]
    assert crasher.resume(pid) == 0
    check_bytes = verify.check_bytes
    pruned = []

    def pruning(target, path, file):
        if not pruned:
            pruned.append(vault.run("prune", "--delete-data-before", str(NEW), "--confirm"))
        return check_bytes(target, path, file)

    monkeypatch.setattr(verify, "check_bytes", pruning)
    result = vault.run("verify")
    assert pruned and result["findings"] == []
    assert [d["day"] for d in vault.run("list")["days"]] == [str(NEW)]
    restored(vault, days=(NEW,))


@pytest.mark.parametrize("arguments", [("--generations", "1"), ("--delete-data-before", str(MID))])
def test_34_a_prune_killed_at_any_step_is_finished_by_the_next_command(generations, crasher, arguments):
    vault = generations
    whole_days = arguments[0] != "--generations"
    vault.run("verify")
    deaths = 0
    for step in range(1, 200):
        when = ("before", "after", "middle")[step % 3]
        code = crasher.run("prune", *arguments, "--confirm", "--config", str(vault.path), step=step, when=when)
        # At any moment every day is good or gone, never half.
        listed = vault.run("list")["days"]
        if code is not None:
            break
        deaths += 1
        assert {d["day"] for d in listed if d["status"] == "sealed"} >= {str(MID), str(NEW)} or not whole_days
    assert code == 0 and deaths > 5
    assert vault.run("verify", "--level", "rows")["findings"] == []
    listed = {d["day"]: d["generations"] for d in vault.run("list")["days"] if d["table"] == "telemetry"}
    assert listed == ({str(MID): 2, str(NEW): 1} if whole_days else {str(OLD): 1, str(MID): 1, str(NEW): 1})
    assert not whole_days or not (vault.archive / "telemetry" / f"day={OLD}").exists()
    restored(vault, days=(MID, NEW) if whole_days else None)


def test_35_generations_removes_what_was_superseded_and_nothing_else(generations):
    vault = generations
    before = {path.name for path in vault.archive.rglob("*.parquet")}
    current = {file["name"] for day, n in ((OLD, 3), (MID, 2), (NEW, 1)) for file in vault.manifest(day, n)["files"]}
    plan = vault.run("prune", "--generations", "1", code=1)
    assert all("not verified" in item["refused"] for item in plan["days"] if item["files"])
    vault.run("verify")
    vault.run("prune", "--generations", "1")
    assert not plan["confirmed"] and before == {path.name for path in vault.archive.rglob("*.parquet")}
    vault.run("prune", "--generations", "2", "--confirm")
    vault.run("prune", "--generations", "1", "--confirm")
    live = {p.name for p in vault.archive.rglob("*.parquet") if "_trash" not in p.parts}
    assert live == current
    # Trash first: what was removed can still be fetched back, until its time is over.
    assert {p.name for p in (vault.archive / "_trash").rglob("*.parquet")} == before - current
    vault.configure("trash_days = 0")
    vault.run("prune", "--generations", "1", "--confirm")
    assert list((vault.archive / "_trash").iterdir()) == []
    assert vault.run("verify", "--level", "rows")["findings"] == []
    restored(vault)


@pytest.mark.parametrize(
    "arguments",
    [
        (), ("--confirm",), ("--generations", "0"), ("--generations", ""), ("--generations", "-1"), ("--generations", "all"),
        ("--delete-data-before", ""), ("--delete-data-before", "2026-13-01"), ("--delete-data-before", "20d"),
        ("--delete-data-before", "2999-01-01"), ("--generations", "1", "--delete-data-before", "2020-01-01"),
        ("--all",),
    ],
)  # fmt: skip
def test_35_empty_or_mistyped_arguments_refuse(generations, arguments):
    before = sorted(generations.archive.rglob("*"))
    generations.run("prune", *arguments, "--confirm", code=2)
    assert [p for p in before if "_locks" not in p.parts] == [
        p for p in sorted(generations.archive.rglob("*")) if "_locks" not in p.parts
    ]


def test_36_the_last_copy_of_a_day_goes_only_by_its_name(generations):
    vault = generations
    vault.run("verify", "--level", "rows")
    vault.drop(OLD)
    result = vault.run("prune", "--delete-data-before", str(NEW), "--confirm", code=1)
    assert [(d["day"], bool(d["refused"])) for d in result["days"]] == [(str(OLD), True), (str(MID), False)]
    assert "last verified copy" in result["days"][0]["refused"] and f"--day {OLD}" in result["days"][0]["refused"]
    restored(vault, days=(OLD, NEW))
    vault.run("prune", "--delete-data-before", str(NEW), "--day", str(OLD), "--confirm")
    assert [d["day"] for d in vault.run("list")["days"]] == [str(NEW)]


def test_36_with_the_store_down_every_day_counts_as_the_last_copy(own_clickhouse, database):
    vault = Vault({"1": f"port = {own_clickhouse.port}"}, database, "")
    for n, day in enumerate((OLD, NEW)):
        vault.add(day, first=1 + n * 5000)
    vault.run("export")
    own_clickhouse.kill()
    result = vault.run("prune", "--delete-data-before", str(NEW), "--confirm", code=1)
    assert [bool(day["refused"]) for day in result["days"]] == [True, False]  # the second day is an empty one
    assert len(vault.files(OLD)) == 1
    vault.remove()


def test_one_row_in_the_store_is_not_the_day(vault):
    vault.add(MID)
    vault.run("export")
    vault.drop(MID)
    vault.add(MID, first=1, count=1)
    assert vault.run("prune", "--delete-data-before", str(NEW), "--confirm", code=1)["days"][0]["refused"]
    restored(vault)


def test_what_was_pruned_does_not_come_back_by_itself(vault):
    for n, day in enumerate((days_ago(4), MID, NEW)):
        vault.add(day, first=1 + 5000 * n)
    vault.run("export")
    vault.run("prune", "--delete-data-before", str(NEW), "--confirm")
    assert vault.outcomes(vault.run("export")) == []
    listed = vault.run("list")
    assert ([day["day"] for day in listed["days"]], listed["not_archived"]) == ([str(NEW)], [])
    vault.run("export", "--day", str(MID))
    assert [day["day"] for day in vault.run("list")["days"]] == [str(MID), str(NEW)]


def test_pruning_hides_no_day_that_was_never_archived_and_no_late_rows(vault):
    vault.add(days_ago(4))
    vault.add(MID, first=5001)
    vault.run("export", "--day", str(MID))
    vault.run("prune", "--delete-data-before", str(NEW), "--confirm")
    assert vault.run("list")["not_archived"] == [str(days_ago(4))]
    vault.run("export")
    assert [d["day"] for d in vault.run("list")["days"] if d["rows"]] == [str(days_ago(4))]
    vault.add(MID, first=9001, count=10)  # a box came back late
    assert vault.run("list")["not_archived"] == [str(MID)]
    assert vault.outcomes(vault.run("export")) == [(str(MID), "exported")]


def test_a_day_that_was_pruned_and_exported_again_is_not_verified(vault):
    vault.add(MID)
    vault.run("export")
    vault.run("verify", "--level", "rows")
    vault.run("prune", "--delete-data-before", str(NEW), "--confirm")
    vault.add(MID, first=5001)
    vault.run("export", "--day", str(MID))
    assert vault.run("list")["days"][0]["verified"] is None
    assert [i["outcome"] for i in vault.run("expire", "--older-than", "1d", code=1)["days"]] == ["kept"]
