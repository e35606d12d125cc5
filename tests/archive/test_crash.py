"""The process is killed at every step of publishing and of restoring; the oracle is the ledger of what was inserted."""

from __future__ import annotations

import pyarrow.parquet as pq
import pytest
from skywave_archive.errors import TargetUnavailable
from skywave_archive.targets.local import LocalTarget
from support.vault import Vault, bits, days_ago

DAY = days_ago(1)


def visible(vault) -> set[tuple]:
    """What a reader of the day's folder sees, without any code of ours; fails if a row is there twice."""
    rows: list[tuple] = []
    for path in vault.files(DAY):
        table = pq.read_table(path, partitioning=None).to_pydict()
        rows += zip(*(table[name] for name in ("client_id", "stream", "seq", "data_value", "received_at")), strict=True)
    plain = {(client, stream, seq, bits(value), received) for client, stream, seq, value, received in rows}
    assert len({row[:3] for row in plain}) == len(rows), "a reader sees a reading twice"
    return plain


def expected(vault) -> set[tuple]:
    return {(row[0], row[3], row[4], row[5], row[6]) for row in vault.ledger[DAY].values()}


def crash_everywhere(vault, crasher, may_be_missing: bool, when: str) -> None:
    """Kills the export at each step, until one run ends; what readers see is always the day before or the day after."""
    before = visible(vault)
    deaths = 0
    states = set()
    for step in range(1, 200):
        code = crasher.run("export", "--config", str(vault.path), step=step, when=when)
        seen = visible(vault)
        states.add(
            "before" if seen == before else "after" if seen == expected(vault) else "missing" if not seen else "half"
        )
        if code is not None:
            break
        deaths += 1
    assert code == 0 and deaths >= 10
    assert states <= {"before", "after"} | ({"missing"} if may_be_missing else set()), states
    assert visible(vault) == expected(vault)
    assert vault.run("verify", "--level", "rows")["findings"] == []
    assert list((vault.archive / "_staging").iterdir()) == []


@pytest.mark.parametrize("when", ["before", "after", "middle"])
def test_a_new_day_an_additional_file_and_a_replaced_day_survive_a_kill_at_every_step(vault, crasher, when):
    vault.add(DAY, first=1)
    crash_everywhere(vault, crasher, False, when)
    vault.add(DAY, first=2001)
    crash_everywhere(vault, crasher, False, when)
    vault.add(DAY, first=1, count=500, received=9)
    crash_everywhere(vault, crasher, True, when)


@pytest.mark.parametrize("then", ["fail", "middle"])
@pytest.mark.parametrize("died", ["before", "after"])
def test_a_recovery_that_fails_or_dies_as_well_loses_nothing(vault, crasher, died, then):
    """The day is being replaced when the exporter dies; the next run fails at each step of finishing that."""
    vault.add(DAY, first=1)
    vault.run("export")
    received = 6
    for death in range(18, 40, 3):
        received += 1
        vault.add(DAY, first=1, count=300, received=received)
        if crasher.run("export", "--config", str(vault.path), step=death, when=died) is not None:
            break
        for step in range(1, 30):
            code = crasher.run("export", "--config", str(vault.path), step=step, when=then)
            if code == 0:
                break
            assert code in (None, 75), code
        vault.run("export")
        assert visible(vault) == expected(vault)
        assert vault.run("verify", "--level", "rows")["findings"] == []
    assert received > 9


def test_several_files_at_once_survive_a_kill_at_every_step(two_shards, crasher):
    vault, _ = two_shards
    for round_ in range(2):
        vault.add(DAY, first=1 + 1000 * round_, client=2, shard="a")
        vault.add(DAY, first=1 + 1000 * round_, client=1, shard="b")
        crash_everywhere(vault, crasher, round_ > 0, "before")


@pytest.mark.parametrize("replaced", [False, True])
def test_in_hdfs_too(hdfs_vault, crasher, replaced):
    vault = hdfs_vault
    vault.add(DAY, first=1)
    if replaced:
        vault.run("export")
        vault.add(DAY, first=1, count=500, received=9)
    deaths = 0
    for step in range(1, 200, 2):
        code = crasher.run("export", "--config", str(vault.path), step=step, when=("before", "after")[step % 4 == 1])
        if code is not None:
            break
        deaths += 1
    assert code == 0 and deaths >= 8
    assert vault.run("verify", "--level", "rows")["findings"] == []
    vault.assert_restored(vault.back())


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("merge", [False, True])
def test_38_a_restore_killed_at_every_step_and_run_again_doubles_nothing(vault, clickhouse, crasher, when, merge):
    for n, day in enumerate((days_ago(2), DAY)):
        vault.add(day, first=1 + 5000 * n)
    vault.run("export")
    vault.add(DAY, first=9001)
    vault.run("export")
    name = f"{vault.database}_back"
    target = Vault(vault.stores, name, "")
    url = f"clickhouse://127.0.0.1:{clickhouse.port}/{name}"
    options = []
    if merge:
        target.add(DAY, first=9501, count=900)  # half of it is archived
        vault.ledger[DAY] |= {key: row for key, row in target.ledger[DAY].items() if key not in vault.ledger[DAY]}
        options = ["--merge"]
    deaths = 0
    for step in range(1, 200):
        code = crasher.run(
            "restore", "--into", url, "--config", str(vault.path), *options, step=step, when=when, what="store"
        )
        if code is not None:
            break
        deaths += 1
    assert code == 0 and deaths >= 15
    vault.assert_restored(vault.open(database=name))
    store = vault.open(database=name)
    left = store.query(f"SELECT name FROM system.tables WHERE database = '{name}' AND name LIKE '%restoring%'")
    store.close()
    assert left == []
    target.remove()


@pytest.mark.parametrize("command", ["verify", "restore", "drill"])
def test_readers_finish_an_interrupted_publish_first(vault, crasher, command):
    """The exporter died while the day was set aside; the store is lost as well."""
    vault.add(DAY)
    vault.run("export")
    for step in range(15, 40):
        vault.add(DAY, first=1, count=300, received=step)
        assert crasher.run("export", "--config", str(vault.path), step=step) is None
        if not vault.files(DAY):
            break
        vault.run("export")
    assert not vault.files(DAY), "the moment between aside and into place"
    if command == "restore":
        store = vault.open()
        store.query(f"ALTER TABLE {vault.database}.telemetry DROP PARTITION '{DAY}'")
        store.close()
        vault.assert_restored(vault.back())
    else:
        assert vault.run(command)
        assert len(vault.files(DAY)) == 1


def test_a_state_file_that_could_not_be_written_blocks_nobody(vault, monkeypatch):
    """The rename of _state.json fails once; the same run goes on, and so do all later commands."""
    vault.add(DAY)
    vault.reject(DAY, 1)
    vault.run("export")
    vault.add(DAY, first=5001)
    vault.reject(DAY, 2)
    rename, failed = LocalTarget.rename, []

    def failing(self, source, destination):
        if destination == "_state.json" and not failed:
            failed.append(source)
            raise TargetUnavailable("injected")
        rename(self, source, destination)

    with monkeypatch.context() as patch:
        patch.setattr(LocalTarget, "rename", failing)
        vault.run("export", code=None)
    assert failed
    for command in (
        ("export",),
        ("verify", "--level", "rows"),
        ("list",),
        ("prune", "--generations", "1", "--confirm"),
    ):
        vault.run(*command)
    assert list((vault.archive / "_staging").iterdir()) == []
    vault.assert_restored(vault.back())
