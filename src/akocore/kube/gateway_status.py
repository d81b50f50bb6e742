"""What objects of the Gateway API say, as it is written.

A condition keeps its time while its status is the same.  The entries of a route's parents that
are another controller's stay as they are: the list is read, changed and written as a whole, with
the resourceVersion that it was read at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final, cast

import msgspec

from akocore import status_gateway
from akocore.kube.gateway_objects import (
    GATEWAY,
    GATEWAY_API,
    GATEWAY_CLASS,
    BackendTLSPolicy,
    GatewayApiClass,
    GatewayApiGateway,
    ListenerSet,
    ParentReference,
    Route,
    RouteParentStatus,
)
from akocore.kube.l4_status import of_addresses
from akocore.kube.meta import Condition, Object
from akocore.reconcile import Reconciler
from akocore.status_gateway import ListenerSays, Says
from akocore.translate.classes import CONTROLLER

__all__ = ["KINDS", "counts_alone", "may_be_ours", "news", "nothing", "says", "wanted"]

_ANCESTORS: Final = 16  # that a policy's status can have

KINDS: Final = (
    *(GATEWAY_CLASS, GATEWAY, "ListenerSet"),
    *("HTTPRoute", "GRPCRoute", "TLSRoute", "TCPRoute", "UDPRoute", "BackendTLSPolicy"),
)


def wanted(at: Reconciler, obj: Object, look_again: Callable[[str], None]) -> dict[str, Any] | None:
    """The status that an object must have; None: it is not ours.

    ``look_again(virtual service)``: when its engines have got on.
    """
    key, generation = obj.metadata.key, obj.metadata.generation
    match obj:
        case GatewayApiClass():
            found = status_gateway.gateway_class(at, key)
            if found is None:
                return None
            return {
                "conditions": _conditions(at, obj.status.conditions, found[0], generation),
                "supportedFeatures": [{"name": name} for name in found[1]],
            }
        case GatewayApiGateway():
            said = status_gateway.gateway(at, key)
            if said is None:
                return None
            if said.pending:
                look_again(said.vs)
            had = tuple(one.value for one in obj.status.addresses)
            keep = had == said.due
            conditions = _conditions(at, obj.status.conditions, said.conditions, generation, keep)
            shown = any(c["type"] == "Programmed" and c["status"] == "True" for c in conditions)
            addresses = said.due if shown else ()
            out: dict[str, Any] = {
                "addresses": [{"type": "IPAddress", "value": one} for one in addresses],
                "conditions": conditions,
                "listeners": _listeners(at, obj, said.listeners, keep),
            }
            if obj.spec.allowed_listeners.namespaces.from_ != "None" or said.sets:
                out["attachedListenerSets"] = said.sets
            return out
        case ListenerSet():
            of_set = status_gateway.listener_set(at, key)
            if of_set is None:
                return None
            if of_set.pending:
                look_again(of_set.vs)
            return {
                "conditions": _conditions(
                    at, obj.status.conditions, of_set.conditions, generation, True
                ),
                "listeners": _listeners(at, obj, of_set.listeners, True),
            }
        case Route():
            return _route(at, obj)
        case BackendTLSPolicy():
            return _policy(at, obj)
        case _:
            return None


def _conditions(
    at: Reconciler,
    before: Iterable[Condition],
    said: Iterable[Says],
    generation: int,
    keep: bool = False,
) -> list[dict[str, Any]]:
    """``keep``: what was true stays so, of its generation, while engines are yet to follow."""
    old = {one.type: one for one in before}
    out = []
    for one in said:
        was = old.get(one.type)
        true, reason, message = one.true, one.reason, one.message
        observed = generation
        if keep and one.pending and was is not None and was.status == "True":
            true, reason, message = True, was.reason, was.message
            observed = was.observed_generation
        value = "True" if true else "False"
        since = was.last_transition_time if was is not None and was.status == value else ""
        if not since or since.startswith("1970-"):  # what the definitions begin with
            since = at.now().strftime("%Y-%m-%dT%H:%M:%SZ")
        out.append(_condition(one.type, value, reason, message, observed, since))
    return out


def _condition(
    type_: str, value: str, reason: str, message: str, generation: int, since: str
) -> dict[str, Any]:
    return {
        "type": type_,
        "status": value,
        "reason": reason,
        "message": message[:32768],
        **({"observedGeneration": generation} if generation else {}),
        "lastTransitionTime": since,
    }


def _listeners(
    at: Reconciler,
    obj: GatewayApiGateway | ListenerSet,
    said: Iterable[ListenerSays],
    keep: bool,
) -> list[dict[str, Any]]:
    before = {one.name: one.conditions for one in obj.status.listeners}
    generation = obj.metadata.generation
    return [
        {
            "name": one.name,
            "supportedKinds": [{"group": GATEWAY_API, "kind": kind} for kind in one.kinds],
            "attachedRoutes": one.attached,
            "conditions": _conditions(
                at, before.get(one.name, ()), one.conditions, generation, keep
            ),
        }
        for one in said
    ]


def _route(at: Reconciler, obj: Route) -> dict[str, Any] | None:
    said = status_gateway.route(at, (obj.KIND, obj.metadata.key))
    ours = {one.parent_ref: one for one in obj.status.parents if one.controller_name == CONTROLLER}
    if not said and not ours:
        return None
    parents = [
        _parent_entry(one) for one in obj.status.parents if one.controller_name != CONTROLLER
    ]
    for ref, conditions in said:
        before = next((one.conditions for key, one in ours.items() if _same(key, ref, obj)), ())
        parents.append(
            {
                "parentRef": _ref(ref),
                "controllerName": CONTROLLER,
                "conditions": _conditions(at, before, conditions, obj.metadata.generation),
            }
        )
    return {"parents": parents}


def _policy(at: Reconciler, obj: BackendTLSPolicy) -> dict[str, Any] | None:
    said = status_gateway.policy(at, obj.metadata.key)[:_ANCESTORS]
    ours = [one for one in obj.status.ancestors if one.controller_name == CONTROLLER]
    if not said and not ours:
        return None
    others = [one for one in obj.status.ancestors if one.controller_name != CONTROLLER]
    ancestors = [
        {
            "ancestorRef": msgspec.to_builtins(one.ancestor_ref),
            "controllerName": one.controller_name,
            "conditions": [_as_it_is(c) for c in one.conditions],
        }
        for one in others
    ]
    for ref, conditions in said[: _ANCESTORS - len(others)]:
        before = next((one.conditions for one in ours if one.ancestor_ref == ref), ())
        ancestors.append(
            {
                "ancestorRef": _ref(ref),
                "controllerName": CONTROLLER,
                "conditions": _conditions(at, before, conditions, obj.metadata.generation),
            }
        )
    return {"ancestors": ancestors}


def _same(a: ParentReference, b: ParentReference, obj: Route) -> bool:
    def whole(ref: ParentReference) -> tuple[object, ...]:
        return (
            GATEWAY_API if ref.group is None else ref.group,
            ref.kind or "Gateway",
            ref.namespace or obj.metadata.namespace,
            ref.name,
            ref.section_name,
            ref.port,
        )

    return whole(a) == whole(b)


def _ref(ref: ParentReference) -> dict[str, Any]:
    out = cast("dict[str, Any]", msgspec.to_builtins(ref))
    return {"group": GATEWAY_API, "kind": "Gateway", **out}


def _parent_entry(one: RouteParentStatus) -> dict[str, Any]:
    """Another controller's entry, as it is."""
    return {
        "parentRef": msgspec.to_builtins(one.parent_ref),
        "controllerName": one.controller_name,
        "conditions": [_as_it_is(c) for c in one.conditions],
    }


def _as_it_is(one: Condition) -> dict[str, Any]:
    return _condition(
        one.type,
        one.status,
        one.reason,
        one.message,
        one.observed_generation,
        one.last_transition_time,
    )


# ── writing ─────────────────────────────────────────────────────────────────────────────────


def may_be_ours(obj: Object) -> bool:
    """Whether a status may have been written by us."""
    if isinstance(obj, Route | BackendTLSPolicy):
        return False  # our entries have our name: `wanted` takes them out
    return isinstance(obj, GatewayApiClass | GatewayApiGateway | ListenerSet) and bool(
        obj.status.conditions
    )


def nothing(obj: Object) -> dict[str, Any]:
    """The status of an object of which we say nothing any more."""
    return {}


def says(obj: Object, status: dict[str, Any]) -> bool:
    """Whether an object says just that already, of what is ours to say."""
    assert isinstance(
        obj, GatewayApiClass | GatewayApiGateway | ListenerSet | Route | BackendTLSPolicy
    )
    if isinstance(obj, Route | BackendTLSPolicy):
        return msgspec.convert(status, type(obj.status)) == obj.status
    assert isinstance(obj, GatewayApiClass | GatewayApiGateway | ListenerSet)
    mine = {one["type"] for one in status.get("conditions", ())}
    old, new = obj.status, msgspec.convert(status, type(obj.status))
    theirs = tuple(one for one in old.conditions if one.type in mine)
    if _by_type(new.conditions) != _by_type(theirs):
        return False
    bare = msgspec.structs.replace
    return bool(bare(new, conditions=()) == bare(old, conditions=()))


def counts_alone(obj: Object, status: dict[str, Any]) -> bool:
    """Whether nothing but how many routes are attached is to be said anew."""
    if not isinstance(obj, GatewayApiGateway | ListenerSet):
        return False
    bare = msgspec.structs.replace
    listeners = tuple(bare(one, attached_routes=0) for one in obj.status.listeners)
    none = [one | {"attachedRoutes": 0} for one in status.get("listeners", ())]
    uncounted = bare(obj, status=bare(obj.status, listeners=listeners))
    return says(uncounted, status | {"listeners": none})


def _by_type(conditions: Iterable[Condition]) -> dict[str, Condition]:
    return {one.type: one for one in conditions}


def news(obj: Object, status: dict[str, Any]) -> Iterable[tuple[str, str]]:
    """(reason, note) of what changes with a status."""
    if not isinstance(obj, GatewayApiGateway):
        return ()
    old = [one.value for one in obj.status.addresses]
    new = [one["value"] for one in status.get("addresses", ())]
    return of_addresses(old, new)
