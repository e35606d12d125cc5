"""A day's manifest: the truth about it for restore, verify and prune.

Format 1 is one JSON object: see ``Manifest``. Format 2 has ``scattered`` as well, and is written only where it is needed: a
version that does not know it would archive those rows twice. 64-bit numbers that JSON readers round (digests, streams) are
strings. ``sha256`` is over the rest of the document in canonical form (sorted keys, no spaces). A generation's manifest
never changes; the highest generation of a day is the day.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from typing import Any

from skywave.formats.spans import Spans

from .errors import BrokenManifest, NewerManifest
from .streams import StreamName, Streams, cover
from .tables import Held, add

FORMAT = 2
"""The newest one that is read."""
_DATA_FILE = re.compile(r"[A-Za-z0-9]+-gen(\d{4,})-\d+-\d{4,}-[0-9a-f]{8}\.parquet")


@dataclass(frozen=True)
class File:
    """One data file; ``digest`` of its rows, ``first_client`` and ``last_client`` bound its client_ids, the times are the
    smallest and largest created_at (µs UTC)."""

    name: str
    shard: str
    rows: int
    digest: int
    bytes: int
    sha256: str
    first_client: int
    last_client: int
    min_time: int
    max_time: int

    @property
    def generation(self) -> int:
        """The generation that wrote it; its name says so."""
        return generation_of(self.name)


@dataclass(frozen=True)
class ShardState:
    """What a shard held when the day was exported. ``marker`` changes when rows are inserted, not when parts merge."""

    rows: int
    digest: int
    marker: str
    version: str


@dataclass(frozen=True)
class Manifest:
    """One generation of one day of one table.

    ``unnamed_rows`` counts rows without numbered streams, per client. ``sealed``: the day was over, every shard was
    there, and what was read is what the shards held at the end. ``replaced`` names the files of the generation before
    that are not part of this one. ``scattered`` are clients whose numbers made too many ranges to be kept: ``unnamed_rows``
    counts their rows whose numbers ``streams`` has not.
    """

    table: str
    day: date
    generation: int
    sealed: bool
    created: str
    skywave: str
    ddl: dict[str, str]
    columns: list[list[str]]
    shards: dict[str, ShardState]
    files: list[File] = field(default_factory=list)
    streams: dict[StreamName, Spans] = field(default_factory=dict)
    unnamed_rows: dict[int, int] = field(default_factory=dict)
    replaced: list[str] = field(default_factory=list)
    scattered: list[int] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Its file's name; sorts by day, then generation."""
        return manifest_name(self.day, self.generation)

    @property
    def identity(self) -> str:
        """Tells this manifest from any other of its day, one that was pruned and made again included."""
        return f"{self.generation}/{self.digest}/{self.created}"

    @property
    def rows(self) -> int:
        """Rows of the day."""
        return sum(file.rows for file in self.files)

    @property
    def total_bytes(self) -> int:
        """Bytes of the day's files."""
        return sum(file.bytes for file in self.files)

    @property
    def digest(self) -> int:
        """The row digest of the day."""
        return add(*(file.digest for file in self.files))

    @property
    def held(self) -> Held:
        """Rows and digest: what a store that has just this day holds."""
        return self.rows, self.digest

    def encode(self) -> bytes:
        """As a file's content."""
        body: dict[str, Any] = {"format": 1, **asdict(replace(self, streams={}, shards={}, files=[]))}
        if self.scattered:
            body["format"] = 2
        else:
            del body["scattered"]
        body["day"] = self.day.isoformat()
        body["rows"], body["bytes"], body["digest"] = self.rows, self.total_bytes, str(self.digest)
        times = [(f.min_time, f.max_time) for f in self.files if f.rows]
        body["min_time"] = min((low for low, _ in times), default=None)
        body["max_time"] = max((high for _, high in times), default=None)
        body["shards"] = {name: {**asdict(s), "digest": str(s.digest)} for name, s in self.shards.items()}
        body["files"] = [{**asdict(file), "digest": str(file.digest)} for file in self.files]
        body["streams"] = [
            {"client_id": name.client_id, "stream": str(name.stream), "rows": numbers.count, "ranges": numbers.pairs()}
            for name, numbers in sorted(self.streams.items())
        ]
        body["unnamed_rows"] = {str(client): rows for client, rows in self.unnamed_rows.items()}
        body["sha256"] = _hash(body)
        return json.dumps(body, indent=1, sort_keys=True).encode() + b"\n"

    @classmethod
    def decode(cls, content: bytes, where: str) -> Manifest:
        """From a file's content; raises ``BrokenManifest`` or ``NewerManifest`` with ``where`` in the message."""
        try:
            body = json.loads(content)
            if body["format"] > FORMAT:
                raise NewerManifest(
                    f"{where} has format {body['format']}, this version reads up to {FORMAT}",
                    f"Use Skywave {body.get('skywave', '')} or newer.",
                )
            if body["sha256"] != _hash({key: value for key, value in body.items() if key != "sha256"}):
                raise ValueError("its hash does not match its content")
            return cls(
                body["table"],
                date.fromisoformat(body["day"]),
                body["generation"],
                body["sealed"],
                body["created"],
                body["skywave"],
                body["ddl"],
                body["columns"],
                {name: ShardState(**{**s, "digest": int(s["digest"])}) for name, s in body["shards"].items()},
                [File(**{**file, "digest": int(file["digest"])}) for file in body["files"]],
                {StreamName(s["client_id"], int(s["stream"])): Spans.of(s["ranges"]) for s in body["streams"]},
                {int(client): rows for client, rows in body["unnamed_rows"].items()},
                body["replaced"],
                body.get("scattered", []),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BrokenManifest(
                f"{where}: broken manifest: {error}", "Its day can be exported anew while the store still holds it."
            ) from error


def holds(streams: Streams, unnamed: Mapping[int, int], scattered: Collection[int], old: Manifest) -> bool:
    """Whether rows that are counted so hold those of an older generation: every number, of rows without numbers as many, and
    of clients whose numbers are scattered as many in all."""
    have, want = Counter(unnamed), Counter(old.unnamed_rows)
    for counts, side in ((have, streams), (want, old.streams)):
        for name, numbers in side.items():
            if name.client_id in scattered:
                counts[name.client_id] += numbers.count
    named = {name: numbers for name, numbers in old.streams.items() if name.client_id not in scattered}
    return want <= have and cover(streams, named)


def manifest_name(day: date, generation: int) -> str:
    """The file's name of a generation's manifest."""
    return f"{day.isoformat()}.gen-{generation:04}.json"


def generation_of(name: str) -> int:
    """The generation that wrote a data file, by its name; 0 for an alien one."""
    found = _DATA_FILE.fullmatch(name)
    return int(found[1]) if found else 0


def parse_name(name: str) -> tuple[date, int] | None:
    """Day and generation of a manifest's file name; None for an alien one."""
    day, separator, rest = name.partition(".gen-")
    number, dot, suffix = rest.partition(".")
    try:
        return (date.fromisoformat(day), int(number)) if separator and (dot, suffix) == (".", "json") else None
    except ValueError:
        return None


def _hash(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
