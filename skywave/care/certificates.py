"""Certificates on a host: when they expire, and taking new ones without a visit when the new ones turn out wrong.

A service's key and certificate stand in one PEM file, so that one rename changes both. New files wait in the folder
``next`` beside those in use; ``take`` has the broker try them, puts them in place, restarts the services, and goes back
if a service does not come back to the broker.
"""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from .. import config
from ..errors import ConfigError, SkywaveError
from ..mqtt import tls_context
from ..view import NotRunning, fetch_status

PROBE_S = 10.0
REFUSAL_S = 2.0
BACK_WITHIN_S = 60.0


class CertificateError(SkywaveError):
    """New certificates were not taken, or one in use is about to expire."""

    exit_code = 1


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


def shake_hands(mqtt: config.Mqtt) -> str:
    """Connects to the broker as far as TLS goes: nothing, or why the broker or this host refuses the other.

    No MQTT session is opened, because a second one of the same name would end the running service's.
    """
    address = f"{mqtt.host}:{mqtt.port}"
    try:
        with socket.create_connection((mqtt.host, mqtt.port), PROBE_S) as raw:
            if not mqtt.ca_file:
                return ""
            with tls_context(mqtt).wrap_socket(raw, server_hostname=mqtt.host) as tls:
                tls.settimeout(REFUSAL_S)  # in TLS 1.3 the peer's opinion of a certificate comes after the handshake
                return "" if tls.recv(1) else f"{address} closed the connection"
    except ssl.SSLError as error:
        return f"{address}: {error.reason or error}"
    except TimeoutError as error:
        return "" if str(error) == "The read operation timed out" else f"{address}: {error or 'timed out'}"
    except (OSError, ConfigError) as error:
        return f"{address}: {error}"


def take(folder: Path, services: dict[str, config.Client | config.Server]) -> list[str]:
    """Puts the files of ``folder/next`` in place if the broker accepts every service that uses them; their names.

    ``services`` are the units' settings by unit name. Raises ``CertificateError`` when the new files are refused (the
    old ones stay in use, the new ones stay in ``next``) and when a service does not come back with them.
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
            if refusal := shake_hands(settings.mqtt):
                raise CertificateError(f"{unit}: the new certificates do not work: {refusal}", "The old ones stay.")
    finally:
        os.environ["CREDENTIALS_DIRECTORY"] = str(folder)
        shutil.rmtree(trial)
    _copy([folder / name for name in names if (folder / name).exists()], old)
    _put([new / name for name in names], folder)
    for unit, settings in services.items():
        if not _restarted(unit, settings):
            _put([path for path in old.iterdir() if path.is_file()], folder)
            _systemctl("try-restart", *services)
            raise CertificateError(
                f"{unit}: did not come back to the broker within {BACK_WITHIN_S:.0f} s with the new certificates",
                "The old ones are in use again; the new ones stay in next/.",
            )
    shutil.rmtree(new)
    shutil.rmtree(old)
    return names


def _copy(files: Sequence[Path], folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    _put(files, folder)


def _put(files: Sequence[Path], folder: Path) -> None:
    """Copies the files, each appearing whole."""
    for file in files:
        temporary = folder / f".{file.name}"
        temporary.touch(mode=0o600)
        temporary.write_bytes(file.read_bytes())
        temporary.replace(folder / file.name)


def _restarted(unit: str, settings: config.Client | config.Server) -> bool:
    """True once the unit, if it runs, is back at the broker."""
    if _systemctl("is-active", "--quiet", unit):
        return True
    _systemctl("restart", unit)
    until = time.monotonic() + BACK_WITHIN_S
    while time.monotonic() < until:
        try:
            if fetch_status(settings.http.url)["connected"]:
                return True
        except NotRunning:
            pass
        time.sleep(0.5)
    return False


def _systemctl(*arguments: str) -> int:
    return subprocess.run(["systemctl", *arguments], check=False).returncode
