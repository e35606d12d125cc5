"""Two at once, and one after a pause; the numbers are those of the archive's contract."""

from __future__ import annotations

import threading
import time

import pytest
from skywave_archive.archive import LOCKS
from skywave_archive.errors import Locked
from skywave_archive.settings import Target
from skywave_archive.targets.local import LocalTarget
from skywave_archive.workspace import Workspace
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


def test_a_lock_number_from_the_past_is_given_up(tmp_path, monkeypatch):
    """One that slept after it had looked which locks there are: others have taken and freed later ones since."""
    target = LocalTarget(Target(kind="local", path=str(tmp_path)))
    entries, seen_before = LocalTarget.entries, [[]]

    def listing(self, path):
        return seen_before.pop() if path == LOCKS and seen_before else entries(self, path)

    with Workspace(target, 5):
        pass
    with Workspace(target, 5) as owner:
        monkeypatch.setattr(LocalTarget, "entries", listing)
        with pytest.raises(Locked):
            Workspace(target, 5).__enter__()
        assert not seen_before
        assert [entry.name for entry in target.entries(LOCKS)] == [f"{owner.number:08}"]
        owner.assert_owned()
