"""Memory that a storm has needed goes back to the system when it is over.

glibc keeps freed memory for later use, below what is still in use also for good: after 10,000
Ingresses were read or their statuses written, some 15 MiB (see malloc_trim(3), M_TRIM_THRESHOLD).
"""

from __future__ import annotations

import ctypes

__all__ = ["Slack"]

_WORTH_IT = 1000


class Slack:
    """`look` every now and then; it costs some milliseconds when it does something."""

    def __init__(self) -> None:
        self._done = 0
        libc = ctypes.CDLL(None)
        self._trim = getattr(libc, "malloc_trim", None)  # None: another libc than glibc

    def look(self, done: int, *, busy: bool) -> None:
        """``done``: objects taken in and written so far; ``busy``: there are more just now."""
        if self._trim is None or busy or done - self._done < _WORTH_IT:
            return
        self._done = done
        self._trim(0)
