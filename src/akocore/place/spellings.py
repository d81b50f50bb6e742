"""The names that a virtual service may have: AKO's, which another's may be too, and its own ones.

AKO puts names together of a setting and a host, or of a namespace and a name, with a dash between
them, so two may come to one name.  Their *keys* differ; who comes later has a hash of it in its
name.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha1
from itertools import count

__all__ = ["USUAL", "host_key", "shard_key", "spelling_of", "spellings"]

USUAL = 3  # spellings: further ones are for names that were chosen to be in the way
_SHORT = 8


def host_key(setting: str, host: str) -> str:
    """The key of a host that has a virtual service of its own."""
    return f"Host/{setting}/{host}"


def shard_key(setting: str, shard: int) -> str:
    """The key of a shard of a setting."""
    return f"Shard/{setting}/{shard}"


def spellings(plain: str, key: str) -> Iterator[str]:
    """The names of ``key``, best first, without end: others are only taken by who wants them so."""
    yield plain
    digest = _digest(key)
    yield f"{plain}-{digest[:_SHORT]}"
    for end in count():
        yield f"{plain}-{digest}{end or ''}"


def spelling_of(name: str, key: str) -> str:
    """The plain name that ``name`` is one of the first spellings of, if it is ``key``'s."""
    digest = _digest(key)
    for end in (f"-{digest}", f"-{digest[:_SHORT]}"):
        if name.endswith(end):
            return name.removesuffix(end)
    return name


def _digest(key: str) -> str:
    return sha1(key.encode("utf-8", "surrogatepass"), usedforsecurity=False).hexdigest()
