"""A debug bundle: what to look at when something is wrong, from a list of what may leave the host. No secret is on it.

Configurations should hold no secrets (they name files that do), and of the environment, the credentials' folder and the
databases nothing is taken. One that stands in a configuration or a log all the same is masked.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import subprocess
import tarfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from .. import __version__, config
from ..config import masking
from ..errors import ConfigError, NotRunning
from ..process.asking import fetch_bytes
from .doctor import examine

JOURNAL_LINES = 5000
COMMANDS = {
    "host/uptime.txt": ["uptime"],
    "host/disk.txt": ["df", "-h"],
    "host/memory.txt": ["cat", "/proc/meminfo"],
    "host/pressure.txt": ["cat", "/proc/loadavg"],
    "host/addresses.txt": ["ip", "-brief", "address"],
    "host/clock.txt": ["timedatectl"],
    "host/release.txt": ["cat", "/etc/os-release"],
    "units/list.txt": ["systemctl", "list-units", "--all", "--no-pager", "skywave*"],
    "units/timers.txt": ["systemctl", "list-timers", "--all", "--no-pager", "skywave*"],
    "journal.txt": ["journalctl", "--no-pager", "-u", "skywave-*", "-n", str(JOURNAL_LINES)],
}


def write_bundle(target: Path, configurations: list[Path]) -> list[str]:
    """Writes a .tar.gz readable by its owner alone; the names in it."""
    names = []
    known = _secrets(configurations)
    target.touch(mode=0o600)
    with tarfile.open(target, "w:gz") as archive:
        for name, found in _contents(configurations):
            content = masking.mask(found.decode("utf-8", "replace"), known).encode()
            entry = tarfile.TarInfo(f"skywave-bundle/{name}")
            entry.size, entry.mtime, entry.mode = len(content), int(time.time()), 0o600
            archive.addfile(entry, io.BytesIO(content))
            names.append(name)
    return names


def _contents(configurations: list[Path]) -> Iterator[tuple[str, bytes]]:
    yield "version.txt", f"{__version__}\n".encode()
    for path in configurations:
        kind = path.stem
        yield f"configuration/{path.name}", path.read_bytes()
        yield f"doctor/{kind}.json", json.dumps([f._asdict() for f in examine(path)], indent=1).encode()
        try:
            settings = config.load_any(path)
        except ConfigError:
            continue  # the archive's, which has no figures of its own, or broken: the doctor says so
        for name in ("status", "metrics"):
            if settings.http.port:
                yield f"{name}/{kind}.txt", _fetch(f"{settings.http.url}/{name}")
    for name, command in COMMANDS.items():
        yield name, _run(command)


def _secrets(configurations: Sequence[Path]) -> set[str]:
    """The secrets of this host that can be known: what the files hold that configurations name, and what stands in these."""
    known = set()
    for path in configurations:
        with contextlib.suppress(OSError):
            known |= masking.found(path.read_text(encoding="utf-8", errors="replace"))
        with contextlib.suppress(ConfigError):
            for file in config.secret_files(path):
                with contextlib.suppress(ConfigError):
                    known.add(config.secret(file))
    return known


def _run(command: list[str]) -> bytes:
    if not shutil.which(command[0]):
        return f"{command[0]} is not here\n".encode()
    return subprocess.run(command, capture_output=True, check=False, timeout=60).stdout


def _fetch(url: str) -> bytes:
    try:
        return fetch_bytes(url)
    except NotRunning as error:
        return f"{error}\n".encode()
