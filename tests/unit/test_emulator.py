"""The emulator's ledger is the oracle of every other test, so it is tested against what a reader really gets."""

from __future__ import annotations

import random
import socket
import subprocess
import sys
import threading
from datetime import date

import pytest

from skywave.emulator.ledger import read_ledger
from skywave.emulator.plan import CENTS, Plan
from skywave.emulator.production import Production
from skywave.emulator.sensor import SensorEmulator
from skywave.emulator.signals import SIGNALS
from skywave.errors import StoreUnavailable
from skywave.formats.batch import Name, decode
from skywave.formats.frames import FrameParser
from skywave.store.sql import sync_filesystem


def drain(port: int) -> list[float]:
    parser, values = FrameParser(), []
    with socket.create_connection(("127.0.0.1", port), 5) as sock:
        while data := sock.recv(65536):
            values += parser.feed(data)
    assert not parser.broken
    assert not parser.malformed
    return values


@pytest.mark.parametrize("signal", SIGNALS)
@pytest.mark.parametrize("rate", [0, 2000])
def test_several_connections_at_once_get_what_the_ledger_says(tmp_path, signal, rate):
    sensor = SensorEmulator("pressure", rate=rate, signal=signal, seed=1, ledger=tmp_path / "ledger", limit=700)
    thread = threading.Thread(target=sensor.run)
    thread.start()
    got: list[list[float]] = []
    readers = [threading.Thread(target=lambda: got.append(drain(sensor.port))) for _ in range(3)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(10)
    sensor.stop()
    thread.join(10)
    assert sorted(got) == sorted(read_ledger(tmp_path / "ledger").values())
    assert [len(values) for values in got] == [700] * 3
    if signal == "counter":
        assert len({value for values in got for value in values}) == 2100, "unique over all connections"


def test_a_sensor_runs_where_no_library_of_the_centre_is():
    script = (
        "import sys, skywave.emulator.sensor; print({'numpy', 'pyarrow', 'clickhouse_driver'} & sys.modules.keys())"
    )
    assert subprocess.check_output([sys.executable, "-c", script], text=True) == "set()\n"


def test_a_ledgers_last_line_cut_short_is_left_out(tmp_path):
    (tmp_path / "ledger").write_bytes(b"1 5\n1 6\n2 7\n1 8")
    assert read_ledger(tmp_path / "ledger") == {1: [5.0, 6.0], 2: [7.0]}


def test_a_sensor_needs_no_library_that_an_edge_host_lacks():
    absent = "import sys; sys.modules.update(numpy=None, pyarrow=None, paho=None)"
    subprocess.run([sys.executable, "-c", f"{absent}; import skywave.emulator.sensor"], check=True)


def test_what_a_fleets_client_produces_follows_from_its_seed_and_its_ledger_has_what_was_taken():
    def production() -> Production:
        return Production(7, plan, random.Random(5), wall_time=1e9)

    today = date(2026, 11, 30)
    plan = Plan(brokers=[], rate=100, size=50, keys=3, backlog=2)
    one, other = production(), production()
    one.prepare()
    for each in (one, other):
        each.begin(1000.0)
        each.produce(1002.0)
    assert one.waiting == other.waiting and one.batches in (2 + 4, 2 + 5)
    taken = [one.take(today) for _ in range(3)]
    assert taken == [other.take(today) for _ in range(3)]
    assert [batch.first_seq for batch in taken] == [1, 51, 101]
    read = [decode(batch.payload, Name(7, one.stream, batch.first_seq), 50) for batch in taken]
    values = [value for readings in read for value in readings.values.to_pylist()]
    account = {"client_id": 7, "stream": one.stream, "readings": 150, "sum": round(sum(values) * CENTS)}
    assert one.account() == account
    assert one.waiting == one.batches - 3


def test_a_file_system_is_synced_or_the_error_says_which(tmp_path):
    sync_filesystem(str(tmp_path))
    with pytest.raises(StoreUnavailable, match="absent"):
        sync_filesystem(str(tmp_path / "absent"))
