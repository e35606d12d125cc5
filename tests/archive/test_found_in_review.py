"""Ways to lose, double or hide data that a review found; each was reproduced before it was mended."""

from __future__ import annotations

import os
from contextlib import closing

import pytest
from skywave_archive import expire
from skywave_archive.archive import LOCKS
from skywave_archive.datafile import read_rows
from skywave_archive.errors import DamagedFile, TargetFull, TargetUnavailable
from skywave_archive.manifest import Manifest
from skywave_archive.restoring import ShardDay
from skywave_archive.settings import Target
from skywave_archive.source import Shard
from skywave_archive.tables import TELEMETRY
from skywave_archive.targets.local import LocalTarget
from skywave_archive.workspace import Workspace
from support.vault import Vault, days_ago

from skywave.store.store import Store

DAY, OLD = days_ago(1), days_ago(2)


def drop(vault, day, shard: str = "1") -> None:
    with closing(vault.open(shard)) as store:
        store.query(f"ALTER TABLE {vault.database}.telemetry DROP PARTITION '{day}'")


def back(vault, name: str = "back"):
    name = f"{vault.database}_{name}"
    vault.run("restore", "--into", f"clickhouse://127.0.0.1:{vault.settings(next(iter(vault.stores))).port}/{name}")
    return vault.open(next(iter(vault.stores)), name)


def test_a_day_whose_only_file_was_deleted_can_be_exported_anew(vault):
    vault.add(DAY)
    vault.run("export")
    vault.files(DAY)[0].unlink()
    vault.run("export", "--day", str(DAY), "--anew")
    assert vault.run("verify", "--level", "rows")["good"] == 1
    vault.assert_restored(back(vault))


def test_exporting_anew_twice_leaves_alien_files_alone(vault):
    vault.add(DAY)
    vault.run("export")
    alien = vault.archive / "telemetry" / f"day={DAY}" / "_SUCCESS"
    alien.write_text("")
    for _ in range(3):
        vault.run("export", "--day", str(DAY), "--anew")
        assert alien.exists()
    assert vault.run("verify", "--level", "rows")["good"] == 1
    vault.assert_restored(back(vault))


def test_exporting_anew_never_replaces_what_the_store_has_not(vault):
    vault.add(DAY)
    vault.add(OLD, first=5001)
    vault.run("export")
    drop(vault, DAY)
    assert "nothing was changed" in vault.run("export", "--day", str(DAY), "--anew", code=1)["stderr"]
    vault.manifest_path(DAY).write_text("{")
    vault.run("export", "--day", str(DAY), "--anew", code=1)
    assert len(vault.files(DAY)) == 1


def test_a_local_rename_cut_between_its_two_calls_can_be_done_again(tmp_path):
    target = LocalTarget(Target(kind="local", path=str(tmp_path)))
    target.create("a", [b"x"])
    os.link(tmp_path / "a", tmp_path / "b")
    target.rename("a", "b")
    assert [entry.name for entry in target.entries("")] == ["b"]


def test_a_listing_survives_entries_that_vanish(tmp_path):
    target = LocalTarget(Target(kind="local", path=str(tmp_path)))
    target.create("a", [b"x"])
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    assert [entry.name for entry in target.entries("")] == ["a", "dangling"]


@pytest.mark.parametrize("late", ["before", "after"])
def test_expire_keeps_a_day_that_gets_rows_at_the_last_moment(vault, monkeypatch, late):
    vault.add(OLD)
    vault.run("export")
    vault.run("verify", "--level", "rows")
    original, calls = Shard.count_digest, []

    def counting(self, table, day, clients=None):
        calls.append(1)
        if len(calls) == 2 and late == "before":  # the comparison was made, the drop comes next
            vault.add(OLD, first=9001, count=50)
        return original(self, table, day, clients)

    monkeypatch.setattr(expire.Shard, "count_digest", counting)
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
    original = expire._drop

    def dying(work, shard, manifest, expected):
        if shard.name == "b":
            raise KeyboardInterrupt
        return original(work, shard, manifest, expected)

    with monkeypatch.context() as patch:
        patch.setattr(expire, "_drop", dying)
        vault.run("expire", "--older-than", "1d", code=75)
    vault.run("export")
    # Half of the day is nowhere else now.
    assert vault.run("prune", "--delete-data-before", str(DAY), "--confirm", code=1)["days"][0]["refused"]
    assert [i["outcome"] for i in vault.run("expire", "--older-than", "1d")["days"]] == ["dropped"]
    vault.assert_restored(back(vault))


def test_one_row_in_the_store_is_not_the_day(vault):
    vault.add(OLD)
    vault.run("export")
    drop(vault, OLD)
    vault.add(OLD, first=1, count=1)
    assert vault.run("prune", "--delete-data-before", str(DAY), "--confirm", code=1)["days"][0]["refused"]
    vault.assert_restored(back(vault))


def test_damage_in_a_footer_never_reaches_arrow(vault):
    """Arrow aborts the process at some of these; a file whose hash is wrong is not shown to it."""
    vault.add(DAY, count=200)
    vault.run("export")
    path = vault.files(DAY)[0]
    target = LocalTarget(Target(kind="local", path=str(vault.archive)))
    file = Manifest.decode(vault.manifest_path(DAY).read_bytes(), "").files[0]
    content = path.read_bytes()
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    for at in range(footer, len(content), 7):
        for bit in (0, 3, 6):
            damaged = bytearray(content)
            damaged[at] ^= 1 << bit
            path.write_bytes(damaged)
            with pytest.raises(DamagedFile):
                list(read_rows(target, f"telemetry/day={DAY}/{file.name}", TELEMETRY, file))


def test_rows_that_arrive_while_a_day_is_staged_stop_the_restore(vault, monkeypatch):
    vault.add(DAY)
    vault.run("export")
    name = f"{vault.database}_back"
    other = Vault(vault.stores, name, "")
    original = ShardDay.end_file

    def arriving(self):
        original(self)
        if not other.ledger:
            other.add(DAY, first=7001, count=10)

    monkeypatch.setattr(ShardDay, "end_file", arriving)
    into = ("--into", f"clickhouse://127.0.0.1:{vault.settings().port}/{name}")
    assert "new rows" in vault.run("restore", *into, code=1)["stderr"]
    with closing(other.open()) as store:
        assert other.stored(store) == dict(other.ledger)
    vault.run("restore", *into, "--merge")
    vault.ledger[DAY] |= other.ledger[DAY]
    vault.assert_restored(other.open())
    other.remove()


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
        drop(vault, DAY)
        vault.assert_restored(back(vault))
    else:
        assert vault.run(command)
        assert len(vault.files(DAY)) == 1


def test_the_same_readings_on_two_shards_are_refused_with_a_name(two_shards):
    vault, _ = two_shards
    vault.add(DAY, client=2, shard="a")
    vault.run("export")
    vault.add(DAY, client=2, shard="b", first=991, count=20, note=False)
    result = vault.run("export", code=1)
    assert "client 2" in result["stderr"] and "shard b" in result["stderr"]
    assert vault.manifest(DAY)["rows"] == 1000
    drop(vault, DAY, "b")
    vault.run("export")
    vault.assert_restored(back(vault))


def test_an_empty_or_mistyped_archive_is_no_success(vault):
    into = ("--into", f"clickhouse://127.0.0.1:{vault.settings().port}/{vault.database}_x")
    assert "no such day" in vault.run("restore", *into, code=1)["stderr"]
    assert "has no day" in vault.run("verify", code=1)["stderr"]
    vault.run("drill", code=1)


def test_a_day_that_was_pruned_and_exported_again_is_not_verified(vault):
    vault.add(OLD)
    vault.run("export")
    vault.run("verify", "--level", "rows")
    vault.run("prune", "--delete-data-before", str(DAY), "--confirm")
    vault.add(OLD, first=5001)
    vault.run("export", "--day", str(OLD))
    assert vault.run("list")["days"][0]["verified"] is None
    assert [i["outcome"] for i in vault.run("expire", "--older-than", "1d", code=1)["days"]] == ["kept"]


def test_what_was_pruned_does_not_come_back_by_itself(vault):
    for n, day in enumerate((days_ago(4), OLD, DAY)):
        vault.add(day, first=1 + 5000 * n)
    vault.run("export")
    vault.run("prune", "--delete-data-before", str(DAY), "--confirm")
    assert vault.outcomes(vault.run("export")) == []
    listed = vault.run("list")
    assert ([day["day"] for day in listed["days"]], listed["not_archived"]) == ([str(DAY)], [])
    vault.run("export", "--day", str(OLD))
    assert [day["day"] for day in vault.run("list")["days"]] == [str(OLD), str(DAY)]


def test_other_commands_do_not_silence_the_alert_on_the_nightly_export(vault):
    body = vault.path.read_text()
    vault.path.write_text(f'metrics_file = "{vault.folder}/metrics/archive.prom"\n{body}')
    vault.add(DAY)
    vault.run("export", "--dry-run")
    vault.run("export", "--day", str(DAY))
    vault.run("export", "--open-day")
    written = sorted(path.name for path in (vault.folder / "metrics").iterdir())
    assert written == ["archive_export-days.prom", "archive_export-open-day.prom"]
    vault.run("export")
    assert (vault.folder / "metrics" / "archive_export.prom").exists()


def test_a_lock_number_from_the_past_is_given_up(tmp_path):
    target = LocalTarget(Target(kind="local", path=str(tmp_path)))
    with Workspace(target, 5) as owner:
        late = Workspace(target, 5)
        number = owner.number - 1
        assert not late._take("stale", f"{LOCKS}/{number:08}")
        assert [entry.name for entry in target.entries(LOCKS)] == [f"{owner.number:08}"]
        owner.assert_owned()


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
    vault.assert_restored(back(vault))


def test_a_restore_resumed_in_another_order_of_shards_is_refused(vault, monkeypatch):
    for client in (1, 2):
        vault.add(DAY, client=client, stream=client)
    vault.run("export")
    port, names = vault.settings().port, [f"{vault.database}_{n}" for n in range(2)]
    urls = [f"clickhouse://127.0.0.1:{port}/{name}" for name in names]
    original = ShardDay.publish

    def dying(self, merge, complete):
        if self.store.database == names[1]:
            raise KeyboardInterrupt
        return original(self, merge, complete)

    with monkeypatch.context() as patch:
        patch.setattr(ShardDay, "publish", dying)
        vault.run("restore", "--into", urls[0], "--into", urls[1], code=75)
    vault.run("restore", "--into", urls[1], "--into", urls[0], code=1)
    vault.run("restore", "--into", urls[0], "--into", urls[1])
    vault.assert_restored(*(vault.open(database=name) for name in names))


def test_pruning_hides_no_day_that_was_never_archived_and_no_late_rows(vault):
    vault.add(days_ago(4))
    vault.add(OLD, first=5001)
    vault.run("export", "--day", str(OLD))
    vault.run("prune", "--delete-data-before", str(DAY), "--confirm")
    assert vault.run("list")["not_archived"] == [str(days_ago(4))]
    vault.run("export")
    assert [d["day"] for d in vault.run("list")["days"] if d["rows"]] == [str(days_ago(4))]
    vault.add(OLD, first=9001, count=10)  # a box came back late
    assert vault.run("list")["not_archived"] == [str(OLD)]
    assert vault.outcomes(vault.run("export")) == [(str(OLD), "exported")]


def test_a_restore_needs_no_room_in_the_archive(vault, crasher, monkeypatch):
    vault.add(OLD)
    vault.run("export")
    vault.add(DAY, first=5001)
    assert crasher.run("export", "--config", str(vault.path), step=12) is None
    assert list((vault.archive / "_staging").iterdir())

    def full(*_):
        raise TargetFull("quota")

    monkeypatch.setattr(LocalTarget, "create", full)
    name = f"{vault.database}_back"
    vault.run("restore", "--into", f"clickhouse://127.0.0.1:{vault.settings().port}/{name}")
    vault.assert_restored(vault.open(database=name), days=(OLD,))


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
    vault.assert_restored(back(vault))


def test_a_day_whose_manifest_is_gone_is_not_replaced_by_nothing_or_less(vault):
    vault.add(DAY)
    vault.add(OLD, first=5001)
    vault.run("export")
    vault.manifest_path(DAY).unlink()
    drop(vault, DAY)
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
    drop(vault, DAY)
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
    vault.assert_restored(back(vault))


@pytest.mark.parametrize("command", [(), ("--anew",)])
def test_rows_without_numbers_are_not_replaced_by_as_many_other_ones(vault, monkeypatch, command):
    monkeypatch.setattr("skywave_archive.export.MAX_FILES", 2)
    today = days_ago(0)
    for n in range(3):
        vault.add(today, first=1 + 100 * n, count=100, client=7, stream=0)
        vault.run("export", "--open-day")
    drop(vault, today)
    vault.add(today, first=5001, count=400, client=7, stream=0)
    monkeypatch.setattr("skywave_archive.export.utc_today", lambda: days_ago(-1))
    monkeypatch.setattr("skywave_archive.cli.utc_today", lambda: days_ago(-1))
    vault.run("export", "--day", str(today), *command, code=1 if command else 0)
    assert len(vault.files(today)) == (3 if command else 4)
    if command:
        for number in range(5001, 5401):  # they are in the store alone
            for key in [row for row in vault.ledger[today] if row[4] == number]:
                del vault.ledger[today][key]
    vault.assert_restored(back(vault))


def test_a_day_of_more_parts_than_the_target_may_have_is_merged_before_it_moves(vault, monkeypatch):
    monkeypatch.setattr("skywave_archive.restore.MAX_PARTS", 2)
    for n in range(6):
        vault.add(DAY, first=1 + 1000 * n)
        vault.run("export")
    target = back(vault)
    parts = target.query(
        f"SELECT count() FROM system.parts WHERE active AND database = '{target.database}' AND table = 'telemetry'"
    )
    assert parts[0][0] <= 2
    vault.assert_restored(target)


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


def test_a_damaged_account_stops_neither_the_other_accounts_nor_the_next_export(vault):
    vault.add(DAY)
    with closing(vault.open()) as store:
        store.record_streams([(1, (7, 100, 0), 0)], 1)
    vault.run("export")
    (file,) = (vault.archive / "accounts").glob("streams.*")
    damaged = bytearray(file.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    file.write_bytes(damaged)
    (vault.archive / "accounts" / f"{file.name}.bak").write_bytes(damaged)  # somebody's copy
    assert vault.run("verify", "--level", "list", code=1)["accounts"]
    assert vault.run("export")["accounts"] == 1  # the store has all of it still
    assert not vault.run("verify", "--level", "list")["accounts"]
    file.write_bytes(damaged)
    with closing(vault.open()) as store:
        store.record_streams([(2, (7, 100, 0), 0)], 2)
    exported = vault.run("export", code=1)
    assert "Move the file out of the archive" in exported["stderr"]
    assert exported["accounts"] == 2
    restored = vault.run(
        "restore", "--into", f"clickhouse://127.0.0.1:{vault.settings().port}/{vault.database}_back", code=1
    )
    assert restored["accounts"]["streams"] == 2
    file.unlink()
    assert vault.run("export")["accounts"] == 2
    assert not vault.run("verify", "--level", "list")["accounts"]


def test_figures_can_be_read_by_the_collector_and_stop_nothing_if_they_cannot_be_written(vault):
    vault.add(DAY)
    vault.configure(extra="")
    whole = vault.path.read_text()
    vault.path.write_text(f'metrics_file = "{vault.folder}/figures.prom"\n{whole}')
    before = os.umask(0o077)
    try:
        vault.run("export")
    finally:
        os.umask(before)
    assert (vault.folder / "figures_export.prom").stat().st_mode & 0o777 == 0o644
    vault.path.write_text(f'metrics_file = "/proc/nowhere/figures.prom"\n{whole}')
    assert "cannot be written" in vault.run("export")["stderr"]
