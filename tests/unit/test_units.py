"""The systemd units: what systemd says of them, offline, on a root made of the units and empty programs."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
UNITS = sorted(path.name for path in (ROOT / "systemd").iterdir() if path.is_file())
SERVICES = [name for name in UNITS if name.endswith(".service")]
SANDBOX = ROOT / "systemd/skywave-.service.d/10-sandbox.conf"
NEEDS = ROOT / "ansible/roles/common/files/sandbox"
PACKAGED = {
    "mosquitto.service": "mosquitto",
    "clickhouse-server.service": "clickhouse",
    "postgresql@15-main.service": "postgresql",
}
"""Units of Debian's packages, and what each needs beyond the sandbox of all services."""
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


def confine(root: Path, unit: str, needs: str) -> None:
    """As the role common does it."""
    folder = root / f"etc/systemd/system/{unit}.d"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(SANDBOX, folder / "10-skywave-sandbox.conf")
    shutil.copyfile(NEEDS / f"{needs}.conf", folder / "20-skywave-needs.conf")


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_exposed_by_at_most_two_of_ten(root, name):
    result = analyze(root, "security", "--offline=true", "--threshold=20", instance(name))
    assert result.returncode == 0, result.stdout[-300:]


@pytest.mark.parametrize("name", PACKAGED)
def test_a_database_or_broker_of_debian_s_is_confined_like_our_own_services(root, name):
    bare = analyze(root, "security", "--offline=true", "--threshold=70", name)
    assert bare.returncode != 0, "Debian confines it by now: look what of this is still needed"
    confine(root, name, PACKAGED[name])
    result = analyze(root, "security", "--offline=true", "--threshold=20", name)
    assert result.returncode == 0, result.stdout[-300:] + result.stderr


def test_a_java_service_is_confined_like_our_own_services(root):
    (root / "usr/local/lib/systemd/system/java.service").write_text("[Service]\nExecStart=/opt/java\nUser=hdfs\n")
    confine(root, "java.service", "java")
    result = analyze(root, "security", "--offline=true", "--threshold=20", "java.service")
    assert result.returncode == 0, result.stdout[-300:] + result.stderr


def test_memory_is_limited_for_each_service_and_what_holds_readings_is_the_last_to_go():
    scores = {}
    for name in SERVICES:
        settings = dict(re.findall(r"^(\w+)=(.*)$", (ROOT / "systemd" / name).read_text(), re.M))
        assert settings["MemoryMax"], name
        scores[name] = int(settings.get("OOMScoreAdjust", 0))
    first = {"skywave-archive.service", "skywave-verify.service", "skywave-drill.service", "skywave-open-day.service"}
    assert min(scores[name] for name in first) > scores["skywave-server.service"] > scores["skywave-client.service"]
    assert "OOMScoreAdjust=-" in (NEEDS / "mosquitto.conf").read_text()


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
