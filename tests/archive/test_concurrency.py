"""Two at once, one after a pause, and pruning; the numbers are those of the archive's contract."""

from __future__ import annotations

import threading
import time

import pytest
from skywave_archive import verify
from support.vault import Vault, days_ago

OLD, MID, NEW = days_ago(3), days_ago(2), days_ago(1)


def restored(vault, clickhouse, days=None):
    name = f"{vault.database}_back"
    vault.run("restore", "--into", f"clickhouse://127.0.0.1:{clickhouse.port}/{name}")
    vault.assert_restored(vault.open(database=name), days=days)


def test_31_of_two_exporters_at_once_one_works_and_the_other_is_told_to_try_later(vault, clickhouse):
    for day in (OLD, MID, NEW):
        vault.add(day, first=1 + 10_000 * day.toordinal() % 99_991, count=5000)
    processes = [vault.popen("export") for _ in range(3)]
    ends = [(*process.communicate(timeout=60), process.returncode) for process in processes]
    codes = sorted(code for _, _, code in ends)
    assert codes[0] == 0 and set(codes) <= {0, 75}, ends
    assert all("locked by" in err for _, err, code in ends if code == 75)
    assert vault.run("verify", "--level", "rows")["good"] == 3
    restored(vault, clickhouse)


@pytest.mark.parametrize("where", ["local", "hdfs"])
def test_32_an_owner_that_comes_back_after_its_lock_was_taken_publishes_nothing(
    where, request, clickhouse, database, crasher
):
    """The owner is stopped before each step of its work; another exports the day meanwhile; then it goes on."""
    target = request.getfixturevalue("hdfs_target") if where == "hdfs" else ""
    vault = Vault({"1": f"port = {clickhouse.port}"}, database, target)
    vault.path.write_text(vault.path.read_text().replace("lock_ttl = 1.0", "lock_ttl = 0.5"))
    ended = stopped = 0
    try:
        for step in range(1, 60, 1 if where == "local" else 7):
            vault.add(NEW, first=1 + 1000 * step)
            pid = crasher.stop_at("export", "--config", str(vault.path), step=step)
            if pid is None:
                ended += 1
                if ended == 2:
                    break
                continue
            stopped += 1
            time.sleep(0.55)  # its last sign of life must be older than the lock's time to live
            if step % 2:
                vault.add(NEW, first=501 + 1000 * step)
            result = vault.run("export", code=None)
            assert result["code"] == 0, result
            generations = [item["generations"] for item in vault.run("list", "--no-store")["days"]]
            assert crasher.resume(pid) in (75, 0)
            # What the late owner did, if anything, was finished before its lock was taken, or refused.
            assert generations == [item["generations"] for item in vault.run("list", "--no-store")["days"]]
            assert vault.run("verify", "--level", "rows")["findings"] == []
        assert stopped >= (15 if where == "local" else 3)
        vault.run("export")
        restored(vault, clickhouse)
    finally:
        vault.remove()


def test_a_lock_whose_owner_is_alive_is_not_taken(vault, crasher):
    vault.add(NEW)
    pid = crasher.stop_at("export", "--config", str(vault.path), step=12)
    assert pid is not None
    lock = next(path for path in (vault.archive / "_locks").iterdir() if path.name[:8].isdigit())
    stop = threading.Event()

    def beat():
        while not stop.wait(0.1):
            lock.touch()

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        assert "locked by" in vault.run("export", code=75)["stderr"]
    finally:
        stop.set()
        thread.join()
    assert crasher.resume(pid) == 0
    assert vault.outcomes(vault.run("export")) == []


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


def test_33_prune_waits_for_an_export_and_confuses_no_verification(generations, clickhouse, crasher, monkeypatch):
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
    restored(vault, clickhouse, days=(NEW,))


@pytest.mark.parametrize("arguments", [("--generations", "1"), ("--delete-data-before", str(MID))])
def test_34_a_prune_killed_at_any_step_is_finished_by_the_next_command(generations, clickhouse, crasher, arguments):
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
    restored(vault, clickhouse, days=(MID, NEW) if whole_days else None)


def test_35_generations_removes_what_was_superseded_and_nothing_else(generations, clickhouse):
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
    restored(vault, clickhouse)


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


def test_36_the_last_copy_of_a_day_goes_only_by_its_name(generations, clickhouse):
    vault = generations
    vault.run("verify", "--level", "rows")
    store = vault.open()
    store.query(f"ALTER TABLE {vault.database}.telemetry DROP PARTITION '{OLD}'")
    store.close()
    result = vault.run("prune", "--delete-data-before", str(NEW), "--confirm", code=1)
    assert [(d["day"], bool(d["refused"])) for d in result["days"]] == [(str(OLD), True), (str(MID), False)]
    assert "last verified copy" in result["days"][0]["refused"] and f"--day {OLD}" in result["days"][0]["refused"]
    restored(vault, clickhouse, days=(OLD, NEW))
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


def test_37_three_missed_nights_are_exported_oldest_first(vault, clickhouse):
    for n, day in enumerate((OLD, MID, NEW)):
        vault.add(day, first=1 + 10_000 * n)
    dry = vault.run("export", "--dry-run")
    assert [item["day"] for item in dry["days"]] == [str(OLD), str(MID), str(NEW)]
    assert not vault.files(OLD)
    listed = vault.run("list")
    assert listed["not_archived"] == [str(OLD), str(MID), str(NEW)]
    result = vault.run("export")
    assert vault.outcomes(result) == [(str(day), "exported") for day in (OLD, MID, NEW)]
    assert vault.run("list")["not_archived"] == []
    restored(vault, clickhouse)
