"""Which listeners a route attaches to, and under which hosts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from msgspec import Struct

from akocore.kube.gateway_objects import GATEWAY_API, ParentReference
from akocore.kube.meta import LabelSelector
from akocore.shown import quoted
from akocore.translate.gateway_api.found import ListenerId
from akocore.translate.gateway_api.hostnames import intersection
from akocore.translate.gateway_api.labels import selects
from akocore.translate.gateway_api.listeners import ListenerView

__all__ = ["Attached", "Parent", "allows_namespace", "attach", "parent_of"]

Parent = tuple[str, str]
"""(Gateway or ListenerSet, key)."""

_HAS_HOSTS = ("HTTPRoute", "GRPCRoute", "TLSRoute")


class Attached(Struct, frozen=True, gc=False):
    """What one parentRef comes to: hosts by listener, or the reason why there are none."""

    hosts: dict[ListenerId, tuple[str, ...]]
    reason: str = "Accepted"
    message: str = ""

    @property
    def accepted(self) -> bool:
        return self.reason == "Accepted"


def parent_of(ref: ParentReference, namespace: str) -> Parent | None:
    """Whom a parentRef means; None: nothing that can be ours."""
    group = GATEWAY_API if ref.group is None else ref.group
    kind = ref.kind or "Gateway"
    if group != GATEWAY_API or kind not in ("Gateway", "ListenerSet"):
        return None
    return kind, f"{ref.namespace or namespace}/{ref.name}"


def allows_namespace(
    from_: str,
    selector: LabelSelector | None,
    own: str,
    namespace: str,
    labels: Callable[[], Mapping[str, str]],
) -> bool:
    """Whether an object of ``namespace`` may join one of ``own``."""
    match from_:
        case "All":
            return True
        case "Same":
            return own == namespace
        case "Selector":
            return selects(selector, labels())
        case _:
            return False


def attach(
    kind: str,
    namespace: str,
    hostnames: tuple[str, ...],
    ref: ParentReference,
    listeners: Iterable[ListenerView],
    labels: Callable[[], Mapping[str, str]],
) -> Attached:
    """A route's parentRef against the listeners of that parent.  Cost: these.

    ``labels``: of the route's namespace.
    """
    meant = [
        one
        for one in listeners
        if ref.section_name in (None, "", one.id[2]) and ref.port in (None, 0, one.port)
    ]
    if not meant:
        what = f"{ref.kind or 'Gateway'} {ref.name}"
        asked = [f"name {ref.section_name}"] if ref.section_name else []
        asked += [f"port {ref.port}"] if ref.port else []
        message = f"{what} has no listener of {' and '.join(asked) or 'its own'}."
        return Attached({}, "NoMatchingParent", message)
    allowing = [
        one
        for one in meant
        if kind in one.kinds
        and allows_namespace(
            one.namespaces.from_, one.namespaces.selector, one.namespace, namespace, labels
        )
    ]
    if not allowing:
        why = "kinds" if not any(kind in one.kinds for one in meant) else "namespaces"
        message = f"No listener allows it: their allowedRoutes.{why} leave it out."
        return Attached({}, "NotAllowedByListeners", message)
    hosts: dict[ListenerId, tuple[str, ...]] = {}
    for one in allowing:
        named = hostnames if kind in _HAS_HOSTS else ()
        if found := intersection(one.hostname, named):
            hosts[one.id] = tuple(found)
    if not hosts:
        has = ", ".join(sorted({one.hostname for one in allowing}))
        message = f"None of its hostnames is among those of the listeners: {quoted(has)}."
        return Attached({}, "NoMatchingListenerHostname", message)
    if not any(one.accepted for one in allowing if one.id in hosts):
        message = "The listeners that it would attach to are not accepted: their status says why."
        return Attached(hosts, "NoReadyListeners", message)
    return Attached(hosts)
