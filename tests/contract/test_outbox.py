"""What every outbox promises, over SQLite and PostgreSQL alike."""

from __future__ import annotations

import contextlib
import random
import signal
import socket
import threading
import time
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path

import psycopg2
import pytest
from support.parts import wait_for

from skywave import config
from skywave.errors import EXIT_DATA, EXIT_TRY_LATER, OutboxError, OutboxRefused, OutboxUnavailable
from skywave.formats.batch import Batch
from skywave.formats.messages import Dropped, Produced, Range
from skywave.outbox import losses, sqlite
from skywave.outbox.days import Days
from skywave.outbox.opening import open_outbox
from skywave.outbox.outbox import Backlog, Position

DAY = date(2026, 11, 24)


@pytest.fixture(params=["sqlite", "postgresql"])
def settings(request, tmp_path):
    if request.param == "sqlite":
        return config.Outbox(kind="sqlite", path=str(tmp_path / "outbox.sqlite"), max_bytes=1 << 16, min_free_disk=0)
    dsn = request.getfixturevalue("outbox_dsn")
    return config.Outbox(kind="postgresql", dsn=dsn, max_bytes=1 << 16, min_free_disk=0)


@pytest.fixture
def outbox(settings):
    box = open_outbox(settings)
    box.lock()
    box.create(7)
    yield box
    box.close()


def batch(number, first_seq, stream=5, count=10, size=1000, since=None):
    return Batch(number, stream, first_seq, count, 1_000_000 + number, since, random.Random(number).randbytes(size))


def fill(box, stream, count, size=1000):
    first_id = box.start_stream(stream)
    batches = [batch(first_id + i, i * 10 + 1, stream, size=size) for i in range(count)]
    for item in batches:
        box.append([item])
    return batches


def test_what_is_appended_is_read_back_byte_by_byte_in_order(outbox):
    first = outbox.start_stream(5)
    batches = [batch(first, 1, since=DAY), batch(first + 1, 11, size=20_000), batch(first + 2, 21, size=0)]
    for item in batches:
        outbox.append([item])
    assert outbox.read(0, 10**9, 10) == batches
    assert outbox.read(first + 1, first + 1, 10) == batches[1:2]
    assert outbox.read(0, 10**9, 2) == batches[:2]


def test_another_connection_sees_a_committed_batch(outbox, settings):
    batches = fill(outbox, 5, 3)
    other = open_outbox(settings)
    assert other.read(0, 10**9, 10) == batches
    other.close()


def test_appending_again_after_a_commit_of_unknown_outcome_changes_nothing(outbox):
    batches = [*fill(outbox, 5, 1), batch(2, 11)]
    commit = outbox.transaction

    def commit_and_lose_the_connection(statements):
        commit(statements)
        raise OutboxUnavailable("the connection is lost")

    with pytest.MonkeyPatch.context() as patched, pytest.raises(OutboxUnavailable):
        patched.setattr(outbox, "transaction", commit_and_lose_the_connection)
        outbox.append([batches[-1]])
    outbox.append([batches[-1]])
    assert outbox.read(0, 10**9, 10) == batches
    assert outbox.backlog() == Backlog(2, 20, 2000)


def test_batches_and_positions_are_committed_together_or_not_at_all(outbox, settings):
    first = outbox.start_stream(5)
    group = [batch(first, 1), batch(first + 1, 11)]
    outbox.append(group, {"a": Position(2**63 - 1, 7), "b": Position(3, 1)})
    outbox.append([batch(first + 2, 21)], {"a": Position(4, 1)})
    with pytest.raises((OutboxError, OutboxUnavailable)):  # the second has an id that is taken
        outbox.append([batch(first + 3, 31), batch(first, 41)], {"b": Position(3, 99)})
    other = open_outbox(settings)
    assert other.positions() == {"a": Position(4, 1), "b": Position(3, 1)}
    assert [b.id for b in other.read(0, 10**9, 10)] == [first, first + 1, first + 2]
    assert other.backlog() == Backlog(3, 30, 3000)
    other.close()


def test_the_tally_follows_appends_deletes_and_repeated_deletes(outbox):
    batches = fill(outbox, 5, 5)
    outbox.delete([batches[1].id, batches[3].id])
    outbox.delete([batches[1].id, 999])
    assert outbox.backlog() == Backlog(3, 30, 3000)
    assert outbox.oldest_made_at() == batches[0].made_at
    outbox.delete([item.id for item in batches])
    assert outbox.backlog() == Backlog(0, 0, 0)
    assert outbox.oldest_made_at() is None


def test_ids_go_on_after_a_restart_even_when_everything_is_gone(outbox):
    batches = fill(outbox, 5, 3)
    outbox.delete([item.id for item in batches])
    assert outbox.start_stream(6) == batches[-1].id + 1


def test_the_account_names_each_stream_and_what_it_still_holds(outbox):
    old, new = fill(outbox, 5, 3), fill(outbox, 6, 2)
    outbox.delete([old[0].id, new[0].id, new[1].id])
    assert outbox.streams() == [Produced(5, 30, 11), Produced(6, 20, 0)]


def test_a_forgotten_stream_leaves_the_tally_right(outbox):
    old, new = fill(outbox, 5, 3), fill(outbox, 6, 2)
    outbox.delete([item.id for item in old])
    outbox.forget_stream(Produced(5, 29, 0))
    assert len(outbox.streams()) == 2, "the server has recorded another account"
    outbox.forget_stream(Produced(5, 30, 0))
    outbox.forget_stream(Produced(5, 30, 0))
    assert outbox.streams() == [Produced(6, 20, 1)]
    assert outbox.backlog() == Backlog(2, 20, 2000)
    assert outbox.start_stream(7) == new[-1].id + 1


def test_the_bound_holds_and_drop_oldest_declares_what_it_drops(outbox):
    batches = fill(outbox, 5, 64, size=1000)
    assert not outbox.full_because(1000)
    assert outbox.full_because(2000)
    outbox.drop_oldest(1500)
    assert not outbox.full_because(2000)
    assert outbox.dropped() == [Dropped(5, 1, 10, "outbox full"), Dropped(5, 11, 20, "outbox full")]
    assert outbox.read(0, 10**9, 1) == batches[2:3]
    outbox.forget_dropped([Range(5, 1, 10)])
    assert outbox.dropped() == [Dropped(5, 11, 20, "outbox full")]


def test_what_is_dropped_while_nobody_hears_of_it_does_not_gather(outbox, monkeypatch):
    monkeypatch.setattr(losses, "MAX_TOLD", 3)
    fill(outbox, 5, 30)
    fill(outbox, 6, 30)
    for _ in range(58):
        outbox.drop_oldest(1)
        assert outbox.query("SELECT COUNT(*) FROM dropped")[0][0] <= 6
    lost = {(loss.stream, seq) for loss in all_losses(outbox) for seq in range(loss.first, loss.last + 1)}
    assert lost == {(5, seq) for seq in range(1, 301)} | {(6, seq) for seq in range(1, 281)}


def all_losses(outbox):
    return [Dropped(*row) for row in outbox.query("SELECT stream, first_seq, last_seq, reason FROM dropped")]


def test_a_full_outbox_says_by_what(outbox, settings):
    fill(outbox, 5, 64, size=1000)
    assert "outbox.max_bytes" in outbox.full_because(2000)
    box = open_outbox(replace(settings, min_free_disk=1 << 60, disk_path="/"))
    try:
        assert "/ has" in box.full_because(0) and "outbox.min_free_disk" in box.full_because(0)
    finally:
        box.close()


def test_batches_that_were_never_published_can_get_other_times(outbox):
    batches = fill(outbox, 5, 4)
    outbox.delete([batches[3].id])
    changed = [
        replace(item, made_at=item.made_at + 10**15, payload=item.payload[:900] + b"x" * 150) for item in batches
    ]
    for _ in range(2):  # the outcome of a first time may be unknown
        outbox.replace(changed[1:])
    assert outbox.read(0, 10**9, 10) == [batches[0], *changed[1:3]]
    assert outbox.backlog() == Backlog(3, 30, 1000 + 2 * 1050)
    outbox.replace([])
    outbox.delete([item.id for item in batches])
    assert outbox.backlog() == Backlog(0, 0, 0)


def test_it_is_known_since_when_the_database_does_not_answer(outbox):
    seen = []
    outbox.backlog()
    assert not outbox.asked_at
    with pytest.raises(OutboxUnavailable), pytest.MonkeyPatch.context() as patched:
        patched.setattr(
            outbox, "_connect", lambda: seen.append(outbox.asked_at) or (_ for _ in ()).throw(OutboxUnavailable("x"))
        )
        outbox.query("SELECT 1")
    assert 0 < seen[0] <= time.monotonic() and not outbox.asked_at


def test_a_disk_with_too_little_room_makes_the_outbox_full(settings):
    box = open_outbox(replace(settings, min_free_disk=1 << 60, disk_path="/"))
    box.create(7)
    assert box.full_because(0)
    box.close()


def test_day_rules_survive_and_older_ones_go_when_no_batch_needs_them(outbox):
    batches = fill(outbox, 5, 4)
    days = [DAY + timedelta(i) for i in range(3)]
    outbox.fix_day(batches[0].id, days[0])
    outbox.fix_day(batches[2].id, None)
    outbox.fix_day(batches[2].id, days[1])
    kept = outbox.days()
    assert [kept.of(item.id) for item in batches] == [days[0], days[0], days[1], days[1]]
    outbox.delete([batches[0].id, batches[1].id])
    outbox.fix_day(batches[3].id + 1, days[2])
    kept = outbox.days()
    assert [kept.of(item.id) for item in batches[1:]] == [None, days[1], days[1]]
    assert kept.latest == kept.last_heard == days[2]


def test_days_in_memory():
    days = Days([(10, DAY), (20, None), (30, DAY + timedelta(2))])
    assert [days.of(i) for i in (9, 10, 19, 20, 29, 30, 99)] == [
        None, DAY, DAY, None, None, DAY + timedelta(2), DAY + timedelta(2)
    ]  # fmt: skip
    days.add(20, DAY + timedelta(1))
    assert days.latest_from == 20
    assert days.of(99) == DAY + timedelta(1)


def test_the_batches_of_a_start_have_no_day_whatever_held_before(outbox):
    old = fill(outbox, 5, 3)
    outbox.fix_day(old[0].id, DAY)
    new = fill(outbox, 6, 2)
    kept = outbox.days()
    assert [kept.of(item.id) for item in (*old, *new)] == [DAY] * 3 + [None] * 2
    assert kept.last_heard == DAY
    outbox.fix_day(new[0].id, DAY + timedelta(1), new[1].id)
    kept = outbox.days()
    assert [kept.of(item.id) for item in (*old, *new)] == [DAY] * 3 + [DAY + timedelta(1), None]


def test_rules_do_not_gather_while_days_are_fixed_and_taken_back(outbox):
    batches = fill(outbox, 5, 20)
    for number, item in enumerate(batches):
        outbox.fix_day(item.id, DAY, item.id + 5)
        outbox.fix_day(item.id + 1, None, item.id + 5)
        assert len(outbox.days().rules) == 2, number
    assert {outbox.days().of(item.id) for item in batches} == {DAY}


HUGE = 2**63 - 1


@pytest.mark.parametrize("damaged", [0, 7, 19])
@pytest.mark.parametrize(
    "change", [f"first_seq = {HUGE}", f"count = {HUGE}", f"stream = {HUGE}", "count = -5", "first_seq = 0", "count = 36",
               f"first_seq = {-HUGE}, count = {HUGE}, made_at = {HUGE}"],
)  # fmt: skip
def test_a_damaged_row_declares_its_own_readings_lost_and_no_others(outbox, damaged, change):
    batches = fill(outbox, 5, 20)
    fill(outbox, 6, 3)
    outbox.transaction([(f"UPDATE batch SET {change} WHERE id = ?", (batches[damaged].id,))])
    lost = Dropped(5, damaged * 10 + 1, damaged * 10 + 10, "damaged on the disk")
    for account in outbox.streams():
        assert 0 <= account.first_pending <= account.last_seq
    assert outbox.oldest_made_at() is None or outbox.oldest_made_at() > 0
    found = outbox.read(0, 10**9, 100)
    assert [item.id for item in found[:19]] == [item.id for item in batches if item.id != batches[damaged].id]
    assert outbox.dropped() == [lost]
    assert outbox.backlog() == Backlog(22, 220, 22_000)
    outbox.delete([item.id for item in found])
    assert outbox.backlog() == Backlog(0, 0, 0)


def test_of_a_damaged_row_without_neighbours_no_more_is_declared_than_its_account_leaves_room_for(outbox):
    batches = fill(outbox, 5, 20)
    outbox.delete([item.id for item in batches if item is not batches[7]])
    outbox.transaction([("UPDATE batch SET count = ?", (HUGE,))])
    assert outbox.read(0, 10**9, 100) == []
    assert outbox.dropped() == [], "nobody knows how many they were: the audit shows them as missing"
    assert outbox.backlog() == Backlog(0, 0, 0)


def test_what_is_dropped_for_room_is_bounded_in_the_same_way(outbox):
    batches = fill(outbox, 5, 20)
    outbox.transaction([("UPDATE batch SET first_seq = ?, count = ? WHERE id = ?", (HUGE, HUGE, batches[0].id))])
    outbox.drop_oldest(1500)
    assert outbox.dropped() == [Dropped(5, 1, 10, "outbox full"), Dropped(5, 11, 20, "outbox full")]
    assert outbox.backlog() == Backlog(18, 180, 18_000)


@pytest.mark.parametrize("column", ["last_seq", "batches", "bytes", "first_id"])
def test_an_account_that_cannot_be_stops_nobody_and_is_not_reported(outbox, column):
    batches = fill(outbox, 5, 20)
    fill(outbox, 6, 2)
    outbox.transaction([(f"UPDATE stream SET {column} = ? WHERE stream = 5", (HUGE - 2**20,))])
    for account in outbox.streams():
        assert account.last_seq <= 200
    assert outbox.backlog().batches >= 0
    assert outbox.read(0, 10**9, 100)[:20] == batches
    outbox.delete([batches[0].id])
    outbox.drop_oldest(1)
    assert all(loss.last <= 200 for loss in outbox.dropped())


def test_an_account_that_cannot_be_is_made_anew_of_what_is_found_at_the_next_start(tmp_path):
    _, box = file_outbox(tmp_path)
    batches = fill(box, 5, 20)
    box.transaction([("UPDATE stream SET last_seq = 1 << 62", ())])
    box.close()
    box.create(7)
    assert box.streams() == [Produced(5, 200, 1)]
    assert box.read(0, 10**9, 100) == batches
    assert box.backlog() == Backlog(20, 200, 20_000)
    box.close()


def test_a_stream_that_has_batches_is_not_forgotten_whatever_is_asked(outbox):
    fill(outbox, 5, 3)
    outbox.start_stream(6)
    outbox.forget_stream(Produced(5, 30, 0))
    assert outbox.streams() == [Produced(5, 30, 1), Produced(6, 0, 0)]
    assert outbox.backlog() == Backlog(3, 30, 3000)


def test_starts_without_a_reading_leave_nothing_and_many_streams_are_reported_in_turn(outbox):
    for stream in range(10, 60):
        outbox.start_stream(stream)
    assert outbox.streams() == [Produced(59, 0, 0)]
    rows = [("INSERT INTO stream VALUES (?, ?, 10, 1, 10)", (1000 + n, 1 + n)) for n in range(1500)]
    outbox.transaction(rows)
    reported = outbox.streams()
    assert len(reported) == 1000
    assert reported[0].stream in (59, 1000) and reported[-1].stream == 2499


def test_one_outbox_serves_one_client_at_a_time(outbox, settings):
    """The fixture's outbox holds the lock."""
    other = open_outbox(settings)
    with pytest.raises(OutboxError, match="another client"):
        other.lock()
    other.close()
    outbox.close()
    other = open_outbox(settings)
    other.lock()
    other.close()


def test_another_clients_outbox_is_refused(outbox, settings):
    assert outbox.streams() == []
    other = open_outbox(settings)
    with pytest.raises(OutboxError, match="client_id"):
        other.create(8)
    other.close()


def test_a_random_sequence_agrees_with_a_dictionary(outbox, rng):
    held, next_seq = {}, 1
    next_id = outbox.start_stream(5)
    for _ in range(150):
        if rng.random() < 0.6:
            count = rng.randrange(1, 50)
            item = batch(next_id, next_seq, count=count, size=rng.randrange(500))
            next_id, next_seq = next_id + 1, next_seq + count
            outbox.append([item])
            held[item.id] = item
        elif held:
            gone = rng.sample(sorted(held), rng.randrange(1, len(held) + 1))
            outbox.delete(gone)
            for number in gone:
                del held[number]
        sizes = [len(item.payload) for item in held.values()]
        assert outbox.backlog() == Backlog(len(held), sum(item.count for item in held.values()), sum(sizes))
    assert outbox.read(0, 10**9, 10**6) == [held[number] for number in sorted(held)]


def test_a_damaged_sqlite_file_is_set_aside_and_a_new_one_begun(tmp_path):
    path = tmp_path / "outbox.sqlite"
    path.write_bytes(b"this is no database" * 1000)
    box = open_outbox(config.Outbox(path=str(path)))
    box.create(7)
    assert fill(box, 5, 1)
    assert list(tmp_path.glob("outbox.sqlite.damaged-*"))
    box.close()


def file_outbox(folder):
    """A new outbox in a file, and the file's path."""
    path = folder / "outbox.sqlite"
    box = open_outbox(config.Outbox(path=str(path)))
    box.create(7)
    return path, box


def damage_page_of(path, damaged):
    _overwrite(path, path.read_bytes().index(damaged.payload) // 4096 * 4096, b"\xff" * 4096)


def _overwrite(path, at, noise):
    with path.open("r+b") as file:
        file.seek(at)
        file.write(noise)


def test_a_batch_that_the_disk_has_altered_is_declared_lost_and_the_others_go_on(tmp_path):
    path, box = file_outbox(tmp_path)
    batches = fill(box, 5, 40, size=20_000)
    box.close()
    at = path.read_bytes().index(
        batches[17].payload[9000:9100]
    )  # in the middle of an overflow page: SQLite sees nothing
    _overwrite(path, at, b"\0" * 50)
    box.create(7)
    assert box.read(0, 10**9, 30) == [*batches[:17], *batches[18:31]]
    assert box.dropped() == [Dropped(5, 171, 180, "damaged on the disk")]
    assert box.backlog() == Backlog(39, 390, 39 * 20_000)
    box.close()


@pytest.mark.parametrize("seed", range(60))
def test_what_can_be_read_of_a_damaged_file_is_taken_over(tmp_path, seed):
    rng = random.Random(seed)
    path, box = file_outbox(tmp_path)
    batches = [*fill(box, 5, 100, size=3000), *fill(box, 6, 100, size=500)]
    box.delete([batch.id for batch in batches[:30]])
    box.fix_day(1, DAY)
    box.close()
    for _ in range(rng.randrange(1, 4)):
        _overwrite(path, rng.randrange(1, path.stat().st_size // 4096) * 4096, rng.randbytes(4096))
    for start in range(3):  # as a service is started again
        try:
            box.create(7)
            found = box.read(0, 10**9, 10**6)
            box.streams()
            stream = 100 + start
            box.append([batch(box.start_stream(stream), 1, stream)])
            break
        except OutboxError:
            box.close()
    known = {batch.id: batch for batch in batches[30:]}
    assert all(known[batch.id] == batch for batch in found), "what is read is what was written"
    assert box.read(0, 10**9, 10**6)[:-1] == found
    rules = box.days()
    assert rules.latest is None or all(rules.of(item.id) for item in box.read(0, 10**9, 10**6)), "each has a day"
    box.close()


def test_damaged_accounts_are_made_anew_of_what_is_found(tmp_path):
    path, box = file_outbox(tmp_path)
    batches = [*fill(box, 5, 100, size=3000), *fill(box, 6, 100, size=500)]
    box.delete([batch.id for batch in batches[:30]])
    box.fix_day(1, DAY)
    page = box.query("SELECT rootpage FROM sqlite_master WHERE name = 'stream'")[0][0]
    box.close()
    _overwrite(path, (page - 1) * 4096, b"\xff" * 4096)
    box.create(7)
    assert box.read(0, 10**9, 10**6) == batches[30:]
    assert box.backlog() == Backlog(170, 1700, 70 * 3000 + 100 * 500)
    assert box.streams() == [Produced(5, 1000, 301), Produced(6, 1000, 1)]
    assert box.start_stream(9) == batches[-1].id + 1
    assert box.days().of(batches[-1].id) == DAY
    box.close()


def test_a_damaged_page_costs_its_own_batches_only(tmp_path):
    path, box = file_outbox(tmp_path)
    batches = fill(box, 5, 100, size=3000)
    box.transaction([("UPDATE batch SET since = ?", (DAY.isoformat(),))])
    box.fix_day(1, DAY)
    box.close()
    damage_page_of(path, batches[50])
    box.create(7)
    found = box.read(0, 10**9, 10**6)
    assert 90 < len(found) < 100
    assert all(item.since is None for item in found), "a rule that fixed a day may be lost: all days are searched"
    assert box.days().of(found[0].id) == DAY
    assert box.backlog() == Backlog(len(found), len(found) * 10, len(found) * 3000)
    assert box.streams() == [Produced(5, 1000, 1)]
    box.close()


@pytest.mark.parametrize("page", ["root", "leaf"])
def test_a_damaged_index_costs_no_batch(tmp_path, page):
    path, box = file_outbox(tmp_path)
    batches = fill(box, 5, 3000, size=300)
    root = box.query("SELECT rootpage FROM sqlite_master WHERE name = 'sqlite_autoindex_batch_1'")[0][0]
    box.close()
    content = path.read_bytes()
    pages = (
        [root] if page == "root" else [n for n in range(1, len(content) // 4096) if content[(n - 1) * 4096] == 10][1:2]
    )
    _overwrite(path, (pages[0] - 1) * 4096, b"\xff" * 4096)
    box.create(7)
    assert box.read(0, 10**9, 10**6) == batches
    assert list(tmp_path.glob("outbox.sqlite.damaged-*"))
    box.close()


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE batch SET stream = 'x' WHERE id = 5", "UPDATE batch SET since = 'soon' WHERE id = 5",
        "UPDATE batch SET since = CAST(x'ff' AS TEXT) WHERE id = 5", "UPDATE batch SET made_at = 'x' WHERE id = 5",
        "UPDATE batch SET payload = 'x' WHERE id = 5", "UPDATE stream SET first_id = 'x'",
        "UPDATE day SET day = 'never'", "INSERT INTO stream VALUES (9, 1, 5, 3, 9)",
    ],
)  # fmt: skip
def test_values_that_the_disk_has_altered_stop_nobody(tmp_path, change):
    path, box = file_outbox(tmp_path)
    batches = fill(box, 5, 20)
    box.fix_day(1, DAY)
    box.transaction([(change, ())])
    assert len(box.read(0, 10**9, 10**6)) >= 19
    box.close()
    Path(f"{path}.damaged").touch()
    box.create(7)
    found = box.read(0, 10**9, 10**6)
    assert len(found) >= 19 and all(item.payload == batches[item.id - 1].payload for item in found)
    box.append([batch(box.start_stream(100), 1, 100)])
    assert len(box.read(0, 10**9, 10**6)) == len(found) + 1
    box.close()


@pytest.mark.parametrize("moment", ["in mid-copy", "between two renames"])
def test_taking_over_may_be_interrupted(tmp_path, monkeypatch, moment):
    """By a disk that is full meanwhile, or by a kill."""
    path, box = file_outbox(tmp_path)
    batches = fill(box, 5, 1200, size=100)
    box.close()
    damage_page_of(path, batches[50])
    with monkeypatch.context() as patch:
        if moment == "in mid-copy":
            original = sqlite.salvage
            patch.setattr(
                sqlite, "salvage", lambda path: (_fail() if n else rows for n, rows in enumerate(original(path)))
            )
        else:
            rename = Path.rename
            patch.setattr(Path, "rename", lambda a, b: _fail() if str(a).endswith(".new") else rename(a, b))
        with pytest.raises(OutboxUnavailable):
            box.create(7)
    box.close()
    box.create(7)
    found = box.read(0, 10**9, 10**6)
    assert 1150 < len(found) < 1200 and all(item == batches[item.id - 1] for item in found)
    assert box.backlog().batches == len(found) and box.streams() == [Produced(5, 12_000, 1)]
    assert len(list(tmp_path.glob("outbox.sqlite.damaged-*"))) == 1 and not list(tmp_path.glob("*.new*"))
    box.close()


def test_systemd_waits_while_a_damaged_file_is_taken_over(tmp_path, monkeypatch):
    path, box = file_outbox(tmp_path)
    batches = fill(box, 5, 1200, size=100)
    box.close()
    damage_page_of(path, batches[50])
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        box.create(7)
        assert systemd.recv(100) == systemd.recv(100) == b"EXTEND_TIMEOUT_USEC=60000000"
    box.close()


def _fail():
    raise OutboxUnavailable("no space left")


def test_damage_to_a_file_too_large_for_a_check_is_found_when_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(sqlite, "CHECKED_BYTES", 0)
    path, box = file_outbox(tmp_path)
    batches = fill(box, 5, 100, size=3000)
    box.close()
    damage_page_of(path, batches[50])
    box.create(7)
    with pytest.raises(OutboxError, match="malformed"):
        box.read(0, 10**9, 10**6)
    box.close()
    box.create(7)
    assert 90 < len(box.read(0, 10**9, 10**6)) < 100
    box.close()


def test_an_absent_database_is_unavailable_not_a_crash():
    box = open_outbox(config.Outbox(kind="postgresql", dsn="host=127.0.0.1 port=1 user=x dbname=x connect_timeout=1"))
    with pytest.raises(OutboxUnavailable):
        box.create(7)


def _error_of(work):
    try:
        work()
    except OutboxUnavailable as error:
        return error
    return None


def test_a_database_that_refuses_us_is_not_called_temporary_and_goes_on_when_it_takes_us(own_postgres, tmp_path):
    admin = psycopg2.connect(own_postgres.new_database())
    admin.autocommit = True
    cursor = admin.cursor()
    cursor.execute("CREATE ROLE edge LOGIN PASSWORD 'right'")
    cursor.execute("CREATE ROLE banned LOGIN")
    cursor.execute("GRANT ALL ON SCHEMA public TO edge")
    rules = own_postgres.data / "pg_hba.conf"
    rules.write_text(
        "host all banned all reject\nhost all edge all scram-sha-256\n" + rules.read_text(),
    )
    own_postgres.signal(signal.SIGHUP)
    (tmp_path / "password").write_text("wrong")
    dsn = f"host=127.0.0.1 port={own_postgres.port} dbname={admin.info.dbname}"

    def refusal(**changes):
        body = {"dsn": f"{dsn} user=edge", "password_file": str(tmp_path / "password"), "kind": "postgresql"} | changes
        return _error_of(open_outbox(config.Outbox(**body)).lock)

    wait_for(lambda: isinstance(refusal(), OutboxRefused), 20, "the server has read its rules")
    for changes, hint in (
        ({}, "password_file"), ({"dsn": f"{dsn} user=nobody"}, "user"), ({"dsn": f"{dsn} user=banned"}, "pg_hba.conf"),
        ({"dsn": f"{dsn} user=skywave".replace(admin.info.dbname, "absent")}, "dbname"),
        ({"dsn": f"{dsn} user=edge sslmode=require"}, "sslmode"), ({"dsn": f"{dsn} user=edge sslmode=nonsense"}, "dsn"),
    ):  # fmt: skip
        error = refusal(**changes)
        assert (type(error), error.exit_code) == (OutboxRefused, EXIT_DATA), error
        assert hint in error.hint
    assert refusal(dsn="host=127.0.0.1 port=1").exit_code == EXIT_TRY_LATER

    (tmp_path / "password").write_text("right")
    settings = config.Outbox(kind="postgresql", dsn=f"{dsn} user=edge", password_file=str(tmp_path / "password"))
    with contextlib.closing(open_outbox(settings)) as box:
        box.create(7)
        for change, back in (
            ("REVOKE ALL ON stream FROM edge", "GRANT ALL ON stream TO edge"),
            ("ALTER ROLE edge PASSWORD 'new'", "ALTER ROLE edge PASSWORD 'right'"),
        ):
            cursor.execute(change)
            cursor.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'edge'")
            wait_for(lambda: isinstance(_error_of(box.backlog), OutboxRefused), 20, change)
            cursor.execute(back)
            assert _error_of(box.backlog) is None
    admin.close()


def test_batches_that_two_hands_remove_at_once_are_counted_once(outbox, settings):
    """The uplink deletes what is acknowledged while the intake drops the oldest: the same ones."""
    other = open_outbox(settings)
    try:
        for stream in range(10, 40):
            ids = [item.id for item in fill(outbox, stream, 5, size=100)]
            threads = [threading.Thread(target=box.delete, args=(ids,)) for box in (outbox, other)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert outbox.backlog() == Backlog(0, 0, 0)
    finally:
        other.close()


def test_a_session_that_outlived_its_connection_is_waited_for(outbox_dsn):
    box = open_outbox(config.Outbox(kind="postgresql", dsn=outbox_dsn))
    box.lock()
    box.create(7)
    lost, box._connection = box._connection, None  # the network is gone, and PostgreSQL does not know it yet
    with pytest.raises(OutboxUnavailable):
        box.backlog()
    lost.close()

    def answers():
        with contextlib.suppress(OutboxUnavailable):
            return box.backlog().readings == 0

    wait_for(answers, 10, "the old session's lock is gone")
    other = open_outbox(config.Outbox(kind="postgresql", dsn=outbox_dsn))
    with pytest.raises(OutboxError):  # of which OutboxUnavailable is none
        other.lock()
    box.close()
