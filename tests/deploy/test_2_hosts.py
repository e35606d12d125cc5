"""What runs on the hosts, and who gets at what."""

import json
import re

import pytest
import testinfra
from lab import SENSORS, wait_for
from test_1_site import changed

ONE_DAY = """
import os, time
os.environ["CREDENTIALS_DIRECTORY"] = "/etc/skywave/credentials"
from datetime import timedelta
import numpy as np
from skywave import config
from skywave.formats.messages import Produced
from skywave.store.columns import Block
from skywave.store.shards import open_store
from skywave.process.times import utc_today
store = open_store(config.load("/etc/skywave/server.toml", config.Server).store)
count, now = 1000, time.time_ns() // 1000
same = lambda kind, value: np.full(count, value, kind)
store.insert_readings(Block(
    client_id=same(np.uint32, 99), stream=same(np.uint64, 7), seq=np.arange(1, count + 1, dtype=np.uint64),
    created_at=np.arange(now - count, now), keys=[b"level"], codes=np.zeros(count, np.int32),
    data_value=np.arange(count) / 8, received_at=same(np.int64, now), day=utc_today() - timedelta(1)))
store.record_streams([(99, Produced(7, count, 0), 0)], now)
"""
PUBLISH = """
import os, sys, time
os.environ["CREDENTIALS_DIRECTORY"] = "/etc/skywave/credentials"
import paho.mqtt.client as paho
from skywave import config
from skywave.mqtt.tls import tls_context
settings = config.load("/etc/skywave/client.toml", config.Client).mqtt
heard = []
until = time.monotonic() + 20
while not heard and time.monotonic() < until:  # the own client takes the name back: until the broker answers
    client = paho.Client(paho.CallbackAPIVersion.VERSION2, "anybody", protocol=paho.MQTTv5)
    client.tls_set_context(tls_context(settings))
    client.on_publish = lambda _client, _data, _mid, reason, _properties: heard.append(str(reason))
    client.connect(settings.host, settings.port)
    client.loop_start()
    client.publish(sys.argv[1], b'{"id": 1, "created_at": 1, "data_key": "%s", "data_value": 1}' % sys.argv[2].encode(), 1)
    time.sleep(0.5)
    client.loop_stop()
print(*heard[:1])
"""
CONNECT = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), 2).close()
    print("open")
except OSError as error:
    print("closed", error)
"""
SHAKE = """
import socket, ssl, sys
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.load_verify_locations("/etc/skywave/credentials/ca.crt")
if len(sys.argv) > 3:
    context.load_cert_chain(sys.argv[3])
try:
    with context.wrap_socket(socket.create_connection((sys.argv[1], int(sys.argv[2])), 5), server_hostname=sys.argv[1]) as tls:
        tls.settimeout(2)
        print("refused" if not tls.recv(1) else "spoke")
except ssl.SSLError as error:
    print("refused", error)
except TimeoutError:
    print("accepted")
"""
UNITS = {
    "edge1": ["postgresql", "skywave-client", *(f"skywave-emulator@{s}" for s in SENSORS)],
    "edge2": ["skywave-client", *(f"skywave-emulator@{s}" for s in SENSORS)],
    "core1": ["mosquitto", "clickhouse-server", "skywave-server"],
    "hdfs1": ["hadoop-namenode", "hadoop-datanode", "zookeeper"],
}


@pytest.mark.parametrize("host", UNITS)
def test_what_belongs_on_a_host_runs_and_starts_with_it(converged, host):
    inside = testinfra.get_host(f"docker://{converged.host(host)}")
    for unit in [*UNITS[host], "skywave-firewall"]:
        assert inside.service(unit).is_running, unit
        assert inside.service(unit).is_enabled, unit


@pytest.mark.parametrize("host", UNITS)
def test_each_long_running_service_runs_in_its_sandbox_as_its_user(converged, host):
    for unit in UNITS[host]:
        unit = {"postgresql": "postgresql@15-main"}.get(unit, unit)
        names = ("User", "ProtectSystem", "NoNewPrivileges", "WatchdogUSec", "MemoryMax", "MainPID")
        lines = converged.run(host, f"systemctl show {unit} -p {','.join(names)}").splitlines()
        shown = dict(line.split("=", 1) for line in lines)
        assert (shown["ProtectSystem"], shown["NoNewPrivileges"]) == ("strict", "yes"), unit
        assert shown["User"] not in ("", "root") and shown["MemoryMax"] != "infinity", unit
        if unit.startswith("skywave"):
            assert shown["User"].startswith("skywave-") and shown["WatchdogUSec"] != "infinity", unit
        status = converged.run(host, f"cat /proc/{shown['MainPID']}/status")
        assert re.search(r"^CapEff:\s0{16}$", status, re.M) and not re.search(r"^Uid:\s+0\s", status, re.M), unit


def test_the_doctor_sees_that_the_firewall_is_gone(converged):
    def findings() -> dict[str, bool]:
        command = "/opt/skywave/current/bin/skywave doctor --json 2>/dev/null"
        found = json.loads(converged.run("core1", command, check=False))
        return {finding["check"]: finding["ok"] for finding in found}

    assert findings()["firewall"]
    converged.run("core1", "nft delete table inet skywave")
    try:
        assert not findings()["firewall"]
    finally:
        converged.run("core1", "systemctl reload skywave-firewall")
    assert findings()["firewall"]


def test_the_firewall_outlives_the_host_s_own(converged):
    for step in ("start", "reload", "restart", "stop"):
        converged.run("core1", f"systemctl {step} nftables")
        assert "dport" in converged.run("core1", "nft list table inet skywave"), step


def test_a_server_beside_its_clickhouse_syncs_before_it_acknowledges(converged):
    assert 'sync = "filesystem"' in converged.run("core1", "cat /etc/skywave/server.toml")


def test_labels_reach_the_server_and_the_metrics(converged):
    clients = converged.status("core1", "server")["clients"]
    assert clients["1"]["labels"] == {"site": "north", "ring": "canary", "hardware": "pi4"}
    assert 'label_site="south"' in converged.run(
        "edge2",
        "python3 -c 'import urllib.request as u;print(u.urlopen(\"http://127.0.0.1:9101/metrics\").read().decode())'",
    )


def test_the_archive_unit_brings_a_closed_day_to_hdfs_and_the_drill_restores_it(converged):
    converged.python("core1", ONE_DAY)
    for unit in ("skywave-archive", "skywave-drill", "skywave-verify", "skywave-open-day"):
        converged.run("core1", f"systemctl start {unit}.service")
        assert converged.run("core1", f"systemctl show {unit} -p Result --value").strip() == "success"
    assert "1,000 rows" in converged.run("core1", "journalctl -u skywave-archive --no-pager")
    assert (
        converged.run(
            "core1", "systemctl is-enabled skywave-archive.timer skywave-drill.timer skywave-verify.timer"
        ).split()
        == ["enabled"] * 3
    )


def test_a_restart_that_an_interrupted_run_left_out_is_made_up_for(converged):
    units = {"core1": "mosquitto", "edge1": "skywave-client"}
    files = {"core1": "/etc/mosquitto/pki/ca.crl", "edge1": "/etc/skywave/client.toml"}

    def began(host: str) -> str:
        return converged.run(host, f"systemctl show {units[host]} -p InvocationID --value")

    before = {host: began(host) for host in units}
    # As if the run that wrote the files had ended before the restart: what is installed is right, what runs is not.
    for host, file in files.items():
        converged.run(
            host, f"cp -p {file} /tmp/kept; echo >>{file}; systemctl restart {units[host]}; cp -p /tmp/kept {file}"
        )
    between = {host: began(host) for host in units}
    arguments = (
        "--limit",
        ",".join(converged.host(host) for host in units) + ",localhost",
        "--tags",
        "mosquitto,client",
    )
    counts = changed(converged.playbook("site.yml", *arguments, name="site.yml after an interrupted run"))
    assert all(counts[converged.host(host)] == 1 for host in units), "the restart alone"
    after = {host: began(host) for host in units}
    assert all(len({before[host], between[host], after[host]}) == 3 for host in units), (
        "they run with what is installed"
    )
    counts = changed(converged.playbook("site.yml", *arguments, name="site.yml after that"))
    assert not any(counts.values()), counts


def test_a_guarded_service_does_not_start_without_the_firewall(converged):
    converged.run("hdfs1", "mv /etc/skywave/firewall.nft /tmp/firewall.nft; systemctl stop skywave-firewall")
    try:
        for unit in ("zookeeper", "hadoop-datanode"):
            assert "inactive" in converged.run("hdfs1", f"systemctl is-active {unit}", check=False), (
                "it went with the firewall"
            )
            assert "dependency" in converged.run("hdfs1", f"systemctl start {unit}", check=False)
    finally:
        converged.run("hdfs1", "mv /tmp/firewall.nft /etc/skywave/; systemctl reset-failed; systemctl start skywave-firewall"
                               " zookeeper hadoop-namenode hadoop-datanode")  # fmt: skip


def test_a_configuration_error_stops_a_service_and_is_not_retried(converged):
    converged.stop_sensors()  # a unit that has failed keeps no connections: what stands in them is lost with it
    converged.run("edge2", "cp /etc/skywave/client.toml /tmp/good.toml; echo 'lingr = 1' >> /etc/skywave/client.toml")
    try:
        converged.run("edge2", "systemctl restart skywave-client", check=False)
        wait_for(
            lambda: "failed" in converged.run("edge2", "systemctl is-active skywave-client", check=False),
            20,
            "it gives up",
        )
        assert converged.run("edge2", "systemctl show skywave-client -p NRestarts --value").strip() == "0"
        found = converged.run("edge2", "/opt/skywave/current/bin/skywave doctor", check=False)
        assert "WRONG" in found and "lingr" in found
    finally:
        converged.run(
            "edge2",
            "cp /tmp/good.toml /etc/skywave/client.toml; systemctl reset-failed; systemctl start skywave-client",
        )
        converged.start_sensors()


def test_a_restart_loses_no_reading_because_the_next_process_goes_on_with_the_connections(converged):
    converged.assert_nothing_lost()
    wait_for(lambda: all(s["connected"] for s in converged.status("edge1")["sensors"].values()), 20, "sensors are read")
    for _ in range(3):
        converged.run("edge1", "systemctl restart skywave-client")
    assert converged.run("edge1", "journalctl -u skywave-client --no-pager").count("goes on with the connection") >= 9
    assert converged.assert_nothing_lost() > 1000


# -- attacks ---------------------------------------------------------------------------------------------------------------


def test_a_client_cannot_publish_for_another(converged):
    assert "Not authorized" in converged.python("edge1", PUBLISH, "/telemetry/client/2/", "forged")
    assert "Not authorized" in converged.python("edge1", PUBLISH, "/telemetry/client/2/ack", "forged")
    assert "Success" in converged.python("edge1", PUBLISH, "/telemetry/client/1/", "own")
    wait_for(
        lambda: converged.query("SELECT count() FROM telemetry.telemetry FINAL WHERE data_key = 'own'") == [[1]],
        20,
        "the own arrives",
    )
    assert converged.query("SELECT count() FROM telemetry.telemetry WHERE data_key = 'forged'") == [[0]]


def test_the_broker_takes_no_stranger(converged):
    broker = (converged.address("core1"), "8883")
    assert converged.python("edge1", SHAKE, *broker, "/etc/skywave/credentials/client.pem").strip() == "accepted"
    assert "refused" in converged.python("edge1", SHAKE, *broker)
    for name, pem in {"expired": expired(converged), "strange": expired(converged, days=9, own_authority=True)}.items():
        converged.run("edge1", f"cat > /tmp/{name}.pem <<'E'\n{pem}\nE")
        assert "refused" in converged.python("edge1", SHAKE, *broker, f"/tmp/{name}.pem"), name


def expired(lab, days: int = -1, own_authority: bool = False) -> str:
    """A key and a certificate for client 1 that ended ``-days`` days ago, by the fleet's authority or one that is not."""
    from datetime import UTC, datetime, timedelta

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    authority = x509.load_pem_x509_certificate((lab.authority / "ca.crt").read_bytes())
    key = ec.generate_private_key(ec.SECP256R1())
    signer = key if own_authority else serialization.load_pem_private_key((lab.authority / "ca.key").read_bytes(), None)
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "1")]))
        .issuer_name(authority.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(30))
        .not_valid_after(now + timedelta(days))
        .sign(signer, hashes.SHA256())
    )
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return (secret + certificate.public_bytes(serialization.Encoding.PEM)).decode()


@pytest.mark.parametrize(
    ("asked", "signed"),
    [
        ({}, True),
        ({"common_name": "8"}, False),
        ({"organization_name": "more"}, False),
        ({"subject_alt_name": ["DNS:7", "DNS:core1"]}, False),
        ({"basic_constraints": ["CA:TRUE"]}, False),
        ({"extended_key_usage": ["clientAuth", "serverAuth"]}, False),
    ],
)  # fmt: skip
def test_the_authority_signs_no_request_but_the_one_that_a_host_is_to_make(converged, asked, signed):
    honest = {"common_name": "7", "subject_alt_name": ["DNS:7"], "extended_key_usage": ["clientAuth"]}
    output = converged.play(
        {
            "hosts": "localhost",
            "connection": "local",
            "become": False,
            "vars": {"ansible_python_interpreter": "{{ ansible_playbook_python }}"},
            "tasks": [
                {"community.crypto.openssl_privatekey_pipe": {"type": "ECC", "curve": "secp256r1"}, "register": "key"},
                {
                    "community.crypto.openssl_csr_pipe": {
                        **honest,
                        **asked,
                        "privatekey_content": "{{ key.privatekey }}",
                    },
                    "register": "pki_request",
                },
                {"include_role": {"name": "pki", "tasks_from": "check"}, "vars": {"pki_common_name": "7"}},
            ],
        },
        check=signed,
        name=f"a request: {asked}",
    )
    assert ("asks for another certificate than 7's" in output) is not signed


def test_a_certificate_that_no_longer_fits_the_inventory_is_made_anew(converged):
    def names(*wanted: str) -> tuple[str, bool]:
        output = converged.play(
            {"hosts": converged.host("edge1"), "roles": ["pki"]},
            "--extra-vars",
            json.dumps({
                "pki_authority": str(converged.authority), "pki_name": "trial", "pki_folder": "/tmp/trial",
                "pki_common_name": "trial", "pki_alternative_names": wanted,
            }),
            name=f"a certificate for {', '.join(wanted)}",
        )  # fmt: skip
        return converged.run("edge1", "cat /tmp/trial/trial.crt"), any(changed(output).values())

    first, _ = names("DNS:trial", "IP:192.0.2.1")
    assert names("IP Address:192.0.2.1", "DNS:trial") == (first, False)
    moved, renewed = names("DNS:trial", "IP:192.0.2.2")
    assert renewed and moved != first


@pytest.mark.parametrize(
    ("target", "port", "friend"),
    [("core1", 9440, None), ("core1", 8443, None), ("hdfs1", 9870, "core1"), ("hdfs1", 9864, "core1"),
     ("hdfs1", 2181, "core1"), ("hdfs1", 8020, None), ("hdfs1", 9866, None)],
)  # fmt: skip
def test_an_edge_reaches_no_port_that_is_not_its_business(converged, target, port, friend):
    assert "closed" in converged.python("edge1", CONNECT, converged.address(target), str(port))
    if friend:
        assert converged.python(friend, CONNECT, converged.address(target), str(port)).strip() == "open"
    elif target == "core1":
        assert converged.python(target, CONNECT, converged.address(target), str(port)).strip() == "open"


@pytest.mark.parametrize("port", [1883, 9000, 8123, 9009])
def test_nothing_listens_without_tls(converged, port):
    assert "closed" in converged.python("core1", CONNECT, converged.address("core1"), str(port))
    assert "closed" in converged.python("edge1", CONNECT, converged.address("core1"), str(port))


def test_an_edge_cannot_delete_in_hdfs(converged):
    url = f"http://{converged.address('hdfs1')}:9870/webhdfs/v1/skywave?op=DELETE&recursive=true&user.name=hdfs"
    script = f"import urllib.request as u; u.urlopen(u.Request({url!r}, method='DELETE'), timeout=3)"
    assert "timed out" in converged.run("edge1", f'python3 -c "{script}"', check=False)


@pytest.mark.parametrize("user", ["default", "skywave_server"])
def test_clickhouse_wants_a_password(converged, user):
    script = f"""
from clickhouse_driver import Client
try:
    trust = "/etc/skywave/credentials/ca.crt"
    print(Client({converged.address("core1")!r}, 9440, user={user!r}, secure=True, ca_certs=trust).execute("SELECT 1"))
except Exception as error:
    print(type(error).__name__, error.code)
"""
    assert converged.python("core1", script).split()[-1] in ("192", "193", "194"), "unknown user, wrong or no password"


def test_no_secret_is_to_be_seen(converged, tmp_path):
    converged.playbook("bundle.yml", "--extra-vars", json.dumps({"bundle_folder": str(tmp_path)}))
    passwords = [path.read_text().split()[0] for path in (converged.authority / "passwords").iterdir()]
    for host, key in {"edge1": "client.pem", "edge2": "client.pem", "core1": "server.pem"}.items():
        pem = converged.run(host, f"cat /etc/skywave/credentials/{key}")
        secrets = [*passwords, re.search(r"BEGIN (?:EC )?PRIVATE KEY-----\n(.+?)\n", pem).group(1)]
        assert len(secrets) >= 2
        bundle = tmp_path / f"{converged.host(host)}.tar.gz"
        unpacked = text_of(bundle)
        seen = {
            "bundle": unpacked,
            "systemctl show": converged.run(host, "systemctl show 'skywave-*' '*.service'"),
            "ps": converged.run(host, "ps auxwwe"),
            "journal": converged.run(host, "journalctl --no-pager"),
            "configuration": converged.run(host, "cat /etc/skywave/*.toml"),
        }
        assert "journal.txt" in unpacked and "skywave_" in unpacked, "the bundle has the journal and the figures"
        for place, text in seen.items():
            for secret in secrets:
                assert secret not in text, f"a secret stands in {place} on {host}"
        listed = converged.run(host, "find /etc/skywave/credentials -type f -perm /077 ! -name ca.crt")
        assert not listed, f"others may read {listed}"


def text_of(bundle) -> str:
    import tarfile

    with tarfile.open(bundle) as archive:
        parts = [f"{member.name}\n{archive.extractfile(member).read().decode(errors='replace')}" for member in archive]
    return "\n".join(parts)
