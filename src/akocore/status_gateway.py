"""What objects of the Gateway API say: model and observed state → conditions.  Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

from msgspec import Struct

from akocore.each_shown import each
from akocore.engines.envoy.ads import Engine
from akocore.engines.envoy.gateway import secret_name
from akocore.engines.envoy.resources import CDS, LDS, SDS, SRDS, cluster_name
from akocore.gateway_api import GatewayState, RouteState
from akocore.kube.gateway_objects import (
    DEFINITION,
    GATEWAY,
    GATEWAY_API,
    GATEWAY_CLASS,
    ROUTE_KINDS,
    GatewayApiClass,
    GatewayApiGateway,
    ListenerSet,
    ParentReference,
)
from akocore.model import Refusal
from akocore.model_http import Backend, HttpRule
from akocore.place.gateways import PlacedPort
from akocore.place.virtual_services import VirtualService
from akocore.reconcile import Reconciler
from akocore.status import condition, vip_limit, virtual_service
from akocore.translate.classes import CONTROLLER
from akocore.translate.gateway_api.attachment import Attached, parent_of
from akocore.translate.gateway_api.classes import BUNDLE_VERSION, FEATURES, SERVED_RELEASES
from akocore.translate.gateway_api.found import Finding, RouteId, Type, first, text
from akocore.translate.gateway_api.listeners import ListenerView

__all__ = [
    "GatewaySays",
    "ListenerSays",
    "Says",
    "explain",
    "gateway",
    "gateway_class",
    "gateways",
    "listener_set",
    "policy",
    "refusals",
    "route",
    "routes",
]


LEFT_OUT = "akocore.io/EndpointsLeftOut"
"""The condition of a route some of whose endpoints are none."""

_RELEASES = ", ".join(f"{one}x" for one in SERVED_RELEASES)


class Says(Struct, frozen=True):
    """One condition.  ``pending``: nothing is wrong, engines are to follow."""

    type: str
    true: bool
    reason: str
    message: str = ""
    pending: bool = False


class ListenerSays(Struct, frozen=True):
    """One listener of a Gateway or of a ListenerSet."""

    name: str
    kinds: tuple[str, ...]
    attached: int
    conditions: tuple[Says, ...]


class GatewaySays(Struct, frozen=True):
    """A Gateway, or a ListenerSet (which has no addresses).

    ``due``: the addresses that it has once its engines have followed.
    """

    conditions: tuple[Says, ...]
    listeners: tuple[ListenerSays, ...]
    addresses: tuple[str, ...] = ()
    due: tuple[str, ...] = ()
    sets: int = 0  # ListenerSets that are accepted
    vs: str = ""

    @property
    def pending(self) -> bool:
        return any(one.pending for one in self.conditions)


# ── classes ─────────────────────────────────────────────────────────────────────────────────


def gateway_class(at: Reconciler, key: str) -> tuple[tuple[Says, ...], tuple[str, ...]] | None:
    """(conditions, features) of a class; None: another's."""
    cls = cast(GatewayApiClass, at.store.all(GATEWAY_CLASS)[key])
    if cls.spec.controller_name != CONTROLLER:
        return None
    refused = at.gateway_api.class_refusals(cls)
    message = "; ".join(f"{r.field}: {r.remedy}" for r in refused)
    reason = refused[0].reason if refused else "Accepted"
    said = [Says("Accepted", not refused, reason, message)]
    definition = at.store.all("CustomResourceDefinition").get(DEFINITION)
    release = definition.metadata.annotation(BUNDLE_VERSION) if definition is not None else None
    if release is not None:
        known = release.startswith(SERVED_RELEASES)
        message = "" if known else f"Definitions of {release} are there; {_RELEASES} are known."
        reason = "SupportedVersion" if known else "UnsupportedVersion"
        said.append(Says("SupportedVersion", known, reason, message))
    return tuple(said), FEATURES


# ── gateways and their listeners ────────────────────────────────────────────────────────────


def _programmed(at: Reconciler, service: VirtualService, placed: PlacedPort | None) -> bool:
    """Whether an engine accepts at a port where status says, and none is behind."""
    if placed is None:
        return True  # nobody is to accept
    home = service.shown
    if home is None:
        return False
    place = (home.group, home.address)
    name = placed.names.get(place)
    answering = [e for e in at.ads.fleet.values() if e.group == home.group and e.answers]
    if name is None or not any((LDS, name) not in engine.rejected for engine in answering):
        return False
    # A listener that is new to an engine listens when it has asked for its certificates.
    secrets = {
        secret_name(key)
        for chain in placed.model.chains
        if chain.tls is not None
        for key in chain.tls.secrets
    }
    if secrets and not all(
        secrets <= engine.subscribed.get(SDS, set())
        for engine in answering
        if isinstance(engine, Engine)
    ):
        return False
    return at.ads.acknowledged(home.group) >= max(placed.sequence.get(place, 1), 1)


def _rejected(at: Reconciler, placed: PlacedPort | None) -> str:
    """What engines say of a port that they refuse; "": nothing."""
    if placed is None:
        return ""
    wanted = {(LDS, name) for name in placed.names.values()}
    wanted |= {(CDS, cluster_name(key)) for _, _, key in placed.backends}
    return "; ".join(
        f"{engine.name}: {found.message}"
        for engine in at.ads.fleet.values()
        for what, found in engine.rejected.items()
        if what in wanted
    )


def _found(at: Reconciler, state: GatewayState, view: ListenerView) -> tuple[Finding, ...]:
    """What is wrong with a listener: as it was translated, and what engines find out."""
    service = at.placement.services.get(state.vs)
    if service is None or not view.serves or not view.certificates:
        return view.findings
    names = {(SDS, secret_name(key)): i for i, key in enumerate(view.certificates)}
    groups = {home.group for home in service.homes}
    refused = {
        (names[what], found.message)
        for engine in at.ads.fleet.values()
        if engine.rejected and engine.group in groups
        for what, found in engine.rejected.items()
        if what in names
    }
    out = list(view.findings)
    kind = GATEWAY if view.id[0] == "Gateway" else view.id[0]
    for i, why in sorted(refused):
        refusal = Refusal(
            object=f"{kind}/{view.id[1]}",
            field=f"{view.field}.tls.certificateRefs",
            reason="InvalidCertificateRef",
            remedy=f"Service Engines can't use Secret {view.certificates[i]}: {why}."
            " Issue another certificate.",
        )
        out += (Finding("ResolvedRefs", refusal), Finding("Programmed", refusal))
    return tuple(out)


def _listener(at: Reconciler, state: GatewayState, view: ListenerView) -> ListenerSays:
    found = _found(at, state, view)
    conflict, refused = first(found, "Conflicted"), first(found, "Accepted")
    unresolved, idle = first(found, "ResolvedRefs"), first(found, "Programmed")
    wrong = conflict or refused
    said = [
        Says("Accepted", wrong is None, wrong.reason if wrong else "Accepted", _text(found, wrong)),
        _port_says(at, state, view, found, conflict, wrong or idle),
        Says(
            "ResolvedRefs",
            unresolved is None,
            unresolved.reason if unresolved else "ResolvedRefs",
            _text(found, unresolved),
        ),
        Says(
            "Conflicted",
            conflict is not None,
            conflict.reason if conflict else "NoConflicts",
            _text(found, conflict),
        ),
    ]
    attached = at.gateway_api.attached(state, view.id)
    return ListenerSays(view.id[2], view.kinds, attached, tuple(said))


def _text(found: Iterable[Finding], one: Finding | None) -> str:
    return text(found, one.type) if one is not None else ""


def _port_says(
    at: Reconciler,
    state: GatewayState,
    view: ListenerView,
    found: tuple[Finding, ...],
    conflict: Finding | None,
    wrong: Finding | None,
) -> Says:
    if wrong is not None:
        reason = conflict.reason if conflict is not None else "Invalid"
        return Says("Programmed", False, reason, _text(found, wrong))
    if not state.vs:
        return Says("Programmed", False, "Invalid", "The Gateway is not served.")
    service = at.placement.services[state.vs]
    if service.shown is None:
        return Says("Programmed", False, "Pending", "The Gateway has no address.")
    placed = service.gateway.ports.get(view.transport) if service.gateway is not None else None
    if _programmed(at, service, placed):
        return Says("Programmed", True, "Programmed")
    if said := _rejected(at, placed):
        return Says("Programmed", False, "Invalid", said)
    message = f"No Service Engine of {service.shown.group} serves it yet."
    return Says("Programmed", False, "Pending", message, pending=True)


def gateway(at: Reconciler, key: str) -> GatewaySays | None:
    """One Gateway; None: not ours."""
    state = at.gateway_api.gateways.get(key)
    if state is None:
        return None
    listeners = {id_: _listener(at, state, view) for id_, view in state.listeners.items()}
    own = {id_: one for id_, one in listeners.items() if id_[0] == "Gateway"}
    vip = _vip_findings(at, state)
    found = (*state.findings, *vip)
    said = [_accepted(state), _gateway_programmed(at, state, found, tuple(own.values()))]
    unresolved = [one.name for one in own.values() if not _true(one, "ResolvedRefs")]
    own_refs = first(found, "ResolvedRefs")
    if own_refs is not None:
        said.append(Says("ResolvedRefs", False, own_refs.reason, text(found, "ResolvedRefs")))
    elif unresolved:
        message = f"Listeners {', '.join(unresolved)}: their status says why."
        said.append(Says("ResolvedRefs", False, "ListenersNotResolved", message))
    else:
        said.append(Says("ResolvedRefs", True, "ResolvedRefs"))
    if any(v.clients is not None and v.clients.insecure for v in state.listeners.values()):
        message = "Clients without a good certificate are let in."
        type_ = "InsecureFrontendValidationMode"
        said.append(Says(type_, True, "ConfigurationChanged", message))
    service = at.placement.services.get(state.vs)
    home = service.shown if service is not None else None
    programmed = said[1]
    due = (home.address,) if home is not None and (programmed.true or programmed.pending) else ()
    shown = due if programmed.true else ()
    sets = sum(
        any(view.serves for id_, view in state.listeners.items() if id_[1] == name)
        for name in state.sets
    )
    return GatewaySays(tuple(said), tuple(own.values()), shown, due, sets, state.vs)


def _true(listener: ListenerSays, type_: str) -> bool:
    return any(one.type == type_ and one.true for one in listener.conditions)


def _accepted(state: GatewayState) -> Says:
    refused = first(state.findings, "Accepted")
    if refused is not None:
        return Says("Accepted", False, refused.reason, text(state.findings, "Accepted"))
    own = [view for id_, view in state.listeners.items() if id_[0] == "Gateway"]
    bad = [view for view in own if not view.serves]
    message = ""
    if bad:
        names = ", ".join(view.id[2] for view in bad)
        message = f"Listeners {names} are not served: their status says why."
    if not any(view.accepted for view in state.listeners.values()):
        return Says("Accepted", False, "ListenersNotValid", message or "It has no listener.")
    refused_listeners = any(not view.accepted for view in bad)
    return Says("Accepted", True, "ListenersNotValid" if refused_listeners else "Accepted", message)


def _gateway_programmed(
    at: Reconciler,
    state: GatewayState,
    found: Iterable[Finding],
    listeners: tuple[ListenerSays, ...],
) -> Says:
    if not state.accepted:
        return Says("Programmed", False, "Invalid", "It is not accepted.")
    wrong = first(found, "Programmed")
    if wrong is not None:
        return Says("Programmed", False, wrong.reason, text(found, "Programmed"))
    service = at.placement.services.get(state.vs)
    if service is None or service.shown is None:
        return Says("Programmed", False, "AddressNotAssigned", "It waits for an address.")
    said = [c for one in listeners for c in one.conditions if c.type == "Programmed"]
    pending = next((one for one in said if one.pending), None)
    if pending is not None:
        return Says("Programmed", False, "Pending", pending.message, pending=True)
    if said and not any(one.true for one in said):
        return Says("Programmed", False, "Invalid", "None of its listeners is served.")
    return Says("Programmed", True, "Programmed")


def _vip_findings(at: Reconciler, state: GatewayState) -> list[Finding]:
    """What keeps a Gateway from its address."""
    service = at.placement.services.get(state.vs)
    if service is None:
        return []
    out: list[Finding] = []

    def no(type_: Type, field: str, reason: str, remedy: str) -> None:
        object_ = f"{GATEWAY}/{state.gateway.metadata.key}"
        out.append(
            Finding(type_, Refusal(object=object_, field=field, reason=reason, remedy=remedy))
        )

    asked = service.wanted
    field = next(
        (
            f"spec.addresses[{i}].value"
            for i, one in enumerate(state.gateway.spec.addresses)
            if one.value == asked
        ),
        "spec.addresses",
    )
    pool = at.placement.pools.get(service.infra.network)
    network = service.infra.network
    if service.over:
        no("Programmed", "status.addresses", "AddressNotAssigned", vip_limit(service)[1])
    elif service.exhausted:
        remedy = f"Network {network} has no free address for it. Widen its vipRanges."
        no("Programmed", "status.addresses", "AddressNotAssigned", remedy)
    elif service.misplaced and pool is not None:
        keeps = f" Until then it stays at {service.homes[-1].address}." if service.homes else ""
        holder = pool.holder(asked)
        if not pool.contains(asked):
            ranges = ", ".join(f"{r.begin}-{r.end}" for r in pool.spec.vip_ranges)
            remedy = (
                f"{asked} is not in the vipRanges of Network {network}: {ranges}."
                f" Choose one of these.{keeps}"
            )
            no("Programmed", field, "AddressNotUsable", remedy)
        elif holder is not None and holder != service.name:
            remedy = (
                f"{asked} is of {_whose(at, holder)}, which had it first. Choose another.{keeps}"
            )
            no("Programmed", field, "AddressNotUsable", remedy)
    return out


def _whose(at: Reconciler, vs: str) -> str:
    if (key := at.gateway_api.owners.get(vs)) is not None:
        return f"Gateway {key}"
    front = at.l4.front_of(vs)
    return at.l4.speaker(front) if front is not None else f"virtual service {vs}"


def gateways(at: Reconciler) -> list[dict[str, Any]]:
    """Every Gateway of ours, as `akocore get gateway` shows them."""
    found = sorted(at.gateway_api.gateways)
    return each(at.faults, GATEWAY, found, lambda key: _gateway_shown(at, key))


def _gateway_shown(at: Reconciler, key: str) -> dict[str, Any]:
    said = gateway(at, key)
    assert said is not None
    obj = cast(GatewayApiGateway, at.store.all(GATEWAY)[key])
    programmed = said.conditions[1]
    wrong = next((one for one in said.conditions[:2] if not one.true), programmed)
    return {
        "apiVersion": f"{GATEWAY_API}/v1",
        "metadata": {
            "namespace": obj.metadata.namespace,
            "name": obj.metadata.name,
            "creationTimestamp": obj.metadata.creation_timestamp,
        },
        "spec": {
            "gatewayClassName": obj.spec.gateway_class_name,
            "listeners": [f"{one.protocol}/{one.port}" for one in obj.spec.listeners],
            "virtualService": said.vs,
        },
        "status": {
            "ours": True,
            "scheduled": bool(said.vs),
            "ready": programmed.true,
            "pending": said.pending,
            "reason": wrong.reason,
            "message": wrong.message,
            "addresses": [{"type": "IPAddress", "value": one} for one in said.addresses],
            "listeners": [
                {
                    "port": spec.port,
                    "protocol": spec.protocol,
                    "name": one.name,
                    "attachedRoutes": one.attached,
                    "ready": one.conditions[1].true,
                    "reason": one.conditions[1].reason,
                    "message": one.conditions[1].message,
                }
                for spec, one in zip(obj.spec.listeners, said.listeners, strict=True)
            ],
            "conditions": [condition(r) for r in refusals(at, GATEWAY, key) or ()],
        },
    }


def listener_set(at: Reconciler, key: str) -> GatewaySays | None:
    """One ListenerSet; None: its Gateway is not ours."""
    obj = cast(ListenerSet, at.store.all("ListenerSet")[key])
    parent = parent_of(obj.spec.parent_ref, obj.metadata.namespace)
    state = at.gateway_api.gateways.get(parent[1]) if parent and parent[0] == "Gateway" else None
    if state is None:
        return None
    if key not in state.sets:
        message = "The Gateway does not let it join: see its spec.allowedListeners."
        no = (
            Says("Accepted", False, "NotAllowed", message),
            Says("Programmed", False, "NotAllowed", message),
        )
        return GatewaySays(no, ())
    views = [view for id_, view in state.listeners.items() if id_[1] == key]
    listeners = tuple(_listener(at, state, view) for view in views)
    good = [one for view, one in zip(views, listeners, strict=True) if view.serves]
    if first(state.findings, "Accepted") is not None:
        message = "The Gateway is not accepted: its status says why."
        accepted = Says("Accepted", False, "ParentNotAccepted", message)
        return GatewaySays((accepted, _not("ParentNotAccepted", message)), listeners)
    if not good:
        message = "None of its listeners is served: their status says why."
        accepted = Says("Accepted", False, "ListenersNotValid", message)
        return GatewaySays((accepted, _not("ListenersNotValid", message)), listeners)
    some = len(good) < len(listeners)
    accepted = Says("Accepted", True, "ListenersNotValid" if some else "Accepted")
    said = [c for one in good for c in one.conditions if c.type == "Programmed"]
    pending = next((one for one in said if one.pending), None)
    if pending is not None:
        programmed = Says("Programmed", False, "Pending", pending.message, pending=True)
    elif any(one.true for one in said):
        programmed = Says("Programmed", True, "Programmed")
    else:
        programmed = _not("ListenersNotValid", "None of its listeners is served.")
    return GatewaySays((accepted, programmed), listeners, vs=state.vs)


def _not(reason: str, message: str) -> Says:
    return Says("Programmed", False, reason, message)


# ── routes ──────────────────────────────────────────────────────────────────────────────────


def route(at: Reconciler, id_: RouteId) -> list[tuple[ParentReference, tuple[Says, ...]]]:
    """What a route says under each of its parents that are ours, in the order of its spec."""
    state = at.gateway_api.routes.get(id_)
    if state is None:
        return []
    refs = state.route.spec.parent_refs  # type: ignore[attr-defined]
    return [(refs[i], _parent(at, state, found)) for i, (_, found) in sorted(state.parents.items())]


def _findings(at: Reconciler, state: RouteState) -> tuple[Finding, ...]:
    """What is wrong with a route: as it was translated, and faults of ours over it since."""
    found = state.rules.findings
    object_ = f"{state.route.KIND}/{state.route.metadata.key}"
    if at.realiser.court.left_out:
        found = (*found, *_refused_rules(at, state, object_))
    if not at.faults:
        return found
    mine = [Finding("PartiallyInvalid", one) for one in at.faults.of(object_)]
    for ref in sorted(one for one in state.rules.refers if one.startswith("Service/")):
        for said in at.faults.of(ref):
            remedy = f"{ref.replace('/', ' ', 1)}: {said.remedy}"
            refusal = Refusal(object=object_, field="spec.rules", reason=said.reason, remedy=remedy)
            mine.append(Finding("PartiallyInvalid", refusal))
    return (*found, *mine)


def _refused_rules(at: Reconciler, state: RouteState, object_: str) -> list[Finding]:
    """Rules that Service Engines refuse: their paths are answered with a 500."""
    out: dict[Finding, None] = {}
    for rule in state.rules.rules:
        for why in at.realiser.court.left_out.get((rule.grpc, rule.name), {}).values():
            refusal = Refusal(
                object=object_,
                field=f"spec.rules[{rule.name.rpartition('/')[2]}]",
                reason="EngineRejected",
                remedy=f"Service Engines refuse it: {why}. Its requests get a 500.",
            )
            out[Finding("PartiallyInvalid", refusal)] = None
    return list(out)


def _parent(at: Reconciler, state: RouteState, attached: Attached) -> tuple[Says, ...]:
    found = _findings(at, state)
    dropped = first(found, "PartiallyInvalid")
    lost, all_lost = at.gateway_api.lost(state, attached)
    if not attached.accepted:
        accepted = Says("Accepted", False, attached.reason, attached.message)
    elif all_lost:
        accepted = Says("Accepted", False, *_lost(state, lost))
    elif state.rules.none and dropped is not None:
        message = text(found, "PartiallyInvalid")
        accepted = Says("Accepted", False, dropped.reason, message)
    else:
        accepted = Says("Accepted", True, "Accepted")
    unresolved = first(found, "ResolvedRefs")
    said = [
        accepted,
        Says(
            "ResolvedRefs",
            unresolved is None,
            unresolved.reason if unresolved is not None else "ResolvedRefs",
            text(found, "ResolvedRefs"),
        ),
    ]
    if dropped is not None and accepted.true:
        message = f"Dropped Rule: {text(found, 'PartiallyInvalid')}"
        said.append(Says("PartiallyInvalid", True, "UnsupportedValue", message))
    elif lost and accepted.true:
        said.append(Says("PartiallyInvalid", True, *_lost(state, lost)))
    if left_out := _left_out(at, (state.route.KIND, state.route.metadata.key)):
        message = "; ".join(one.remedy for one in left_out)
        said.append(Says(LEFT_OUT, True, left_out[0].reason, message))
    return tuple(said)


def _lost(state: RouteState, lost: Mapping[str, RouteId]) -> tuple[str, str]:
    """(reason, message) of hosts that other routes have."""
    kind, key = min(lost.items())[1]
    hosts = ", ".join(sorted(lost))
    if kind != state.route.KIND:
        return "HostnameConflict", (
            f"{kind} {key}, which came first, has {hosts}: routes of one kind share a host."
        )
    return "HostClaimed", (
        f"{hosts}: namespace {key.partition('/')[0]} has it, whose {kind} {key} named it first."
        " Choose another host, or let an administrator share hosts:"
        " L7Settings.fqdnReusePolicy InterNamespaceAllowed."
    )


def _left_out(at: Reconciler, id_: RouteId) -> list[Refusal]:
    """What endpoints of its Services are none.  Cost: its Services."""
    if not at.endpoints:
        return []
    return [
        one
        for service in at.gateway_api.services_of(id_)
        for one in at.endpoints.told("/".join(id_), "spec.rules", service, warning=True)
    ]


def routes(at: Reconciler, kind: str) -> list[dict[str, Any]]:
    """Every route of a kind that has a parent of ours."""
    found = sorted(id_ for id_ in at.gateway_api.routes if id_[0] == kind)
    return each(at.faults, kind, found, lambda id_: _route_shown(at, id_), lambda id_: id_[1])


def _route_shown(at: Reconciler, id_: RouteId) -> dict[str, Any]:
    state = at.gateway_api.routes[id_]
    meta = state.route.metadata
    return {
        "metadata": {
            "namespace": meta.namespace,
            "name": meta.name,
            "creationTimestamp": meta.creation_timestamp,
        },
        "spec": {
            "hostnames": list(getattr(state.route.spec, "hostnames", ())),  # type: ignore[attr-defined]
        },
        "status": {
            "parents": [
                {
                    "name": ref.name,
                    "sectionName": ref.section_name or "",
                    "conditions": [
                        {
                            "type": one.type,
                            "status": str(one.true),
                            "reason": one.reason,
                            "message": one.message,
                        }
                        for one in said
                    ],
                }
                for ref, said in route(at, id_)
            ],
            "conditions": [condition(r) for r in refusals(at, *id_) or ()],
        },
    }


def _route_refusals(at: Reconciler, id_: RouteId) -> list[Refusal] | None:
    state = at.gateway_api.routes.get(id_)
    if state is None:
        return None
    object_ = f"{id_[0]}/{id_[1]}"
    out = [one.refusal for one in _findings(at, state)]
    for i, (_, found) in sorted(state.parents.items()):
        said = _parent(at, state, found)[0]
        lost, all_lost = at.gateway_api.lost(state, found)
        if lost and not all_lost:
            reason, remedy = _lost(state, lost)
            out.append(
                Refusal(object=object_, field="spec.hostnames", reason=reason, remedy=remedy)
            )
        if not said.true and not state.rules.none:
            field = f"spec.parentRefs[{i}]"
            out.append(
                Refusal(object=object_, field=field, reason=said.reason, remedy=said.message)
            )
    out += _left_out(at, id_)
    rejecting = [engine for engine in at.ads.fleet.values() if engine.rejected]
    if rejecting:
        wanted = _resources(at, state)
        out += [
            Refusal(
                object=object_,
                field="spec.rules",
                reason="EngineRejected",
                remedy=f"Service Engines refuse it: {found.message}.",
            )
            for engine in rejecting
            for what, found in engine.rejected.items()
            if what in wanted
        ]
    return list(dict.fromkeys(out))


def _resources(at: Reconciler, state: RouteState) -> set[tuple[str, str]]:
    """What is published of the hosts that a route speaks for.  Cost: all hosts of its Gateways."""
    out: set[tuple[str, str]] = set()
    for (key, listener), hosts in state.on.items():
        gateway = at.gateway_api.gateways.get(key)
        service = at.placement.services.get(gateway.vs) if gateway is not None else None
        if service is None or service.gateway is None:
            continue
        for place, placed in service.gateway.hosts.items():
            tried = at.realiser.court.trying((service.name, place))  # it is not known yet
            if placed.owner == listener and place.host in hosts and not tried:
                out |= {(SRDS, name) for _, name in placed.scopes}
                out |= {(CDS, cluster_name(cluster)) for _, _, cluster in placed.backends}
    return out


# ── policies ────────────────────────────────────────────────────────────────────────────────


def policy(at: Reconciler, key: str) -> list[tuple[ParentReference, tuple[Says, ...]]]:
    """What a BackendTLSPolicy says under each Gateway that it has to do with."""
    seen = at.gateway_api.policies.get(key)
    if seen is None:
        return []
    refused = _policy_findings(at, key)
    wrong, unresolved = first(refused, "Accepted"), first(refused, "ResolvedRefs")
    said = (
        Says(
            "Accepted",
            wrong is None,
            wrong.reason if wrong is not None else "Accepted",
            text(refused, "Accepted"),
        ),
        Says(
            "ResolvedRefs",
            unresolved is None,
            unresolved.reason if unresolved is not None else "ResolvedRefs",
            text(refused, "ResolvedRefs"),
        ),
    )
    out: list[tuple[ParentReference, tuple[Says, ...]]] = []
    for one in at.gateway_api.ancestors(key):
        namespace, _, name = one.partition("/")
        ref = ParentReference(name, GATEWAY_API, "Gateway", namespace)
        out.append((ref, said))
    return out


def _policy_findings(at: Reconciler, key: str) -> list[Finding]:
    seen = at.gateway_api.policies[key]
    found = list(seen.findings)
    for i, (service, port) in enumerate(seen.targets):
        obj = at.store.service(service)
        if obj is None or (port and all(one.name != port for one in obj.spec.ports)):
            what = f"port {port} of Service {service}" if port else f"Service {service}"
            refusal = Refusal(
                object=f"BackendTLSPolicy/{key}",
                field=f"spec.targetRefs[{i}]",
                reason="TargetNotFound",
                remedy=f"There is no {what}. Create it.",
            )
            found.append(Finding("Accepted", refusal))
    winners = [at.gateway_api.policy_of(target) for target in seen.targets]
    if winners and key not in winners:
        remedy = f"BackendTLSPolicy {winners[0]}, which came first, has its targets. Take one away."
        refusal = Refusal(
            object=f"BackendTLSPolicy/{key}",
            field="spec.targetRefs",
            reason="Conflicted",
            remedy=remedy,
        )
        found.insert(0, Finding("Accepted", refusal))
    return found


# ── refusals ────────────────────────────────────────────────────────────────────────────────


def refusals(at: Reconciler, kind: str, key: str) -> list[Refusal] | None:
    """Everything that is refused of an object; None: it is gone, or not ours."""
    if kind == GATEWAY_CLASS:
        cls = at.store.all(kind).get(key)
        return (
            None if cls is None else list(at.gateway_api.class_refusals(cast(GatewayApiClass, cls)))
        )
    if kind == GATEWAY:
        state = at.gateway_api.gateways.get(key)
        if state is None:
            return None
        mine = f"{GATEWAY}/{key}"
        found = [*state.findings, *_vip_findings(at, state)]
        found += [f for view in state.listeners.values() for f in _found(at, state, view)]
        refused = [f.refusal for f in found if f.refusal.object == mine]
        return list(dict.fromkeys((*refused, *at.faults.of(mine))))
    if kind == "ListenerSet":
        if key not in at.store.all(kind):
            return None
        joined = at.gateway_api.gateways.get(at.gateway_api.joined(key) or "")
        if joined is None:
            return []
        views = [view for id_, view in joined.listeners.items() if id_[1] == key]
        return list(dict.fromkeys(f.refusal for v in views for f in _found(at, joined, v)))
    if kind == "BackendTLSPolicy":
        known = key in at.gateway_api.policies
        if not known:
            return None
        refused = [one.refusal for one in _policy_findings(at, key)]
        return [*refused, *at.faults.of(f"BackendTLSPolicy/{key}")]
    return _route_refusals(at, (kind, key))


# ── why ─────────────────────────────────────────────────────────────────────────────────────


def explain(at: Reconciler, kind: str, key: str) -> dict[str, Any] | None:
    """Why a Gateway or a route is where it is; None: there is none of ours."""
    if kind == "gateway":
        return _explain_gateway(at, key)
    id_ = next((id_ for id_ in at.gateway_api.routes if id_ == (_ROUTES.get(kind), key)), None)
    return None if id_ is None else _explain_route(at, id_)


_ROUTES = {kind.KIND.lower(): kind.KIND for kind in ROUTE_KINDS}


def _explain_gateway(at: Reconciler, key: str) -> dict[str, Any] | None:
    said = gateway(at, key)
    if said is None:
        return None
    state = at.gateway_api.gateways[key]
    out: dict[str, Any] = {
        "object": f"Gateway/{key}",
        "by": f"GatewayClass {state.gateway.spec.gateway_class_name}",
        "refused": [condition(r) for r in refusals(at, GATEWAY, key) or ()],
        "ports": [
            {
                "listener": view.id[2],
                "of": "" if view.id[0] == "Gateway" else f"{view.id[0]} {view.id[1]}",
                "serves": f"{view.protocol}/{view.port} {view.hostname or '*'}",
                "attachedRoutes": one.attached,
                "programmed": _true(one, "Programmed"),
                "why": next((c.message or c.reason for c in one.conditions[:3] if not c.true), ""),
            }
            for view in state.listeners.values()
            for one in (_listener(at, state, view),)
        ],
    }
    service = at.placement.services.get(state.vs)
    if service is not None:
        infra = service.infra
        name = infra.setting or "(the defaults of the configuration)"
        out["setting"] = {"name": name, "seGroup": infra.group, "network": infra.network}
        out["virtualService"] = virtual_service(at, service)["status"] | {"name": service.name}
        out["address"] = "asked for in spec.addresses" if service.wanted else "given by IPAM"
    return out


def _explain_route(at: Reconciler, id_: RouteId) -> dict[str, Any]:
    state = at.gateway_api.routes[id_]
    own = state.route.metadata.namespace

    def backends(found: Iterable[Backend]) -> list[dict[str, Any]]:
        return [
            {
                "service": one.backend or "",
                "weight": one.weight,
                "servers": [
                    f"{address}:{port}"
                    for address, port in (at.realiser.members(one.backend) if one.backend else ())
                ],
            }
            for one in found
        ]

    hosts: dict[str, list[str]] = {}
    for (gateway_key, listener), names in state.on.items():
        at_listener = f"Gateway {gateway_key}, listener {listener[2]}"
        hosts.setdefault(at_listener, []).extend(one or "*" for one in names)
    rules = [{"match": _match(r), "backends": backends(r.backends)} for r in state.rules.rules]
    if state.rules.backends:
        rules.append({"match": "every connection", "backends": backends(state.rules.backends)})
    return {
        "object": f"{id_[0]}/{id_[1]}",
        "refused": [condition(r) for r in refusals(at, *id_) or ()],
        "parents": [
            {
                "parent": f"{ref.kind or 'Gateway'} {ref.namespace or own}/{ref.name}"
                + (f", listener {ref.section_name}" if ref.section_name else ""),
                "wrong": [f"{c.reason}: {c.message}".rstrip(": ") for c in said if not c.true],
            }
            for ref, said in route(at, id_)
        ],
        "hosts": hosts,
        "rules": rules,
    }


def _match(rule: HttpRule) -> str:
    match = rule.match
    words = [match.method] if match.method else []
    words.append(f"{match.path.kind} {match.path.value or '/'}")
    words += [f"{one.name}: {one.text.value}" for one in match.headers]
    words += [f"?{one.name}={one.text.value}" for one in match.query]
    return " ".join(words)
