"""One lab for all deployment tests: bare hosts that boot systemd, made and converged once (ansible/molecule/default)."""

from __future__ import annotations

import pytest
from lab import Lab


@pytest.fixture(scope="session")
def lab():
    """Bare hosts; removed at the end."""
    made = Lab()
    try:
        made.create()
        yield made
    finally:
        made.destroy()


@pytest.fixture(scope="session")
def converged(lab):
    """The lab with a running fleet."""
    lab.converge()
    return lab
