"""Looking after hosts: the gate of an update, and what a doctor says."""

from __future__ import annotations

import json
import tarfile

import pytest
from click.testing import CliRunner
from support.figures import shows

from skywave import config
from skywave.care.broker import shake_hands
from skywave.care.doctor import examine
from skywave.care.gate import look
from skywave.commands.main import main
from skywave.process.snapshot import ClientState


def status(**more):
    return ClientState(**{"online": True, "version": "2", **more})


def passes(delivered=0, **more):
    return look({"1": status(**more)}, {1: delivered}, [1], "2")[0].passed


def test_a_client_that_delivers_with_the_release_passes():
    assert passes(delivered=100, backlog_readings=20, oldest_unacked_s=0.4)


def test_a_client_whose_sensors_are_silent_passes():
    assert passes()


def test_a_client_of_the_old_release_does_not_pass():
    assert not passes(delivered=100, version="1")


def test_a_client_that_is_offline_or_unknown_does_not_pass():
    assert not passes(online=False)
    assert not look({}, {}, [1], "2")[0].passed


def test_a_client_that_keeps_its_readings_does_not_pass():
    assert not passes(backlog_readings=50)
    assert not passes(delivered=100, backlog_readings=5000, oldest_unacked_s=60.0)


def test_a_doctor_finds_a_typing_error_and_says_what_was_meant(tmp_path):
    path = tmp_path / "client.toml"
    path.write_text("client_id = 1\n[sensors.t]\nport = 1\n[intake]\nlingr = 1\n")
    (finding,) = examine(path)
    assert not finding.ok and "intake.lingr" in finding.found and "linger" in finding.advice


def test_a_doctor_says_that_nothing_runs_and_nothing_answers(tmp_path):
    path = tmp_path / "client.toml"
    path.write_text(
        "client_id = 1\n[sensors.t]\nport = 1\n[mqtt]\nport = 1\n[http]\nport = 1\n[outbox]\npath = '/nowhere/o'\n"
    )
    findings = {finding.check: finding for finding in examine(path)}
    wrong = {check for check, finding in findings.items() if not finding.ok}
    assert wrong == {"service", "broker", "disk"}
    assert all(findings[check].advice for check in wrong)


@pytest.mark.parametrize("setting", ["password_file", "ca_file"])
def test_a_doctor_goes_on_where_a_file_of_the_store_is_missing(tmp_path, setting):
    path = tmp_path / "server.toml"
    path.write_text(f"[mqtt]\nport = 1\n[store]\nport = 1\n{setting} = 'absent'\n")
    findings = {finding.check: finding for finding in examine(path)}
    assert not findings["store"].ok and "absent" in findings["store"].found


def test_a_broker_that_is_not_there_is_named():
    assert "127.0.0.1:1" in shake_hands(config.Mqtt(port=1))


def say(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, words)
    assert isinstance(result.exception, SystemExit | None), result.exception
    return result.exit_code, result.output


def test_a_host_with_the_archive_alone_is_looked_after(tmp_path, monkeypatch, installed_in):
    installed_in(tmp_path)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path / "credentials"))
    (tmp_path / "credentials").mkdir()
    (tmp_path / "archive.toml").write_text(
        f"[target]\nkind = 'local'\npath = '{tmp_path / 'archive'}'\n[store]\nport = 1\ntimeout = 1\n"
    )
    code, said = say("doctor", "--json")
    findings = {finding["check"]: finding["ok"] for finding in json.loads(said)}
    assert (code, findings["archive: target"], findings["archive: shard 1"]) == (1, True, False)
    assert say("doctor", "--services")[0] == 0
    assert say("bundle", "--output", str(tmp_path / "bundle.tar.gz"))[0] == 0
    with tarfile.open(tmp_path / "bundle.tar.gz") as bundle:
        assert {"skywave-bundle/configuration/archive.toml", "skywave-bundle/doctor/archive.json"} <= {
            *bundle.getnames()
        }
    assert say("certificates", "take", "--folder", str(tmp_path / "credentials")) == (0, "")
    assert say("config", "check", str(tmp_path / "archive.toml"))[0] == 0


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ("bundle", "--config", "{}/server.toml", "--output", "/nonexistent/x.tar.gz"),
            "/nonexistent/x.tar.gz: No such file",
        ),
        (("emulator", "--port", "0", "--ledger", "/nonexistent/x"), "/nonexistent/x: No such file"),
        (("audit", "--config", "{}/embedded.toml"), "File exists"),
        (("server", "--config", "{}/secret.toml"), "absent: No such file"),
        (("server", "--config", "{}/authority.toml"), "absent: No such file"),
        (("store", "rebuild", "--config", "{}/server.toml", "{}/data"), "no shards"),
    ],
)
def test_what_cannot_work_is_told_and_is_no_matter_of_data(tmp_path, words, told):
    for name, store in {
        "server": "", "embedded": f"kind = 'embedded'\npath = '{tmp_path}/server.toml'", "secret": "password_file = 'absent'",
        "authority": "ca_file = 'absent'",
    }.items():  # fmt: skip
        (tmp_path / f"{name}.toml").write_text(f"[mqtt]\nport = 1\n[store]\nport = 1\n{store}\n")
    code, said = say(*(word.format(tmp_path) for word in words))
    assert (code, told in said) == (75 if words[0] in ("server", "emulator") else 2, True), said


def test_another_programs_figures_are_no_status():
    with shows(lambda: {"status": "ok"}) as port:
        code, said = say("status", "--json", "--url", f"http://127.0.0.1:{port}")
    assert (code, "no Skywave client or server" in said) == (75, True)
