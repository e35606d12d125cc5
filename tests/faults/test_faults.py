"""A seeded selection of what ``make soak`` does for hours: every kind of fault, on the whole system."""

from __future__ import annotations

import pytest

from faults import episode
from faults.faults import CATALOGUE, FULL_DISKS
from faults.world import can_mount

NO_MOUNT = pytest.mark.skip(reason="fills file systems of its own, which may not be mounted here")
EVERY_KIND = [pytest.param(sorted(CATALOGUE), id="every kind of fault")]
APART = [
    pytest.param(sorted(CATALOGUE.keys() - FULL_DISKS), id="every kind but full disks"),
    pytest.param(sorted(FULL_DISKS), id="full disks", marks=NO_MOUNT),
]


@pytest.mark.parametrize("kinds", EVERY_KIND if can_mount() else APART)
def test_nothing_is_lost_doubled_or_stuck(kinds):
    catalogue = {kind: CATALOGUE[kind] for kind in kinds}
    result = episode.run(1, len(catalogue), None, catalogue=catalogue)
    assert not result.verdict.wrong, "\n".join(result.verdict.wrong)
    assert sum(result.faults.values()) == len(catalogue) and result.verdict.sent > 20_000
