"""The archive in a folder of this host: for the embedded demo, for tests, and for a mounted disk.

What the folder's file system does must be atomic: any local one, not NFS.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from skywave.process.durable import sync_folder

from ..errors import AlreadyExists, NotFound, TargetDenied, TargetFull, TargetUnavailable
from ..settings import Target as Settings
from .target import Entry, Target

_CHUNK = 1 << 20


class LocalTarget(Target):
    """See ``Target``. Every change is on the disk when its method returns."""

    retry_for = 0.0

    def __init__(self, settings: Settings) -> None:
        self._root = Path(settings.path).absolute()
        self.where = str(self._root)
        try:
            with _translated(self.where):
                self._root.mkdir(parents=True, exist_ok=True)
        except (NotFound, AlreadyExists) as error:
            raise TargetDenied(
                f"{self.where}: there is no folder, and none can be made", "Check target.path."
            ) from error

    def entries(self, path: str) -> list[Entry]:
        """See ``Target.entries``."""
        with _translated(path):
            try:
                found = sorted(os.scandir(self._root / path), key=lambda entry: entry.name)
            except FileNotFoundError:
                return []
            entries = []
            for one in found:
                with suppress(FileNotFoundError):  # moved away meanwhile
                    entries.append(_entry(one.name, one.stat(follow_symlinks=False)))
            return entries

    def status(self, path: str) -> Entry | None:
        """See ``Target.status``."""
        with _translated(path):
            try:
                return _entry(Path(path).name, (self._root / path).stat())
            except FileNotFoundError:
                return None

    def create(self, path: str, chunks: Iterable[bytes]) -> None:
        """See ``Target.create``."""
        full = self._root / path
        with _translated(path), full.open("xb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        _sync_folder(full.parent)

    def read(self, path: str, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        """See ``Target.read``."""
        with _translated(path), (self._root / path).open("rb") as file:
            file.seek(offset)
            left = length if length is not None else 1 << 62
            while left and (chunk := file.read(min(_CHUNK, left))):
                left -= len(chunk)
                yield chunk

    def rename(self, source: str, destination: str) -> None:
        """See ``Target.rename``."""
        old, new = self._root / source, self._root / destination
        with _translated(f"{source} -> {destination}"):
            if old.is_dir():
                if new.is_dir():  # rename(2) would replace an empty one
                    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
                old.rename(new)
            else:
                try:
                    os.link(old, new)  # unlike rename(2) this never replaces a file
                except FileExistsError:
                    if not (old.exists() and old.samefile(new)):  # else a crash came between the two calls
                        raise
                old.unlink()
        _sync_folder(old.parent)
        _sync_folder(new.parent)

    def make_folder(self, path: str) -> None:
        """See ``Target.make_folder``."""
        with _translated(path):
            (self._root / path).mkdir(parents=True, exist_ok=True)
        _sync_folder((self._root / path).parent)

    def delete(self, path: str) -> None:
        """See ``Target.delete``."""
        full = self._root / path
        with _translated(path):
            if full.is_dir():
                shutil.rmtree(full)
            else:
                full.unlink(missing_ok=True)

    def touch(self, path: str) -> None:
        """See ``Target.touch``."""
        with _translated(path):
            os.utime(self._root / path)

    def free_bytes(self) -> int | None:
        """See ``Target.free_bytes``."""
        return shutil.disk_usage(self._root).free


def _entry(name: str, stat: os.stat_result) -> Entry:
    return Entry(name, (stat.st_mode & 0o170000) == 0o040000, stat.st_size, stat.st_mtime)


def _sync_folder(folder: Path) -> None:
    with suppress(FileNotFoundError):  # renamed meanwhile, by a later owner of the lock
        sync_folder(folder)


@contextmanager
def _translated(what: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise NotFound(f"{what}: not found") from error
    except NotADirectoryError as error:
        raise NotFound(f"{what}: not in a folder") from error
    except FileExistsError as error:
        raise AlreadyExists(f"{what}: exists already") from error
    except PermissionError as error:
        raise TargetDenied(f"{what}: {error.strerror}", "Let this user write to the archive's folder.") from error
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise AlreadyExists(f"{what}: exists already") from error
        if error.errno in (errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP):
            raise TargetDenied(f"{what}: {error.strerror}", "Check target.path and how its disk is mounted.") from error
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise TargetFull(f"{what}: {error.strerror}", "Free space there, or prune the archive.") from error
        raise TargetUnavailable(f"{what}: {error.strerror or error}", "Check the archive's disk.") from error
