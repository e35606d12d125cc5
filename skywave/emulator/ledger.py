"""What a sensor or a fleet says that it sent: the oracle of every test of loss.

A sensor's ledger is a text file with a line for each reading, a fleet's one with an account in JSON for each client.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from ..process.durable import write_durably
from .plan import CENTS

if TYPE_CHECKING:  # a sensor runs where no library of the store is
    from ..store.accounts import Accounts


def compare(ledger: Path, stores: Sequence[Accounts]) -> dict[str, Any]:
    """What the stores have of what a fleet's ledger says: readings sent and stored, and the clients for which they differ."""
    sent = {line["client_id"]: line for line in map(json.loads, ledger.read_text().splitlines())}
    wrong: dict[int, str] = {}
    total = 0
    for store in stores:
        for client_id, stream, *found in store.tallies(CENTS):
            line = sent.get(client_id)
            if line is None or line["stream"] != stream:
                continue
            sent.pop(client_id)
            total += found[0]
            want = [line["readings"], line["readings"], line["readings"], line["sum"]]
            if found != want:
                wrong[client_id] = f"sent {tuple(want)}, stored {tuple(found)}"
    wrong |= {client_id: "nothing is stored" for client_id, line in sent.items() if line["readings"]}
    return {"stored": total, "wrong": {str(client_id): why for client_id, why in sorted(wrong.items())}}


def write_accounts(path: str | Path, accounts: Iterable[dict[str, int]]) -> None:
    """Writes a fleet's ledger: of each client its ``client_id``, ``stream``, ``readings`` and ``sum`` (in hundredths)."""
    write_durably(Path(path), "".join(json.dumps(account) + "\n" for account in accounts).encode())


class Ledger:
    """A sensor's ledger, open to be written on: a line ``connection payload`` for each reading, before it is sent."""

    def __init__(self, path: str | Path) -> None:
        self._file: IO[bytes] = Path(path).open("ab", buffering=0)  # noqa: SIM115  closed by close()
        self.readings = 0
        """How many it held when it was opened."""
        self.connections = 0
        """The highest number of a connection that it held then."""
        size = 0
        for line in _whole_lines(path):
            size += len(line)
            self.readings += 1
            self.connections = max(self.connections, int(line.split()[0]))
        self._file.truncate(size)  # half a line is of a process that was killed; it was not sent
        self._lock = threading.Lock()

    def note(self, connection: int, payloads: list[bytes]) -> None:
        """Writes the payloads down; they survive this process, not the host."""
        head = b"%d " % connection
        with self._lock:
            self._file.write(b"".join([head + payload + b"\n" for payload in payloads]))

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _whole_lines(path: str | Path) -> Iterator[bytes]:
    with Path(path).open("rb") as file:
        yield from (line for line in file if line.endswith(b"\n"))


def read_ledger(path: str | Path) -> dict[int, list[float]]:
    """The values that a sensor sent on each connection, in order. A last line cut short (the emulator was killed) is left
    out."""
    sent: dict[int, list[float]] = {}
    for line in _whole_lines(path):
        connection, payload = line.split()
        sent.setdefault(int(connection), []).append(float(payload))
    return sent
