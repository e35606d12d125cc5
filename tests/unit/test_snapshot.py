"""The document behind /status: what was written is read, whoever wrote it is survived, and each figure has its place in it."""

from __future__ import annotations

import io
import json
import typing
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from skywave.care.findings import judge
from skywave.client import agent
from skywave.client.sensors import SensorFigures
from skywave.commands.view import status_panel
from skywave.errors import SkywaveError
from skywave.formats.messages import ClientStatus
from skywave.outbox.outbox import Backlog
from skywave.process.figures import Figure
from skywave.process.snapshot import (
    VERSION,
    BacklogState,
    ClientSnapshot,
    ClientState,
    SensorState,
    ServerSnapshot,
    ShardState,
    decode,
)
from skywave.process.stalls import Stall
from skywave.server import service

CLIENT = ClientSnapshot(
    version="9", client_id=7, labels={"site": "a"}, connected=True, readings=5, time_to_full_s=80, rss_bytes=1 << 40,
    backlog=BacklogState(batches=1, readings=2, bytes=3), stalls={"broker": Stall(12.5, "no broker")},
    sensors={"t": SensorState(connected=True, readings=5, last_error="was away")},
)  # fmt: skip
SERVER = ServerSnapshot(
    version="9", name="s1", store="clickhouse", store_ok=True, insert_s=0.5, stalls={"data": Stall(1, "none")},
    shards={"a": ShardState(ok=True, accepting=True, readings=3)},
    clients={"7": ClientState(online=True, version="8", host="edge", labels={"site": "a"}, acknowledged=3)},
)  # fmt: skip


def said(snapshot: ClientSnapshot | ServerSnapshot) -> dict[str, typing.Any]:
    return json.loads(snapshot.encode())


@pytest.mark.parametrize("snapshot", [CLIENT, SERVER, ClientSnapshot(), ServerSnapshot()])
def test_what_is_said_is_read_as_it_was(snapshot):
    assert said(snapshot)["snapshot"] == VERSION
    assert decode(said(snapshot), "x") == snapshot


@pytest.mark.parametrize("snapshot", [CLIENT, SERVER])
def test_a_release_before_the_version_is_read_and_what_it_does_not_say_has_its_default(snapshot):
    document = said(snapshot)
    del document["snapshot"], document["stalls"], document["rss_bytes"]
    older = decode(document, "x")
    assert (older.snapshot, older.stalls, older.rss_bytes, older.version) == (0, {}, 0, "9")
    assert judge(older)


@pytest.mark.parametrize("snapshot", [CLIENT, SERVER])
def test_a_newer_release_is_read_for_what_is_known(snapshot):
    document = said(snapshot) | {"snapshot": VERSION + 1, "invented": {"a": [1]}, "broker_error": None}
    for table in ("sensors", "clients", "stalls"):
        for part in document.get(table, {}).values():
            part["invented"] = 1
    newer = decode(document, "x")
    assert newer.snapshot == VERSION + 1
    assert said(newer) == said(snapshot) | {"snapshot": VERSION + 1}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
NAMES = sorted({field.name for kind in (ClientSnapshot, ServerSnapshot) for field in fields(kind)})


@given(JSON | st.dictionaries(st.sampled_from(NAMES), JSON), st.sampled_from([CLIENT, SERVER]), st.booleans())
def test_whatever_another_program_says_it_is_shown_or_refused(document, snapshot, alike):
    if alike and isinstance(document, dict):
        document = said(snapshot) | document
    try:
        read = decode(document, "http://somebody")
    except SkywaveError as error:
        assert "http://somebody answers" in str(error)
    else:
        judge(read)
        Console(file=io.StringIO()).print(status_panel(read))
        assert decode(said(read), "x") == read


@pytest.mark.parametrize(
    "wrong",
    [{"connected": "yes"}, {"readings": 1.5}, {"readings": True}, {"readings": 10**30}, {"uptime_s": float("nan")},
     {"uptime_s": float("inf")}, {"uptime_s": 10**400}, {"version": 9}, {"sensors": []}, {"sensors": {"t": 5}},
     {"sensors": {"t": {"connected": 1}}}, {"stalls": {"broker": "away"}}, {"labels": {"a": 1}}, {"backlog": 7}],
)  # fmt: skip
def test_what_is_known_and_of_another_type_is_refused_by_its_name(wrong):
    with pytest.raises(SkywaveError, match=f"cannot be understood: ({next(iter(wrong))}|t|broker|connected|labels) is"):
        decode(said(CLIENT) | wrong, "x")


@pytest.mark.parametrize(("figures", "snapshot"), [(agent.FIGURES, ClientSnapshot), (service.FIGURES, ServerSnapshot)])
def test_each_figure_is_the_path_of_a_number_in_the_snapshot(figures: list[Figure], snapshot: type):
    for figure in figures:
        kind: typing.Any = snapshot
        for name in figure.path.split("."):
            kind = typing.get_args(kind)[1] if name == "*" else typing.get_type_hints(kind)[name]
        assert kind in (bool, int, float, float | None), figure
        assert ("*" in figure.path) == bool(figure.label), figure


def test_the_parts_have_the_names_of_what_they_are_made_of():
    names = lambda kind: {field.name for field in fields(kind)}  # noqa: E731
    assert names(SensorState) == names(SensorFigures)
    assert names(BacklogState) == names(Backlog)
    assert names(ClientState) == names(ClientStatus) - {"streams", "dropped"} | {"acknowledged"}
