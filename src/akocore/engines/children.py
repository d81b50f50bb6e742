"""Processes that outlive who started them: a directory that one akocore has at a time, how they
are started in it, and how they are known again.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
from collections.abc import Mapping
from pathlib import Path

from akocore.engines.processes import start_ticks

__all__ = ["HEALTHY_AFTER_S", "check_socket_path", "hold", "last_lines", "pause_s", "spawn", "take"]

HEALTHY_AFTER_S = 30.0
"""One that ran for so long is started at once when it ends; see `pause_s`."""

_MAX_SOCKET_PATH = 107  # sockaddr_un.sun_path, less its NUL
_LOG_MAX_BYTES = 8 << 20
_BACKOFF_FIRST_S, _BACKOFF_MAX_S = 0.1, 10.0


def take(directory: Path, what: str, error: type[Exception], mode: int = 0o700) -> int:
    """Make a directory ours: a descriptor that holds its lock until it is closed.

    Raises ``error``: it can't be used, or another akocore runs ``what`` of it.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=mode)
        lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as err:
        raise error(
            f"run directory {directory} can't be used: {err.strerror}."
            " Make it writable or choose another with --state."
        ) from err
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as err:
        holder = os.read(lock, 32).decode("ascii", "replace").strip() or "?"
        os.close(lock)
        if err.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise error(f"{directory}/lock can't be locked: {err.strerror}.") from err
        raise error(
            f"another akocore (pid {holder}) runs {what} of {directory}."
            " Stop it or give this one another --state."
        ) from err
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    return lock


def check_socket_path(path: Path, error: type[Exception]) -> None:
    """Raises ``error`` when no unix socket can have this path."""
    if (length := len(os.fsencode(path))) > _MAX_SOCKET_PATH:
        raise error(
            f"{path} is too long for a unix socket ({length} bytes, at most {_MAX_SOCKET_PATH})."
            " Choose a shorter directory with --state."
        )


def spawn(command: list[str], environ: Mapping[str, str], log: Path) -> tuple[int, int]:
    """Start a process: its pid, and where in ``log`` it begins.  Raises `OSError`.

    What it prints is appended; a log that has grown large is put aside first, as ``.1``.
    """
    with contextlib.suppress(FileNotFoundError):
        if log.stat().st_size > _LOG_MAX_BYTES:
            log.rename(log.with_name(f"{log.name}.1"))
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        offset = os.fstat(descriptor).st_size
        pid = os.posix_spawnp(
            command[0],
            command,
            environ,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, descriptor, 1),
                (os.POSIX_SPAWN_DUP2, descriptor, 2),
            ],
            setsid=True,  # Ctrl-C and the end of our terminal are not for it
            setsigmask=(),
            setsigdef=(signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE),
        )
    finally:
        os.close(descriptor)
    return pid, offset


def hold(pid: int, ticks: int) -> int:
    """A pidfd of the process that was given ``pid`` when it started at ``ticks``; -1: it is gone.

    While we have that, the pid can't be given to another process.
    """
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return -1
    if start_ticks(pid) != ticks:
        os.close(pidfd)
        return -1
    return pidfd


def pause_s(failures: int) -> float:
    """How long to wait before the next start after so many failures in a row: first not at all."""
    if failures < 2:
        return 0.0
    return min(_BACKOFF_MAX_S, _BACKOFF_FIRST_S * 2.0 ** min(failures - 2, 20))


def last_lines(log: Path, offset: int) -> list[str]:
    """The last lines written since, the last one first, of 500 characters each at the most."""
    try:
        with log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(offset, size - 16_384))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return []
    return [line[:500] for line in reversed(lines) if line.strip()]
