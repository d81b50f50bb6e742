"""What happened to whom: a ring of events, each said once, counted when it comes again."""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime

from msgspec import Struct

from akocore.model import Refusal
from akocore.shown import bounded

__all__ = ["Event", "Events"]

log = logging.getLogger(__name__)


class Event(Struct):
    """One event of one object, in the terms of ``events.k8s.io/v1``."""

    object: str  # "Ingress/namespace/name"
    type: str  # Normal or Warning
    reason: str
    note: str
    first: datetime
    last: datetime
    count: int = 1


class Events:
    """The last ``keep`` events; ``on_new`` hears of each once.  A call costs what it is given.

    ``refused``: how many objects have a refusal now, by (kind, reason, whether just a warning).
    """

    def __init__(
        self,
        now: Callable[[], datetime],
        keep: int = 2000,
        on_new: Callable[[Event], None] = lambda _event: None,
    ) -> None:
        self.on_new = on_new
        self.refused: Counter[tuple[str, str, bool]] = Counter()
        self._now = now
        self._keep = keep
        self._ring: OrderedDict[tuple[str, str, str], Event] = OrderedDict()
        self._refused: dict[str, frozenset[tuple[str, str]]] = {}
        self._counted: dict[str, Counter[tuple[str, str, bool]]] = {}

    def __iter__(self) -> Iterator[Event]:
        return iter(self._ring.values())

    def say(self, object_: str, type_: str, reason: str, note: str) -> None:
        """An event; the same one again moves to the end and counts up."""
        note = bounded(note)
        at, now = (object_, reason, note), self._now()
        event = self._ring.pop(at, None)
        if event is None:
            event = Event(object_, type_, reason, note, now, now)
            level = logging.WARNING if type_ == "Warning" else logging.INFO
            log.log(level, "event=%s object=%s note=%r", reason, object_, note)
            self.on_new(event)
        else:
            event.last, event.count = now, event.count + 1
        self._ring[at] = event
        while len(self._ring) > self._keep:
            self._ring.popitem(last=False)

    def refusals(self, object_: str, refusals: Iterable[Refusal]) -> None:
        """All that an object is refused now: what is new is said, and when it is over."""
        refusals = tuple(refusals)
        now = frozenset((r.reason, _note(object_, r)) for r in refusals)
        before = self._refused.get(object_, frozenset())
        if now == before:
            return
        self._count(object_, refusals)
        for reason, note in sorted(now - before):
            self.say(object_, "Warning", reason, note)
        if now:
            self._refused[object_] = now
        else:
            del self._refused[object_]
            self.say(object_, "Normal", "Accepted", "Everything that it asks for is served.")

    def forget(self, object_: str) -> None:
        """The object is gone."""
        self._refused.pop(object_, None)
        self._count(object_, ())

    def _count(self, object_: str, refusals: tuple[Refusal, ...]) -> None:
        told = {(r.object, r.reason, r.warning) for r in refusals}  # a file may have many objects
        now = Counter((o.partition("/")[0], reason, warning) for o, reason, warning in told)
        self.refused.subtract(self._counted.pop(object_, {}))
        self.refused.update(now)
        if now:
            self._counted[object_] = now


def _note(object_: str, refusal: Refusal) -> str:
    """What is said of a refusal: where in the object, or in which one of a file, and what to do."""
    one_of_many = object_.startswith("File/") and refusal.object != object_
    where = f"{refusal.object if one_of_many else ''} {refusal.field}".strip()
    return f"{where}: {refusal.remedy}" if where else refusal.remedy
