"""How many files a controller may have open."""

from __future__ import annotations

import resource

__all__ = ["as_many_as_allowed"]


def as_many_as_allowed() -> int:
    """Raise the limit of open files to what the administrator allows; that."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return most
