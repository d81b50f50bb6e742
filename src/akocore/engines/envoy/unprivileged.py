"""Become another user who may listen at low ports, no more, and run a command in a directory.

``python unprivileged.py DIRECTORY UID GID ABOVE COMMAND...``; UID "-": stay who we are.  The
command may be where the other user could not get to, and so may the directory, if ABOVE is the one
above it (else "-"): that is seen at `SEEN` then, by this process alone.  Open files: as many as
allowed.  capabilities(7), capset(2), linux/prctl.h, mount_namespaces(7).

This file is run by itself and needs nothing but the standard library.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import sys

SEEN = "/run/akocore-engines"

_NET_BIND_SERVICE = 10
_NEWNS, _BIND, _REC, _SLAVE = 0x20000, 0x1000, 0x4000, 0x80000
_VERSION = 0x20080522  # _LINUX_CAPABILITY_VERSION_3
_KEEPCAPS, _CAPBSET_DROP, _NO_NEW_PRIVS, _CAP_AMBIENT, _AMBIENT_RAISE = 8, 24, 38, 47, 2

_libc = ctypes.CDLL(None, use_errno=True)


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Half(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


def _check(result: int, call: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), call)


def _prctl(*arguments: int) -> int:
    padded = [*arguments, 0, 0, 0, 0][:5]
    return int(_libc.prctl(*(ctypes.c_ulong(one) for one in padded)))


def _narrow_for_good() -> None:
    """What no program that is run from now on can get back; only who may is able to say so."""
    for capability in range(64):
        if capability != _NET_BIND_SERVICE and _prctl(_CAPBSET_DROP, capability) != 0:
            return


def become(uid: int, gid: int) -> None:
    """Raises `OSError`: then nothing is as it was, and nothing may be run."""
    header, halves = _Header(_VERSION, 0), (_Half * 2)()
    _check(_libc.capget(ctypes.byref(header), halves), "capget")
    kept = halves[0].permitted & 1 << _NET_BIND_SERVICE
    _narrow_for_good()
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    _check(_prctl(_KEEPCAPS, 1), "prctl")
    os.setresuid(uid, uid, uid)
    halves = (_Half * 2)(_Half(kept, kept, kept), _Half(0, 0, 0))
    _check(_libc.capset(ctypes.byref(header), halves), "capset")
    if kept:
        _check(_prctl(_CAP_AMBIENT, _AMBIENT_RAISE, _NET_BIND_SERVICE), "prctl")
    _check(_prctl(_NO_NEW_PRIVS, 1), "prctl")


def show(above: str) -> None:
    """Have a directory at `SEEN`, which anybody may enter, for us and who we start."""
    os.makedirs(SEEN, 0o755, exist_ok=True)
    _check(_libc.unshare(_NEWNS), "unshare")
    for what, where, how in ((None, b"/", _REC | _SLAVE), (above.encode(), SEEN.encode(), _BIND)):
        _check(_libc.mount(what, where, None, ctypes.c_ulong(how), None), "mount")


def run(command: list[str], program: int) -> None:
    """By its path where we may, else by ``program``, which was opened when we might."""
    try:
        os.execv(command[0], command)
    except OSError as err:
        if err.errno != errno.EACCES:
            raise
        if os.pread(program, 2, 0) == b"#!":
            os.set_inheritable(program, True)  # its interpreter reads it
        os.execve(program, command, os.environ)


if __name__ == "__main__":
    directory, user, group, hidden, *argv = sys.argv[1:]
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    try:
        if hidden != "-":
            show(hidden)
            directory = os.path.join(SEEN, os.path.basename(directory))
        os.chdir(directory)
        opened = os.open(argv[0], os.O_RDONLY | os.O_CLOEXEC)
        if user != "-":
            become(int(user), int(group))
        run(argv, opened)
    except OSError as error:
        sys.exit(f"[critical] {error.strerror}: {error.filename or argv[0]}")
