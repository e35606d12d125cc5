"""The documentation keeps up with the code."""

from __future__ import annotations

import re
import runpy
import tomllib
from pathlib import Path

import skywave_archive
from click.testing import CliRunner
from skywave_archive.cli import main as archive_main

import skywave
from skywave.commands.main import main

ROOT = Path(__file__).parents[2]


def test_every_setting_stands_in_the_docs_as_it_is():
    page = runpy.run_path(str(ROOT / "docs" / "generate.py"))["page"]()
    assert (ROOT / "docs" / "configuration.md").read_text() == page, "run: make docs"


def test_every_command_has_help_and_stands_in_the_readme_or_the_changelog():
    text = (ROOT / "README.md").read_text() + (ROOT / "CHANGELOG.md").read_text()
    for group in (main, archive_main):
        for name, command in group.commands.items():
            assert command.help, name
            assert name in text, name
            assert CliRunner().invoke(group, [name, "--help"]).exit_code == 0


def test_what_is_tested_is_the_installed_package():
    assert ROOT / "skywave" not in Path(skywave.__file__).parents
    assert ROOT / "archive" not in Path(skywave_archive.__file__).parents


def test_the_oldest_packages_that_are_tried_are_those_that_the_wheel_allows():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    parts = [
        project["dependencies"],
        *(project["optional-dependencies"][name] for name in ("client", "server", "archive")),
    ]
    allowed = {tuple(need.split(">=")) for part in parts for need in part if ">=" in need}
    lines = (ROOT / "tests" / "lower-bounds.txt").read_text().splitlines()
    tried = {tuple(line.split("==")) for line in lines if not line.startswith("#")}
    assert {name for name, _ in allowed} == {name for name, _ in tried}
    for name, version in allowed:
        assert re.fullmatch(rf"{re.escape(version)}(\.0)*", dict(tried)[name]), name


def test_every_test_that_a_page_names_exists():
    tests = {
        name for path in (ROOT / "tests").rglob("test_*.py") for name in re.findall(r"def (test_\w+)", path.read_text())
    }
    for page in (ROOT / "docs").rglob("*.md"):
        named = set(re.findall(r"`(test_\w+)`", page.read_text()))
        assert named <= tests, f"{page.name} names {named - tests}"


def test_no_page_and_no_picture_speaks_of_a_later_release():
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "docs").rglob("*.svg")]:
        assert not re.search(r"next release|not yet built|coming soon", page.read_text(), re.IGNORECASE), page.name


def test_each_threat_that_is_said_to_be_stopped_names_the_test_that_holds_it():
    rows = re.findall(
        r"^\| (.+?) \| .* \| (.*) \|$", (ROOT / "docs/security.md").read_text().split("What is **not**")[0], re.M
    )
    assert len(rows) > 10 and all("`test_" in held for threat, held in rows if threat not in ("threat", "limit")), rows
