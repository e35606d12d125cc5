"""The ingest's patience with its store: what it asks for is asked again until it is done."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from ..errors import CredentialError, SkywaveError, StoreBusy, StoreError, StoreUnavailable
from ..process.backoff import Backoff
from .figures import ShardFigures

log = logging.getLogger(__name__)
T = TypeVar("T")

RETRY_FIRST_S, RETRY_MAX_S = 0.1, 5.0
BUSY_S = 0.005, 0.05
"""The pause before it is asked again when another one's insert was in the way: its turn comes soon."""


class Stopped(Exception):
    """The server was told to stop while it waited for the store. Nothing was acknowledged."""


class Patience:
    """``name`` is the store's for the log. After ``pause_after`` seconds without success ``pause`` is called, so that clients
    keep what belongs there; ``stopping`` ends the waiting."""

    def __init__(
        self, name: str, pause_after: float, pause: Callable[[], None], stopping: threading.Event, figures: ShardFigures
    ) -> None:
        self._name, self._pause_after, self._pause = name, pause_after, pause
        self._stopping = stopping
        self._figures = figures

    def until_done(self, work: Callable[[], T]) -> T:
        """Does it, again and again while the store is away; raises ``Stopped`` when the server is told to stop."""
        backoff = Backoff(RETRY_FIRST_S, RETRY_MAX_S)
        since = time.monotonic()
        while True:
            self._figures.progress_at = time.monotonic()
            self._figures.asks_store = True
            try:
                result = work()
            except (StoreUnavailable, StoreError, CredentialError) as error:
                self._wait(error, time.monotonic() - since, backoff)
                continue
            finally:
                self._figures.asks_store = False
            if self._figures.store_error:
                log.info("store: is back after %.1f s", time.monotonic() - since)
            self._figures.store_error = ""
            return result

    def _wait(self, error: SkywaveError, away_s: float, backoff: Backoff) -> None:
        """The pause before the next attempt. A store that is busy for no longer than ``pause_after`` is no trouble."""
        busy = isinstance(error, StoreBusy) and away_s < self._pause_after
        if not busy:
            if not self._figures.store_error:
                log.error(
                    "%s: %s; what belongs there is not acknowledged until it is back. %s", self._name, error, error.hint
                )
            self._figures.store_error = str(error)
        if self._stopping.is_set():
            raise Stopped from error
        if not busy and away_s > self._pause_after:
            self._pause()
        self._stopping.wait(random.uniform(*BUSY_S) if busy else backoff.next())
