"""A ClickHouse cluster, two brokers and servers, and HDFS (ansible/molecule/cluster): made, grown, and hosts that die."""

from __future__ import annotations

import json

import pytest
from lab import Lab, wait_for
from test_1_site import changed


@pytest.fixture(scope="module")
def cluster():
    """One shard of two replicas, one NameNode and one edge; the others wait until they are wanted."""
    made = Lab("cluster", {"edge1": 1}, subnet=214)
    made.without = {"ch3", "ch4", "ch5", "edge2", "hdfs2"}
    try:
        made.create()
        made.playbook("site.yml", "-e", "authority=new", name="cluster: site.yml on bare hosts")
        yield made
    finally:
        made.destroy()


def delivers(cluster, host: str, more: int = 1000, seconds: float = 60) -> None:
    before = cluster.status(host)["acked_readings"]
    wait_for(
        lambda: cluster.status(host).get("acked_readings", 0) > before + more, seconds,
        lambda: f"{host} delivers: {cluster.status(host)}",
    )  # fmt: skip


def replicas(cluster, shard: str) -> list[int]:
    """How many rows each replica of a shard has by itself."""
    config = cluster.run("core1", "cat /etc/skywave/server.toml")
    line = config.split(f"[store.shards.{shard}]")[1].split("replicas = ")[1].splitlines()[0]
    script = (
        "import os; os.environ['CREDENTIALS_DIRECTORY'] = '/etc/skywave/credentials'\n"
        "from dataclasses import replace\nfrom skywave import config\n"
        "from skywave.store.shards import open_store\n"
        "store = config.load('/etc/skywave/server.toml', config.Server).store\n"
        f"for address in {line}.split(', '):\n"
        "    host, port = address.split(':')\n"
        "    one = open_store(replace(store, shards={}, host=host, port=int(port)))\n"
        "    print(one.query('SELECT count() FROM telemetry.telemetry FINAL')[0][0])\n"
    )
    return [int(count) for count in cluster.python("core1", script).split()]


def grown(cluster, *hosts: str) -> None:
    cluster.without -= set(hosts)
    cluster.playbook("site.yml", name=f"cluster: site.yml with {', '.join(hosts)}")


def test_a_shard_of_two_replicas_and_a_run_that_changes_nothing(cluster):
    wait_for(lambda: cluster.status("edge1").get("acked_readings", 0) > 1000, 60, "edge1 delivers")
    assert not any(changed(cluster.playbook("site.yml", name="cluster: site.yml, second run")).values())
    assert set(cluster.status("core1", "server")["shards"]) == {"s1"}
    assert cluster.assert_nothing_lost() > 1000


def test_it_grows_by_a_replica(cluster):
    grown(cluster, "ch3")
    wait_for(lambda: len(set(replicas(cluster, "s1"))) == 1 or None, 60, "the new replica has what the others have")
    assert len(replicas(cluster, "s1")) == 3
    delivers(cluster, "edge1")


ARCHIVE = (
    "CREDENTIALS_DIRECTORY=/etc/skywave/credentials /opt/skywave/current/bin/skywave-archive {}"
    " --config /etc/skywave/archive.toml --json"
)


def archive(cluster, words: str) -> dict:
    return json.loads(cluster.run("core1", ARCHIVE.format(words)))


def archive_is_good(cluster) -> bool:
    return cluster.run("core1", f"{ARCHIVE.format('check')} && echo good", check=False).endswith("good\n")


def namenodes(cluster, bean: str = "NameNodeStatus") -> dict[str, dict]:
    """A bean of each NameNode that answers, by host."""
    script = (
        "import json, sys, urllib.request\n"
        "found = {}\n"
        "for host in sys.argv[2:]:\n"
        "    url = f'http://{host}:9870/jmx?qry=Hadoop:service=NameNode,name={sys.argv[1]}'\n"
        "    try:\n"
        "        found[host] = json.load(urllib.request.urlopen(url, timeout=5))['beans'][0]\n"
        "    except (OSError, LookupError):\n"
        "        pass\n"
        "print(json.dumps(found))\n"
    )
    hosts = {cluster.address(host): host for host in ("hdfs1", "hdfs2") if host not in cluster.without}
    found = json.loads(cluster.python("core1", script, bean, *hosts))
    return {hosts[address]: values for address, values in found.items()}


def states(cluster) -> dict[str, str]:
    return {host: status["State"] for host, status in namenodes(cluster).items()}


def blocks_with_too_few_copies(cluster) -> int:
    (active,) = (host for host, state in states(cluster).items() if state == "active")
    found = namenodes(cluster, "FSNamesystem")[active]
    return found["UnderReplicatedBlocks"] + found["PendingReplicationBlocks"]


def test_a_second_namenode_takes_over_from_the_first(cluster):
    before = archive(cluster, "export --open-day")["days"][0]["rows"]
    assert before > 1000
    grown(cluster, "hdfs2")
    wait_for(lambda: sorted(states(cluster).values()) == ["active", "standby"], 90, lambda: str(states(cluster)))
    wait_for(lambda: archive_is_good(cluster), 60, "the archive's check is good")
    assert archive(cluster, "export --open-day")["days"][0]["rows"] > before
    wait_for(lambda: blocks_with_too_few_copies(cluster) == 0, 90, "each block is on both DataNodes")
    for units in ("hadoop-namenode hadoop-datanode", "hadoop-namenode"):  # there and back again
        (dead,) = (host for host, state in states(cluster).items() if state == "active")
        cluster.run(dead, f"systemctl stop {units}")
        wait_for(lambda: list(states(cluster).values()) == ["active"], 60, lambda: str(states(cluster)))
        rows = archive(cluster, "export --open-day")["days"][0]["rows"]
        assert rows > before
        cluster.run(dead, f"systemctl start {units}")
        wait_for(lambda: len(states(cluster)) == 2, 60, lambda: str(states(cluster)))
        before = rows
    assert archive(cluster, "verify --level rows")["good"] == 1


def test_a_run_that_leaves_out_a_namenode_names_it(cluster):
    output = cluster.playbook(
        "site.yml", "--tags", "hadoop", "--limit", f"{cluster.host('hdfs2')},localhost",
        check=False, name="cluster: site.yml without hdfs1",
    )  # fmt: skip
    assert f"{cluster.host('hdfs1')} is not in this run" in output


def test_it_grows_by_a_shard_that_takes_new_clients(cluster):
    grown(cluster, "ch4", "ch5", "edge2")
    cluster.edges = {"edge1": 1, "edge2": 2}
    wait_for(lambda: cluster.status("edge2").get("acked_readings", 0) > 1000, 60, "edge2 delivers")
    delivers(cluster, "edge1")
    assert min(replicas(cluster, "s2")) > 0
    cluster.assert_nothing_lost()
    rows = cluster.query("SELECT DISTINCT client_id FROM telemetry.telemetry ORDER BY client_id")
    assert rows == [[1], [2]], "each shard has its own client alone"
    rows = cluster.query("SELECT DISTINCT client_id FROM telemetry.readings ORDER BY client_id")
    assert rows == [[1], [2], [1], [2]], "a server of any shard reads all of them"


def test_the_fleet_is_healthy(cluster):
    for host in cluster.edges:  # the sensors were stopped to count what they sent
        delivers(cluster, host)
    output = cluster.playbook("health.yml", name="cluster: health.yml")
    assert "missing 0, doubled 0" in output
    assert "WRONG" not in output.split("TASK [Show how the fleet is]")[1].split("TASK")[0]


def test_a_replica_and_then_a_broker_with_its_server_die(cluster):
    cluster.run("ch1", "systemctl stop clickhouse-server")
    delivers(cluster, "edge1")
    cluster.run("ch1", "systemctl start clickhouse-server")
    cluster.run("core2", "systemctl stop mosquitto skywave-server")
    for host in cluster.edges:
        delivers(cluster, host)
    cluster.run("core2", "systemctl start mosquitto skywave-server")
    cluster.run("core1", "systemctl stop mosquitto skywave-server")
    for host in cluster.edges:
        delivers(cluster, host)
    cluster.run("core1", "systemctl start mosquitto skywave-server")
    assert cluster.assert_nothing_lost() > 5000


def test_a_replica_that_lost_its_disk_is_rebuilt(cluster):
    def rebuild(**how) -> str:
        return cluster.playbook(
            "rebuild.yml", "-e", f"rebuild={cluster.host('ch2')}", name="cluster: rebuild.yml", **how
        )

    assert "It has its tables" in rebuild(check=False)
    cluster.run("ch2", "systemctl stop clickhouse-server && rm -rf /var/lib/clickhouse/*")
    delivers(cluster, "edge1")
    rebuild()
    cluster.stop_sensors()
    try:
        wait_for(lambda: len(set(replicas(cluster, "s1"))) == 1 or None, 90, lambda: str(replicas(cluster, "s1")))
    finally:
        cluster.start_sensors()
    assert cluster.assert_nothing_lost() > 5000


def test_the_ports_between_replicas_are_closed_to_others(cluster):
    address = cluster.address("ch1")
    for port in (9440, 9010, 9000, 9009):
        said = cluster.run("edge1", f"timeout 3 bash -c '</dev/tcp/{address}/{port}' && echo open", check=False)
        assert "open" not in said, port
    for port, answers in ((9440, True), (9010, True), (9000, False), (9009, False), (8123, False)):
        said = cluster.run("ch2", f"timeout 3 bash -c '</dev/tcp/{address}/{port}' && echo open", check=False)
        assert ("open" in said) is answers, f"{port}: only by TLS"
