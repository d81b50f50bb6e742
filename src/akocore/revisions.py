"""What was received, and what was published after it: so replicas can compare what engines have.

Each replica numbers its own publications, as it batches what it receives in its own way.  What
two replicas have in common is the cluster: each kind of object is one ordered stream of
resourceVersions (KEP-5504), and the model is a function of the objects.  So an engine's state is
told as *how far in each stream its replica was* when it published what the engine has
acknowledged.  Another replica that needs an engine to have a publication of its own asks whether
that reaches as far as the objects behind it.

One number would not do: having seen version 100 of an Ingress says nothing of a Service's version
99, which comes by another stream; and a quiet stream's number stands still for a minute.  So a
replica *claims* by how far it has read each stream, and *demands* only versions of objects that
it has really seen there.  Whoever reads the same stream gets there too.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping

from msgspec import Struct

__all__ = ["Received", "Revisions"]

Versions = Mapping[str, int]
"""Kind → resourceVersion."""

_MARKS = 1000


class Received(Struct, frozen=True):
    """How far a source has come.  ``read``: in each stream; ``seen``: the last object there."""

    read: dict[str, int]
    seen: dict[str, int]


_NOTHING = Received({}, {})


class Mark(Struct):
    """A moment: what had been received, and the last publication of each group then."""

    received: Received
    published: Mapping[str, int]


class Revisions:
    """The last marks of one replica, oldest first.  Costs logarithms of their number."""

    def __init__(self) -> None:
        self._marks: list[Mark] = []

    def mark(self, received: Received, published: Mapping[str, int]) -> bool:
        """All that was received is published by these numbers; whether that is news."""
        last = self._marks[-1] if self._marks else None
        if last is not None and last.published == published:
            # Nothing new came of it: nobody need have it, but whoever has the rest has this too.
            if last.received.read == received.read:
                return False
            last.received = Received(received.read, last.received.seen)
            return True
        self._marks.append(Mark(received, published))
        if len(self._marks) > _MARKS:
            del self._marks[: _MARKS // 2]
        return True

    @property
    def last(self) -> Received:
        """How far we are; ``seen``: of what came to something."""
        return self._marks[-1].received if self._marks else _NOTHING

    def published(self, group: str) -> int:
        """The last publication of a group that a mark covers."""
        return self._marks[-1].published.get(group, 0) if self._marks else 0

    def had(self, group: str, number: int) -> Versions:
        """What an engine has that has acknowledged our publication ``number``."""
        at = bisect_left(self._marks, True, key=lambda m: m.published.get(group, 0) > number)
        return self._marks[at - 1].received.read if at else {}

    def number(self, group: str, has: Versions) -> int:
        """Our publication that an engine has which has that much; 0: none that we remember."""
        at = bisect_left(self._marks, True, key=lambda m: not reaches(has, m.received.seen))
        return self._marks[at - 1].published.get(group, 0) if at else 0


def reaches(has: Versions, wanted: Versions) -> bool:
    """Whether one is as far as the other in every stream."""
    return all(has.get(kind, 0) >= version for kind, version in wanted.items())
