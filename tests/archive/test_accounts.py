"""What the clients say of themselves outlives the store, and damage to it stops nothing else."""

from __future__ import annotations

from contextlib import closing

import pytest
from support.vault import STREAM, days_ago

from skywave.formats.messages import Dropped, Produced

DAY = days_ago(1)


@pytest.mark.every_engine
def test_the_accounts_outlive_the_store(vault, clickhouse):
    store = vault.open()
    store.record_streams([(1, Produced(STREAM, 1000, 900), 7), (2, Produced(5, 10, 0), 0)], 50)
    store.record_dropped([(1, Dropped(STREAM, 5, 6, "full"))], 50)
    store.close()
    vault.add(DAY)
    vault.run("export")
    store = vault.open()
    store.query(f"DROP DATABASE {vault.database}")
    store.migrate()
    store.record_streams([(1, Produced(STREAM, 1200, 1100), 7)], 60)
    store.close()
    vault.run("export", "--same-fleet")  # a store that lost its accounts takes none from the archive
    name = f"{vault.database}_back"
    vault.run("restore", "--into", f"clickhouse://127.0.0.1:{clickhouse.port}/{name}")
    store = vault.open(database=name)
    rows = store.query(
        f"SELECT client_id, stream, last_seq, first_pending FROM {store.database}.streams FINAL ORDER BY client_id"
    )
    assert rows == [(1, STREAM, 1200, 0), (2, 5, 10, 0)]
    assert store.query(f"SELECT client_id, first_seq, last_seq FROM {store.database}.dropped FINAL") == [(1, 5, 6)]
    store.close()


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
