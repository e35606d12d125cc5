"""Certificates on a host: when they expire, and taking new ones without a visit when the new ones turn out wrong.

A service's key and certificate stand in one PEM file, so that one rename changes both. New files wait in the folder
``next`` beside those in use; ``take`` has every broker try them, puts them in place, restarts the services, and goes back
if a service is worse off with them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from .. import config
from ..errors import CertificateError, ConfigError, NotRunning
from ..process.asking import fetch_status
from ..process.durable import write_durably
from .broker import reachable, shake_hands

BACK_WITHIN_S = 60.0
STEADY_S = 20.0
"""How long a service that says nothing of its session must run: longer than it takes to say that it has no broker."""


class Expiry(NamedTuple):
    """One certificate in a file."""

    file: str
    subject: str
    not_after: datetime

    @property
    def days(self) -> float:
        """Days that are left; negative once it has expired."""
        return (self.not_after - datetime.now(UTC)).total_seconds() / 86_400


def expiries(files: Sequence[str | Path]) -> Iterator[Expiry]:
    """The certificates in PEM files; raises ``ConfigError`` for a file that cannot be read."""
    from cryptography import x509

    for file in files:
        try:
            found = x509.load_pem_x509_certificates(Path(file).read_bytes())
        except (OSError, ValueError) as error:
            raise ConfigError(f"{file}: {error}", "It must be a PEM file with a certificate.") from error
        for certificate in found:
            not_after = certificate.not_valid_after_utc
            yield Expiry(str(file), certificate.subject.rfc4514_string(), not_after)


def take(folder: Path, services: dict[str, config.Client | config.Server]) -> list[str]:
    """Puts the files of ``folder/next`` in place if the brokers accept every service that uses them; their names.

    ``services`` are the units' settings by unit name. Raises ``CertificateError`` when a broker refuses the new files, or
    none is there to try them (the old ones stay in use, the new ones stay in ``next``), and when a service does not come
    back with them.
    """
    new = folder / "next"
    names = sorted(path.name for path in new.iterdir() if path.is_file()) if new.is_dir() else []
    if not names:
        return []
    trial, old = folder / "trial", folder / "previous"
    _copy([*(p for p in folder.iterdir() if p.is_file()), *(new / name for name in names)], trial)
    try:
        os.environ["CREDENTIALS_DIRECTORY"] = str(trial)
        for unit, settings in services.items():
            if refusal := _refusal(settings.mqtt):
                raise CertificateError(f"{unit}: the new certificates do not work: {refusal}", "The old ones stay.")
    finally:
        os.environ["CREDENTIALS_DIRECTORY"] = str(folder)
        shutil.rmtree(trial)
    _copy([folder / name for name in names if (folder / name).exists()], old)
    _put([new / name for name in names], folder)
    for unit, settings in services.items():
        if not _good_after_restart(unit, settings):
            _put([path for path in old.iterdir() if path.is_file()], folder)
            _systemctl("try-restart", *services)
            raise CertificateError(
                f"{unit}: did not come back to a broker within {BACK_WITHIN_S:.0f} s with the new certificates",
                "The old ones are in use again; the new ones stay in next/.",
            )
    shutil.rmtree(new)
    shutil.rmtree(old)
    return names


def _refusal(mqtt: config.Mqtt) -> str:
    """Why the certificates in ``$CREDENTIALS_DIRECTORY`` are not to be taken; a broker that is away says nothing of them."""
    answers = {broker: shake_hands(broker) for broker in mqtt.brokers()}
    refused = {broker: answer for broker, answer in answers.items() if answer}
    away = [broker for broker in refused if not reachable(broker)]
    said = away if len(away) == len(answers) else refused.keys() - away
    return "; ".join(refused[broker] for broker in said)


def _copy(files: Sequence[Path], folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    _put(files, folder)


def _put(files: Sequence[Path], folder: Path) -> None:
    """Copies the files, each appearing whole and surviving a power cut."""
    for file in files:
        write_durably(folder / file.name, file.read_bytes(), mode=0o600)


def _good_after_restart(unit: str, settings: config.Client | config.Server) -> bool:
    """Whether the unit, if it runs, is as well with the new certificates as it was before.

    One that says that it has a session has to get it again. One that says nothing (it shows no figures) or had none (its
    store is away) is judged by systemd: it starts, goes on running, and does not complain of its brokers.
    """
    if _systemctl("is-active", "--quiet", unit):
        return True
    had_session = _has_session(settings)
    if _systemctl("restart", unit):
        return False
    until = time.monotonic() + (BACK_WITHIN_S if had_session else min(STEADY_S, BACK_WITHIN_S))
    while time.monotonic() < until:
        if had_session and _has_session(settings):
            return True
        if not had_session and _systemctl("is-active", "--quiet", unit):
            return False
        time.sleep(0.5)
    return not had_session and "no broker" not in _status_text(unit)


def _has_session(settings: config.Client | config.Server) -> bool:
    if not settings.http.port:
        return False
    try:
        return fetch_status(settings.http.url).connected
    except NotRunning:
        return False


def _status_text(unit: str) -> str:
    """The line that the service last gave systemd, which begins with what holds it up."""
    command = ["systemctl", "show", "--property=StatusText", "--value", unit]
    return (
        subprocess.run(command, capture_output=True, text=True, check=False).stdout if shutil.which("systemctl") else ""
    )


def _systemctl(*arguments: str) -> int:
    return subprocess.run(["systemctl", *arguments], check=False).returncode
