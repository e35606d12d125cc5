"""What one shard's ingest shows of itself."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass, field

from ..formats.messages import ClientStatus


@dataclass(slots=True)
class ShardFigures:
    """Written by the shard's thread alone, read by the process for its status, its metrics and its health."""

    readings: int = 0
    batches: int = 0
    inserts: int = 0
    insert_s: float = 0.0
    duplicates: int = 0
    look_ups: int = 0
    foreign_readings: int = 0
    rejected: int = 0
    over_quota: int = 0
    clients: dict[int, ClientStatus] = field(default_factory=dict)
    """What each client said last."""
    delivered: defaultdict[int, int] = field(default_factory=lambda: defaultdict(int))
    """By client: readings acknowledged since the start."""
    clock_is_set: bool = True
    store_error: str = ""
    """Why the store does not do what it is asked; "" while it does."""
    asks_store: bool = False
    """True while a call to the store, or the pause before the next attempt, lasts."""
    progress_at: float = field(default_factory=time.monotonic)
    """When the thread last came round, or called the store (time.monotonic)."""
