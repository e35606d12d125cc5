"""What publishing relies on, over both targets."""

from __future__ import annotations

import os
import threading

import pytest
from skywave_archive.errors import AlreadyExists, NotFound, TargetDenied
from skywave_archive.settings import Target
from skywave_archive.targets.local import LocalTarget
from skywave_archive.targets.opening import open_target


@pytest.fixture(params=["local", "hdfs"])
def target(request, tmp_path):
    if request.param == "local":
        return open_target(Target(kind="local", path=str(tmp_path / "archive")))
    hdfs = request.getfixturevalue("hdfs")
    return open_target(Target(kind="hdfs", urls=hdfs.url, path=hdfs.new_root(), timeout=10, retry_for=10))


@pytest.mark.parametrize("path", ["/dev/null", "/dev/null/x", "/proc/nothing", f"/tmp/{'x' * 300}"])
def test_a_local_folder_that_cannot_be_made_is_told_as_a_mistake(path):
    with pytest.raises(TargetDenied):
        open_target(Target(kind="local", path=path))


def test_a_file_comes_back_as_it_was(target):
    content = os.urandom(3_500_000)
    target.create("a", [content[:1], content[1:2_000_000], b"", content[2_000_000:]])
    assert b"".join(target.read("a")) == content
    assert b"".join(target.read("a", 1_000_000, 5)) == content[1_000_000:1_000_005]
    assert b"".join(target.read("a", len(content) - 3)) == content[-3:]
    status = target.status("a")
    assert (status.size, status.is_folder) == (len(content), False)


def test_an_empty_file(target):
    target.create("a", [])
    assert target.status("a").size == 0
    assert target.read_bytes("a") == b""


def test_create_is_exclusive(target):
    target.create("a", [b"first"])
    with pytest.raises(AlreadyExists):
        target.create("a", [b"second"])
    assert target.read_bytes("a") == b"first"


def test_only_one_of_many_creates_a_file(target):
    won = []

    def attempt(n):
        try:
            target.create("lock", [b"%d" % n])
            won.append(n)
        except AlreadyExists:
            pass

    threads = [threading.Thread(target=attempt, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert target.read_bytes("lock") == b"%d" % won[0]


def test_create_makes_no_folders(target):
    with pytest.raises(NotFound):
        target.create("nowhere/a", [b"x"])
    assert target.status("nowhere") is None


def test_rename_of_a_file_is_exclusive(target):
    target.create("a", [b"a"])
    target.create("b", [b"b"])
    with pytest.raises(AlreadyExists):
        target.rename("a", "b")
    assert (target.read_bytes("a"), target.read_bytes("b")) == (b"a", b"b")
    target.rename("a", "c")
    assert target.status("a") is None
    assert target.read_bytes("c") == b"a"


def test_rename_of_a_folder_is_exclusive_and_never_nests(target):
    target.make_folder("one/day=1")
    target.create("one/day=1/x", [b"x"])
    for content in (False, True):
        target.make_folder("two/day=1")
        if content:
            target.create("two/day=1/y", [b"y"])
        with pytest.raises(AlreadyExists):
            target.rename("one/day=1", "two/day=1")
    assert [entry.name for entry in target.entries("two/day=1")] == ["y"]
    target.rename("one/day=1", "two/day=2")
    assert target.read_bytes("two/day=2/x") == b"x"
    assert target.entries("one") == []


def test_rename_from_nowhere_and_to_nowhere(target):
    target.create("a", [b"a"])
    with pytest.raises(NotFound):
        target.rename("b", "c")
    with pytest.raises(NotFound):
        target.rename("a", "nowhere/a")
    assert target.read_bytes("a") == b"a"


def test_entries_and_missing_things(target):
    target.make_folder("f/g")
    target.make_folder("f/g")
    target.create("f/a", [b"12"])
    assert [(e.name, e.is_folder, e.size) for e in target.entries("f") if not e.is_folder] == [("a", False, 2)]
    assert [e.name for e in target.entries("f") if e.is_folder] == ["g"]
    assert target.entries("nowhere") == []
    assert target.status("nowhere") is None
    with pytest.raises(NotFound):
        target.read_bytes("nowhere")
    with pytest.raises(NotFound):
        target.touch("nowhere")


def test_delete_takes_everything_below_and_does_not_mind_nothing(target):
    target.make_folder("f/g")
    target.create("f/g/a", [b"x"])
    target.delete("f")
    target.delete("f")
    assert target.status("f") is None
    target.create("a", [b"x"])
    target.delete("a")
    assert target.status("a") is None


def test_touch_moves_the_modification_time(target):
    import time

    target.create("a", [b"x"])
    before = target.status("a").modified
    time.sleep(0.05)
    target.touch("a")
    assert target.status("a").modified > before


def test_put_writes_a_small_file_over_what_a_failed_try_left(target):
    target.create("a", [b"hal"])
    target.put("a", b"half no more")
    assert target.read_bytes("a") == b"half no more"


def test_a_local_rename_cut_between_its_two_calls_can_be_done_again(tmp_path):
    target = LocalTarget(Target(kind="local", path=str(tmp_path)))
    target.create("a", [b"x"])
    os.link(tmp_path / "a", tmp_path / "b")
    target.rename("a", "b")
    assert [entry.name for entry in target.entries("")] == ["b"]


def test_a_listing_survives_entries_that_vanish(tmp_path):
    target = LocalTarget(Target(kind="local", path=str(tmp_path)))
    target.create("a", [b"x"])
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    assert [entry.name for entry in target.entries("")] == ["a", "dangling"]
