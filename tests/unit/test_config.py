"""Configuration is strict, and its errors name what to change."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skywave import config
from skywave.config.masking import mask
from skywave.errors import ConfigError
from skywave.store.shards import shard_of

CLIENT = "client_id = 7\n[sensors.t]\nport = 9090\n"


def load(tmp_path, text, kind=config.Client):
    (tmp_path / "c.toml").write_text(text)
    return config.load(tmp_path / "c.toml", kind)


def test_the_least_configuration_has_defaults(tmp_path):
    client = load(tmp_path, CLIENT)
    assert client.sensors["t"].port == 9090
    assert client.intake.linger == 0.1


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        (CLIENT + "[intake]\nlingr = 1\n", "unknown setting intake.lingr", "Did you mean intake.linger?"),
        (CLIENT + "[mqtt]\nport = 70000\n", "mqtt.port must be at least 1 and at most 65535", ""),
        (CLIENT + '[mqtt]\nport = "x"\n', "mqtt.port must be a whole number", ""),
        (CLIENT + "[mqtt]\nport = true\n", "mqtt.port must be a whole number", ""),
        (CLIENT + "[intake]\nlinger = nan\n", "intake.linger must be at least", ""),
        (CLIENT + '[outbox]\nwhen_full = "panic"\n', "outbox.when_full must be one of block, drop_oldest", ""),
        (CLIENT + '[outbox]\nkind = "postgresql"\n', "outbox.dsn is missing", ""),
        ("client_id = 7\n", "no sensors", ""),
        ("labels = {" + ", ".join(f"l{n} = 'x'" for n in range(65)) + "}\n" + CLIENT, "more than 64 labels", ""),
        ("[sensors.t]\nport = 1\n", "client_id is missing", ""),
        ("client_id = ", "not TOML", ""),
        (CLIENT + "labels = 5\n", "unknown setting sensors.t.labels", ""),
    ],
)
def test_every_mistake_is_named(tmp_path, text, message, hint):
    with pytest.raises(ConfigError, match=message) as caught:
        load(tmp_path, text)
    assert hint in caught.value.hint
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[store.shards.a]\nreplicas = "h"\n', "store.shards.a.replicas: 'h' is no list"),
        ('[store.shards.a]\nreplicas = "h:1"\n', "has 1 replicas, store.quorum is 2"),
        ('[store]\nquorum = 1\n[store.shards.a]\nreplicas = "h:1"\nfirst_client = 5\n', "a shard with first_client 0"),
        ('[mqtt]\nothers = "b2"\n', "mqtt.others: 'b2' is no list"),
        ('[mqtt]\nothers = "b2:99999"\n', "mqtt.others"),
    ],
)
def test_every_mistake_of_a_cluster_is_named(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, text, config.Server)


def test_no_client_moves_when_a_shard_is_added():
    def shards(*starts):
        return {f"s{n}": {"replicas": f"a{n}:1, b{n}:1", "first_client": start} for n, start in enumerate(starts)}

    two = shard_of(config.parse({"store": {"shards": shards(0, 0)}}, config.Server).store)
    three = shard_of(config.parse({"store": {"shards": shards(0, 0, 101)}}, config.Server).store)
    four = shard_of(config.parse({"store": {"shards": shards(0, 0, 101, 101)}}, config.Server).store)
    assert [two(client) for client in range(6)] == [0, 1, 0, 1, 0, 1]
    assert all(three(client) == four(client) == two(client) for client in range(101))
    assert {three(client) for client in range(101, 200)} == {2}
    assert {four(client) for client in range(101, 200)} == {2, 3}
    assert shard_of(config.Store())(12345) == 0


def test_what_show_prints_is_a_configuration_that_means_the_same(tmp_path):
    client = load(tmp_path, 'client_id = 7\nlabels = {site = "north"}\n[sensors."a b"]\nport = 1\n')
    assert config.parse(tomllib.loads(config.show(client)), config.Client) == client


def test_a_file_may_begin_with_the_mark_of_some_editors(tmp_path):
    (tmp_path / "client.toml").write_bytes(b"\xef\xbb\xbfclient_id = 7\r\n[sensors.t]\r\nport = 1\r\n")
    assert config.load(tmp_path / "client.toml", config.Client).client_id == 7


def test_secrets_come_from_files_and_from_systemds_credentials(tmp_path, monkeypatch):
    (tmp_path / "password").write_text("s3cret\n")
    assert config.secret(str(tmp_path / "password")) == "s3cret"
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert config.secret("password") == "s3cret"
    with pytest.raises(ConfigError):
        config.secret("absent")


def test_an_installed_hosts_configurations_find_their_credentials(tmp_path, monkeypatch, installed_in):
    installed_in(tmp_path)
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    (tmp_path / "elsewhere").mkdir()
    elsewhere = load(tmp_path / "elsewhere", "[store]\npassword_file = 'password'\n", config.Server)
    assert config.credential(elsewhere.store.password_file) == str(tmp_path / "elsewhere" / "password")
    installed = load(tmp_path, "[store]\npassword_file = 'password'\n", config.Server)
    assert config.credential(installed.store.password_file) == str(tmp_path / "credentials" / "password")
    monkeypatch.delenv("CREDENTIALS_DIRECTORY")


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("clientid = 1\n[sensors.t]\nport = 1\n", "client_id"),  # a client's for its sensors
        ("[target]\npath = '/a'\n", "skywave-archive"),
        ("[mqtt]\nhost = 'broker:8883'\n", "mqtt.host"),
        ("[store]\nhost = 'ch1:9440'\n", "store.host"),
        ("[store.shards.s-1]\nreplicas = 'a:1, b:1'\n", "letters and digits"),
        ("[mqtt]\nothers = 'b2'\n", "mqtt.others"),
    ],
)
def test_a_wrong_file_is_told_by_what_it_is_meant_to_be(tmp_path, body, told):
    path = tmp_path / "some.toml"
    path.write_text(body)
    with pytest.raises(ConfigError) as error:
        config.load_any(path)
    assert told in f"{error.value} {error.value.hint}"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('[outbox]\nkind = "postgresql"\ndsn = "host=db user=edge password=S3CRET dbname=o"\n', "outbox.password_file"),
        ('[outbox]\nkind = "postgresql"\ndsn = "host=db PASSWORD = \'S3C RET\'"\n', "outbox.password_file"),
        ('[outbox]\nkind = "postgresql"\ndsn = "postgresql://edge:S3CRET@db/o"\n', "outbox.password_file"),
        (
            '[outbox]\nkind = "postgresql"\ndsn = "postgresql://db/o?user=edge&password=S3CRET"\n',
            "outbox.password_file",
        ),
        ('[mqtt]\nhost = "edge:S3CRET@broker"\n', "mqtt.password_file"),
        ('[mqtt]\nothers = "edge:S3CRET@broker:1883"\n', "mqtt.password_file"),
        ('[mqtt]\nhost = "mqtt://edge:S3CRET@broker"\n', "mqtt.password_file"),
        ('[mqtt]\npassword = "S3CRET"\n', "mqtt.password_file"),
        ('[outbox]\ndsn = ["password=S3CRET"]\n', "outbox.dsn"),
    ],
)
def test_a_password_in_a_configuration_is_refused_and_not_repeated(tmp_path, text, told):
    with pytest.raises(ConfigError) as error:
        load(tmp_path, CLIENT + text)
    message = f"{error.value} {error.value.hint}"
    assert told in message and "S3CRET" not in message and "S3C" not in message


@pytest.mark.parametrize(
    "text", ["postgresql://edge@db:5432/o", "host=db passfile=/etc/pass", "host=/run/postgresql user=a"]
)
def test_a_connection_string_without_a_password_is_taken(tmp_path, text):
    assert load(tmp_path, CLIENT + f'[outbox]\nkind = "postgresql"\ndsn = "{text}"\n').outbox.dsn == text


def test_passwords_are_masked_wherever_text_is_shown():
    for secret in (
        "host=db password=S3CRET user=edge",
        "connection to postgresql://edge:S3C@RET@db/o failed",
        "postgresql://db/o?password=S3CRET&user=edge",
        "password='S3C RET' user=edge",
    ):
        assert "S3C" not in mask(secret) and "edge" in mask(secret) and "***" in mask(secret)
    harmless = "http://127.0.0.1:9101/status, host=db port=5432 passfile=/etc/pass password_file = /etc/p"
    assert mask(harmless) == harmless
    assert "S3CRET" not in config.show(config.Outbox(dsn="password=S3CRET"))


@pytest.mark.parametrize("value", ["", "  ", "~", "~/outbox.sqlite", "~skywave/x", "a\\u0000b"])
def test_a_path_that_leads_nowhere_is_refused(tmp_path, value):
    with pytest.raises(ConfigError, match=r"outbox\.path"):
        load(tmp_path, CLIENT + f'[outbox]\npath = "{value}"\n')
    with pytest.raises(ConfigError, match=r"store\.path"):
        load(tmp_path, f'[store]\npath = "{value}"\n', config.Server)


@pytest.mark.parametrize("table", ["outbox.disk_path", "outbox.require_mount", "mqtt.ca_file", "outbox.password_file"])
def test_a_path_that_may_be_absent_is_no_home_folder_either(tmp_path, table):
    section, name = table.split(".")
    assert load(tmp_path, CLIENT + f'[{section}]\n{name} = ""\n')
    with pytest.raises(ConfigError, match=table):
        load(tmp_path, CLIENT + f'[{section}]\n{name} = "~/x"\n')


def test_a_relative_path_counts_from_its_file_and_on_a_host_from_the_services_folder(
    tmp_path, monkeypatch, installed_in
):
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    text = CLIENT + '[outbox]\npath = "o/x.sqlite"\n[mqtt]\nca_file = "ca.crt"\ncert_file = "/a/b.crt"\n'
    client = load(tmp_path, text)
    assert client.outbox.path == str(tmp_path / "o" / "x.sqlite")
    assert client.mqtt.ca_file == str(tmp_path / "ca.crt")
    assert client.mqtt.cert_file == "/a/b.crt"
    assert load(tmp_path, CLIENT).outbox.path == str(tmp_path / "outbox.sqlite")
    assert config.load_any(tmp_path / "c.toml").outbox.path == str(tmp_path / "outbox.sqlite")
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/a:/var/lib/b")
    assert load(tmp_path, CLIENT).outbox.path == "/var/lib/a/outbox.sqlite"
    installed_in(tmp_path)
    (tmp_path / "client.toml").write_text(CLIENT)
    installed = config.load_any(tmp_path / "client.toml")
    assert installed.outbox.path == "/var/lib/skywave-client/outbox.sqlite"
    monkeypatch.delenv("CREDENTIALS_DIRECTORY")


def test_an_outbox_that_the_first_release_left_where_it_was_started_is_gone_on_with(tmp_path, monkeypatch, caplog):
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "outbox.sqlite").touch()
    assert load(tmp_path, CLIENT).outbox.path == str(tmp_path / "elsewhere" / "outbox.sqlite")
    assert "is gone on with" in caplog.text
    (tmp_path / "outbox.sqlite").touch()
    assert load(tmp_path, CLIENT).outbox.path == str(tmp_path / "outbox.sqlite")


@pytest.mark.parametrize("name", ["dc1/srv1", "srv+1", "srv#1", " ", " a", "a\\tb", "a\\u001b", "x" * 201])
def test_a_servers_name_is_one_level_of_a_topic(tmp_path, name):
    with pytest.raises(ConfigError, match="cannot be a server's name"):
        load(tmp_path, f'name = "{name}"\n', config.Server)


def test_a_hosts_name_that_cannot_be_a_servers_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(config.settings.socket, "gethostname", lambda: "a/b")
    with pytest.raises(ConfigError, match="cannot be a server's name"):
        load(tmp_path, "", config.Server)
    assert load(tmp_path, 'name = "sérver 1"\n', config.Server).server_name == "sérver 1"


@pytest.mark.parametrize(
    ("text", "kind", "told"),
    [
        ('[store]\ndatabase = "a b"\n', config.Server, "store.database"),
        ('[store]\ncluster = "a\'b"\n', config.Server, "store.cluster"),
        ('client_id = 1\n[sensors."a\\nb"]\nport = 1\n', config.Client, "sensors"),
        ('client_id = 1\n[sensors.""]\nport = 1\n', config.Client, "sensors"),
        (CLIENT + 'key = "a\\u0007"\n', config.Client, "sensors.t"),
        ('labels = {"a\\u0001" = "b"}\n' + CLIENT, config.Client, "labels"),
        (CLIENT + '[mqtt]\nhost = ""\n', config.Client, "mqtt.host"),
        (CLIENT + '[mqtt]\nhost = "[::1]"\n', config.Client, "mqtt.host"),
        (CLIENT + '[http]\nhost = ""\n', config.Client, "http.host"),
    ],
)
def test_a_name_that_cannot_stand_where_it_is_needed_is_refused(tmp_path, text, kind, told):
    with pytest.raises(ConfigError, match=told):
        load(tmp_path, text, kind)


@pytest.mark.parametrize("host", ["plc..lan", ".lan", "a" * 300, "", "a b", "ü" * 70 + ".lan"])
def test_one_sensors_host_is_no_reason_to_read_no_sensor(tmp_path, host):
    assert load(tmp_path, CLIENT + f'host = "{host}"\n').sensors["t"].host == host


def test_the_figures_of_an_ipv6_address_have_a_url():
    assert config.Http(host="::1", port=9101).url == "http://[::1]:9101"
    assert config.Http(host="10.0.0.1", port=9101).url == "http://10.0.0.1:9101"


_leaf = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
_known = st.sampled_from(sorted({f.name for kind in (config.Client, config.Server) for f in dataclasses.fields(kind)}))
_inner = st.sampled_from(
    sorted(
        {f.name for kind in (config.Mqtt, config.Outbox, config.Intake, config.Store) for f in dataclasses.fields(kind)}
    )
)
_tables = st.dictionaries(_inner | st.text(max_size=5), _leaf | st.dictionaries(_inner, _leaf, max_size=3), max_size=4)


@given(st.dictionaries(_known | st.text(max_size=5), _leaf | st.lists(_leaf, max_size=3) | _tables, max_size=6))
def test_no_table_breaks_the_reader(body):
    for kind in (config.Client, config.Server):
        with contextlib.suppress(ConfigError):
            made = config.parse(body, kind)
            assert isinstance(made, kind) and config.show(made)


@given(st.binary(max_size=200))
def test_no_file_breaks_the_reader(data):
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        with contextlib.suppress(ConfigError):
            config.load_any(file.name)
