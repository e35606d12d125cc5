"""The Vagrantfile as far as it can be tried without a hypervisor."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def vagrant(tmp_path_factory):
    """Runs a command of Vagrant, with a home of its own."""
    subprocess.run([ROOT / "tests/system-packages.sh", "vagrant"], check=True)
    home, dotfile = (tmp_path_factory.mktemp(name) for name in ("home", "dotfile"))

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {
            "PATH": "/usr/bin:/bin", "HOME": str(home), "VAGRANT_HOME": str(home), "VAGRANT_DOTFILE_PATH": str(dotfile),
            "VAGRANT_CHECKPOINT_DISABLE": "1", "LANG": "C.UTF-8",
            "VAGRANT_DEFAULT_PROVIDER": "docker",  # the one that needs no hypervisor; nothing is started with it
        }  # fmt: skip
        return subprocess.run(
            ["vagrant", *arguments], cwd=ROOT / "vagrant", env=environment, capture_output=True, text=True, check=False
        )

    return run


def test_the_vagrantfile_is_valid(vagrant):
    result = vagrant("validate", "--ignore-provider")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "validated successfully" in result.stdout


def test_the_machines_are_those_of_the_readme(vagrant):
    """Machine-readable lines are: time, machine, kind, data."""
    result = vagrant("status", "--machine-readable")
    machines = sorted({line.split(",")[1] for line in result.stdout.splitlines()} - {""})
    assert machines == ["core1", "edge1", "edge2", "hdfs1"], result.stdout + result.stderr
    readme = (ROOT / "vagrant/README.md").read_text()
    assert all(f"`{machine}`" in readme for machine in machines)
