"""What HDFS does to a night, case by case; the numbers are those of the archive's contract in docs/archive.md."""

from __future__ import annotations

import re
import shutil
import threading
import time

import pytest
from skywave_archive import restore as restoring
from skywave_archive.source import SourceShard
from support.hadoop import Hdfs, HighlyAvailableHdfs
from support.parts import running, wait_for
from support.vault import Vault, days_ago
from support.webhdfs_proxy import Fault

from skywave.errors import StoreUnavailable

DAY = days_ago(1)


def complete(vault, target_clickhouse) -> None:
    """The archive holds exactly the ledger: verified row by row, restored, and nothing lies about."""
    verified = vault.run("verify", "--level", "rows")
    assert verified["findings"] == [], verified["findings"]
    back = f"{vault.database}_back"
    vault.run("restore", "--into", f"clickhouse://127.0.0.1:{target_clickhouse.port}/{back}")
    vault.assert_restored(vault.open(database=back))


def names(hdfs, vault, folder: str) -> list[str]:
    root = vault.target.split('path = "')[1].split('"')[0]
    response = hdfs.op("GET", f"{root}/{folder}", "LISTSTATUS")
    return [status["pathSuffix"] for status in response.json()["FileStatuses"]["FileStatus"]]


def test_01_a_client_killed_in_mid_upload_publishes_nothing_and_the_next_run_does(
    hdfs, hdfs_vault, clickhouse, crasher
):
    hdfs_vault.add(DAY, count=5000)
    deaths = 0
    for step in range(1, 100):
        code = crasher.run("export", "--config", str(hdfs_vault.path), step=step, when="middle")
        if code == 0:
            break
        assert code is None
        deaths += 1
    assert code == 0 and deaths > 10
    complete(hdfs_vault, clickhouse)
    assert names(hdfs, hdfs_vault, "_staging") == []


def test_02_an_error_in_our_row_generator_publishes_nothing(hdfs, hdfs_vault, clickhouse, monkeypatch):
    hdfs_vault.add(DAY, count=5000)
    rows = SourceShard.rows

    def dying(self, table, day, clients=None):
        yield from rows(self, table, day, clients)
        raise StoreUnavailable("the store went away")

    with monkeypatch.context() as patch:
        patch.setattr(SourceShard, "rows", dying)
        assert "went away" in hdfs_vault.run("export", code=75)["stderr"]
    assert hdfs_vault.run("list")["days"] == []
    assert names(hdfs, hdfs_vault, "_staging") == []
    hdfs_vault.run("export")
    complete(hdfs_vault, clickhouse)


def test_03_the_active_namenode_and_a_datanode_die_in_an_export_and_in_a_restore(clickhouse, database, monkeypatch):
    cluster = HighlyAvailableHdfs()
    deaths: list[threading.Thread] = []

    def dying(active, datanode):
        """Once, in the middle of things: the NameNode dies, a DataNode as well, and the other NameNode takes over."""
        if deaths:
            return
        active.kill()
        datanode.kill()
        deaths.append(threading.Thread(target=cluster.fail_over))
        deaths[0].start()

    try:
        cluster.start()
        target = f'kind = "hdfs"\nurls = "{cluster.urls}"\npath = "{cluster.new_root()}"\ntimeout = 5\nretry_for = 60\n'
        vault = Vault({"1": f"port = {clickhouse.port}"}, database, target)
        vault.add(DAY, count=50_000)
        rows, read_rows = SourceShard.rows, restoring.read_rows

        def exported(self, table, day, clients=None):
            for batch in rows(self, table, day, clients):
                yield batch
                dying(cluster.namenode, cluster.datanodes[0])

        monkeypatch.setattr(SourceShard, "rows", exported)
        vault.run("export")
        assert [death.join() for death in deaths] == [None]
        assert cluster.namenode.process.poll() is not None and cluster.datanodes[0].process.poll() is not None

        deaths.clear()
        cluster.namenode.start()
        cluster.datanodes[0].start()

        def restored(*args):
            for batch in read_rows(*args):
                dying(cluster.standby, cluster.datanodes[1])
                yield batch

        monkeypatch.setattr(restoring, "read_rows", restored)
        complete(vault, clickhouse)
        assert [death.join() for death in deaths] == [None]
        vault.remove()
    finally:
        cluster.remove()


def test_04_no_namenode_ends_in_try_again_with_nothing_half_published(proxied, clickhouse):
    vault, proxy = proxied
    vault.configure(target=vault.target.replace("retry_for = 6", "retry_for = 1"))
    vault.add(DAY, count=5000)
    for gone_after in range(3, 60, 14):
        proxy.reset(lambda _, n=gone_after: Fault("lost_reply") if len(proxy.seen) > n else None)
        started = time.monotonic()
        code = vault.run("export", code=None)["code"]
        assert time.monotonic() - started < 120, "it hangs"
        proxy.reset(lambda _: None)
        assert vault.run("verify", "--level", "rows", code=None)["findings"] == []
        if code == 0:
            break
        assert code == 75
    vault.run("export")
    complete(vault, clickhouse)


def test_05_safe_mode_is_waited_for_and_then_said(hdfs, hdfs_vault, clickhouse):
    hdfs_vault.add(DAY)
    hdfs_vault.configure(target=hdfs_vault.target.replace("retry_for = 10", "retry_for = 1"))
    hdfs.admin("-safemode", "enter")
    try:
        result = hdfs_vault.run("export", code=75)
        assert "safe mode" in result["stderr"]
        checks = hdfs_vault.run("check", code=1)["checks"]
        assert any("safe mode" in check["detail"] and not check["good"] for check in checks)
    finally:
        hdfs.admin("-safemode", "leave")
    hdfs_vault.run("export")
    complete(hdfs_vault, clickhouse)


def test_06_a_lost_reply_to_rename_does_no_harm(proxied, clickhouse):
    vault, proxy = proxied
    vault.add(DAY)
    proxy.reset(lambda request: Fault("lost_reply") if request.op == "RENAME" and request.number % 2 == 0 else None)
    vault.run("export")
    vault.add(DAY, first=1001)
    vault.add(DAY, first=2001)
    vault.run("export")
    assert len(proxy.faults) >= 6
    complete(vault, clickhouse)


def test_06_a_lost_reply_to_create_does_no_harm(proxied, clickhouse):
    vault, proxy = proxied
    vault.add(DAY)
    proxy.reset(
        lambda request: (
            Fault("lost_reply") if request.op == "CREATE" and request.datanode and request.number % 3 == 0 else None
        )
    )
    vault.run("export")
    assert len(proxy.faults) >= 2
    complete(vault, clickhouse)


def test_10_permission_denied_ends_at_once_without_a_retry_storm(hdfs, proxied):
    vault, proxy = proxied
    vault.add(DAY)
    root = vault.target.split('path = "')[1].split('"')[0]
    hdfs.op("PUT", root, "SETOWNER", owner="somebody")
    result = vault.run("export", code=2)
    assert "Permission denied" in result["stderr"] and "chown" in result["stderr"]
    assert len(proxy.seen) < 10


def test_11_an_unresolvable_datanode_is_named(proxied):
    vault, proxy = proxied
    vault.configure(target=vault.target.replace("retry_for = 6", "retry_for = 1"))
    vault.add(DAY)
    proxy.reset(lambda request: Fault("unresolvable") if request.op == "CREATE" else None)
    result = vault.run("export", code=75)
    assert "datanode.invalid" in result["stderr"] and "resolve" in result["stderr"]
    checks = vault.run("check", code=1)["checks"]
    assert any("datanode.invalid" in check["detail"] for check in checks)


def test_12_a_proxy_in_the_environment_is_not_obeyed(hdfs_vault, clickhouse, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    hdfs_vault.add(DAY)
    hdfs_vault.run("export")
    complete(hdfs_vault, clickhouse)


def test_13_a_short_read_is_gone_on_with_and_never_taken_for_the_file(proxied, clickhouse):
    vault, proxy = proxied
    vault.add(DAY, count=20_000)
    vault.run("export")
    proxy.reset(
        lambda request: Fault("cut", 5000) if request.op == "OPEN" and request.datanode and request.number % 2 else None
    )
    complete(vault, clickhouse)
    assert len(proxy.faults) > 3
    vault.configure(target=vault.target.replace("retry_for = 6", "retry_for = 1"))
    proxy.reset(lambda request: Fault("cut", 0) if request.op == "OPEN" and request.datanode else None)
    found = vault.run("verify", code=1)["findings"]
    assert found and all("cannot be read" in finding["problem"] for finding in found)


def test_14_a_stalled_datanode_is_left_for_another_try(proxied, clickhouse):
    vault, proxy = proxied
    vault.configure(target=vault.target.replace("timeout = 3", "timeout = 0.7"))
    vault.add(DAY)
    proxy.reset(lambda request: Fault("delay", 2) if request.op == "CREATE" and request.number in (1, 4) else None)
    vault.run("export")
    proxy.reset(
        lambda request: Fault("stall", 2) if request.op == "OPEN" and request.datanode and request.number % 2 else None
    )
    complete(vault, clickhouse)
    assert proxy.faults


def test_a_namenode_in_standby_and_one_out_of_order_are_passed_over(proxied, clickhouse):
    vault, proxy = proxied
    vault.add(DAY)
    proxy.reset(
        lambda request: (
            None
            if request.datanode
            else Fault("standby")
            if request.number % 3 == 1
            else Fault("error")
            if request.number % 5 == 2
            else None
        )
    )
    vault.run("export")
    complete(vault, clickhouse)
    assert {fault.kind for _, fault in proxy.faults} == {"standby", "error"}


def test_an_upload_cut_off_by_the_network_is_done_again(proxied, clickhouse):
    vault, proxy = proxied
    vault.add(DAY, count=20_000)
    proxy.reset(
        lambda request: (
            Fault("drop", 3000) if request.op == "CREATE" and request.datanode and request.number in (1, 2) else None
        )
    )
    vault.run("export")
    assert len(proxy.faults) == 2
    complete(vault, clickhouse)


def test_15_stale_staging_of_a_dead_attempt_is_removed(hdfs, hdfs_vault, clickhouse, crasher):
    hdfs_vault.add(DAY)
    for step in range(4, 40):  # until one dies with something in its staging folder
        assert crasher.run("export", "--config", str(hdfs_vault.path), step=step) is None
        if any(not name.startswith("probe-") for name in names(hdfs, hdfs_vault, "_staging")):
            break
    assert names(hdfs, hdfs_vault, "_staging") != []
    hdfs_vault.run("export")
    assert names(hdfs, hdfs_vault, "_staging") == []
    complete(hdfs_vault, clickhouse)


@pytest.fixture(scope="module")
def fragile():
    """An HDFS of its own, for tests that break it."""
    yield from running(Hdfs(replication=1))


@pytest.fixture
def fragile_vault(fragile, clickhouse, database):
    target = f'kind = "hdfs"\nurls = "{fragile.url}"\npath = "{fragile.new_root()}"\ntimeout = 5\nretry_for = 120\n'
    vault = Vault({"1": f"port = {clickhouse.port}"}, database, target)
    try:
        yield vault
    finally:
        vault.remove()


def test_07_a_datanode_that_dies_in_mid_file_costs_a_second_reading(fragile, fragile_vault, clickhouse, monkeypatch):
    """With one replica, so that a file on the dead DataNode is surely lost."""
    fragile_vault.add(DAY, count=200_000)
    rows = SourceShard.rows
    killed = []

    def slow(self, table, day, clients=None):
        for batch in rows(self, table, day, clients):
            yield batch
            if table.name == "telemetry" and not killed:
                killed.append(True)
                fragile.datanodes[0].kill()

    fragile_vault.configure("file_bytes = 65536")
    monkeypatch.setattr(SourceShard, "rows", slow)
    try:
        fragile_vault.run("export")
        complete(fragile_vault, clickhouse)
    finally:
        fragile.datanodes[0].start()
        fragile.wait()
    assert killed


def test_08_a_full_disk_ends_in_try_again_and_says_so(fragile, fragile_vault, clickhouse):
    """The DataNodes are told to keep more free than there is."""
    fragile_vault.configure(target=fragile_vault.target.replace("retry_for = 120", "retry_for = 2"))
    fragile_vault.add(DAY)
    full = f"<property><name>dfs.datanode.du.reserved</name><value>{1 << 60}</value></property></configuration>"
    before = [(node.conf / "hdfs-site.xml").read_text() for node in fragile.datanodes]

    def restart(configurations):
        """Written while no node runs: Hadoop reads these files again at any time, also half written."""
        for node, text in zip(fragile.datanodes, configurations, strict=True):
            node.kill()
            (node.conf / "hdfs-site.xml").write_text(text)
            node.start()
        fragile.wait()

    try:
        restart(text.replace("</configuration>", full) for text in before)
        result = fragile_vault.run("export", code=75)
        assert "dfsadmin -report" in result["stderr"]
    finally:
        restart(before)
    fragile_vault.configure()
    fragile_vault.run("export")
    complete(fragile_vault, clickhouse)


def test_09_a_quota_ends_in_try_again_and_is_named(fragile, fragile_vault, clickhouse):
    fragile_vault.configure(target=fragile_vault.target.replace("retry_for = 120", "retry_for = 5"))
    fragile_vault.add(DAY)
    root = fragile_vault.target.split('path = "')[1].split('"')[0]
    for quota, clear, word in (
        ("-setSpaceQuota", "-clrSpaceQuota", "setSpaceQuota"),
        ("-setQuota", "-clrQuota", "setQuota"),
    ):
        fragile.admin(quota, "6", root)
        try:
            assert word in fragile_vault.run("export", code=75)["stderr"]
        finally:
            fragile.admin(clear, root)
        assert fragile_vault.run("verify", "--level", "rows", code=None)["findings"] == []
    fragile_vault.configure()
    fragile_vault.run("export")
    complete(fragile_vault, clickhouse)


def test_04_the_namenode_is_restarted_in_the_middle_of_an_export(fragile, fragile_vault, clickhouse, monkeypatch):
    fragile_vault.add(DAY, count=50_000)
    rows = SourceShard.rows
    restarted = []

    def slow(self, table, day, clients=None):
        for batch in rows(self, table, day, clients):
            yield batch
            if not restarted:
                fragile.namenode.kill()
                thread = threading.Thread(target=fragile.namenode.start)
                restarted.append(thread)
                thread.start()

    monkeypatch.setattr(SourceShard, "rows", slow)
    fragile_vault.run("export")
    restarted[0].join()
    fragile.wait()
    complete(fragile_vault, clickhouse)


def test_a_journalnode_that_lost_its_disk_takes_part_again_by_itself():
    cluster = HighlyAvailableHdfs(datanodes=1, journals=3)
    lost = cluster.journals[1]
    edits = lost.folder / "edits"
    try:
        cluster.start()
        cluster.op("PUT", "/before", "MKDIRS")
        lost.kill()
        shutil.rmtree(edits)
        cluster.op("PUT", "/without", "MKDIRS")
        lost.start()
        # The standby lets the log roll every two minutes: then it is heard of, and with the next one written to.
        for what, pattern in (("formatted like the others", "VERSION"), ("written to again", "edits_inprogress*")):
            cluster.admin("-fs", f"hdfs://127.0.0.1:{cluster.namenode.rpc}", "-rollEdits")
            wait_for(lambda name=pattern: list(edits.glob(f"ns/current/{name}")), 60, f"it is {what}")
        cluster.journals[2].kill()
        cluster.op("PUT", "/after", "MKDIRS")
        cluster.namenode.kill()
        cluster.fail_over()
        for path in ("/before", "/without", "/after"):
            cluster.op("GET", path, "GETFILESTATUS")
    finally:
        cluster.remove()


@pytest.mark.parametrize("ignored", [("renameoptions",), ("createparent",), ("renameoptions", "createparent")])
def test_a_gateway_that_ignores_what_publishing_relies_on_is_refused_and_nothing_is_changed(hdfs, proxied, ignored):
    vault, proxy = proxied
    vault.add(DAY)
    vault.run("export")
    vault.add(DAY, first=5001)
    proxy.ignored = set(ignored)
    for command in (
        ("export",),
        ("export", "--open-day"),
        ("expire", "--older-than", "1d"),
        ("prune", "--generations", "1", "--confirm"),
    ):
        assert "HttpFS" in vault.run(*command, code=2)["stderr"]
    # One of several addresses is enough.
    vault.configure(target=vault.target.replace(proxy.url, f"{hdfs.url}, {proxy.url}"))
    bad = [item["detail"] for item in vault.run("check", code=1)["checks"] if not item["good"]]
    assert len(bad) == 1 and bad[0].startswith(f"{proxy.url} ignores")
    proxy.ignored = set()
    assert vault.run("check")["code"] == 0
    assert names(hdfs, vault, "_staging") == []
    assert vault.outcomes(vault.run("export")) == [(str(DAY), "added")]
    assert vault.run("verify", "--level", "rows")["findings"] == []


@pytest.mark.parametrize(
    ("status", "said", "code"),
    [
        (401, b"<html><head><title>Error 401 Authentication required</title></head>", 2),
        (403, b"<TITLE>\n GSSException: Checksum&nbsp;failed </TITLE>", 2),
        (404, b"<h2>It looks like you are making a request to a Hadoop IPC port</h2>", 2),
        (200, b"<title>Sign in</title>", 2),
        (500, b"<title>Error 500 No auth_to_local rule</title>", 75),
        (503, b"", 75),
    ],
)  # fmt: skip
def test_a_web_page_is_told_by_its_title_and_tried_again_only_where_that_can_help(proxied, status, said, code):
    vault, proxy = proxied
    vault.configure(target=vault.target.replace("retry_for = 6", "retry_for = 1"))
    proxy.page = status, said
    result = vault.run("list", "--no-store", code=code)
    words = re.sub(r"<[^>]*>", "", said.decode()).replace("&nbsp;", " ").split()
    assert f"HTTP {status}: {' '.join(words)}" in result["stderr"] and "<" not in result["stderr"]
    assert (len(proxy.seen) == 1) == (code == 2)
