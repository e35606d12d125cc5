"""An outbox as a long outage leaves it, filled without the outage."""

from __future__ import annotations

import time
from array import array

from skywave import config
from skywave.emulator.signals import KINDS
from skywave.formats.batch import Batch, Name, encode
from skywave.outbox.opening import open_outbox

STREAM = 77


def fill(settings: config.Outbox, readings: int, size: int = 500, rate: float = 1000) -> None:
    """Batches of ``size`` readings that came at ``rate`` a second until now, of client 1, in stream ``STREAM``."""
    box = open_outbox(settings)
    box.create(1)
    step = round(1e6 / rate)
    began = time.time_ns() // 1000 - readings * step
    first_id = box.start_stream(STREAM)
    kinds, codes = list(KINDS), array("h", [i * len(KINDS) // size for i in range(size)])
    values = array("d", [i / 100 for i in range(size)])
    batches: list[Batch] = []
    for number in range(readings // size):
        first = number * size + 1
        at = array("q", range(began + first * step, began + (first + size) * step, step))
        payload = encode(Name(1, STREAM, first), kinds, codes, at, values)
        batches.append(Batch(first_id + number, STREAM, first, size, at[0], None, payload))
        if len(batches) == 500 or number == readings // size - 1:
            box.append(batches)
            batches = []
    box.close()
