"""What fleets of 100, 1000 and 10 000 clients of 1000 readings a second need, by the figures of `make bench-scale`.

Reads build/scale-figures.json; what other benchmarks measured is named here with its source. ``python bench/capacity.py``
prints the table again.
"""

from __future__ import annotations

import json
from math import ceil
from pathlib import Path

from report import table

FLEETS = (100, 1000, 10_000)
RATE = 1000
BATCH = 500
"""A second's readings in two batches: ``linger`` 0.5 s."""
BUSY = 0.5
"""No core is planned to be busier than this on the average."""
CORES = 16
"""Of a ClickHouse host."""
DISK_TB = 0.8 * 16
"""Of a ClickHouse host and of a DataNode: 80 % of 16 TB."""
DAYS_KEPT = 30
"""In ClickHouse; HDFS keeps everything."""
EXPORT_ROWS_PER_S = 2.39e6
"""Of one shard, by `make bench-archive` (docs/performance.md)."""
NIGHT_S = 6 * 3600
STORE_BYTES = 12.8
"""A row in ClickHouse 18.16, by `make bench-alternatives`."""
ARCHIVE_BYTES = 8.9
"""A row in HDFS, by `make bench-archive`: the sine."""
COPIES = 3
PER_DAY = 86_400
TCP = 1 + 52 / 1448
"""Headers of IP and TCP, full segments."""


def needs(found: dict, clients: int) -> dict[str, str]:
    """One column of the table."""
    rate = clients * RATE
    millions = rate / 1e6
    costs = found["batches"][str(BATCH)]
    shard = found["shard"][str(BATCH)]
    storm = found["storm"]
    replica = max(seconds for name, seconds in shard.items() if name.startswith("replica"))
    kept_tb = rate * PER_DAY * DAYS_KEPT * STORE_BYTES / 1e12
    wanted = {
        "CPU of its replicas": millions * replica / (CORES * BUSY),
        "its INSERTs' turns": rate / (shard["rate"] * BUSY),
        "its export in a night": rate * PER_DAY / (EXPORT_ROWS_PER_S * NIGHT_S),
        "its disks": kept_tb / DISK_TB,
    }
    limit = max(wanted, key=wanted.__getitem__)
    shards = max(1, ceil(wanted[limit]))
    archive_tb = rate * PER_DAY * 365 * ARCHIVE_BYTES * COPIES / 1e12
    wire = found["wire"][str(BATCH)] * TCP
    brokers = max(2, ceil(millions * costs["broker"] / BUSY))
    servers = max(2, ceil(millions * shard["server"] / BUSY))
    return {
        "readings a second": f"{rate:,}",
        "messages a second": f"{rate // BATCH:,}",
        "uplink of a client": f"{RATE * wire * 8 / 1000:.0f} kbit/s",
        "into the brokers": f"{rate * wire * 8 / 1e6:,.0f} Mbit/s",
        "brokers (one core each)": f"{brokers} ({millions * costs['broker']:.2f} cores busy)",
        "… memory for connections": f"{clients / 1000 * storm['broker_bytes'] / 2**20:,.0f} MB in all",
        "servers (one core each)": f"{servers} ({millions * shard['server']:.2f} cores busy)",
        "… memory for clients": f"{clients / 1000 * storm['server_bytes'] / 2**20:,.0f} MB each",
        "shards of 3 replicas": f"{shards} ({limit})",
        "… cores busy in each replica": f"{millions * replica / shards:.2f}",
        f"ClickHouse, {DAYS_KEPT} days": f"{kept_tb * COPIES:,.1f} TB",
        "HDFS a year": f"{archive_tb:,.0f} TB",
        "DataNodes after a year": f"{max(3, ceil(archive_tb / DISK_TB))}",
        "a night's export, a shard": f"{rate * PER_DAY / shards / EXPORT_ROWS_PER_S / 3600:.1f} h",
    }


def main() -> None:
    found = json.loads(Path("build/scale-figures.json").read_text())
    columns = {clients: needs(found, clients) for clients in FLEETS}
    rows = [(name, *(column[name] for column in columns.values())) for name in columns[FLEETS[0]]]
    table("capacity", (f"clients of {RATE} readings/s", *(f"{clients:,}" for clients in FLEETS)), rows)


if __name__ == "__main__":
    main()
