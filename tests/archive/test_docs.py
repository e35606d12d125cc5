"""docs/archive.md is followed to the letter: every command in it is run, in its order, on real parts."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from contextlib import closing
from pathlib import Path

from support.parts import ClickHouse
from support.vault import Vault, days_ago

from skywave.formats.messages import Produced
from skywave.store.audit import audit

PAGE = (Path(__file__).parents[2] / "docs" / "archive.md").read_text()
DAY = days_ago(1)


def blocks(start: str, end: str, language: str) -> list[str]:
    part = PAGE[PAGE.index(start) : PAGE.index(end)]
    return re.findall(rf"```{language}\n(.*?)```", part, re.DOTALL)


def test_the_disaster_walkthrough_can_be_done_from_the_page_alone(own_clickhouse, hdfs, database):
    """Export to a real HDFS, the destruction of the server's data, and a restore into another server: as the page says."""
    root = hdfs.new_root()
    vault = Vault({"1": f"port = {own_clickhouse.port}"}, "telemetry", "")
    for n in range(3, 0, -1):
        for client in (7, 8):
            vault.add(days_ago(n), first=1 + 1000 * (3 - n), client=client, stream=client * 3)
    vault.reject(DAY, 1)
    with closing(vault.open()) as store:
        store.record_streams([(client, Produced(client * 3, 3000, 0), 0) for client in (7, 8)], 1)
        before = audit(store)
    assert before.clean and before.total("stored") == vault.rows == 6000
    folder = vault.folder / "operator"
    folder.mkdir()
    new = ClickHouse()
    new.start()

    def here(text: str) -> str:
        for there, name in (
            ("namenode:9870", f"127.0.0.1:{hdfs.http}"),
            ("new-host:9000", f"127.0.0.1:{new.port}"),
            ("/skywave", root),
        ):
            text = text.replace(there, name)
        return text

    def write_config(port: int) -> None:
        (toml,) = blocks("## Every night", "## Every ClickHouse is gone", "toml")
        toml = toml.replace('host = "clickhouse"', f'host = "127.0.0.1"\nport = {port}')
        (folder / "archive.toml").write_text(here(toml))
        (folder / "server.toml").write_text(f"[store]\nport = {new.port}\n")

    def run(script: str, codes: tuple[int, ...] = (0,)) -> str:
        said = ""
        for line in script.strip().splitlines():
            path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
            done = subprocess.run(
                ["bash", "-c", line if line.startswith("skywave audit") else here(line)], cwd=folder, capture_output=True,
                text=True, check=False, env={**os.environ, "PATH": path},
            )  # fmt: skip
            assert done.returncode in codes, f"{line}\n{done.stdout}\n{done.stderr}"
            said += done.stdout
        return said

    try:
        write_config(own_clickhouse.port)
        every_night, dry_run_and_expire, prune = blocks("## Every night", "## Every ClickHouse is gone", "sh")
        said = run(every_night)
        assert "3 of 3 days are good" not in said and "days are good at level rows" in said
        assert "the restored day is the archived one" in said
        run(dry_run_and_expire)
        run(prune)

        own_clickhouse.kill()
        shutil.rmtree(own_clickhouse.folder / "data")
        look, restore, account, export, part = blocks("## Every ClickHouse is gone", "## Layout", "sh")
        run(look)
        said = run(restore)
        assert f"{vault.rows + 1:,} rows restored" in said
        assert "missing" in run(account)
        back = Vault({"1": f"port = {new.port}"}, "telemetry", "")
        vault.assert_restored(back.open())
        with closing(back.open()) as store:
            after = audit(store)
            assert after.clean and [s.stored for s in after.streams] == [s.stored for s in before.streams]
        write_config(new.port)
        run(export.replace("2026-01-01", str(days_ago(5))))
        run(
            part.replace("--client 7 --key temperature", "--client 7")
            .replace("2026-01-01T06", f"{DAY}T00")
            .replace("2026-01-01T07", f"{DAY}T01")
        )
        with closing(back.open(database="investigation")) as store:
            found = back.stored(store)
        assert found == {DAY: {key: row for key, row in vault.ledger[DAY].items() if row[0] == 7}}
        back.remove()
    finally:
        new.remove()
        vault.remove()
    del database


def test_the_pages_sql_is_the_digest_of_the_manifest(vault):
    vault.add(DAY)
    vault.run("export")
    (sql,) = blocks("## The manifest", "## Reading it", "sql")
    sql = sql.replace("telemetry.telemetry", f"{vault.database}.telemetry").replace("2026-11-20", str(DAY))
    with closing(vault.open()) as store:
        rows, digest = store.query(sql)[0]
    assert (int(rows), str(digest)) == (vault.manifest(DAY)["rows"], vault.manifest(DAY)["digest"])


def test_the_pages_duckdb_query(vault):
    import duckdb

    vault.add(DAY)
    vault.run("export")
    (sql,) = blocks("## Reading it", "## When something", "sql")
    query = sql.split("-- ClickHouse")[0].replace("telemetry/day", f"{vault.archive}/telemetry/day")
    with duckdb.connect() as connection:
        ((day, count, _),) = connection.execute(query).fetchall()
    wanted = [row for row in vault.ledger[DAY].values() if row[1] == b"temperature"]
    assert (str(day), count) == (str(DAY), len(wanted))


def test_what_the_page_says_of_the_layout(vault):
    vault.add(DAY)
    vault.reject(DAY, 1)
    with closing(vault.open()) as store:
        store.record_streams([(1, Produced(7, 5, 0), 0)], 1)
    vault.run("export")
    (layout,) = re.findall(r"## Layout\n\n```\n(.*?)```", PAGE, re.DOTALL)
    for path in sorted(vault.archive.iterdir()):
        assert re.search(rf"^{path.name}[/,\s]|[\s,]{path.name}(,|$)", layout, re.MULTILINE), path.name
        assert ":" not in path.name
    for path in vault.archive.rglob("*"):
        inside = path.relative_to(vault.archive).parts
        assert "=" not in path.name or inside[0] in ("telemetry", "rejected")
        assert ":" not in path.name
