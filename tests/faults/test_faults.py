"""A seeded selection of what `make soak` and `make soak-cluster` do for hours: every kind of fault, on the whole system."""

from __future__ import annotations

import os

import pytest

from faults import episode
from faults.cluster_faults import CLUSTER, ClusterWorld
from faults.faults import CATALOGUE
from faults.world import World


@pytest.mark.skipif(os.getuid() != 0, reason="fills file systems of its own, which only root may mount")
@pytest.mark.parametrize(("world", "catalogue"), [(World, CATALOGUE), (ClusterWorld, CLUSTER)])
def test_nothing_is_lost_doubled_or_stuck(world, catalogue):
    result = episode.run(1, len(catalogue), None, world, catalogue)
    assert not result.verdict.wrong, "\n".join(result.verdict.wrong)
    assert sum(result.faults.values()) == len(catalogue) and result.verdict.sent > 20_000
