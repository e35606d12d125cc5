"""The emulator's ledger is the oracle of every other test, so it is tested against what a reader really gets."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading

import pytest

from skywave.emulator.ledger import read_ledger
from skywave.emulator.sensor import SIGNALS, SensorEmulator
from skywave.errors import StoreUnavailable
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


def test_a_file_system_is_synced_or_the_error_says_which(tmp_path):
    sync_filesystem(str(tmp_path))
    with pytest.raises(StoreUnavailable, match="absent"):
        sync_filesystem(str(tmp_path / "absent"))
