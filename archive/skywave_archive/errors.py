"""The archive's errors, a part of the tree of ``skywave.errors``: what happened, what to do, the exit code."""

from __future__ import annotations

from skywave.errors import EXIT_DATA, EXIT_TRY_LATER, EXIT_USAGE, SkywaveError


class DamagedAccounts(SkywaveError):
    """A file of accounts has other bytes than it was written with; ``name`` is that in ``folder``."""

    exit_code = EXIT_DATA

    def __init__(self, folder: str, name: str) -> None:
        super().__init__(
            f"{folder}/{name}: its bytes are not those it was written with",
            "What the store has of it is archived beside it at the next export. Move the file out of the archive.",
        )
        self.name = name


class DamagedFile(SkywaveError):
    """A data file is missing, has other bytes than its manifest says, or cannot be decoded."""

    exit_code = EXIT_DATA

    def __init__(self, message: str) -> None:
        super().__init__(message, "While the store has the whole day: skywave-archive export --day DAY --anew.")


class Shrunk(SkywaveError):
    """The store has not all that the archive has."""

    exit_code = EXIT_DATA


class Doubled(SkywaveError):
    """Two shards hold the same reading."""

    exit_code = EXIT_DATA


class AnotherFleet(SkywaveError):
    """The store and the archive are not known to belong together; nothing was changed."""

    exit_code = EXIT_USAGE


class UnknownFleet(AnotherFleet):
    """The file that says whose archive it is cannot be read now."""

    exit_code = EXIT_TRY_LATER


class BrokenManifest(SkywaveError):
    """A manifest is missing, cut short or changed: its day is neither restorable nor prunable until mended."""

    exit_code = EXIT_DATA


class NewerManifest(SkywaveError):
    """A manifest was written by a later version."""

    exit_code = EXIT_USAGE


class Refused(SkywaveError):
    """The plan would remove what nobody else has."""

    exit_code = EXIT_DATA


class NotEmpty(SkywaveError):
    """The target has rows of that day already."""

    exit_code = EXIT_DATA


class NothingThere(SkywaveError):
    """The archive has not the day that was asked for."""

    exit_code = EXIT_DATA


class NotTheSame(SkywaveError):
    """What was written is not what was read. Nothing was moved into the table."""

    exit_code = EXIT_DATA


class SchemaChanged(SkywaveError):
    """A table of the store has not the columns that this version archives."""

    exit_code = EXIT_DATA


class TargetUnavailable(SkywaveError):
    """The target did not do it now; the outcome of a change may be unknown."""

    exit_code = EXIT_TRY_LATER


class TargetFull(TargetUnavailable):
    """No space, or a quota is used up."""


class TargetDenied(SkywaveError):
    """The target refuses this user. Trying again cannot help."""

    exit_code = EXIT_USAGE


class TargetUnsafe(SkywaveError):
    """The target has not what publishing relies on. Trying again cannot help."""

    exit_code = EXIT_USAGE


class TargetError(SkywaveError):
    """The target did something it must not."""

    exit_code = EXIT_DATA


class NotFound(TargetError):
    """The path, or the folder it should be in, does not exist."""


class AlreadyExists(TargetError):
    """Something has that name."""


class Locked(SkywaveError):
    """Somebody else is changing the archive."""

    exit_code = EXIT_TRY_LATER


class LockLost(SkywaveError):
    """The lock was taken over while we were away; nothing more was changed."""

    exit_code = EXIT_TRY_LATER
