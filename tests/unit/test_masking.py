"""What looks like a secret leaves the host masked, and nothing else does."""

from __future__ import annotations

import tarfile
import time

import pytest

from skywave.care.bundle import write_bundle
from skywave.config.masking import MASK, found, mask

SECRET = "S3CRETxyz"


@pytest.mark.parametrize(
    "text",
    [
        f'dsn = "host=db user=edge password={SECRET} dbname=o"',
        f'dsn = "host=db password = \'{SECRET} and more\' dbname=o"',
        f'dsn = "postgresql://edge:{SECRET}@db/o"',
        f'dsn = "postgresql:///o?user=edge&password={SECRET}&sslmode=require"',
        f'password = "{SECRET}"',
        f"password = '''{SECRET}'''",
        f'# api_token: {SECRET}',
        f'{{"password": "{SECRET}", "port": 1}}',
        f'{{"found": "dsn = \\"password={SECRET} user=x\\""}}',
        f"PGPASSWORD={SECRET}",
        f"<password>{SECRET}</password>",
        f"Authorization: Bearer {SECRET}",
        f"sslpassword={SECRET}",
        f"-----BEGIN EC PRIVATE KEY-----\n{SECRET}\n-----END EC PRIVATE KEY-----",
        f"-----BEGIN PRIVATE KEY-----\n{SECRET}\n(cut)",
    ],
)  # fmt: skip
def test_what_stands_where_a_secret_stands_is_masked(text):
    assert SECRET not in mask(text) and MASK in mask(text)


@pytest.mark.parametrize(
    "text",
    [
        'password_file = "clickhouse-server-password"',
        'dsn = "host=/run/postgresql dbname=skywave user=skywave-client"',
        '[sensors.token]\nport = 9090\nkey = "secret level"',
        'skywave_client_sensor_readings_total{sensor="token"} 5.0',
        "http://127.0.0.1:9101/status",
        "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----",
    ],
)
def test_what_is_no_secret_stays_as_it_is(text):
    assert mask(text) == text


def test_a_secret_that_is_known_is_masked_wherever_it_stands():
    secret = 'p"w/1 2'
    text = f'cannot use {secret}; {{"x": "p\\"w/1 2"}}; postgresql://u:p%22w%2F1%202@h'
    assert mask(text, {secret}).count(MASK) == 3 and "w/1" not in mask(text, {secret})


def test_the_rest_of_a_line_with_a_secret_stays():
    assert mask(f'dsn = "host=db password={SECRET} dbname=o"') == f'dsn = "host=db password={MASK} dbname=o"'


def test_secrets_of_a_text_are_found():
    assert found(f"password = '{SECRET}'\nurl = 'x://u:other1@h'") == {SECRET, "other1"}


def test_a_bundle_has_no_secret_though_a_configuration_and_a_file_hold_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pw").write_text("fromTheFile\n")
    (tmp_path / "client.toml").write_text(
        f'client_id = 1\n[sensors.t]\nport = 1\n[mqtt]\nport = 1\nusername = "u"\npassword_file = "{tmp_path}/pw"\n'
        f'[labels]\nremark = "fromTheFile"\n'
        f'[outbox]\nkind = "postgresql"\ndsn = "host=127.0.0.1 port=1 user=edge password={SECRET} dbname=o"\n'
    )
    write_bundle(tmp_path / "b.tar.gz", [tmp_path / "client.toml"])
    with tarfile.open(tmp_path / "b.tar.gz") as bundle:
        texts = {member.name: bundle.extractfile(member).read().decode() for member in bundle}
    assert "user=edge" in texts["skywave-bundle/configuration/client.toml"]
    for name, text in texts.items():
        assert SECRET not in text and "fromTheFile" not in text, name


@pytest.mark.parametrize(
    "text", ["a" * 200_000, "a:" * 100_000, "password" * 25_000, "password=" * 20_000, "a." * 100_000]
)
def test_a_long_text_costs_no_more_than_its_length(text):
    """Each line of a log is looked at, and others write into it."""
    long, short = (min(timed(text[:size]) for _ in range(3)) for size in (len(text), len(text) // 8))
    assert long < 40 * short + 0.05


def timed(text):
    began = time.process_time()
    mask(text)
    return time.process_time() - began


@pytest.mark.parametrize("text", ["a" * 500_000, "a:" * 50_000 + "@", "password" * 50_000, "password=\\" * 20_000])
def test_a_long_text_costs_what_its_length_says(text):
    assert len(mask(text, {"unheard-of"})) <= len(text) + len(MASK)
