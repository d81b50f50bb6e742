"""How many open files and how much memory an Envoy has here, and what that leaves for clients.

An Envoy that can open no file more ends, with all that it serves:
https://github.com/envoyproxy/envoy/issues/39055
"""

from __future__ import annotations

import contextlib
import resource
from pathlib import Path
from typing import Final

from msgspec import Struct

__all__ = ["Room", "files_of", "here"]

_MIB: Final = 1 << 20
_KEPT_FILES: Final = 1024  # listeners, endpoints asked for health, xDS, its own
_KEPT_MEMORY: Final = 160 * _MIB  # a pod's agent and router
_STEP: Final = 16 * _MIB  # the heap's size is in the bootstrap, which must not change for nothing


class Room(Struct, frozen=True):
    """``files``: RLIMIT_NOFILE; ``memory``: bytes, 0: not known."""

    files: int
    memory: int = 0

    def connections(self, asked: int) -> int:
        """How many of clients are allowed at once, at most ``asked``.

        Each takes a file, and one more to its endpoint; the third is for those of HTTP/2, which
        have many endpoints at once.
        """
        kept = min(_KEPT_FILES, self.files // 4)
        return max(1, min(asked, (self.files - kept) // 3))

    def cut(self, asked: int) -> str:
        """Why that is less than ``asked``; "": it isn't."""
        allowed = self.connections(asked)
        if allowed == asked:
            return ""
        return (
            f"{allowed} connections instead of {asked}: {self.files} open files are allowed."
            f" Raise the hard limit (ulimit -Hn, LimitNOFILE=) to {3 * asked + _KEPT_FILES}."
        )

    def heap(self, *, alone: bool) -> int:
        """Bytes that an Envoy's heap may have; 0: no limit.

        ``alone``: but for an agent and a router nobody else needs the memory; else it has half.
        """
        half = self.memory // 2
        most = max(half, self.memory - _KEPT_MEMORY) if alone else half
        return most // _STEP * _STEP


def here() -> Room:
    """What an Envoy has that is started here, with as many open files as are allowed."""
    return Room(_number(resource.getrlimit(resource.RLIMIT_NOFILE)[1]), _memory())


def files_of(pid: int) -> tuple[int, int]:
    """Open files of a process, and its limit; (0, 0): neither is known."""
    try:
        used = Path(f"/proc/{pid}/fd").stat().st_size  # since Linux 6.2
        used = used or len(list(Path(f"/proc/{pid}/fd").iterdir()))
        for line in Path(f"/proc/{pid}/limits").read_text("ascii", "replace").splitlines():
            if line.startswith("Max open files"):
                return used, int(line.split()[3])
    except (OSError, ValueError):
        pass
    return 0, 0


def _number(limit: int) -> int:
    return 1 << 30 if limit == resource.RLIM_INFINITY else limit


def _memory() -> int:
    """Of the machine, or less where a control group of ours has less."""
    found = []
    with contextlib.suppress(OSError, ValueError, IndexError):
        text = Path("/proc/meminfo").read_text("ascii")
        found.append(int(text.split("MemTotal:")[1].split()[0]) << 10)
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text("utf-8").splitlines():
            _, kinds, path = line.split(":", 2)
            if not kinds:
                found += _limits(Path("/sys/fs/cgroup"), path, "memory.max")
            elif "memory" in kinds.split(","):
                found += _limits(Path("/sys/fs/cgroup/memory"), path, "memory.limit_in_bytes")
    return min(found, default=0)


def _limits(root: Path, path: str, name: str) -> list[int]:
    """Those of a control group and of all that it is in, as far as they can be seen."""
    found = []
    own = root / path.lstrip("/")
    for at in (own, *own.parents):
        if root not in (at, *at.parents):
            break
        with contextlib.suppress(OSError, ValueError):
            found.append(int((at / name).read_text("ascii")))  # "max": there is none
    return found
