"""Rules of a host that engines refuse, tried one by one: those at fault are left out of it.

Envoy takes or refuses the scope of a host as a whole, and doesn't say which rule it means.  So
each rule is sent as a scope of its own, which no request has; what is refused then is known by its
content, wherever it comes up again, until it is written otherwise.  In its place its paths are
answered with a 500.  A scope that was refused stays published: so all replicas know of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from akocore._fast.diff import fingerprint
from akocore.model_http import HttpHost, HttpRule

__all__ = ["Trials", "digest_of"]

_KEPT: Final = 10_000  # refused rules that are remembered
_PREFIX: Final = "trial-"
_NOBODY: Final = ".akocore.invalid"


class Trials:
    """``bad``: why a rule is refused, by its digest.  While it is empty nothing is looked up."""

    def __init__(self) -> None:
        self.bad: dict[str, str] = {}

    def learn(self, scope: str, why: str) -> str | None:
        """An engine refuses a scope: the rule's digest if it is one of ours, and was not known."""
        host = scope.rpartition("/")[2]
        if not host.startswith(_PREFIX) or not host.endswith(_NOBODY):
            return None
        digest = host[len(_PREFIX) :].partition("-")[0]
        if digest in self.bad:
            return None
        self.bad[digest] = why
        if len(self.bad) > _KEPT:
            del self.bad[next(iter(self.bad))]
        return digest

    def of(self, model: HttpHost, *, all_of_it: bool) -> list[HttpHost]:
        """The hosts by which the rules of one are tried; else just those that are refused."""
        where = fingerprint(model.host.encode()).hex()[:8]
        found: dict[str, HttpRule] = {}
        for rule in model.rules:
            for one in (rule, _closed(rule)):
                digest = digest_of(one)
                if all_of_it or digest in self.bad:
                    found[digest] = one
        return [
            HttpHost(f"{_PREFIX}{digest}-{where}{_NOBODY}", (rule,))
            for digest, rule in found.items()
        ]

    def without_bad(self, model: HttpHost) -> HttpHost:
        """The same; what is refused is answered with a 500, or gone when its match is at fault."""
        rules = []
        for rule in model.rules:
            if digest_of(rule) not in self.bad:
                rules.append(rule)
            elif digest_of(closed := _closed(rule)) not in self.bad:
                rules.append(closed)
        return HttpHost(model.host, tuple(rules))

    def left_out(self, rules: Iterable[HttpRule]) -> dict[tuple[bool, str], str]:
        """Of these, (whether it is of gRPC, the rule's name) → why."""
        said = ((rule, self.bad.get(digest_of(rule))) for rule in rules)
        return {(rule.grpc, rule.name): why for rule, why in said if why is not None}


def digest_of(thing: HttpRule | HttpHost) -> str:
    """Of its content: 32 letters."""
    return fingerprint(msgspec.msgpack.encode(thing)).hex()


def _closed(rule: HttpRule) -> HttpRule:
    return HttpRule(name=rule.name, match=rule.match, answer=500, grpc=rule.grpc)
