"""What the benchmarks measure with."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

WORK = """
import threading, time
def work():
    while time.thread_time() < 0.3: pass
thread = threading.Thread(target=work)
thread.start()
thread.join()
print("done", flush=True)
time.sleep(600)
"""


@pytest.fixture
def measure(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "bench")
    import measure

    return measure


def test_the_cpu_time_of_threads_that_have_ended_counts(measure):
    with subprocess.Popen([sys.executable, "-c", WORK], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        assert measure.cpu_seconds(process.pid) >= 0.3
        process.kill()
    assert measure.cpu_seconds(process.pid) == 0, "it is gone"


def test_it_is_the_cpu_time_of_this_process_by_its_own_clock(measure):
    before = time.process_time()
    assert before <= measure.cpu_seconds(os.getpid())
