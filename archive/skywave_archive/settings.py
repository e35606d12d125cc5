"""The configuration of ``skywave-archive``."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit

from skywave import config
from skywave.config import setting
from skywave.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where the archive lives."""

    kind: str = setting("hdfs", "hdfs (over WebHDFS) or local (a folder of this host).", ("hdfs", "local"))
    path: str = setting(..., "The archive's root: an absolute path in HDFS, or a local folder.")
    urls: str = setting(
        "http://127.0.0.1:9870", "hdfs: WebHDFS addresses of the NameNodes, with a comma or ; between them."
    )
    user: str = setting("skywave", "hdfs: user name.")
    timeout: float = setting(30.0, "hdfs: seconds to wait for an answer or the next bytes.", (0.5, 3600))
    retry_for: float = setting(60.0, "hdfs: seconds for which to try again while nobody answers.", (0, 86400))

    @property
    def addresses(self) -> list[str]:
        """``urls``, one by one, without the path of WebHDFS, with which some copy them."""
        urls = [url.strip().rstrip("/") for url in self.urls.replace(",", ";").split(";")]
        return [url.removesuffix("/webhdfs/v1") for url in urls]


@dataclass(frozen=True, kw_only=True)
class Export:
    """How days are exported."""

    file_bytes: int = setting(512 << 20, "A data file ends when it has about as many bytes.", (1 << 16, 1 << 34))
    parallel: int = setting(
        1,
        "Most readings at once: of shards, or of ranges of clients of one shard's large day. Each takes about 150 MB of "
        "memory and more than one core; raise it where there are several shards or more than two cores.",
        (1, 64),
    )
    repeats: int = setting(2, "How often a day that changed while it was read is read again.", (0, 100))
    lock_ttl: float = setting(60.0, "Seconds without a sign of life after which a lock is taken over.", (0.5, 3600))
    trash_days: int = setting(7, "Days for which pruned files stay in the archive's trash.", (0, 3650))


@dataclass(frozen=True, kw_only=True)
class Archive:
    """Configuration of `skywave-archive`."""

    store: config.Store = field(default_factory=config.Store)
    target: Target = setting(..., "Give a table [target] with the path of the archive.")
    export: Export = field(default_factory=Export)
    metrics_file: str = setting(
        "", "File for Prometheus' textfile collector; written after each command.", path=config.DATA
    )


def load(path: str) -> Archive:
    """Reads the TOML file; raises ``ConfigError``."""
    settings = config.load(path, Archive)
    if settings.target.kind == "hdfs" and not all(_is_url(url) for url in settings.target.addresses):
        raise ConfigError(
            f"{path}: target.urls: {settings.target.urls!r}", 'For example "http://nn1:9870, http://nn2:9870".'
        )
    if settings.target.kind == "hdfs" and not _is_hdfs_folder(settings.target.path):
        raise ConfigError(
            f"{path}: target.path {settings.target.path!r} must be an absolute path in HDFS, without . .. // # : =",
            "For example /skywave.",
        )
    if settings.target.kind == "local":
        check_folder(settings.target.path, f"{path}: target.path")
        folder = config.located(settings.target.path, Path(path).absolute())
        settings = replace(settings, target=replace(settings.target, path=folder))
    if settings.store.kind == "embedded":
        check_folder(settings.store.path, f"{path}: store.path")
    if settings.metrics_file:
        check_folder(settings.metrics_file, f"{path}: metrics_file")
    return settings


def check_folder(path: str, what: str) -> None:
    """Raises ``ConfigError`` for a path on this host that would be taken for another than is meant."""
    if not path.strip():
        raise ConfigError(f"{what} is empty", "It would be the folder in which the command runs: name one.")
    if path.startswith("~"):
        raise ConfigError(f"{what} {path!r}: ~ stands for a home folder in a shell only", "Write the path in full.")


def _is_hdfs_folder(path: str) -> bool:
    folder = path.rstrip("/")
    return (
        folder.startswith("/") and not set("#:=") & set(folder) and posixpath.normpath(folder).lstrip("/") == folder[1:]
    )


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        return False
