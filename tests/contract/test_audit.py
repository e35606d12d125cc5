"""The account against a plain count of the same rows, with hostile numbers, and with what somebody has put on record."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import fields
from datetime import timedelta

import numpy as np
import pytest
from click.testing import CliRunner
from contract.test_store import AT, BIG, DAY, block, settings, store  # noqa: F401

from skywave.commands.main import main
from skywave.errors import ConfigError
from skywave.formats.messages import Dropped, Produced
from skywave.store import accepting
from skywave.store import audit as audit_module
from skywave.store.accepting import What
from skywave.store.accounts import FIGURES, LOST, TAKEN_BACK, VOID
from skywave.store.columns import Block, Rejected

MAX = 2**64 - 1


def placed(rows, day=DAY, shift=0):
    """Readings with these clients, streams and numbers; with another ``shift`` they stand in another place."""
    n = len(rows)
    client, stream, seq = (np.array(column, np.uint64) for column in zip(*rows, strict=True))
    return Block(
        client.astype(np.uint32), stream, seq, np.full(n, AT + shift, np.int64), [b"t"], np.zeros(n, np.int8),
        np.zeros(n), np.full(n, 5, np.int64), day,
    )  # fmt: skip


def scattered(seqs, client=7, stream=BIG):
    """Readings of one stream with just these numbers."""
    return placed([(client, stream, seq) for seq in seqs])


def by_hand(rows, reported, lost):
    """The figures of each reported stream, number by number."""
    found = {}
    for key, (last, pending) in reported.items():
        places = {row for row in rows if row[:2] == key}
        seqs = {row[2] for row in places}
        figures = Counter(
            stored=len(seqs & set(range(1, last + 1))),
            ahead=sum(seq > last for seq in seqs),
            doubled=len(places) - len(seqs),
        )
        for seq in set(range(1, last + 1)) - seqs:
            figures[lost.get((*key, seq)) or ("pending" if pending and seq >= pending else "missing")] += 1
        found[key] = figures
    return found


@pytest.mark.parametrize("at_once", [1 << 25, 300])
def test_the_account_is_what_counting_number_by_number_gives(store, rng, monkeypatch, at_once):  # noqa: F811
    monkeypatch.setattr(audit_module, "ROWS_AT_ONCE", at_once)
    monkeypatch.setattr(audit_module, "CHUNK", 128)
    rows, lost, reported = set(), {}, {}
    for client in (7, 8):
        for stream in (3, BIG, BIG + 1):
            key, n = (client, stream), rng.randrange(1, 700)
            kept = [seq for seq in range(1, n + 1) if rng.random() > rng.choice((0, 0.01, 0.5))]
            for seq in kept:
                for _ in range(rng.choice((1, 1, 1, 1, 2))):
                    rows.add((*key, seq, DAY - timedelta(rng.randrange(3)), rng.randrange(2)))
            if stream != 3 or client == 8:
                reported[key] = (max(1, n - rng.randrange(3) * 20), rng.choice((0, n // 2 + 1)))
            for name in ("dropped", "rejected", "expired"):
                first = rng.randrange(1, n + 1)
                last = min(n, first + rng.randrange(30))
                if name == "dropped":
                    store.record_dropped([(client, Dropped(stream, first, last, "full"))], 1)
                elif name == "rejected":
                    store.reject([Rejected(*key, first, last - first + 1, "cd" * 32, "t", "r", "{}", b"", 5, DAY)])
                else:
                    columns = ("client_id", "stream", "first_seq", "last_seq", "day")
                    store.insert_rows("expired", columns, [(*key, first, last, DAY)])
                for seq in range(first, last + 1):
                    order = ("rejected", "expired", "dropped")
                    lost[*key, seq] = min(name, lost.get((*key, seq), name), key=order.index)
    for day in (DAY - timedelta(back) for back in range(3)):
        for shift in (0, 1):
            some = sorted(row[:3] for row in rows if row[3:] == (day, shift))
            store.insert_readings(placed(some, day, shift))
            store.insert_readings(placed(some[::3], day, shift))  # FINAL merges these
    ids = [1, 2, 3, MAX]
    store.insert_readings(scattered(ids, 9, 0))
    store.record_streams([(key[0], Produced(key[1], *said), 0) for key, said in reported.items()], 1)
    account = store.account()
    wanted = by_hand(rows, reported, lost)
    for mine in account.streams:
        figures = wanted.pop((mine.client_id, int(mine.stream)))
        got = {name: getattr(mine, name) for name in FIGURES if name != "produced" and getattr(mine, name)}
        assert got == {name: count for name, count in figures.items() if count}
        assert mine.produced == sum(getattr(mine, n) for n in FIGURES[1:-2])
    assert not wanted
    assert account.foreign == len(ids) + sum(row[:2] not in reported for row in rows)


def statements(store, monkeypatch):  # noqa: F811
    """How many statements an audit needs, and what it finds."""
    counted = []
    for name in ("query", "stream"):
        run = getattr(store, name)
        monkeypatch.setattr(store, name, lambda sql, run=run: counted.append(sql) or run(sql))
    account = store.account()
    monkeypatch.undo()
    return len(counted), account


def test_what_the_audit_costs_follows_what_is_stored_and_never_a_number_that_somebody_names(store, monkeypatch):  # noqa: F811
    store.insert_readings(block(n=100))
    store.record_streams([(7, Produced(BIG, 100, 0), 0)], 1)
    plain, account = statements(store, monkeypatch)
    assert account.clean
    far = [2**63 - 2 - 10**15 * number for number in range(2000)]
    store.insert_readings(scattered(far))
    store.insert_readings(scattered([2**40, MAX], client=8, stream=6))
    store.record_streams([(7, Produced(BIG, MAX, 0), 0), (8, Produced(5, MAX - 1, 2**63), 0)], 2)
    store.record_dropped([(8, Dropped(5, 2**62, MAX, "x")), (8, Dropped(5, 9, 3, "x"))], 1)
    hostile, account = statements(store, monkeypatch)
    assert hostile == plain
    mine, other = account.streams
    assert (mine.stored, mine.produced, mine.missing) == (2100, MAX, MAX - 2100)
    assert mine.missing_ranges[0] == (101, far[-1] - 1)
    assert (other.dropped, other.missing) == (MAX - 2**62, 2**62 - 1)
    assert account.foreign == 2
    # Streams of which nothing came cost no statement either.
    store.record_streams([(9, Produced(number, number, 0), 0) for number in range(1, 300)], 1)
    assert statements(store, monkeypatch)[0] == plain


def note(store, what, kind, reason="the disk burnt", name="ada"):  # noqa: F811
    noted = accepting.note([store], lambda _: 0, kind, What.parse(what), reason, name)
    assert {entry[4:7] for entry in noted} == {(kind, reason, name)}
    return [entry[:4] for entry in noted]


def test_an_accepted_loss_leaves_the_verdict_and_stays_in_the_account_until_it_is_taken_back(store):  # noqa: F811
    store.insert_readings(block(first=11, n=90))
    store.record_streams([(7, Produced(BIG, 120, 116), 0), (8, Produced(5, 10, 0), 0)], 1)
    assert note(store, f"7/{BIG}/1-50", LOST) == [(7, BIG, 1, 10)], (
        "what is stored is not accepted, if it is lost later"
    )
    account = store.account()
    assert (account.total("accepted"), account.total("missing"), account.total("pending")) == (10, 25, 5)
    assert account.streams[0].missing_ranges == [(101, 115)]
    assert not account.clean
    assert note(store, "all", LOST) == [(7, BIG, 101, 115), (8, 5, 1, 10)]
    account = store.account()
    assert account.clean
    assert account.as_json()["accepted"] == 35
    with pytest.raises(ConfigError, match="nothing of that is missing"):
        note(store, "8", LOST)
    store.record_streams([(8, Produced(5, 12, 0), 0)], 2)
    assert store.account().streams[-1].missing_ranges == [(11, 12)], "what goes missing later is seen"
    store.insert_readings(block(first=1, n=10))
    account = store.account()
    assert (account.total("stored"), account.total("accepted")) == (100, 25), "what came after all is stored"
    kept = store.accepted()
    assert [entry[:7] for entry in kept] == [
        (7, BIG, 1, 10, LOST, "the disk burnt", "ada"), (7, BIG, 101, 115, LOST, "the disk burnt", "ada"),
        (8, 5, 1, 10, LOST, "the disk burnt", "ada"),
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="nothing of that is on record"):
        note(store, "8/5/2-10", TAKEN_BACK)
    assert note(store, "8/5", TAKEN_BACK, "it was another disk", "bob") == [(8, 5, 1, 10)]
    assert [entry.client_id for entry in store.accepted()] == [7, 7]
    assert store.account().total("missing") == 12


def test_an_account_that_was_forged_is_corrected_with_a_reason(store):  # noqa: F811
    store.insert_readings(block(n=100))
    store.record_streams([(7, Produced(BIG, MAX, 90), 0)], 1)
    assert store.account().total("pending") == MAX - 100
    with pytest.raises(ConfigError, match="reading 100 of that stream has arrived"):
        note(store, f"7/{BIG}/99", VOID)
    with pytest.raises(ConfigError, match="no client has named"):
        note(store, f"8/{BIG}/100", VOID)
    assert note(store, f"7/{BIG}/105", VOID) == [(7, BIG, 106, MAX)]
    account = store.account()
    assert (account.total("produced"), account.total("stored"), account.total("pending")) == (105, 100, 5)
    with pytest.raises(ConfigError, match="named"):
        note(store, f"7/{BIG}/{MAX}", VOID)


def test_a_store_without_the_record_has_an_account_and_gets_the_record_with_the_first_entry(store):  # noqa: F811
    store.query(f"DROP TABLE {store.database}.accepted")
    store.record_streams([(8, Produced(5, 10, 0), 0)], 1)
    assert store.accepted() == []
    note(store, "8/5", LOST)
    assert store.account().clean


@pytest.mark.parametrize("word", ["", "0", "7/", "7/0", "7/5/9-3", "7/5/0-3", "7/18446744073709551616", "x", "7/5/-3"])
def test_what_names_no_numbers_is_refused(word):
    with pytest.raises(ValueError, match="'"):
        What.parse(word)


def test_the_command_accepts_lists_and_takes_back_and_its_exit_code_is_the_verdict(store, settings, tmp_path):  # noqa: F811
    path = tmp_path / "server.toml"
    kept = {
        field.name: getattr(settings, field.name)
        for field in fields(settings)
        if field.name in ("kind", "path", "port")
    }
    path.write_text(
        f'name = "s"\n[store]\ndatabase = "{settings.database}"\n'
        + "".join(f"{name} = {json.dumps(value)}\n" for name, value in kept.items())
    )

    def run(*options, code=0):
        done = CliRunner().invoke(main, ["audit", "--config", str(path), *options], env={"COLUMNS": "200"})
        assert done.exit_code == code, (done.output, done.exception)
        return json.loads(done.stdout) if "--json" in options else done.output

    store.insert_readings(block(n=100))
    store.record_streams([(7, Produced(BIG, 2**40, 0), 0), (8, Produced(5, 10, 0), 0)], 1)
    assert "readings 101 to 1099511627776" in run(code=1)
    assert run("--accepted", "--json") == {"accepted": []}
    why = ("--reason", "x")
    for wrong in (
        ("--accept", "8"), why, ("--accept", "8", "--reason", " "), ("--accept", "8/", *why), ("--accept", "9", *why),
        ("--accepted", "--accept", "8", *why),
    ):  # fmt: skip
        run(*wrong, code=2)
    document = run(
        "--correct", f"7/{BIG}/100", "--reason", "a bit of its disk flipped", "--by", "ada", "--json", code=1
    )
    assert (document["produced"], document["missing"]) == (110, 10)
    assert [(e["first"], e["last"], e["what"]) for e in document["noted"]] == [(101, 2**40, "never produced")]
    shown = run("--accept", "8", "--reason", "burnt [/x] \x1b[2J", "--by", "ada")
    assert r"burnt [/x] \x1b[2J" in shown and "nothing missing, nothing doubled" in shown and "accepted" in shown
    document = run("--json")
    assert (document["clean"], document["accepted"], document["streams"][1]["accepted"]) == (True, 10, 10)
    assert "burnt" in run("--accepted") and "flipped" in run("--accepted")
    listed = run("--accepted", "--client", "8", "--json")["accepted"]
    assert [(e["client_id"], e["stream"], e["first"], e["last"], e["what"], e["name"]) for e in listed] == [
        (8, "5", 1, 10, "lost", "ada")
    ]
    assert run("--take-back", "8/5", "--reason", "its disk was found", "--json", code=1)["missing"] == 10
    assert [e["client_id"] for e in run("--accepted", "--json")["accepted"]] == [7]
