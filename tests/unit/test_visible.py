"""What others write is shown and never obeyed: on a terminal, in a table, in a log."""

from __future__ import annotations

import ast
import io
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from skywave.care.doctor import Finding
from skywave.commands import view
from skywave.commands.main import main
from skywave.errors import SkywaveError
from skywave.process import service
from skywave.process.snapshot import decode
from skywave.process.visible import MAX_LETTERS, say, visible

ROOT = Path(__file__).parents[2]
HOSTILE = [
    "[/x]", "[red]", "[link=http://x]", "\x1b]0;owned\x07\x1b[2J", "a\nERROR forged", "\r\x9b31m", "\u202egpj.exe",
    "\u2028", "\ud800", "trailing\\", ":boom:", "[/", "\x00\x7f", "\u200b\ufeff",
]  # fmt: skip
HOSTILE_TEXT = st.sampled_from(HOSTILE) | st.text(max_size=30)


def obeyed(text):
    """What is in a text that a terminal would act on."""
    return {letter for letter in text if visible(letter) != letter} - {"\n"}


@settings(deadline=None)
@given(HOSTILE_TEXT)
def test_a_line_is_one_harmless_line_that_can_be_told_from_any_other(text):
    shown = visible(text)
    assert not obeyed(shown)
    assert "\n" not in shown
    shown.encode()


def test_letters_of_all_scripts_stay_as_they_are():
    for text in (
        "höhe",
        "温度 東京\u3000本社",
        "حرارة",
        "°C μs ½",
        "🌡 21.5",
        "a\u0301",
        "x\u00a0y",
        "back\\slash [red] :boom:",
    ):
        assert visible(text) == text


def test_what_cannot_be_seen_is_shown_as_python_writes_it():
    assert visible("a\x1b[2J\n\t\u202e\x9b\ud800") == r"a\x1b[2J\n\t\u202e\x9b\ud800"
    assert len(visible("x" * 1_000_000)) < MAX_LETTERS + 50
    assert visible("x" * 1_000_000).endswith("… (1,000,000 letters)")


CLIENT = {
    "kind": "client", "client_id": 7, "version": "v", "uptime_s": 1.0, "connected": False, "accepting": False,
    "broker_error": "text", "readings": 1, "readings_per_s": 1.0, "acked_per_s": 1.0, "acked_readings": 1,
    "backlog": {"readings": 1, "bytes": 1}, "oldest_unacked_s": 1.0, "time_to_full_s": None, "in_flight": 1,
    "resent_batches": 1, "sensors": {"name": {"connected": False, "last_error": "text", "readings": 1, "malformed": 1,
    "disconnects": 1, "stalls": 1}}, "labels": {"key": "value"}, "stalls": {"cause": {"why": "text", "for_s": 1.0}},
}  # fmt: skip
SERVER = {
    "kind": "server", "name": "s", "version": "v", "uptime_s": 1.0, "connected": False, "broker_error": "text",
    "store": "clickhouse", "store_ok": False, "store_error": "text", "accepting": True, "readings_per_s": 1.0,
    "readings": 1, "inserts": 1, "duplicates": 1, "rejected": 1, "held_messages": 1, "held_bytes": 1,
    "stalls": {"cause": {"why": "text", "for_s": 1.0}}, "clients": {"7": {"labels": {"key": "value"}, "online": True,
    "backlog_readings": 1, "host": "host", "oldest_unacked_s": 1.0}},
}  # fmt: skip
STREAM = {"client_id": 7, "stream": "827364", "produced": 9, "stored": 8, "pending": 0, "rejected": 1, "expired": 1,
          "dropped": 1, "accepted": 1, "missing": 1, "doubled": 0, "ahead": 0, "oldest_unacked_s": 0.0,
          "missing_ranges": [(1, 2)]}  # fmt: skip
ACCOUNT = {**STREAM, "clean": False, "foreign": 1, "streams": [STREAM]}
REJECTED = [{"sha256": "ab" * 32, "client_id": 7, "count": 1, "day": "2026-11-24", "reason": "text"}]
ACCEPTED = [
    {"client_id": 7, "stream": "5", "first": 1, "last": 2, "what": "lost", "reason": "text", "name": "ada", "at": 1}
]
VIEWS = {
    "client": (lambda document: view.status_panel(decode(document, "x")), CLIENT),
    "server": (lambda document: view.status_panel(decode(document, "x")), SERVER), "audit": (view.audit_table, ACCOUNT),
    "rejected": (view.rejected_table, REJECTED), "accepted": (view.accepted_table, ACCEPTED),
    "findings": (lambda rows: view.findings_table([Finding(*row) for row in rows]), [["check", False, "found", "advice"]]),
}  # fmt: skip


def poisoned(value, text):
    """The same document with ``text`` in place of, and behind, each string and name in it."""
    if isinstance(value, dict):
        kept = {key: poisoned(inner, text) for key, inner in value.items()}
        free = not kept or not {"kind", "why", "online", "connected", "stream", "sha256", "readings"} & kept.keys()
        return {(key + text if free else key): inner for key, inner in kept.items()}
    if isinstance(value, list):
        return [poisoned(inner, text) for inner in value]
    return text if isinstance(value, str) and value not in ("client", "server") else value


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("text", HOSTILE)
def test_no_view_obeys_what_it_shows(name, text):
    make, document = VIEWS[name]
    out = io.StringIO()
    hostile = poisoned(document, text)
    assert str(hostile).count(repr(text)[1:-1])
    Console(file=out, width=300).print(make(hostile))
    assert not obeyed(out.getvalue())
    start = "".join(visible(text).split())[:6]
    assert start[: min(len(start), 6)] in "".join(out.getvalue().split())


def test_a_view_shows_markup_as_it_was_written():
    out = io.StringIO()
    Console(file=out, width=300).print(view.rejected_table([REJECTED[0] | {"reason": "has day '[/a]' :boom:"}]))
    assert "has day '[/a]' :boom:" in out.getvalue()


def test_an_account_of_very_many_streams_shows_first_what_is_not_clean_and_has_an_end():
    clean = STREAM | {"missing": 0, "missing_ranges": []}
    bad = STREAM | {"client_id": 4242, "missing_ranges": [(at, at) for at in range(1, 1000, 2)]}
    out = io.StringIO()
    Console(file=out, width=200).print(view.audit_table(ACCOUNT | {"streams": [clean] * 30_000 + [bad] * 100}))
    text = out.getvalue()
    assert len(text.splitlines()) < 2100
    assert text.count("missing: client 4242") == view.MAX_ROWS
    assert "29,100 more streams are not shown" in text


@pytest.fixture(params=["journal", "terminal"])
def lines(request, monkeypatch):
    """The lines of a log to which a process of ours writes."""
    (monkeypatch.setenv if request.param == "journal" else monkeypatch.delenv)("JOURNAL_STREAM", *(
        ["8:1"] if request.param == "journal" else [False]))  # fmt: skip
    before = logging.root.handlers[:]
    service.setup_logging()
    stream = io.StringIO()
    logging.root.handlers[0].setStream(stream)
    yield lambda: stream.getvalue().splitlines()
    logging.root.handlers[:] = before


@pytest.mark.parametrize("text", HOSTILE)
def test_a_message_is_one_line_of_the_log_whatever_is_in_it(lines, text):
    logging.getLogger("skywave").warning("client %d: %s", 7, f"has day {text}\n<0>2026-11-24 CRITICAL forged")
    assert len(lines()) == 1
    assert not obeyed(lines()[0])
    assert "client 7: has day" in lines()[0]


def test_a_line_of_the_log_has_an_end(lines):
    logging.getLogger("skywave").warning("client 7: %s", "x" * 1_000_000)
    assert len(lines()[0]) < MAX_LETTERS + 100


def test_no_line_of_a_traceback_can_be_taken_for_a_message(lines):
    try:
        raise ValueError("is not\n<0>2026-11-24T00:00:00.000Z CRITICAL forged \x1b[2J")
    except ValueError:
        logging.getLogger("skywave").exception("a message on %s cannot be read", "/x\ny")
    first, *rest = lines()
    assert r"a message on /x\ny cannot be read" in first
    assert len(rest) > 3
    assert all(line.startswith("  ") and not obeyed(line) for line in rest)


def test_an_error_of_a_command_is_one_line_and_its_hint_another(monkeypatch):
    def fail(_):
        raise SkywaveError("broker: \x1b[2J\nError: forged", "Do this.")

    monkeypatch.setattr("skywave.commands.look.any_settings", fail)
    done = CliRunner().invoke(main, ["config", "check", "x"])
    assert done.stderr.splitlines() == [r"Error: broker: \x1b[2J\nError: forged", "  Do this."]


def test_what_is_said_is_said_on_one_line_each(capsys):
    say("a\nb", "c\x1b")
    assert capsys.readouterr().out == "a\\nb\nc\\x1b\n"


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_a_terminal_that_lacks_letters_shows_the_rest(tmp_path, encoding):
    file = tmp_path / "server.toml"
    file.write_text("name = 's°€1'\n[mqtt]\nport = 1\n[store]\nport = 1\n")
    done = subprocess.run([sys.executable, "-m", "skywave", "doctor", "--config", str(file)], capture_output=True,
                          env={**os.environ, "PYTHONIOENCODING": encoding}, timeout=60, check=False)  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert b"WRONG" in done.stdout and not done.stderr
    bad = subprocess.run([sys.executable, "-m", "skywave", "config", "check", "€"], capture_output=True,
                         env={**os.environ, "PYTHONIOENCODING": encoding}, timeout=60, check=False)  # fmt: skip
    assert bad.returncode == 2 and bad.stderr.startswith(b"Error: ") and b"Traceback" not in bad.stderr


def test_nothing_is_printed_past_the_one_place_that_makes_text_visible():
    """Only ``visible`` prints and only ``view`` makes cells of text; the demo's ``screen`` draws its own figures."""
    printing = ("print", "click.echo", "click.secho", "traceback.print_exc", "sys.stdout.write", "sys.stderr.write")
    drawing = ("rich.text", "rich.table", "rich.panel")
    past = []
    for file in [*(ROOT / "skywave").rglob("*.py"), *(ROOT / "archive").rglob("*.py")]:
        name = file.relative_to(ROOT).as_posix()
        for node in ast.walk(ast.parse(file.read_text())):
            prints = isinstance(node, ast.Call) and ast.unparse(node.func) in printing
            draws = isinstance(node, ast.ImportFrom) and node.module in drawing
            if (prints and name != "skywave/process/visible.py") or (
                draws and name not in ("skywave/commands/view.py", "skywave/demo/screen.py")
            ):
                past.append(f"{name}:{node.lineno}")
    assert not past
