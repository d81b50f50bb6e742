"""What Gateways, their classes and Services say, in the terms of their own APIs.

Times of transition are real: a condition keeps its time while its status is the same.  An engine
that is away for a moment serves on, so what was ready stays ready until something is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, cast

import msgspec

from akocore import status_l4
from akocore.kube.objects import Condition, Gateway, GatewayClass, Object, Service
from akocore.reconcile import Reconciler
from akocore.translate.classes import CONTROLLER

__all__ = [
    "SERVICE_CONDITION",
    "may_be_ours",
    "news",
    "nothing",
    "of_addresses",
    "says",
    "wanted",
    "with_status",
]

SERVICE_CONDITION: Final = "akocore.io/Accepted"


def wanted(
    at: Reconciler, kind: str, key: str, look_again: Callable[[str], None]
) -> dict[str, Any] | None:
    """The status that an object must have; None: it is not ours.

    ``look_again(virtual service)``: when its engines have got on.
    """
    match kind:
        case "Gateway":
            return _gateway(at, key, look_again)
        case "Service":
            return _service(at, key, look_again)
        case _:
            return _gateway_class(at, key)


def with_status(at: Reconciler) -> list[str]:
    """Keys of the Services that say something of us, or must.  Cost: all Services."""
    return [
        key
        for key, obj in at.store.all("Service").items()
        if key in at.l4.services or may_be_ours(obj)
    ]


def may_be_ours(obj: Object) -> bool:
    """Whether a status may have been written by us."""
    if isinstance(obj, Service):
        return any(one.type == SERVICE_CONDITION for one in obj.status.conditions)
    return isinstance(obj, Gateway | GatewayClass) and bool(obj.status.conditions)


def nothing(obj: Object) -> dict[str, Any]:
    """The status of an object of which we say nothing any more.

    A custom resource keeps its fields: the API server takes no status that is null.
    """
    match obj:
        case Gateway():
            return {"addresses": [], "conditions": [], "listeners": []}
        case GatewayClass():
            return {"conditions": []}
        case _:
            return {}


def says(obj: Object, status: dict[str, Any]) -> bool:
    """Whether an object says just that already (of a Service: just that of us)."""
    if isinstance(obj, Service):
        has, new = obj.status, msgspec.convert(status, type(obj.status))
        if "loadBalancer" in status and new.load_balancer != has.load_balancer:
            return False  # else it is another's, or nobody's, to write
        return new.conditions == _ours(has.conditions)
    assert isinstance(obj, Gateway | GatewayClass)
    return bool(msgspec.convert(status, type(obj.status)) == obj.status)


def news(obj: Object, status: dict[str, Any]) -> Iterable[tuple[str, str]]:
    """(reason, note) of what changes with a status."""
    if isinstance(obj, Gateway):
        old = [one.value for one in obj.status.addresses]
        new = [one["value"] for one in status["addresses"]]
    elif isinstance(obj, Service):
        old = [one.ip for one in obj.status.load_balancer.ingress]
        new = [one["ip"] for one in status.get("loadBalancer", {}).get("ingress", ())]
    else:
        return ()
    return of_addresses(old, new)


def of_addresses(old: Sequence[str], new: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(reason, note) when what an object is served at changes."""
    if old == new:
        return
    was, now = " and ".join(old), " and ".join(new)
    if not old:
        yield "Programmed", f"It is served at {now}."
    elif not new:
        yield "Withdrawn", f"It is served at {was} no more."
    else:
        yield "Moved", f"It is served at {now}; it was at {was}."


def _ours(conditions: Iterable[Condition]) -> tuple[Condition, ...]:
    return tuple(one for one in conditions if one.type == SERVICE_CONDITION)


def _condition(
    at: Reconciler,
    before: Iterable[Condition],
    type_: str,
    true: bool,
    reason: str,
    message: str,
    generation: int,
) -> dict[str, Any]:
    value = "True" if true else "False"
    old = next((one for one in before if one.type == type_), None)
    since = old.last_transition_time if old is not None and old.status == value else ""
    if not since or since.startswith("1970-"):  # what others' definitions begin with
        since = at.now().strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "type": type_,
        "status": value,
        "reason": reason,
        "message": message[:32768],
        **({"observedGeneration": generation} if generation else {}),
        "lastTransitionTime": since,
    }


def _gateway_class(at: Reconciler, key: str) -> dict[str, Any] | None:
    obj = cast(GatewayClass, at.store.all("GatewayClass")[key])
    if obj.spec.controller != CONTROLLER:
        return None
    refusals = at.l4.class_refusals(obj)
    reason = refusals[0].reason if refusals else "Admitted"
    message = "; ".join(f"{r.field}: {r.remedy}" for r in refusals)
    before, generation = obj.status.conditions, obj.metadata.generation
    said = _condition(at, before, "Admitted", not refusals, reason, message, generation)
    return {"conditions": [said]}


def _gateway(at: Reconciler, key: str, look_again: Callable[[str], None]) -> dict[str, Any] | None:
    obj = cast(Gateway, at.store.all("Gateway")[key])
    said = status_l4.gateway(at, key)
    if said is None or not said["status"]["ours"]:
        return None
    now, generation = said["status"], obj.metadata.generation
    before, listeners_before = obj.status.conditions, obj.status.listeners
    if now["pending"]:
        look_again(said["spec"]["virtualService"])
    addresses = [one.value for one in obj.status.addresses]
    same = addresses == [one["value"] for one in now["addresses"]]

    def was_ready(conditions: Iterable[Condition]) -> bool:
        return same and any(
            one.type == "Ready" and one.status == "True" and one.observed_generation == generation
            for one in conditions
        )

    listeners = []
    for one in now["listeners"]:
        old: tuple[Condition, ...] = next(
            (
                other.conditions
                for other in listeners_before
                if (other.port, other.protocol) == (one["port"], one["protocol"])
            ),
            (),
        )
        ready, reason, message = one["ready"], one["reason"], one["message"]
        if reason == "Pending" and was_ready(old):
            ready, reason, message = True, "Ready", ""
        condition = _condition(at, old, "Ready", ready, reason, message, generation)
        listeners.append(
            {"port": one["port"], "protocol": one["protocol"], "conditions": [condition]}
        )
    ready, reason, message = now["ready"], now["reason"], now["message"]
    if now["pending"] and was_ready(before):
        ready, reason, message = True, "Ready", ""
    scheduled = now["scheduled"]
    conditions = [
        _condition(
            *(at, before, "Scheduled", scheduled),
            "Scheduled" if scheduled else reason,
            "" if scheduled else message,
            generation,
        ),
        _condition(at, before, "Ready", ready, reason, message, generation),
    ]
    return {"addresses": now["addresses"], "conditions": conditions, "listeners": listeners}


def _service(at: Reconciler, key: str, look_again: Callable[[str], None]) -> dict[str, Any] | None:
    obj = cast(Service, at.store.service(key))
    said = status_l4.service(at, key)
    if said is None:
        return None
    refusals = status_l4.service_refusals(at, key)
    wrong = next((r for r in refusals if not r.warning), None)
    message = "; ".join(f"{r.field}: {r.remedy}" for r in refusals)
    condition = _condition(
        at,
        obj.status.conditions,
        SERVICE_CONDITION,
        wrong is None,
        wrong.reason if wrong is not None else "Accepted",
        message,
        0,  # a Service has no generation
    )
    out: dict[str, Any] = {"conditions": [condition]}
    if said["spec"]["shown"]:
        before = {one.ip for one in obj.status.load_balancer.ingress}
        points = []
        for vip in said["status"]["vips"]:
            if not vip["address"]:
                continue
            if not vip["programmed"]:
                look_again(vip["virtualService"])
            if vip["programmed"] or vip["address"] in before:
                points.append(vip["address"])  # else its engines serve on, away for a moment
        out["loadBalancer"] = (
            {"ingress": [{"ip": ip, "ipMode": "Proxy"} for ip in points]} if points else {}
        )
    return out
