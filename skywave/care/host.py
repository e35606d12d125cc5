"""What the host itself shows: its firewall, its mounts, and how often systemd had to start a unit again."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from .. import config
from ..process.times import boottime
from .findings import Finding

TABLE = Path("firewall.nft")
GUARDS = "firewall.d/*.nft"
FSTAB, MOUNTED = Path("/etc/fstab"), Path("/proc/self/mounts")
RESTARTS = 3
LATELY_S = 900.0
_PORTS = re.compile(r"\bdport\s+(?:\{([^}]*)\}|(\d+))")


def firewall() -> Iterator[Finding]:
    """Whether the kernel guards each port that this host's files say; nothing where no firewall was installed."""
    if not (config.INSTALLED / TABLE).exists():
        return
    advice = "systemctl reload-or-restart skywave-firewall; look who flushed the rules."
    loaded = _say("nft", "list", "table", "inet", "skywave")
    if loaded is None:
        yield Finding("firewall", False, "its table is not loaded, or this user may not see it", f"As root: {advice}")
        return
    wanted = {port for file in config.INSTALLED.glob(GUARDS) for port in _ports(file.read_text(encoding="utf-8"))}
    open_ports = sorted(wanted - _ports(loaded), key=int)
    found = f"does not guard {', '.join(open_ports)}" if open_ports else f"guards {len(wanted)} ports"
    yield Finding("firewall", not open_ports, found, advice)


def _ports(rules: str) -> set[str]:
    return {port for match in _PORTS.finditer(rules) for port in re.findall(r"\d+", match[1] or match[2])}


def restarts(unit: str) -> Iterator[Finding]:
    """A service that dies again and again is started again for ever, and so is never ``failed``: here it is seen."""
    shown = _say("systemctl", "show", unit, "--property=NRestarts,ActiveState,ActiveEnterTimestampMonotonic")
    if not shown:
        return
    values = dict(line.partition("=")[::2] for line in shown.splitlines())
    count, state = int(values.get("NRestarts") or 0), values.get("ActiveState", "")
    up_s = boottime() - int(values.get("ActiveEnterTimestampMonotonic") or 0) / 1e6
    loops = count >= RESTARTS and (state != "active" or up_s < LATELY_S)
    lately = f", {up_s:.0f} s ago the last time" if state == "active" else ""
    found = f"systemd started it again {count} times{lately}" if count else "runs since it was started"
    yield Finding("restarts", not loops, found, f"journalctl -u {unit} says what it dies of.")


def unmounted(path: Path) -> str:
    """The mount point above ``path`` that this host's fstab names and that is not mounted; "" if there is none."""
    points = [point for point in _points(FSTAB) if point == path.absolute() or point in path.absolute().parents]
    mounted = _points(MOUNTED)
    return next((str(point) for point in points if point not in mounted), "")


def _points(table: Path) -> list[Path]:
    """The mount points of a table in the format of fstab(5)."""
    try:
        rows = [line.split() for line in table.read_text(encoding="utf-8").splitlines()]
    except OSError:
        return []
    found = [row[1].replace("\\040", " ") for row in rows if len(row) > 1 and not row[0].startswith("#")]
    return [Path(point) for point in found if point.startswith("/")]


def _say(*command: str) -> str | None:
    """What a command prints; None if it is not here or fails."""
    program = shutil.which(command[0], path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if program is None:
        return None
    result = subprocess.run([program, *command[1:]], capture_output=True, text=True, check=False)
    return result.stdout if result.returncode == 0 else None
