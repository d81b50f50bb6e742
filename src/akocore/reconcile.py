"""The loop that a newcomer reads first: changes in, difference out.

    batch of changes ─▶ store ─▶ dirty hosts ─▶ translate ─▶ place ─▶ realise ─▶ publish

The unit of work is the host, and for L4 the listener (`akocore.l4`).  An event costs the hosts
that it touches; only an edit of a class, setting, Network or group costs the hosts that it
governs.  `Reconciler` is synchronous and knows neither clock nor sockets: it is given what
happened and answers by publishing.  Whoever wants turns (`akocore.turns`) says how much it may do
at once: the rest is `due`, and `go_on` does that, each host as things are by then.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import datetime
from functools import partial
from typing import Any, cast

from msgspec import Struct, field

from akocore.claims import Claims
from akocore.config import Config
from akocore.court import Case
from akocore.endpoints import Endpoints
from akocore.engines.envoy.ads import AdsServer
from akocore.engines.envoy.bounds import bounds_of
from akocore.engines.envoy.resources import SRDS
from akocore.faults import Faults, without_faulty
from akocore.gateway_api import GatewayApi
from akocore.infrastructure import Infrastructure
from akocore.ingress_trials import Owner, owners_of
from akocore.kube.meta import only_status
from akocore.kube.objects import (
    AviInfraSetting,
    AviInfraSettingSpec,
    Change,
    EndpointSlice,
    Ingress,
    IngressClass,
    IngressClassSpec,
    Network,
    NetworkSpec,
    Object,
    ObjectMeta,
)
from akocore.l4 import L4
from akocore.model import HostModel, Refusal
from akocore.place.ipam import Ipam
from akocore.place.scale import Scale
from akocore.place.state import Facts, SharedFacts
from akocore.place.virtual_services import DEDICATED_SHARD, Home, Placed, Placement, VirtualService
from akocore.realise import Realiser
from akocore.store import Store
from akocore.translate.classes import (
    CONTROLLER,
    DEFAULT_ANNOTATION,
    SCALE_OUT_ANNOTATION,
    SETTING_ANNOTATION,
    Governed,
    Infra,
    default_class,
    govern,
)
from akocore.translate.ingress import host_model
from akocore.translate.names import Names
from akocore.turns import namespace_of

__all__ = ["Move", "Reconciler"]

log = logging.getLogger(__name__)

BIG_SERVICE = 1000  # endpoints: one more or less costs an engine some 7 ms
_WITH_STATUS = frozenset({"Gateway", "GatewayClass", "Service"})  # kinds whose status L4 writes
_PART = 16  # weight of the hosts that are followed before somebody asks whether it is enough


class Due(Struct):
    """What was put off, by namespace, in order.  ``owed``: Ingresses to be told of with it."""

    hosts: dict[str, dict[str, None]] = field(default_factory=dict)
    services: dict[str, dict[str, None]] = field(default_factory=dict)
    owed: dict[str, set[str]] = field(default_factory=dict)

    @property
    def namespaces(self) -> set[str]:
        return self.hosts.keys() | self.services.keys()

    def took(self, room: dict[str, dict[str, None]], namespace: str, keys: list[str]) -> list[str]:
        """These are followed now."""
        due = room[namespace]
        for key in keys:
            del due[key]
        if not due:
            del room[namespace]
        return keys

    def owe(self, ingresses: set[str]) -> set[str]:
        """Keep those of namespaces that have something due; the others."""
        if not self.hosts:
            return ingresses
        out = set()
        for key in ingresses:
            if (namespace := namespace_of(key)) in self.hosts:
                self.owed.setdefault(namespace, set()).add(key)
            else:
                out.add(key)
        return out

    def through(self, namespace: str) -> set[str]:
        """The Ingresses that were owed, when nothing is due any more."""
        return set() if namespace in self.namespaces else self.owed.pop(namespace, set())


class Move(Struct):
    """Hosts and homes that change place together.  ``waits``: publication by group.

    ``named``: when its time was over, a status still named an old place.
    """

    number: int
    named: bool = False
    waits: dict[str, int] = field(default_factory=dict)
    hosts: list[tuple[str, str]] = field(default_factory=list)  # (host, virtual service left)
    homes: list[tuple[str, Home]] = field(default_factory=list)  # (virtual service, home left)
    to: dict[str, str] = field(default_factory=dict)  # virtual service → its new address

    def __bool__(self) -> bool:
        return bool(self.hosts or self.homes)


class _Seen(Struct):
    """What a batch of changes concerns.  ``echoes``: Ingresses of which just the status is new."""

    # By namespace of their Ingress.
    hosts: defaultdict[str, set[str]] = field(default_factory=partial(defaultdict, set))
    edited: set[str] = field(default_factory=set)  # Ingresses
    services: set[str] = field(default_factory=set)
    secrets: set[str] = field(default_factory=set)
    # Ingresses that something else concerns: all of their hosts may differ
    touched: set[str] = field(default_factory=set)
    echoes: set[str] = field(default_factory=set)
    settings: set[str] = field(default_factory=set)
    vips: list[str] = field(default_factory=list)
    slices: list[tuple[str, EndpointSlice | None, EndpointSlice | None]] = field(
        default_factory=list
    )
    infra: bool = False
    classes: bool = False


class Reconciler:
    """The state of the world, and how it follows changes.

    ``on_move(move)``: serve on at the old places until `finish_move` is called.
    ``on_close(then)``: call ``then`` when the engines have drained what was just closed.
    ``shared``: ``state``, where other replicas write it too.  ``speaks_bgp``: the Service Engines
    have routers, so each virtual service has its own number of them.  ``freebind``: they listen
    at addresses that they may have only later.  ``loopback``, ``namespace``: as of `Endpoints`.
    """

    def __init__(
        self,
        config: Config,
        state: Facts,
        ads: AdsServer,
        *,
        now: Callable[[], datetime],
        shared: SharedFacts | None = None,
        on_move: Callable[[Move], None] = lambda _move: None,
        on_close: Callable[[Callable[[], None]], None] = lambda then: then(),
        port_offset: int = 0,
        speaks_bgp: bool = False,
        freebind: bool = False,
        loopback: bool = False,
        namespace: str = "",
    ) -> None:
        self.config = config
        self.state = state
        self.shared = shared
        self.ads = ads
        self.now = now
        self.faults = Faults()
        self.store = Store(self.faults, config.limits)
        self.names = Names(config.cluster_name)
        self.placement = Placement(self.names, state)
        self.infrastructure = Infrastructure(
            config, self.store, state, self.placement, self.faults, speaks_bgp=speaks_bgp
        )
        self.scale = Scale(state, self.infrastructure, remembers=shared is None)
        self.scale.asked = self._asked
        self.endpoints = Endpoints(
            self.store, config.endpoints, loopback=loopback, namespace=namespace
        )
        limits = config.limits
        self.realiser = Realiser(
            *(self.store, self.endpoints, self.placement, ads, now, port_offset, self.faults),
            freebind=freebind,
            bounds=bounds_of(
                config.cluster_name, limits.backend_connections, limits.hops, limits.udp_sessions
            ),
        )
        self.realiser.l4.later = self._when_drained
        self.l4 = L4(
            config,
            self.store,
            self.names,
            self.infrastructure,
            self.placement,
            self.realiser.l4,
            self.faults,
        )
        self.realiser.gateway.later = self._when_drained
        self.gateway_api = GatewayApi(
            self.store,
            self.names,
            self.infrastructure,
            self.placement,
            self.realiser.gateway,
            self.realiser.certificate_of,
            self.faults,
            config.limits,
            strict=config.l7.strict_routes,
        )
        self.realiser.uses_secret = self.gateway_api.uses_secret
        self.hosts: dict[str, Placed] = self.realiser.hosts
        self.host_refusals: dict[str, dict[str, list[Refusal]]] = {}
        self.claims = Claims(self.store, state, now, strict=config.l7.strict_ingresses)
        self._anew: set[str] = set()  # hosts to look at in any case
        self._retold: set[str] = set()  # Ingresses of which other things are refused now
        self.told_otherwise: set[str] = set()  # likewise by engines; who reads it clears it
        self.realiser.tried.owners = self.owners
        self.realiser.gateway.age = self.gateway_api.age_of_rule
        self.due = Due()
        self._on_move = on_move
        self._on_close = on_close
        self._moves = 0
        self._default_class: IngressClass | None = None

    # ── events ──────────────────────────────────────────────────────────────────────────────

    def apply(self, changes: Iterable[Change], most: int | None = None) -> set[str]:
        """Follow a batch of changes; keys of the Ingresses that it touched.

        ``most``: the weight of hosts that a namespace has followed at once; of one that needs
        more, all is `due`, and its Ingresses are told with it.  None: all is followed to the end,
        as is, always, what governs others.
        """
        seen = _Seen()
        for change in self._with_own_class(changes):
            try:
                self._take(change, seen)
            except Exception as err:
                unit = ("change", change.kind, change.key)
                self.faults.note(unit, f"{change.kind}/{change.key}", err)
            else:
                if self.faults:
                    self.faults.over(("change", change.kind, change.key))
        if seen.classes:
            self._default_class = default_class(self.store)
        given = self._hear(seen.vips)
        touched, settings = seen.touched, seen.settings
        if infra := seen.infra or not self.infrastructure.infras:
            update = self.infrastructure.update
            settings.update(self.faults.run(("infrastructure",), "Config", update) or ())
            self.l4.take_settings(settings)
            self.gateway_api.take_settings(settings)
            for setting in settings:
                touched.update(
                    self.store.ingresses_of_setting(setting)
                    if setting
                    else self.store.all("Ingress")
                )
        for key in touched:
            seen.hosts[namespace_of(key)].update(self.store.hosts_of(key))
        touched |= seen.edited
        for key in seen.secrets:
            self.realiser.take_certificate(key)
        left_out: set[str] = set()
        if infra:
            known, strays = self._vips()
            edited = {key for key, _, _ in seen.slices}
            left_out |= self.endpoints.know_vips(known, strays, but=edited)
        for one in seen.slices:
            slice_unit = ("endpoints", one[0])
            run = self.faults.run
            if found := run(slice_unit, f"EndpointSlice/{one[0]}", self.endpoints.take, *one):
                left_out |= found
        seen.services |= left_out
        seen.echoes |= self._touch_users(left_out)
        if most is not None and not (infra or seen.classes):
            self._put_off(seen, most)
            touched = self.due.owe(touched)
        # Of clusters that are there; those to come are made with their endpoints.
        self.realiser.endpoints(seen.services)
        self._follow(self._in_order(set().union(*seen.hosts.values())), given)
        self.realiser.push_secrets(seen.secrets)
        self.realiser.publish()
        retold, self._retold = self._retold, set()
        return touched | seen.echoes | self.due.owe(retold)

    def _put_off(self, seen: _Seen, most: int) -> None:
        """Take out what is too much for one turn: it is due.  Cost: paths, until they are."""
        for namespace, hosts in seen.hosts.items():
            left = most
            for host in hosts:
                left -= self.store.weight(host, left + 1)
                if left < 0:
                    self.due.hosts.setdefault(namespace, {}).update(
                        dict.fromkeys(self._in_order(hosts))
                    )
                    seen.hosts[namespace] = set()
                    break
        for service in [key for key in seen.services if self.store.size(key) > BIG_SERVICE]:
            seen.services.discard(service)
            self.due.services.setdefault(namespace_of(service), {})[service] = None

    def go_on(self, namespace: str, enough: Callable[[], bool]) -> set[str]:
        """Follow what is due of a namespace until it is ``enough``, which is asked now and then.

        Keys of the Ingresses that are through, when all of the namespace is.
        """
        for service in (*self.due.services.get(namespace, ()),)[:1]:
            self.realiser.endpoints(self.due.took(self.due.services, namespace, [service]))
        hosts = self.due.hosts.get(namespace, {})
        while hosts and not enough():
            part: list[str] = []
            left = _PART
            for host in hosts:
                part.append(host)
                left -= max(1, self.store.weight(host, left))
                if left <= 0:
                    break
            self._follow(self.due.took(self.due.hosts, namespace, part))
        self.realiser.publish()
        retold, self._retold = self._retold, set()
        return self.due.owe(retold) | self.due.through(namespace)

    def _take(self, change: Change, seen: _Seen) -> None:
        """Take in one change; ``seen`` is told what it concerns."""
        key, kind = change.key, change.kind
        if kind == "Ingress":
            if self.store.take_status(change):  # our own writes come back to us
                seen.echoes.add(key)
                return
            hosts, new = self.store.hosts_of(key), self.store.ingress(key) is None
            seen.hosts[namespace_of(key)].update(self.store.apply_ingress(change))
            if not new:
                self.claims.take(key, hosts)
            seen.edited.add(key)
            return
        old = self.store.apply(change)
        self.gateway_api.take(change, old)
        if old is not None and kind in _WITH_STATUS and only_status(old, change.obj):
            self.l4.touched.add((kind, key))
            return
        match kind:
            case "Gateway" | "GatewayClass":
                self.l4.take(change)
            case "Service":
                self.l4.take(change)
                seen.services.add(key)
                seen.touched.update(self.store.referrers(kind, key))
            case "EndpointSlice":
                before = cast("EndpointSlice | None", old)
                after = cast("EndpointSlice | None", change.obj)
                seen.slices.append((key, before, after))
                for slice_ in (before, after):
                    if slice_ is not None and slice_.service:
                        seen.services.add(slice_.service)
            case "Secret":
                seen.infra = seen.infra or key in self.infrastructure.password_secrets
                seen.secrets.add(key)
                seen.touched.update(self.store.referrers(kind, key))
            case "IngressClass":
                seen.classes = True
                seen.touched.update(self.store.ingresses_of_class(key))
            case "AviInfraSetting" if _said(old) != _said(change.obj):
                seen.infra = True
                seen.settings.add(key)
            case "Namespace" if _annotation(old) != _annotation(change.obj):
                self.l4.take(change)
                seen.touched.update(self.store.referrers(kind, key))
            case "Network" if _spec(old) != _spec(change.obj):
                seen.infra = True
            case "ServiceEngineGroup":
                seen.infra = True
            case "VsVip" if self.shared is not None:
                seen.vips.append(self.shared.heard(change))
            case _:
                pass  # nothing that anything here depends on

    def _vips(self) -> tuple[dict[str, NetworkSpec], frozenset[str]]:
        """Where VIPs are, and may be.  Cost: all virtual services."""
        pools = list(self.placement.pools.values())
        homes = {h.address for one in self.placement.services.values() for h in one.homes}
        others = {one for one in homes if not any(pool.contains(one) for pool in pools)}
        return self.infrastructure.networks, frozenset(others)

    def _touch_users(self, services: Iterable[str]) -> set[str]:
        """Other endpoints of these are left out: who leads to them says so; the Ingresses."""
        ingresses: set[str] = set()
        for key in services:
            ingresses.update(self.store.referrers("Service", key))
            self.l4.touch_service(key)
            self.gateway_api.touch_service(key)
        return ingresses

    def know_engines(self, addresses: Mapping[str, str]) -> set[str]:
        """Service Engines are at these addresses; Ingresses that have other endpoints by that."""
        return self._leave_out(self.endpoints.know_engines(addresses))

    def know_ports(self, ports: Collection[int], here: Collection[str]) -> set[str]:
        """As of `Endpoints`; Ingresses that have other endpoints by that."""
        return self._leave_out(self.endpoints.know_ports(ports, here))

    def forget_strays(self) -> set[str]:
        """Old VIPs outside of every Network that are served no more; Ingresses as above."""
        if not self.endpoints.table.known.strays:
            return set()
        return self._leave_out(self.endpoints.know_vips(*self._vips()))

    def _leave_out(self, services: set[str]) -> set[str]:
        if services:
            self.realiser.endpoints(services)
            self.realiser.publish()
        return self._touch_users(services)

    def _hear(self, addresses: Iterable[str]) -> list[str]:
        """What all replicas can see of addresses; the virtual services that must look again.

        Where a leader decides, its own word counts, unless another has the address already.
        """
        again: list[str] = []
        if (shared := self.shared) is None:
            return again
        for address in addresses:
            if not self.placement.decides:
                self._hear_name(*shared.whose(address))
            owner, before = shared.kept(address), shared.believed(address)
            if owner == before:
                continue
            if self.placement.decides:
                if owner is None:
                    continue  # somebody took the object away: it is written again
                network, _, vs = owner.partition("/")
                known = self.placement.services.get(vs)
                if before is None and known is not None and vs not in self.placement.waiting:
                    continue  # a second address that nobody needs: it is taken away
            shared.believe(address)
            for at in (before, owner):
                network, _, vs = (at or "").partition("/")
                if (pool := self.placement.pools.get(network)) is not None:
                    pool.assign(address, vs if at == owner else None)
            network, _, vs = (owner or before or "").partition("/")
            if owner is None and vs not in self.placement.services:
                self.state.drop("owner", vs)
            for service in list(self.placement.services.values()):
                if owner is not None and service.name != vs:
                    again += self._evict(service, address)
            if owner is not None:
                again.append(vs)
        return again

    def _hear_name(self, name: str, key: str) -> None:
        """Another replica's word on whose a name is ("": it doesn't say)."""
        if key:
            for service in self.placement.misnamed(name, key):
                self._give_up(service)
                self.state.drop("owner", service.name)
            self.state.put("owner", name, key)

    def _give_up(self, service: VirtualService) -> None:
        """Leave a virtual service at once; who is served there is served anew, by another name."""
        for host in list(service.hosts):
            self._anew.add(host)
            if self.hosts[host].vs == service.name:
                self._remove(host)
        self.l4.give_up(service.name, self._close)
        self.gateway_api.give_up(service.name, self._close)
        self._close(service)
        self._retire(service)

    def _evict(self, service: VirtualService, address: str) -> list[str]:
        """An address turned out to be another's: leave it at once."""
        homes = [home for home in service.homes if home.address == address]
        for home in homes:
            self.realiser.drop_listeners(service, home)
            self.placement.remove_home(service, home)
            service.left.pop(address, None)
            if all(other.group != home.group for other in service.homes):
                self.realiser.drop_floors(service, home)
        if homes:
            for host in service.hosts:
                self.realiser.realise(host, self.hosts[host])
        return [service.name] if homes else []

    @property
    def decides(self) -> bool:
        """Whether this replica gives addresses."""
        return self.placement.decides

    def lead(self, decides: bool) -> None:
        """Of several replicas, this one gives addresses from now on, or no longer does."""
        self.placement.decides = decides
        if decides:
            self.forget_absent()
            # What a former leader could not do any more.
            again = [one.name for one in self.placement.services.values() if one.misplaced]
            self._follow((), again)
        elif self.shared is not None:
            self._follow((), self._hear(self.shared.unwritten()))
        self.realiser.publish()

    def follow_expired(self) -> bool:
        """Certificates of Gateways that have expired close their listeners; whether there are."""
        expired, self.realiser.expired = self.realiser.expired, set()
        if not self.gateway_api.take_expired(expired):
            return False
        self._follow(())
        self.realiser.publish()
        return True

    def address_taken(self, address: str) -> None:
        """An address that was given here is another's already."""
        self._follow((), self._hear([address]))
        self.realiser.publish()

    def _with_own_class(self, changes: Iterable[Change]) -> Iterable[Change]:
        """The changes, and IngressClass ``avi-lb`` when the source has none of that name."""
        wanted = self.config.ingress_class
        seen = False
        for change in changes:
            if change.kind == "IngressClass" and change.key == "avi-lb":
                seen = True
                if change.obj is None and wanted.create:
                    yield Change("IngressClass", "avi-lb", self._own_class())
                    continue
            yield change
        if wanted.create and not seen and self.store.ingress_class("avi-lb") is None:
            yield Change("IngressClass", "avi-lb", self._own_class())

    def _own_class(self) -> IngressClass:
        default = {DEFAULT_ANNOTATION: "true"} if self.config.ingress_class.default else None
        return IngressClass(
            metadata=ObjectMeta(name="avi-lb", annotations=default),
            spec=IngressClassSpec(controller=CONTROLLER),
        )

    def finish_move(self, move: Move) -> None:
        """The grace period of a move is over: stop listening at the old places.

        Virtual services and addresses that nobody else needs are closed: `retire` gives them up
        when no client can still be connected to them.
        """
        leaving: dict[str, list[str]] = {}
        for host, vs in move.hosts:
            placed = self.hosts.get(host)
            if placed is not None and placed.old.get(vs) == move.number:
                leaving.setdefault(vs, []).append(host)
        for vs, hosts in leaving.items():
            service = self.placement.services[vs]
            if all(self.hosts[host].vs != vs for host in service.hosts):
                self._close(service)
                continue
            for host in hosts:
                placed = self.hosts[host]
                del placed.old[vs]
                placed.left -= {vs}
                service.hosts.discard(host)
                self.realiser.realise(host, placed)
        for vs, home in move.homes:
            moved = self.placement.services.get(vs)
            if moved is not None and self._left(moved, home, move):
                self.realiser.drop_listeners(moved, home)
                self._on_close(partial(self._give_up_home, vs, home, move))
        self.realiser.publish()

    @staticmethod
    def _left(service: VirtualService, home: Home, move: Move) -> bool:
        return home in service.homes[:-1] and service.left.get(home.address) == move.number

    def _give_up_home(self, vs: str, home: Home, move: Move) -> None:
        service = self.placement.services.get(vs)
        if service is not None and self._left(service, home, move):
            del service.left[home.address]
            self.realiser.drop_listeners(service, home)  # it may have been needed meanwhile
            if all(h is home or h.group != home.group for h in service.homes):
                self.realiser.drop_floors(service, home)
            self.placement.leave(service, home)
            for host in service.hosts:
                self.realiser.realise(host, self.hosts[host])
            self._retry_waiting()
            self.realiser.publish()

    def _when_drained(self, then: Callable[[], None]) -> None:
        def drained() -> None:
            then()
            self.realiser.publish()

        self._on_close(drained)

    def _close(self, service: VirtualService) -> None:
        """Stop listening.  The addresses are not another's before the last connection is over."""
        if not service.closed:
            service.closed = True
            for home in service.homes:
                self.realiser.drop_listeners(service, home)
            self._on_close(partial(self._retire, service))

    def _retire(self, service: VirtualService) -> None:
        """Give up a closed virtual service, unless somebody needed it again meanwhile."""
        if not service.closed or self.placement.services.get(service.name) is not service:
            return
        for host in service.hosts:
            placed = self.hosts[host]
            del placed.old[service.name]
            placed.left -= {service.name}
            self.realiser.realise(host, placed)
        for home in service.homes:
            self.realiser.drop_floors(service, home)
        self.placement.retire(service)
        self.scale.forget(service.name)
        self.realiser.vs_touched.add(service.name)
        self._retry_waiting()
        self.realiser.publish()

    def judge(self) -> None:
        """Leave out of hosts what engines refuse.  Cost: nothing while they refuse nothing."""
        realiser, services = self.realiser, self.placement.services
        court, fleet = realiser.court, list(self.ads.fleet.values())
        refused = {
            name: found.message
            for engine in fleet
            for (type_url, name), found in engine.rejected.items()
            if type_url == SRDS
        }
        learnt = court.learn(refused)
        court.judge(realiser.tried.cases(refused, learnt), refused, learnt)
        court.judge(realiser.gateway.cases(refused, services), refused, learnt)

        def acknowledged(group: str) -> int:
            return min((e.acknowledged for e in fleet if e.group == group), default=0)

        court.judged(self._case, acknowledged, refused)
        realiser.publish()
        court.begun(lambda group: self.ads.catalog(group).sequence)
        untold, court.untold = court.untold, set()
        for one in untold:
            if len(one) == 2:
                grpc, name = one
                kind = "GRPCRoute" if grpc else "HTTPRoute"
                self.gateway_api.touched.add((kind, name.rpartition("/")[0]))
            else:
                self.told_otherwise.update(self.store.ingresses_of_host(one[0]))

    def _case(self, key: Any) -> Case | None:
        """A host that is tried: of an Ingress ("", host), else of a Gateway."""
        name, at = key
        if name == "":
            placed = self.hosts.get(at)
            return self.realiser.tried.case(at, placed) if placed is not None else None
        service = self.placement.services.get(name)
        return self.realiser.gateway.case(service, at) if service is not None else None

    def owners(self, host: str) -> dict[tuple[str, bool], Owner]:
        """Whose each path of a host of Ingresses is.  Cost: its paths."""
        no = self.host_refusals.get(host, {})
        mine = [
            ingress
            for ingress, _ in self._claims(host)
            if not any(said.reason == "HostClaimed" for said in no.get(ingress.metadata.key, ()))
        ]
        return owners_of(host, mine, self.store)

    def settle_move(self, move: Move) -> None:
        """Every engine has the new places: status names them from now on."""
        for host, vs in move.hosts:
            placed = self.hosts.get(host)
            if placed is not None and placed.old.get(vs) == move.number:
                placed.left |= {vs}
        for vs, home in move.homes:
            service = self.placement.services.get(vs)
            if service is not None and service.left.get(home.address) == move.number:
                service.settled = move.to[vs]
                self.realiser.vs_touched.add(vs)
                self.l4.touch_front(vs)
                self.gateway_api.touch_vs(vs)

    # ── hosts ───────────────────────────────────────────────────────────────────────────────

    def governed(self, ingress: Ingress) -> Governed:
        """Who serves this Ingress, as things are now."""
        return govern(ingress, self.store, self._default_class)

    def _governed(self, ingress: Ingress) -> Governed | None:
        key = ingress.metadata.key
        return self.faults.run(("class", key), f"Ingress/{key}", self.governed, ingress)

    def is_ours(self, ingress: Ingress) -> bool:
        """Whether we serve this Ingress, as far as we can tell."""
        by = self._governed(ingress)
        return by is not None and by.ours

    def _claims(self, host: str) -> list[tuple[Ingress, str]]:
        """The Ingresses of ours that name the host, oldest first, with their settings."""
        out: list[tuple[Ingress, str]] = []
        for key in self.store.ingresses_of_host(host):
            ingress = cast(Ingress, self.store.ingress(key))
            by = self._governed(ingress)
            if by is not None and by.ours and by.setting in self.infrastructure.infras:
                out.append((ingress, by.setting))
        if len(out) > 1:
            out.sort(key=lambda claim: self.claims.age(claim[0], host))
        return out

    def _follow(self, hosts: Collection[str], again: Iterable[str] = ()) -> None:
        """Translate, place and realise these hosts, in this order.  Cost: the hosts.

        ``again``: virtual services to settle as well.
        """
        self._moves += 1
        move = Move(self._moves)
        self.l4.follow(partial(self._settle, move=move), self._close)
        self.gateway_api.follow(partial(self._settle, move=move), self._close)
        wanted: dict[str, list[tuple[str, list[Ingress]]]] = {}
        refused: dict[str, dict[str, list[Refusal]]] = {}  # as it was
        anew, self._anew = self._anew, set()
        for host in (*hosts, *sorted(anew.difference(hosts))) if anew else hosts:
            claims = self._claims(host)
            if (said_before := self.host_refusals.pop(host, None)) is not None:
                refused[host] = said_before
            if not claims:
                self.claims.nobody(host)
                self._remove(host)
                if self.faults:
                    self.faults.over(("host", host))
                continue
            mine, no = self.claims.admit(host, claims)
            if no:
                self.host_refusals[host] = no
            wanted.setdefault(claims[0][1], []).append((host, mine))
        self._name_in_order(wanted)
        settled: set[str] = set()
        for setting, claimed in wanted.items():
            infra = self.infrastructure.infras[setting]
            dedicated = not infra.shard_size.shards
            shards = self.placement.shards(infra, [host for host, _ in claimed])
            for (host, mine), shard in zip(claimed, shards, strict=True):
                service = self.placement.service_of(infra, host, shard)
                if dedicated:
                    self.placement.own(service, mine[0].metadata.namespace)
                if service.name not in settled:
                    settled.add(service.name)
                    self._settle(service, infra, move)
                try:
                    self._serve(host, dedicated, mine, service, move)
                except Exception:
                    self._serve_without_faulty(host, dedicated, mine, service, move)
                else:
                    if self.faults:
                        self.faults.over(("host", host))
        self._retell(hosts, refused)
        for name in again:
            if (known := self.placement.services.get(name)) is not None and not known.closed:
                self._settle(known, known.infra, move)
        self._retry_waiting(move)
        self._begin(move)

    def _model(
        self,
        host: str,
        service: VirtualService,
        dedicated: bool,
        mine: Iterable[Ingress],
        owner: str,
    ) -> tuple[HostModel, dict[str, list[Refusal]]]:
        setting = service.infra.setting
        return host_model(host, setting, dedicated, mine, self.store, self.names, owner)

    def _serve(
        self,
        host: str,
        dedicated: bool,
        mine: list[Ingress],
        service: VirtualService,
        move: Move,
        owner: str = "",
    ) -> None:
        """Translate a host from its Ingresses, place and realise it.

        ``owner``: the namespace that has it, where that isn't the first Ingress's.
        """
        model, no = self._model(host, service, dedicated, mine, owner)
        if no:
            said = self.host_refusals.setdefault(host, {})
            for key, refusals in no.items():
                said.setdefault(key, []).extend(refusals)
        self._place(host, model, service, move)

    def _serve_without_faulty(
        self,
        host: str,
        dedicated: bool,
        mine: list[Ingress],
        service: VirtualService,
        move: Move,
    ) -> None:
        """We failed over a host: leave out the Ingresses that we fail over, and tell them."""

        owner = mine[0].metadata.namespace

        def attempt(some: list[Ingress]) -> None:
            self.realiser.attempt(self._model(host, service, dedicated, some, owner)[0], service)

        good, bad = without_faulty(mine, attempt)
        try:
            if good:
                self._serve(host, dedicated, good, service, move, owner)
        except Exception as err:
            good, bad = [], [(one, err) for one in mine]
        if not good:
            self._remove(host)
        self.faults.put(
            ("host", host),
            [self.faults.refusal(f"Ingress/{one.metadata.key}", err) for one, err in bad],
        )

    def _name_in_order(self, wanted: dict[str, list[tuple[str, list[Ingress]]]]) -> None:
        """Of hosts that come together, and would each be called alike, the oldest is."""
        infras = self.infrastructure.infras
        own = [
            (self.claims.age(mine[0], host), setting, host)
            for setting, claimed in wanted.items()
            if not infras[setting].shard_size.shards
            for host, mine in claimed
        ]
        for _, setting, host in sorted(own) if len(own) > 1 else ():
            self.placement.service_of(infras[setting], host, DEDICATED_SHARD)

    def _retell(self, hosts: Iterable[str], before: dict[str, dict[str, list[Refusal]]]) -> None:
        """Ingresses that are refused other things of these hosts than before say so."""
        for host in before.keys() | {host for host in hosts if host in self.host_refusals}:
            was, now = before.get(host, {}), self.host_refusals.get(host, {})
            self._retold.update(key for key in was | now if was.get(key) != now.get(key))

    def _begin(self, move: Move) -> None:
        """Publish the new places of a move; the old ones serve on until it is finished."""
        if move:
            self.realiser.publish()
            groups = {self.placement.services[self.hosts[h].vs].infra.group for h, _ in move.hosts}
            groups |= {self.placement.services[vs].infra.group for vs, _ in move.homes}
            move.waits = {group: self.ads.catalog(group).sequence for group in groups}
            self._on_move(move)

    def _in_order(self, hosts: set[str]) -> Collection[str]:
        """Hosts in the order in which their Ingresses came: it decides who gets which address."""
        if len(hosts) < 2:
            return hosts
        new = [host for host in hosts if host not in self.hosts]
        rest = [host for host in hosts if host in self.hosts]
        if len(new) > 1:
            position = {key: i for i, key in enumerate(self.store.all("Ingress"))}
            end = len(position)
            new.sort(
                key=lambda host: (
                    min((position[k] for k in self.store.ingresses_of_host(host)), default=end),
                    host,
                )
            )
        return [*sorted(rest), *new]

    def _settle(self, service: VirtualService, infra: Infra, move: Move) -> None:
        """Give a virtual service the listeners that its setting wants, where it wants them."""
        old_listeners, old_limits = service.infra.listeners, service.infra.limits
        service.infra = infra
        self.realiser.vs_touched.add(service.name)
        before = list(service.homes)
        home = self.placement.settle(service)
        failed = self.realiser.failed(service)
        if service.listeners is None and (old_listeners != infra.listeners or failed):
            for old in before:
                self.realiser.drop_ports(service, old, set(old_listeners) - set(infra.listeners))
                self.realiser.put_listeners(service, old)
            for host in service.hosts:
                self.realiser.realise(host, self.hosts[host])
        elif old_limits != infra.limits:
            for old in before:
                if (old.group, old.address) not in service.silent:
                    self.realiser.put_listeners(service, old)
        if service.closed:
            service.closed = False
            for old in service.homes:
                self.realiser.put_listeners(service, old)
        if home is not None:
            service.left.pop(home.address, None)
            self.realiser.put_listeners(service, home)
            self.l4.touch_front(service.name)
            self.gateway_api.touch_vs(service.name)
            for host in service.hosts:
                self.realiser.realise(host, self.hosts[host])
            for old in before:
                if old != home:
                    service.left[old.address] = move.number
                    move.to[service.name] = home.address
                    move.homes.append((service.name, old))

    def _place(self, host: str, model: HostModel, service: VirtualService, move: Move) -> None:
        placed = self.hosts.get(host)
        if placed is None:
            placed = self.hosts[host] = Placed(model, service.name)
            service.hosts.add(host)
        elif placed.model == model and placed.vs == service.name and placed.scopes:
            return
        else:
            if placed.vs != service.name:
                if placed.model.setting != model.setting:
                    self.placement.forget_host(placed.model.setting, host)
                placed.old[placed.vs] = move.number
                placed.left -= {placed.vs}
                if placed.shown == service.name:  # back to where it still is: the others never were
                    placed.left |= placed.old.keys()
                placed.old.pop(service.name, None)
                placed.left -= {service.name}
                move.hosts.append((host, placed.vs))
                placed.vs = service.name
                service.hosts.add(host)
            if placed.model.certificate != model.certificate:
                placed.model = model
                self.realiser.push_secret(host)
            placed.model = model
        self.realiser.realise(host, placed)

    def _remove(self, host: str) -> None:
        placed = self.hosts.pop(host, None)
        if placed is None:
            return
        self.placement.forget_host(placed.model.setting, host)
        if self._is_awaited(placed.vs):  # those who still ask there are on their way to another
            self._when_drained(partial(self._withdraw, host, placed))
        else:
            self.realiser.withdraw(host, placed)
        for vs in (placed.vs, *placed.old):
            self._leave(vs, host)

    def _is_awaited(self, vs: str) -> bool:
        """Whether another virtual service waits for an address of this one, and for no other."""
        services = self.placement.services
        homes = {home.address for home in services[vs].homes}
        return any(services[name].wanted in homes for name in self.placement.waiting)

    def _withdraw(self, host: str, placed: Placed) -> None:
        now = self.hosts.get(host)
        self.realiser.withdraw(host, placed, now.scopes if now is not None else ())

    def _leave(self, vs: str, host: str) -> None:
        service = self.placement.services[vs]
        service.hosts.discard(host)
        if all(self.hosts[other].vs != vs for other in service.hosts):
            self._close(service)

    def _retry_waiting(self, move: Move | None = None) -> None:
        """An address may be free again: try the virtual services that wait for one."""
        services, waiting = self.placement.services, self.placement.waiting
        if not any(p.free for p in self.placement.pools.values()):
            waiting = {name for name in waiting if services[name].wanted}
        quota = self.placement.quota
        if not self.placement.decides or not (waiting or quota.freed):
            return
        if move is None:
            self._moves += 1
            self._retry_waiting(own := Move(self._moves))
            self._begin(own)
            return
        for name in sorted(waiting):
            service = services[name]
            pool = self.placement.pools.get(service.infra.network)
            if pool is None or service.closed:
                continue
            self._take_over(service, pool)
            if pool.free:
                self._settle(service, service.infra, move)
        for names in quota.again():
            for service in (services[name] for name in names if not services[name].closed):
                self._settle(service, service.infra, move)
                if service.over:
                    break  # so has everybody after it

    def _take_over(self, service: VirtualService, pool: Ipam) -> None:
        """Who closed at the one address that a virtual service may have leaves it at once.

        On the same Service Engines the one begins to listen as the other ends, and connections
        of the latter are served on: nobody is without an answer meanwhile.
        """
        former = self.placement.services.get(pool.holder(service.wanted) or "")
        if former is None or not former.closed:
            return
        homes = [home for home in former.homes if home.address == service.wanted]
        if any(home.group != service.infra.group for home in homes):
            return
        for home in homes:
            self.placement.leave(former, home)
            self._when_drained(partial(self._drop_unused_floors, former, home))
        self.realiser.vs_touched.add(former.name)

    def _drop_unused_floors(self, former: VirtualService, home: Home) -> None:
        now = self.placement.services.get(former.name)
        if now is None or all(other.group != home.group for other in now.homes):
            self.realiser.drop_floors(former, home)

    def forget_absent(self) -> None:
        """After the first list: give back what is remembered for objects that are gone.

        Nothing is given back while a setting or a Network is refused: its hosts may return.
        """
        refused = [
            *self.infrastructure.setting_refusals.values(),
            *self.infrastructure.network_refusals.values(),
        ]
        if all(refusal.warning for refusals in refused for refusal in refusals):
            self.placement.forget_absent(self.hosts)
        if self.placement.opening:
            self.placement.opening = False
            self.placement.quota.free_all()
            self._retry_waiting()
            self.realiser.publish()
        self.claims.forget_absent()

    def is_named(self, move: Move) -> bool:
        """Whether the status of an object still names a place that the move leaves."""
        places: list[tuple[str, str]] = []
        for host, vs in move.hosts:
            placed = self.hosts.get(host)
            if placed is not None and placed.old.get(vs) == move.number:
                places += [(host, home.address) for home in self.placement.services[vs].homes]
        for vs, home in move.homes:
            service = self.placement.services.get(vs)
            if service is not None and self._left(service, home, move):
                places += [(host, home.address) for host in service.hosts]
                if service.listeners is not None and (
                    self.l4.names(vs, home.address) or self.gateway_api.names(vs, home.address)
                ):
                    return True
        return any(
            point.hostname == host and point.ip == address
            for host, address in places
            for key in self.store.ingresses_of_host(host)
            if (ingress := self.store.ingress(key)) is not None
            for point in ingress.status.load_balancer.ingress
        )

    def _asked(self, vs: str) -> int:
        """How many Service Engines the setting of a virtual service asks for; 0: it doesn't."""
        service = self.placement.services.get(vs)
        return service.infra.scale_out if service is not None else 0

    def hosts_of_move(self, move: Move) -> set[str]:
        """The hosts whose address a move changes."""
        hosts = {host for host, _ in move.hosts}
        for vs, _ in move.homes:
            if (service := self.placement.services.get(vs)) is not None:
                hosts |= service.hosts
        return hosts

    def wanted_engines(self) -> dict[str, int]:
        """How many Service Engines each group needs now: none for a group without a home."""
        groups = self.placement.homes_of
        if not self.infrastructure.speaks_bgp:
            return {group: self.infrastructure.engines_of(group) for group in groups}
        wanted = dict.fromkeys(groups, 0)
        for service in self.placement.services.values():
            for home in service.homes:
                number = self.scale.wanted(service.name, home.group)
                wanted[home.group] = max(wanted[home.group], number)
        return {group: self.scale.with_spares(group, number) for group, number in wanted.items()}


def _spec(obj: Object | None) -> AviInfraSettingSpec | NetworkSpec | None:
    return obj.spec if isinstance(obj, AviInfraSetting | Network) else None


def _said(obj: Object | None) -> tuple[object, str | None]:
    """What of a setting counts."""
    return _spec(obj), obj.metadata.annotation(SCALE_OUT_ANNOTATION) if obj is not None else None


def _annotation(obj: Object | None) -> str | None:
    return obj.metadata.annotation(SETTING_ANNOTATION) if obj is not None else None
