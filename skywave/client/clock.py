"""The wall clock, and by how much it was wrong before it was set.

A machine without a battery starts in 1970 until a time server answers. The clock that counts since the boot
(CLOCK_BOOTTIME) goes on at its own pace meanwhile, so the jump of the one against the other, when the wall clock is set,
is exactly what all times before it lack.
"""

from __future__ import annotations

import time
from array import array
from datetime import UTC, datetime

from ..formats.messages import EARLIEST

EARLIEST_US = int(datetime(EARLIEST.year, EARLIEST.month, EARLIEST.day, tzinfo=UTC).timestamp() * 1e6)


class Clock:
    """``is_set`` is False while the wall clock shows a date at which it cannot have been set; ``jump`` is what its times from
    then lack, in microseconds, 0 while that is not known."""

    def __init__(self) -> None:
        self.is_set = True
        self.jump = 0
        self._unset = 0
        self.look()

    def look(self) -> None:
        """Compares the two clocks."""
        now = time.time_ns() // 1000
        ahead = now - time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000
        if now < EARLIEST_US:
            self.is_set, self._unset = False, ahead
        elif not self.is_set:
            self.is_set, self.jump = True, ahead - self._unset

    def corrected(self, created_at: array[int]) -> array[int]:
        """The times (microseconds, UTC), those from before the clock was set moved by the jump, if it is known."""
        if not self.jump or min(created_at) >= EARLIEST_US:
            return created_at
        return array("q", (at + self.jump if at < EARLIEST_US else at for at in created_at))
