"""A file's bytes, and never more waiting or memory than a file takes, whatever is at its path."""

from __future__ import annotations

import os
import stat
from typing import Final

__all__ = ["NotAFileError", "read_regular"]

_CHUNK_BYTES: Final = 1 << 20


class NotAFileError(OSError):
    """At the path is a pipe, a device or a socket: to read it may take for ever."""


def read_regular(path: str, most: int) -> tuple[os.stat_result, bytes | None]:
    """What is at ``path``, and its bytes; None: there are more than ``most``.

    What is looked at is what is read, also when somebody puts something else there meanwhile.
    Raises `OSError`; `NotAFileError`, a kind of it, without waiting for anybody.
    """
    if not _is_file(os.stat(path)):  # a device may take being opened for an order
        raise NotAFileError(path)
    opened = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        found = os.fstat(opened)
        if not _is_file(found):
            raise NotAFileError(path)
        if found.st_size > most:
            return found, None
        data = os.read(opened, found.st_size + 1)
        while part := os.read(opened, _CHUNK_BYTES):  # it grows, or has more than it says
            data += part
            if len(data) > most:
                break
        return found, data if len(data) <= most else None
    finally:
        os.close(opened)


def _is_file(found: os.stat_result) -> bool:
    return stat.S_ISREG(found.st_mode)
