"""Opens the target that the settings name. What a target is stands in ``target.py``."""

from __future__ import annotations

from ..settings import Target as Settings
from .target import Target


def open_target(settings: Settings) -> Target:
    """The configured target."""
    if settings.kind == "hdfs":
        from .webhdfs import WebHdfsTarget

        return WebHdfsTarget(settings)
    from .local import LocalTarget

    return LocalTarget(settings)
