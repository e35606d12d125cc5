"""The lock, and how a change is carried out so that a crash at any point is undone or finished.

**The lock fences by rename.** Every step of a change moves something out of its owner's workspace or into it. Who takes
a lock over first moves the old workspace away, one atomic rename; from then on each further step of the old owner fails
at the target, however long it was frozen. **A change is a plan of renames.** Everything is staged and checked, then the
plan is written into the workspace, then it is carried out. Whoever gets the lock next carries a complete plan through to
its end and deletes an incomplete one, so nothing is ever half done. That a step was done is told by its source being gone
and its destination being there, so a lost answer or a second run does no harm.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import secrets
import socket
import threading
import time
from typing import Any

from skywave.errors import SkywaveError
from skywave.process.times import utc_now

from .archive import LOCKS, STAGING
from .errors import AlreadyExists, Locked, LockLost, NotFound, TargetUnavailable
from .targets.target import Entry, Target

log = logging.getLogger(__name__)

HERE = "@"
"""In a plan: the workspace."""
_TAKEN = "from-"
"""How a workspace is called that was taken over from a former owner of the lock."""
Step = tuple[str, str]


class Workspace:
    """The lock and its owner's folder; a context manager. ``ttl`` in seconds: a lock that shows no sign of life for as
    long is taken over. Raises ``Locked`` when it is held by somebody alive.
    """

    def __init__(self, target: Target, ttl: float = 60.0) -> None:
        self.target = target
        self.ttl = ttl
        self.number = 0
        self.folder = ""
        self._lock = ""
        self._stop = threading.Event()
        self._staged = 0
        self._unfinished = False

    def __enter__(self) -> Workspace:
        self._acquire()
        self._heart = threading.Thread(target=self._beat, name="lock", daemon=True)
        self._heart.start()
        try:
            self._recover()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._heart.join()
        # The workspace stays if a plan could not be finished: the next owner of the lock goes on with it.
        with contextlib.suppress(SkywaveError):
            left = [entry.name for entry in self.target.entries(self.folder)]
            if not any(name.endswith(".plan") or name.startswith(_TAKEN) for name in left):
                self.target.delete(self.folder)
            self.target.rename(self._lock, f"{self._lock}.free")

    def staged(self, name: str) -> str:
        """A path in the workspace."""
        return f"{self.folder}/{name}"

    def stage(self) -> str:
        """A new folder in the workspace, as its name there."""
        self._staged += 1
        name = f"change-{self._staged}"
        self.target.make_folder(self.staged(name))
        self.assert_owned()
        return name

    def assert_owned(self) -> None:
        """Raises ``LockLost`` if the workspace was moved away."""
        if self.target.status(self._lock) is None:
            raise LockLost(f"lock {self.number} was taken over by another process", "Run the command again.")

    def carry_out(self, name: str, steps: list[Step]) -> None:
        """Carries out renames as one change; ``@/…`` is in the workspace. When it returns, all of it is done; after any
        error the whole of it is either not begun or will be finished by the next owner of the lock.
        """
        if self._unfinished:  # an earlier change of ours failed in the middle; what comes after builds on it
            self._finish(self.folder)
            self._unfinished = False
        for folder in sorted({destination.rpartition("/")[0] for _, destination in steps}):
            if not folder.startswith(HERE):
                self.target.make_folder(folder)
        self.assert_owned()
        self._unfinished = True
        self._put_plan(name, steps)
        self._rename_all(self.folder, steps)
        self.target.delete(self.staged(f"{name}.plan"))
        self._unfinished = False
        self.assert_owned()

    def replace(self, path: str, content: bytes) -> None:
        """Puts a small file in the place of what has that name."""
        change = self.stage()
        self.target.put(self.staged(f"{change}/new"), content)
        old: list[Step] = [(path, f"{HERE}/{change}/old")] if self.target.status(path) else []
        self.carry_out(change, [*old, (f"{HERE}/{change}/new", path)])

    def _put_plan(self, name: str, steps: list[Step]) -> None:
        body = json.dumps(steps)
        content = f"{hashlib.sha256(body.encode()).hexdigest()} {body}".encode()
        self.target.put(self.staged(f"{name}.writing"), content)
        self.move(self.staged(f"{name}.writing"), self.staged(f"{name}.plan"))

    def _rename_all(self, folder: str, steps: list[Step], begun: bool = False) -> None:
        paths = [tuple(f"{folder}{path[1:]}" if path.startswith(HERE) else path for path in step) for step in steps]
        start = 0
        if begun:
            # Steps follow one another, so the last one that was done tells that those before it were.
            done = [n for n, (source, destination) in enumerate(paths) if self._is_moved(source, destination)]
            start = max(done, default=-1) + 1
        for source, destination in paths[start:]:
            self.move(source, destination)

    def _is_moved(self, source: str, destination: str) -> bool:
        return self.target.status(source) is None and self.target.status(destination) is not None

    def move(self, source: str, destination: str) -> None:
        """Renames, and takes it for done if a crashed run or a try whose answer was lost has done it before."""
        try:
            self.target.rename(source, destination)
        except (NotFound, TargetUnavailable):
            if not self._is_moved(source, destination):
                if self._lock:
                    self.assert_owned()
                raise

    # -- the lock --------------------------------------------------------------------------------------------------------

    def _acquire(self) -> None:
        self.target.make_folder(LOCKS)
        self.target.make_folder(STAGING)
        self.target.prove(STAGING)
        while True:
            locks = {entry.name: entry for entry in self.target.entries(LOCKS)}
            newest = max((name for name in locks if name[:8].isdigit()), default="00000000")
            number = int(newest.partition(".")[0])
            if newest in locks and not newest.endswith(".free"):
                self._wait_for_death(newest, locks[newest])
            token = f"{number + 1:08}-{secrets.token_hex(8)}"
            if self._take(token, f"{LOCKS}/{number + 1:08}"):
                break
        self.number, self.folder = number + 1, f"{STAGING}/{token}"
        self._lock = f"{LOCKS}/{self.number:08}"
        self.target.make_folder(self.folder)
        for name in locks:
            self.target.delete(f"{LOCKS}/{name}")

    def _take(self, token: str, lock: str) -> bool:
        """True if the lock of that number is ours now: exclusive rename lets one win, and never a file half written."""
        candidate = f"{LOCKS}/candidate-{token}"
        content = json.dumps({"token": token, **_me()}).encode()
        try:
            self.target.put(candidate, content)
            self.move(candidate, lock)
        except (AlreadyExists, NotFound):  # NotFound: the owner of a lock tidied up
            pass
        finally:
            with contextlib.suppress(SkywaveError):
                self.target.delete(candidate)
        try:
            if self.target.read_bytes(lock) != content:
                return False
        except NotFound:
            return False
        # Had we slept before taking it, others may have taken and freed later ones since.
        newest = max(entry.name for entry in self.target.entries(LOCKS) if entry.name[:8].isdigit())
        if f"{LOCKS}/{newest}" != lock:
            self.target.delete(lock)
        return f"{LOCKS}/{newest}" == lock

    def _wait_for_death(self, name: str, lock: Entry) -> None:
        """Returns when a lock's owner is surely gone; raises ``Locked`` at any sign of life.

        Clocks of two hosts may differ, so an old sign of life is believed only after watching it, by our own clock.
        """
        owner = self._owner(name)
        if _is_dead(owner):
            return
        since = time.monotonic()
        age = time.time() - lock.modified
        while age >= self.ttl and time.monotonic() - since < self.ttl:
            time.sleep(min(0.5, self.ttl / 8))
            now = self.target.status(f"{LOCKS}/{name}")
            if now is None:
                return
            age = age if now.modified == lock.modified else 0.0
        if age < self.ttl:
            raise Locked(
                f"the archive is locked by {owner.get('host', '?')} (pid {owner.get('pid', '?')}, sign of life"
                f" {max(0.0, age):.0f} s ago)",
                "Try again when it is done.",
            )
        log.warning("taking over the lock of %s, which shows no sign of life", owner.get("host", "?"))

    def _owner(self, name: str) -> dict[str, Any]:
        try:
            owner = json.loads(self.target.read_bytes(f"{LOCKS}/{name}"))
            return owner if isinstance(owner, dict) else {}
        except (NotFound, ValueError, TargetUnavailable):
            return {}

    def _beat(self) -> None:
        while not self._stop.wait(self.ttl / 4):
            with contextlib.suppress(SkywaveError):
                self.target.touch(self._lock)

    def _recover(self) -> None:
        """Moves the workspaces of former owners into ours, which fences them, and finishes or removes their changes."""
        for entry in self.target.entries(STAGING):
            if f"{STAGING}/{entry.name}" == self.folder:
                continue
            taken = self.staged(f"{_TAKEN}{entry.name}")
            with contextlib.suppress(NotFound):
                self.target.rename(f"{STAGING}/{entry.name}", taken)
        self._finish(self.folder)

    def _finish(self, folder: str) -> None:
        for entry in self.target.entries(folder):
            path = f"{folder}/{entry.name}"
            if entry.is_folder and entry.name.startswith(_TAKEN):
                self._finish(path)
                self.target.delete(path)
            elif entry.name.startswith(_TAKEN):  # a stray file
                self.target.delete(path)
            elif entry.name.endswith(".plan"):
                digest, _, body = self.target.read_bytes(path).decode(errors="replace").partition(" ")
                if hashlib.sha256(body.encode()).hexdigest() == digest:
                    log.warning("finishing the change %s of a run that was ended in the middle", entry.name)
                    self._rename_all(folder, [(source, destination) for source, destination in json.loads(body)], True)
                self.target.delete(path)


def _me() -> dict[str, Any]:
    boot = ""
    with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:  # noqa: PTH123
        boot = file.read().strip()
        boot += os.readlink("/proc/self/ns/pid")  # noqa: PTH115  a pid means nothing in another namespace
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "boot": boot,
        "started": _process_start(os.getpid()),
        "since": utc_now(),
    }


def _process_start(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:  # noqa: PTH123
            return file.read().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def _is_dead(owner: dict[str, Any]) -> bool:
    """True if the owner ran on this host, in this boot, and has ended."""
    me = _me()
    same_host = bool(me["boot"]) and (owner.get("host"), owner.get("boot")) == (me["host"], me["boot"])
    return same_host and _process_start(int(owner.get("pid", 0))) != owner.get("started")


def recover(target: Target, ttl: float) -> None:
    """Finishes what an ended command left in the middle, if nobody is at work; for commands that only read."""
    if target.entries(STAGING):
        try:
            with Workspace(target, ttl):
                pass
        except SkywaveError as error:  # what can be read must be readable in any case
            log.warning("a change is going on, or was ended in the middle: %s", error)
