"""The demo on its own, without a terminal, and when it is interrupted."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.parts import wait_for
from support.stand import skywave

from skywave.demo.demo import compare


def test_the_demo_survives_its_outage_and_prints_one_json_object_last():
    result = skywave("demo", "--seconds", "6", "--rate", "3000", "--json", "--seed", "1")
    document = json.loads(result.stdout.splitlines()[-1])
    assert document["produced"] == document["stored"] == document["archived"] == document["restored"] > 10_000
    assert (document["lost"], document["doubled"], document["outages"]) == (0, 0, 1)
    assert document["readings_per_s"] > 1000


@pytest.mark.parametrize("moment", ["server with embedded store starts", "sensors send"])
def test_ctrl_c_ends_the_demo_with_the_account_so_far(moment):
    with running_demo() as demo:
        until(demo, moment)
        demo.send_signal(signal.SIGINT)
        output, errors = demo.communicate(timeout=100)
    assert demo.returncode == 0, output[-3000:] + errors
    document = json.loads(output.splitlines()[-1])
    assert document["produced"] == document["stored"] == document["restored"]
    assert document["lost"] == document["doubled"] == 0


def test_a_second_ctrl_c_gives_the_demo_up_without_a_trace(tmp_path):
    folder = tmp_path / "demo"
    with running_demo("--keep", str(folder)) as demo:
        until(demo, "sensors send")
        demo.send_signal(signal.SIGINT)
        until(demo, "Ctrl-C")
        demo.send_signal(signal.SIGTERM)
        _, errors = demo.communicate(timeout=60)
    assert demo.returncode == 1 and "Aborted" in errors and "Traceback" not in errors
    wait_for(lambda: not parts_in(folder), 10, lambda: f"its parts end: {parts_in(folder)}")


@contextlib.contextmanager
def running_demo(*options):
    demo = subprocess.Popen(
        [sys.executable, "-m", "skywave", "demo", "--seconds", "600", "--json", *options],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        yield demo
    finally:
        demo.kill()


def until(demo, words):
    said = []
    for line in demo.stderr:
        said.append(line)
        if words in line:
            return
    raise AssertionError(f"the demo ended before {words!r}: {''.join(said)}")


def parts_in(folder):
    """The processes that were started with a file of the folder, by their command lines; zombies have none."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found.append(path.read_bytes().decode(errors="replace"))
    return [command for command in found if str(folder) in command and "\0demo\0" not in command]


def test_the_comparison_sees_what_is_lost_and_what_is_doubled():
    assert compare(np.array([1.0, 2.0, 2.0, 3.0]), np.array([1.0, 2.0, 3.0, 3.0, 4.0])) == (1, 2)
    assert compare(np.array([1.0]), np.array([])) == (1, 0)
    assert compare(np.array([]), np.array([])) == (0, 0)
