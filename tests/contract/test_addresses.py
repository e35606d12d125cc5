"""A rejected message is named by its client, its batch and its bytes, because any one of them may come again."""

from __future__ import annotations

from dataclasses import replace

import pytest
from contract.test_store import DAY, settings, store  # noqa: F401

from skywave.errors import ConfigError
from skywave.server import rejected
from skywave.server.store import Rejected


def test_equal_bytes_of_two_clients_and_under_two_names_are_all_listed_and_each_can_be_had(store):  # noqa: F811
    first = Rejected(8, 0, 0, 0, "cd" * 32, "/telemetry/client/8/", "x", "{}", b"y\0", 5, DAY)
    second = replace(first, client_id=9, topic="/telemetry/client/9/")
    named = replace(second, stream=7, first_seq=11, count=10)
    other = replace(first, sha256="ce" * 32)
    store.reject([first, second, named, other])
    assert len(rejected.find([store])) == 4
    assert rejected.get([store], "cdcd", 8) == first
    assert rejected.get([store], "cdcd", 9, (7, 11)) == rejected.get([store], "cdcd", None, (7, 11)) == named
    assert rejected.get([store], "cdcd", 9, (0, 0)) == second
    assert rejected.get([store], "cece") == other
    with pytest.raises(ConfigError, match="3 rejected messages start with cdcd: client 8 batch 0/0 cdcd") as error:
        rejected.get([store], "cdcd")
    assert "--client" in error.value.hint
    with pytest.raises(ConfigError, match="0 rejected messages start with cdcd"):
        rejected.get([store], "cdcd", 10)
