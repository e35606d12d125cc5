#!/usr/bin/env python3
"""Collects what hosts install offline: every wheel that Skywave needs, and for each part a list of them with hashes.

    wheelhouse.py --source CHECKOUT --output FOLDER

FOLDER/VERSION then holds the wheels and client.txt, server.txt, archive.txt, emulator.txt (pip's requirements format,
with hashes). Wheels are those for the Python and the processor that run this. Prints VERSION; prints nothing to standard
output but that. Does nothing when FOLDER/VERSION was made from the same sources.

What comes from a registry is what runtime.txt and build.txt beside this file name by hash, and comes as a wheel: nothing of
it runs here. The exceptions are the sources of SDISTS, which have no wheels, and Skywave's own.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

PARTS = {"emulator": "", "client": "[client]", "server": "[server]", "archive": "[archive]"}
SOURCES = ("pyproject.toml", "skywave", "archive", "systemd")
SDISTS = ("docopt", "hdfs")
"""Published as sources alone; built here from sources whose hashes are known."""
RUNTIME, BUILD = (Path(__file__).with_name(name) for name in ("runtime.txt", "build.txt"))


def main() -> None:
    """See the head of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    version = re.search(r'__version__ = "(.+)"', (arguments.source / "skywave/__init__.py").read_text())
    if not version:
        sys.exit(f"{arguments.source}: no version in skywave/__init__.py")
    folder = arguments.output / version[1]
    mark = digest_of(arguments.source)
    made_of = folder / "sources.sha256"
    if not (made_of.exists() and made_of.read_text() == mark):
        collect(arguments.source, folder)
        made_of.write_text(mark)
    print(version[1])


def digest_of(source: Path) -> str:
    """Digest of everything that a release is made of."""
    digest = hashlib.sha256()
    files = [f for name in SOURCES for f in [source / name, *(source / name).rglob("*")] if f.is_file()]
    for file in [*sorted(f for f in files if f.suffix != ".pyc"), RUNTIME, BUILD]:
        digest.update(str(file.relative_to(source) if file.is_relative_to(source) else file.name).encode() + b"\0")
        digest.update(file.read_bytes())
    return digest.hexdigest()


def collect(source: Path, folder: Path) -> None:
    """Fills ``folder``, which appears whole."""
    making = folder.with_name(f".{folder.name}")
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as builder:
        venv.create(builder, with_pip=True)
        python = f"{builder}/bin/python"
        pip("install", "--require-hashes", "--no-deps", "--only-binary=:all:", f"--requirement={BUILD}", python=python)
        wheels = ["wheel", "--no-deps", "--no-build-isolation", f"--wheel-dir={making}"]
        pip(*wheels, "--require-hashes", "--only-binary=:all:", f"--no-binary={','.join(SDISTS)}",
            f"--requirement={RUNTIME}", python=python)  # fmt: skip
        pip(*wheels, "--no-index", str(source), python=python)
    hashes = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in making.glob("*.whl")}
    for part, extra in PARTS.items():
        (making / f"{part}.txt").write_text(locked(making, extra, hashes))
    shutil.rmtree(folder, ignore_errors=True)
    making.rename(folder)


def locked(folder: Path, extra: str, hashes: dict[str, str]) -> str:
    """What one part installs, a line each: ``name==version --hash=sha256:…  # file``."""
    report = json.loads(pip("install", "--dry-run", "--ignore-installed", "--no-index", "--find-links", str(folder),
                            "--report", "-", f"skywave{extra}"))  # fmt: skip
    lines = []
    for item in report["install"]:
        file = item["download_info"]["url"].rpartition("/")[2].replace("%2B", "+")
        meta = item["metadata"]
        lines.append(f"{meta['name']}=={meta['version']} --hash=sha256:{hashes[file]}  # {file}\n")
    return "".join(sorted(lines, key=str.lower))


def pip(*arguments: str, python: str = sys.executable) -> str:
    """Runs a Python's pip; its standard output."""
    command = [python, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    main()
