"""How much of its open files an Envoy has: told to it, as it doesn't see that for itself."""

from __future__ import annotations

from typing import Final

from akocore.engines.envoy.room import files_of

__all__ = ["FILES", "tell_files"]

FILES: Final = "files"
"""Where it is told, from the directory that it runs in."""


def tell_files(pid: int) -> float:
    """What a process is to be told: 0 while it has less than half, then in steps of 1 %."""
    used, limit = files_of(pid)
    share = min(1.0, used / limit) if limit else 0.0
    return round(share, 2) if share >= 0.5 else 0.0
