"""What the deployment does without a host: releases and their order, what a service runs with, wheels, backups, limits."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import io
import json
import os
import re
import shlex
import stat
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ANSIBLE = ROOT / "ansible"


def program(path: str):
    """A program of the deployment as a module of its own."""
    loader = importlib.machinery.SourceFileLoader(Path(path).name.replace("-", "_"), str(ANSIBLE / path))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))  # type: ignore[arg-type]
    loader.exec_module(module)
    return module


@pytest.fixture
def release(tmp_path, monkeypatch):
    """``skywave-release`` on a host of its own, where nothing runs; ``release.install`` puts a release there."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    module = program("roles/common/files/skywave-release")
    module.ROOT = tmp_path / "skywave"
    for name in ("releases", "current", "pending", "previous", "order"):
        setattr(module, name.upper(), module.ROOT / name)
    module.UNITS, module.STARTED, module.CONFIGURATIONS = tmp_path / "units", tmp_path / "started", []
    module.restarted = []
    module.active = ["skywave-client.service"]
    module.systemctl = lambda *arguments: module.restarted.append(arguments)
    module.running = lambda: module.active

    def install(version: str, clock: int = 0) -> None:
        for part in ("bin/skywave", "lib/systemd/system/skywave-client.service"):
            file = module.RELEASES / version / part
            file.parent.mkdir(parents=True)
            file.write_text("")
        os.utime(module.RELEASES / version, (clock, clock))
        module.prune(version)

    module.install = install
    return module


def releases(module) -> set[str]:
    return {path.name for path in module.RELEASES.iterdir()}


def test_a_clock_in_1970_lets_prune_keep_the_release_that_was_installed_just_now(release):
    for number in range(5):
        release.install(f"1.{number}", clock=1_790_000_000 + number)
    assert releases(release) == {"1.2", "1.3", "1.4"}
    release.switch("1.3", 0)
    release.switch("1.4", 0)
    release.install("1.5", clock=60)
    assert releases(release) == {"1.3", "1.4", "1.5"}
    release.install("1.6", clock=30)
    assert releases(release) == {"1.3", "1.4", "1.6"}, "current, previous and the newest, whatever the clock says"
    release.switch("1.6", 0)
    release.install("1.7", clock=0)
    assert releases(release) == {"1.4", "1.6", "1.7"}


def test_releases_from_before_there_was_an_order_are_pruned_by_their_date_but_never_the_newest(release):
    for number in (1, 2, 3, 4):
        (release.RELEASES / f"0.{number}" / "bin").mkdir(parents=True)
        os.utime(release.RELEASES / f"0.{number}", (1_790_000_000 + number,) * 2)
    release.install("0.5", clock=10)
    assert releases(release) == {"0.3", "0.4", "0.5"}


def test_prune_never_removes_what_a_pending_change_would_go_back_to(release):
    for version in ("1", "2", "3", "4"):
        release.install(version)
        release.switch(version, 60 if version == "4" else 0)
    release.PREVIOUS.write_text("4")  # as a rollback in the middle may leave it
    release.install("5")
    assert {"3", "4", "5"} <= releases(release)


def test_a_switch_that_was_interrupted_before_the_restart_is_made_up_for_and_judged(release, capsys):
    release.install("1")
    release.install("2")
    release.switch("1", 0)
    release.STARTED.mkdir()
    record = release.STARTED / "skywave-client.service"
    record.write_text(f"{release.CURRENT}  -> {release.RELEASES / '1'}")
    release.switch("2", 60)
    release.restarted.clear()  # the power went before anything was restarted: the record says 1
    release.switch("2", 60)
    assert ("restart", "skywave-client.service") in release.restarted
    assert "1 -> 2" in capsys.readouterr().out.splitlines()[-1], "the update asks whether it delivers"
    record.write_text(f"{release.CURRENT}  -> {release.RELEASES / '2'}")
    release.restarted.clear()
    release.switch("2", 60)
    assert not release.restarted and "1 -> 2" in capsys.readouterr().out, "nobody has judged it yet"
    release.confirm()
    release.switch("2", 60)
    assert "current release already" in capsys.readouterr().out


def test_a_wall_clock_that_jumps_after_a_reboot_takes_no_time_from_a_pending_release(release):
    change = {"boot": "another", "up_until": 10.0, "within": 180, "from": "1", "to": "2", "delivered": True}
    release.uptime = lambda: 179.0
    assert not release.expired(change)
    release.uptime = lambda: 181.0
    assert release.expired(change)


def started(*arguments: object) -> subprocess.CompletedProcess[str]:
    """``skywave-started``, with its records in a folder that the first argument names."""
    folder, *rest = map(str, arguments)
    script = (ANSIBLE / "roles/common/files/skywave-started").read_text().replace("/run/skywave-started", folder)
    return subprocess.run([sys.executable, "-c", script, *rest], capture_output=True, text=True, check=False)


def test_a_service_that_runs_with_other_files_than_those_installed_is_found(tmp_path):
    records, unit = tmp_path / "records", "skywave-client.service"
    file, folder, link = tmp_path / "client.toml", tmp_path / "pki", tmp_path / "current"
    file.write_text("a")
    (folder / "more").mkdir(parents=True)
    (folder / "more/ca.crl").write_text("none")
    link.symlink_to("/releases/1")
    paths = (file, folder, link)
    assert started(records, "compare", unit, *paths).returncode == 1, "what was never written down is not known"

    def changes(change, *named: Path) -> None:
        assert started(records, "record", unit, *paths).returncode == 0
        assert started(records, "compare", unit, *paths).returncode == 0
        change()
        result = started(records, "compare", unit, *paths)
        assert result.returncode == 1 and set(result.stdout.split()) == {str(path) for path in named}

    def moved() -> None:
        link.unlink()
        link.symlink_to("/releases/2")

    changes(lambda: file.write_text("b"), file)
    changes(lambda: (folder / "more/ca.crl").write_text("42"), folder / "more/ca.crl")
    changes(lambda: (folder / "new").write_text(""), folder / "new")
    changes(lambda: file.unlink(), file)
    changes(moved, link)
    assert started(records, "record", unit, *paths).returncode == 0
    os.utime(folder / "more/ca.crl", (0, 0))
    assert started(records, "compare", unit, *paths).returncode == 0, "no clock takes part"
    assert started(records, "compare", unit, file, folder).returncode == 1, "nor may a path be missing"
    assert stat.S_IMODE(records.stat().st_mode) == 0o700


LOCKED = re.compile(r"^([A-Za-z0-9._-]+)==(\S+)(?: ; [^\\\n]+)?((?: \\\n +--hash=sha256:[0-9a-f]{64})+)$", re.M)


def locked(name: str) -> dict[str, str]:
    return packages((ANSIBLE / "scripts" / name).read_text())


def packages(text: str) -> dict[str, str]:
    """The version of each package that a list names; each must have its hashes."""
    found = LOCKED.findall(text)
    wanted = [line for line in text.splitlines() if "==" in line and not line.startswith("#")]
    assert len(found) == len(wanted), "each requirement has a version and hashes"
    return {re.sub(r"[-_.]+", "-", package).lower(): version for package, version, _ in found}


def test_everything_that_hosts_install_is_locked_by_its_hash_and_is_what_was_tested():
    constraints = dict(line.split("==") for line in (ROOT / "tests/constraints.txt").read_text().split())
    tested = {re.sub(r"[-_.]+", "-", package).lower(): version for package, version in constraints.items()}
    runtime = locked("runtime.txt")
    assert {"paho-mqtt", "pyarrow", "psycopg2-binary", "clickhouse-driver", "hdfs"} <= runtime.keys()
    assert runtime == {package: tested.get(package) for package in runtime}
    assert {"hatchling", "setuptools", "wheel"} <= locked("build.txt").keys()


def test_what_the_controller_itself_runs_comes_as_wheels_by_their_hashes():
    text = (ROOT / "tests/deploy/constraints.txt").read_text()
    assert "\n--only-binary :all:\n" in text and {"ansible-core", "cryptography"} <= packages(text).keys()


def test_the_wheelhouse_takes_nothing_but_wheels_whose_hashes_are_known(tmp_path, monkeypatch):
    wheelhouse = program("scripts/wheelhouse.py")
    calls = []

    def pip(*arguments: str, **_python: str) -> str:
        calls.append(arguments)
        return json.dumps({"install": []})

    monkeypatch.setattr(wheelhouse, "pip", pip)
    monkeypatch.setattr(wheelhouse.venv, "create", lambda *_arguments, **_more: None)
    wheelhouse.collect(ROOT, tmp_path / "0.0.0")
    for arguments in calls:
        from_a_registry = "--no-index" not in arguments
        assert not from_a_registry or {"--require-hashes", "--only-binary=:all:", "--no-deps"} <= {*arguments}
        assert arguments[0] != "wheel" or "--no-build-isolation" in arguments, "a build brings nothing of its own"
    built = {
        name for a in calls for option in a if option.startswith("--no-binary=") for name in option[12:].split(",")
    }
    assert built == {"docopt", "hdfs"}
    image = (ANSIBLE / "compose/skywave/Dockerfile").read_text()
    assert image.count("pip install") == image.count("--require-hashes") + image.count("--no-index") == 3


@pytest.fixture
def controller(tmp_path):
    """A controller's folders, and the command that backs them up to ``tmp_path/backups``."""
    files = {
        "authority/ca.key": "secret", "authority/ca.crt": "c", "authority/issued": "1 x 1\n",
        "authority/passwords/clickhouse-server": "password\n", "inventory/hosts.yml": "all:", "releases/0.1.0/a.whl": "w",
    }  # fmt: skip
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    folders = [f"--{name}={tmp_path / name}" for name in ("authority", "inventory", "releases")]
    command = [sys.executable, str(ANSIBLE / "scripts/backup.py"), "--fleet=plant", *folders]
    return tmp_path, files, command


def test_a_backup_of_the_controller_has_all_that_a_new_one_needs_for_its_owner_alone(controller):
    folder, files, command = controller
    os.link(folder / "authority/ca.key", folder / "authority/same.key")
    (folder / "inventory/link.yml").symlink_to("hosts.yml")
    (folder / "shared").mkdir()
    (folder / "shared/all.yml").write_text("fleet_name: plant")
    (folder / "shared/round").symlink_to(folder / "inventory")
    (folder / "inventory/group_vars").symlink_to(folder / "shared")
    subprocess.run([*command, str(folder / "backups")], check=True)
    (backup,) = (folder / "backups").iterdir()
    assert stat.S_IMODE(backup.stat().st_mode) == 0o600 and stat.S_IMODE(backup.parent.stat().st_mode) == 0o700
    with tarfile.open(backup) as archive:
        archive.extractall(folder / "new", filter="data")
    linked = {
        "authority/same.key": "secret",
        "inventory/link.yml": "all:",
        "inventory/group_vars/all.yml": "fleet_name: plant",
    }
    for name, text in {**files, **linked}.items():
        assert (folder / "new" / name).read_text() == text
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "contents.sha256"], cwd=folder / "new", check=True)


def test_a_backup_goes_through_an_encrypting_program_and_nothing_stays_when_that_fails(controller):
    folder, _, command = controller
    subprocess.run([*command, "--through=openssl enc -aes-256-ctr -pbkdf2 -k word", str(folder / "backups")],
                   check=True)  # fmt: skip
    (backup,) = (folder / "backups").iterdir()
    plain = subprocess.run(["openssl", "enc", "-d", "-aes-256-ctr", "-pbkdf2", "-k", "word", "-in", str(backup)],
                           check=True, capture_output=True).stdout  # fmt: skip
    assert b"secret" not in backup.read_bytes()
    with tarfile.open(fileobj=io.BytesIO(plain)) as archive:
        assert "authority/ca.key" in archive.getnames()
    failed = subprocess.run([*command, f"--through={shlex.join(['sh', '-c', 'cat >/dev/null; exit 3'])}",
                             str(folder / "backups")], check=False, capture_output=True, text=True)  # fmt: skip
    assert failed.returncode and "nothing was backed up" in failed.stderr
    assert list((folder / "backups").iterdir()) == [backup]


def test_half_an_authority_and_a_folder_inside_it_are_no_backup(controller):
    folder, _, command = controller

    def refused(to: Path) -> str:
        return subprocess.run([*command, str(to)], check=False, capture_output=True, text=True).stderr

    assert "lies in what is backed up" in refused(folder / "authority/backups")
    (folder / "authority/issued").unlink()
    assert "issued is missing" in refused(folder / "backups") and not (folder / "backups").exists()


@pytest.mark.parametrize(("address", "good"), [
    ("10.0.0.1", True), ("192.168.56.255", True), ("0.0.0.0", True), ("core1", False), ("core1.example.org", False),
    ("10.0.0.256", False), ("10.0.0", False), ("10.0.0.1.", False), ("10.0.0.1.2", False), ("fd00::1", False),
    ("", False), ("10.0.0.1/24", False), ("010.0.0.1", False), ("10.0.0.1, 10.0.0.2", False),
])  # fmt: skip
def test_the_firewall_goes_by_addresses_alone(address, good):
    text = (ANSIBLE / "roles/common/vars/main.yml").read_text()
    pattern = re.search(r"^common_address: (.+)$", text, re.M)
    assert pattern and bool(re.match(pattern[1], address)) is good


def mosquitto_configurations() -> dict[str, dict[str, str]]:
    role = (ANSIBLE / "roles/mosquitto/templates/mosquitto.conf.j2").read_text()
    defaults = dict(
        re.findall(r"^(mosquitto_\w+): (\d+)$", (ANSIBLE / "roles/mosquitto/defaults/main.yml").read_text(), re.M)
    )
    role = re.sub(r"\{\{ (.+?) \}\}", lambda m: str(eval(m[1], {}, {k: int(v) for k, v in defaults.items()}))
                  if "mosquitto_" in m[1] else m[1], role)  # fmt: skip
    texts = {"role": role, "compose": (ANSIBLE / "compose/mosquitto/mosquitto.conf").read_text()}
    return {name: dict(re.findall(r"^(\w+) (\S+)$", text, re.M)) for name, text in texts.items()}


@pytest.mark.parametrize("name", ["role", "compose"])
def test_every_broker_bounds_the_whole_packet_and_lets_the_largest_payload_through(name):
    settings = mosquitto_configurations()[name]
    payload, packet = int(settings["message_size_limit"]), int(settings["max_packet_size"])
    assert payload < packet <= payload + 65_536, "topic and properties have room, but not much"


@pytest.mark.parametrize("acl", ["roles/mosquitto/templates/acl.j2", "compose/mosquitto/acl"])
def test_a_device_may_publish_with_and_without_the_last_slash_and_servers_may_hear_both(acl):
    lines = (ANSIBLE / acl).read_text().splitlines()
    for slash in ("", "/"):
        assert f"pattern write /telemetry/client/%u{slash}" in lines
        assert f"topic read /telemetry/client/+{slash}" in lines


def test_no_play_over_a_fleet_ends_for_all_because_of_one_host():
    for playbook in (ANSIBLE / "playbooks").rglob("*.yml"):
        assert "any_errors_fatal" not in playbook.read_text(), playbook


def test_no_role_leaves_a_restart_to_a_handler_which_a_later_failure_would_skip():
    for file in (ANSIBLE / "roles").rglob("*.yml"):
        assert "handlers" not in file.parts and "notify:" not in file.read_text(), file
