"""Files that are long to read: one after another, in a thread, beside the small ones.

Nobody's small file waits for somebody's big one.  A file that is edited again while it is read is
read again, when it has rested nine times as long as that took, though not for more than a second
if that is longer than it took: so it takes a tenth of one processor, and a huge one half of it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterable
from typing import Generic, TypeVar

from akocore.collector import left_alone

__all__ = ["BigFiles"]

_T = TypeVar("_T")
_QUICK_S = 0.005  # who was read in less needs no rest
_REST, _LONGEST_REST_S = 9, 1.0


class BigFiles(Generic[_T]):
    """Paths to read.  ``read(path)`` is called in a thread; ``ready()`` when `take` has more."""

    def __init__(
        self,
        read: Callable[[str], list[_T]],
        ready: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read = read
        self._ready = ready
        self._clock = clock
        self._waiting: dict[str, float] = {}  # path → since when
        self._after: dict[str, set[str]] = {}  # path → those that are to be read before it
        self._rests: dict[str, float] = {}  # path → until when
        self._reading = ""
        self._found: list[tuple[str, list[_T], float]] = []
        self._due = asyncio.Event()
        self._task = asyncio.create_task(self._run())

    def __contains__(self, path: str) -> bool:
        return (
            path in self._waiting
            or path == self._reading
            or any(path == one for one, _, _ in self._found)
        )

    def __len__(self) -> int:
        return len(self._waiting) + bool(self._reading) + len(self._found)

    def add(self, paths: Collection[str], then: Iterable[str], at: float) -> None:
        """Read these; ``then``: those that are to be read when these are."""
        for path in paths:
            self._waiting.setdefault(path, at)
        for path in then:
            self._waiting.setdefault(path, at)
            self._after.setdefault(path, set()).update(one for one in paths if one != path)
        self._due.set()

    def take(self) -> list[tuple[list[_T], float]]:
        """What was found in files that have been read, and since when they were to be."""
        found, self._found = self._found, []
        return [(what, at) for _, what, at in found]

    def close(self) -> None:
        self._task.cancel()

    async def _run(self) -> None:
        while True:
            now = self._clock()
            self._rests = {path: until for path, until in self._rests.items() if until > now}
            path = next((one for one in self._waiting if self._may_go(one)), None)
            if path is None:
                self._due.clear()
                rest = min((self._rests[p] for p in self._waiting if p in self._rests), default=0.0)
                try:
                    async with asyncio.timeout(rest - now if rest else None):
                        await self._due.wait()
                except TimeoutError:
                    pass
                continue
            # Never in none of the three: other threads look, too.
            self._reading, at = path, self._waiting[path]
            del self._waiting[path]
            self._after.pop(path, None)
            with left_alone():
                found = await asyncio.to_thread(self._read, path)
            self._found.append((path, found, at))
            took, self._reading = self._clock() - now, ""
            if took > _QUICK_S:
                rest = max(took, min(_REST * took, _LONGEST_REST_S))
                self._rests[path] = now + took + rest
            self._ready()

    def _may_go(self, path: str) -> bool:
        if path in self._rests:
            return False
        first = self._after.get(path, ())
        return not any(one in self._waiting or one == self._reading for one in first)
