"""Host names of listeners and routes: where they meet, and which of several is meant."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["intersection", "most_specific", "overlaps"]


def _covers(wide: str, host: str) -> bool:
    """Whether ``wide`` ("": any, "*.a": one label more or several) stands for all of ``host``."""
    if not wide or wide == host:
        return True
    return wide.startswith("*.") and host.endswith(wide[1:]) and host != wide[2:]


def overlaps(a: str, b: str) -> bool:
    return _covers(a, b) or _covers(b, a)


def intersection(listener: str, hostnames: Iterable[str]) -> list[str]:
    """The hosts that a route has on a listener: of each pair the more specific one."""
    listener = listener.lower()
    named = list(dict.fromkeys(host.lower() for host in hostnames))
    if not named:
        return [listener]
    out = []
    for host in named:
        if _covers(listener, host):
            out.append(host)
        elif _covers(host, listener):
            out.append(listener)
    return list(dict.fromkeys(out))


def most_specific(host: str, among: Iterable[str]) -> str | None:
    """Of the names that stand for all of ``host``, the one that a request for it means."""
    return max((one for one in among if _covers(one, host)), key=_weight, default=None)


def _weight(host: str) -> tuple[int, int]:
    """An exact name goes before any wildcard, the longer one of these before the shorter."""
    return (0 if not host else 1 if host.startswith("*.") else 2, len(host))
