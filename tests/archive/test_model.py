"""Random sequences of everything that happens to an archive, against a model: a dictionary of rows a day."""

from __future__ import annotations

import copy
from contextlib import closing

import pytest
from support.vault import days_ago

DAYS = [days_ago(n) for n in (4, 3, 2, 1)]
STEPS = 40


class Model:
    """``archived`` is what the last export that ended well left; a later one may have published more."""

    def __init__(self, vault, crasher, rng, port: int) -> None:
        self.vault, self.crasher, self.rng, self.port = vault, crasher, rng, port
        self.archived: dict = {}
        self.next_seq = dict.fromkeys(range(1, 5), 1)
        self.restores = 0
        self.dropped: set = set()

    def insert(self) -> None:
        """Fresh rows, or late rows in a gap; sometimes a part of them twice, as after a race of two servers."""
        client, day = self.rng.choice(list(self.next_seq)), self.rng.choice(DAYS)
        count = self.rng.randrange(1, 400)
        first = self.next_seq[client] + self.rng.choice([0, 0, 7])
        self.next_seq[client] = first + count
        stream = 0 if client == 4 else client * 1001
        self.vault.add(day, first=first, count=count, client=client, stream=stream)
        if self.rng.random() < 0.2 and day not in self.dropped:
            self.vault.add(day, first=first, count=(count + 1) // 2, client=client, stream=stream, received=6)

    def merge(self) -> None:
        with closing(self.vault.open()) as store:
            store.query(f"OPTIMIZE TABLE {store.database}.telemetry PARTITION '{self.rng.choice(DAYS)}' FINAL")

    def export(self) -> None:
        self.vault.run("export")
        self.archived = copy.deepcopy(dict(self.vault.ledger))

    def crash(self) -> None:
        command = self.rng.choice([("export",), ("prune", "--generations", "1", "--confirm")])
        step, when = self.rng.randrange(1, 60), self.rng.choice(["before", "after", "middle"])
        code = self.crasher.run(*command, "--config", str(self.vault.path), step=step, when=when)
        assert code in (None, 0) or (code == 1 and command[0] == "prune")
        if code == 0 and command[0] == "export":
            self.archived = copy.deepcopy(dict(self.vault.ledger))

    def prune(self) -> None:
        result = self.vault.run("prune", "--generations", str(self.rng.randrange(1, 3)), "--confirm", code=None)
        assert result["code"] in (0, 1) and all(
            item["refused"] == "" or "verif" in item["refused"] for item in result["days"]
        )

    def expire(self) -> None:
        """Drops what is verified; the ledger keeps it, as the archive must."""
        self.vault.run("verify", "--level", "rows", code=None)
        result = self.vault.run("expire", "--older-than", "2d", code=None)
        self.dropped |= {item["day"] for item in result["days"] if item["outcome"] == "dropped"}

    def restore(self) -> None:
        if not self.vault.run("list")["days"]:
            return
        self.restores += 1
        name = f"{self.vault.database}_{self.restores}"
        self.vault.run("restore", "--into", f"clickhouse://127.0.0.1:{self.port}/{name}")
        with closing(self.vault.open(database=name)) as store:
            found = self.vault.stored(store)
            store.query(f"DROP DATABASE {name}")
        for day in DAYS:
            have, least, most = found.get(day, {}), self.archived.get(day, {}), self.vault.ledger.get(day, {})
            assert least.keys() <= have.keys() <= most.keys()
            assert all(have[key][:6] == most[key][:6] for key in have)

    def verify(self) -> None:
        result = self.vault.run("verify", "--level", "rows", code=None)
        assert result["findings"] == [] and (result["code"] == 0 or not result["days"])


@pytest.mark.parametrize("number", range(4))
def test_no_sequence_loses_doubles_or_changes_a_row(vault, clickhouse, crasher, rng, number):
    model = Model(vault, crasher, rng, clickhouse.port)
    operations = [model.insert] * 5 + [model.export] * 2 + [model.crash] * 3
    operations += [model.merge, model.prune, model.expire, model.restore, model.verify]
    model.insert()
    for _ in range(STEPS):
        operation = rng.choice(operations)
        print(operation.__name__)
        operation()
    model.export()
    model.verify()
    model.restore()
    del number
