"""The loop that a newcomer reads first: changes in, difference out.

    batch of changes ─▶ store ─▶ dirty hosts ─▶ translate ─▶ place ─▶ realise ─▶ publish

The unit of work is the host.  An event costs the hosts that it touches; only an edit of a
class, setting, Network or group costs the hosts that it governs.  `Reconciler` is synchronous
and knows neither clock nor sockets: it is given what happened and answers by publishing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from functools import partial
from typing import cast

import msgspec
from msgspec import Struct, field

from akocore.config import Config
from akocore.engines.envoy.ads import AdsServer
from akocore.engines.envoy.resources import (
    CDS,
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
)
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
    ServiceEngineGroup,
    ServiceEngineGroupSpec,
)
from akocore.model import HostModel, Refusal
from akocore.place.ipam import check_network, check_overlaps
from akocore.place.state import Facts, SharedFacts
from akocore.place.virtual_services import Home, Placed, Placement, VirtualService
from akocore.store import Store
from akocore.translate.classes import (
    CONTROLLER,
    DEFAULT_ANNOTATION,
    SETTING_ANNOTATION,
    Governed,
    Infra,
    default_class,
    govern,
    infra_of,
)
from akocore.translate.ingress import ANY_HOST, host_model
from akocore.translate.names import Names
from akocore.translate.tls import Certificate, CertificateProblem, certificate

__all__ = ["Move", "Reconciler"]

log = logging.getLogger(__name__)


class Move(Struct):
    """Hosts and homes that change place together.  ``waits``: publication by group."""

    number: int
    waits: dict[str, int] = field(default_factory=dict)
    hosts: list[tuple[str, str]] = field(default_factory=list)  # (host, virtual service left)
    homes: list[tuple[str, Home]] = field(default_factory=list)  # (virtual service, home left)
    to: dict[str, str] = field(default_factory=dict)  # virtual service → its new address

    def __bool__(self) -> bool:
        return bool(self.hosts or self.homes)


class _Diff(Struct):
    """What one run publishes to one group."""

    puts: dict[tuple[str, str], Encoded] = field(default_factory=dict)
    drops: dict[tuple[str, str], None] = field(default_factory=dict)


class Reconciler:
    """The state of the world, and how it follows changes.

    ``on_move(move)``: serve on at the old places until `finish_move` is called.
    ``on_close(then)``: call ``then`` when the engines have drained what was just closed.
    ``shared``: ``state``, where other replicas write it too.
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
    ) -> None:
        self.config = config
        self.state = state
        self.shared = shared
        self.ads = ads
        self.port_offset = port_offset
        self.store = Store()
        self.names = Names(config.cluster_name)
        self.placement = Placement(self.names, state)
        self.hosts: dict[str, Placed] = {}
        self.infras: dict[str, Infra] = {}
        self.setting_refusals: dict[str, tuple[Refusal, ...]] = {}
        self.host_refusals: dict[str, dict[str, list[Refusal]]] = {}
        self.groups: dict[str, ServiceEngineGroupSpec] = {}
        self.networks: dict[str, NetworkSpec] = {}
        self.network_refusals: dict[str, tuple[Refusal, ...]] = {}
        self.certificates: dict[str, Certificate | CertificateProblem] = {}
        self.now = now
        self._on_move = on_move
        self._on_close = on_close
        self._moves = 0
        self._up: set[str] = set()  # backends that have a server
        self.vs_touched: set[str] = set()  # whose mirror may say something else now
        # Service → backend → group → virtual service → hosts
        self._backends: dict[str, dict[str, dict[str, dict[str, int]]]] = {}
        self._default_class: IngressClass | None = None
        self._diffs: dict[str, _Diff] = {}
        self._unsettled: list[Placed] = []
        self._placed: list[tuple[str, int, str]] = []

    # ── events ──────────────────────────────────────────────────────────────────────────────

    def apply(self, changes: Iterable[Change]) -> set[str]:
        """Follow a batch of changes to the end; keys of the Ingresses that it touched."""
        hosts: set[str] = set()
        services: set[str] = set()
        secrets: set[str] = set()
        touched: set[str] = set()
        echoes: set[str] = set()
        settings: set[str] = set()
        vips: list[str] = []
        infra = classes = False
        for change in self._with_own_class(changes):
            key, kind = change.key, change.kind
            if kind == "Ingress":
                if self.store.take_status(change):  # our own writes come back to us
                    echoes.add(key)
                    continue
                hosts.update(self.store.hosts_of(key))
                self.store.apply(change)
                hosts.update(self.store.hosts_of(key))
                touched.add(key)
                continue
            old = self.store.apply(change)
            match kind:
                case "Service":
                    services.add(key)
                    touched.update(self.store.referrers(kind, key))
                case "EndpointSlice":
                    for slice_ in (cast("EndpointSlice | None", old), change.obj):
                        if isinstance(slice_, EndpointSlice) and slice_.service:
                            services.add(slice_.service)
                case "Secret":
                    secrets.add(key)
                    touched.update(self.store.referrers(kind, key))
                case "IngressClass":
                    classes = True
                    touched.update(self.store.ingresses_of_class(key))
                case "AviInfraSetting" if _spec(old) != _spec(change.obj):
                    infra = True
                    settings.add(key)
                case "Namespace" if _annotation(old) != _annotation(change.obj):
                    touched.update(self.store.referrers(kind, key))
                case "ServiceEngineGroup" | "Network":
                    infra = True
                case "VsVip" if self.shared is not None:
                    vips.append(self.shared.heard(change))
                case _:
                    pass  # nothing that anything here depends on
        if classes:
            self._default_class = default_class(self.store)
        given = self._hear(vips)
        if infra or not self.infras:
            settings.update(self._infrastructure())
            for setting in settings:
                touched.update(
                    self.store.ingresses_of_setting(setting)
                    if setting
                    else self.store.all("Ingress")
                )
        for key in touched:
            hosts.update(self.store.hosts_of(key))
        for key in secrets:
            self._certificate(key)
        self._endpoints(services)  # of clusters that are there; those to come are made with them
        self._follow(hosts, given)
        self._secrets(secrets)
        self._publish()
        return touched | echoes

    def _hear(self, addresses: Iterable[str]) -> list[str]:
        """What all replicas can see of addresses; the virtual services that must look again.

        Where a leader decides, its own word counts, unless another has the address already.
        """
        again: list[str] = []
        if (shared := self.shared) is None:
            return again
        for address in addresses:
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
            network, _, vs = (owner or "").partition("/")
            for service in list(self.placement.services.values()):
                if owner is not None and service.name != vs:
                    again += self._evict(service, address)
            again.append(vs)
        return again

    def _evict(self, service: VirtualService, address: str) -> list[str]:
        """An address turned out to be another's: leave it at once."""
        homes = [home for home in service.homes if home.address == address]
        for home in homes:
            self._drop_listeners(service, home)
            service.homes.remove(home)
            service.left.pop(address, None)
            if all(other.group != home.group for other in service.homes):
                self._drop_floors(service, home)
        if homes:
            for host in service.hosts:
                self._realise(host, self.hosts[host])
        return [service.name] if homes else []

    def lead(self, decides: bool) -> None:
        """Of several replicas, this one gives addresses from now on, or no longer does."""
        self.placement.decides = decides
        if decides:
            self.forget_absent()
            self._retry_waiting()
        elif self.shared is not None:
            self._follow(set(), self._hear(self.shared.unwritten()))
        self._publish()

    def address_taken(self, address: str) -> None:
        """An address that was given here is another's already."""
        self._follow(set(), self._hear([address]))
        self._publish()

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
                placed.left.discard(vs)
                service.hosts.discard(host)
                self._realise(host, placed)
        for vs, home in move.homes:
            moved = self.placement.services.get(vs)
            if moved is not None and self._left(moved, home, move):
                self._drop_listeners(moved, home)
                self._on_close(partial(self._give_up_home, vs, home, move))
        self._publish()

    @staticmethod
    def _left(service: VirtualService, home: Home, move: Move) -> bool:
        return home in service.homes[:-1] and service.left.get(home.address) == move.number

    def _give_up_home(self, vs: str, home: Home, move: Move) -> None:
        service = self.placement.services.get(vs)
        if service is not None and self._left(service, home, move):
            del service.left[home.address]
            if all(h is home or h.group != home.group for h in service.homes):
                self._drop_floors(service, home)
            self.placement.leave(service, home)
            for host in service.hosts:
                self._realise(host, self.hosts[host])
            self._retry_waiting()
            self._publish()

    def _close(self, service: VirtualService) -> None:
        """Stop listening.  The addresses are not another's before the last connection is over."""
        if not service.closed:
            service.closed = True
            for home in service.homes:
                self._drop_listeners(service, home)
            self._on_close(partial(self._retire, service))

    def _retire(self, service: VirtualService) -> None:
        """Give up a closed virtual service, unless somebody needed it again meanwhile."""
        if not service.closed or self.placement.services.get(service.name) is not service:
            return
        for host in service.hosts:
            placed = self.hosts[host]
            del placed.old[service.name]
            placed.left.discard(service.name)
            self._realise(host, placed)
        for home in service.homes:
            self._drop_floors(service, home)
        self.placement.retire(service)
        self.vs_touched.add(service.name)
        self._retry_waiting()
        self._publish()

    def settle_move(self, move: Move) -> None:
        """Every engine has the new places: status names them from now on."""
        for host, vs in move.hosts:
            placed = self.hosts.get(host)
            if placed is not None and placed.old.get(vs) == move.number:
                placed.left.add(vs)
        for vs, home in move.homes:
            service = self.placement.services.get(vs)
            if service is not None and service.left.get(home.address) == move.number:
                service.settled = move.to[vs]
                self.vs_touched.add(vs)

    # ── infrastructure: groups, networks, settings ──────────────────────────────────────────

    def _infrastructure(self) -> set[str]:
        """Work out all settings again; the names of those that came out differently."""
        self.groups = dict(self.config.service_engine_groups)
        for group in self.store.all("ServiceEngineGroup").values():
            if isinstance(group, ServiceEngineGroup):
                self.groups[group.metadata.name] = group.spec
        good = self._good_networks()
        self.networks = good
        changed_networks = self.placement.set_networks(good)
        before = self.infras
        self.infras = {}
        self.setting_refusals = {}
        for key in ("", *self.store.all("AviInfraSetting")):
            self._setting(key)
        there = {*self.store.all("AviInfraSetting"), *map(_accepted, self.store.all("Network"))}
        for key in set(self.state.room("accepted")) - there:
            self.state.drop("accepted", key)
        return {
            key
            for key in {*before, *self.infras}
            if before.get(key) != self.infras.get(key)
            or (key in self.infras and self.infras[key].network in changed_networks)
        }

    def _good_networks(self) -> dict[str, NetworkSpec]:
        """The Networks in force.  A bad edit leaves the last good form of just that Network.

        Of two that overlap the one stays that was there first, unchanged.
        """
        accepted = self.state.room("accepted")
        order: list[tuple[bool, str, str, NetworkSpec]] = [
            (False, "", name, spec) for name, spec in self.config.networks.items()
        ]
        last: dict[str, NetworkSpec] = {}
        for obj in self.store.all("Network").values():
            assert isinstance(obj, Network)
            name = obj.metadata.name
            order = [one for one in order if one[2] != name]
            if fact := accepted.get(_accepted(name)):
                last[name] = msgspec.json.decode(fact, type=NetworkSpec)
            changed = last.get(name) != obj.spec
            order.append((changed, obj.metadata.creation_timestamp, name, obj.spec))
        order.sort(key=lambda one: one[:3])
        self.network_refusals = {name: check_network(name, spec) for _, _, name, spec in order}
        good = {
            name: spec
            for _, _, name, spec in order
            if all(refusal.warning for refusal in self.network_refusals[name])
        }
        for name, refusal in check_overlaps(good).items():
            self.network_refusals[name] = (*self.network_refusals[name], refusal)
            del good[name]
        for name in [name for name in last if name not in good]:
            if name not in check_overlaps({**good, name: last[name]}):
                good[name] = last[name]
        for name in self.store.all("Network"):
            if name in good:
                fact = msgspec.json.encode(good[name]).decode()
                self.state.put("accepted", _accepted(name), fact)
        return good

    def _setting(self, key: str) -> None:
        setting = self.store.setting(key) if key else None
        spec = setting.spec if setting is not None else None

        def compiled(spec: AviInfraSettingSpec | None) -> tuple[Infra | None, tuple[Refusal, ...]]:
            return infra_of(key, spec, self.config.defaults, self.groups, self.networks)

        infra, refusals = compiled(spec)
        if infra is None and key and (fact := self.state.room("accepted").get(key)):
            infra, _ = compiled(msgspec.json.decode(fact, type=AviInfraSettingSpec))
        elif infra is not None and spec is not None:
            self.state.put("accepted", key, msgspec.json.encode(spec).decode())
        if infra is not None:
            self.infras[key] = infra
            pool = self.placement.pools[infra.network]
            if pool.size < infra.shard_size.shards:
                refusals += (
                    Refusal(
                        object=f"AviInfraSetting/{key}" if key else "Config",
                        field="spec.l7Settings.shardSize",
                        reason="InsufficientAddresses",
                        remedy=f"{infra.shard_size} needs {infra.shard_size.shards} addresses,"
                        f" Network {infra.network} has {pool.size}: widen its vipRanges or take a"
                        " smaller shardSize. The shards that have an address are served.",
                    ),
                )
        self.setting_refusals[key] = refusals

    # ── hosts ───────────────────────────────────────────────────────────────────────────────

    def governed(self, ingress: Ingress) -> Governed:
        """Who serves this Ingress, as things are now."""
        return govern(ingress, self.store, self._default_class)

    def _claims(self, host: str) -> list[tuple[Ingress, str]]:
        """The Ingresses of ours that name the host, oldest first, with their settings."""
        out: list[tuple[Ingress, str]] = []
        for key in self.store.ingresses_of_host(host):
            ingress = cast(Ingress, self.store.ingress(key))
            by = self.governed(ingress)
            if by.ours and by.setting in self.infras:
                out.append((ingress, by.setting))
        if len(out) > 1:
            out.sort(key=lambda c: (c[0].metadata.creation_timestamp or "~", c[0].metadata.key))
        return out

    def _follow(self, hosts: set[str], again: Iterable[str] = ()) -> None:
        """Translate, place and realise these hosts.  Cost: the hosts.

        ``again``: virtual services to settle as well.
        """
        wanted: dict[str, list[tuple[str, list[Ingress]]]] = {}
        for host in self._in_order(hosts):
            claims = self._claims(host)
            self.host_refusals.pop(host, None)
            if not claims:
                self._remove(host)
                continue
            setting = claims[0][1]
            mine = [ingress for ingress, other in claims if other == setting]
            for ingress, other in claims:
                if other != setting:
                    self._refuse_claim(host, ingress, mine[0])
            wanted.setdefault(setting, []).append((host, mine))
        self._moves += 1
        move = Move(self._moves)
        settled: set[str] = set()
        for setting, claimed in wanted.items():
            infra = self.infras[setting]
            dedicated = not infra.shard_size.shards
            shards = self.placement.shards(infra, [host for host, _ in claimed])
            for (host, mine), shard in zip(claimed, shards, strict=True):
                service = self.placement.service_of(infra, host, shard)
                if service.name not in settled:
                    settled.add(service.name)
                    self._settle(service, infra, move)
                model, no = host_model(host, setting, dedicated, mine, self.store, self.names)
                if no:
                    said = self.host_refusals.setdefault(host, {})
                    for key, refusals in no.items():
                        said.setdefault(key, []).extend(refusals)
                self._place(host, model, service, move)
        for name in again:
            if (known := self.placement.services.get(name)) is not None and not known.closed:
                self._settle(known, known.infra, move)
        self._retry_waiting(move)
        if move:
            self._publish()
            groups = {self.placement.services[self.hosts[h].vs].infra.group for h, _ in move.hosts}
            groups |= {self.placement.services[vs].infra.group for vs, _ in move.homes}
            move.waits = {group: self.ads.catalog(group).sequence for group in groups}
            self._on_move(move)

    def _in_order(self, hosts: set[str]) -> Iterable[str]:
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

    def _refuse_claim(self, host: str, ingress: Ingress, owner: Ingress) -> None:
        key = ingress.metadata.key
        rules = [rule.host for rule in ingress.spec.rules]
        field_ = f"spec.rules[{rules.index(host)}].host" if host in rules else "spec.defaultBackend"
        self.host_refusals.setdefault(host, {}).setdefault(key, []).append(
            Refusal(
                object=f"Ingress/{key}",
                field=field_,
                reason="HostClaimed",
                remedy=f"{host or 'Any host'} is served for Ingress {owner.metadata.key} under"
                " another class or setting, which came first. Use its class or another host.",
            )
        )

    def _settle(self, service: VirtualService, infra: Infra, move: Move) -> None:
        """Give a virtual service the listeners that its setting wants, where it wants them."""
        old_listeners = service.infra.listeners
        service.infra = infra
        self.vs_touched.add(service.name)
        before = list(service.homes)
        home = self.placement.settle(service)
        if old_listeners != infra.listeners:
            for old in before:
                for port in set(old_listeners) - set(infra.listeners):
                    self._drop(old.group, LDS, f"{service.name}/{old.address}:{port.port}")
                self._put_listeners(service, old)
            for host in service.hosts:
                self._realise(host, self.hosts[host])
        if service.closed:
            service.closed = False
            for old in service.homes:
                self._put_listeners(service, old)
        if home is not None:
            service.left.pop(home.address, None)
            self._put_listeners(service, home)
            for host in service.hosts:
                self._realise(host, self.hosts[host])
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
            self._push_secret(host)  # a wildcard may have spoken for it so far
        elif placed.model == model and placed.vs == service.name and placed.scopes:
            return
        else:
            if placed.vs != service.name:
                if placed.model.setting != model.setting:
                    self.placement.forget_host(placed.model.setting, host)
                placed.old[placed.vs] = move.number
                placed.left.discard(placed.vs)
                if placed.shown == service.name:  # back to where it still is: the others never were
                    placed.left.update(placed.old)
                placed.old.pop(service.name, None)
                placed.left.discard(service.name)
                move.hosts.append((host, placed.vs))
                placed.vs = service.name
                service.hosts.add(host)
            if placed.model.certificate != model.certificate:
                placed.model = model
                self._push_secret(host)
            placed.model = model
        self._realise(host, placed)

    def _remove(self, host: str) -> None:
        placed = self.hosts.pop(host, None)
        if placed is None:
            return
        self.placement.forget_host(placed.model.setting, host)
        for group, name in placed.scopes:
            self._drop(group, SRDS, name)
        self._use(placed.backends, frozenset())
        if placed.model.certificate:
            self._push_secret(host)
        for vs in (placed.vs, *placed.old):
            self._leave(vs, host)

    def _leave(self, vs: str, host: str) -> None:
        service = self.placement.services[vs]
        service.hosts.discard(host)
        if all(self.hosts[other].vs != vs for other in service.hosts):
            self._close(service)

    def _retry_waiting(self, move: Move | None = None) -> None:
        """An address may be free again: try the virtual services that wait for one."""
        if not self.placement.decides or not any(p.free for p in self.placement.pools.values()):
            return
        for name in sorted(self.placement.waiting):
            service = self.placement.services[name]
            pool = self.placement.pools.get(service.infra.network)
            if pool is not None and pool.free:
                self._settle(service, service.infra, move or Move(0))

    # ── realise: model and place → resources ────────────────────────────────────────────────

    def _realise(self, host: str, placed: Placed) -> None:
        """Publish a host wherever it is served, and nowhere else.  Cost: its places."""
        model = placed.model
        scopes: dict[tuple[str, str], Encoded] = {}
        places: set[tuple[str, str]] = set()
        for vs in (placed.vs, *placed.old):
            service = self.placement.services[vs]
            infra = service.infra
            tls_port = next((p.port for p in infra.listeners if p.tls), 443)
            one_by_port: list[Encoded] = []
            for port in infra.listeners:
                if port.tls and not model.certificate:
                    continue
                one_by_port.append(
                    redirect_scope(vs, port.port, host, tls_port + self.port_offset)
                    if model.redirect and not port.tls
                    else scope(vs, port.port, model)
                )
            for home in service.homes:
                places.add((home.group, vs))
                for one in one_by_port:
                    scopes[home.group, one.name] = one
        backends = frozenset(
            (group, vs, route.pool.backend)
            for group, vs in places
            for route in model.routes
            if route.pool.backend is not None
        )
        self._use(placed.backends, backends)
        placed.backends = backends
        for (group, _), one in scopes.items():
            self._put(group, one)
        names = frozenset(scopes)
        for group, name in placed.scopes - names:
            self._drop(group, SRDS, name)
        placed.scopes = names
        if places != placed.sequence.keys():
            # -1: set by `_publish`; a place that it had before it is served at all the while.
            placed.sequence = {at: placed.sequence.get(at, -1) for at in places}
            self._unsettled.append(placed)

    def _use(
        self, before: frozenset[tuple[str, str, str]], after: frozenset[tuple[str, str, str]]
    ) -> None:
        """Count who needs which cluster and pool; a cluster is there while somebody needs it."""
        for group, vs, backend in after - before:
            key = backend.rpartition("/")[0]
            groups = self._backends.setdefault(key, {}).setdefault(backend, {})
            if group not in groups:
                members = self.members(backend)
                if members:
                    self._up.add(backend)
                self._put(group, cluster(backend, members))
            users = groups.setdefault(group, {})
            users[vs] = users.get(vs, 0) + 1
            self._count_pool(vs, backend, 1)
        for group, vs, backend in before - after:
            key = backend.rpartition("/")[0]
            groups = self._backends[key][backend]
            users = groups[group]
            self._count_pool(vs, backend, -1)
            users[vs] -= 1
            if users[vs]:
                continue
            del users[vs]
            if not users:
                del groups[group]
                self._drop(group, CDS, cluster_name(backend))
            if not groups:
                self._up.discard(backend)
                del self._backends[key][backend]
                if not self._backends[key]:
                    del self._backends[key]

    def _count_pool(self, vs: str, backend: str, by: int) -> None:
        service = self.placement.services[vs]
        count = service.pools[backend] = service.pools.get(backend, 0) + by
        if not count:
            del service.pools[backend]
        if backend in self._up and count == (1 if by > 0 else 0):
            service.pools_up += by
        self.vs_touched.add(vs)

    def members(self, backend: str) -> list[tuple[str, int]]:
        """(address, port) of what serves a Service port, sorted.

        Ready endpoints; when there are none, those that still serve while they terminate
        (as kube-proxy does: KEP-1669).
        """
        key, _, number = backend.rpartition("/")
        service = self.store.service(key)
        port = (
            next(
                (p for p in service.spec.ports if str(p.port) == number and p.protocol == "TCP"),
                None,
            )
            if service
            else None
        )
        if port is None:
            return []
        ready: set[tuple[str, int]] = set()
        terminating: set[tuple[str, int]] = set()
        for slice_ in self.store.slices(key):
            if slice_.address_type == "FQDN":
                continue
            at = next(
                (
                    p.port
                    for p in slice_.ports or ()
                    if (p.name or "") == port.name and p.port and p.protocol in (None, "TCP")
                ),
                None,
            )
            if at is None:
                continue
            for endpoint in slice_.endpoints or ():
                if not endpoint.addresses:
                    continue
                conditions = endpoint.conditions
                if conditions.ready is not False and not conditions.terminating:
                    ready.add((endpoint.addresses[0], at))
                elif conditions.terminating and conditions.serving is not False:
                    terminating.add((endpoint.addresses[0], at))
        return sorted(ready or terminating)

    def _endpoints(self, services: Iterable[str]) -> None:
        for service in services:
            for backend, groups in self._backends.get(service, {}).items():
                members = self.members(backend)
                if bool(members) != (backend in self._up):
                    self._turn(backend, groups)
                one = cluster(backend, members)
                for group in groups:
                    self._put(group, one)

    def _turn(self, backend: str, groups: Mapping[str, Mapping[str, int]]) -> None:
        """A Service port got its first server, or lost its last.  Cost: who uses it."""
        up = backend not in self._up
        (self._up.add if up else self._up.discard)(backend)
        for vs in {vs for users in groups.values() for vs in users}:
            self.placement.services[vs].pools_up += 1 if up else -1
            self.vs_touched.add(vs)

    def _put_listeners(self, service: VirtualService, home: Home) -> None:
        for port in service.infra.listeners:
            one = listener(
                service.name,
                home.address,
                port.port,
                tls=port.tls,
                http2=port.http2,
                port_offset=self.port_offset,
            )
            self._put(home.group, one)
            self._put(home.group, floor_scope(service.name, port.port))

    def _drop_listeners(self, service: VirtualService, home: Home) -> None:
        others = [h for h in service.homes if h is not home and h.group == home.group]
        for port in service.infra.listeners:
            if not any(h.address == home.address for h in others):
                self._drop(home.group, LDS, f"{service.name}/{home.address}:{port.port}")

    def _drop_floors(self, service: VirtualService, home: Home) -> None:
        for port in service.infra.listeners:
            self._drop(home.group, SRDS, floor_scope(service.name, port.port).name)

    # ── certificates ────────────────────────────────────────────────────────────────────────

    def _certificate(self, key: str) -> None:
        obj = self.store.secret(key)
        if obj is None or not any(True for _ in self.store.referrers("Secret", key)):
            self.certificates.pop(key, None)
        else:
            self.certificates[key] = certificate(obj, self.now())

    def certificate_of(self, key: str) -> Certificate | CertificateProblem | None:
        """The certificate in a Secret; None when there is no such Secret."""
        if key not in self.certificates and self.store.secret(key) is not None:
            self._certificate(key)
        return self.certificates.get(key)

    def secret_for(self, sni: str) -> Encoded | None:
        """What an engine gets when a client asks for ``sni``: exact host, wildcard, any host."""
        host = self.host_of_sni(sni)
        if host is None:
            return None
        found = self.certificate_of(self.hosts[host].model.certificate)
        return secret(sni, found) if isinstance(found, Certificate) else None

    def host_of_sni(self, sni: str) -> str | None:
        """The host that a client means by ``sni``; None when nobody has it."""
        name = plain_sni(sni)
        for host in (name, f"*.{name.partition('.')[2]}", ANY_HOST):
            if host in self.hosts and host != NO_SNI:
                return host
        return None

    def _secrets(self, keys: Iterable[str]) -> None:
        for key in keys:
            for ingress in self.store.referrers("Secret", key):
                for host in self.store.hosts_of(ingress):
                    placed = self.hosts.get(host)
                    if placed is not None and placed.model.certificate == key:
                        self._push_secret(host)

    def expire(self) -> set[str]:
        """Stop serving certificates that have expired; keys of the Ingresses that had them."""
        now = self.now().timestamp()
        gone = [
            key
            for key, found in self.certificates.items()
            if isinstance(found, Certificate) and found.not_after <= now
        ]
        for key in gone:
            self._certificate(key)
        if gone:
            self._secrets(gone)
            self._publish()
        return {ingress for key in gone for ingress in self.store.referrers("Secret", key)}

    def forget_absent(self) -> None:
        """After the first list: give back what is remembered for objects that are gone.

        Nothing is given back while a setting or a Network is refused: its hosts may return.
        """
        refused = [*self.setting_refusals.values(), *self.network_refusals.values()]
        if all(refusal.warning for refusals in refused for refusal in refusals):
            self.placement.forget_absent(self.hosts)

    def rejected_ingresses(self) -> set[str]:
        """Keys of the Ingresses of which an engine refuses something.  Cost: all hosts."""
        rejected = {at for e in self.ads.engines.values() for at in e.rejected}
        if not rejected:
            return set()
        out: set[str] = set()
        refused_sni: dict[str | None, list[str]] = {}
        for type_url, name in rejected:
            if type_url == SDS:
                refused_sni.setdefault(self.host_of_sni(name), []).append(name)
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

    def _push_secret(self, host: str) -> None:
        """Send a host's certificate again to the engines that have asked for it."""
        for group, catalog in self.ads.catalogs.items():
            catalog.secret = self.secret_for
            for engine in self.ads.engines.values():
                if engine.group != group:
                    continue
                for name in engine.names_of(host):
                    one = self.secret_for(name)
                    if one is None:
                        self._drop(group, SDS, name)
                    else:
                        self._put(group, one)

    # ── publishing ──────────────────────────────────────────────────────────────────────────

    def _put(self, group: str, one: Encoded) -> None:
        diff = self._diffs.get(group)
        if diff is None:
            diff = self._diffs[group] = _Diff()
        at = (one.type_url, one.name)
        diff.drops.pop(at, None)
        diff.puts[at] = one

    def _drop(self, group: str, type_url: str, name: str) -> None:
        diff = self._diffs.setdefault(group, _Diff())
        diff.puts.pop((type_url, name), None)
        diff.drops[type_url, name] = None

    def _publish(self) -> None:
        diffs, self._diffs = self._diffs, {}
        for group, diff in diffs.items():
            self.ads.catalog(group).secret = self.secret_for
            self.ads.publish(group, diff.puts.values(), diff.drops)
        for placed in self._unsettled:
            for (group, vs), sequence in placed.sequence.items():
                if sequence < 0:
                    number = self.ads.catalog(group).sequence
                    placed.sequence[group, vs] = number
                    self._placed.append((group, number, placed.model.host))
        self._unsettled.clear()

    def take_placed(self) -> list[tuple[str, int, str]]:
        """(group, publication, host) of the places that hosts were given since the last call."""
        placed, self._placed = self._placed, []
        return placed

    def hosts_of_move(self, move: Move) -> set[str]:
        """The hosts whose address a move changes."""
        hosts = {host for host, _ in move.hosts}
        for vs, _ in move.homes:
            if (service := self.placement.services.get(vs)) is not None:
                hosts |= service.hosts
        return hosts

    def wanted_engines(self) -> dict[str, int]:
        """How many Service Engines each group needs now: none for a group without a home."""
        return {
            group: self.groups[group].min_se_per_vs if group in self.groups else 1
            for service in self.placement.services.values()
            for group in {home.group for home in service.homes}
        }


def _accepted(network: str) -> str:
    """The key of a Network among the accepted: no setting's name has an underscore."""
    return f"Network_{network}"


def _spec(obj: Object | None) -> AviInfraSettingSpec | None:
    return obj.spec if isinstance(obj, AviInfraSetting) else None


def _annotation(obj: Object | None) -> str | None:
    return obj.metadata.annotation(SETTING_ANNOTATION) if obj is not None else None
