"""A service manager as a service sees systemd: it hears sd_notify(3), keeps descriptors, gives them to the next process."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

from support.parts import wait_for

MOST_DESCRIPTORS = 8
LAUNCH = """
import fcntl, os, sys
given = [fcntl.fcntl(int(number), fcntl.F_DUPFD, 100) for number in sys.argv[1].split(",") if number]
for number, descriptor in enumerate(given):
    os.dup2(descriptor, 3 + number)
if given:
    os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.argv[2], sys.argv[2:])
"""
"""sd_listen_fds(3): the descriptors stand from 3 on, in the order of their names, for the process of that number alone."""


class ServiceManager:
    """``store`` are the descriptors that it keeps, by name; ``states`` all that it heard."""

    def __init__(self, folder: Path) -> None:
        self.store: dict[str, int] = {}
        self.states: list[str] = []
        self._started_at = 0
        self._address = str(folder / "notify")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self._address)
        self._processes: list[subprocess.Popen] = []
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def _listen(self) -> None:
        while True:
            message, descriptors, _, _ = socket.recv_fds(self._socket, 8192, MOST_DESCRIPTORS)
            if message == b"end":
                return
            words = dict(line.split("=", 1) for line in message.decode().splitlines())
            if words.get("FDSTORE") == "1":
                (self.store[words["FDNAME"]],) = descriptors
            elif words.get("FDSTOREREMOVE") == "1":
                os.close(self.store.pop(words["FDNAME"]))
            self.states.append(message.decode())

    def start(self, *arguments: str, **variables: str) -> subprocess.Popen:
        """Starts ``python arguments`` with what is in the store, as it would be given to the next process of a unit."""
        self._started_at = len(self.states)
        environment = {**os.environ, **variables, "NOTIFY_SOCKET": self._address}
        if self.store:
            environment |= {"LISTEN_FDS": str(len(self.store)), "LISTEN_FDNAMES": ":".join(self.store)}
        numbers = ",".join(map(str, self.store.values()))
        process = subprocess.Popen(
            [sys.executable, "-c", LAUNCH, numbers, sys.executable, *arguments],
            pass_fds=[*self.store.values()], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._processes.append(process)
        return process

    def wait_for(self, state: str) -> None:
        """Waits until the process that was started last says it."""
        wait_for(lambda: state in self.states[self._started_at :], 30, lambda: f"{state}: heard {self.states}")

    def close(self) -> None:
        """Ends what it started."""
        for process in self._processes:
            process.kill()
            process.communicate()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"end", self._address)
        self._thread.join()
        self._socket.close()
        for descriptor in self.store.values():
            os.close(descriptor)
