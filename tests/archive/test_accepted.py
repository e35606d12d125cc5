"""What is on record about the account outlives the store."""

from __future__ import annotations

from contextlib import closing

from support.vault import STREAM, days_ago

from skywave.formats.messages import Produced
from skywave.store.accepted import entries
from skywave.store.accepting import What, note
from skywave.store.accounts import LOST, TAKEN_BACK
from skywave.store.audit import audit
from skywave.store.shards import open_store


def test_what_was_accepted_and_taken_back_is_so_after_the_store_was_lost(vault):
    vault.add(days_ago(1), first=1, count=100)
    with closing(vault.open()) as store:
        store.record_streams([(1, Produced(STREAM, 120, 0), 0), (2, Produced(7, 10, 0), 0)], 1)
        for kind, what in ((LOST, "1"), (LOST, "2"), (TAKEN_BACK, "2")):
            note([store], lambda _: 0, kind, What.parse(what), "its disk \0 died\0", "ada")
        kept = entries(store)
    vault.run("export")
    vault.run("restore", "--into", f"clickhouse://127.0.0.1:{vault.settings().port}/{vault.database}_back")
    with closing(open_store(vault.settings(database=f"{vault.database}_back"))) as store:
        assert [entry[:4] for entry in entries(store)] == [(1, STREAM, 101, 120)]
        assert entries(store) == kept
        assert [(item.client_id, item.accepted, item.missing) for item in audit(store).streams] == [
            (1, 20, 0),
            (2, 0, 10),
        ]


def test_a_store_of_an_earlier_release_is_archived(vault):
    vault.add(days_ago(1))
    with closing(vault.open()) as store:
        store.record_streams([(1, Produced(STREAM, 1000, 0), 0)], 1)
        store.query(f"DROP TABLE {vault.database}.accepted")
    assert vault.run("export")["accounts"] == 1
