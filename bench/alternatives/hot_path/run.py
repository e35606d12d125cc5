"""Would another language make the hot path cheaper? The same work in Python (Skywave's own functions), Go and Rust.

``client``: frames of a sensor become batches of 500 readings, each an Arrow stream with LZ4. ``server``: these batches become
blocks of ClickHouse's native format. No network, no database: what stays is what a language can change. All three give the
same counts and sums, and Python decodes what the others encoded. Needs Go and Rust; prints CPU-seconds a million readings.
"""

from __future__ import annotations

import json
import random
import resource
import shutil
import subprocess
import sys
from pathlib import Path

from report import row, write

from skywave.formats.frames import frame

HERE = Path(__file__).parent
READINGS = 4_000_000
WORK = Path("build/alternatives")


def build() -> dict[str, list[str]]:
    """The command of each language."""
    go, rust = WORK / "hotpath-go", WORK / "rust"
    subprocess.run(["go", "build", "-o", go.absolute(), "."], cwd=HERE / "go", check=True)
    subprocess.run(
        ["cargo", "build", "--release", "--quiet", "--locked", "--target-dir", rust.absolute()],
        cwd=HERE / "rust",
        check=True,
    )
    return {
        "Python": [sys.executable, str(HERE / "product.py")],
        "Go": [str(go.absolute())],
        "Rust": [str(rust.absolute() / "release/hotpath")],
    }


def timed(command: list[str]) -> tuple[float, dict[str, float]]:
    """CPU-seconds of a command, and what it said."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, json.loads(said)


def main() -> None:
    WORK.mkdir(parents=True, exist_ok=True)
    commands = build()
    frames, none = WORK / "frames", WORK / "none"
    rng = random.Random(1)
    frames.write_bytes(b"".join(frame(b"%.2f" % rng.gauss(20, 5)) for _ in range(READINGS)))
    none.write_bytes(b"")
    results: dict[tuple[str, str], tuple[float, dict[str, float]]] = {}
    for language, command in commands.items():
        batches = WORK / f"batches-{language}"
        start, _ = timed([*command, "client", str(none), str(WORK / "nothing")])
        for path, words in (("client", [str(frames), str(batches)]), ("server", [str(batches)])):
            seconds, said = min((timed([*command, path, *words]) for _ in range(3)), key=lambda each: each[0])
            results[language, path] = (seconds - start) / READINGS * 1e6, said
    for language in ("Go", "Rust"):
        _, said = timed([*commands["Python"], "server", str(WORK / f"batches-{language}")])
        assert said["readings"] == READINGS, "Skywave decodes what they encode"
    for path in ("client", "server"):
        counts = {(said["readings"], said["sum"]) for (_, which), (_, said) in results.items() if which == path}
        assert len(counts) == 1, counts
        python = results["Python", path][0]
        for language in commands:
            cost, said = results[language, path]
            size = f", {said['bytes'] / READINGS:.1f} B a reading" if path == "client" else ""
            row(f"{path} path in {language}", "-", f"{cost:.3f} s/M ({python / cost:.1f} times Python's speed{size})")
    write("alternatives-language")
    shutil.rmtree(WORK / "rust", ignore_errors=True)


if __name__ == "__main__":
    main()
