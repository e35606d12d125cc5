"""What a stranger does first: clones the repository on a minimal Debian 12 that has git, make and Python alone, and runs the
two commands.

``python tests/support/minimal_host.py`` does it in a container whose first process reaps nothing and that may mount nothing;
arguments are commands to run in the clone instead of ``make demo`` and ``make test``.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from support.containers import DOCKER, base_image, docker

ROOT = Path(__file__).parents[2]
CLONE = "/root/skywave"
COMMANDS = ['make demo DEMO="--seconds 12 --json"', "make test"]


def main(commands: list[str]) -> int:
    container = docker("run", "--detach", base_image("ca-certificates,git,make,python3"), "sleep", "infinity").strip()
    try:
        with tempfile.TemporaryDirectory() as folder:
            bundle = Path(folder) / "skywave.bundle"
            subprocess.run(["git", "bundle", "create", "--quiet", bundle, "HEAD"], cwd=ROOT, check=True)
            docker("cp", str(bundle), f"{container}:/root/skywave.bundle")
        for command in ("git clone --quiet /root/skywave.bundle " + CLONE, *commands):
            folder = "/root" if command.startswith("git clone") else CLONE
            print(f"$ {command}", flush=True)
            inside = [DOCKER, "exec", "--workdir", folder, container, "sh", "-c", command]
            if code := subprocess.run(inside, check=False).returncode:
                return code
        return 0
    finally:
        docker("rm", "--force", "--volumes", container, check=False)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or COMMANDS))
