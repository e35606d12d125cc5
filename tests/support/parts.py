"""Real servers for the tests and the benchmarks, each on a free port, each killed by its own pid.

As root, PostgreSQL runs as its service's user, because it refuses to run as root.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

_given: set[int] = set()
PATIENCE = 4
"""A wait ends as soon as its condition holds; only one that never will takes its whole time. So a machine with much else to
do is given this many times as long as an idle one needs."""


def free_port() -> int:
    """A port that neither this process nor another run of the tests was given, as its part may not listen yet. It is below
    those that the kernel gives to outgoing connections: one of these could take it while its part is dead."""
    while True:
        port = random.SystemRandom().randrange(10_000, 32_000)
        if port not in _given:
            with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
                fcntl.lockf(_ports(), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)  # until this process ends
                _given.add(port)
                return port


@functools.cache
def _ports() -> int:
    """A file whose bytes stand for ports: who has a byte locked has the port."""
    return os.open(
        Path(tempfile.gettempdir()) / f"skywave-ports-{os.getuid()}", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600
    )


def wait_for(condition: Callable[[], object], seconds: float, what: str | Callable[[], str], pause: float = 0.05):
    """The condition's first true value; fails the test when there is none within ``seconds`` of an idle machine."""
    until = time.monotonic() + PATIENCE * seconds
    while True:
        if value := condition():
            return value
        assert time.monotonic() < until, f"{what() if callable(what) else what}: not within {PATIENCE * seconds} s"
        time.sleep(pause)


def listens(port: int) -> bool:
    with socket.socket() as sock:
        sock.settimeout(0.5)
        return sock.connect_ex(("127.0.0.1", port)) == 0


def ended(pid: int) -> bool:
    """True for a process that is gone, and for one that waits for a parent to take its exit code: in a container whose first
    process reaps nothing an orphan stays like that for ever."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return True
    return stat.rpartition(")")[2].split()[0] in "ZX"  # proc(5): the state follows the name, which may hold anything


def which(name: str) -> str:
    path = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin:/usr/lib/postgresql/15/bin")
    assert path, f"{name} is not installed: run make test, which installs it"
    return path


def running(made):
    """For a fixture: starts what is made, and removes it whatever happens."""
    try:
        made.start()
        yield made
    finally:
        made.remove()


class Part:
    """A server process in a folder of its own."""

    user: str | None = None

    def __init__(self, name: str, base: Path | None = None) -> None:
        self.name = name
        self.port = free_port()
        self.folder = Path(tempfile.mkdtemp(prefix=f"skywave-{name}-", dir=base))
        if self.user:
            shutil.chown(self.folder, self.user)
        self.process: subprocess.Popen | None = None

    def command(self) -> list[str]:
        raise NotImplementedError

    def ready(self) -> bool:
        return listens(self.port)

    def start(self) -> None:
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                self.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, user=self.user, group=self.user,
                extra_groups=[] if self.user else None, cwd=self.folder, start_new_session=True,
            )  # fmt: skip
        wait_for(self._ready_or_dead, 90, f"{self.name} starts")

    def _ready_or_dead(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"{self.name} died:\n{self.log()[-2000:]}"
        return self.ready()

    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, to the part and its children (each part leads a session of its own)."""
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def stop(self, seconds: float = 20) -> int:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(seconds)
            except subprocess.TimeoutExpired:
                self.kill()
                raise
        return self.process.returncode

    def remove(self) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


class Mosquitto(Part):
    def __init__(self, extra: str = "max_queued_messages 0\nmax_inflight_messages 0\nset_tcp_nodelay true\n") -> None:
        super().__init__("mosquitto")
        config = f"listener {self.port} 127.0.0.1\nallow_anonymous true\npersistence false\n{extra}"
        (self.folder / "mosquitto.conf").write_text(config)

    def command(self) -> list[str]:
        return [which("mosquitto"), "-c", str(self.folder / "mosquitto.conf")]


class Postgres(Part):
    user = "postgres" if os.getuid() == 0 else None

    def __init__(self, base: Path | None = None, **options: object) -> None:
        if self.user:
            pwd.getpwnam(self.user)
        super().__init__("postgres", base)
        self.options = options
        self.data = self.folder / "data"
        self.databases = 0
        subprocess.run(
            [which("initdb"), "-D", str(self.data), "-A", "trust", "-U", "skywave", "--no-sync", "-E", "UTF8", "--locale=C"],
            check=True, capture_output=True, user=self.user, group=self.user, extra_groups=[] if self.user else None,
            cwd=self.folder,
        )  # fmt: skip

    def command(self) -> list[str]:
        options = {
            "port": self.port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": str(self.folder),
            **self.options,
        }
        flags = [word for key, value in options.items() for word in ("-c", f"{key}={value}")]
        return [which("postgres"), "-D", str(self.data), *flags]

    def ready(self) -> bool:
        result = subprocess.run([which("pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)], check=False)
        return result.returncode == 0

    def dsn(self, database: str = "postgres") -> str:
        return f"host=127.0.0.1 port={self.port} user=skywave dbname={database}"

    def new_database(self) -> str:
        """A libpq connection string of a fresh database."""
        self.databases += 1
        name = f"outbox_{self.databases}"
        subprocess.run([which("psql"), "-qXc", f"CREATE DATABASE {name}", self.dsn()], check=True)
        return self.dsn(name)

    def kill(self) -> None:
        """As a power cut would: the postmaster and every backend, which lead process groups of their own."""
        if self.process is None or self.process.poll() is not None:
            return
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        self.process.kill()
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(child), signal.SIGKILL)
        self.process.wait()
        wait_for(lambda: all(ended(int(child)) for child in children), 10, "backends end")


CLICKHOUSE_CONFIG = """<yandex>
<logger><level>warning</level><log>{folder}/server.log</log><errorlog>{folder}/error.log</errorlog></logger>
<listen_host>127.0.0.1</listen_host><tcp_port>{port}</tcp_port><http_port>{http}</http_port>
<interserver_http_port>{interserver}</interserver_http_port>
<path>{folder}/data/</path><tmp_path>{folder}/tmp/</tmp_path><users_config>{folder}/users.xml</users_config>
<default_profile>default</default_profile><default_database>default</default_database><timezone>UTC</timezone>
<mark_cache_size>268435456</mark_cache_size><max_concurrent_queries>100</max_concurrent_queries>
</yandex>"""
CLICKHOUSE_USERS = """<yandex>
<profiles><default><max_memory_usage>4000000000</max_memory_usage></default></profiles>
<users><default><password></password><networks><ip>127.0.0.1</ip></networks><profile>default</profile>
<quota>default</quota></default></users><quotas><default></default></quotas></yandex>"""


class ClickHouse(Part):
    def __init__(self, base: Path | None = None) -> None:
        super().__init__("clickhouse", base)
        config = CLICKHOUSE_CONFIG.format(folder=self.folder, port=self.port, http=free_port(), interserver=free_port())
        (self.folder / "config.xml").write_text(config)
        (self.folder / "users.xml").write_text(CLICKHOUSE_USERS)

    def command(self) -> list[str]:
        return [which("clickhouse-server"), f"--config-file={self.folder / 'config.xml'}"]


class CurrentClickHouse(Part):
    """The current engine behind ClickHouse's native protocol, see native_server.py; with sparse columns provoked."""

    def __init__(self, base: Path | None = None, password: str = "") -> None:
        super().__init__("native", base)
        self.password = password

    def command(self) -> list[str]:
        server = Path(__file__).parent / "native_server.py"
        options = ["--sparse", f"--password={self.password}"]
        return [sys.executable, str(server), str(self.port), str(self.folder / "data"), *options]
