"""What arrives from outside: foreign devices, poison, hostile acknowledgements, sensors that misbehave."""

from __future__ import annotations

import json
import socket
import threading
import time
import urllib.request
from array import array
from datetime import UTC, date, datetime, timedelta

import paho.mqtt.client as paho
import pytest
from support.parts import wait_for
from support.stand import delivers, skywave

from skywave.formats import topics
from skywave.formats.batch import CONTENT_TYPE, Name, encode
from skywave.formats.frames import frame
from skywave.formats.messages import Ack, Range, ServerStatus, merge
from skywave.store.audit import audit


def today(shift: int = 0) -> str:
    return (datetime.now(UTC).date() + timedelta(shift)).isoformat()


def accepting(server) -> bool:
    return bool(server.status().get("accepting"))


def test_a_foreign_device_is_stored_deduplicated_by_id_and_acknowledged(stand, device):
    server = stand.add_server()
    wait_for(lambda: accepting(server), 20, "server accepts")
    box = device(topics.ack(9))
    reading = {"created_at": 1700000000.5, "data_key": "level", "data_value": "2.5"}
    with_ids = json.dumps([{**reading, "id": 1}, {**reading, "id": 2}, {**reading, "id": 4}]).encode()
    for _ in range(2):
        box.send(topics.data(9), with_ids)
    box.send(topics.data(9), json.dumps(reading).encode())
    wait_for(lambda: sum(len(ack.stored) for ack in box.acks()) >= 2, 10, "acknowledgements")
    wait_for(lambda: server.status()["foreign_readings"] >= 7, 10, "all arrived")
    assert {item for ack in box.acks() for item in ack.stored} == {Range(0, 1, 2), Range(0, 4, 4)}
    server.stop()
    store = stand.open_store()
    assert store.query(f"SELECT count() FROM {store.database}.telemetry FINAL WHERE stream = 0") == [(3,)]
    assert store.query(f"SELECT count() FROM {store.database}.telemetry FINAL WHERE stream > 0") == [(1,)]
    account = audit(store)
    assert account.clean
    assert account.foreign == 4
    store.close()


def test_poison_goes_to_quarantine_is_acknowledged_by_name_and_blocks_nobody(stand, device):
    server = stand.add_server(extra="[ingest]\nreject_quota = 100000\n")
    wait_for(lambda: accepting(server), 20, "server accepts")
    bad = device(topics.ack(13))
    arrow = {"content_type": CONTENT_TYPE, "stream": 5, "day": today(), "since": "", "attempt": 0}
    good = encode(Name(13, 5, 1), ["k"], array("h", [0]), array("q", [1]), array("d", [2.0]))
    stand.add_client(1, stand.sqlite(1), rate=600)
    bad.send(topics.data(13), b"\x00\x01 no Arrow", **arrow, first_seq=1, count=10)
    bad.send(topics.data(13), good, **{**arrow, "day": today(5)}, first_seq=11, count=1)
    bad.send(topics.data(13), good, **{**arrow, "stream": 0}, first_seq=1, count=1)
    bad.send(topics.data(13), good, **arrow, first_seq="-1", count=1)
    bad.send(topics.data(13), good, **arrow, first_seq=31, count=1)
    bad.send(topics.data(13), b"[" * 50_000)
    bad.send(topics.data(13), b'{"created_at": 1, "data_key": "k", "data_value": "NaN"}')
    bad.send("/telemetry/client/0/", b"whoever")
    bad.send(topics.client_status(13), b"no status")
    bad.send(topics.data(13), b"x" * 90_000)
    wait_for(lambda: server.status()["rejected"] >= 8, 20, "poison is rejected")
    wait_for(lambda: server.status()["over_quota"] == 1, 20, "the quota holds")
    named = [Range(5, 1, 11), Range(5, 31, 31)]
    wait_for(lambda: merge(item for ack in bad.acks() for item in ack.rejected) == named, 10, "poison is acknowledged")
    wait_for(lambda: stand.parts["client-1"].status()["acked_readings"] > 500, 20, "the neighbour goes on")

    config = str(stand.folder / "server.toml")
    rows = json.loads(skywave("rejected", "list", "--config", config, "--json").stdout)
    assert len(rows) == 7, "the same bytes without a name are kept once"
    first = next(row for row in rows if row["first_seq"] == 1 and row["count"] == 10)
    assert "Arrow" in first["reason"]
    shown = json.loads(skywave("rejected", "show", "--config", config, first["sha256"][:12], "--json").stdout)
    assert "no Arrow" in shown["payload_start"]
    assert "Arrow" in skywave("rejected", "replay", "--config", config, first["sha256"], check=1).stderr
    assert skywave("rejected", "show", "--config", config, "ffff", check=2).stderr
    stand.finish()
    stand.verify()


def test_a_batch_of_a_day_that_was_wrong_can_be_replayed_once(stand, device):
    server = stand.add_server(extra="[ingest]\nhorizon_days = 10\n")
    wait_for(lambda: accepting(server), 20, "server accepts")
    box = device(topics.ack(13))
    payload = encode(Name(13, 5, 1), ["k"], array("h", [0] * 3), array("q", [1] * 3), array("d", [2.0] * 3))
    box.send(
        topics.data(13), payload, CONTENT_TYPE, stream=5, first_seq=1, count=3, day=today(-30), since="", attempt=0
    )
    wait_for(lambda: box.acks(), 10, "rejected")
    server.stop()
    config = stand.folder / "server.toml"
    config.write_text(config.read_text().replace("horizon_days = 10", "horizon_days = 100"))
    row = json.loads(skywave("rejected", "list", "--config", str(config), "--json").stdout)[0]
    assert "stored 3 readings" in skywave("rejected", "replay", "--config", str(config), row["sha256"][:8]).stdout
    assert "already" in skywave("rejected", "replay", "--config", str(config), row["sha256"][:8]).stdout


def test_a_batch_is_found_though_its_outbox_forgot_its_day_while_servers_passed_midnight(stand, device):
    """Made after one server's midnight, stored under the other's day; the outbox was lost and put back meanwhile."""
    server = stand.add_server()
    box = device(topics.ack(13))
    payload = encode(Name(13, 5, 1), ["k"], array("h", [0] * 3), array("q", [1] * 3), array("d", [2.0] * 3))
    for number, (day, attempt) in enumerate(((-1, 0), (0, 1))):
        wait_for(lambda: accepting(server), 20, "server accepts")
        box.send(
            topics.data(13), payload, CONTENT_TYPE,
            stream=5, first_seq=1, count=3, day=today(day), since=today(), attempt=attempt,
        )  # fmt: skip
        wait_for(lambda number=number: len(box.acks()) > number, 10, "acknowledged")
        server.stop()
        server.start()
    wait_for(lambda: accepting(server), 20, "server accepts")
    for first, since in (11, "0001-01-01"), (21, "9999-12-31"):
        other = encode(Name(13, 5, first), ["k"], array("h", [0]), array("q", [1]), array("d", [2.0]))
        box.send(
            topics.data(13), other, CONTENT_TYPE,
            stream=5, first_seq=first, count=1, day=today(), since=since, attempt=1,
        )  # fmt: skip
    named = [Range(5, 1, 3), Range(5, 11, 11), Range(5, 21, 21)]
    wait_for(lambda: merge(item for ack in box.acks() for item in ack.stored) == named, 10, "absurd dates stop nobody")
    server.stop()
    store = stand.open_store()
    assert store.query(f"SELECT day, count() FROM {store.database}.telemetry WHERE seq < 11 GROUP BY day") == [
        (date.fromisoformat(today(-1)), 3)
    ]
    store.close()


def test_hostile_acknowledgements_delete_nothing(stand, device):
    """A server that says it accepts, but acknowledges only nonsense."""
    crook = device(topics.data(1))
    status = ServerStatus(True, datetime.now(UTC).date(), "x").encode()
    crook.send(topics.server_status("crook"), status, retain=True)
    client = stand.add_client(1, stand.sqlite(1), rate=600)
    batch = wait_for(lambda: crook.heard, 20, "a batch arrives")[0]
    user = dict(batch.properties.UserProperty)
    stream, first = int(user["stream"]), int(user["first_seq"])
    day = datetime.now(UTC).date()
    for ranges in (
        [Range(stream + 1, 1, 2**63)], [Range(stream, 2**40, 2**50)], [Range(stream, first + 1, first + 1)],
        [Range(0, 0, 2**64 - 1)], [Range(stream, 10**6, 1)],
    ):  # fmt: skip
        crook.send(topics.ack(1), Ack("crook", day, ranges).encode())
    for payload in (b"", b"{}", b"[1]", b'{"v":1,"date":"x"}', b'{"v":1,"date":"2026-11-24","stored":[["a","1","2"]]}'):
        crook.send(topics.ack(1), payload)
    wait_for(lambda: client.status()["bad_messages"] >= 5, 10, "nonsense is counted")
    wait_for(lambda: client.status()["backlog"]["readings"] > 300, 10, "everything is kept")
    assert client.status()["acked_readings"] == 0
    assert client.status()["ignored_acks"] >= 5
    crook.send(topics.server_status("crook"), b"", retain=True)
    stand.add_server()
    stand.finish()
    assert stand.verify() > 100


def test_a_silent_server_makes_the_client_send_again_marked_with_the_same_bytes_and_day(stand, device):
    silent = device(topics.data(1))
    silent.send(topics.server_status("s"), ServerStatus(True, datetime.now(UTC).date(), "x").encode(), retain=True)
    stand.add_client(1, stand.sqlite(1), rate=300, extra="ack_timeout_min = 0.3\n")

    def copies():
        by_name: dict[tuple[str, str], list[paho.MQTTMessage]] = {}
        for message in list(silent.heard):
            user = dict(message.properties.UserProperty)
            by_name.setdefault((user["stream"], user["first_seq"]), []).append(message)
        return next((list(found) for found in by_name.values() if len(found) > 2), None)

    found = wait_for(copies, 20, "a batch comes three times")
    users = [dict(message.properties.UserProperty) for message in found]
    assert [user["attempt"] for user in users[:3]] == ["0", "1", "2"]
    assert len({message.payload for message in found}) == 1
    assert len({user["day"] for user in users}) == 1


def test_misbehaving_sensors_do_not_disturb_a_good_one(stand):
    def serve(answer):
        listener = socket.create_server(("127.0.0.1", 0))

        def loop():
            while True:
                try:
                    sock, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=answer, args=(sock,), daemon=True).start()

        threading.Thread(target=loop, daemon=True).start()
        return listener

    def babbler(sock):
        with sock:
            sock.sendall(frame(b"1") + b"-7        1234567")
            time.sleep(0.05)

    def texter(sock):
        with sock:
            sock.sendall(frame(b"hot") * 3 + frame(b"2"))
            time.sleep(60)

    def half(sock):
        with sock:
            sock.sendall(frame(b"3") + b"5      ")
            time.sleep(60)

    def flood(sock):
        with sock:
            try:
                while True:
                    sock.sendall(frame(b"4") * 2000)
            except OSError:
                return

    names = {"babbler": babbler, "texter": texter, "half": half, "flood": flood}
    listeners = {name: serve(answer) for name, answer in names.items()}
    extra = "[intake]\nstall_after = 0.5\nreconnect_max = 0.5\n" + "".join(
        f"[sensors.{name}]\nport = {listener.getsockname()[1]}\n" for name, listener in listeners.items()
    )
    try:
        stand.add_server()
        client = stand.add_client(1, stand.sqlite(1), rate=900, extra=extra)
        wait_for(lambda: client.status()["sensors"]["babbler"]["broken_frames"] >= 2, 20, "babbler reconnects")
        sensors = wait_for(lambda: (s := client.status()["sensors"])["half"]["stalls"] and s, 20, "half a frame stalls")
        assert sensors["texter"]["malformed"] == 3
        assert sensors["texter"]["readings"] == 1
        assert sensors["half"]["readings"] == 1
        assert sensors["flood"]["readings"] > 10_000
        wait_for(lambda: client.status()["sensors"]["temperature"]["readings"] > 300, 20, "the good one is read")
        assert client.log().count("texter: payload") == 1, "logged once an episode"
    finally:
        for listener in listeners.values():
            listener.close()


@pytest.mark.parametrize("policy", ["block", "drop_oldest"])
def test_a_full_outbox_pushes_back_or_declares_what_it_drops(stand, policy):
    outbox = f'{stand.sqlite(1)}\nmax_bytes = 65536\nwhen_full = "{policy}"\nmin_free_disk = 0'
    client = stand.add_client(1, outbox, rate=30_000)
    if policy == "block":
        wait_for(lambda: client.status()["outbox_full"], 20, "the outbox is full")
        before = client.status()["readings"]
        time.sleep(1)  # nothing may happen meanwhile
        assert client.status()["readings"] == before, "the sensors are not read"
    else:
        wait_for(lambda: client.status()["readings"] > 60_000, 60, "more came than the outbox holds")
        assert client.status()["backlog"]["bytes"] <= 65536
    stand.add_server()
    delivers(client, 1000, 60)
    stand.finish()
    if policy == "block":
        assert stand.verify() > 1000
    else:
        store = stand.open_store()
        account = audit(store)
        store.close()
        assert account.clean, account.as_json()
        assert account.total("dropped") > 10_000
        sent = sum(len(values) for client_id, kind in stand.sensors for values in stand.sent(client_id, kind).values())
        assert account.total("produced") == account.total("stored") + account.total("dropped") == sent


def test_status_metrics_audit_and_config_commands_tell_what_happens(stand):
    server = stand.add_server()
    client = stand.add_client(1, stand.sqlite(1), rate=600)
    wait_for(lambda: client.status().get("acked_readings"), 20, "readings flow")
    for part in (server, client):
        with urllib.request.urlopen(f"http://127.0.0.1:{part.http}/metrics", timeout=5) as answer:
            text = answer.read().decode()
        assert "_readings_total" in text
        path = str(stand.folder / f"{part.name}.toml")
        shown = skywave("status", "--config", path)
        assert "connected" in shown.stdout
        assert json.loads(skywave("status", "--config", path, "--json").stdout)["connected"]
        assert "a valid" in skywave("config", "check", path).stdout
        assert "linger" in skywave("config", "show", path).stdout
    config = str(stand.folder / "server.toml")
    wait_for(lambda: skywave("audit", "--config", config, "--json", check=None).stdout, 20, "audit")
    document = json.loads(skywave("audit", "--config", config, "--json").stdout)
    assert document["clean"]
    assert "nothing missing" in skywave("audit", "--config", config).stdout
    client.stop()
    result = skywave("status", "--config", str(stand.folder / "client-1.toml"), check=75)
    assert "Start it" in result.stderr
    assert "Did you mean" in skywave("config", "check", _broken(stand), check=2).stderr


def test_a_fleet_is_stored_and_accounted_for(stand):
    server = stand.add_server()
    wait_for(lambda: accepting(server), 20, "server accepts")
    arguments = (
        "--broker", f"127.0.0.1:{stand.broker.port}", "--clients", "20", "--rate", "0", "--backlog", "10", "--size", "100",
        "--json",
    )  # fmt: skip
    result = json.loads(skywave("fleet", *arguments).stdout)
    assert result["acked"] == result["readings"] == 20_000
    wait_for(lambda: len(server.status()["clients"]) == 20, 10, "accounts arrive")
    server.stop()
    store = stand.open_store()
    account = audit(store)
    store.close()
    assert account.clean
    assert account.total("produced") == account.total("stored") == 20_000


def _broken(stand) -> str:
    path = stand.folder / "broken.toml"
    path.write_text("client_id = 1\n[sensors.t]\nprt = 1\n")
    return str(path)


def test_a_batch_too_large_for_the_broker_is_set_aside_and_the_others_go_on(database, clickhouse):
    from support.parts import Mosquitto
    from support.stand import Stand

    broker = Mosquitto("message_size_limit 30000\nmax_queued_messages 0\n")
    broker.start()
    stand = Stand(broker, f"port = {clickhouse.port}\n", database)
    try:
        stand.add_server()
        client = stand.add_client(
            1, stand.sqlite(1), rate=60_000, extra='[intake]\ncompression = "none"\nmax_readings = 5000\n'
        )
        wait_for(lambda: client.status().get("set_aside"), 30, "a batch is set aside")
        for kind in ("temperature", "pressure", "height"):
            stand.parts[f"{kind}-1"].stop()
        wait_for(lambda: client.status()["backlog"]["readings"], 10, "it is kept")
        assert "set aside" in client.log()
    finally:
        stand.remove()
        broker.remove()
