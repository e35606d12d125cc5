"""One judgement of a snapshot: what status, doctor and gate say is the same."""

from __future__ import annotations

import ast
import copy
import json
import threading
import types
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner
from support.figures import answers, shows

from skywave import config
from skywave.care import gate as gates
from skywave.care.doctor import examine
from skywave.care.findings import STALLS, Finding, wrong
from skywave.care.findings import judge as judged
from skywave.client.agent import Agent
from skywave.commands.main import main
from skywave.errors import NotRunning
from skywave.process.asking import fetch_bytes, fetch_status
from skywave.process.snapshot import decode
from skywave.server.service import ServerProcess

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def snapshots(tmp_path_factory):
    """What a client and a server of this release really say (JSON documents), made to be well."""
    folder = tmp_path_factory.mktemp("agent")
    client = config.parse({
        "client_id": 1, "sensors": {"t": {"port": 1}}, "outbox": {"path": f"{folder}/outbox"},
    }, config.Client)  # fmt: skip
    server = config.parse({"name": "s1", "store": {"port": 1}}, config.Server)
    processes = {"client": Agent(client), "server": ServerProcess(server)}
    said = {kind: json.loads(process.snapshot().encode()) for kind, process in processes.items()}
    for snapshot in said.values():
        snapshot |= {"connected": True, "accepting": True, "broker_error": ""}
    said["server"] |= {"store_ok": True, "store_error": ""}
    said["client"]["sensors"]["t"]["connected"] = True
    return said


@pytest.fixture
def said(snapshots):
    return copy.deepcopy(snapshots)


def judge(document: dict) -> list[Finding]:
    return judged(decode(document, "somebody"))


@pytest.mark.parametrize("kind", ["client", "server"])
def test_a_process_that_is_well_is_well(said, kind):
    assert not wrong(judge(said[kind]))


@pytest.mark.parametrize("kind", ["client", "server"])
@pytest.mark.parametrize("cause", [*STALLS, "store of shard s1", "broker 10.0.0.2:8883", "something new"])
def test_a_present_stall_is_a_finding_with_its_reason_and_what_to_do(said, kind, cause):
    said[kind]["stalls"] = {cause: {"for_s": 40.0, "why": "the broker says: Not authorized"}}
    (finding,) = wrong(judge(said[kind]))
    assert "the broker says: Not authorized (40 s)" in finding.found and finding.advice


@pytest.mark.parametrize(
    ("kind", "trouble"),
    [
        ("client", {"connected": False}),
        ("client", {"broker_error": "refused the connection: Not authorized"}),
        ("client", {"accepting": False}),
        ("client", {"outbox_error": "the disk is full"}),
        ("client", {"outbox_full": True}),
        ("client", {"oldest_unacked_s": 500.0}),
        ("client", {"set_aside": 3}),
        ("server", {"connected": False}),
        ("server", {"broker_error": "b2: refused the subscription: Not authorized"}),
        ("server", {"accepting": False}),
        ("server", {"store_ok": False, "store_error": "away"}),
    ],
)
def test_what_is_wrong_is_found_once(said, kind, trouble):
    (finding,) = wrong(judge(said[kind] | trouble))
    assert finding.advice
    for value in trouble.values():
        assert not isinstance(value, str) or value in finding.found or value == "away"


def test_every_cause_that_a_process_can_name_has_its_advice():
    for file in ("skywave/client/agent.py", "skywave/server/service.py"):
        tree = ast.parse((ROOT / file).read_text())
        causes = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and getattr(n.func, "id", "") == "Cause"]
        assert causes
        for cause in causes:
            first = cause.args[0]
            text = first.values[0] if isinstance(first, ast.JoinedStr) else first
            if isinstance(text, ast.Constant):
                assert any(str(text.value).startswith(known) for known in STALLS), text.value


@pytest.fixture
def shown():
    """Serves a snapshot as a process does; returns where."""
    with ExitStack() as stack:

        def show(snapshot, host="127.0.0.1"):
            return config.Http(host=host, port=stack.enter_context(shows(lambda: snapshot, host)))

        yield show


def run(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, words)
    assert isinstance(result.exception, SystemExit | None), result.exception
    return result.exit_code, result.output


@pytest.mark.parametrize("well", [True, False])
def test_status_doctor_and_gate_agree(said, shown, tmp_path, monkeypatch, well):
    if not well:
        said["server"]["stalls"] = {"data": {"for_s": 40.0, "why": "nothing arrives"}}
    client = {"online": True, "version": "9", "backlog_readings": 0, "oldest_unacked_s": 0.0}
    http = shown(said["server"] | {"clients": {"1": client}})
    file = tmp_path / "server.toml"
    file.write_text(f"name = 's1'\n[mqtt]\nport = 1\n[store]\nport = 1\n[http]\nport = {http.port}\n")
    monkeypatch.setattr(gates, "_delivered", lambda *_: {1: 5})
    monkeypatch.setattr(gates, "LOOK_EVERY_S", 0.0)
    monkeypatch.setattr("skywave.commands.view.status_panel", lambda _: "")
    code, _ = run("status", "--config", str(file))
    passages = gates.gate(config.load(file, config.Server), [1], "9", 0.5)
    of_service = {f.check for f in judged(fetch_status(http.url))}
    examined = [f for f in examine(file, services=True) if f.check in of_service and f.check != "store"]
    assert (code == 0, not wrong(examined), passages[0].passed) == (well, well, well)
    assert well or "nothing arrives" in passages[0].seen


def test_a_doctor_knows_that_another_service_answers_on_the_port(said, shown, tmp_path):
    http = shown(said["client"])
    file = tmp_path / "client.toml"
    file.write_text(f"client_id = 2\n[sensors.t]\nport = 1\n[mqtt]\nport = 1\n[http]\nport = {http.port}\n")
    found = {finding.check: finding for finding in examine(file)}
    assert not found["service"].ok and "client 1" in found["service"].found and "session" not in found


# -- asking ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "all_proxy"])
def test_figures_are_asked_past_the_environment_s_proxy(said, shown, monkeypatch, variable):
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, "http://127.0.0.1:9")
    http = shown(said["client"])
    assert fetch_status(http.url).client_id == 1
    assert b"client_id" in fetch_bytes(f"{http.url}/status")


def test_nothing_but_the_one_helper_asks_by_http():
    for folder in ("skywave", "archive"):
        for file in (ROOT / folder).rglob("*.py"):
            text = file.read_text()
            assert file.name == "asking.py" or "urllib.request" not in text, file
            assert "import requests" not in text or "trust_env = False" in text, file


@pytest.mark.parametrize(
    ("host", "asked"),
    [
        ("0.0.0.0", "http://127.0.0.1:9"),
        ("::", "http://[::1]:9"),
        ("", "http://127.0.0.1:9"),
        ("10.0.0.5", "http://10.0.0.5:9"),
        ("fd00::5", "http://[fd00::5]:9"),
    ],
)
def test_a_service_is_asked_where_its_configuration_says(host, asked):
    assert config.Http(host=host, port=9).url == asked
    assert release_program().address({"host": host, "port": 9}) == asked


def test_what_speaks_no_http_is_not_running():
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.wfile.write(b"SSH-2.0-OpenSSH\r\n\r\n")

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        with pytest.raises(NotRunning):
            fetch_status(f"http://127.0.0.1:{server.server_port}")
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("body", [b"", b"<html>", b"\xff", b"[" * 100_000, b"5", b"null", b'{"kind": ["client"]}'])
def test_what_is_no_status_of_ours_is_not_running(body):
    with answers(lambda: body) as port, pytest.raises(NotRunning):
        fetch_status(f"http://127.0.0.1:{port}")


# -- the program that settles an update ---------------------------------------------------------------------------------------


def release_program():
    """The program as a module, which leaves no bytecode beside it."""
    module = types.ModuleType("release")
    exec(compile((ROOT / "ansible/roles/common/files/skywave-release").read_text(), "release", "exec"), vars(module))
    return module


@pytest.mark.parametrize("host", ["0.0.0.0", "127.0.0.1", "127.0.0.5"])
def test_a_good_release_is_confirmed_wherever_its_figures_are_shown(said, shown, tmp_path, monkeypatch, host):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    http = shown(said["client"], host)
    file = tmp_path / "client.toml"
    file.write_text(f"[http]\nhost = {json.dumps(host)}\nport = {http.port}\n")
    assert release_program().delivers(file, said["client"]["version"])


def test_a_release_without_figures_is_judged_by_whether_it_runs(tmp_path, monkeypatch):
    program = release_program()
    asked = []
    file = tmp_path / "client.toml"
    file.write_text("client_id = 1\n")
    for code in (0, 3):
        monkeypatch.setattr(program, "systemctl", lambda *words, code=code: asked.append(words) or code)
        assert program.delivers(file, "9") is (code == 0)
    assert {words[-1] for words in asked} == {"skywave-client.service"}
