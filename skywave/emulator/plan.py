"""What a fleet is to do."""

from __future__ import annotations

from dataclasses import dataclass

from .. import config

CENTS = 100
"""Values have two decimals; their sums are counted in hundredths, exactly."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the fleet does. ``rate`` readings a second and client for ``seconds`` (None: until it is stopped), in batches
    of ``size`` over ``keys`` series, on top of ``backlog`` batches that wait from the beginning. About a share of ``outages``
    of the clients is cut off at any time, each for ``outage_s`` on the average."""

    brokers: list[config.Mqtt]
    clients: int = 100
    first_client_id: int = 1
    rate: float = 1000.0
    seconds: float | None = 60.0
    size: int = 500
    keys: int = 3
    backlog: int = 0
    window: int = 16
    outages: float = 0.0
    outage_s: float = 10.0
    seed: int | None = None
    ledger: str = ""
    status_interval: float = 5.0
