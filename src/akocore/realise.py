"""Model and place → resources, and what of them differs is published.

A host is published wherever it is served and nowhere else; a cluster is there while a host needs
it; a certificate goes to the engines that have asked for it, if something of their group has it.
Every call costs what it is given.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable
from datetime import datetime
from functools import partial
from time import perf_counter

from msgspec import Struct, field

from akocore.court import Court
from akocore.endpoints import Endpoints
from akocore.engines.envoy.ads import AdsServer
from akocore.engines.envoy.bounds import Bounds
from akocore.engines.envoy.gateway import gateway_cluster, secret_name
from akocore.engines.envoy.gateway_cluster import SECRET_PREFIX
from akocore.engines.envoy.resources import (
    CDS,
    EDS,
    LDS,
    NO_SNI,
    SDS,
    SRDS,
    Encoded,
    cluster,
    cluster_name,
    floor_scope,
    listener,
    plain_sni,
    redirect_scope,
    scope,
    secret,
    udp_cluster,
    udp_endpoints,
)
from akocore.faults import Faults
from akocore.index import Index, Users
from akocore.ingress_trials import IngressTrials
from akocore.kube.objects import Secret
from akocore.members import Parts
from akocore.model import HostModel
from akocore.place.virtual_services import Home, Placed, Placement, VirtualService
from akocore.realise_gateway import GatewayRealiser
from akocore.realise_l4 import L4Realiser, Published
from akocore.store import Store
from akocore.translate.classes import Listener
from akocore.translate.ingress import ANY_HOST
from akocore.translate.services import proxy_protocol
from akocore.translate.tls import Certificate, CertificateProblem, certificate

__all__ = ["Realiser"]


class _Diff(Struct):
    """What one run publishes to one group."""

    puts: dict[tuple[str, str], Encoded] = field(default_factory=dict)
    drops: dict[tuple[str, str], None] = field(default_factory=dict)


class Realiser:
    """What the engines are to run, kept in step with `hosts` and their places.

    ``vs_touched``: virtual services that may be described otherwise now; who reads it clears it.
    ``realised``: how many times a host was made into resources; ``encode_s``: how long that took.
    """

    def __init__(
        self,
        store: Store,
        endpoints: Endpoints,
        placement: Placement,
        ads: AdsServer,
        now: Callable[[], datetime],
        port_offset: int,
        faults: Faults | None = None,
        *,
        freebind: bool = False,
        bounds: Bounds = Bounds(),  # noqa: B008  (frozen)
    ) -> None:
        self.faults = faults if faults is not None else Faults()
        self.freebind = freebind
        self._bounds = bounds
        self.hosts: dict[str, Placed] = {}
        self.certificates: dict[str, Certificate | CertificateProblem] = {}
        self.vs_touched: set[str] = set()
        self.realised = 0
        self.encode_s = 0.0
        self.put_bytes = 0  # that engines were to be sent, so far
        self.store = store
        self.left_out = endpoints
        self.placement = placement
        self.ads = ads
        self.now = now
        self.port_offset = port_offset
        self._up: set[str] = set()  # backends that have a server
        self._parts = Parts()
        self._backends = Index()  # Service → its ports that somebody needs
        self._groups = Index()  # Service port → groups that have it
        self._users: Users[tuple[str, str]] = Users()  # (Service port, group) → virtual services
        self._named: Users[tuple[str, str]] = Users()  # (Secret, group) → what there names it
        self._diffs: defaultdict[str, _Diff] = defaultdict(_Diff)
        self._unsettled: list[Placed] = []
        self._placed: list[tuple[str, int, str]] = []
        self._placed_l4: list[Published] = []
        self.l4 = L4Realiser(self._put, self._drop, self._use, port_offset, freebind=freebind)
        self.court = Court(self._put, self._drop)
        self.gateway = GatewayRealiser(
            self._put,
            self._drop,
            self._use,
            self._name,
            self.court,
            port_offset,
            freebind=freebind,
            bounds=bounds,
        )
        self.tried = IngressTrials(self, placement)
        self.uses_secret: Callable[[str], bool] = lambda _key: False  # of a Gateway
        self.expired: set[str] = set()  # Secrets; who reads it clears it
        self._placed_gateway: list[Published] = []

    def realise(self, host: str, placed: Placed) -> None:
        """Publish a host wherever it is served, and nowhere else.  Cost: its places."""
        began = perf_counter()
        model = self.court.good(("", host), placed.model)
        scopes: dict[tuple[str, str], Encoded] = {}
        places: set[tuple[str, str]] = set()
        for vs in (placed.vs, *placed.old):
            service = self.placement.services[vs]
            one_by_port = self.scopes(model, service)  # first: it alone may fail
            for home in service.homes:
                places.add((home.group, vs))
                for one in one_by_port:
                    scopes[home.group, one.name] = one
        used = dict.fromkeys([route.pool.backend for route in placed.model.routes])
        backends = tuple(
            [(group, vs, one) for group, vs in places for one in used if one is not None]
        )
        self._use(placed.backends, backends)
        placed.backends = backends
        for (group, _), one in scopes.items():
            self._put(group, one)
        for group, name in placed.scopes:
            if (group, name) not in scopes:
                self._drop(group, SRDS, name)
        placed.scopes = tuple(scopes)
        if self.court.concerns(("", host)):
            self.court.published(("", host), self.tried.case(host, placed))
        if places != {(group, vs) for group, vs, _ in placed.places}:
            # -1: set by `publish`; a place that it had before it is served at all the while.
            before = {(group, vs): number for group, vs, number in placed.places}
            placed.places = tuple((*at, before.get(at, -1)) for at in sorted(places))
            self._unsettled.append(placed)
            # A wildcard may have spoken for it there so far, or has to from now on.
            self.push_secret(host, {g for g, _ in before} ^ {group for group, _ in places})
        self.realised += 1
        self.encode_s += perf_counter() - began

    def attempt(self, model: HostModel, service: VirtualService) -> None:
        """Whether a host can be encoded; raises what keeps it from being."""
        self.scopes(model, service)

    def scopes(self, model: HostModel, service: VirtualService) -> list[Encoded]:
        """A host on each port of a virtual service."""
        listeners = service.infra.listeners
        if not model.certificate:
            return [scope(service.name, at.port, model) for at in listeners if not at.tls]
        if not model.redirect:
            return [scope(service.name, at.port, model) for at in listeners]
        to = next((at.port for at in listeners if at.tls), 443) + self.port_offset
        return [
            scope(service.name, at.port, model)
            if at.tls
            else redirect_scope(service.name, at.port, model, to)
            for at in listeners
        ]

    def withdraw(self, host: str, placed: Placed, kept: Collection[tuple[str, str]] = ()) -> None:
        """Publish a host nowhere any more.  ``kept``: scopes that are another's by now."""
        for group, name in placed.scopes:
            if (group, name) not in kept:
                self._drop(group, SRDS, name)
        if host not in self.hosts:
            self.court.gone(("", host))
        self._use(placed.backends, ())
        self.push_secret(host, {group for group, _, _ in placed.places})

    def _use(
        self, before: Collection[tuple[str, str, str]], after: Collection[tuple[str, str, str]]
    ) -> None:
        """Count who needs which cluster and pool; a cluster is there while somebody needs it."""
        had, have = frozenset(before), frozenset(after)
        for group, vs, backend in have - had:
            if self._users.add((backend, group), vs):
                self._groups.add(backend, group)
                self._backends.add(_service_of(backend)[0], backend)
                up, made = self._served(backend)
                if up:
                    self._up.add(backend)
                self._name((), self._named_by(group, backend))
                for one in made:
                    self._put(group, one)
            self._count_pool(vs, backend, 1)
        for group, vs, backend in had - have:
            self._count_pool(vs, backend, -1)
            if self._users.discard((backend, group), vs):
                self._groups.discard(backend, group)
                self._name(self._named_by(group, backend), ())
                self._drop(group, CDS, cluster_name(backend))
                if _service_of(backend)[2] == "UDP":
                    self._drop(group, EDS, cluster_name(backend))
                if not self._groups.get(backend):
                    self.gateway.variants.pop(backend, None)
                    self._parts.forget(backend)
                    self._up.discard(backend)
                    self._backends.discard(_service_of(backend)[0], backend)

    def _named_by(self, group: str, backend: str) -> tuple[tuple[str, str, str], ...]:
        """(group, who, Secret) that a cluster there names."""
        variant = self.gateway.variants.get(backend)
        if variant is None or variant.tls is None or not variant.tls.certificate:
            return ()
        return ((group, f"~{backend}", variant.tls.certificate),)

    def _served(self, backend: str) -> tuple[bool, tuple[Encoded, ...]]:
        """Whether a Service port has a server, and its cluster.

        A fault of ours over it is its Service's, and leaves it without endpoints, or no cluster.
        """
        unit = ("endpoints", backend)
        try:
            members = self.members(backend)
            made = self._cluster(backend, members)
        except Exception as err:
            self.faults.note(unit, f"Service/{_service_of(backend)[0]}", err, "endpoints")
            try:
                return False, self._cluster(backend, [])
            except Exception:  # noted already
                return False, ()
        if self.faults:
            self.faults.over(unit)
        return bool(members), made

    def _cluster(self, backend: str, members: list[tuple[str, int]]) -> tuple[Encoded, ...]:
        key, _, protocol = _service_of(backend)
        bounds = self._bounds
        service = self.store.service(key)
        sticky = service is not None and service.spec.session_affinity == "ClientIP"
        proxy = proxy_protocol(service) if service is not None else ""
        if (variant := self.gateway.variants.get(backend)) is not None:
            return (gateway_cluster(variant, members, sticky=sticky, proxy=proxy, bounds=bounds),)
        if protocol == "UDP":
            udp = udp_cluster(backend, sticky=sticky, bounds=bounds)
            return udp, udp_endpoints(backend, members)
        return (cluster(backend, members, sticky=sticky, proxy=proxy, bounds=bounds),)

    def _count_pool(self, vs: str, backend: str, by: int) -> None:
        service = self.placement.services.get(vs)
        if service is None:
            return  # connections that drain are no user that anybody looks at
        count = service.pools[backend] = service.pools.get(backend, 0) + by
        if not count:
            del service.pools[backend]
        if backend in self._up and count == (1 if by > 0 else 0):
            service.pools_up += by
        self.vs_touched.add(vs)

    def members(self, backend: str) -> list[tuple[str, int]]:
        """(address, port) of what serves a Service port, sorted.

        Ready endpoints; when there are none, those that still serve while they terminate
        (as kube-proxy does: KEP-1669).  Those that are left out never.
        """
        key, number, protocol = _service_of(backend)
        service = self.store.service(key)
        port = (
            next(
                (p for p in service.spec.ports if p.port == number and p.protocol == protocol),
                None,
            )
            if service
            else None
        )
        if port is None:
            return []
        parts = self._parts.of(
            backend, self.store.slices(key), port.name, protocol, self.left_out.of_slice
        )
        if len(parts) == 1:
            return list(parts[0].ready or parts[0].terminating)[: self.store.limits.endpoints]
        ready = [one for part in parts for one in part.ready]
        found = ready or [one for part in parts for one in part.terminating]
        return list(dict.fromkeys(sorted(found)))[: self.store.limits.endpoints]

    def endpoints(self, services: Iterable[str]) -> None:
        began = perf_counter()
        for service in services:
            for backend in self._backends.get(service):
                up, made = self._served(backend)
                if up != (backend in self._up):
                    self._turn(backend)
                for one in made:
                    for group in self._groups.get(backend):
                        self._put(group, one)
        self.encode_s += perf_counter() - began

    def _turn(self, backend: str) -> None:
        """A Service port got its first server, or lost its last.  Cost: who uses it."""
        up = backend not in self._up
        (self._up.add if up else self._up.discard)(backend)
        for vs in {vs for at in self._groups.get(backend) for vs in self._users.get((backend, at))}:
            if (service := self.placement.services.get(vs)) is not None:
                service.pools_up += 1 if up else -1
                self.vs_touched.add(vs)

    def put_listeners(self, service: VirtualService, home: Home) -> None:
        if service.gateway is not None:
            self.gateway.put_home(service, home)
        if service.listeners is not None:
            self.l4.put_home(service, home)
            return
        setting = service.infra.setting
        object_ = f"AviInfraSetting/{setting}" if setting else "Config"
        self.faults.run(("listeners", service.name), object_, self._put_listeners, service, home)

    def failed(self, service: VirtualService) -> bool:
        """Whether its listeners could not be made when they were last."""
        return self.faults.failed(("listeners", service.name))

    def _put_listeners(self, service: VirtualService, home: Home) -> None:
        for port in service.infra.listeners:
            one = listener(
                service.name,
                home.address,
                port.port,
                tls=port.tls,
                http2=port.http2,
                port_offset=self.port_offset,
                freebind=self.freebind,
                limits=service.infra.limits,
                bounds=self._bounds,
            )
            self._put(home.group, one)
            self._put(home.group, floor_scope(service.name, port.port))

    def drop_listeners(self, service: VirtualService, home: Home) -> None:
        if service.gateway is not None:
            self.gateway.drop_home(service, home)
        if service.listeners is not None:
            self.l4.drop_home(service, home)
            return
        others = [h for h in service.homes if h is not home and h.group == home.group]
        for port in service.infra.listeners:
            if not any(h.address == home.address for h in others):
                self._drop(home.group, LDS, f"{service.name}/{home.address}:{port.port}")

    def drop_ports(self, service: VirtualService, home: Home, ports: Iterable[Listener]) -> None:
        for port in ports:
            self._drop(home.group, LDS, f"{service.name}/{home.address}:{port.port}")

    def drop_floors(self, service: VirtualService, home: Home) -> None:
        if service.gateway is not None:
            self.gateway.drop_group(service, home.group)
        if service.listeners is not None:
            return
        for port in service.infra.listeners:
            self._drop(home.group, SRDS, floor_scope(service.name, port.port).name)

    # ── certificates ────────────────────────────────────────────────────────────────────────

    def take_certificate(self, key: str) -> None:
        obj = self.store.secret(key)
        used = any(True for _ in self.store.referrers("Secret", key)) or self.uses_secret(key)
        if obj is None or not used:
            self.certificates.pop(key, None)
        else:
            self.certificates[key] = self._certificate(obj)

    def _certificate(self, obj: Secret) -> Certificate | CertificateProblem:
        try:
            return certificate(obj, self.now(), self.store.limits.certificate_bytes)
        except Exception as err:
            said = self.faults.refusal(f"Secret/{obj.metadata.key}", err, "data")
            return CertificateProblem(said.field, said.reason, said.remedy)

    def certificate_of(self, key: str) -> Certificate | CertificateProblem | None:
        """The certificate in a Secret; None when there is no such Secret."""
        if key not in self.certificates and (obj := self.store.secret(key)) is not None:
            self.certificates[key] = self._certificate(obj)
        return self.certificates.get(key)

    def secret_for(self, group: str, sni: str) -> Encoded | None:
        """What engines of a group get when a client asks for ``sni``; None also when it is another
        group's: exact host, wildcard, any host, or a Secret that something there names.
        """
        if sni.startswith(SECRET_PREFIX):
            key = sni.removeprefix(SECRET_PREFIX)
            return self._secret(sni, key) if self._named.get((key, group)) else None
        host = self.host_of_sni(group, sni)
        if host is None:
            return None
        return self._secret(sni, self.hosts[host].model.certificate)

    def _secret(self, sni: str, key: str) -> Encoded | None:
        found = self.certificate_of(key)
        if not isinstance(found, Certificate):
            return None
        return self.faults.run(("secret", key), f"Secret/{key}", secret, sni, found)

    def host_of_sni(self, group: str, sni: str) -> str | None:
        """The host that a client of a group means by ``sni``; None when nobody has it there."""
        name = plain_sni(sni)
        for host in (name, f"*.{name.partition('.')[2]}", ANY_HOST):
            placed = self.hosts.get(host) if host != NO_SNI else None
            if placed is not None and any(at == group for at, _, _ in placed.places):
                return host
        return None

    def _name(
        self, before: Collection[tuple[str, str, str]], after: Collection[tuple[str, str, str]]
    ) -> None:
        """Count who, (group, who, Secret), names which Secret outright."""
        had, have = frozenset(before), frozenset(after)
        for group, who, key in have - had:
            if self._named.add((key, group), who):
                self._push_named(key, group)  # engines that asked before were told of none
        for group, who, key in had - have:
            self._named.discard((key, group), who)

    def own_name(self, sni: str) -> bool:
        """Whether ``sni`` is a host to the letter, or a Secret: of these there are so many."""
        return sni in self.hosts or sni == NO_SNI or sni.startswith(SECRET_PREFIX)

    def push_secrets(self, keys: Iterable[str]) -> None:
        for key in keys:
            if self.uses_secret(key):
                self._push_named(key)
            for ingress in self.store.referrers("Secret", key):
                for host in self.store.hosts_of(ingress):
                    placed = self.hosts.get(host)
                    if placed is not None and placed.model.certificate == key:
                        self.push_secret(host)

    def expire(self) -> set[str]:
        """Stop serving certificates that have expired; keys of the Ingresses that had them."""
        now = self.now().timestamp()
        gone = [
            key
            for key, found in self.certificates.items()
            if isinstance(found, Certificate) and found.not_after <= now
        ]
        for key in gone:
            self.take_certificate(key)
        self.expired.update(gone)
        if gone:
            self.push_secrets(gone)
            self.publish()
        return {ingress for key in gone for ingress in self.store.referrers("Secret", key)}

    def push_secret(self, host: str, groups: Collection[str] | None = None) -> None:
        """Send a host's certificate again to the engines that have asked for it.

        ``groups``: of these alone; None: of those where the host is.
        """
        if groups is None:
            groups = {group for group, _, _ in self.hosts[host].places}
        for engine in self.ads.engines.values() if groups else ():
            if engine.group not in groups:
                continue
            self._serve_secrets(engine.group)
            for name in engine.names_of(host):
                one = self.secret_for(engine.group, name)
                if one is None:
                    self._drop(engine.group, SDS, name)
                else:
                    self._put(engine.group, one)

    def _push_named(self, key: str, group: str = "") -> None:
        """Send a Secret again to the engines whose listeners or clusters name it.

        ``group``: to those of this one alone.
        """
        name = secret_name(key)
        for engine in self.ads.engines.values():
            if group in ("", engine.group) and name in engine.subscribed.get(SDS, ()):
                self._serve_secrets(engine.group)
                one = self.secret_for(engine.group, name)
                if one is not None:  # else the last good one serves on in chains that are left
                    self._put(engine.group, one)

    def _serve_secrets(self, group: str) -> None:
        self.ads.catalog(group).secret = partial(self.secret_for, group)
        self.ads.catalog(group).own_name = self.own_name

    def rejected_ingresses(self) -> set[str]:
        """Keys of the Ingresses of which an engine refuses something.  Cost: all hosts."""
        rejected = {at for e in self.ads.fleet.values() for at in e.rejected}
        if not rejected:
            return set()
        out: set[str] = set()
        refused_sni: dict[str | None, list[str]] = {}
        for engine in self.ads.fleet.values():
            for type_url, name in engine.rejected:
                if type_url == SDS:
                    host = self.host_of_sni(engine.group, name)
                    refused_sni.setdefault(host, []).append(name)
        for host, placed in self.hosts.items():
            names = {(SRDS, name) for _, name in placed.scopes}
            names |= {(CDS, cluster_name(backend)) for _, _, backend in placed.backends}
            names |= {(SDS, sni) for sni in refused_sni.get(host, ())}
            service = self.placement.services[placed.vs]
            for home in service.homes:
                for port in service.infra.listeners:
                    names.add((LDS, f"{service.name}/{home.address}:{port.port}"))
            if names & rejected:
                out.update(self.store.ingresses_of_host(host))
        return out

    # ── publishing ──────────────────────────────────────────────────────────────────────────

    def _put(self, group: str, one: Encoded) -> None:
        diff = self._diffs.get(group)
        if diff is None:
            diff = self._diffs[group] = _Diff()
        self.put_bytes += len(one.frame)
        at = (one.type_url, one.name)
        diff.drops.pop(at, None)
        diff.puts[at] = one

    def _drop(self, group: str, type_url: str, name: str) -> None:
        diff = self._diffs[group]
        diff.puts.pop((type_url, name), None)
        diff.drops[type_url, name] = None

    def publish(self) -> None:
        diffs, self._diffs = self._diffs, defaultdict(_Diff)
        for group, diff in diffs.items():
            for type_url, name in (*diff.puts, *diff.drops):
                if type_url == LDS:
                    self.vs_touched.add(name.partition("/")[0])
            self._serve_secrets(group)
            self.ads.publish(group, diff.puts.values(), diff.drops)
        known: dict[tuple[str, str, int], tuple[str, str, int]] = {}
        for placed in self._unsettled:
            places: list[tuple[str, str, int]] = []
            for group, vs, number in placed.places:
                if number < 0:
                    place = (group, vs, self.ads.catalog(group).sequence)
                    self._placed.append((group, place[2], placed.model.host))
                else:
                    place = (group, vs, number)
                places.append(known.setdefault(place, place))
            placed.places = tuple(places)
        self._unsettled.clear()
        self._placed_l4 += self.l4.settle(lambda group: self.ads.catalog(group).sequence)
        self._placed_gateway += self.gateway.settle(lambda group: self.ads.catalog(group).sequence)

    def take_placed_gateway(self) -> list[Published]:
        """The places that ports of Gateways were given since the last call."""
        placed, self._placed_gateway = self._placed_gateway, []
        return placed

    def take_placed_l4(self) -> list[Published]:
        """The places that listeners of L4 were given since the last call."""
        placed, self._placed_l4 = self._placed_l4, []
        return placed

    def take_placed(self) -> list[tuple[str, int, str]]:
        """(group, publication, host) of the places that hosts were given since the last call."""
        placed, self._placed = self._placed, []
        return placed


def _service_of(backend: str) -> tuple[str, int, str]:
    """Service, port and protocol behind a backend."""
    namespace, name, port, *protocol = backend.partition("~")[0].split("/")
    return f"{namespace}/{name}", int(port), protocol[0] if protocol else "TCP"
