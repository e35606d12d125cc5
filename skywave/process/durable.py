"""Files that are whole after a power cut: written beside, synced, renamed, the folder synced."""

from __future__ import annotations

import os
from pathlib import Path


def write_durably(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Writes ``path`` anew: whoever looks finds the old content or the new one, never a part. Raises ``OSError``.

    The part is ``path`` with a dot before its name; it is removed when writing fails.
    """
    part = path.with_name(f".{path.name}")
    try:
        part.unlink(missing_ok=True)
        part.touch(mode)
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Makes names in a folder durable. Raises ``OSError``."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
