"""Run an FRR daemon as the root that we are, with the few capabilities that we have.

``python confined.py COMMAND...``.  FRR's daemons want to become another user and to keep
CAP_SYS_ADMIN, and end where they may not.  As root of a container that has neither, they do all
that a Service Engine needs with NET_ADMIN, NET_RAW and NET_BIND_SERVICE: a seccomp filter answers
their calls that change users and capabilities with success, and nothing is changed.  A filter
and what it stays on for: seccomp(2), linux/filter.h.

This file is run by itself and needs nothing but the standard library.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2
_LOAD, _JUMP_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _DONE = 0x7FFF0000, 0x00050000  # SECCOMP_RET_ALLOW; SECCOMP_RET_ERRNO with 0

# Machine → AUDIT_ARCH_*; setreuid, setregid, setgroups, setresuid, setresgid, capset.
_CALLS = {
    "x86_64": (0xC000003E, (113, 114, 116, 117, 119, 126)),
    "aarch64": (0xC00000B7, (145, 143, 159, 147, 149, 91)),
}


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def confine() -> None:
    """From now on, changing users and capabilities succeeds and does nothing.

    Raises `OSError`; `KeyError` for a machine whose calls are not known here.
    """
    arch, calls = _CALLS[platform.machine()]
    steps = [(_LOAD, 0, 0, 4), (_JUMP_EQUAL, 0, len(calls) + 1, arch), (_LOAD, 0, 0, 0)]
    steps += [(_JUMP_EQUAL, len(calls) - i, 0, call) for i, call in enumerate(calls)]
    steps += [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _DONE)]
    code = b"".join(struct.pack("HBBI", *step) for step in steps)
    buffer = ctypes.create_string_buffer(code, len(code))
    program = _Program(len(steps), ctypes.cast(buffer, ctypes.c_void_p))
    libc = ctypes.CDLL(None, use_errno=True)
    for call in (
        (_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
        (_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0),
    ):
        if libc.prctl(*call) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), "prctl")


if __name__ == "__main__":
    confine()
    os.execvp(sys.argv[1], sys.argv[1:])
