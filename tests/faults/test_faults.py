"""A seeded selection of what ``make soak`` does for hours: every kind of fault, on the whole system."""

from __future__ import annotations

import os

import pytest

from faults import episode
from faults.faults import CATALOGUE


@pytest.mark.skipif(os.getuid() != 0, reason="fills file systems of its own, which only root may mount")
@pytest.mark.parametrize("seed", [1])
def test_nothing_is_lost_doubled_or_stuck(seed):
    result = episode.run(seed, len(CATALOGUE))
    assert not result.verdict.wrong, "\n".join(result.verdict.wrong)
    assert sum(result.faults.values()) == len(CATALOGUE) and result.verdict.sent > 20_000
