"""Looking after hosts: the gate of an update, and what a doctor says."""

from __future__ import annotations

from skywave import config
from skywave.care.certificates import shake_hands
from skywave.care.doctor import examine
from skywave.care.gate import look


def status(**more):
    return {"online": True, "version": "2", "backlog_readings": 0, "oldest_unacked_s": 0.0} | more


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


def test_a_broker_that_is_not_there_is_named():
    assert "127.0.0.1:1" in shake_hands(config.Mqtt(port=1))
