"""Gateway API: Gateways, ListenerSets and routes → virtual services, ports and hosts.

    change ─▶ views, who refers to whom ─▶ dirty gateways, routes, hosts ─▶ translate ─▶ realise

The unit of work is the host of a listener: an edit of a route costs its own translation and the
hosts that it speaks for, among however many routes of the Gateway; an edit of a Gateway costs its
listeners and, if they came out differently, its routes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import cast

from msgspec import Struct, field

from akocore.config import Limits
from akocore.faults import INTERNAL_ERROR, Faults, without_faulty
from akocore.infrastructure import Infrastructure
from akocore.kube.gateway_objects import (
    DEFINITION,
    GATEWAY,
    GATEWAY_CLASS,
    ROUTE_KINDS,
    BackendTLSPolicy,
    ConfigMap,
    GatewayApiClass,
    GatewayApiGateway,
    ListenerSet,
    ReferenceGrant,
    Route,
)
from akocore.kube.meta import Object, only_status
from akocore.kube.objects import Change, Namespace, ServicePort
from akocore.model import Refusal
from akocore.model_http import Backend, BackendTls, HttpHost, HttpMatch, HttpRule, TextMatch
from akocore.place.virtual_services import Placement, VirtualService
from akocore.realise_gateway import GatewayRealiser, HostAt
from akocore.shown import quoted
from akocore.store import Store
from akocore.translate.classes import CONTROLLER, SETTING_ANNOTATION, Infra
from akocore.translate.gateway_api import classes
from akocore.translate.gateway_api.attachment import (
    Attached,
    Parent,
    allows_namespace,
    attach,
    parent_of,
)
from akocore.translate.gateway_api.backends import Context
from akocore.translate.gateway_api.budget import fitting
from akocore.translate.gateway_api.found import Finding, ListenerId, RouteId, first
from akocore.translate.gateway_api.grants import permits
from akocore.translate.gateway_api.listeners import ListenerView, listeners, without_findings
from akocore.translate.gateway_api.policies import PolicyView, Target
from akocore.translate.gateway_api.policies import refused as refused_policy
from akocore.translate.gateway_api.policies import view as policy_view
from akocore.translate.gateway_api.ports import chain_of, gateway_port, meant
from akocore.translate.gateway_api.rules import RouteRules, host, rules_of, with_certificate
from akocore.translate.gateway_api.rules import refused as refused_rules
from akocore.translate.names import Names
from akocore.translate.services import is_address
from akocore.translate.tls import Certificate, CertificateProblem, bundle

__all__ = ["GatewayApi", "GatewayState", "RouteState"]

Id = tuple[str, str]  # (kind as stored, key)
_DEFINITION = f"CustomResourceDefinition/{DEFINITION}"
_HTTP = ("HTTP", "HTTPS")
_MISDIRECTED: ListenerId = ("", "", "misdirected")
_ROUTES = {kind.KIND for kind in ROUTE_KINDS}
_KINDS = {GATEWAY, GATEWAY_CLASS, "ListenerSet", "ReferenceGrant", "BackendTLSPolicy", *_ROUTES}


class RouteState(Struct):
    """A route as it is now.  ``parents``: by index of its parentRefs, of Gateways of ours."""

    route: Route
    rules: RouteRules
    parents: dict[int, tuple[Parent, Attached]]
    on: dict[tuple[str, ListenerId], tuple[str, ...]]  # (Gateway's key, listener) → hosts

    @property
    def age(self) -> tuple[str, str]:
        meta = self.route.metadata
        return meta.creation_timestamp or "~", meta.key


class GatewayState(Struct):
    """A Gateway of ours as it is now.

    ``vs``: its virtual service, "" while it has none; ``sets``: the ListenerSets that joined.
    """

    gateway: GatewayApiGateway
    listeners: dict[ListenerId, ListenerView] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()
    vs: str = ""
    sets: tuple[str, ...] = ()
    certificate: str = ""  # Secret that is shown to backends with TLS
    # listener → host → routes that speak for it
    on: dict[ListenerId, dict[str, set[RouteId]]] = field(default_factory=dict)
    routes: dict[ListenerId, set[RouteId]] = field(default_factory=dict)  # attached to each
    refused: dict[ListenerId, set[RouteId]] = field(default_factory=dict)  # of these: not Accepted
    # where not all that ask for a host have it (`GatewayApi._shares`): the route that came first
    first: dict[tuple[ListenerId, str], RouteId] = field(default_factory=dict)

    @property
    def accepted(self) -> bool:
        return not any(one.type == "Accepted" for one in self.findings) and any(
            one.accepted for one in self.listeners.values()
        )


class GatewayApi:
    """Follows what `take` is given when `follow` is called.

    ``touched``: objects (kind as stored, key) that may say something else now; who reads it clears
    it.  ``named``: Secrets and ConfigMaps ("Kind/namespace/name") that somebody names.
    ``strict``: a host of a listener is one namespace's alone.
    """

    def __init__(
        self,
        store: Store,
        names: Names,
        infrastructure: Infrastructure,
        placement: Placement,
        realiser: GatewayRealiser,
        certificate: Callable[[str], Certificate | CertificateProblem | None],
        faults: Faults | None = None,
        limits: Limits = Limits(),  # noqa: B008  (frozen)
        *,
        strict: bool = False,
    ) -> None:
        self._limits = limits
        self._strict = strict
        self._faults = faults if faults is not None else Faults()
        self.gateways: dict[str, GatewayState] = {}
        self.routes: dict[RouteId, RouteState] = {}
        self.touched: set[Id] = set()
        self.named: set[str] = set()
        self.owners: dict[str, str] = {}  # virtual service → Gateway's key
        self._store = store
        self._names = names
        self._infrastructure = infrastructure
        self._placement = placement
        self._realiser = realiser
        self._context = Context(
            *(store.service, self._permits, self._tls, limits),
            *(realiser.expressions, realiser.largest_expression),
        )
        self._certificate = certificate
        self._refers: dict[str, set[Id]] = {}  # "Kind/name" → who depends on it
        self._refers_of: dict[Id, frozenset[str]] = {}
        self._grants: dict[str, dict[str, ReferenceGrant]] = {}  # by namespace
        self._sets_of: dict[str, set[str]] = {}  # Gateway's key → ListenerSets that name it
        self._joined: dict[str, str] = {}  # ListenerSet → the Gateway of ours that it joined
        self.policies: dict[str, PolicyView] = {}
        self._policies_of: dict[Target, set[tuple[str, str, str]]] = {}  # oldest first
        self._policies_due: set[str] = set()
        self._gateways_due: set[str] = set()
        self._routes_due: set[RouteId] = set()
        self._hosts_due: set[tuple[str, ListenerId, str]] = set()
        self._listeners_due: set[str] = set()  # Gateways whose listeners came out differently
        self._ports_due: set[tuple[str, tuple[str, int]]] = set()
        self._counts_due: set[RouteId] = set()

    # ── events ──────────────────────────────────────────────────────────────────────────────

    def take(self, change: Change, old: Object | None) -> None:
        """Take in any change, after the store has.  Cost: who depends on it."""
        key, kind = change.key, change.kind
        if kind in _KINDS and only_status(old, change.obj):
            self.touched.add((kind, key))
            return
        if kind in _ROUTES:
            self._routes_due.add((kind, key))
        elif kind == GATEWAY:
            self._gateways_due.add(key)
            self._refer_to(f"Gateway/{key}")
        elif kind == GATEWAY_CLASS:
            known = self._store.all(GATEWAY_CLASS)
            (self.named.add if known else self.named.discard)(_DEFINITION)
            self.touched.add((kind, key))
            self._refer_to(f"{kind}/{key}")
        elif kind == "ListenerSet":
            for obj in (old, change.obj):
                if isinstance(obj, ListenerSet):
                    self._take_set(key, obj, there=obj is change.obj)
            self._refer_to(f"ListenerSet/{key}")
            self.touched.add((kind, key))
        elif kind == "BackendTLSPolicy":
            self._policies_due.add(key)
        elif kind == "ReferenceGrant":
            namespace = key.partition("/")[0]
            grants = self._grants.setdefault(namespace, {})
            grants.pop(key, None)
            if isinstance(change.obj, ReferenceGrant):
                grants[key] = change.obj
            self._refer_to(f"ReferenceGrant/{namespace}")
        elif kind == "Namespace":
            if _namespace(old) != _namespace(change.obj):
                self._refer_to(f"Namespace/{key}")
        elif kind in ("Service", "Secret", "ConfigMap"):
            self._refer_to(f"{kind}/{key}")
            if kind == "Service":
                self._touch_policies((f"Service/{key}",))
        elif kind == "CustomResourceDefinition" and key == DEFINITION:
            self.touched.update((GATEWAY_CLASS, name) for name in self._store.all(GATEWAY_CLASS))

    def take_expired(self, secrets: Iterable[str]) -> bool:
        """These certificates have expired; whether somebody names one of them."""
        mine = [key for key in secrets if self.uses_secret(key)]
        for key in mine:
            self._refer_to(f"Secret/{key}")
        return bool(mine)

    def take_settings(self, names: Iterable[str]) -> None:
        """These AviInfraSettings came out differently."""
        changed = set(names)
        for name in changed:
            self._refer_to(f"AviInfraSetting/{name}")
        for key, cls in self._store.all(GATEWAY_CLASS).items():
            ref = cast(GatewayApiClass, cls).spec.parameters_ref
            if ref is not None and ref.name in changed:
                self.touched.add((GATEWAY_CLASS, key))

    def _take_set(self, key: str, obj: ListenerSet, *, there: bool) -> None:
        parent = parent_of(obj.spec.parent_ref, obj.metadata.namespace)
        if parent is None or parent[0] != "Gateway":
            return
        sets = self._sets_of.setdefault(parent[1], set())
        (sets.add if there else sets.discard)(key)
        if not sets:
            del self._sets_of[parent[1]]
        self._gateways_due.add(parent[1])

    def _refer_to(self, ref: str) -> None:
        for kind, key in self._refers.get(ref, ()):
            if kind == GATEWAY:
                self._gateways_due.add(key)
            elif kind == "BackendTLSPolicy":
                self._policies_due.add(key)
            else:
                self._routes_due.add((kind, key))

    def _set_refers(self, who: Id, refers: frozenset[str]) -> None:
        before = self._refers_of.pop(who, frozenset())
        if refers:
            self._refers_of[who] = refers
        for ref in before - refers:
            self._refers[ref].discard(who)
            if not self._refers[ref]:
                del self._refers[ref]
                self.named.discard(ref)
        for ref in refers - before:
            self._refers.setdefault(ref, set()).add(who)
            if ref.startswith(("Secret/", "ConfigMap/")):
                self.named.add(ref)

    # ── following ───────────────────────────────────────────────────────────────────────────

    def follow(
        self,
        settle: Callable[[VirtualService, Infra], None],
        close: Callable[[VirtualService], None],
    ) -> None:
        """Translate, place and realise what is due.  Cost: that.

        ``settle`` gives a virtual service the home that it wants, ``close`` takes all.
        """
        policies, self._policies_due = self._policies_due, set()
        run = self._faults.run
        for key in sorted(policies):
            run(("policy", key), f"BackendTLSPolicy/{key}", self._policy, key)
        while self._gateways_due:
            due, self._gateways_due = self._gateways_due, set()
            for key in sorted(due, key=self._age):
                unit: tuple[object, ...] = ("gateway", key)
                run(unit, f"{GATEWAY}/{key}", self._gateway, key, settle, close)
                if self._faults.failed(unit):
                    self._refuse_gateway(key, close)
        routes, self._routes_due = self._routes_due, set()
        for id_ in sorted(routes):
            run(("route", id_), "/".join(id_), self._route, id_)
        hosts, self._hosts_due = self._hosts_due, set()
        ports, self._ports_due = self._ports_due, set()
        changed, self._listeners_due = self._listeners_due, set()
        for key in sorted(changed):
            run(("misdirected", key), f"{GATEWAY}/{key}", self._misdirected, key)
        for one in sorted(hosts):
            run(("host", *one), f"{GATEWAY}/{one[0]}", self._host, *one)
        for key, at in sorted(ports):
            unit = ("port", key, *at)
            run(unit, f"{GATEWAY}/{key}", self._port, key, at)
            if self._faults.failed(unit):
                run(("no port", key, *at), f"{GATEWAY}/{key}", self._close_port, key, at)
        counts, self._counts_due = self._counts_due, set()
        for id_ in counts:
            run(("count", id_), "/".join(id_), self._count, id_)

    def _age(self, key: str) -> tuple[bool, str, str]:
        """Who asks for just one address goes before those that take any, then the older."""
        obj = cast("GatewayApiGateway | None", self._store.all(GATEWAY).get(key))
        if obj is None:
            return False, "", key  # gone: what it had is free
        return not obj.spec.addresses, obj.metadata.creation_timestamp or "~", key

    # ── gateways ────────────────────────────────────────────────────────────────────────────

    def _gateway(
        self,
        key: str,
        settle: Callable[[VirtualService, Infra], None],
        close: Callable[[VirtualService], None],
    ) -> None:
        obj = cast("GatewayApiGateway | None", self._store.all(GATEWAY).get(key))
        self.touched.add((GATEWAY, key))
        usable = self._infrastructure.infras
        by = classes.govern(obj, self._store, usable) if obj is not None else None
        state = self.gateways.get(key)
        if obj is None or by is None or not by.ours:
            self._set_refers((GATEWAY, key), by.refers if by is not None else frozenset())
            if state is not None:
                self._withdraw(key, state, close)
                del self.gateways[key]
                self._refer_to(f"Gateway/{key}")
                self._let_sets_go(key, state.sets)
            return
        refers = set(by.refers)
        new = state is None
        if state is None:
            state = self.gateways[key] = GatewayState(obj)
        state.gateway = obj
        findings: list[Finding] = []
        if by.refusal is not None:
            findings.append(Finding("Accepted", by.refusal))
        address = _address(obj, findings)
        _warn(obj, findings)
        shown = self._client_certificate(obj, findings, refers)
        if state.certificate != shown:
            state.certificate = shown
            self._hosts_of(key, state)
        sets = self._sets(obj, refers)
        before, state.listeners = state.listeners, self._listeners(obj, sets, refers)
        self._join(key, state, tuple(one.metadata.key for one in sets))
        self._set_refers((GATEWAY, key), frozenset(refers))
        plain = self._names.gateway(obj.metadata.namespace, obj.metadata.name)
        vs = self._placement.named(f"{GATEWAY}/{key}", plain)
        state.findings = tuple(findings)
        if state.accepted and by.setting is not None:
            self._serve(key, state, vs, usable[by.setting], address, settle)
        else:
            self._withdraw(key, state, close)
        if new or _attachable(before) != _attachable(state.listeners):
            self._refer_to(f"Gateway/{key}")
            for one in sets:
                self._refer_to(f"ListenerSet/{one.metadata.key}")
        if before != state.listeners:
            self._ports_of(key, before)
            self._hosts_of(key, state)
            if state.vs:
                stays = {
                    id_: (one.port, chain_of(one))
                    for id_, one in state.listeners.items()
                    if one.protocol in _HTTP
                }
                self._realiser.drop_hosts(
                    self._placement.services[state.vs],
                    lambda at, placed: (
                        placed.owner != _MISDIRECTED
                        and stays.get(placed.owner) != (at.port, at.chain)
                    ),
                )
        self._ports_of(key, state.listeners)

    def _refuse_gateway(self, key: str, close: Callable[[VirtualService], None]) -> None:
        """We failed over a Gateway: it is not served, as if it had no listener."""
        obj = cast("GatewayApiGateway | None", self._store.all(GATEWAY).get(key))
        state = self.gateways.get(key)
        if obj is None or state is None:
            return
        state.gateway, state.listeners = obj, {}
        found = self._faults.of(f"{GATEWAY}/{key}")
        state.findings = tuple(Finding("Accepted", one) for one in found)
        self._withdraw(key, state, close)
        self._refer_to(f"Gateway/{key}")
        self._let_sets_go(key, state.sets)
        state.sets = ()

    def _listeners(
        self, obj: GatewayApiGateway, sets: list[ListenerSet], refers: set[str]
    ) -> dict[ListenerId, ListenerView]:
        def check(kind: str, name: str) -> tuple[str, str] | None:
            refers.add(f"{kind}/{name}")
            return self._check(kind, name)

        def may(kind: str, namespace: str, to: str, name: str) -> bool:
            refers.add(f"ReferenceGrant/{name.partition('/')[0]}")
            return self._permits(kind, namespace, to, name)

        return {one.id: one for one in listeners(obj, sets, check, may, self._limits.listeners)}

    def _client_certificate(
        self, obj: GatewayApiGateway, findings: list[Finding], refers: set[str]
    ) -> str:
        """The Secret that a Gateway shows to backends with TLS; "": none that can be used."""
        backend = obj.spec.tls.backend if obj.spec.tls is not None else None
        ref = backend.client_certificate_ref if backend is not None else None
        if ref is None:
            return ""
        field_ = "spec.tls.backend.clientCertificateRef"
        namespace = obj.metadata.namespace
        name = f"{ref.namespace or namespace}/{ref.name}"

        def no(reason: str, remedy: str) -> str:
            findings.append(_found(obj, "ResolvedRefs", field_, reason, remedy))
            return ""

        if ref.group not in ("", "core") or ref.kind != "Secret":
            what = f"{quoted(ref.kind)} of group {quoted(ref.group or 'core')}"
            return no("InvalidClientCertificateRef", f"{what} holds no certificate: name a Secret.")
        refers.add(f"ReferenceGrant/{name.partition('/')[0]}")
        if ref.namespace not in ("", namespace) and not self._permits(
            "Gateway", namespace, "Secret", name
        ):
            remedy = f"Create a ReferenceGrant in {ref.namespace} for Gateways of {namespace}."
            return no("RefNotPermitted", remedy)
        refers.add(f"Secret/{name}")
        problem = self._check("Secret", name)
        return name if problem is None else no("InvalidClientCertificateRef", problem[1])

    def _check(self, kind: str, name: str) -> tuple[str, str] | None:
        """What is wrong with a Secret of a certificate, or a ConfigMap of authorities."""
        if kind == "Secret":
            found = self._certificate(name)
            if found is None:
                return "NotFound", f"Create Secret {name} with tls.crt and tls.key."
            if isinstance(found, CertificateProblem):
                return found.reason, f"Secret {name}, {found.field}: {found.remedy}"
            return None
        obj = self._store.all("ConfigMap").get(name)
        data = obj.data if isinstance(obj, ConfigMap) else None
        if obj is None:
            return "NotFound", f"Create ConfigMap {name} with ca.crt."
        if (has := len((data or {}).get("ca.crt", ""))) > self._limits.authorities_bytes:
            most = self._limits.authorities_bytes
            return "Invalid", f"ca.crt of ConfigMap {name} has {has} bytes, at most {most} may be."
        if not self._authorities(name):
            return "Invalid", f"ConfigMap {name} has no PEM certificate as ca.crt. Add it."
        return None

    def _permits(self, kind: str, namespace: str, to_kind: str, to: str) -> bool:
        there, _, name = to.partition("/")
        return permits(self._grants.get(there, {}).values(), kind, namespace, to_kind, name)

    def _sets(self, obj: GatewayApiGateway, refers: set[str]) -> list[ListenerSet]:
        """The ListenerSets that a Gateway lets join it, oldest first."""
        out = []
        allowed = obj.spec.allowed_listeners.namespaces
        for key in self._sets_of.get(obj.metadata.key, ()):
            one = cast("ListenerSet | None", self._store.all("ListenerSet").get(key))
            if one is None:
                continue
            self.touched.add(("ListenerSet", key))
            namespace = one.metadata.namespace

            def labels(namespace: str = namespace) -> Mapping[str, str]:
                refers.add(f"Namespace/{namespace}")
                return self._labels(namespace)

            own = obj.metadata.namespace
            if allows_namespace(allowed.from_, allowed.selector, own, namespace, labels):
                out.append(one)
        out.sort(key=lambda one: (one.metadata.creation_timestamp or "~", one.metadata.key))
        return out

    def _join(self, key: str, state: GatewayState, sets: tuple[str, ...]) -> None:
        gone = set(state.sets) - set(sets)
        self._let_sets_go(key, gone)
        state.sets = sets
        for one in sets:
            if self._joined.get(one) != key:
                self._refer_to(f"ListenerSet/{one}")
            self._joined[one] = key

    def _let_sets_go(self, key: str, sets: Iterable[str]) -> None:
        for one in sets:
            if self._joined.get(one) == key:
                del self._joined[one]
            self.touched.add(("ListenerSet", one))
            self._refer_to(f"ListenerSet/{one}")

    def _labels(self, namespace: str) -> Mapping[str, str]:
        obj = self._store.namespace(namespace)
        labels = (obj.metadata.labels if obj is not None else None) or {}
        return {"kubernetes.io/metadata.name": namespace, **labels}

    def _serve(
        self,
        key: str,
        state: GatewayState,
        vs: str,
        infra: Infra,
        address: str,
        settle: Callable[[VirtualService, Infra], None],
    ) -> None:
        new = not state.vs
        state.vs = vs
        self.owners[vs] = key
        service = self._placement.gateway_service(vs, infra, f"{GATEWAY}/{key}")
        if new:  # it may have been another life's, which is not over yet
            self._realiser.drop_hosts(service, lambda _at, _placed: True)
            for at in list(service.gateway.ports if service.gateway is not None else ()):
                self._ports_due.add((key, at))
        service.wanted = address
        self._placement.own(service, state.gateway.metadata.namespace)
        settle(service, infra)
        if new:
            self._ports_of(key, state.listeners)
            self._hosts_of(key, state)

    def _withdraw(
        self, key: str, state: GatewayState, close: Callable[[VirtualService], None]
    ) -> None:
        if not state.vs:
            return
        del self.owners[state.vs]
        close(self._placement.services[state.vs])
        state.vs = ""
        self._hosts_due.update((key, *at) for at in state.first)

    def give_up(self, vs: str, close: Callable[[VirtualService], None]) -> None:
        """A virtual service can't be called as it is: its Gateway is served anew."""
        if (key := self.owners.get(vs)) is not None:
            self._withdraw(key, self.gateways[key], close)
            self._gateways_due.add(key)

    def _ports_of(self, key: str, views: Mapping[ListenerId, ListenerView]) -> None:
        self._ports_due.update((key, one.transport) for one in views.values())

    def _hosts_of(self, key: str, state: GatewayState) -> None:
        """All hosts of a Gateway are to be looked at."""
        self._listeners_due.add(key)
        for id_, hosts in state.on.items():
            self._hosts_due.update((key, id_, one) for one in hosts)
        service = self._placement.services.get(state.vs)
        if service is not None and service.gateway is not None:
            for at, placed in service.gateway.hosts.items():
                if placed.owner != _MISDIRECTED:
                    self._hosts_due.add((key, placed.owner, at.host))
        for id_, view in state.listeners.items():
            if view.protocol in _HTTP:
                self._hosts_due.add((key, id_, view.hostname))

    # ── routes ──────────────────────────────────────────────────────────────────────────────

    def _route(self, id_: RouteId) -> None:
        kind, key = id_
        route = cast("Route | None", self._store.all(kind).get(key))
        old = self.routes.pop(id_, None)
        self.touched.add(id_)
        refers: set[str] = set()
        new: RouteState | None = None
        if route is not None:
            new = self._look_at(route, refers)
            if new is not None:
                self.routes[id_] = new
                refers |= new.rules.refers
        if (before_refers := self._refers_of.get(id_, frozenset())) != refers or old is None:
            self._touch_policies(refers | before_refers)
        elif new is not None and old.on.keys() != new.on.keys():
            self._touch_policies(refers)
        self._set_refers(id_, frozenset(refers))
        self._counts_due.add(id_)
        before = old.on if old is not None else {}
        after = new.on if new is not None else {}
        same = old is not None and new is not None and _rules(old) == _rules(new)
        for at in before | after:
            was, now = before.get(at, ()), after.get(at, ())
            if same and was == now:
                continue
            self._change(id_, at, was, now, same=same)

    def _look_at(self, route: Route, refers: set[str]) -> RouteState | None:
        """A route against its parents; None: none of them is ours."""
        meta = route.metadata
        spec = route.spec  # type: ignore[attr-defined]
        mine = [parent_of(ref, meta.namespace) for ref in spec.parent_refs]
        for parent in mine:
            if parent is not None:
                refers.add(f"{parent[0]}/{parent[1]}")
        if not any(parent is not None and self._state(parent) is not None for parent in mine):
            return None
        rules = self._rules_of(route)
        wrong = None
        if rules.named and not rules.hostnames:
            wrong = Attached({}, "UnsupportedValue", "None of its hostnames can be.")
            fault = first(rules.findings, "PartiallyInvalid")
            if fault is not None and fault.reason == INTERNAL_ERROR:
                wrong = Attached({}, INTERNAL_ERROR, fault.refusal.remedy)

        def labels() -> Mapping[str, str]:
            refers.add(f"Namespace/{meta.namespace}")
            return self._labels(meta.namespace)

        parents: dict[int, tuple[Parent, Attached]] = {}
        on: dict[tuple[str, ListenerId], tuple[str, ...]] = {}
        for i, (ref, parent) in enumerate(zip(spec.parent_refs, mine, strict=True)):
            state = self._state(parent) if parent is not None else None
            if parent is None or state is None:
                continue
            gateway = state.gateway.metadata.key
            views = [one for one in state.listeners.values() if one.id[:2] == parent]
            found = wrong or attach(route.KIND, meta.namespace, rules.hostnames, ref, views, labels)
            parents[i] = (parent, found)
            for id_, hosts in found.hosts.items():
                on[gateway, id_] = tuple(dict.fromkeys((*on.get((gateway, id_), ()), *hosts)))
        return RouteState(route, rules, parents, on)

    def _rules_of(self, route: Route) -> RouteRules:
        try:
            return rules_of(route, self._context)
        except Exception as err:
            return refused_rules(
                self._faults.refusal(f"{route.KIND}/{route.metadata.key}", err, "spec.rules")
            )

    def _state(self, parent: Parent) -> GatewayState | None:
        """The Gateway of ours that a parent is, or has joined."""
        key = parent[1] if parent[0] == "Gateway" else self._joined.get(parent[1])
        return self.gateways.get(key) if key is not None else None

    # ── policies ────────────────────────────────────────────────────────────────────────────

    def _policy(self, key: str) -> None:
        obj = cast("BackendTLSPolicy | None", self._store.all("BackendTLSPolicy").get(key))
        old = self.policies.pop(key, None)
        refers: set[str] = set()
        new: PolicyView | None = None
        if obj is not None:

            def check(kind: str, name: str) -> tuple[str, str] | None:
                refers.add(f"{kind}/{name}")
                return self._check(kind, name)

            try:
                new = policy_view(obj, check, self._authorities)
            except Exception as err:
                new = refused_policy(obj, self._faults.refusal(f"BackendTLSPolicy/{key}", err))
            self.policies[key] = new
        self._set_refers(("BackendTLSPolicy", key), frozenset(refers))
        self.touched.add(("BackendTLSPolicy", key))
        for one in (old, new):
            for target in one.targets if one is not None else ():
                ages = self._policies_of.setdefault(target, set())
                assert one is not None
                (ages.add if one is new else ages.discard)((*one.age, key))
                if not ages:
                    del self._policies_of[target]
                self._refer_to(f"Service/{target[0]}")
                self.touched.update(("BackendTLSPolicy", age[-1]) for age in ages)

    def policy_of(self, target: Target) -> str | None:
        """The policy that a target has: of several the oldest."""
        ages = self._policies_of.get(target)
        return min(ages)[-1] if ages else None

    def _tls(self, service: str, port: ServicePort) -> BackendTls | bool | None:
        named = self.policy_of((service, port.name)) if port.name else None
        key = named or self.policy_of((service, ""))
        return None if key is None else self.policies[key].tls or False

    def ancestors(self, policy: str) -> list[str]:
        """The Gateways of ours whose routes lead to a policy's targets.  Cost: these routes."""
        found: set[str] = set()
        for service, _ in self.policies[policy].targets:
            for id_ in self._refers.get(f"Service/{service}", ()):
                state = self.routes.get(id_)
                if state is not None and id_[0] in ("HTTPRoute", "GRPCRoute"):
                    found.update(key for key, _ in state.on)
        return sorted(found)

    def _touch_policies(self, refers: Iterable[str]) -> None:
        """The policies of these Services may have other ancestors."""
        if not self.policies:
            return
        services = {ref.removeprefix("Service/") for ref in refers if ref.startswith("Service/")}
        for (service, _), ages in self._policies_of.items():
            if service in services:
                self.touched.update(("BackendTLSPolicy", age[-1]) for age in ages)

    def _change(
        self,
        id_: RouteId,
        at: tuple[str, ListenerId],
        was: tuple[str, ...],
        now: tuple[str, ...],
        *,
        same: bool,
    ) -> None:
        """A route speaks for other hosts of a listener, or says something else there."""
        gateway, listener = at
        state = self.gateways.get(gateway)
        if state is None:
            return
        routes = state.routes.setdefault(listener, set())
        if bool(now) != (id_ in routes):
            (routes.add if now else routes.discard)(id_)
            self._touch_listener(gateway, listener)
        if not now:
            state.refused.get(listener, set()).discard(id_)
        if not routes:
            del state.routes[listener]
            state.refused.pop(listener, None)
        hosts = state.on.setdefault(listener, {})
        for one in {*was, *now}:
            if one in now and one in was and same:
                continue
            speaking = hosts.setdefault(one, set())
            (speaking.add if one in now else speaking.discard)(id_)
            if not speaking:
                del hosts[one]
                state.first.pop((listener, one), None)
            self._hosts_due.add((gateway, listener, one))
        if not hosts:
            del state.on[listener]
        if id_[0] not in ("HTTPRoute", "GRPCRoute") and listener in state.listeners:
            self._ports_due.add((gateway, state.listeners[listener].transport))

    # ── hosts and ports ─────────────────────────────────────────────────────────────────────

    def _host(self, gateway: str, listener: ListenerId, name: str) -> None:
        """Merge the routes of one host and make it so.  Cost: their rules."""
        state = self.gateways.get(gateway)
        view = state.listeners.get(listener) if state is not None else None
        if state is None or not state.vs or view is None or view.protocol not in _HTTP:
            self._faults.over(("too large", gateway, listener, name))
            self._of_nobody(state, listener, name)
            return  # what it had is gone with its listener
        service = self._placement.services[state.vs]
        at = HostAt(view.port, chain_of(view), name)
        if view.serves and meant(name, view, state.listeners.values()) == view.hostname:
            speaking = state.on.get(listener, {}).get(name, set())
            if speaking or name == view.hostname:
                ordered = self._admitted(state, listener, name, speaking)
                self._place_host(service, state, listener, at, ordered)
                return
        self._of_nobody(state, listener, name)
        self._realiser.place_host(service, listener, at, None)
        self._faults.over(("too large", gateway, listener, name))
        if self._faults:
            self._faults.over(("of", state.vs, listener, name))

    def _place_host(
        self,
        service: VirtualService,
        state: GatewayState,
        listener: ListenerId,
        at: HostAt,
        ordered: list[RouteId],
    ) -> None:
        """Serve a host for these routes, but for those that we fail over: they are told."""

        def model(some: list[RouteId]) -> HttpHost:
            made = host(at.host, self._fitting(some)[0])
            return with_certificate(made, state.certificate) if state.certificate else made

        unit = ("of", state.vs, listener, at.host)
        large = ("too large", state.gateway.metadata.key, listener, at.host)
        self._faults.put(large, self._fitting(ordered)[1])
        try:
            self._realiser.place_host(service, listener, at, model(ordered))
        except Exception:
            good, bad = without_faulty(
                ordered, lambda some: self._realiser.attempt(service, at, model(some))
            )
            noted = [self._faults.refusal("/".join(id_), err, "spec.rules") for id_, err in bad]
            self._faults.put(unit, noted)
            self._realiser.place_host(service, listener, at, model(good))
        else:
            if self._faults:
                self._faults.over(unit)

    def _fitting(self, ordered: list[RouteId]) -> tuple[list[RouteRules], list[Refusal]]:
        return fitting([("/".join(id_), self.routes[id_].rules) for id_ in ordered], self._limits)

    def _admitted(
        self, state: GatewayState, listener: ListenerId, name: str, speaking: set[RouteId]
    ) -> list[RouteId]:
        """Routes of a host, oldest first: those that may share it with the first of them."""
        ordered = sorted(speaking, key=self._seniority)
        mine = [one for one in ordered if self._shares(ordered[0], one, name)]
        before = state.first.pop((listener, name), None)
        if len(mine) < len(ordered):
            state.first[listener, name] = ordered[0]
        if before != state.first.get((listener, name)):
            self.touched.update(speaking)
            self._counts_due.update(speaking)
        return mine

    def _of_nobody(self, state: GatewayState | None, listener: ListenerId, name: str) -> None:
        """A host is not served, so no route came first."""
        if state is not None and state.first.pop((listener, name), None) is not None:
            speaking = state.on.get(listener, {}).get(name, set())
            self.touched.update(speaking)
            self._counts_due.update(speaking)

    def _shares(self, first: RouteId, one: RouteId, name: str) -> bool:
        """Whether a route may speak for a host beside the first: one of its kind, and namespace.

        "Any host" is what nobody names, and no namespace's.
        """
        if first[0] != one[0]:
            return False
        return not (self._strict and name) or _namespace_of(first) == _namespace_of(one)

    def lost(self, route: RouteState, attached: Attached) -> tuple[dict[str, RouteId], bool]:
        """Hosts of an attachment that an older route has, and whether these are all."""
        id_ = (route.route.KIND, route.route.metadata.key)
        out: dict[str, RouteId] = {}
        left = False
        for (key, listener), hosts in route.on.items():
            state = self.gateways.get(key)
            for name in hosts if listener in attached.hosts and state is not None else ():
                first = state.first.get((listener, name)) if state is not None else None
                if first is None or self._shares(first, id_, name):
                    left = True
                else:
                    out[name] = first
        return out, bool(out) and not left

    def refused(self, route: RouteState, attached: Attached) -> bool:
        """Whether a route is not Accepted by a parent."""
        if not attached.accepted:
            return True
        if route.rules.none and first(route.rules.findings, "PartiallyInvalid") is not None:
            return True
        return self.lost(route, attached)[1]

    def _count(self, id_: RouteId) -> None:
        """Whether a route counts on its listeners.  Cost: its hosts there."""
        route = self.routes.get(id_)
        if route is None:
            return
        for gateway, listener in route.on:
            state = self.gateways.get(gateway)
            if state is None:
                continue
            found = [one for _, one in route.parents.values() if listener in one.hosts]
            refused = all(self.refused(route, one) for one in found)
            known = state.refused.setdefault(listener, set())
            if refused != (id_ in known):
                (known.add if refused else known.discard)(id_)
                self._touch_listener(gateway, listener)

    def _touch_listener(self, gateway: str, listener: ListenerId) -> None:
        self.touched.add((GATEWAY, gateway))
        if listener[0] == "ListenerSet":
            self.touched.add(("ListenerSet", listener[1]))

    def _misdirected(self, gateway: str) -> None:
        """Requests for another listener's hosts, on a connection of this one: 421 (RFC 9110)."""
        state = self.gateways.get(gateway)
        if state is None or not state.vs:
            return
        service = self._placement.services[state.vs]
        views = [one for one in state.listeners.values() if one.protocol == "HTTPS"]
        wanted = {
            HostAt(here.port, chain_of(here), there.hostname)
            for here in views
            for there in views
            if here.serves
            and there.accepted
            and here.port == there.port
            and here.hostname != there.hostname
        }
        self._realiser.drop_hosts(
            service, lambda at, placed: placed.owner == _MISDIRECTED and at not in wanted
        )
        rule = HttpRule("misdirected", HttpMatch(TextMatch("prefix", "")), answer=421)
        for at in sorted(wanted):
            self._realiser.place_host(service, _MISDIRECTED, at, HttpHost(at.host, (rule,)))

    def _port(self, gateway: str, at: tuple[str, int]) -> None:
        state = self.gateways.get(gateway)
        if state is None or not state.vs:
            return
        service = self._placement.services[state.vs]
        backends: dict[ListenerId, dict[str, tuple[Backend, ...]]] = {}
        for view in state.listeners.values():
            if view.transport == at and view.protocol not in _HTTP:
                backends[view.id] = {
                    name: self.routes[min(ids, key=self._seniority)].rules.backends
                    for name, ids in state.on.get(view.id, {}).items()
                }
        model = gateway_port(at, state.listeners.values(), backends, self._authorities)
        self._realiser.place_port(service, at, model)
        self.touched.add((GATEWAY, gateway))

    def _close_port(self, gateway: str, at: tuple[str, int]) -> None:
        """We failed over a port: nobody listens there."""
        state = self.gateways.get(gateway)
        if state is not None and state.vs:
            self._realiser.place_port(self._placement.services[state.vs], at, None)

    def _seniority(self, route: RouteId) -> tuple[tuple[str, str], RouteId]:
        """Of two routes the lesser came first."""
        return self.routes[route].age, route

    def _authorities(self, config_map: str) -> str:
        obj = self._store.all("ConfigMap").get(config_map)
        data = obj.data if isinstance(obj, ConfigMap) else None
        text = (data or {}).get("ca.crt", "")
        return bundle(text) if len(text) <= self._limits.authorities_bytes else ""

    # ── reading ─────────────────────────────────────────────────────────────────────────────

    def attached(self, state: GatewayState, listener: ListenerId) -> int:
        """How many Accepted routes are attached to a listener; of L4 the oldest alone is served."""
        return len(state.routes.get(listener, ())) - len(state.refused.get(listener, ()))

    def joined(self, listener_set: str) -> str | None:
        """The Gateway of ours that a ListenerSet has joined."""
        return self._joined.get(listener_set)

    def age_of_rule(self, grpc: bool, name: str) -> tuple[str, ...]:
        """What rules are sorted by, those of the oldest route first."""
        key = name.rpartition("/")[0]
        state = self.routes.get(("GRPCRoute" if grpc else "HTTPRoute", key))
        return state.age if state is not None else ("~", key)

    def uses_secret(self, key: str) -> bool:
        """Whether a listener or a policy names a Secret."""
        return f"Secret/{key}" in self._refers

    def touch_all(self) -> None:
        """Everything may say something else.  Cost: all of it."""
        self.touched.update((GATEWAY, key) for key in self.gateways)
        self.touched.update(self.routes)
        self.touched.update(("ListenerSet", key) for key in self._joined)

    def names(self, vs: str, address: str) -> bool:
        """Whether a status names an address of a virtual service."""
        key = self.owners.get(vs)
        obj = self._store.all(GATEWAY).get(key) if key is not None else None
        return isinstance(obj, GatewayApiGateway) and any(
            one.value == address for one in obj.status.addresses
        )

    def touch_referrers(self, ref: str) -> None:
        """Who depends on an object, "Kind/key", may say something else now."""
        self.touched.update(self._refers.get(ref, ()))

    def touch_vs(self, vs: str) -> None:
        """The objects of a virtual service may say something else now."""
        if (key := self.owners.get(vs)) is not None:
            self.touched.add((GATEWAY, key))
            self.touched.update(("ListenerSet", one) for one in self.gateways[key].sets)

    def touch_service(self, key: str) -> None:
        """The routes that lead to a Service may say something else now."""
        for one in self._refers.get(f"Service/{key}", ()):
            if one[0] in _ROUTES:
                self.touched.add(one)

    def services_of(self, route: RouteId) -> list[str]:
        """Keys of the Services that a route names."""
        refs = self._refers_of.get(route, ())
        return sorted(one.removeprefix("Service/") for one in refs if one.startswith("Service/"))

    def class_refusals(self, cls: GatewayApiClass) -> tuple[Refusal, ...]:
        """What is wrong with a class of ours; () also of another's."""
        if cls.spec.controller_name != CONTROLLER:
            return ()
        return classes.class_refusals(cls, self._infrastructure.infras, self._store)


def _namespace_of(route: RouteId) -> str:
    return route[1].partition("/")[0]


def _rules(state: RouteState) -> tuple[object, ...]:
    return state.rules.rules, state.rules.backends, state.age


def _attachable(views: Mapping[ListenerId, ListenerView]) -> dict[ListenerId, tuple[object, bool]]:
    """What of listeners routes depend on."""
    return {id_: (without_findings(one), one.accepted) for id_, one in views.items()}


def _found(obj: Object, type_: str, field_: str, reason: str, remedy: str) -> Finding:
    object_ = f"{obj.stored()}/{obj.metadata.key}"
    refusal = Refusal(object=object_, field=field_, reason=reason, remedy=remedy)
    return Finding(type_, refusal)  # type: ignore[arg-type]


def _address(obj: GatewayApiGateway, findings: list[Finding]) -> str:
    """The one address that a Gateway asks for; "": any."""
    address = ""
    for i, one in enumerate(obj.spec.addresses):
        at = f"spec.addresses[{i}]"
        if one.type != "IPAddress":
            remedy = f"{quoted(one.type)} is not served. Write type IPAddress."
            findings.append(_found(obj, "Accepted", f"{at}.type", "UnsupportedAddress", remedy))
        elif one.value and not is_address(one.value):
            remedy = f"{quoted(one.value)} is no address. Write 10.10.16.232."
            findings.append(_found(obj, "Programmed", f"{at}.value", "AddressNotUsable", remedy))
        elif i and one.value and address:
            remedy = f"A Gateway has one address, {address}. Take this one out."
            findings.append(_found(obj, "Programmed", at, "AddressNotUsable", remedy))
        else:
            address = address or one.value
    return address


def _warn(obj: GatewayApiGateway, findings: list[Finding]) -> None:
    """What is asked for and is not there."""
    if obj.spec.default_scope in ("", "None"):
        return
    refusal = Refusal(
        object=f"{obj.stored()}/{obj.metadata.key}",
        field="spec.defaultScope",
        reason="UnsupportedValue",
        remedy="Routes don't come by themselves: they name their Gateway. Take it out.",
        warning=True,
    )
    findings.append(Finding("Warning", refusal))


def _namespace(obj: Object | None) -> tuple[object, ...]:
    if not isinstance(obj, Namespace):
        return (None,)
    return obj.metadata.labels, obj.metadata.annotation(SETTING_ANNOTATION)
