#!/usr/bin/env python3
"""Backs a fleet's controller up: one archive that a new controller can be made of (docs/operate.md, "The controller is lost").

    backup.py --fleet NAME --authority FOLDER --inventory FOLDER --releases FOLDER [--through COMMAND] FOLDER

FOLDER/NAME-DATE.tar (or what COMMAND makes of it, an encrypting program for example) appears whole, for its owner alone. It
holds the folders ``authority``, ``inventory`` and ``releases``, in this order, and a list of the SHA-256 of every file in it,
``contents.sha256``, for ``sha256sum --check``. Prints what was written.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import shlex
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

NEEDED = ("ca.key", "ca.crt", "issued", "passwords")


def main() -> None:
    """See the head of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fleet", required=True)
    for folder in ("authority", "inventory", "releases"):
        parser.add_argument(f"--{folder}", type=Path, required=True)
    parser.add_argument("--through", type=shlex.split, default=[])
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    folders = {name: getattr(arguments, name) for name in ("authority", "inventory", "releases")}
    if missing := [name for name in NEEDED if not (folders["authority"] / name).exists()]:
        sys.exit(f"{folders['authority']} is no whole authority: {', '.join(missing)} is missing")
    if arguments.output.resolve().is_relative_to(folders["authority"].resolve()):
        sys.exit(f"{arguments.output} lies in what is backed up")
    arguments.output.mkdir(mode=0o700, parents=True, exist_ok=True)
    date = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    target = (
        arguments.output
        / f"{arguments.fleet}-{date}.tar{'.' + Path(arguments.through[0]).name if arguments.through else ''}"
    )
    files = write(target, folders, arguments.through)
    print(f"{target}: {files} files, {target.stat().st_size} bytes")


def write(target: Path, folders: dict[str, Path], through: list[str]) -> int:
    """Writes the archive so that it appears whole and survives a power cut; the number of files in it."""
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}", dir=target.parent)  # for its owner alone
    try:
        with os.fdopen(descriptor, "wb") as file:
            if through:
                with subprocess.Popen(through, stdin=subprocess.PIPE, stdout=file) as filter_:
                    assert filter_.stdin is not None
                    with filter_.stdin as pipe:
                        files = pack(pipe, folders)
                if filter_.returncode:
                    sys.exit(f"{shlex.join(through)} ended with {filter_.returncode}: nothing was backed up")
            else:
                files = pack(file, folders)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    folder = os.open(target.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)
    return files


def pack(pipe: io.BufferedIOBase, folders: dict[str, Path]) -> int:
    """Writes the folders' files, and their digests last; how many there are."""
    digests = []
    with tarfile.open(fileobj=pipe, mode="w|") as archive:
        for name, folder in folders.items():
            for file in sorted(files_below(folder)):
                content = file.read_bytes()
                entry = archive.gettarinfo(file, f"{name}/{file.relative_to(folder)}")
                if not entry.isreg():  # a link to a file, or a file that has a second name: the file itself
                    entry.type, entry.linkname = tarfile.REGTYPE, ""
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
                digests.append(f"{hashlib.sha256(content).hexdigest()}  {entry.name}\n")
        listed = "".join(digests).encode()
        entry = tarfile.TarInfo("contents.sha256")
        entry.size, entry.mode = len(listed), 0o600
        archive.addfile(entry, io.BytesIO(listed))
    return len(digests)


def files_below(folder: Path) -> Iterator[Path]:
    """The files in it and in its folders, links followed: a new controller may lack what they lead to."""
    seen = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        seen.add(os.path.realpath(parent))
        folders[:] = [name for name in folders if os.path.realpath(Path(parent) / name) not in seen]
        yield from (path for name in files if (path := Path(parent) / name).is_file())


if __name__ == "__main__":
    main()
