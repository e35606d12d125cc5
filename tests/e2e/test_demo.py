"""The demo on its own, without a terminal, and when it is interrupted."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import numpy as np
from stand import skywave

from skywave.demo import compare


def test_the_demo_survives_its_outage_and_prints_one_json_object_last():
    result = skywave("demo", "--seconds", "6", "--rate", "3000", "--json", "--seed", "1")
    document = json.loads(result.stdout.splitlines()[-1])
    assert document["produced"] == document["stored"] == document["archived"] == document["restored"] > 10_000
    assert (document["lost"], document["doubled"], document["outages"]) == (0, 0, 1)
    assert document["readings_per_s"] > 1000


def test_ctrl_c_ends_the_demo_with_the_account_so_far():
    demo = subprocess.Popen(
        [sys.executable, "-m", "skywave", "demo", "--seconds", "600", "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        for line in demo.stderr:
            if "sensors send" in line:
                break
        demo.send_signal(signal.SIGINT)
        output, errors = demo.communicate(timeout=60)
    finally:
        demo.kill()
    assert demo.returncode == 0, errors
    document = json.loads(output.splitlines()[-1])
    assert document["produced"] == document["stored"] == document["restored"]
    assert document["lost"] == document["doubled"] == 0


def test_the_comparison_sees_what_is_lost_and_what_is_doubled():
    assert compare(np.array([1.0, 2.0, 2.0, 3.0]), np.array([1.0, 2.0, 3.0, 3.0, 4.0])) == (1, 2)
    assert compare(np.array([1.0]), np.array([])) == (1, 0)
    assert compare(np.array([]), np.array([])) == (0, 0)
