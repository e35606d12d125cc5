"""Rows come back to the last bit, whichever engine wrote or reads them; the numbers are those of the archive's contract."""

from __future__ import annotations

import math
import struct

import numpy as np
import pytest
from support.vault import Vault, days_ago

from skywave import config
from skywave.store.columns import Block
from skywave.store.shards import open_store

DAY = days_ago(1)


@pytest.mark.every_engine
def test_26_every_float_and_every_key_comes_back_bit_by_bit(vault, clickhouse):
    def double(pattern: int) -> float:
        return struct.unpack("<d", struct.pack("<Q", pattern))[0]

    values = [
        math.nan, double(0x7FF8000000000001), double(0xFFF8DEADBEEF0001), double(0x7FF0000000000001), math.inf, -math.inf,
        0.0, -0.0, 5e-324, -5e-324, 1.7976931348623157e308, 0.1, -1e-300,
    ]  # fmt: skip
    keys = (b"", b"\0", b"a", b"a\0", b"a\0\0", b"\xff\xfe", "grün".encode(), b"'\\\n\t", b"k" * 5000)
    vault.add(DAY, count=len(values) * len(keys), keys=keys, values=np.repeat(np.array(values), len(keys)))
    extremes = [-(2**63) + 1, -1, 0, 1, 2**63 - 1]
    n = len(extremes)
    block = Block(
        np.full(n, 2**32 - 1, np.uint32), np.full(n, 2**64 - 1, np.uint64),
        np.array([1, 2, 2**63, 2**64 - 2, 2**64 - 1], np.uint64),
        np.array(extremes, np.int64), [b"x"], np.zeros(n, np.int8), np.arange(n, dtype=np.float64),
        np.array(extremes, np.int64), DAY,
    )  # fmt: skip
    store = vault.open()
    store.insert_readings(block)
    store.close()
    for i in range(n):
        row = (
            2**32 - 1,
            b"x",
            extremes[i],
            2**64 - 1,
            int(block.seq[i]),
            int(np.float64(i).view(np.int64)),
            extremes[i],
        )
        vault.ledger[DAY][row[:5]] = row
    vault.run("export")
    vault.run("verify", "--level", "rows")
    name = f"{vault.database}_back"
    vault.run("restore", "--into", f"clickhouse://127.0.0.1:{clickhouse.port}/{name}")
    vault.assert_restored(vault.open(database=name))


def test_29_an_old_server_writes_and_the_current_engine_reads(vault, tmp_path):
    vault.add(days_ago(2))
    vault.add(DAY, first=1001, keys=(b"", b"a\0", b"\xff"))
    vault.add(DAY, first=501)
    vault.run("export")
    vault.run("restore", "--into", f"embedded:{tmp_path}/store")
    vault.run("restore", "--into", f"embedded:{tmp_path}/store")
    store = open_store(config.Store(kind="embedded", path=str(tmp_path / "store")))
    vault.assert_restored(store)


def test_the_current_engine_writes_and_an_old_server_reads(tmp_path, clickhouse, database):
    vault = Vault({"1": f'kind = "embedded"\npath = "{tmp_path}/store"'}, database, "")
    vault.add(DAY, first=1)
    vault.add(DAY, first=501, keys=(b"", b"a\0", b"\xff"))
    vault.add(DAY, first=501, count=100, received=99)
    vault.run("export")
    vault.add(DAY, first=9001)
    assert vault.outcomes(vault.run("export")) == [(str(DAY), "added")]
    vault.run("verify", "--level", "rows")
    vault.run("restore", "--into", f"clickhouse://127.0.0.1:{clickhouse.port}/{database}")
    vault.assert_restored(open_store(config.Store(port=clickhouse.port, database=database)))
    vault.remove()
