"""What happens under a directory, from Linux's inotify itself.

A file counts as changed when its writer *closes* it, so what is read is never half-written;
new directories are watched before they are listed, so nothing in them is missed; and a queue
that ran over is said.  (The watchers on PyPI hide the first and the last, and poll.)
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

__all__ = ["FileEvents", "walk"]

_ATTRIB, _CLOSE_WRITE, _FROM, _TO, _CREATE, _DELETE = 0x4, 0x8, 0x40, 0x80, 0x100, 0x200
_DELETE_SELF, _MOVE_SELF, _UNMOUNT, _OVERFLOW, _IGNORED = 0x400, 0x800, 0x2000, 0x4000, 0x8000
_ONLYDIR, _ISDIR = 0x01000000, 0x40000000
_TREE: Final = (
    _ATTRIB | _CLOSE_WRITE | _FROM | _TO | _CREATE | _DELETE | _DELETE_SELF | _MOVE_SELF | _ONLYDIR
)
_PARENT: Final = _FROM | _TO | _CREATE | _DELETE | _ONLYDIR
_READ_BYTES: Final = 1 << 15  # some 700 events
_HEAD: Final = struct.Struct("iIII")


def walk(
    root: Path, rel: str = "", lost: Callable[[str, OSError], None] = lambda *_: None
) -> Iterator[tuple[str, bool]]:
    """(path relative to ``root``, is it a directory) of ``rel`` and all visible things below.

    Symlinks are followed, each directory once on its way down.  A directory is given before
    it is listed.  What can't be listed, or is gone by now, is given as it is; ``lost`` hears of it.
    """
    pending: list[tuple[str, frozenset[tuple[int, int]]]] = [(rel, frozenset())]
    while pending:
        here, above = pending.pop()
        path = root / here
        try:
            info = path.stat()
        except OSError:
            continue
        this = (info.st_dev, info.st_ino)
        if this in above:
            continue
        yield here, True
        prefix = here + "/" if here else ""
        try:
            with os.scandir(path) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if _is_dir(entry):
                        pending.append((prefix + entry.name, above | {this}))
                    else:
                        yield prefix + entry.name, False
        except OSError as err:
            lost(here, err)


def _is_dir(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or to where we may not go
        return False


class FileEvents:
    """One inotify instance over ``root`` and what is below.  Raises `OSError` when it can't be.

    ``fileno`` is readable when `read` has something; ``lost``: as of `walk`.
    """

    def __init__(self, root: Path, lost: Callable[[str, OSError], None] = lambda *_: None) -> None:
        self._root = root
        self._lost = lost
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            raise self._error("fs.inotify.max_user_instances")
        self._watch_of: dict[str, int] = {}
        self._names: dict[int, set[str]] = {}  # one directory can be there by several names
        try:
            # Of the directory above only one name matters: our own, as a link that is swapped.
            self._above = self._add(root.parent, _PARENT) if root.is_symlink() else -1
            self._add(root, _TREE)  # so that a missing root is an error
            self._add_tree("")
        except OSError:
            self.close()
            raise

    def fileno(self) -> int:
        return int(self._fd)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def read(self) -> tuple[set[str], set[str]] | None:
        """Paths that changed and those of them that went away; None: begin again, on a new one.

        A bounded bite; `fileno` says if there is more.  A path may be a directory (all of it),
        and may begin with ".." (a mount was swapped).  Cost: the events.
        """
        paths: set[str] = set()
        gone: set[str] = set()
        try:
            data = os.read(self._fd, _READ_BYTES)
        except BlockingIOError:
            return paths, gone
        at = 0
        while at < len(data):
            watch, mask, _, size = _HEAD.unpack_from(data, at)
            at += _HEAD.size + size
            name = os.fsdecode(data[at - size : at].rstrip(b"\0"))
            if mask & _OVERFLOW:
                return None
            if watch == self._above:
                if name == self._root.name:
                    return None
                continue
            for directory in tuple(self._names.get(watch, ())):
                if not name:
                    if not directory and mask & (_DELETE_SELF | _MOVE_SELF | _UNMOUNT):
                        return None
                    if mask & _IGNORED:
                        self._forget(directory)
                    continue
                path = f"{directory}/{name}" if directory else name
                if self._event(path, directory, mask):
                    paths.add(path)
                if mask & (_FROM | _DELETE):
                    gone.add(path)
        return paths, gone

    def _event(self, path: str, directory: str, mask: int) -> bool:
        """Keep the watches true.  Is the event worth telling?"""
        name = path.rpartition("/")[2]
        if name.startswith(".."):  # a mounted ConfigMap is swapped: its links lead elsewhere now
            self._add_tree(directory)
        elif name.startswith("."):
            return False
        elif mask & (_FROM | _DELETE):
            if mask & _ISDIR or path in self._watch_of:
                for below in [d for d in self._watch_of if f"{d}/".startswith(f"{path}/")]:
                    self._forget(below)
        elif mask & (_CREATE | _TO):
            try:
                info = os.lstat(self._root / path)
            except OSError:
                return True
            if stat.S_ISDIR(info.st_mode) or (stat.S_ISLNK(info.st_mode) and self._is_dir(path)):
                self._add_tree(path)
            elif mask & _CREATE and stat.S_ISREG(info.st_mode):
                return info.st_nlink > 1  # else it is being written, and will be closed
        return True

    def _is_dir(self, path: str) -> bool:
        return os.path.isdir(self._root / path)

    def _add_tree(self, rel: str) -> None:
        for path, is_directory in walk(self._root, rel, self._lost):
            if not is_directory:
                continue
            try:
                watch = self._add(self._root / path, _TREE)
            except OSError as err:
                if path and err.errno in (errno.ENOENT, errno.ENOTDIR, errno.EACCES):
                    continue
                raise
            if self._watch_of.get(path) == watch:
                continue
            self._forget(path)
            self._watch_of[path] = watch
            self._names.setdefault(watch, set()).add(path)

    def _add(self, path: Path, mask: int) -> int:
        watch: int = self._libc.inotify_add_watch(self._fd, os.fsencode(path), mask)
        if watch < 0:
            raise self._error("fs.inotify.max_user_watches", path)
        return watch

    def _forget(self, path: str) -> None:
        if (watch := self._watch_of.pop(path, None)) is None:
            return
        names = self._names[watch]
        names.discard(path)
        if not names:
            del self._names[watch]
            self._libc.inotify_rm_watch(self._fd, watch)  # fails when the kernel did it already

    @staticmethod
    def _error(limit: str, path: Path | None = None) -> OSError:
        code = ctypes.get_errno()
        text = os.strerror(code)
        if code in (errno.ENOSPC, errno.EMFILE):
            text = f"too many are watched on this machine, raise the sysctl {limit}"
        return OSError(code, text, str(path) if path else None)
