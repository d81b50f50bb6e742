"""What of a made-up object is asked for, and what it must answer.

Who is served to the letter answers at its own host: a plain object's Service with a 200, one
with an edge anything but "no such host", "no such path" or nothing at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec
from msgspec import Struct

from akocore import status, status_gateway
from akocore.kube.objects import Change
from akocore.serve import Serve
from fuzz.judge import Made

__all__ = ["Visit", "visits"]

_SURE: Final = frozenset({"s1", "s3"})  # their endpoints are nobody's to say
_MOVED: Final = ("spec.parentRefs", "spec.hostnames", "spec.useDefault", "spec.ingressClass")


class Visit(Struct, frozen=True):
    """A question, and which answers are right; None: any, as long as canaries answer."""

    what: str
    port: int
    host: str
    path: str
    wanted: Callable[[int], bool] | None
    method: str = "GET"


def _fine(code: int) -> bool:
    return code == 200


def _there(code: int) -> bool:
    return code not in (0, 404)


def _can_be_asked(path: str) -> bool:
    """Whether Envoy leaves it in a request as it is (it escapes some letters, and others not)."""
    plain = path.startswith("/") and path.isascii() and path.isprintable() and len(path) < 2000
    return plain and not any(one in path for one in (*'%#?\\ "<>^`{|}', "//", "/."))


def visits(serve: Serve, one: Change, made: Made) -> Iterator[Visit]:
    """What to ask of an object that was just applied."""
    if one.key not in serve.reconciler.store.all(one.kind):
        return
    spec = made.document.get("spec")
    if one.kind == "HTTPRoute":
        yield from _of_route(serve, one, made, spec)
    elif one.kind == "Ingress":
        yield from _of_ingress(serve, one, made, spec)


def _judged(made: Made, host: str, names: list[str], accepted: bool) -> Any:
    own = host.endswith(".own") and "wild" not in made.edges
    moved = any(edge.startswith(_MOVED) for edge in made.edges)
    if not accepted or not own or moved or not names or not _SURE.issuperset(names):
        return None
    return _there if made.edges else _fine


def _of_route(serve: Serve, one: Change, made: Made, spec: Any) -> Iterator[Visit]:
    if (spec.get("parentRefs") or [{}])[0].get("sectionName") != "http":
        return
    accepted = status_gateway.refusals(serve.reconciler, one.kind, one.key) == []
    for rule in spec.get("rules", ())[:3]:
        names = [ref["name"] for ref in rule.get("backendRefs", ())]
        match = (rule.get("matches") or [{}])[0]
        path = match.get("path", {})
        simple = path.get("type") != "RegularExpression" and not set(match) - {"path"}
        if not _can_be_asked(value := path.get("value", "/")):
            continue
        for host in (spec.get("hostnames") or ["x"])[:2]:
            wanted = _judged(made, host, names, accepted and simple)
            visit = Visit("HTTPRoute", 80, host.replace("*", "any"), value[:1000], wanted)
            yield visit
            if any("cors" in one for one in rule.get("filters", ())):
                yield msgspec.structs.replace(visit, method="OPTIONS", wanted=None)


def _of_ingress(serve: Serve, one: Change, made: Made, spec: Any) -> Iterator[Visit]:
    accepted = status.ingress_refusals(serve.reconciler, one.key) == []
    if spec.get("tls") or spec.get("ingressClassName") != "avi-lb":  # another class, another port
        accepted = False
    for rule in spec.get("rules", ())[:3]:
        host = rule.get("host") or "x"
        for path in (rule.get("http") or {}).get("paths", ())[:3]:
            service = path["backend"].get("service") or {}
            if not _can_be_asked(value := path.get("path", "/")) or not service:
                continue
            wanted = _judged(made, host, [service["name"]], accepted)
            yield Visit("Ingress", 0, host.replace("*", "any"), value[:1000], wanted)
