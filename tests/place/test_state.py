"""What is remembered: whole batches, through restarts, full disks and kills."""

from __future__ import annotations

import os
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import orjson
import pytest

from akocore.place.state import State, StateError


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    state = State(tmp_path / "state")
    yield state
    state.close()


def reopened(directory: Path) -> dict[str, dict[str, str]]:
    """What a process that begins anew reads in the rooms a and b."""
    state = State(directory)
    try:
        return {room: dict(state.room(room)) for room in "ab"}
    finally:
        state.close()


def test_what_is_committed_survives_a_restart(state: State, tmp_path: Path) -> None:
    state.put("a", "one", "1")
    state.put("a", "two", "2")
    state.put("b", "one", "other room")
    state.commit(state.take())
    state.drop("a", "two")
    state.put("a", "one", "1!")
    state.commit(state.take())
    state.close()
    assert reopened(tmp_path / "state") == {"a": {"one": "1!"}, "b": {"one": "other room"}}


def test_any_text_is_kept(state: State, tmp_path: Path) -> None:
    facts = {"ü/*": "a\nb", "": "", "x" * 1000: "☃" * 1000, "a'b": 'c"d;--', "\0a\0": "b\0"}
    facts[os.fsdecode(b"\xff.yaml")] = "a file name that is not UTF-8"
    for key, value in facts.items():
        state.put("a", key, value)
    state.commit(state.take())
    assert reopened(tmp_path / "state")["a"] == facts
    for key in facts:
        state.drop("a", key)
    state.commit(state.take())
    assert reopened(tmp_path / "state")["a"] == {}


def test_facts_written_by_an_older_release_are_read_and_dropped(tmp_path: Path) -> None:
    State(tmp_path).close()
    with sqlite3.connect(tmp_path / "placement.db") as db:
        db.execute("INSERT INTO fact VALUES ('a', 'ü', '☃')")
    db.close()
    state = State(tmp_path)
    assert state.room("a") == {"ü": "☃"}
    state.put("a", "ü", "new")
    state.commit(state.take())
    assert reopened(tmp_path)["a"] == {"ü": "new"}
    state.drop("a", "ü")
    state.commit(state.take())
    assert reopened(tmp_path)["a"] == {}
    state.close()


def test_what_is_not_committed_is_known_now_and_gone_after_a_restart(
    state: State, tmp_path: Path
) -> None:
    state.put("a", "one", "1")
    assert state.room("a") == {"one": "1"}
    assert reopened(tmp_path / "state")["a"] == {}


def test_only_changes_make_it_dirty(state: State) -> None:
    seen = [state.dirty]
    state.drop("a", "never there")
    seen.append(state.dirty)
    state.put("a", "one", "1")
    seen.append(state.dirty)
    state.commit(state.take())
    seen.append(state.dirty)
    state.put("a", "one", "1")
    seen.append(state.dirty)
    assert seen == [False, False, True, False, False]
    assert state.take() == {}


def test_take_gives_the_last_of_each_fact(state: State) -> None:
    state.put("a", "one", "1")
    state.put("a", "one", "2")
    state.put("a", "two", "2")
    state.drop("a", "two")
    assert state.take() == {("a", "one"): "2", ("a", "two"): None}


def test_a_room_is_a_live_view(state: State) -> None:
    room = state.room("a")
    state.put("a", "one", "1")
    assert room == {"one": "1"}
    state.drop("a", "one")
    assert room == {}


def test_restored_facts_are_written_later_and_newer_ones_win(state: State, tmp_path: Path) -> None:
    state.put("a", "one", "old")
    state.put("a", "two", "old")
    state.put("a", "three", "old")
    taken = state.take()
    state.put("a", "one", "new")
    state.drop("a", "two")
    state.restore(taken)
    assert state.dirty
    state.commit(state.take())
    assert reopened(tmp_path / "state")["a"] == {"one": "new", "three": "old"}


def test_a_second_opener_sees_what_is_committed(state: State, tmp_path: Path) -> None:
    state.put("a", "one", "1")
    state.commit(state.take())
    assert reopened(tmp_path / "state")["a"] == {"one": "1"}


def test_the_directory_is_made_and_is_its_owners_alone(tmp_path: Path) -> None:
    directory = tmp_path / "deep" / "state"
    State(directory).close()
    assert directory.stat().st_mode & 0o777 == 0o700


def test_a_directory_that_cannot_be_is_said_with_the_option(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    directory = tmp_path / "file" / "state"
    with pytest.raises(StateError, match=r"--state") as error:
        State(directory)
    assert str(directory) in str(error.value)


def test_a_file_that_is_no_database_is_said(tmp_path: Path) -> None:
    (tmp_path / "placement.db").write_text("nonsense " * 1000)
    with pytest.raises(StateError, match=r"not a database.*--state"):
        State(tmp_path)


def test_a_file_with_text_that_is_none_is_said(tmp_path: Path) -> None:
    State(tmp_path).close()
    with sqlite3.connect(tmp_path / "placement.db") as db:
        db.execute("INSERT INTO fact VALUES ('a', CAST(x'ff' AS TEXT), '')")
    db.close()
    with pytest.raises(StateError, match="--state"):
        State(tmp_path)


def test_a_file_of_another_shape_is_said(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "placement.db") as db:
        db.execute("CREATE TABLE fact (other TEXT)")
    db.close()
    with pytest.raises(StateError, match=r"no such column"):
        State(tmp_path)


def test_a_file_that_another_writes_is_said_and_written_later(
    tmp_path: Path,
) -> None:
    first, second = State(tmp_path), State(tmp_path)
    other = sqlite3.connect(tmp_path / "placement.db", isolation_level=None)
    second._db.execute("PRAGMA busy_timeout = 10")
    other.execute("BEGIN IMMEDIATE")
    second.put("a", "one", "1")
    taken = second.take()
    with pytest.raises(StateError, match="locked"):
        second.commit(taken)
    other.execute("ROLLBACK")
    second.commit(taken)
    for one in (first, second, other):
        one.close()
    assert reopened(tmp_path)["a"] == {"one": "1"}


def _fill(state: State) -> dict[tuple[str, str], str | None]:
    """A batch of more than a megabyte, with a small fact at its front and one at its end."""
    state.put("a", "first", "new")
    for i in range(64):
        state.put("a", f"big-{i}", "x" * 20_000)
    state.put("a", "last", "new")
    return state.take()


def test_without_space_nothing_is_written_and_all_is_when_there_is_again(
    state: State, tmp_path: Path
) -> None:
    state.put("a", "first", "old")
    state.commit(state.take())
    state._db.execute("PRAGMA max_page_count = 20")
    taken = _fill(state)
    with pytest.raises(StateError, match=r"can't be written.*full.*Free space") as error:
        state.commit(taken)
    assert str(tmp_path / "state" / "placement.db") in str(error.value)
    state.restore(taken)
    assert state.room("a")["first"] == state.room("a")["last"] == "new"
    assert reopened(tmp_path / "state")["a"] == {"first": "old"}
    state._db.execute("PRAGMA max_page_count = 1000000")
    state.commit(state.take())
    found = reopened(tmp_path / "state")["a"]
    assert found == state.room("a")
    assert found["last"] == "new"


@pytest.mark.real
def test_a_full_disk_is_said_and_written_to_again_when_it_is_not(
    tmp_path: Path, require_real: Callable[[bool, str], None]
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = (
        os.geteuid() == 0
        and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", disk], check=False
        ).returncode
    )
    require_real(mounted, "right to mount a tmpfs")
    try:
        state = State(disk / "state")
        state.put("a", "first", "old")
        state.commit(state.take())
        blocks = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
        filler = disk / "filler"
        filler.write_bytes(bytes(blocks))
        for i in range(20):  # a batch small enough to be written when there is space
            state.put("a", f"key-{i}", "y" * 1000)
        for _ in range(3):
            taken = state.take()
            with pytest.raises(StateError, match="Free space there"):
                state.commit(taken)
            state.restore(taken)
        assert state.room("a")["key-19"] == "y" * 1000
        filler.unlink()
        state.commit(state.take())
        assert not state.dirty
        want = dict(state.room("a"))
        state.close()
        assert reopened(disk / "state")["a"] == want
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


_WRITER = """
import sys
from pathlib import Path
from akocore.place.state import State
state = State(Path(sys.argv[1]))
n = int(state.room("a").get("0", "0"))
while True:
    n += 1
    for key in range(50):
        state.put("a", str(key), str(n))
    state.put("b", str(n % 7), "x" * 5000) if n % 2 else state.drop("b", str((n - 1) % 7))
    state.commit(state.take())
    print(n, flush=True)
"""


def test_a_kill_in_the_midst_leaves_whole_batches(tmp_path: Path) -> None:
    said = 0
    for round_ in range(4):
        with subprocess.Popen(
            [sys.executable, "-c", _WRITER, tmp_path / "state"], stdout=subprocess.PIPE, text=True
        ) as writer:
            assert writer.stdout is not None
            for _ in range(20 + 7 * round_):
                line = writer.stdout.readline()
                assert line, "the writer can't go on where it was killed"
            writer.send_signal(signal.SIGKILL)
            rest = writer.stdout.read().splitlines()
        # A last line may be cut off by the kill; those before it are whole.
        said = max([said, int(line), *map(int, rest[:-1])])
        facts = reopened(tmp_path / "state")["a"]
        assert len(facts) == 50
        assert len(set(facts.values())) == 1, "half of a batch was kept"
        assert int(facts["0"]) >= said, "a batch that was durable is lost"


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_file_and_its_directory_are_the_owners_alone_also_when_they_were_there_before(
    tmp_path: Path,
) -> None:
    before = os.umask(0o022)
    try:
        old = tmp_path / "old"
        old.mkdir(mode=0o755)
        with sqlite3.connect(old / "placement.db") as db:
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("CREATE TABLE fact (room TEXT, key TEXT, value TEXT NOT NULL)")
        assert _mode(old / "placement.db") == _mode(old / "placement.db-wal") == 0o644
        for directory in (old, tmp_path / "new"):
            state = State(directory)
            state.put("a", "one", "1")
            state.commit(state.take())
            assert _mode(directory) == 0o700
            found = {file.name: _mode(file) for file in directory.iterdir()}
            assert found == dict.fromkeys(
                ("placement.db", "placement.db-wal", "placement.db-shm"), 0o600
            )
            state.close()
        db.close()
    finally:
        os.umask(before)


def test_a_directory_that_others_use_too_stays_open_to_them(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o755)
    (tmp_path / "shared" / "somebody's").touch()
    State(tmp_path / "shared").close()
    assert _mode(tmp_path / "shared") == 0o755
    assert _mode(tmp_path / "shared" / "placement.db") == 0o600


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files to another user")
@pytest.mark.parametrize("name", ["placement.db", "placement.db-wal", "engines"])
@pytest.mark.parametrize("link", [True, False])
def test_what_somebody_else_has_put_into_its_directory_is_neither_opened_nor_changed(
    tmp_path: Path, name: str, link: bool
) -> None:
    directory, theirs = tmp_path / "state", tmp_path / "theirs"
    directory.mkdir(mode=0o777)
    theirs.write_text("as it was")
    theirs.chmod(0o644)
    put = directory / name
    if link:
        put.symlink_to(theirs)
    else:
        put.touch(0o666)
    os.lchown(put, 12345, 12345)
    with pytest.raises(StateError, match=f"{name} in it belongs to user 12345"):
        State(directory)
    assert _mode(theirs) == 0o644
    put.unlink()
    State(directory).close()


def test_what_an_older_release_has_written_of_secrets_is_wiped(tmp_path: Path) -> None:
    secret = {"kind": "Secret", "data": {"tls.key": "UFJJVkFURQ" * 300}}
    service = {"kind": "Service", "metadata": {"name": "web"}}
    state = State(tmp_path)
    for path in ("gone.yaml", "kept.yaml", "only.yaml"):
        documents = [secret] if path == "only.yaml" else [secret, service]
        state.put("last-good", path, orjson.dumps(documents).decode())
    state.put("last-good", "odd.yaml", '[{"kind": "Secret", "data": {"tls.key": "UFJJVkFURQ')
    state.put("vip", "net/vs", "10.0.0.1")
    state.commit(state.take())
    state._db.execute("PRAGMA secure_delete=OFF")  # as it was then
    state.drop("last-good", "gone.yaml")
    state.commit(state.take())
    state._db.execute("PRAGMA user_version=0")
    state.close()
    assert b"UFJJVkFURQ" in (tmp_path / "placement.db").read_bytes()
    state = State(tmp_path)
    for file in tmp_path.iterdir():
        assert b"UFJJVkFURQ" not in file.read_bytes(), file.name
    kept = dict(state.room("last-good"))
    assert orjson.loads(kept.pop("kept.yaml")) == [service]
    assert kept == {"only.yaml": "[]", "odd.yaml": "[]"}
    assert state.room("vip") == {"net/vs": "10.0.0.1"}
    state.close()
