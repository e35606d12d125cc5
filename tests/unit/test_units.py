"""The systemd units: what systemd says of them, offline, on a root made of the units and empty programs."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
UNITS = sorted(path.name for path in (ROOT / "systemd").iterdir() if path.is_file())
SERVICES = [name for name in UNITS if name.endswith(".service")]
PROGRAMS = [
    "opt/skywave/bin/skywave-release",
    "opt/skywave/current/bin/skywave",
    "opt/skywave/current/bin/skywave-archive",
    "usr/sbin/nft",
]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A system's root as ``systemd-analyze --root`` wants it."""
    folder = tmp_path_factory.mktemp("root")
    shutil.copytree("/lib/systemd/system", folder / "usr/lib/systemd/system", symlinks=True)
    (folder / "lib").symlink_to("usr/lib")
    shutil.copytree(ROOT / "systemd", folder / "usr/local/lib/systemd/system")
    for program in PROGRAMS:
        (folder / program).parent.mkdir(parents=True, exist_ok=True)
        (folder / program).write_text("#!/bin/sh\n")
        (folder / program).chmod(0o755)
    return folder


def instance(name: str) -> str:
    return name.replace("@.", "@temperature.")


def analyze(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["systemd-analyze", *arguments[:1], f"--root={root}", *arguments[1:]]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", UNITS)
def test_systemd_finds_nothing_wrong_with_a_unit(root, name):
    result = analyze(root, "verify", "--man=no", "--recursive-errors=no", instance(name))
    assert result.returncode == 0 and not result.stderr, result.stderr


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_exposed_by_at_most_two_of_ten(root, name):
    result = analyze(root, "security", "--offline=true", "--threshold=20", instance(name))
    assert result.returncode == 0, result.stdout[-300:]


def test_a_unit_that_is_wrong_is_found_wrong(root):
    (root / "usr/local/lib/systemd/system/wrong.service").write_text("[Service]\nExecStart=/opt/nothing\nUser=root\n")
    assert analyze(root, "verify", "--man=no", "--recursive-errors=no", "wrong.service").returncode != 0
    assert analyze(root, "security", "--offline=true", "--threshold=20", "wrong.service").returncode != 0


def test_every_secret_comes_as_a_credential_and_none_by_the_environment():
    for name in UNITS:
        text = (ROOT / "systemd" / name).read_text()
        assert "Environment" not in text, name
        if "--config /etc/skywave" in text:
            assert "LoadCredential=" in text, name
