"""Acks, statuses and foreign JSON: what is written is read, anything else is an error and nothing worse."""

from __future__ import annotations

import contextlib
import json
from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skywave.errors import PoisonError
from skywave.formats import topics
from skywave.formats.messages import (
    MAX_BYTES,
    MAX_DROPPED,
    MAX_LABELS,
    MAX_STREAMS,
    MAX_TEXT,
    Ack,
    ClientStatus,
    Dropped,
    Produced,
    Range,
    ServerStatus,
    merge,
)
from skywave.server import foreign

DAY = date(2026, 11, 24)


def test_messages_survive_the_wire_with_all_64_bits():
    big = 2**64 - 1
    held = 2**63 - 1
    ack = Ack("s", DAY, [Range(big, 1, big)], [Range(1, 2, 3)], [Produced(held, held, 0)], [Range(4, 5, 6)])
    assert Ack.decode(ack.encode()) == ack
    status = ClientStatus(True, "1", "h", {"a": "b"}, 1, 2, 3.0, [Produced(big, held, 1)], [Dropped(1, 2, 3, "full")])
    assert ClientStatus.decode(status.encode()) == status
    server = ServerStatus(True, DAY, "1")
    assert ServerStatus.decode(server.encode()) == server


@pytest.mark.parametrize(
    "payload",
    [
        b"", b"{", b"[]", b"7", b"null", b'{"v":2,"date":"2026-11-24"}', b'{"v":1}', b'{"v":1,"date":"today"}',
        b'{"v":1,"date":"2026-11-24","stored":7}', b'{"v":1,"date":"2026-11-24","stored":[["1","2"]]}',
        b'{"v":1,"date":"2026-11-24","stored":[["-1","2","3"]]}', b'{"v":1,"date":"2026-11-24","stored":[[1,2,3]]}',
        b'{"v":1,"date":"2026-11-24","stored":[["1","2","18446744073709551616"]]}', b"[" * 100_000, b"\xff\xfe",
    ],
)  # fmt: skip
def test_a_broken_ack_is_refused(payload):
    with pytest.raises(PoisonError):
        Ack.decode(payload)


FAR = str(2**63)


@pytest.mark.parametrize("row", [[FAR, "1", "0"], ["5", FAR, "0"], ["5", "9", FAR], ["5", str(2**64 - 1), "0"]])
@pytest.mark.parametrize("name", ["recorded", "dropped"])
def test_an_ack_names_no_account_that_an_outbox_cannot_hold(name, row):
    with pytest.raises(PoisonError, match="no stream can have"):
        Ack.decode(json.dumps({"v": 1, "date": "2026-11-24", name: [row]}).encode())


def status(**more):
    return ClientStatus.decode(json.dumps({"v": 1, "online": True, "version": "1", **more}).encode())


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"streams": [["5", FAR, "0"]]}, "no stream can have"),
        ({"streams": [["5", "9", FAR]]}, "no stream can have"),
        ({"dropped": [["5", "1", FAR, "full"]]}, "no stream can have"),
        ({"streams": [["5", "1", "0"]] * (MAX_STREAMS + 1)}, "streams has 32769 rows, at most 32768"),
        ({"dropped": [["5", "1", "1", "full"]] * (MAX_DROPPED + 1)}, "dropped has 1001 rows, at most 1000"),
        ({"labels": {str(number): "x" for number in range(MAX_LABELS + 1)}}, "at most 64"),
        ({"labels": {"site": "x" * (MAX_TEXT + 1)}}, "label has 1001 letters, at most 1000"),
        ({"labels": {"x" * (MAX_TEXT + 1): "site"}}, "label has 1001 letters"),
        ({"host": "x" * (MAX_TEXT + 1)}, "host has 1001 letters"),
        ({"version": "x" * 100_000}, "version has 100000 letters"),
        ({"dropped": [["5", "1", "1", "x" * (MAX_TEXT + 1)]]}, "reason has 1001 letters"),
    ],
)
def test_a_status_that_says_too_much_is_refused_in_one_short_line(more, why):
    with pytest.raises(PoisonError, match=why) as refused:
        status(**more)
    assert len(str(refused.value)) < 250


@pytest.mark.parametrize(
    "body", [{"v": "x" * 100_000}, {"v": 1, "date": "x" * 100_000}, {"v": 1, "stored": "x" * 100_000}]
)
def test_what_is_wrong_is_said_in_one_short_line(body):
    with pytest.raises(PoisonError) as refused:
        Ack.decode(json.dumps(body).encode())
    assert len(str(refused.value)) < 250


def test_the_longest_history_that_a_client_could_ever_tell_is_read():
    """Nobody bounded what a client of 0.1.0 says, but the length of the message."""
    streams = [Produced(2**62 + number, 123_456, 100_000) for number in range(23_000)]
    dropped = [Dropped(2**62, number * 500 + 1, number * 500 + 500, "outbox full") for number in range(1000)]
    labels = {f"label-{number}": "x" * 200 for number in range(40)}
    told = ClientStatus(True, "0.1.0", "edge-17.example.org", labels, streams=streams, dropped=dropped)
    assert len(told.encode()) > MAX_BYTES * 0.9
    assert ClientStatus.decode(told.encode()) == told


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_no_bytes_break_a_parser(data):
    for parse in (Ack.decode, ClientStatus.decode, ServerStatus.decode, foreign.parse):
        with contextlib.suppress(PoisonError):
            parse(data)


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
    )
)
def test_no_json_breaks_the_foreign_parser(body):
    with contextlib.suppress(PoisonError):
        foreign.parse(json.dumps([{"created_at": body, "data_key": "k", "data_value": body}, body]).encode())


def test_foreign_readings_are_exact_and_bad_ones_do_not_take_the_good_ones_along():
    good, bad = foreign.parse(
        b'[{"created_at": 1700000000.123456, "data_key": "t", "data_value": "21.5", "id": 7, "new_field": {}},'
        b' {"created_at": "1700000000", "data_key": "t", "data_value": 3},'
        b' {"created_at": 1, "data_key": "t", "data_value": NaN}, {"data_key": "t"}, 5,'
        b' {"created_at": 1, "data_key": "", "data_value": 1}, {"created_at": 1, "data_key": "t", "data_value": 1e400},'
        b' {"created_at": 1, "data_key": "t", "data_value": 1, "id": 0},'
        b' {"created_at": 1e300, "data_key": "t", "data_value": 1}]'
    )
    assert [(r.created_at, r.data_value, r.id) for r in good] == [
        (1700000000123456, 21.5, 7),
        (1700000000000000, 3.0, 0),
    ]
    assert len(bad) == 7


@pytest.mark.parametrize(
    ("written", "microseconds"),
    [
        ("1796000000", 1796000000_000000),
        ("1796000000.1234567", 1796000000_123457),
        ("1796000000123", 1796000000_123000),
        ("1796000000123456", 1796000000_123456),
        ("1796000000123456789", 1796000000_123457),
        ('"1796000000123"', 1796000000_123000),
        ("253402300799", 253402300799_000000),
        ("253402300800", 253402300_800000),
        ("-62135596800", -62135596800_000000),
        ('"2026-11-30T08:00:00Z"', 1796025600_000000),
        ('"2026-11-30 09:00:00.25+01:00"', 1796025600_250000),
        ("0e999999", 0),
    ],
)
def test_a_time_is_taken_in_each_way_that_can_mean_but_one(written, microseconds):
    good, bad = foreign.parse(b'{"created_at": %b, "data_key": "k", "data_value": 1}' % written.encode())
    assert (bad, [reading.created_at for reading in good]) == ([], [microseconds])


@pytest.mark.parametrize(
    ("element", "hint"),
    [
        ('{"data_key": "k", "data_value": 1}', "seconds since 1970"),
        ('{"created_at": null, "data_key": "k", "data_value": 1}', "seconds since 1970"),
        ('{"created_at": "2026-11-30T08:00:00", "data_key": "k", "data_value": 1}', "end it with Z"),
        ('{"created_at": "30.11.2026", "data_key": "k", "data_value": 1}', "2026-11-30T08:00:00Z"),
        ('{"created_at": 1, "data_key": "k", "data_value": "21,5"}', "follow a point"),
        ('{"created_at": 1, "data_key": "k", "data_value": true}', "true or false"),
        ('{"created_at": 1, "data_key": "k", "value": 1}', "'value' but no data_value"),
        ('{"ts": 1, "data_key": "k", "data_value": 1}', "'ts' but no created_at"),
        ('{"temperature": 21.5, "battery": 80}', "'temperature, battery' but no data_key"),
        ('{"created_at": 1, "data_key": "k", "data_value": 1, "id": "x"}', "id must be an integer"),
        ('{"created_at": 1, "data_key": "k", "data_value": %s}' % ("9" * 5000), "not a finite number"),
        ('{"created_at": 1, "data_key": "k", "data_value": 1e99999999999999999999}', "data_value must be"),
    ],
)
def test_what_is_no_reading_is_told_how_it_would_be_one_and_takes_no_other_along(element, hint):
    good, bad = foreign.parse(b'[%b, {"created_at": 1, "data_key": "k", "data_value": 1}]' % element.encode())
    assert len(good) == len(bad) == 1
    assert hint in bad[0].reason
    assert len(bad[0].reason) < 500


@pytest.mark.parametrize(
    ("written", "number"),
    [("7", 7), ('"7"', 7), ("7.0", 7), ('"7e0"', 7), ("null", 0), ("18446744073709551615", 2**64 - 1)],
)
def test_an_id_is_a_number_like_any_other_and_known_of_a_bad_reading(written, number):
    (reading,), _ = foreign.parse(b'{"created_at": 1, "data_key": "k", "data_value": 1, "id": %b}' % written.encode())
    _, (bad,) = foreign.parse(b'{"created_at": 1, "data_key": "k", "data_value": NaN, "id": %b}' % written.encode())
    assert reading.id == bad.id == number


def test_a_string_of_c_ends_with_a_zero():
    assert len(foreign.parse(b'{"created_at": 1, "data_key": "k", "data_value": 1}\0')[0]) == 1


def test_ranges_merge_when_they_touch():
    assert merge([Range(1, 5, 9), Range(1, 1, 4), Range(2, 1, 1), Range(1, 11, 12)]) == [
        Range(1, 1, 9), Range(1, 11, 12), Range(2, 1, 1)
    ]  # fmt: skip


@pytest.mark.parametrize("topic", ["/telemetry/client/0/", "/telemetry/client/01/", "/telemetry/client/4294967296/",
                                   "/telemetry/client/1/x", "/telemetry/client/x/", "telemetry/client/1/ack", ""])  # fmt: skip
def test_topics_that_are_no_clients(topic):
    assert topics.parse_client(topic) is None


def test_topics_of_clients_and_servers():
    assert topics.parse_client(topics.data(7)) == (7, "")
    for written in ("/telemetry/client/7", "telemetry/client/7/", "telemetry/client/7"):
        assert topics.parse_client(written) == (7, "")
    assert topics.parse_client(topics.ack(2**32 - 1)) == (2**32 - 1, "ack")
    assert topics.parse_server(topics.server_status("a")) == "a"
