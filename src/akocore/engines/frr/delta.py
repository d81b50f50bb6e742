"""From one rendered configuration to another by the changed lines alone.  Pure.

Only texts of `akocore.engines.frr.config.render` are understood; tests prove on a real FRR that
the lines lead to what a fresh start with the new text leads to.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from functools import lru_cache

from msgspec import Struct

__all__ = ["Delta", "delta", "is_secret", "to_refresh"]

Path = tuple[str, ...]
"""A line with the lines of the blocks around it, outermost first."""

# One line at most that begins so: a new value replaces the old one.
_VALUED = re.compile(
    r"(neighbor \S+ (?:remote-as|description|password|ebgp-multihop|advertisement-interval"
    r"|timers connect|timers|bfd profile|maximum-prefix|ttl-security hops)"
    r"|network \S+|hostname|bgp router-id|coalesce-time|match tag"
    r"|set (?:community|large-community|local-preference|tag)"
    r"|detect-multiplier|transmit-interval|receive-interval) "
)
_NEIGHBOR = re.compile(r"neighbor (\S+) (remote-as )?")
_BLOCK = re.compile(r"route-map |router bgp |bfd\Z|profile |address-family ")
_SEPARATORS = ("", "!", "exit", "exit-address-family")
_MAP = re.compile(r"route-map PEER_RM_OUT_(\S+) ")


class Delta(Struct, frozen=True):
    """Lines in order, for a daemon in configuration mode: first ``before``, last ``removed``.

    ``before``: what must go before anything can come.  It and ``removed`` may be gone already.
    """

    before: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.before or self.added or self.removed)


@lru_cache(maxsize=8)  # the new text of one change is the old one of the next
def _paths(text: str) -> Mapping[Path, None]:
    """Every line below its blocks, in order; block ends and separators left out."""
    out: dict[Path, None] = {}
    around: list[str] = []
    for raw in text.splitlines():
        line = raw.strip()
        if line in _SEPARATORS:
            continue
        del around[len(raw) - len(raw.lstrip()) :]
        out[(*around, line)] = None
        around.append(line)
    return out


def _key(path: Path) -> Path:
    """What a line sets: equal for two values of the same thing."""
    valued = _VALUED.match(path[-1])
    return (*path[:-1], valued[1]) if valued else path


def _no(line: str) -> str:
    """The line that takes ``line`` back.  It never repeats a value, which may be a password."""
    if line.startswith("no "):
        return line[len("no ") :]
    valued = _VALUED.match(line)
    if valued and valued[1].endswith(" remote-as"):
        return f"no {valued[1].removesuffix(' remote-as')}"
    return f"no {valued[1] if valued else line}"


def _lines(paths: list[Path]) -> tuple[str, ...]:
    """Flat: blocks are entered and left as the paths need it."""
    out: list[str] = []
    around: Path = ()
    for path in paths:
        *block, line = path
        common = 0
        while common < min(len(around), len(block)) and around[common] == block[common]:
            common += 1
        out += ["exit"] * (len(around) - common)
        out += block[common:]
        around = tuple(block)
        out.append(line)
        if _BLOCK.match(line):
            around = path
    return (*out, *["exit"] * len(around))


def delta(old: str, new: str, attempted: Collection[str] = ()) -> Delta:
    """The lines from ``old`` to ``new``.  New things come first, old things go last.

    ``old`` "" is a daemon without any configuration.  ``attempted``: other texts that it may
    have some lines of, since it was interrupted on the way there.
    """
    texts = [_paths(text) for text in (old, *attempted)]
    possible, want = dict.fromkeys(path for text in texts for path in text), _paths(new)
    before = [
        path
        for path in possible
        if path[-1].startswith("router bgp ") and path not in want  # there can be only one
    ]
    possible = {path: None for path in possible if path[:1] not in before}
    certain = {path for path in possible if all(path in text for text in texts)}
    added = [path for path in want if path not in certain]
    # Of a text that is there as a whole, no two lines set the same.
    keys = {_key(path) for path in (want if attempted else added)}
    gone = [path for path in possible if path not in want and _key(path) not in keys]
    blocks = {path for path in gone if _BLOCK.match(path[-1]) and len(path) == 1}
    neighbors = {
        (path[0], found[1]) for path in gone if (found := _NEIGHBOR.match(path[-1])) and found[2]
    }
    removed = []
    for path in reversed(gone):
        if path[:1] in blocks and len(path) > 1:
            continue  # it goes with its block
        found = _NEIGHBOR.match(path[-1])
        if found and not found[2] and (path[0], found[1]) in neighbors:
            continue  # it goes with its neighbor
        if path[-1].startswith("address-family "):
            continue  # an empty one is none
        removed.append((*path[:-1], _no(path[-1])))
    return Delta(
        before=_lines([(*path[:-1], _no(path[-1])) for path in before]),
        added=_lines(added),
        removed=_lines(removed),
    )


def to_refresh(change: Delta) -> tuple[str, ...]:
    """Peers whose outbound map changed under routes that they have been told; sorted.

    A prefix that comes, goes or gets another map is announced or withdrawn by that alone.
    """
    lines = (*change.added, *change.removed)
    return tuple(sorted({found[1] for line in lines if (found := _MAP.search(line))}))


def is_secret(line: str) -> bool:
    """Whether ``line`` must not be repeated in an error or a log."""
    return " password " in f"{line} "
