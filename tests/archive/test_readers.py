"""Other tools read a day's folder directly, with no code of ours, and see exactly the ledger."""

from __future__ import annotations

import math

import chdb
import duckdb
import numpy as np
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pytest
from support.vault import STREAM, days_ago

DAYS = (days_ago(2), days_ago(1))


@pytest.fixture
def archived(vault):
    """A day of values that repeat (a dictionary), one of noise (byte stream split), and an additional file."""
    rng = np.random.default_rng(1)
    vault.add(DAYS[0], count=4000, values=rng.choice(rng.random(50), 4000))
    vault.add(DAYS[1], count=4000, values=rng.random(4000), keys=(b"a", "grün".encode(), b"c"))
    vault.run("export")
    vault.add(DAYS[1], first=9001, client=2, count=500)
    vault.run("export")
    return vault


def expected(vault, day) -> tuple[int, int, int, float, int]:
    rows = vault.ledger[day].values()
    values = np.array([row[5] for row in rows], np.int64).view(np.float64)
    return (
        len(rows),
        sum(row[4] for row in rows),
        sum(row[2] for row in rows),
        math.fsum(values),
        len({row[1] for row in rows}),
    )


def same(found, wanted) -> None:
    assert tuple(map(int, (*found[:3], found[4]))) == (*wanted[:3], wanted[4])
    assert float(found[3]) == pytest.approx(wanted[3], abs=1e-9)


SELECT = "SELECT count(*), sum(seq), sum(created_at), sum(data_value), count(DISTINCT data_key) FROM"


@pytest.mark.parametrize("day", DAYS)
def test_duckdb(archived, day):
    with duckdb.connect() as connection:
        files = f"read_parquet('{archived.archive}/telemetry/day=*/*.parquet', hive_partitioning = true)"
        same(connection.execute(f"{SELECT} {files} WHERE day = '{day}'").fetchone(), expected(archived, day))


@pytest.mark.parametrize("day", DAYS)
def test_pyarrow(archived, day):
    table = ds.dataset(archived.archive / "telemetry", partitioning="hive").to_table(filter=ds.field("day") == str(day))
    values, keys = table["data_value"].to_pylist(), set(table["data_key"].to_pylist())
    found = (
        table.num_rows,
        pc.sum(table["seq"]).as_py(),
        pc.sum(table["created_at"]).as_py(),
        math.fsum(values),
        len(keys),
    )
    same(found, expected(archived, day))
    assert set(table["stream"].to_pylist()) == {STREAM}


@pytest.mark.parametrize("day", DAYS)
def test_the_current_clickhouse_engine(archived, day):
    sql = (
        f"{SELECT} file('{archived.archive}/telemetry/day={day}/*.parquet', Parquet) SETTINGS use_hive_partitioning = 0"
    )
    same(str(chdb.query(sql, "TSV")).split(), expected(archived, day))


def test_both_encodings_of_values_are_in_use(archived):
    import pyarrow.parquet as pq

    def encodings(path):
        group = pq.ParquetFile(path).metadata.row_group(0)
        return {group.column(i).path_in_schema: set(group.column(i).encodings) for i in range(group.num_columns)}

    repeating, noise = (encodings(archived.files(day)[0]) for day in DAYS)
    assert "RLE_DICTIONARY" in repeating["data_value"] and "BYTE_STREAM_SPLIT" in noise["data_value"]
    for found in (repeating, noise):
        assert "RLE_DICTIONARY" in found["data_key"]
        assert "DELTA_BINARY_PACKED" in found["seq"] and "DELTA_BINARY_PACKED" in found["created_at"]
