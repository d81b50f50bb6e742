"""How many server names an engine may keep that are no host's own.

A certificate is fetched by the name that a client asks for, as it spells it.  Under a wildcard
host, or one for any, and by upper and lower case, that is any number of names, and an engine
keeps some 25 kB for each, more where the certificate is large.  So of these the first learnt goes
when there are too many: the engine asks again when a client does, which costs that handshake a
round trip and no more.  Connections that are open keep the certificate that they have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

__all__ = ["LearntNames"]


_COMMON = 16_384  # bytes of a certificate with its key, in PEM; one of twice that counts twice


class LearntNames:
    """Names that are no host's own, in the order in which an engine learnt them."""

    def __init__(self) -> None:
        self._names: dict[str, int] = {}  # and how many each counts as
        self._sum = 0

    def __len__(self) -> int:
        return len(self._names)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def learn(
        self, names: Iterable[tuple[str, int]], own: Callable[[str], bool], limit: int
    ) -> list[str]:
        """Take in names that are asked for, with the bytes of each; those that must go.

        ``own``: it is a host's own.  Cost: these.
        """
        for name, size in names:
            if not own(name):
                counts = -(-size // _COMMON)
                self._sum += counts - self._names.get(name, 0)
                self._names[name] = counts
        gone: list[str] = []
        over = self._sum - limit
        for name, counts in self._names.items():
            if over <= 0:
                break
            over -= counts
            gone.append(name)
        self.forget(gone)
        return gone

    def forget(self, names: Iterable[str]) -> None:
        """These are asked for no more."""
        for name in names:
            self._sum -= self._names.pop(name, 0)
