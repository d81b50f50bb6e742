"""Stretches of work that Python's cycle collector leaves alone.

What is read and made of a big object has no cycles and is gone by its counts.  But there is enough
of it to have the collector walk over all that lives, several times, tens of milliseconds each, in
which nobody gets on.  It looks again when the stretch is over.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["left_alone"]

_open = 0


@contextmanager
def left_alone() -> Iterator[None]:
    """``with`` it, in the event loop's thread: nothing is collected meanwhile."""
    global _open
    if not _open:
        gc.disable()
    _open += 1
    try:
        yield
    finally:
        _open -= 1
        if not _open:
            gc.enable()
