"""The time of day as dates and words, always UTC, and the clock that counts since the boot."""

from __future__ import annotations

import time
from datetime import UTC, date, datetime


def utc_today() -> date:
    """Today's date in UTC: the day that a server tells its clients, and after which an archive's days are open or closed."""
    return datetime.now(UTC).date()


def utc_now() -> str:
    """The time as ISO 8601 in UTC, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def boottime() -> float:
    """Seconds since the boot, sleep included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
