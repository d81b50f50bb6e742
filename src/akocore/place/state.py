"""What must survive a restart, in one SQLite file of a state directory.

Facts are strings by room and key.  Reads come from memory; writes are collected and go to
disk in one transaction (write-ahead log, ``synchronous=FULL``: an fsync a commit), so a
crash leaves either all of a batch or nothing of it.

The file is its owner's alone, and nothing secret is put there.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import stat
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Protocol

import orjson

from akocore.kube.objects import Change

__all__ = ["Facts", "SharedFacts", "State", "StateError"]


log = logging.getLogger(__name__)


class Facts(Protocol):
    """What is remembered, wherever it is kept: strings by room and key."""

    def room(self, name: str) -> Mapping[str, str]:
        """The facts of one room as they are now; a live view."""
        ...

    def put(self, room: str, key: str, value: str) -> None: ...
    def drop(self, room: str, key: str) -> None: ...

    async def flush(self) -> None:
        """Make durable what has gathered.  Raises `StateError`; what failed is kept for later."""
        ...

    @property
    def waiting(self) -> int:
        """How many facts are not durable yet."""
        ...

    def close(self) -> None: ...


class SharedFacts(Facts, Protocol):
    """Facts that other replicas write too: addresses, by owner ("network/virtual service")."""

    def heard(self, change: Change) -> str:
        """Take in an address's object as it is now; the address."""
        ...

    def believed(self, address: str) -> str | None:
        """Who has an address, as this replica has it."""
        ...

    def kept(self, address: str) -> str | None:
        """Who has it, as everybody can see."""
        ...

    def believe(self, address: str) -> None:
        """Take over what everybody can see."""
        ...

    def whose(self, address: str) -> tuple[str, str]:
        """The virtual service that has it, as everybody can see, and its key; "": unknown."""
        ...

    def unwritten(self) -> list[str]:
        """The addresses of which the two differ."""
        ...


# Text goes in as bytes: Python's str of a file name may hold what UTF-8 has no form for.
_PUT = "INSERT OR REPLACE INTO fact VALUES (CAST(? AS TEXT), CAST(? AS TEXT), CAST(? AS TEXT))"
_DROP = "DELETE FROM fact WHERE room = CAST(? AS TEXT) AND key = CAST(? AS TEXT)"


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _text(stored: bytes) -> str:
    return stored.decode("utf-8", "surrogatepass")


_NAME: Final = "placement.db"
_CLEAN: Final = 1  # ``user_version`` of a file that never had anything of a Secret
_ENGINES: Final = "engines"
_OURS: Final = (
    _ENGINES,
    "xds.sock",
    "control.sock",
    _NAME,
)  # what a state directory of ours begins with


def _close_to_others(directory: Path) -> None:
    """Nobody else is to look into a directory that is akocore's alone, whoever made it."""
    found = directory.stat()
    if found.st_uid != os.geteuid() or not stat.S_IMODE(found.st_mode) & 0o077:
        return
    others = [one.name for one in directory.iterdir() if not one.name.startswith(_OURS)]
    if others or found.st_mode & stat.S_ISVTX:
        log.warning(
            "event=state_directory_shared directory=%s mode=%o",
            *(directory, stat.S_IMODE(found.st_mode)),
        )
    else:
        directory.chmod(0o700)


def _of_others(directory: Path) -> str:
    """What somebody else has put where akocore's own is to be; "": nothing.

    Who could write to the directory before may have put a link there, or keep a file open.
    """
    ours = {os.geteuid(), directory.stat().st_uid}
    for one in sorted(directory.iterdir()):
        ours_by_name = one.name == _ENGINES or one.name.startswith(_NAME)
        if ours_by_name and (owner := one.lstat().st_uid) not in ours:
            return f"{one.name} in it belongs to user {owner}. Remove it if nobody needs it"
    return ""


def _without_secrets(text: str) -> str:
    """A list of documents without Secrets; nothing of what is no such list."""
    try:
        documents = orjson.loads(text)
        if all(one["kind"] != "Secret" for one in documents):
            return text
        rest = [one for one in documents if one["kind"] != "Secret"]
    except (ValueError, TypeError, KeyError):
        return "[]"
    return orjson.dumps(rest).decode()


class StateError(Exception):
    """The state directory can't be used; the text says why and what to do."""


class State:
    """Facts of one akocore.  `put` and `drop` are cheap; `commit` writes what has gathered."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / _NAME
        self._lock = threading.Lock()
        self._pending: dict[tuple[str, str], str | None] = {}
        self._rooms: dict[str, dict[str, str]] = {}
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            if others := _of_others(directory):
                raise StateError(
                    f"state directory {directory} can't be used: {others},"
                    " or choose another with --state."
                )
            _close_to_others(directory)
            os.close(os.open(self._file, os.O_CREAT | os.O_WRONLY, 0o600))
            for file in directory.glob(f"{_NAME}*"):  # the log has the rights of the database
                file.chmod(0o600)
            self._db = sqlite3.connect(self._file, check_same_thread=False, isolation_level=None)
            self._db.text_factory = _text
            self._db.execute("PRAGMA secure_delete=ON")
            self._db.execute("PRAGMA temp_store=MEMORY")
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS fact (room TEXT, key TEXT, value TEXT NOT NULL,"
                " PRIMARY KEY (room, key)) WITHOUT ROWID"
            )
            for room, key, value in self._db.execute("SELECT room, key, value FROM fact"):
                self._rooms.setdefault(room, {})[key] = value
            if self._db.execute("PRAGMA user_version").fetchone()[0] < _CLEAN:
                self._clean()
        except (OSError, sqlite3.Error, UnicodeError) as err:
            raise StateError(
                f"state directory {directory} can't be used: {err}."
                " Make it writable or choose another with --state."
            ) from err

    def _clean(self) -> None:
        """Take out what older releases have written of Secrets, also where it is deleted."""
        kept = self._rooms.get("last-good", {})
        for path, text in list(kept.items()):
            if (rest := _without_secrets(text)) != text:
                self.put("last-good", path, rest)
        try:
            self.commit(self.take())
            self._db.execute("VACUUM")
            self._db.execute(f"PRAGMA user_version={_CLEAN}")
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except (StateError, sqlite3.Error) as err:
            log.warning("event=state_not_cleaned file=%s why=%r", self._file, str(err))

    def room(self, name: str) -> Mapping[str, str]:
        """The facts of one room as they are now; a live view."""
        return self._rooms.setdefault(name, {})

    def put(self, room: str, key: str, value: str) -> None:
        facts = self._rooms.setdefault(room, {})
        if facts.get(key) != value:
            facts[key] = value
            self._pending[room, key] = value

    def drop(self, room: str, key: str) -> None:
        if self._rooms.get(room, {}).pop(key, None) is not None:
            self._pending[room, key] = None

    @property
    def dirty(self) -> bool:
        return bool(self._pending)

    @property
    def waiting(self) -> int:
        return len(self._pending)

    async def flush(self) -> None:
        """Commit in a thread what has gathered.  Raises `StateError`; then it is kept for later."""
        if not self._pending:
            return
        taken = self.take()
        try:
            await asyncio.to_thread(self.commit, taken)
        except StateError:
            self.restore(taken)
            raise

    def take(self) -> dict[tuple[str, str], str | None]:
        """What has gathered since the last call, for `commit` in a thread."""
        pending, self._pending = self._pending, {}
        return pending

    def restore(self, taken: dict[tuple[str, str], str | None]) -> None:
        """Give back what a failed `commit` could not write; newer facts win."""
        self._pending = taken | self._pending

    def commit(self, taken: dict[tuple[str, str], str | None]) -> None:
        """Write ``taken`` durably.  Raises `StateError`; nothing of it is written then."""
        puts = [
            (_bytes(room), _bytes(key), _bytes(value))
            for (room, key), value in taken.items()
            if value is not None
        ]
        drops = [
            (_bytes(room), _bytes(key)) for (room, key), value in taken.items() if value is None
        ]
        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                self._db.executemany(_PUT, puts)
                self._db.executemany(_DROP, drops)
                self._db.execute("COMMIT")
            except sqlite3.Error as err:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise StateError(
                    f"{self._file} can't be written: {err}."
                    " Free space there; placements are kept in memory and written again."
                ) from err

    def close(self) -> None:
        with self._lock:
            self._db.close()
