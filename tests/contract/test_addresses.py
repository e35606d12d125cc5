"""A rejected message is named by its client, its batch and its bytes, because any one of them may come again."""

from __future__ import annotations

import json
from dataclasses import fields, replace

import pytest
from click.testing import CliRunner
from contract.test_store import DAY, settings, store  # noqa: F401

from skywave.commands.main import main
from skywave.errors import ConfigError
from skywave.server import rejected
from skywave.store.columns import Rejected


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


def test_the_commands_take_the_same_address_and_show_what_a_stranger_wrote_as_it_is(store, settings, tmp_path):  # noqa: F811
    topic = "/telemetry/client/8/\x1b[2J[/x]\n"
    reading = b'{"created_at": 1, "data_key": "k", "data_value": 1}'
    first = Rejected(8, 0, 0, 0, "cd" * 32, topic, "why [/x]\x9b", '{"content_type": ""}', reading, 5, DAY)
    store.reject([first, replace(first, client_id=9, topic="/telemetry/client/9/")])
    kept = {
        field.name: getattr(settings, field.name)
        for field in fields(settings)
        if field.name in ("kind", "path", "port")
    }
    tables = "".join(f"{name} = {json.dumps(value)}\n" for name, value in kept.items())
    path = tmp_path / "server.toml"
    path.write_text(f'name = "s"\n[store]\ndatabase = "{settings.database}"\n{tables}')

    def run(command, *options, code=0):
        done = CliRunner().invoke(main, ["rejected", command, "--config", str(path), *options], env={"COLUMNS": "200"})
        assert done.exit_code == code, (done.output, done.exception)
        assert "\x1b" not in done.output
        return done.output

    assert run("list").count("why [/x]\\x9b") == 2
    assert "client 8 batch 0/0" in run("show", "cdcd", code=2)
    assert "client 8 batch 0/0" in run("replay", "cdcd", code=2)
    assert r"/telemetry/client/8/\x1b[2J[/x]\n" in run("show", "cdcd", "--client", "8")
    assert json.loads(run("show", "cdcd", "--client", "9", "--batch", "0/0", "--json"))["client_id"] == 9
    run("show", "cdcd", "--batch", "7", code=2)
    assert "stored 1 readings" in run("replay", "cdcd", "--client", "9")
    assert store.query(f"SELECT client_id, data_key FROM {store.database}.telemetry") == [(9, b"k")]
    assert "stored already" in run("replay", "cdcd", "--client", "9")
