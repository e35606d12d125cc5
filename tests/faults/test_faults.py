"""A seeded selection of what ``make soak`` does for hours: every kind of fault, on the whole system."""

from __future__ import annotations

import os

import pytest

from faults import episode
from faults.cluster_faults import CLUSTER, ClusterWorld
from faults.faults import CATALOGUE

NODES = [
    "replica_killed", "second broker_killed", "replica_frozen", "server_killed", "replica_lost", "broker_killed",
    "zookeeper_killed", "shard_killed",
]  # fmt: skip


@pytest.mark.skipif(os.getuid() != 0, reason="fills file systems of its own, which only root may mount")
@pytest.mark.parametrize("seed", [1])
def test_nothing_is_lost_doubled_or_stuck(seed):
    result = episode.run(seed, len(CATALOGUE))
    assert not result.verdict.wrong, "\n".join(result.verdict.wrong)
    assert sum(result.faults.values()) == len(CATALOGUE) and result.verdict.sent > 20_000


@pytest.mark.skipif(os.getuid() != 0, reason="fills file systems of its own, which only root may mount")
def test_nothing_is_lost_doubled_or_stuck_on_a_cluster():
    result = episode.run(1, len(NODES), NODES, ClusterWorld, CLUSTER)
    assert not result.verdict.wrong, "\n".join(result.verdict.wrong)
    assert sum(result.faults.values()) == len(NODES) and result.verdict.sent > 5_000
