"""How many server names an engine may keep that are no host's own.

A certificate is fetched by the name that a client asks for, as it spells it.  Under a wildcard
host, or one for any, and by upper and lower case, that is any number of names, and an engine
keeps some 25 kB for each.  So of these the first learnt goes when there are too many: the engine
asks again when a client does, which costs that handshake a round trip and no more.  Connections
that are open keep the certificate that they have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice

__all__ = ["LearntNames"]


class LearntNames:
    """Names that are no host's own, in the order in which an engine learnt them."""

    def __init__(self) -> None:
        self._names: dict[str, None] = {}

    def __len__(self) -> int:
        return len(self._names)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def learn(self, names: Iterable[str], own: Callable[[str], bool], limit: int) -> list[str]:
        """Take in names that are asked for; those that must go.  ``own``: it is a host's own.

        Cost: these.
        """
        for name in names:
            if name not in self._names and not own(name):
                self._names[name] = None
        gone = list(islice(self._names, max(len(self._names) - limit, 0)))
        self.forget(gone)
        return gone

    def forget(self, names: Iterable[str]) -> None:
        """These are asked for no more."""
        for name in names:
            self._names.pop(name, None)
