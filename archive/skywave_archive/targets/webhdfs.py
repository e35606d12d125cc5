"""The archive in HDFS, over WebHDFS with the ``hdfs`` package.

That package does one pass over the NameNodes without a pause, knows neither time-outs nor resumed reads unless told, obeys
proxies of the environment and has no exclusive rename; all that is added here. RENAME with ``renameoptions`` is atomic and
never replaces or nests; CREATE with ``createparent=false`` fails where a later owner of the lock has moved the folder away.
HttpFS, and perhaps other gateways, ignore both options and answer 200: ``prove`` finds them out.
"""

from __future__ import annotations

import html
import logging
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any, TypeVar
from urllib.parse import urlparse

import hdfs
import requests

from skywave.process.backoff import Backoff

from ..errors import AlreadyExists, NotFound, TargetDenied, TargetError, TargetFull, TargetUnavailable, TargetUnsafe
from ..settings import Target as Settings
from .target import Entry, Target, attempts

logging.getLogger("hdfs").setLevel(logging.WARNING)  # it has a line for each call
T = TypeVar("T")
_CHUNK = 1 << 20
_TRY_AGAIN = (408, 425, 429)
"""Statuses below 500 that ask for another try; all others say that the request is wrong or not allowed."""
_SECURITY = "Check target.user and the cluster's security."
_KINDS: dict[str, tuple[type[TargetError | TargetDenied | TargetUnavailable], str]] = {
    "FileNotFoundException": (NotFound, ""),
    "ParentNotDirectoryException": (NotFound, ""),
    "FileAlreadyExistsException": (AlreadyExists, ""),
    "AlreadyBeingCreatedException": (AlreadyExists, ""),
    "PathIsNotEmptyDirectoryException": (AlreadyExists, ""),
    "AccessControlException": (TargetDenied, "Give the archive's root to target.user: hdfs dfs -chown."),
    "SecurityException": (TargetDenied, _SECURITY),
    "AuthorizationException": (TargetDenied, _SECURITY),
    "AuthenticationException": (TargetDenied, _SECURITY),
    "InvalidToken": (TargetDenied, _SECURITY),
    "NSQuotaExceededException": (TargetFull, "Raise the name quota: hdfs dfsadmin -setQuota."),
    "DSQuotaExceededException": (
        TargetFull,
        "Raise the space quota (it counts replicas): hdfs dfsadmin -setSpaceQuota.",
    ),
    "QuotaByStorageTypeExceededException": (TargetFull, "Raise the quota of the storage type."),
    "SafeModeException": (TargetUnavailable, "The NameNode is in safe mode: hdfs dfsadmin -safemode get."),
    "StandbyException": (TargetUnavailable, "No NameNode is active: hdfs haadmin -getAllServiceState."),
}


class WebHdfsTarget(Target):
    """See ``Target``."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._root = settings.path.rstrip("/")
        self._local = threading.local()
        self.retry_for = settings.retry_for
        self.where = f"hdfs {settings.urls} {self._root}"

    # -- calls ---------------------------------------------------------------------------------------------------------

    def _client(self) -> Any:
        """One a thread: a session of ``requests`` belongs to one thread."""
        if not hasattr(self._local, "client"):
            timeout = (min(5.0, self._settings.timeout), self._settings.timeout)
            self._local.client = hdfs.InsecureClient(
                ";".join(self._settings.addresses), user=self._settings.user, timeout=timeout, session=_session()
            )
        return self._local.client

    def _call(self, path: str, work: Callable[[Any, str], T], retry: bool = True) -> T:
        full = f"{self._root}/{path}".rstrip("/")
        for attempt in attempts(self.retry_for if retry else 0):
            try:
                return work(self._client(), full)
            except (hdfs.HdfsError, requests.RequestException, KeyError, ValueError) as error:
                translated = _translated(error, full)
                if not isinstance(translated, TargetUnavailable) or isinstance(translated, TargetFull):
                    raise translated from error
                attempt.failed(translated)
        raise AssertionError("unreachable")

    # -- see Target ----------------------------------------------------------------------------------------------------

    def entries(self, path: str) -> list[Entry]:
        """See ``Target.entries``."""
        try:
            found = self._call(path, lambda client, full: client.list(full, status=True))
        except NotFound:
            return []
        return sorted(_entry(name, status) for name, status in found)

    def status(self, path: str) -> Entry | None:
        """See ``Target.status``."""
        try:
            found = self._call(path, lambda client, full: client.status(full))
        except NotFound:
            return None
        return _entry(path.rpartition("/")[2], found)

    def create(self, path: str, chunks: Iterable[bytes]) -> None:
        """See ``Target.create``."""

        def locate(client: Any, full: str) -> str:
            # The NameNode checks nothing yet; it names the DataNode that will.
            answer = client._create(full, overwrite="false", createparent="false")
            return str(answer.headers["location"])

        location = self._call(path, locate)

        def send(client: Any, _: str) -> None:
            answer = client._request(method="PUT", url=location, data=iter(chunks))
            if answer.status_code != 201:
                raise hdfs.client._to_error(answer)

        self._call(path, send, retry=False)

    def read(self, path: str, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        """See ``Target.read``."""
        at = offset
        end: int | None = None if length is None else offset + length
        if end is None:
            status = self.status(path)
            if status is None:
                raise NotFound(f"{path}: not found")
            end = status.size
        progress, pause = time.monotonic(), Backoff(0.4, 5.0)
        while at < end:
            try:
                with self._open(path, at, end - at) as answer:
                    for chunk in answer.iter_content(_CHUNK):
                        at += len(chunk)
                        progress = time.monotonic()
                        pause.reset()
                        yield chunk
                if at < end:
                    raise requests.ConnectionError(f"{end - at} bytes are missing at the end")
            except requests.RequestException as error:
                if time.monotonic() - progress >= self.retry_for:
                    raise _translated(error, path) from error
                time.sleep(pause.next())

    def _open(self, path: str, offset: int, length: int) -> Any:
        return self._call(path, lambda client, full: client._open(full, offset=offset, length=length))

    def rename(self, source: str, destination: str) -> None:
        """See ``Target.rename``."""
        goal = f"{self._root}/{destination}"
        answer = self._call(source, lambda client, full: client._rename(full, destination=goal, renameoptions="NONE"))
        if answer.content:  # only a RENAME without options says whether it was done
            raise self._unsafe()

    def make_folder(self, path: str) -> None:
        """See ``Target.make_folder``."""
        self._call(path, lambda client, full: client.makedirs(full))

    def delete(self, path: str) -> None:
        """See ``Target.delete``."""
        self._call(path, lambda client, full: client.delete(full, recursive=True))

    def touch(self, path: str) -> None:
        """See ``Target.touch``."""
        self._call(path, lambda client, full: client.set_times(full, modification_time=int(time.time() * 1000)))

    def free_bytes(self) -> int | None:
        """See ``Target.free_bytes``. Only a space quota can be told over WebHDFS."""
        try:
            content = self._call("", lambda client, full: client.content(full))
        except NotFound:
            return None
        quota = int(content.get("spaceQuota", -1))
        return None if quota < 0 else max(0, quota - int(content["spaceConsumed"]))

    def problems(self, folder: str) -> list[str]:
        """See ``Target.problems``."""
        found = []
        for url in self._settings.addresses:
            try:
                with suppress(TargetUnavailable):  # a standby, say; the one that works is tried by all who write
                    WebHdfsTarget(replace(self._settings, urls=url, retry_for=0)).prove(folder)
                with _session() as session:
                    query = {"qry": "Hadoop:service=NameNode,name=NameNodeInfo"}
                    answer = session.get(f"{url.rstrip('/')}/jmx", params=query, timeout=self._settings.timeout)
                    beans = answer.json()["beans"]
            except (requests.RequestException, ValueError, KeyError) as error:
                found.append(f"NameNode {url}: {_short(error)}")
                continue
            except TargetUnsafe as error:
                found.append(f"{error} {error.hint}")
                continue
            if beans and beans[0].get("Safemode"):
                found.append(f"NameNode {url} is in safe mode")
        return found

    def prove(self, folder: str) -> None:
        """See ``Target.prove``."""
        probe = f"{folder}/probe-{secrets.token_hex(8)}"
        for name in ("one", "two"):
            self.make_folder(f"{probe}/{name}")
        tries: list[Callable[[], None]] = [
            lambda: self.rename(f"{probe}/nothing", f"{probe}/three"),
            lambda: self.rename(f"{probe}/one", f"{probe}/two"),
            lambda: self.put(f"{probe}/nowhere/file", b"skywave"),
        ]
        try:
            for attempt in tries:
                with suppress(NotFound, AlreadyExists):
                    attempt()
                    raise self._unsafe()
        finally:
            self.delete(probe)

    def _unsafe(self) -> TargetUnsafe:
        return TargetUnsafe(
            f"{self._settings.urls} ignores renameoptions or createparent, as HttpFS does: nothing could be published"
            " safely there",
            "Give the NameNodes' own addresses in target.urls (port 9870), not those of a gateway.",
        )


def _session() -> requests.Session:
    session = requests.Session()
    session.trust_env = False  # no proxies from the environment
    session.hooks["response"].append(_refuse_others)
    return session


def _refuse_others(answer: requests.Response, *_: Any, **__: Any) -> None:
    """Raises ``HTTPError`` for answers that are not WebHDFS's: web pages, and errors that it did not name."""
    if answer.ok and "html" not in answer.headers.get("content-type", ""):
        return
    with suppress(ValueError, KeyError, TypeError):
        if answer.json()["RemoteException"]["exception"]:
            return
    raise requests.HTTPError(f"HTTP {answer.status_code}: {_words(answer)}", response=answer)


def _words(answer: requests.Response) -> str:
    """What an answer says: the title of a page, or its first words."""
    page = answer.content[:10_000].decode(errors="replace")
    title = re.search(r"<title[^>]*>(.*?)</title", page, re.IGNORECASE | re.DOTALL)
    said = title[1] if title else re.sub(r"<[^>]*>", " ", page)
    return " ".join(html.unescape(said).split())[:200] or str(answer.reason)


def _entry(name: str, status: dict[str, Any]) -> Entry:
    return Entry(name, status["type"] == "DIRECTORY", status["length"], status["modificationTime"] / 1000)


def _short(error: Exception) -> str:
    return " ".join(str(error).partition("\n")[0].split())[:300] or type(error).__name__


def _translated(error: Exception, path: str) -> Exception:
    if isinstance(error, requests.HTTPError) and error.response is not None:
        status = error.response.status_code
        if status in (401, 403, 407):
            return TargetDenied(f"{path}: {error}", _SECURITY)
        if status < 500 and status not in _TRY_AGAIN:
            return TargetDenied(f"{path}: {error}: this is no WebHDFS", "Check target.urls: http://NAMENODE:9870.")
        return TargetUnavailable(f"{path}: {error}", "See the log of what answers at target.urls.")
    if isinstance(error, hdfs.HdfsError):
        name = str(error.exception or "")
        text = _short(error)
        if name in _KINDS:
            kind, hint = _KINDS[name]
            return kind(f"{path}: {text}", hint)
        if "safe mode" in text.lower():
            return TargetUnavailable(f"{path}: {text}", _KINDS["SafeModeException"][1])
        if "Failed to find datanode" in text:  # all full, or a NameNode just started that none has reported to yet
            return TargetUnavailable(f"{path}: {text}", "Check the DataNodes: hdfs dfsadmin -report.")
        if any(sign in text for sign in ("minReplication", "No space")):
            return TargetFull(f"{path}: {text}", "Check the DataNodes: hdfs dfsadmin -report.")
        return TargetUnavailable(f"{path}: {name} {text}", "See the NameNode's log.")
    if any(sign in str(error) for sign in ("NameResolution", "Failed to resolve", "name resolution")):
        host = urlparse(
            getattr(error.request, "url", "") if isinstance(error, requests.RequestException) else ""
        ).hostname
        return TargetUnavailable(
            f"{path}: the host name {host} is unknown here",
            "WebHDFS sends to DataNodes by host name: this host must be able to resolve them.",
        )
    return TargetUnavailable(
        f"{path}: {_short(error)}", "Check target.urls and that the NameNodes and DataNodes answer."
    )
