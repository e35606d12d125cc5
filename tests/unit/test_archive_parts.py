"""The archive's small parts against plain Python."""

from __future__ import annotations

import importlib
import itertools
import math
import pkgutil
import struct
from datetime import date, timedelta

import click
import numpy as np
import pyarrow as pa
import pytest
import skywave_archive
from clickhouse_cityhash.cityhash import CityHash64
from hypothesis import given
from hypothesis import strategies as st
from skywave_archive import settings
from skywave_archive.errors import BrokenManifest, NewerManifest
from skywave_archive.manifest import File, Manifest, ShardState, parse_name
from skywave_archive.options import parse_subset, parse_url
from skywave_archive.source import names_of
from skywave_archive.streams import Collector, StreamName
from skywave_archive.tables import TELEMETRY, add, digest, row_hashes
from skywave_archive.verify import in_subset

from skywave.errors import EXIT_DATA, EXIT_TRY_LATER, EXIT_USAGE, ConfigError
from skywave.formats.spans import Spans

U64 = (1 << 64) - 1
numbers = st.lists(
    st.one_of(st.integers(1, 200), st.integers(65_500, 65_600), st.integers(U64 - 100, U64)), min_size=1, max_size=80
)


def collected(*parts: list[int]) -> Spans:
    collector = Collector()
    for part in parts:
        collector.add(
            pa.record_batch(
                {
                    "client_id": pa.array([1] * len(part), pa.uint32()),
                    "stream": pa.array([9] * len(part), pa.uint64()),
                    "seq": pa.array(part, pa.uint64()),
                }
            )
        )
    return collector.finish()[StreamName(1, 9)]


def as_set(ranges: Spans) -> set[int]:
    return {n for first, last in ranges.pairs() for n in range(first, last + 1)}


@given(numbers, numbers)
def test_ranges_are_the_numbers_they_were_made_of(one, other):
    ranges = collected(one, other)
    assert as_set(ranges) == {*one, *other}
    assert ranges.count == len({*one, *other})
    assert all(a[1] + 1 < b[0] for a, b in itertools.pairwise(ranges.pairs()))
    assert as_set(collected(one) | collected(other)) == {*one, *other}


@given(numbers, numbers)
def test_ranges_know_what_they_contain(one, probes):
    assert collected(one).contain(np.array(probes, np.uint64)).tolist() == [probe in set(one) for probe in probes]


def rows_of(client: int, stream: int, numbers) -> pa.RecordBatch:
    return pa.record_batch({
        "client_id": pa.array([client] * len(numbers), pa.uint32()),
        "stream": pa.array([stream] * len(numbers), pa.uint64()), "seq": pa.array(numbers, pa.uint64()),
    })  # fmt: skip


def test_ranges_of_a_client_stay_bounded_and_its_neighbours_are_kept_whatever_its_numbers_look_like(monkeypatch, rng):
    monkeypatch.setattr("skywave_archive.streams.MAX_RANGES", 100)
    monkeypatch.setattr("skywave_archive.streams.MAX_CHUNKS", 500)
    every_other = [rows_of(2, 9, range(1, 1001, 2))]
    far_apart = [rows_of(3, 9, sorted(rng.getrandbits(64) | 1 for _ in range(1000)))]
    a_stream_each = [rows_of(4, n + 1, [1]) for n in range(1000)]
    collector = Collector()
    for batch in (rows_of(1, 9, range(1, 1001)), *every_other, *far_apart, *a_stream_each, rows_of(5, 9, [1, 7])):
        collector.add(batch)
        assert collector.chunks <= 500
    found = {name: ranges.pairs() for name, ranges in collector.finish().items()}
    assert found == {StreamName(1, 9): [(1, 1000)], StreamName(5, 9): [(1, 1), (7, 7)]}
    assert collector.scattered == {2, 3, 4}
    assert collector.rows == {1: 1000, 2: 500, 3: 1000, 4: 1000, 5: 2}


def test_numbers_that_only_end_up_in_order_are_not_scattered(monkeypatch):
    """A client's rows come key by key: until its last key, its numbers have a gap at each other one."""
    monkeypatch.setattr("skywave_archive.streams.MAX_RANGES", 100)
    collector = Collector()
    for key in range(5):
        collector.add(rows_of(1, 9, range(1 + key, 10_001, 5)))
    assert collector.finish()[StreamName(1, 9)].pairs() == [(1, 10_000)]


def _hash(row: tuple) -> int:
    """ClickHouse's cityHash64 of several columns, by its definition and one row at a time."""

    def number(x: int) -> int:
        x = (x & U64) ^ 0x4CF2D2BAAE6DA887
        x = ((x ^ (x >> 33)) * 0xFF51AFD7ED558CCD) & U64
        x = ((x ^ (x >> 33)) * 0xC4CEB9FE1A85EC53) & U64
        return x ^ (x >> 33)

    def both(low: int, high: int) -> int:
        a = ((low ^ high) * 0x9DDFEA08EB382D69) & U64
        b = ((high ^ a ^ (a >> 47)) * 0x9DDFEA08EB382D69) & U64
        return ((b ^ (b >> 47)) * 0x9DDFEA08EB382D69) & U64

    found = None
    for value in row:
        if isinstance(value, float):
            value = struct.unpack("<Q", struct.pack("<d", value))[0]
        one = CityHash64(value) if isinstance(value, bytes) else number(value)
        found = one if found is None else both(found, one)
    assert found is not None
    return found


rows = st.lists(
    st.tuples(
        st.integers(0, 2**32 - 1), st.binary(max_size=40), st.integers(-(2**63), 2**63 - 1), st.integers(0, U64),
        st.integers(0, U64), st.floats(), st.integers(-(2**63), 2**63 - 1),
    ), min_size=1, max_size=50,
)  # fmt: skip


@given(rows)
def test_row_hashes_are_clickhouses(rows):
    columns = [
        pa.array(list(values), kind)
        for values, kind in zip(zip(*rows, strict=True), TELEMETRY.columns.values(), strict=True)
    ]
    batch = pa.record_batch(columns, schema=TELEMETRY.schema)
    assert row_hashes(batch).tolist() == [_hash(row) for row in rows]
    half = len(rows) // 2
    parts = add(*(digest(row_hashes(part)) for part in (batch.slice(0, half), batch.slice(half))))
    assert parts == digest(row_hashes(batch)) == sum(map(_hash, rows)) % (1 << 64)


def manifest() -> Manifest:
    return Manifest(
        "telemetry", date(2026, 11, 20), 3, True, "2026-11-21T01:00:00Z", "0.1.0", {"1": "CREATE TABLE…"}, [["seq", "UInt64"]],
        {"1": ShardState(2, U64, "1:2", "18.16.1")}, [File("a.parquet", "1", 2, U64, 10, "ab", 1, 2, -5, 5)],
        {StreamName(1, U64): Spans.of([[1, 2], [5, U64]])}, {8: 3}, ["old.parquet"],
    )  # fmt: skip


def test_a_manifest_comes_back_as_it_was():
    one = manifest()
    other = Manifest.decode(one.encode(), "x")
    assert other.encode() == one.encode()
    assert other.streams[StreamName(1, U64)].pairs() == [(1, 2), (5, U64)]
    assert (other.files, other.shards, other.unnamed_rows) == (one.files, one.shards, one.unnamed_rows)
    assert parse_name(one.name) == (one.day, 3)


@given(st.data())
def test_any_change_of_a_manifest_is_noticed(data):
    content = manifest().encode()
    at = data.draw(st.integers(0, len(content) - 1))
    changed = bytearray(content)
    changed[at] ^= data.draw(st.integers(1, 255))
    try:
        other = Manifest.decode(bytes(changed), "x")
    except (BrokenManifest, NewerManifest):
        return
    assert other.encode() == content  # only white space changed


@pytest.mark.parametrize(
    "content", [b"", b"{", b"null", b"[]", b"7", b'{"format": 1}', b'{"format": "x"}', b"\xff\xfe", b"{" * 5000]
)
def test_anything_else_is_a_broken_manifest(content):
    with pytest.raises(BrokenManifest):
        Manifest.decode(content, "x")


@pytest.mark.parametrize(
    "name",
    ["x", "2026-11-20.json", "2026-11-20.gen-x.json", "2026-13-20.gen-0001.json", "2026-11-20.gen-0001.json.tmp"],
)
def test_alien_names_in_the_manifests_folder_are_no_manifests(name):
    assert parse_name(name) is None


def test_targets_of_a_restore():
    store = parse_url("clickhouse://me@h:9440/db?ca_file=/ca.pem&password_file=pw")
    assert (store.host, store.port, store.user, store.database, store.ca_file) == ("h", 9440, "me", "db", "/ca.pem")
    assert parse_url("embedded:/tmp/a%20b").path == "/tmp/a b"
    for url in (
        "",
        "h:9000",
        "clickhouse://",
        "clickhouse://u:pw@h",
        "clickhouse://h?x=1",
        "clickhouse://h:99999",
        "embedded:/x?port=y",
        "embedded:",
        "embedded:~/x",
        "embedded:%7E/x",
    ):
        with pytest.raises(ConfigError):
            parse_url(url)


def test_configurations_that_cannot_work_are_refused(tmp_path):
    path = tmp_path / "a.toml"
    for body in (
        "", '[target]\npath = "relative"', '[target]\npath = "/a=b"', '[target]\npath = "/a:b"',
        '[target]\npath = "/a"\nurl = "x"', '[target]\npath = "/a"\n[store.shards."a-b"]\nreplicas = "a:1, b:1"',
        '[target]\nkind = "s3"\npath = "/a"',
    ):  # fmt: skip
        path.write_text(body)
        with pytest.raises(ConfigError):
            settings.load(str(path))
    path.write_text(
        '[target]\npath = "/a"\n[store.shards.b]\nreplicas = "x:1, y:1"\n[store.shards.a]\nreplicas = "z:1, z:2"'
    )
    assert names_of(settings.load(str(path)).store) == ["a", "b"]
    assert math.isclose(settings.load(str(path)).target.timeout, 30)


@pytest.mark.parametrize("given", ["", " ", "~", "~/archive", "~skywave/archive"])
def test_a_path_that_would_be_another_folder_than_is_meant_is_refused(tmp_path, given):
    """The empty one is the folder in which the command runs, and nobody but a shell knows ~."""
    path = tmp_path / "archive.toml"
    good = {"target.path": "/a", "store.path": "/s", "metrics_file": "/m"}
    for name in good:
        value = {**good, name: given}
        path.write_text(
            f'metrics_file = "{value["metrics_file"]}"\n[target]\nkind = "local"\npath = "{value["target.path"]}"\n'
            f'[store]\nkind = "embedded"\npath = "{value["store.path"]}"\n'
        )
        if (name, given) == ("metrics_file", ""):  # none is written
            settings.load(str(path))
            continue
        with pytest.raises(ConfigError, match=name):
            settings.load(str(path))


@pytest.mark.parametrize(
    "given", ["", "a", "~", "/", "//a", "/a//b", "/a/../b", "/./a", "/a/.", "/a#b", "/a:b", "/a=b"]
)
def test_a_path_in_hdfs_is_absolute_and_written_as_hdfs_does(tmp_path, given):
    path = tmp_path / "archive.toml"
    path.write_text(f'[target]\npath = "{given}"\n')
    with pytest.raises(ConfigError, match=r"target\.path"):
        settings.load(str(path))
    for good in ("/a", "/a/", "/a/b c", "/ü"):
        path.write_text(f'[target]\npath = "{good}"\n')
        settings.load(str(path))


def test_seven_nights_give_each_day_its_turn(monkeypatch):
    days = [date(2026, 1, 1) + timedelta(n) for n in range(100)]
    seen: list[date] = []
    for night in range(7):
        monkeypatch.setattr(
            "skywave_archive.options.utc_today", lambda night=night: date(2026, 11, 24) + timedelta(night)
        )
        subset = parse_subset(None, None, "today/7")
        seen += [day for day in days if in_subset(day, subset)]
    assert sorted(seen) == days
    for wrong in ("today", "today/0", "today/x", "8/7", "0/7"):
        with pytest.raises(click.BadParameter):
            parse_subset(None, None, wrong)


@pytest.mark.parametrize(
    "urls", ["", "nn1:9870", "http://nn1:9870 http://nn2:9870", "http://nn1:x", "ftp://nn1", "http://nn1:9870;"]
)
def test_addresses_of_namenodes_that_cannot_work_are_told_at_once(tmp_path, urls):
    path = tmp_path / "archive.toml"
    path.write_text(f'[target]\npath = "/a"\nurls = "{urls}"\n')
    with pytest.raises(ConfigError, match=r"target\.urls"):
        settings.load(str(path))


def test_addresses_of_namenodes_stand_between_commas_or_semicolons(tmp_path):
    path = tmp_path / "archive.toml"
    for between in (",", ", ", ";"):
        path.write_text(f'[target]\npath = "/a"\nurls = "http://nn1:9870{between}http://nn2:9870/webhdfs/v1/"\n')
        assert settings.load(str(path)).target.addresses == ["http://nn1:9870", "http://nn2:9870"]


def test_a_relative_folder_of_an_archive_counts_from_its_file(tmp_path, monkeypatch):
    from skywave_archive.settings import load

    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    (tmp_path / "a.toml").write_text('metrics_file = "m.prom"\n[target]\nkind = "local"\npath = "days"\n')
    found = load(str(tmp_path / "a.toml"))
    assert found.target.path == str(tmp_path / "days") and found.metrics_file == str(tmp_path / "m.prom")


def test_every_error_of_the_archive_stands_in_its_tree_with_an_exit_code():
    for module in pkgutil.walk_packages(skywave_archive.__path__, "skywave_archive."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)

    def below(kind: type) -> list[type]:
        return [one for sub in kind.__subclasses__() for one in (sub, *below(sub))]

    mine = [kind for kind in below(Exception) if kind.__module__.startswith("skywave_archive")]
    assert {kind.__module__ for kind in mine} == {"skywave_archive.errors"}
    assert {kind.exit_code for kind in mine} == {EXIT_DATA, EXIT_USAGE, EXIT_TRY_LATER}
