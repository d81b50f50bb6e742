"""What engines refuse of a host, known by its content, and how a host is made without it.

Envoy takes or refuses the scope of a host as a whole, and doesn't say which part it means.  So
parts (a rule of a route, a path of an Ingress) are tried as a host that no request has: what is
refused of these is known wherever it comes up again, until it is written otherwise.  In its place
its paths are answered with a 500.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, cast

import msgspec

from akocore._fast.diff import fingerprint
from akocore.model import HostModel, Pool, Route
from akocore.model_http import HttpHost, HttpRule

__all__ = ["Host", "Name", "Part", "Trials", "digest_of", "name_of", "parts_of", "whereabouts"]

Host = HttpHost | HostModel
Part = HttpRule | Route
Name = tuple[bool, str] | tuple[str, str, bool]
"""Of a rule: whether it is of gRPC, its name; of an Ingress: host, path, whether it is exact."""

_KEPT: Final = 10_000  # refused parts that are remembered
_PREFIX: Final = "trial_"  # no host of anybody has an underscore
_NOBODY: Final = ".akocore.invalid"


class Trials:
    """``bad``: why something is refused, by its digest.  While it is empty nothing is looked up."""

    def __init__(self) -> None:
        self.bad: dict[str, str] = {}

    def learn(self, scope: str, why: str) -> tuple[str, str] | None:
        """An engine refuses a scope: digest and `whereabouts`, if it is a trial not known yet."""
        host = scope.rpartition("/")[2]
        if not host.startswith(_PREFIX) or not host.endswith(_NOBODY):
            return None
        digest, _, where = host[len(_PREFIX) : -len(_NOBODY)].partition("-")
        if digest in self.bad:
            return None
        self.bad[digest] = why
        if len(self.bad) > _KEPT:
            del self.bad[next(iter(self.bad))]
        return digest, where

    def each(self, host: Host, *, all_of_it: bool) -> list[Host]:
        """The hosts by which the parts of one are tried; else just those that are refused."""
        found: dict[str, Part] = {}
        for part in parts_of(host):
            for one in (part, _closed(part)):
                digest = digest_of(one)
                if all_of_it or digest in self.bad:
                    found[digest] = one
        return [_alone(host, digest, (part,)) for digest, part in found.items()]

    @staticmethod
    def together(host: Host, parts: Sequence[Part]) -> tuple[str, Host]:
        """The digest of some parts, and the host by which they are tried as one."""
        digest = fingerprint("".join(map(digest_of, parts)).encode()).hex()
        return digest, _alone(host, digest, parts)

    def good(self, host: Host, left: Mapping[str, str]) -> list[tuple[Part, Part]]:
        """(a part, what is served of it): itself, a 500, or nothing as its match is at fault.

        ``left``: digests that this host does without, though they are good alone.
        """
        out: list[tuple[Part, Part]] = []
        for part in parts_of(host):
            for one in (part, _closed(part)):
                digest = digest_of(one)
                if digest not in self.bad and digest not in left:
                    out.append((part, one))
                    break
        return out

    def without_bad(self, host: Host, left: Mapping[str, str]) -> Host:
        """A host as good as it is known to be."""
        return _made(host, host.host, [served for _, served in self.good(host, left)])

    def left_out(self, host: Host, left: Mapping[str, str]) -> dict[Name, str]:
        """Which parts a host does without → why."""
        out: dict[Name, str] = {}
        for part in parts_of(host):
            digest = digest_of(part)
            why = self.bad.get(digest) or left.get(digest)
            if why is not None:
                out[name_of(host, part)] = why
        return out


def parts_of(host: Host) -> Sequence[Part]:
    """What of a host can be left out."""
    return host.rules if isinstance(host, HttpHost) else host.routes


def name_of(host: Host, part: Part) -> Name:
    """By which its owner is found."""
    if isinstance(part, HttpRule):
        return part.grpc, part.name
    return host.host, part.path, part.exact


def digest_of(thing: Part | Host) -> str:
    """Of its content: 32 letters."""
    return fingerprint(msgspec.msgpack.encode(thing)).hex()


def whereabouts(host: str) -> str:
    """What the name of a trial has of the host whose it is: 8 letters."""
    return fingerprint(host.encode()).hex()[:8]


def _alone(host: Host, digest: str, parts: Iterable[Part]) -> Host:
    return _made(host, f"{_PREFIX}{digest}-{whereabouts(host.host)}{_NOBODY}", parts)


def _made(host: Host, name: str, parts: Iterable[Part]) -> Host:
    if isinstance(host, HttpHost):
        return HttpHost(name, cast(tuple[HttpRule, ...], tuple(parts)))
    routes = cast(tuple[Route, ...], tuple(parts))
    return msgspec.structs.replace(host, host=name, routes=routes)


def _closed(part: Part) -> Part:
    if isinstance(part, HttpRule):
        return HttpRule(name=part.name, match=part.match, answer=500, grpc=part.grpc)
    return Route(part.path, part.exact, Pool(part.pool.name, None), answer=500)
