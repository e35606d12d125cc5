"""What the benchmarks measure with: CPU time, memory and bytes written of processes, from /proc."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

_PAGE = os.sysconf("SC_PAGE_SIZE")


def tree(pid: int) -> list[int]:
    """The process and all its living descendants."""
    pids = [pid]
    for parent in pids:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{parent}/task").glob("*/children"):
                pids += [int(child) for child in task.read_text().split()]
    return pids


def _sum(pid: int, figure: Callable[[int], float]) -> float:
    total = 0.0
    for one in tree(pid):
        with contextlib.suppress(OSError):  # it ended meanwhile
            total += figure(one)
    return total


def cpu_seconds(pid: int) -> float:
    """Seconds that a process and its living descendants were on a CPU, with those of their threads that have ended:
    ClickHouse reads with threads that live as long as a query.

    By each process's CPU-time clock, in nanoseconds: the times in ``stat`` are counted by the tick, which overstates a
    process that wakes up by timers by a factor of two. Its number is the kernel's, as clock_getcpuclockid(3) makes it
    (include/linux/posix-timers_types.h, CPUCLOCK_SCHED).
    """
    return _sum(pid, lambda one: time.clock_gettime(~one << 3 | 2))


def rss(pid: int) -> int:
    """Resident bytes of one process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE


def written(pid: int) -> int:
    """Bytes that a process and its living descendants gave to write() (proc(5), io: wchar).

    Not ``write_bytes``: some file systems count a large extent there for each fsync.
    """

    def bytes_of(one: int) -> int:
        lines = Path(f"/proc/{one}/io").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("wchar"))

    return int(_sum(pid, bytes_of))
