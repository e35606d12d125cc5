"""What every long-running process has: signals, figures and its log."""

from __future__ import annotations

import json
import logging
import socket
import subprocess
import sys
import urllib.request

import pytest
from support.parts import free_port, wait_for

from skywave import config
from skywave.process import service
from skywave.process.figures import Figure, FiguresServer
from skywave.process.snapshot import ClientSnapshot

FIGURES = [Figure("readings", "skywave_there", "It is there.")]


def ask(port: int, path: str = "/status", host: str = "127.0.0.1") -> bytes:
    with urllib.request.urlopen(f"http://{host}:{port}{path}", timeout=5) as answer:
        return answer.read()


def answer(port: int, host: str) -> bytes:
    """What is answered there; empty while nobody listens."""
    try:
        return ask(port, host=host)
    except OSError:
        return b""


def serving(http: config.Http) -> FiguresServer:
    return FiguresServer(http, FIGURES, lambda: ClientSnapshot(readings=1), {"who": "it"})


def test_signals_at_any_moment_set_a_flag_and_interrupt_nothing():
    """A storm of signals while the main thread prints, holds locks, waits on events and raises."""
    script = (
        "import os, sys, threading\n"
        "from skywave.process.service import Signals\n"
        "signals, lock, event = Signals(), threading.Lock(), threading.Event()\n"
        "print('ready', flush=True)\n"
        "while signals.count < 200:\n"
        "    print('x' * 100)\n"
        "    with lock:\n"
        "        event.set(); event.clear()\n"
        "    signals.wait(0)\n"
        "print('end', flush=True)\n"
        "os._exit(0)\n"  # while Python ends, the storm would meet the system's own handlers
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "ready\n"
        sender = (
            "import os, sys, time\n"
            "try:\n"
            "    while True:\n"
            f"        os.kill({process.pid}, 2); os.kill({process.pid}, 15); time.sleep(0.001)\n"
            "except ProcessLookupError: pass\n"
        )
        with subprocess.Popen([sys.executable, "-c", sender]) as storm:
            output, errors = process.communicate(timeout=60)
            storm.terminate()
    finally:
        process.kill()
    assert (process.returncode, errors) == (0, "") and output.endswith("end\n")


def test_a_wait_ends_as_soon_as_a_signal_comes():
    script = (
        "import time\nfrom skywave.process.service import Signals\nsignals = Signals()\nprint('ready', flush=True)\n"
        "print(signals.wait(60), signals.count, signals.wait(60))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    process.stdout.readline()
    process.terminate()
    assert process.communicate(timeout=30)[0] == "True 1 True\n"


def test_figures_whose_port_is_taken_are_shown_as_soon_as_it_is_free(monkeypatch):
    monkeypatch.setattr("skywave.process.figures.LISTEN_RETRY_S", 0.05)
    other = socket.create_server(("127.0.0.1", 0))
    port = other.getsockname()[1]
    figures = serving(config.Http(port=port))
    wait_for(lambda: figures.trouble, 10, "it says so")
    assert f"127.0.0.1:{port}" in figures.trouble
    other.close()
    wait_for(lambda: not figures.trouble, 10, "it listens")
    assert json.loads(ask(port))["readings"] == 1
    assert b'skywave_there{who="it"} 1.0' in ask(port, "/metrics")
    figures.stop()


@pytest.mark.parametrize("host", ["192.0.2.1", "no..host", "nowhere.invalid"])
def test_an_address_that_is_not_there_holds_nothing_up(host, monkeypatch):
    monkeypatch.setattr("skywave.process.figures.LISTEN_RETRY_S", 0.05)
    figures = serving(config.Http(host=host, port=free_port()))
    wait_for(lambda: host in figures.trouble, 30, "it says so")
    figures.stop()


def test_figures_that_are_turned_off_are_no_trouble():
    figures = serving(config.Http())
    assert not figures.trouble
    figures.stop()


def test_figures_are_shown_on_ipv6():
    port = free_port()
    try:
        socket.create_server(("::1", port), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this host has no IPv6")
    figures = serving(config.Http(host="::1", port=port))
    assert json.loads(wait_for(lambda: answer(port, "[::1]"), 10, "it listens"))["readings"] == 1
    figures.stop()


def test_no_password_gets_into_a_log(capfd, monkeypatch):
    for journal in ("", "1:2"):
        if journal:
            monkeypatch.setenv("JOURNAL_STREAM", journal)
        service.setup_logging()
        logging.getLogger("some.library").error("cannot connect to %s", "postgresql://edge:S3CRET@db/o")
    logging.getLogger().handlers.clear()
    said = capfd.readouterr().err
    assert "S3CRET" not in said and said.count("edge:***@db/o") == 2
