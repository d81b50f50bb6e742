"""Host names of listeners and routes: where they meet, and which of several is meant."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

__all__ = ["intersection", "is_hostname", "most_specific"]

_LABEL: Final = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
_HOST: Final = re.compile(rf"(?=.{{1,253}}\Z)(\*\.)?{_LABEL}(\.{_LABEL})*\Z")
_DIGITS: Final = re.compile(r"[0-9]+(\.[0-9]+)*\Z")


def is_hostname(text: str) -> bool:
    """Whether it is a DNS name, perhaps with ``*.`` in front, and no address."""
    return bool(_HOST.match(text.lower())) and not _DIGITS.match(text)


def _covers(wide: str, host: str) -> bool:
    """Whether ``wide`` ("": any, "*.a": one label more or several) stands for all of ``host``."""
    if not wide or wide == host:
        return True
    return wide.startswith("*.") and host.endswith(wide[1:]) and host != wide[2:]


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
