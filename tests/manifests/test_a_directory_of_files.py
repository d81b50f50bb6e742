"""The first look: order, creation times, last good versions and objects in two files."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path

import pytest

from akocore.manifests import ManifestDirectoryError
from akocore.regular_file import NotAFileError, read_regular

from .conftest import Bench, said, service


def test_changes_come_in_natural_order_of_paths_and_then_of_documents(bench: Bench) -> None:
    bench.write("hello10.yaml", service("c"))
    bench.write("hello2.yaml", service("z") + "---\n" + service("a"))
    bench.write(
        "deep/er/x.json", '{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "n"}}'
    )
    batch = bench.load()
    assert said(batch) == ["+Namespace/n", "+Service/shop/z", "+Service/shop/a", "+Service/shop/c"]
    assert batch.refusals == {}


@pytest.mark.parametrize(
    "path", [".hidden.yaml", ".git/a.yaml", ".#a.yaml", "a.yaml~", ".a.yaml.swp", "4913", "a.txt"]
)
def test_hidden_files_and_what_editors_leave_are_ignored(bench: Bench, path: str) -> None:
    bench.write(path, service("a"))
    assert said(bench.load()) == []


def test_a_root_that_is_not_there_is_a_clear_error(bench: Bench) -> None:
    bench.root.rmdir()
    with pytest.raises(ManifestDirectoryError, match=r"is not a directory\. Create it"):
        bench.load()


def test_a_pipe_is_told_and_a_link_to_nowhere_or_a_loop_is_none(bench: Bench) -> None:
    os.mkfifo(bench.root / "pipe.yaml")
    (bench.root / "nowhere.yaml").symlink_to("gone")
    (bench.root / "loop").symlink_to(".")
    bench.write("dir.yaml/a.yaml", service("a"))
    batch = bench.load()
    assert said(batch) == ["+Service/shop/a"]
    assert {path: [r.reason for r in told] for path, told in batch.refusals.items()} == {
        "pipe.yaml": ["NotAFile"]
    }


@pytest.mark.parametrize("put", ["pipe", "socket", "device"])
def test_what_is_put_in_the_place_of_a_file_is_never_waited_for(tmp_path: Path, put: str) -> None:
    path = tmp_path / "a.yaml"
    with contextlib.ExitStack() as open_:
        if put == "pipe":
            os.mkfifo(path)
        elif put == "socket":
            listening = open_.enter_context(socket.socket(socket.AF_UNIX))
            listening.bind(str(path))
        else:
            path.symlink_to("/dev/null")
        with pytest.raises(NotAFileError):
            read_regular(str(path), 100)


def test_a_file_is_read_to_its_end_and_never_beyond_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(b"x" * 100)
    assert read_regular(str(path), 100)[1] == b"x" * 100
    assert read_regular(str(path), 99)[1] is None
    says_nothing = "/proc/self/environ"  # its size is 0
    with open(says_nothing, "rb") as file:
        assert read_regular(says_nothing, 1 << 20)[1] == file.read()
    assert read_regular(says_nothing, 10)[1] is None


def test_a_creation_time_is_given_once_and_survives_a_restart(bench: Bench) -> None:
    bench.write("a.yaml", service("a"))
    bench.write("b.yaml", service("b", more="  creationTimestamp: 2020-01-01T00:00:00Z\n"))
    bench.load()
    bench.time = "2026-02-02T00:00:00Z"
    bench.write("c.yaml", service("c"))
    times = {c.key: c.obj.metadata.creation_timestamp for c in bench.load().changes if c.obj}
    assert times == {
        "shop/a": "2026-01-01T00:00:00Z",
        "shop/b": "2020-01-01T00:00:00Z",
        "shop/c": "2026-02-02T00:00:00Z",
    }
    assert set(bench.memory.room("created")) == {"Service/shop/a", "Service/shop/c"}


def test_a_creation_time_is_forgotten_with_its_object_even_while_nobody_looks(
    bench: Bench,
) -> None:
    bench.write("a.yaml", service("a"))
    bench.load()
    (bench.root / "a.yaml").unlink()
    bench.load()
    assert bench.memory.room("created") == {}


def test_the_first_path_wins_when_two_files_have_the_same_object(bench: Bench) -> None:
    bench.write("a2.yaml", service("a", 1))
    bench.write("a10.yaml", "\n\n" + service("a", 2))
    batch = bench.load()
    (change,) = batch.changes
    assert change.obj is not None
    assert change.obj.spec.ports[0].port == 1  # type: ignore[attr-defined]
    ((path, (no,)),) = batch.refusals.items()
    assert (path, no.object, no.reason) == ("a10.yaml", "Service/shop/a", "DuplicateObject")
    assert "a2.yaml" in no.remedy
    assert no.line == 3


def test_a_file_that_never_was_good_gives_only_its_refusals(bench: Bench) -> None:
    bench.write("a.yaml", "a: [")
    bench.write("b.yaml", service("b", "http") + "---\n" + service("c"))
    batch = bench.load()
    assert said(batch) == ["+Service/shop/c"]
    assert [r.reason for r in batch.refusals["a.yaml"]] == ["InvalidYAML"]
    assert [r.object for r in batch.refusals["b.yaml"]] == ["Service/shop/b"]


def test_a_file_that_can_not_be_read_is_a_refusal_and_comes_when_it_can(bench: Bench) -> None:
    file = bench.root / "a.yaml"
    file.symlink_to("a.yaml")  # ELOOP: root may read everything else
    assert [r.reason for r in bench.load().refusals["a.yaml"]] == ["Unreadable"]
    file.unlink()
    bench.write("a.yaml", service("a"))
    assert said(bench.load()) == ["+Service/shop/a"]


def test_a_memory_with_nonsense_in_it_is_no_obstacle(bench: Bench) -> None:
    bench.memory.put("last-good", "a.yaml", "{")
    bench.memory.put("last-good", "gone.yaml", "[]")
    bench.write("a.yaml", "a: [")
    assert said(bench.load()) == []
    assert "gone.yaml" not in bench.memory.room("last-good")
