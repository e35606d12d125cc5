"""Containers for the tests that need whole hosts: the daemon, and an image of a bare Debian that boots systemd.

No image is pulled: the base is made by debootstrap, once for each state of this file and of this machine's package
sources, and kept. The daemon is started if none runs, and then left running, as a service would be.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("DOCKER_HOST", "unix:///var/run/docker.sock")

DOCKER = "/usr/bin/docker"
SUITE = "bookworm"
BARE = "systemd,systemd-sysv,dbus,python3,python3-apt,iproute2,sudo,ca-certificates,procps"
ROOT = Path("/")
MACHINE_FILES = [
    "etc/apt/sources.list",
    "etc/apt/sources.list.d",
    "etc/pip.conf",
    "etc/ssl/certs/ca-certificates.crt",
    "usr/local/share/ca-certificates",
]
"""What lets apt and pip reach their package sources from this machine, copied into the image if it is here."""

LAB_FILES = {
    "etc/dpkg/dpkg.cfg.d/lab": "force-unsafe-io\npath-exclude=/usr/share/doc/*\npath-exclude=/usr/share/man/*\n",
    "etc/apt/apt.conf.d/99lab": 'Acquire::Check-Valid-Until "false";\nAcquire::Check-Date "false";\n',
}
"""Hosts of a test are installed many times: nothing is synced to the disk, and manuals are left out."""


def docker(*arguments: str, check: bool = True, **more: object) -> str:
    """Runs docker; its standard output."""
    result = subprocess.run([DOCKER, *arguments], check=False, text=True, capture_output=True, **more)  # type: ignore[call-overload]
    if check and result.returncode:
        raise RuntimeError(f"docker {' '.join(arguments)[:200]}: {result.stderr.strip()[-2000:]}")
    return str(result.stdout)


def ensure_docker() -> None:
    """Returns when a daemon answers; starts one if there is none."""
    if _answers():
        return
    log = Path(tempfile.gettempdir()) / "dockerd.log"
    with log.open("ab") as out:
        subprocess.run(["setsid", "--fork", "/usr/sbin/dockerd"], stdout=out, stderr=out, check=True)
    for _ in range(120):
        time.sleep(0.5)
        if _answers():
            return
    raise RuntimeError(f"dockerd does not answer, see {log}")


def _answers() -> bool:
    return subprocess.run([DOCKER, "info"], check=False, capture_output=True).returncode == 0


def base_image(packages: str = BARE) -> str:
    """The tag of an image with a minimal Debian and these packages, built if it is not here yet (about a minute)."""
    ensure_docker()
    digest = hashlib.sha256("\n".join([SUITE, packages, *LAB_FILES, *LAB_FILES.values()]).encode())
    for file in _machine_files():
        digest.update(file.read_bytes())
    tag = f"skywave-lab-base:{digest.hexdigest()[:12]}"
    if not docker("images", "--quiet", tag).strip():
        with tempfile.TemporaryDirectory() as folder:
            _bootstrap(Path(folder) / "root", tag, packages)
    return tag


def image_with(packages: Sequence[str]) -> str:
    """The tag of a bare image that has these packages' files at hand, none of them installed."""
    base = base_image()
    tag = f"skywave-lab:{hashlib.sha256(' '.join([base, *packages]).encode()).hexdigest()[:12]}"
    if not docker("images", "--quiet", tag).strip():
        script = f"apt-get update -qq && apt-get install -qq --yes --download-only {' '.join(packages)}"
        container = docker("create", base, "sh", "-c", script).strip()
        try:
            docker("start", "--attach", container)
            docker("commit", container, tag)
        finally:
            docker("rm", "--force", container)
    return tag


def _machine_files() -> list[Path]:
    found = []
    for name in MACHINE_FILES:
        path = ROOT / name
        found += sorted(f for f in path.rglob("*") if f.is_file()) if path.is_dir() else [path] if path.exists() else []
    return found


def _bootstrap(root: Path, tag: str, packages: str) -> None:
    subprocess.run(
        ["debootstrap", "--variant=minbase", f"--include={packages}", SUITE, str(root)],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    for file in _machine_files():
        target = root / file.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    if (root / "etc/apt/sources.list.d").exists() and any((root / "etc/apt/sources.list.d").iterdir()):
        (root / "etc/apt/sources.list").write_text("")
    for name, text in LAB_FILES.items():
        (root / name).write_text(text)
    shutil.rmtree(root / "var/cache/apt/archives", ignore_errors=True)
    subprocess.run(["chroot", str(root), "update-ca-certificates"], check=True, capture_output=True)
    archive = subprocess.Popen(["tar", "-C", str(root), "-c", "."], stdout=subprocess.PIPE)
    docker("import", "-", tag, stdin=archive.stdout)
    if archive.wait():
        raise RuntimeError("the image could not be packed")
