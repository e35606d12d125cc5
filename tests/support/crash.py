"""Runs ``skywave-archive`` in a child process that dies by SIGKILL at a chosen step.

A step is a change of the target (create, rename, delete, make_folder) or, with ``what="store"``, a statement of the store
that changes something. ``when``: before the step, after it, or in the middle of writing a file. The children are forked
from one process that has everything imported, so that a crash costs milliseconds.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path


class Crasher:
    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]),
                 "OPENBLAS_NUM_THREADS": "1"},
        )  # fmt: skip

    def run(self, *args: str, step: int = 0, when: str = "before", what: str = "target") -> int | None:
        """Exit code, or None if the step came and the child died there."""
        code = self._ask({"args": args, "step": step, "when": when, "what": what})["code"]
        return None if code == -signal.SIGKILL else code

    def stop_at(self, *args: str, step: int) -> int | None:
        """Runs until before a step and stops there by SIGSTOP; the child's pid, or None if it ended before."""
        return self._ask({"args": args, "step": step, "when": "stop", "what": "target"})["stopped"]

    def resume(self, pid: int) -> int:
        """Lets a stopped child run to its end; its exit code."""
        os.kill(pid, signal.SIGCONT)
        return self._ask({"wait": pid})["code"]

    def _ask(self, job: dict) -> dict:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        print(f"{job.get('step')} {job.get('when')}: {answer['code']} {answer['output']}")
        return answer

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _arm(job: dict) -> None:
    from skywave_archive.errors import TargetUnavailable

    count = 0

    def wrap(owner: type, name: str, changes=lambda *_: True) -> None:
        original = getattr(owner, name)

        def wrapped(self, *args, **kwargs):
            nonlocal count
            if not changes(*args):
                return original(self, *args, **kwargs)
            count += 1
            mine = count == job["step"]
            if mine and job["when"] == "before":
                _die()
            if mine and job["when"] == "fail":
                raise TargetUnavailable("injected")
            if mine and job["when"] == "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
                return original(self, *args, **kwargs)
            if mine and job["when"] == "middle" and name == "create":
                path, chunks = args
                whole = b"".join(chunks)

                def half():
                    yield whole[: len(whole) // 2]
                    _die()

                return original(self, path, half())
            try:
                return original(self, *args, **kwargs)
            finally:
                if mine:
                    _die()

        setattr(owner, name, wrapped)

    if job["what"] == "target":
        from skywave_archive.targets.local import LocalTarget
        from skywave_archive.targets.webhdfs import WebHdfsTarget

        for owner in (LocalTarget, WebHdfsTarget):
            for name in ("create", "rename", "delete", "make_folder"):
                wrap(owner, name)
    else:
        from skywave.store.clickhouse import ClickHouseStore

        wrap(ClickHouseStore, "query", lambda sql: not sql.startswith(("SELECT", "SHOW")))
        wrap(ClickHouseStore, "insert")


def _main() -> None:
    import clickhouse_driver.dbapi
    import hdfs
    import pyarrow.compute
    import pyarrow.parquet

    import skywave.store.clickhouse

    del clickhouse_driver, hdfs, pyarrow, skywave
    output = tempfile.TemporaryFile("w+")  # noqa: SIM115
    for line in sys.stdin:
        job = json.loads(line)
        pid = job.get("wait") or _start(job, output)
        status = os.waitpid(pid, os.WUNTRACED)[1]
        output.seek(0)
        stopped = pid if os.WIFSTOPPED(status) else None
        code = None if stopped else os.waitstatus_to_exitcode(status)
        print(json.dumps({"code": code, "stopped": stopped, "output": output.read()}), flush=True)


def _start(job: dict, output) -> int:
    import skywave_archive.cli

    output.seek(0)
    output.truncate()
    pid = os.fork()
    if pid:
        return pid
    for descriptor in (1, 2):
        os.dup2(output.fileno(), descriptor)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    code = 70
    try:
        _arm(job)
        skywave_archive.cli.main(job["args"], standalone_mode=True)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    finally:
        os._exit(code)


if __name__ == "__main__":
    _main()
