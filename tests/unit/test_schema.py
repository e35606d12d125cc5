"""What is taken for a table of ours."""

from __future__ import annotations

import pytest

from skywave.store.schema import TABLES, Found, strange

STREAMS = next(table for table in TABLES if table.name == "streams")


def found(engine, full="", **changes):
    body = {"sorting_key": ", ".join(STREAMS.order), "partition_key": "", "columns": STREAMS.columns} | changes
    return {"streams": Found(engine, full or f"{engine}(last_seq) ORDER BY (client_id, stream)", **body)}


REPLICATED = (
    "ReplicatedReplacingMergeTree('/clickhouse/tables/{shard}/telemetry.streams', '{replica}', last_seq) ORDER BY"
)


def test_a_table_of_a_cluster_must_be_replicated_and_another_one_may_be():
    replicated = found("ReplicatedReplacingMergeTree", REPLICATED)
    assert strange(replicated) == strange(replicated, replicated=True) == strange(found("ReplacingMergeTree")) == []
    assert strange(found("ReplacingMergeTree"), replicated=True) == [
        "streams is a ReplacingMergeTree, not a ReplicatedReplacingMergeTree"
    ]


def test_what_reads_all_shards_must_be_what_it_is_called():
    view = found("View", columns={})["streams"]
    assert strange({"readings": view}, replicated=True) == []
    assert strange({"streams_all": view}, replicated=True) == ["streams_all is a View, not a Distributed"]
    assert strange({"streams_all": view, "dashboards": view}) == [], (
        "a single server makes none, and others' names are theirs"
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"columns": {}}, "lacks client_id UInt32, stream UInt64"),
        ({"sorting_key": "stream"}, "sort key (stream), not (client_id, stream)"),
        ({"partition_key": "toYYYYMM(reported_at)"}, "partition key (toYYYYMM(reported_at)), not ()"),
        ({"full": "ReplacingMergeTree ORDER BY (client_id, stream)"}, "version (), not (last_seq)"),
        ({"full": "ReplacingMergeTree(reported_at) ORDER BY (client_id, stream)"}, "version (reported_at), not (last_seq)"),
    ],
)  # fmt: skip
def test_each_difference_is_named(changes, words):
    assert words in strange(found("ReplacingMergeTree", **changes))[0]
