"""Who Envoys run as: another user than root, who is given just what they must reach."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import stat
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from msgspec import Struct

from akocore.engines.processes import arguments, capabilities

__all__ = ["Handed", "User", "command_as", "find_user", "give_directory", "give_socket", "user_of"]

_STUB: Final = Path(__file__).with_name("unprivileged.py")
_NAMES: Final = ("envoy", "nobody")  # the first that there is
_NEEDED: Final = ("CHOWN", "KILL", "SETGID", "SETUID")


class User(Struct, frozen=True):
    """An account of this machine; ``above``: the engines' directory, if it can't get there."""

    name: str
    uid: int
    gid: int
    above: str = ""


def find_user(directory: Path) -> tuple[User | None, str]:
    """Who Envoys in ``directory`` are to run as, or None, and why they run as we do."""
    if os.geteuid() != 0:
        return None, "akocore isn't root"
    may = capabilities()
    if missing := [name for name in _NEEDED if name not in may]:
        return None, f"akocore has no {', '.join(f'CAP_{name}' for name in missing)}"
    for name in _NAMES:
        with contextlib.suppress(KeyError):
            found = pwd.getpwnam(name)
            break
    else:
        return None, f"there is no user {' or '.join(_NAMES)}"
    if not (_mapped("uid_map", found.pw_uid) and _mapped("gid_map", found.pw_gid)):
        return None, f"user {found.pw_name} is none of this user namespace"
    hidden = _hidden(directory)
    if hidden is not None and "SYS_ADMIN" not in may:
        return None, f"user {found.pw_name} can't enter {hidden}"
    above = "" if hidden is None else str(directory)
    return User(found.pw_name, found.pw_uid, found.pw_gid, above), ""


def _hidden(directory: Path) -> Path | None:
    """The first directory above that others can't enter."""
    for parent in directory.parents:
        with contextlib.suppress(FileNotFoundError):
            if not parent.stat().st_mode & 0o001:
                return parent
    return None


def _mapped(table: str, number: int) -> bool:
    for line in Path("/proc/self", table).read_text("ascii").splitlines():
        first, _, count = map(int, line.split())
        if first <= number < first + count:
            return True
    return False


def command_as(user: User | None, directory: Path, command: list[str]) -> list[str]:
    """``command`` as ``user`` (None: as we are) in ``directory``."""
    who = ("-", "-", "-")
    if user is not None:
        who = (str(user.uid), str(user.gid), user.above or "-")
    return [sys.executable, "-I", "-S", str(_STUB), str(directory), *who, *command]


def user_of(pid: int) -> int:
    """Whose a process is, or will be when `command_as` is done.  Raises `OSError`: nobody's."""
    argv = arguments(pid)
    if str(_STUB) in argv:
        wanted = argv[argv.index(str(_STUB)) + 2]
        return os.geteuid() if wanted == "-" else int(wanted)
    return Path(f"/proc/{pid}").stat().st_uid


def give_directory(directory: Path, user: User | None) -> None:
    """Have a directory that ``user`` may write to, and we too, by our group.

    It may have been another user's.
    """
    uid = os.geteuid() if user is None else user.uid
    mode = 0o700 if user is None else 0o2770
    with contextlib.suppress(FileNotFoundError):
        now = directory.lstat()
        if stat.S_ISDIR(now.st_mode) and now.st_uid == uid and now.st_mode & 0o7777 == mode:
            return
        if stat.S_ISDIR(now.st_mode):
            shutil.rmtree(directory)
        else:
            directory.unlink()
    directory.mkdir()
    directory.chmod(mode)
    if user is not None:
        os.chown(directory, user.uid, -1)


def give_socket(socket: Path, link: Path, user: User) -> None:
    """Have a socket of ours at ``link`` too, for ``user`` and for us."""
    with contextlib.suppress(FileNotFoundError):
        now = socket.lstat()
        if link != socket and not (link.exists() and link.lstat().st_ino == now.st_ino):
            link.unlink(missing_ok=True)
            os.link(socket, link)
        if now.st_uid != user.uid:
            os.chmod(socket, 0o770)
            os.chown(socket, user.uid, -1)


class Handed:
    """Copies of files for ``user``, in ``directory``; `refresh` makes those that are due."""

    def __init__(self, directory: Path, user: User, files: Iterable[Path]) -> None:
        self.directory = directory
        self._user = user
        self._files = {file: self.name(i, file) for i, file in enumerate(files)}
        self._seen: dict[Path, tuple[int, int, int]] = {}

    @staticmethod
    def name(number: int, file: Path) -> str:
        """What a copy is called: two files may have one name."""
        return f"{number}-{file.name}"

    def refresh(self) -> None:
        """Copy what was replaced since.  Raises `OSError`."""
        for file, name in self._files.items():
            now = file.stat()
            seen = (now.st_ino, now.st_size, now.st_mtime_ns)
            if self._seen.get(file) != seen:
                self.write(name, file.read_bytes())
                self._seen[file] = seen

    def write(self, name: str, content: bytes) -> None:
        """A file that its user may read and nobody else."""
        if not self.directory.exists():
            self.directory.mkdir(mode=0o750)
            self.directory.chmod(0o750)
            os.chown(self.directory, -1, self._user.gid)
        part = self.directory / f"{name}.part"
        part.unlink(missing_ok=True)
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(content)
        part.chmod(0o640)
        os.chown(part, -1, self._user.gid)
        part.replace(self.directory / name)
