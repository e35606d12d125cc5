"""Certificates, disaster, and the end of an edge."""

import json
import shutil
import subprocess

import yaml
from cryptography import x509
from lab import ANSIBLE, EDGES, docker, wait_for
from test_1_site import changed
from test_2_hosts import SHAKE


def test_all_certificates_and_the_authority_are_renewed_and_no_reading_is_lost(converged):
    old = {host: converged.run(host, "cat /etc/skywave/credentials/client.pem") for host in EDGES}
    old_authority = (converged.authority / "ca.crt").read_text()
    with converged.nothing_is_lost_meanwhile():
        converged.playbook("rotate-certs.yml", "--extra-vars", json.dumps({"rotate_authority": True}))
        for host in EDGES:
            wait_for(lambda host=host: converged.status(host).get("accepting"), 30, f"{host} delivers")
    assert (converged.authority / "ca.crt").read_text() != old_authority
    for host in EDGES:
        assert converged.run(host, "cat /etc/skywave/credentials/client.pem") != old[host]
        assert old_authority.strip() not in converged.run(host, "cat /etc/skywave/credentials/ca.crt")
    converged.run("edge1", f"cat > /tmp/old.pem <<'E'\n{old['edge1']}\nE")
    assert "refused" in converged.python("edge1", SHAKE, converged.address("core1"), "8883", "/tmp/old.pem")


def test_passwords_are_rotated_and_no_reading_is_lost(converged):
    old = {path.name: path.read_text() for path in (converged.authority / "passwords").iterdir()}
    with converged.nothing_is_lost_meanwhile():
        converged.playbook("rotate-passwords.yml")
        for host in EDGES:
            wait_for(lambda host=host: converged.status(host).get("accepting"), 60, f"{host} delivers")
    new = {path.name: path.read_text() for path in (converged.authority / "passwords").iterdir()}
    assert old.keys() == new.keys() and not {*old.values()} & {*new.values()}


def test_a_lost_controller_is_made_anew_from_its_backup(converged, tmp_path):
    converged.playbook("backup.yml", "-e", f"backup_to={tmp_path / 'safe'}")
    (backup,) = (tmp_path / "safe").iterdir()
    (tmp_path / "new").mkdir()
    subprocess.run(["tar", "-xf", str(backup), "-C", str(tmp_path / "new")], check=True)
    subprocess.run(["sha256sum", "--check", "--quiet", "contents.sha256"], cwd=tmp_path / "new", check=True)
    home = tmp_path / "home"
    (home / ".skywave").mkdir(parents=True)
    (tmp_path / "new/authority").rename(home / ".skywave" / converged.name)
    before = {host: holdings(converged, host) for host in ("core1", *EDGES)}
    converged.playbook("site.yml", home=home, name="site.yml of a controller from a backup")
    assert {host: holdings(converged, host) for host in before} == before, "it is the same controller"
    # One number less is noted than the hosts have, as in a backup from before it was issued.
    issued = home / ".skywave" / converged.name / "issued"
    pem = converged.run("edge1", "openssl x509 -in /etc/skywave/credentials/client.pem").encode()
    number = f"{x509.load_pem_x509_certificate(pem).serial_number} "
    kept = [line for line in issued.read_text().splitlines(keepends=True) if not line.startswith(number)]
    issued.write_text("".join(kept))
    arguments = ("--limit", f"{converged.host('edge1')},localhost", "--tags", "client")
    converged.playbook("site.yml", *arguments, home=home, name="site.yml, a number is noted")
    assert issued.read_text().splitlines()[-1].startswith(number)


def holdings(lab, host: str) -> str:
    """What a host has from its controller, but what it trusts, which the controller may bring up to date."""
    return lab.run(host, "cd /etc/skywave/credentials && find . -type f ! -name ca.crt | sort | xargs sha256sum")


def test_new_certificates_that_do_not_work_are_not_taken(converged):
    from test_2_hosts import expired

    converged.run("edge1", "mkdir -p /etc/skywave/credentials/next")
    converged.run("edge1", f"cat > /etc/skywave/credentials/next/client.pem <<'E'\n{expired(converged)}\nE")
    assert "failed" in converged.run("edge1", "systemctl start skywave-renew.service", check=False)
    assert "The old ones stay" in converged.run("edge1", "journalctl -u skywave-renew --no-pager")
    assert converged.status("edge1")["accepting"]
    converged.run("edge1", "rm -r /etc/skywave/credentials/next; systemctl start skywave-renew.service")


def test_a_dead_clickhouse_is_refilled_from_hdfs(converged):
    day = converged.query("SELECT min(day) FROM telemetry.telemetry WHERE client_id = 99")[0][0]
    converged.run(
        "core1",
        "systemctl stop skywave-server clickhouse-server; rm -rf /var/lib/clickhouse/data/* /var/lib/clickhouse/metadata/*",
    )
    converged.playbook("site.yml", "--limit", f"{converged.host('core1')},localhost")
    converged.playbook("restore.yml")
    rows = converged.query("SELECT count(), uniqExact(seq), sum(data_value) FROM telemetry.telemetry FINAL"
                           f" WHERE client_id = 99 AND day = '{day}'")  # fmt: skip
    assert rows == [[1000, 1000, sum(number / 8 for number in range(1000))]]
    for host in EDGES:
        wait_for(lambda host=host: converged.status(host).get("accepting"), 60, f"{host} delivers")


def test_an_edge_is_decommissioned_only_when_the_account_of_its_readings_matches(converged):
    # After the disaster, edge1's readings of today are gone from the store: the account says so, and the edge stays.
    name = converged.host("edge1")
    output = converged.playbook("decommission.yml", "--extra-vars", f"decommission={name}", check=False)
    assert f"{name} goes on" in output
    wait_for(lambda: converged.status("edge1").get("accepting"), 30, "it goes on")


def test_a_decommissioned_edge_is_let_go_with_its_outbox_empty_and_its_certificate_revoked(converged):
    name = converged.host("edge2")
    converged.run(
        "edge2", "systemctl stop skywave-client; rm -rf /var/lib/skywave-client/*; systemctl start skywave-client"
    )
    wait_for(lambda: converged.status("edge2").get("acked_readings", 0) > 500, 60, "it delivers")
    # What the disaster and the destroyed outbox took is known, and put on record; then only what is new can be missing.
    wait_for(
        lambda: not pending_of_old_streams(converged), 60, "the server knows that the old streams are in no outbox"
    )
    converged.run("core1", ACCEPT, check=False)
    converged.playbook("decommission.yml", "--extra-vars", f"decommission={name}")
    assert "inactive" in converged.run("edge2", "systemctl is-active skywave-client", check=False)
    assert "refused" in converged.python(
        "edge2", SHAKE, converged.address("core1"), "8883", "/etc/skywave/credentials/client.pem"
    )
    assert converged.run("edge2", "ls /var/lib/skywave-client").strip(), "its state stays until it is named again"
    wait_for(lambda: converged.status("edge1").get("accepting"), 60, "the other edge goes on")
    figures = converged.run(
        "core1",
        "python3 -c 'import urllib.request as u; print(u.urlopen(\"http://127.0.0.1:9102/metrics\").read().decode())'",
    )
    assert 'client_id="1"' in figures and 'client_id="2"' not in figures, "no alert stays on"


def test_an_edge_that_was_stolen_is_refused_without_a_word_to_it(converged):
    broker = (converged.address("core1"), "8883", "/etc/skywave/credentials/client.pem")
    assert converged.python("edge1", SHAKE, *broker).strip() == "accepted"
    docker("pause", converged.host("edge1"))
    try:
        converged.playbook("decommission.yml", "--extra-vars", f"stolen={converged.host('edge1')}")
    finally:
        docker("unpause", converged.host("edge1"))
    assert "refused" in converged.python("edge1", SHAKE, *broker)


def test_an_old_copy_of_the_authority_takes_no_revocation_back(converged, tmp_path):
    old = tmp_path / ".skywave"
    shutil.copytree(converged.authority, old / converged.name)
    (old / converged.name / "ca.crl").unlink()
    output = converged.playbook(
        "site.yml", "--limit", f"{converged.host('core1')},localhost", "--tags", "mosquitto",
        check=False, home=tmp_path, name="site.yml, an old copy of the authority",
    )  # fmt: skip
    assert "this is an old copy" in " ".join(output.split())


def test_a_wiped_edge_holds_nothing_of_the_fleet(converged):
    converged.run(
        "edge1", "systemctl disable --now skywave.target skywave-client skywave-confirm.timer skywave-renew.timer"
    )
    tasks = [{"include_tasks": str(ANSIBLE / "playbooks/tasks/wipe.yml")}]
    converged.play({"hosts": converged.host("edge1"), "tasks": tasks}, name="an edge is wiped")
    databases = converged.run("edge1", "su postgres -c 'psql -At -c \"select datname from pg_database\"'").split()
    assert "postgres" in databases and "skywave" not in databases
    places = "/etc/skywave /opt/skywave /var/lib/skywave-* /etc/systemd/system/skywave* /usr/local/lib/systemd/system/skywave*"
    assert not converged.run("edge1", f"ls -d {places} 2>/dev/null", check=False).strip()
    assert not converged.run("edge1", "systemctl list-units --plain --no-legend --state=failed 'skywave*'").strip()


ZOOKEEPER = (
    "java -cp '/usr/share/java/*' org.apache.zookeeper.ZooKeeperMain -server 127.0.0.1 {} 2>&1"
    " || journalctl -u zookeeper --no-pager --lines 20"
)


def test_zookeeper_grows_and_an_empty_server_waits_for_the_one_with_data(converged):
    converged.run("hdfs1", ZOOKEEPER.format("create /kept here"))
    more = converged.state / "more.yml"
    more.write_text(yaml.safe_dump({"zookeeper": {"hosts": {converged.host("core1"): {}}}}))
    play = ({"hosts": "zookeeper", "roles": ["zookeeper"]}, "-i", str(more))
    new = converged.host("core1")
    output = converged.play(*play, "--limit", new, check=False, name="ZooKeeper, without the one that has data")
    assert f"{converged.host('hdfs1')}, which may have some" in " ".join(output.split())
    converged.play(*play, name="ZooKeeper grows")
    assert "here" in converged.run("core1", ZOOKEEPER.format("get /kept"))
    assert not any(changed(converged.play(*play, name="ZooKeeper, second run")).values())


ACCEPT = (
    "CREDENTIALS_DIRECTORY=/etc/skywave/credentials /opt/skywave/current/bin/skywave audit --config /etc/skywave/server.toml"
    " --client 2 --accept 2 --reason 'the disaster of this test' --by test"
)


def pending_of_old_streams(converged):
    """Readings that edge2's outboxes before this one are still said to hold."""
    mine = [stream for stream in converged.audit()["streams"] if stream["client_id"] == 2]
    newest = min(mine, key=lambda stream: stream["reported_s_ago"])
    return sum(stream["pending"] for stream in mine if stream is not newest)
