"""The error tree. Every error says what happened, what to do about it, and the exit code it ends a command with.

Only the tops of loops and the command line catch these; everything between lets them pass.
"""

from __future__ import annotations

EXIT_DATA = 1
EXIT_USAGE = 2
EXIT_SOFTWARE = 70
EXIT_TRY_LATER = 75


class SkywaveError(Exception):
    """Base of all expected errors.

    ``hint`` is one sentence that says what to do next; ``exit_code`` is what the command line returns.
    """

    exit_code = EXIT_SOFTWARE

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class ConfigError(SkywaveError):
    """A configuration file, option or argument is wrong. Starting again without an edit cannot help."""

    exit_code = EXIT_USAGE


class CredentialError(ConfigError):
    """A password, key or certificate cannot be read now: its disk may be away, its file may be about to be replaced. What
    does not need it goes on, and a service is started again."""

    exit_code = EXIT_TRY_LATER


class PoisonError(SkywaveError):
    """Bytes from the network that can never be stored as readings. ``str(error)`` is the reason that is kept."""

    exit_code = EXIT_DATA


class OutboxError(SkywaveError):
    """The outbox cannot be used, and retrying will not help (wrong client, newer schema, damaged file)."""

    exit_code = EXIT_DATA


class OutboxUnavailable(SkywaveError):
    """The outbox's database did not do it now: away, locked, disk full. The outcome of a commit may be unknown."""

    exit_code = EXIT_TRY_LATER


class OutboxRefused(OutboxUnavailable):
    """The outbox's database answered no, and will until somebody changes its rights or our configuration; see
    ``StoreRefused``."""

    exit_code = EXIT_DATA


class StoreError(SkywaveError):
    """The store cannot be used, and retrying will not help (newer schema, wrong table)."""

    exit_code = EXIT_DATA


class StoreUnavailable(SkywaveError):
    """The store did not do it now. The outcome of an insert may be unknown: look it up before inserting again."""

    exit_code = EXIT_TRY_LATER


class StoreRefused(StoreUnavailable):
    """The store answered no, and will until somebody changes its rights, its tables or our configuration.

    A process that runs tries again all the same, because somebody may do so at the other end; a command does not.
    """

    exit_code = EXIT_DATA


class StoreBusy(StoreUnavailable):
    """The store was busy with another one's insert and has not begun this one: try again at once."""


class NotRunning(SkywaveError):
    """No figures can be had, because the process does not run or shows none."""

    exit_code = EXIT_TRY_LATER


class CertificateError(SkywaveError):
    """New certificates were not taken, or one in use is about to expire."""

    exit_code = 1


class DemoFailed(SkywaveError):
    """A part did not start or died on its own."""
