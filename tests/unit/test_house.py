"""The house (docs/architecture.md): arrows between rooms point down, there is no circle, and no room is too large."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted([*(ROOT / "skywave").rglob("*.py"), *(ROOT / "archive/skywave_archive").rglob("*.py")])
FLOORS = (
    {""}, {"errors"}, {"formats"}, {"config"}, {"process"}, {"mqtt", "outbox", "store"}, {"client", "server"}, {"care"},
    {"emulator"}, {"demo"}, {"commands"}, {"__main__"},
)  # fmt: skip
"""The rooms of ``skywave/`` from the ground up; those of one floor do not know each other."""
LIBRARIES = {
    "paho": {"mqtt"}, "psycopg2": {"outbox"}, "sqlite3": {"outbox"}, "clickhouse_driver": {"store"}, "chdb": {"store"},
    "cryptography": {"care"}, "hdfs": {"targets"}, "clickhouse_cityhash": {"skywave_archive"},
    "prometheus_client": {"process", "skywave_archive"},  # over HTTP, and a file for the textfile collector
}  # fmt: skip
"""What stands outside is touched in as few rooms as it has uses."""
DATA_PATH = {"client", "outbox", "mqtt", "server", "store"}


def name_of(file: Path) -> str:
    parts = (
        file.relative_to(ROOT / "archive" if "archive" in file.relative_to(ROOT).parts[:1] else ROOT)
        .with_suffix("")
        .parts
    )
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(file): file for file in FILES}
TREES = {file: ast.parse(file.read_text()) for file in FILES}


def imports(file: Path) -> Iterator[str]:
    """Modules that a file imports, wherever in it, ours by their full names."""
    here = name_of(file).split(".")
    package = here if file.name == "__init__.py" else here[:-1]
    for node in ast.walk(TREES[file]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = (
                ".".join([*package[: len(package) - node.level + 1], *filter(None, [node.module])])
                if node.level
                else str(node.module)
            )
            for alias in node.names:
                yield full if (full := f"{base}.{alias.name}") in MODULES else base


def room(name: str) -> str:
    return [*name.split("."), ""][1]


def test_arrows_point_down():
    floor = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    wrong = [
        f"{name} imports {other}"
        for name, file in MODULES.items() if name.split(".")[0] == "skywave"
        for other in imports(file) if other.split(".")[0] == "skywave"
        if room(other) != room(name) and not floor[room(other)] < floor[room(name)]
    ]  # fmt: skip
    assert not wrong


def test_nothing_imports_what_imports_it():
    graph = {
        name: {other for other in imports(file) if other in MODULES and other != name} for name, file in MODULES.items()
    }
    for name in graph:  # a package that shows what its modules have is one with them
        if MODULES[name].name == "__init__.py":
            graph[name] -= {"skywave"}
    # Two commands look whether the archive is installed on this host too; it is built on them.
    for name in ("skywave.care.doctor", "skywave.commands.group"):
        graph[name] = {other for other in graph[name] if not other.startswith("skywave_archive")}
    list(TopologicalSorter(graph).static_order())  # raises CycleError, which names it


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_library_is_touched_in_one_room(library):
    rooms = {file.parent.name for file in FILES if any(other.split(".")[0] == library for other in imports(file))}
    assert rooms == LIBRARIES[library]


def test_a_module_can_be_read_in_one_sitting():
    lines = {name: len(file.read_text().splitlines()) for name, file in MODULES.items()}
    assert {name: count for name, count in lines.items() if count > 400} == {}
    assert sum(lines.values()) / len(lines) < 183


def test_a_class_on_the_path_of_a_reading_has_one_job():
    """The account stands beside the path: its rows are figures."""
    many = {}
    for name, file in MODULES.items():
        if room(name) not in DATA_PATH or name == "skywave.store.accounts":
            continue
        for node in ast.walk(TREES[file]):
            if isinstance(node, ast.ClassDef) and len(own := attributes(node)) > 15:
                many[f"{name}.{node.name}"] = own
    assert many == {}


def attributes(node: ast.ClassDef) -> set[str]:
    """What a class keeps: what is set of ``self`` in it, and a dataclass's fields."""
    own = {
        each.attr for each in ast.walk(node)
        if isinstance(each, ast.Attribute) and isinstance(each.ctx, ast.Store)
        and isinstance(each.value, ast.Name) and each.value.id == "self"
    }  # fmt: skip
    return own | {
        each.target.id for each in node.body if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)
    }


def test_the_page_about_the_house_names_what_is_there():
    page = (ROOT / "docs/architecture.md").read_text()
    rooms = re.search("```(.*?)```", page, re.S).group(1)
    assert re.findall(r"^ ?(\w+)", rooms, re.M)[1:] == [
        "commands", "demo", "emulator", "care", "client", "mqtt", "process", "config", "formats", "errors",
    ]  # fmt: skip
    folders = [ROOT, ROOT / "skywave", ROOT / "archive/skywave_archive"]
    for row in page.splitlines():
        named = None
        for word in re.findall("`([^`]+)`", row):
            if word.endswith(".py"):
                named = next((folder / word for folder in folders if (folder / word).exists()), None)
                assert named, f"{word} is not there: {row}"
            elif (
                re.fullmatch(r"\w+", word) and re.match(r"\| \d+ ", row) and word not in ("ack", "rejected", "fix_day")
            ):
                assert named and f"def {word}(" in named.read_text(), f"{word} is not in {named}: {row}"
