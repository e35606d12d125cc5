"""What was read of a day: new files in the workspace, and the account of the rows by which it is judged and published."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import date

from skywave.formats.spans import Spans

from .errors import Doubled
from .manifest import File, Manifest, holds
from .streams import StreamName, crowded, united
from .tables import Held, add


@dataclass
class Staged:
    """What one shard gave: new files in the workspace, and what it held in all.

    ``archived_rows`` are those that the new files leave out, because the archive has them; ``replaceable_rows`` counts those
    without numbers that a generation which may be replaced has as well; ``unnamed`` and ``numbered`` count a client's new rows
    without and with numbers; of ``scattered`` clients ``streams`` has none. Not ``steady``: it changed whenever it was read.
    """

    rows: int = 0
    digest: int = 0
    archived_rows: int = 0
    archived_digest: int = 0
    replaceable_rows: int = 0
    steady: bool = True
    files: list[File] = field(default_factory=list)
    streams: dict[StreamName, Spans] = field(default_factory=dict)
    unnamed: dict[int, int] = field(default_factory=dict)
    numbered: dict[int, int] = field(default_factory=dict)
    scattered: set[int] = field(default_factory=set)

    def add(self, part: Staged) -> None:
        """Adds what another part of the shard gave; no client is in two parts."""
        self.rows += part.rows
        self.digest = add(self.digest, part.digest)
        self.archived_rows += part.archived_rows
        self.archived_digest = add(self.archived_digest, part.archived_digest)
        self.replaceable_rows += part.replaceable_rows
        self.steady &= part.steady
        self.files += part.files
        self.streams |= part.streams
        self.unnamed |= part.unnamed
        self.numbered |= part.numbered
        self.scattered |= part.scattered


@dataclass(frozen=True)
class StagedDay:
    """What all shards gave, by their names, in the folder ``change`` of the workspace. The new files come beside those of the
    generation ``base``; without one, they are the whole day."""

    change: str
    base: Manifest | None
    shards: dict[str, Staged]

    @property
    def steady(self) -> bool:
        """Whether what was read is what the shards held at the end."""
        return all(part.steady for part in self.shards.values())

    @property
    def held(self) -> Held:
        """What the store had of the day."""
        parts = self.shards.values()
        return sum(part.rows for part in parts), add(*(part.digest for part in parts))

    @property
    def archived(self) -> Held:
        """What the store had of the rows of ``base``."""
        parts = self.shards.values()
        return sum(part.archived_rows for part in parts), add(*(part.archived_digest for part in parts))

    @property
    def new_files(self) -> list[File]:
        """The files in the workspace."""
        return [file for part in self.shards.values() for file in part.files]

    @property
    def files(self) -> list[File]:
        """The files of the generation that this would make."""
        return [*(self.base.files if self.base else []), *self.new_files]

    def refuse_doubles(self, day: date) -> None:
        """Raises ``Doubled`` if two shards hold the same reading: the day could not be restored into fewer shards."""
        seen: dict[StreamName, Spans] = {}
        for shard, part in self.shards.items():
            for name, numbers in part.streams.items():
                if name in seen and seen[name] & numbers:
                    raise Doubled(
                        f"readings of client {name.client_id}, stream {name.stream}, of {day} are on shard {shard}"
                        " and on another",
                        "Delete them from the shard where they do not belong; nothing was exported.",
                    )
            seen = united(seen, part.streams)

    def contains(self, old: Manifest, unnamed: int) -> bool:
        """True if what was read holds every row of an older generation: its numbers, and the ``unnamed`` rows without numbers
        of it that could be read; of those in damaged files, as many."""
        return holds(*self.numbers(), old) and sum(part.replaceable_rows for part in self.shards.values()) == unnamed

    def numbers(self) -> tuple[dict[StreamName, Spans], dict[int, int], list[int]]:
        """``streams``, ``unnamed_rows`` and ``scattered`` of the generation that this would make."""
        streams = dict(self.base.streams) if self.base else {}
        unnamed = Counter(self.base.unnamed_rows if self.base else {})
        scattered = set(self.base.scattered if self.base else ())
        for part in self.shards.values():
            many = crowded(united(streams, part.streams)) & part.numbered.keys() | part.scattered
            streams = united(streams, {name: part.streams[name] for name in part.streams if name.client_id not in many})
            unnamed.update(part.unnamed)
            unnamed.update({client: part.numbered[client] for client in many})
            scattered |= many
        return streams, dict(unnamed), sorted(scattered)
