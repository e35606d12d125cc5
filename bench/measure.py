"""What the benchmarks measure with: CPU time, memory and bytes written of processes, from /proc."""

from __future__ import annotations

import os
from pathlib import Path

_TICK = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


def tree(pid: int) -> list[int]:
    """The process and all its descendants."""
    pids = [pid]
    for parent in pids:
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            pids += [int(child) for child in task.read_text().split()]
    return pids


def cpu_seconds(pid: int) -> float:
    """User and system time of a process, its threads, its children and the children it has buried."""
    total = 0
    for one in tree(pid):
        fields = Path(f"/proc/{one}/stat").read_text().rsplit(")", 1)[1].split()
        total += int(fields[11]) + int(fields[12]) + (int(fields[13]) + int(fields[14]) if one == pid else 0)
    return total / _TICK


def rss(pid: int) -> int:
    """Resident bytes of one process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE


def written(pid: int) -> int:
    """Bytes that a process and its living descendants caused to be written to disks (proc(5), io: write_bytes)."""
    total = 0
    for one in tree(pid):
        lines = Path(f"/proc/{one}/io").read_text().splitlines()
        total += next(int(line.split()[1]) for line in lines if line.startswith("write_bytes"))
    return total
