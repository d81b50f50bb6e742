"""Follows each batch from its first event to the last acknowledgement of what it published.

The hot path tells only what it knows (`Watch.batch`, `published`, `acknowledged`); each call
costs a constant, or what it settles.  Listeners make metrics or traces of it; without one
nothing is kept.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol

from msgspec import Struct, field

from akocore.kube.objects import Batch

__all__ = ["Listener", "Publication", "Seen", "Watch"]

_FOLLOWED = 4096  # publications of a group at once: engines that hang can't fill the memory


class Publication(Struct, gc=False):
    """One publication to one group.  Times are seconds on the monotonic clock."""

    group: str
    sequence: int
    began: float
    ended: float
    pushed: bool  # an engine that clients can meet was there to get it
    of_batch: float = 0.0  # when the batch was first seen that this is the last of; else 0
    acknowledged: float = 0.0  # 0: not yet, or given up


class Seen(Struct):
    """One batch and what became of it.  Times as in `Publication`."""

    objects: int
    at: float  # the first of it was seen
    began: float
    ended: float = 0.0
    hosts: int = 0  # made into resources again
    encode_s: float = 0.0
    publications: list[Publication] = field(default_factory=list)
    open: int = 0  # publications that are not settled

    @property
    def publish_s(self) -> float:
        return sum(p.ended - p.began for p in self.publications)


class Listener(Protocol):
    """Who wants to know."""

    def applied(self, seen: Seen) -> None:
        """A batch was followed to its publications."""
        ...

    def acknowledged(self, publication: Publication) -> None:
        """Every engine that clients can meet has settled it."""
        ...

    def over(self, seen: Seen) -> None:
        """All of a batch's publications are settled, or given up."""
        ...


class _Spent(Protocol):
    """Totals that are counted where the work is done: `akocore.realise.Realiser`."""

    encode_s: float
    realised: int


class Watch:
    """``wanted(group)``: whether engines of a group will come, if none is there."""

    def __init__(
        self, listeners: Iterable[Listener] = (), now: Callable[[], float] = time.monotonic
    ) -> None:
        self.wanted: Callable[[str], bool] = lambda _group: True
        self._listeners = list(listeners)
        self._now = now
        self._current: Seen | None = None
        self._waiting: dict[str, deque[tuple[Publication, Seen | None]]] = {}
        self._deserted: set[str] = set()  # groups without an engine that clients can meet

    @contextmanager
    def batch(self, batch: Batch, spent: _Spent) -> Iterator[None]:
        """``with`` it: the batch is followed to its publications."""
        if not self._listeners or not (batch.changes or batch.refusals):
            yield
            return
        encode_s, realised = spent.encode_s, spent.realised
        seen = self._current = Seen(len(batch.changes), batch.at, self._now())
        try:
            yield
        finally:
            self._current = None
        seen.ended = self._now()
        seen.encode_s = spent.encode_s - encode_s
        seen.hosts = spent.realised - realised
        for listener in self._listeners:
            listener.applied(seen)
        self._settle(seen, 0)

    def published(self, group: str, sequence: int, began: float, pushed: bool) -> None:
        """A group's catalog has changed.  ``pushed``: to an engine that clients can meet."""
        if not self._listeners:
            return
        waiting = self._waiting.setdefault(group, deque())
        if not (pushed or self.wanted(group)):
            self._give_up(waiting)
            return
        one, seen = Publication(group, sequence, began, self._now(), pushed), self._current
        if seen is not None:
            one.of_batch = seen.at
            for earlier in seen.publications:
                if earlier.group == group:
                    earlier.of_batch = 0.0
            seen.publications.append(one)
        if len(waiting) >= _FOLLOWED:
            return  # the oldest are the ones to know about
        if seen is not None:
            seen.open += 1
        waiting.append((one, seen))

    def acknowledged(self, group: str, number: int | None) -> None:
        """All engines of a group that clients can meet have this; None: there is none."""
        waiting = self._waiting.get(group)
        if not waiting:
            return
        if number is None:
            if not self.wanted(group):
                self._give_up(waiting)
            elif group not in self._deserted:
                self._deserted.add(group)
                for one, _ in waiting:
                    one.pushed = False  # to be sent again to the next one
            return
        self._deserted.discard(group)
        if waiting[0][0].sequence > number:
            return
        now = self._now()
        while waiting and waiting[0][0].sequence <= number:
            one, seen = waiting.popleft()
            one.acknowledged = now
            for listener in self._listeners:
                listener.acknowledged(one)
            self._settle(seen, 1)

    def unacknowledged(self, group: str) -> tuple[int, float]:
        """How many publications of a group are not settled, and for how long the oldest."""
        waiting = self._waiting.get(group)
        return (len(waiting), self._now() - waiting[0][0].ended) if waiting else (0, 0.0)

    def close(self) -> None:
        """Nothing will be acknowledged any more."""
        for waiting in self._waiting.values():
            self._give_up(waiting)

    def _give_up(self, waiting: deque[tuple[Publication, Seen | None]]) -> None:
        while waiting:
            self._settle(waiting.popleft()[1], 1)

    def _settle(self, seen: Seen | None, count: int) -> None:
        if seen is not None:
            seen.open -= count
            if not seen.open and seen is not self._current:
                for listener in self._listeners:
                    listener.over(seen)
