"""What Gateways, their classes and Services of L4 say: model and observed state → status.  Pure."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any, cast

from msgspec import Struct

from akocore.each_shown import each, each_list
from akocore.engines.envoy.ads import Elsewhere, Engine
from akocore.engines.envoy.l4 import l4_name
from akocore.engines.envoy.resources import CDS, LDS, cluster_name
from akocore.kube.objects import Gateway, GatewayClass, Service
from akocore.model import Refusal
from akocore.place.virtual_services import Home, PlacedListener, VirtualService
from akocore.realise_l4 import At
from akocore.reconcile import Reconciler
from akocore.status import condition, vip_limit, virtual_service
from akocore.translate.classes import CONTROLLER
from akocore.translate.gateways import govern_gateway
from akocore.translate.services import GATEWAY_NAME, SHARED_ANNOTATION, Front, ServiceView

__all__ = [
    "ListenerState",
    "explain",
    "gateway",
    "gateway_classes",
    "gateway_refusals",
    "gateways",
    "listener_states",
    "pools",
    "refusals",
    "rejected",
    "service",
    "service_refusals",
    "services",
]

ADDRESS = "spec.addresses[0].value"


class ListenerState(Struct, frozen=True):
    """One listener of a Gateway's spec.  ``pending``: nothing is wrong, engines are to follow."""

    port: int
    protocol: str
    ready: bool
    reason: str
    message: str
    pending: bool = False


# ── what the engines say ────────────────────────────────────────────────────────────────────


def _answering(at: Reconciler, home: Home) -> list[Engine | Elsewhere]:
    return [e for e in at.ads.fleet.values() if e.group == home.group and e.answers]


def programmed(at: Reconciler, service: VirtualService, place: At) -> bool:
    """Whether an engine accepts at a listener where status says, and none is behind."""
    placed = (service.listeners or {}).get(place)
    home = service.shown
    if placed is None or home is None:
        return False
    if placed.model.pool is None:
        return True  # nobody is to accept
    name = l4_name(service.name, home.address, *place)
    if not any((LDS, name) not in engine.rejected for engine in _answering(at, home)):
        return False
    wanted = max(placed.sequence.get((home.group, home.address), 1), 1)
    return at.ads.acknowledged(home.group) >= wanted


def _rejections(at: Reconciler, service: VirtualService, place: At) -> list[str]:
    """What engines say of a listener, or of the cluster behind it, that they refuse."""
    placed = (service.listeners or {}).get(place)
    rejecting = [engine for engine in at.ads.fleet.values() if engine.rejected]
    if placed is None or not rejecting:
        return []
    wanted = {(LDS, name) for _, name in placed.names}
    wanted |= {(CDS, cluster_name(backend)) for _, _, backend in placed.backends}
    return [
        f"{engine.name}: {found.message}"
        for engine in rejecting
        for what, found in engine.rejected.items()
        if what in wanted
    ]


def rejected(at: Reconciler) -> list[tuple[str, At]]:
    """(virtual service, listener) of which an engine refuses something.  Cost: all listeners."""
    refused = {one for engine in at.ads.fleet.values() for one in engine.rejected}
    if not refused:
        return []
    out = []
    for service in at.placement.services.values():
        for place, placed in (service.listeners or {}).items():
            mine = {(LDS, name) for _, name in placed.names}
            mine |= {(CDS, cluster_name(backend)) for _, _, backend in placed.backends}
            if mine & refused:
                out.append((service.name, place))
    return out


# ── refusals ────────────────────────────────────────────────────────────────────────────────


def _vip_refusals(at: Reconciler, front: Front, object_: str) -> list[Refusal]:
    """What keeps a front from its address; also who else asks for the one that it has."""
    served = at.l4.fronts.get(front)
    if served is None:
        return []
    out: list[Refusal] = []

    def no(field: str, reason: str, remedy: str, warning: bool = False) -> None:
        out.append(
            Refusal(object=object_, field=field, reason=reason, remedy=remedy, warning=warning)
        )

    service = at.placement.services[served.vs]
    pool = at.placement.pools.get(service.infra.network)
    keeps = f" Until then it stays at {service.homes[-1].address}." if service.homes else ""
    if service.over:
        field = "status.addresses" if front.kind == "Gateway" else "status.loadBalancer"
        no(field, *vip_limit(service))
    elif service.exhausted:
        no(
            "status.addresses" if front.kind == "Gateway" else "status.loadBalancer",
            "AddressesExhausted",
            f"Network {service.exhausted} has no free address for {service.name}."
            " Widen its vipRanges.",
        )
    elif service.misplaced and pool is not None and _is_address(served.address):
        holder = pool.holder(served.address)
        if not pool.contains(served.address):
            ranges = ", ".join(f"{r.begin}-{r.end}" for r in pool.spec.vip_ranges)
            no(
                served.field,
                "AddressOutsideNetwork",
                f"{served.address} is not in the vipRanges of Network {service.infra.network}:"
                f" {ranges}. Choose one of these.{keeps}",
            )
        elif holder is not None and holder != service.name:
            whose = at.l4.front_of(holder)
            who = at.l4.speaker(whose) if whose is not None else f"virtual service {holder}"
            no(
                served.field,
                "AddressTaken",
                f"{served.address} is of {who}, which had it first. Choose another address.{keeps}",
            )
    for home in service.homes[-1:]:
        for other in at.l4.claims(home.address):
            if other != front:
                no(
                    served.field if served.address else "status",
                    "AddressContended",
                    f"{at.l4.speaker(other)} asks for {home.address} as well and waits for it:"
                    " this one had it first. Choose another address for one of them.",
                    True,
                )
    return out


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _front_of(key: str) -> Front:
    namespace, _, name = key.partition("/")
    return Front("Gateway", namespace, name)


def _virtual_service(at: Reconciler, front: Front) -> VirtualService | None:
    served = at.l4.fronts.get(front)
    return at.placement.services.get(served.vs) if served is not None else None


def gateway_refusals(at: Reconciler, key: str) -> list[Refusal]:
    """Everything that keeps a Gateway from being served to the letter."""
    front, object_ = _front_of(key), f"Gateway/{key}"
    seen = at.l4.gateways[key]
    obj = cast(Gateway, at.store.all("Gateway")[key])
    by = govern_gateway(obj, at.store, at.infrastructure.infras)
    if not by.ours:
        return [by.refusal] if by.refusal is not None else []
    out = [*seen.refusals, *at.l4.refusals(object_, front), *at.faults.of(object_)]
    out += _vip_refusals(at, front, object_)
    if at.endpoints:
        for one in at.l4.services_of(front):
            out += at.endpoints.told(object_, "spec.listeners", one, warning=True)
    service = _virtual_service(at, front)
    if service is not None and any(engine.rejected for engine in at.ads.fleet.values()):
        for place, listener in seen.listeners.items():
            out += [
                Refusal(object=object_, field=listener.field, reason="EngineRejected", remedy=said)
                for said in _rejections(at, service, place)
            ]
    return list(dict.fromkeys(out))


def service_refusals(at: Reconciler, key: str) -> list[Refusal]:
    """Everything that keeps a Service of L4 from being served to the letter."""
    seen = at.l4.services[key]
    out = [*seen.refusals, *at.faults.of(f"Service/{key}")]
    for front in seen.fronts:
        out += _front_refusals(at, key, seen, front)
    out += at.endpoints.told(f"Service/{key}", "spec.ports", key)
    return list(dict.fromkeys(out))


def _front_refusals(at: Reconciler, key: str, seen: ServiceView, front: Front) -> list[Refusal]:
    """What keeps a Service from being served by one of its virtual services."""
    object_ = f"Service/{key}"
    out = at.l4.refusals(object_, front, seen.ports)
    vs = _virtual_service(at, front)
    speaker = at.l4.speaker(front)
    if speaker == object_:
        out += _vip_refusals(at, front, object_)
    elif vs is not None and vs.shown is None:
        out.append(
            Refusal(
                object=object_,
                field=f"metadata.labels[{GATEWAY_NAME}]"
                if front.kind == "Gateway"
                else f"metadata.annotations[{SHARED_ANNOTATION}]",
                reason="AddressNotAssigned",
                remedy=f"{speaker}, which has the address for it, has none: its status says why.",
            )
        )
    if front.kind != "Gateway" and vs is not None:
        for place in _own_listeners(vs, seen):
            out += [
                Refusal(
                    object=object_, field=seen.ports[place], reason="EngineRejected", remedy=said
                )
                for said in _rejections(at, vs, place)
            ]
    return out


def refusals(at: Reconciler, kind: str, key: str) -> list[Refusal] | None:
    """Everything that is refused of an object of L4; None: it is gone, or not ours."""
    match kind:
        case "Gateway":
            return gateway_refusals(at, key) if key in at.l4.gateways else None
        case "Service":
            return service_refusals(at, key) if key in at.l4.services else None
        case _:
            cls = at.store.all(kind).get(key)
            return list(at.l4.class_refusals(cast(GatewayClass, cls))) if cls else None


# ── objects ─────────────────────────────────────────────────────────────────────────────────


def listener_states(at: Reconciler, key: str) -> list[ListenerState]:
    """Each listener of a Gateway's spec, in its order."""
    obj = cast(Gateway, at.store.all("Gateway")[key])
    seen = at.l4.gateways[key]
    service = _virtual_service(at, _front_of(key))
    found = gateway_refusals(at, key)
    out = []
    for i, one in enumerate(obj.spec.listeners):
        field = f"spec.listeners[{i}]"
        mine = [r for r in found if r.field == field or r.field.startswith(f"{field}.")]
        wrong = next((r for r in mine if not r.warning), None)
        place = (one.protocol, one.port)
        said = "; ".join(r.remedy for r in mine)
        pending = False
        if wrong is not None:
            ready, reason = False, wrong.reason
        elif service is None or seen.listeners.get(place) is None:
            ready, reason, said = False, "Invalid", "The Gateway is not served."
        elif service.shown is None:
            ready, reason, said = False, "AddressNotAssigned", "The Gateway has no address."
        elif not programmed(at, service, place):
            ready, reason, pending = False, "Pending", True
            said = said or f"No Service Engine of {service.shown.group} serves it yet."
        else:
            ready, reason = True, "Ready"
            if not said and _pool_of(service, place) is None:
                said = "No Service is behind it: nobody is let in."
        out.append(ListenerState(one.port, one.protocol, ready, reason, said, pending))
    return out


def _pool_of(service: VirtualService, place: At) -> PlacedListener | None:
    placed = (service.listeners or {}).get(place)
    return placed if placed is not None and placed.model.pool is not None else None


def gateway(at: Reconciler, key: str) -> dict[str, Any] | None:
    """One Gateway: class, address, listeners, conditions; None: not ours."""
    obj = cast(Gateway, at.store.all("Gateway")[key])
    by = govern_gateway(obj, at.store, at.infrastructure.infras)
    if not by.ours and by.refusal is None:
        return None
    service = _virtual_service(at, _front_of(key))
    home = service.shown if service is not None else None
    states = listener_states(at, key)
    found = gateway_refusals(at, key)
    wrong = next((r for r in found if not r.warning), None)
    pending = next((s for s in states if s.pending), None)
    ready = wrong is None and home is not None and pending is None
    if wrong is not None:
        reason = "ListenersNotValid" if wrong.field.startswith("spec.listeners") else wrong.reason
        message = f"{wrong.field}: {wrong.remedy}"
    elif home is None:
        reason, message = "AddressNotAssigned", "It waits for an address."
    elif pending is not None:
        reason, message = "ListenersNotReady", pending.message
    else:
        reason = "Ready"
        message = "; ".join(f"{r.field}: {r.remedy}" for r in found)
    return {
        "metadata": {
            "namespace": obj.metadata.namespace,
            "name": obj.metadata.name,
            "creationTimestamp": obj.metadata.creation_timestamp,
        },
        "spec": {
            "gatewayClassName": obj.spec.gateway_class_name,
            "listeners": [f"{s.protocol}/{s.port}" for s in states],
            "virtualService": service.name if service is not None else "",
        },
        "status": {
            "ours": by.ours,
            "scheduled": service is not None,
            "ready": ready,
            "pending": wrong is None and home is not None and pending is not None,
            "reason": reason,
            "message": message,
            "addresses": [{"type": "IPAddress", "value": home.address}] if home else [],
            "listeners": [
                {
                    "port": s.port,
                    "protocol": s.protocol,
                    "ready": s.ready,
                    "reason": s.reason,
                    "message": s.message,
                }
                for s in states
            ],
            "conditions": [condition(r) for r in found],
        },
    }


def gateways(at: Reconciler) -> list[dict[str, Any]]:
    """Every Gateway of ours."""
    return each(at.faults, "Gateway", at.store.all("Gateway"), lambda key: gateway(at, key))


def gateway_classes(at: Reconciler) -> list[dict[str, Any]]:
    """Every GatewayClass of ours."""
    return [
        {
            "metadata": {"name": key},
            "spec": {"controller": CONTROLLER},
            "status": {"conditions": [condition(r) for r in at.l4.class_refusals(cls)]},
        }
        for key, obj in at.store.all("GatewayClass").items()
        if (cls := cast(GatewayClass, obj)).spec.controller == CONTROLLER
    ]


def _own_listeners(vs: VirtualService, seen: ServiceView) -> list[At]:
    """The listeners that lead to a Service: known by what is behind them.  Cost: its ports."""
    out = []
    for place in seen.ports:
        placed = _pool_of(vs, place)
        pool = placed.model.pool if placed is not None else None
        if pool is not None and pool.backend.startswith(f"{seen.key}/"):
            out.append(place)
    return out


def service(at: Reconciler, key: str) -> dict[str, Any] | None:
    """One Service of L4: where it is served, and what of it is refused; None: not ours."""
    seen = at.l4.services.get(key)
    if seen is None:
        return None
    obj = cast(Service, at.store.service(key))
    vips: list[dict[str, Any]] = []
    served: dict[At, None] = {}
    for front in seen.fronts:
        vs = _virtual_service(at, front)
        home = vs.shown if vs is not None else None
        mine = _own_listeners(vs, seen) if vs is not None else []
        served |= dict.fromkeys(mine)
        if vs is not None:
            vips.append(
                {
                    "virtualService": vs.name,
                    "address": home.address if home is not None and mine else "",
                    "programmed": any(programmed(at, vs, place) for place in mine),
                }
            )
    up = [vip["address"] for vip in vips if vip["programmed"]]
    found = service_refusals(at, key)
    return {
        "metadata": {
            "namespace": obj.metadata.namespace,
            "name": obj.metadata.name,
            "creationTimestamp": obj.metadata.creation_timestamp,
        },
        "spec": {
            "type": obj.spec.type,
            "ports": [f"{p.port}/{p.protocol}" for p in obj.spec.ports],
            "front": str(seen.front) if seen.front is not None else "",
            "virtualService": vips[0]["virtualService"] if vips else "",
            "shown": seen.shown,
        },
        "status": {
            "served": [f"{protocol}/{port}" for protocol, port in served],
            "programmed": bool(up),
            "vips": vips,
            "loadBalancer": {"ingress": [{"ip": address} for address in up]},
            "conditions": [condition(r) for r in found],
        },
    }


def services(at: Reconciler) -> list[dict[str, Any]]:
    """Every Service that asks something of L4."""
    return each(at.faults, "Service", at.l4.services, lambda key: service(at, key))


def pools(at: Reconciler) -> list[dict[str, Any]]:
    """Every pool of L4: the Service port behind a listener, and how many servers are up."""
    services = at.placement.services
    return each_list(at.faults, "VirtualService", services, lambda name: _pools(at, services[name]))


def _pools(at: Reconciler, vs: VirtualService) -> list[dict[str, Any]]:
    out = []
    for (protocol, port), placed in (vs.listeners or {}).items():
        pool = placed.model.pool
        if pool is None:
            continue
        members = at.realiser.members(pool.backend)
        out.append(
            {
                "metadata": {"name": pool.name},
                "spec": {
                    "virtualService": vs.name,
                    "host": "",
                    "path": f"{protocol}/{port}",
                    "service": pool.backend,
                },
                "status": {
                    "servers": [f"{address}:{number}" for address, number in members],
                    "state": "up" if members else "down",
                },
            }
        )
    return out


def explain(at: Reconciler, kind: str, key: str) -> dict[str, Any] | None:
    """Why a Gateway or a Service is where it is; None: there is none, or it is not of L4."""
    if kind == "gateway":
        if key not in at.l4.gateways:
            return None
        fronts: tuple[Front, ...] = (_front_of(key),)
        said = gateway(at, key)
        obj = cast(Gateway, at.store.all("Gateway")[key])
        cls = obj.spec.gateway_class_name
        object_, by = f"Gateway/{key}", f"GatewayClass {cls}" if said else f"{cls}: not ours"
    elif kind != "service":
        return None
    else:
        seen = at.l4.services.get(key)
        if seen is None:
            return None
        fronts = seen.fronts
        said = service(at, key)
        object_, by = f"Service/{key}", str(seen.front) if seen.front is not None else "nobody"
    out: dict[str, Any] = {
        "object": object_,
        "by": by,
        "refused": said["status"]["conditions"] if said is not None else [],
        "listeners": [],
    }
    for front in fronts:
        if _virtual_service(at, front) is None:
            continue
        found = _explained(at, front, "" if kind == "gateway" else f"{key}/")
        if front.family:
            out["second"] = found
        else:
            out |= found
    return out


def _explained(at: Reconciler, front: Front, behind: str) -> dict[str, Any]:
    """A front that is served; ``behind``: only the listeners that lead there."""
    served = at.l4.fronts[front]
    vs = at.placement.services[served.vs]
    listeners = []
    for place, placed in sorted((vs.listeners or {}).items()):
        pool = placed.model.pool
        if behind and (pool is None or not pool.backend.startswith(behind)):
            continue
        servers = at.realiser.members(pool.backend) if pool is not None else []
        listeners.append(
            {
                "listener": f"{place[0]}/{place[1]}",
                "programmed": programmed(at, vs, place),
                "pool": pool.name if pool is not None else "",
                "service": pool.backend if pool is not None else "",
                "sticky": pool is not None and pool.sticky,
                "ranges": list(pool.ranges) if pool is not None else [],
                "servers": [f"{address}:{number}" for address, number in servers],
            }
        )
    return {
        "setting": {
            "name": served.setting or "(the defaults of the configuration)",
            "seGroup": vs.infra.group,
            "network": vs.infra.network,
        },
        "virtualService": virtual_service(at, vs)["status"] | {"name": vs.name},
        "address": f"asked for in {served.field}" if served.address else "given by IPAM",
        "listeners": listeners,
    }
