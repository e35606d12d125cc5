"""What a doctor sees of the host itself: its firewall, its mounts, its crash loops."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from support.programs import program

from skywave.care import host
from skywave.care.doctor import examine
from skywave.process.times import boottime

LISTED = """table inet skywave {
	chain guard {
		type filter hook input priority -10; policy accept;
		iif "lo" accept
		tcp dport { 2181, 2888, 3888 } ip saddr 10.0.0.2 accept
		tcp dport { 2181, 2888, 3888 } counter packets 0 bytes 0 drop
		tcp dport 9440 counter packets 0 bytes 0 drop
	}
}
"""


@pytest.fixture
def installed(tmp_path, installed_in):
    installed_in(tmp_path)
    (tmp_path / "firewall.d").mkdir()
    (tmp_path / "firewall.nft").write_text("table inet skywave\n")
    (tmp_path / "firewall.d/zookeeper.nft").write_text("tcp dport { 2181, 2888, 3888 } counter drop\n")
    (tmp_path / "firewall.d/clickhouse.nft").write_text("tcp dport { 9440 } counter drop\n")
    return tmp_path


@pytest.fixture
def say(tmp_path_factory):
    """Has a program of the host say something; None: it fails."""
    with contextlib.ExitStack() as stack:

        def made(name, said):
            answer = (1, "") if said is None else (0, said)
            stack.enter_context(program(name, tmp_path_factory.mktemp("programs"), lambda _: answer))

        yield made


@pytest.mark.usefixtures("installed")
def test_a_firewall_that_guards_each_port_is_well(say):
    say("nft", LISTED)
    (finding,) = host.firewall()
    assert finding.ok and "4 ports" in finding.found


@pytest.mark.usefixtures("installed")
def test_a_firewall_that_is_not_loaded_is_found(say):
    say("nft", None)
    (finding,) = host.firewall()
    assert not finding.ok and "skywave-firewall" in finding.advice


@pytest.mark.usefixtures("installed")
def test_a_port_that_the_loaded_table_forgot_is_named(say):
    say("nft", LISTED.replace("9440", "9000"))
    (finding,) = host.firewall()
    assert not finding.ok and "9440" in finding.found


def test_a_host_without_a_firewall_of_ours_is_not_blamed(tmp_path, installed_in):
    installed_in(tmp_path)
    assert not [*host.firewall()]


@pytest.mark.parametrize(
    ("restarts", "state", "up_s", "ok"),
    [(0, "active", 5, True), (1, "active", 5, True), (50, "active", 5, False), (50, "activating", 5, False),
     (3, "active", 2000, True)],
)  # fmt: skip
def test_a_service_that_dies_again_and_again_is_found_though_it_never_fails(say, restarts, state, up_s, ok):
    entered = int((boottime() - up_s) * 1e6)
    say("systemctl", f"NRestarts={restarts}\nActiveState={state}\nActiveEnterTimestampMonotonic={entered}\n")
    (finding,) = host.restarts("skywave-client")
    assert finding.ok is ok


def test_a_mount_that_is_missing_under_the_outbox_is_found(tmp_path, monkeypatch):
    (tmp_path / "fstab").write_text(
        f"# disks\nUUID=1 / ext4 defaults 0 1\nUUID=2 {tmp_path}/my\\040disk ext4 nofail 0 2\n"
    )
    (tmp_path / "mounts").write_text("/dev/sda1 / ext4 rw 0 0\n")
    monkeypatch.setattr(host, "FSTAB", tmp_path / "fstab")
    monkeypatch.setattr(host, "MOUNTED", tmp_path / "mounts")
    folder = tmp_path / "my disk/outbox"
    folder.mkdir(parents=True)
    file = tmp_path / "client.toml"
    file.write_text(f"client_id = 1\n[sensors.t]\nport = 1\n[mqtt]\nport = 1\n[outbox]\npath = '{folder}/o.sqlite'\n")
    found = {finding.check: finding for finding in examine(file)}
    assert not found["mount"].ok and "my disk is not mounted" in found["mount"].found
    (tmp_path / "mounts").write_text(f"/dev/sda1 / ext4 rw 0 0\n/dev/sdb1 {tmp_path}/my\\040disk ext4 rw 0 0\n")
    assert "mount" not in {finding.check for finding in examine(file)}
    assert host.unmounted(Path("/")) == ""
