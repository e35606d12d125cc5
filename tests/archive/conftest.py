"""What several suites of the archive begin with."""

import pytest
from support.vault import days_ago


@pytest.fixture
def archived(vault):
    """Three days of five clients with three keys each."""
    for n, day in enumerate((days_ago(3), days_ago(2), days_ago(1))):
        for client in range(1, 6):
            vault.add(day, first=1 + 1000 * n, count=300, client=client, stream=client * 11)
    vault.run("export")
    return vault
