"""Real servers for every test that needs one; they start once a session, and each test has a database of its own."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import hypothesis
import pytest
from support.crash import Crasher
from support.device import Device
from support.hadoop import Hdfs
from support.parts import ClickHouse, CurrentClickHouse, Mosquitto, Postgres, running
from support.stand import Stand
from support.vault import Vault
from support.webhdfs_proxy import Proxy

from skywave import config

_numbers = itertools.count(1)
hypothesis.settings.register_profile("busy", deadline=None)  # the first call alone imports things
hypothesis.settings.load_profile("busy")


@pytest.fixture(scope="session")
def old_clickhouse():
    yield from running(ClickHouse())


@pytest.fixture(scope="session")
def current_clickhouse():
    yield from running(CurrentClickHouse())


@pytest.fixture
def clickhouse(request):
    """A server of 18.16; for tests of every engine also the current one."""
    return request.getfixturevalue(getattr(request, "param", "old_clickhouse"))


@pytest.fixture(scope="session")
def postgres():
    yield from running(Postgres())


@pytest.fixture
def installed_in(monkeypatch):
    """Takes a folder for the one where an installed host has its configurations."""

    def take(folder: Path) -> None:
        monkeypatch.setattr(config, "INSTALLED", folder)
        monkeypatch.setattr(config.loading, "INSTALLED", folder)

    return take


@pytest.fixture
def broker():
    yield from running(Mosquitto())


@pytest.fixture
def own_clickhouse():
    """For tests that kill it."""
    yield from running(ClickHouse())


@pytest.fixture
def own_postgres():
    """For tests that kill it."""
    yield from running(Postgres())


@pytest.fixture
def database():
    """A name that no other test uses."""
    return f"telemetry_{next(_numbers)}"


@pytest.fixture
def outbox_dsn(postgres):
    return postgres.new_database()


@pytest.fixture
def stand(broker, clickhouse, database):
    stand = Stand(broker, f"port = {clickhouse.port}\n", database)
    try:
        yield stand
    finally:
        stand.remove()


@pytest.fixture
def device(broker):
    """Makes devices that publish by MQTT; they are closed at the end."""
    devices = []

    def make(*subscriptions: str) -> Device:
        devices.append(Device(broker.port, *subscriptions))
        return devices[-1]

    yield make
    for one in devices:
        one.close()


@pytest.fixture
def clustered(broker, cluster, database):
    """On a cluster of the test's own, with three replicas a shard."""
    stand = Stand(broker, cluster.toml(quorum=2), database)
    try:
        yield stand
    finally:
        stand.remove()


@pytest.fixture(scope="session")
def hdfs():
    yield from running(Hdfs())


@pytest.fixture(scope="session")
def crasher():
    crasher = Crasher()
    try:
        yield crasher
    finally:
        crasher.close()


def _vault(clickhouse, database, target=""):
    vault = Vault({"1": f"port = {clickhouse.port}"}, database, target)
    try:
        yield vault
    finally:
        vault.remove()


@pytest.fixture
def vault(clickhouse, database):
    """ClickHouse and a local folder."""
    yield from _vault(clickhouse, database)


@pytest.fixture
def hdfs_target(hdfs):
    """The [target] table of a fresh root in HDFS."""
    return f'kind = "hdfs"\nurls = "{hdfs.url}"\npath = "{hdfs.new_root()}"\ntimeout = 10\nretry_for = 10\n'


@pytest.fixture
def hdfs_vault(clickhouse, database, hdfs_target):
    """ClickHouse and HDFS."""
    yield from _vault(clickhouse, database, hdfs_target)


@pytest.fixture
def two_shards(clickhouse, own_clickhouse, database):
    vault = Vault({"a": f"port = {clickhouse.port}", "b": f"port = {own_clickhouse.port}"}, database, "")
    try:
        yield vault, own_clickhouse
    finally:
        vault.remove()


@pytest.fixture
def proxied(clickhouse, database, hdfs):
    """ClickHouse, and HDFS behind a proxy that injects faults: (vault, proxy)."""
    proxy = Proxy(hdfs.http)
    target = f'kind = "hdfs"\nurls = "{proxy.url}"\npath = "{hdfs.new_root()}"\ntimeout = 3\nretry_for = 6\n'
    try:
        for vault in _vault(clickhouse, database, target):
            yield vault, proxy
    finally:
        proxy.remove()


@pytest.fixture
def rng():
    """A seeded generator; a failing test prints its seed, and SKYWAVE_SEED repeats it."""
    import os

    seed = int(os.environ.get("SKYWAVE_SEED") or random.SystemRandom().randrange(2**32))
    print(f"SKYWAVE_SEED={seed}")
    return random.Random(seed)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    """Tests print what strangers sent; what is no Unicode cannot go from a worker of xdist to the terminal."""
    report = yield
    report.sections = [(name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections]
    return report


def pytest_addoption(parser):
    parser.addoption("--no-skips", action="store_true", help="a skipped test fails the run")
    parser.addoption("--all-engines", action="store_true", help="the whole archive on the current engine as well")


def pytest_generate_tests(metafunc):
    """Tests of every engine run on each; with --all-engines all tests of the archive are such."""
    everything = metafunc.config.getoption("--all-engines") and "tests/archive" in metafunc.definition.path.as_posix()
    if "clickhouse" in metafunc.fixturenames and (everything or metafunc.definition.get_closest_marker("every_engine")):
        metafunc.parametrize("clickhouse", ["old_clickhouse", "current_clickhouse"], indirect=True)


def pytest_terminal_summary(terminalreporter):
    if terminalreporter.config.getoption("--no-skips") and terminalreporter.stats.get("skipped"):
        terminalreporter.write_line("skipped tests fail this run (--no-skips)", red=True)


def pytest_sessionfinish(session):
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if session.config.getoption("--no-skips") and reporter and reporter.stats.get("skipped"):
        session.exitstatus = 1
