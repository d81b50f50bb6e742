"""Where hosts are served: virtual services, their addresses, and moves between them.

Make before break: a host, or a whole virtual service, that moves is served at the new place
first; the old place is given up when every Service Engine has the new one and a grace period
is over.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container
from itertools import islice
from sys import intern

from msgspec import Struct, field

from akocore._fast.shard import shard_hosts
from akocore.kube.objects import NetworkSpec
from akocore.model import HostModel, L4Listener
from akocore.place.gateways import PlacedGateway
from akocore.place.ipam import Ipam
from akocore.place.quota import Quota
from akocore.place.spellings import USUAL, host_key, shard_key, spelling_of, spellings
from akocore.place.state import Facts
from akocore.translate.classes import Infra
from akocore.translate.names import Names

__all__ = ["DEDICATED_SHARD", "Home", "Placed", "PlacedListener", "Placement", "VirtualService"]

DEDICATED_SHARD = -1
L4_SHARD = -2


class Home(Struct):
    """One VsVip: an address of a virtual service, on the engines of one group."""

    group: str
    network: str
    address: str


class PlacedListener(Struct):
    """One listener of L4 and what of it is published."""

    model: L4Listener
    # (group, address) → the publication that brought it there
    sequence: dict[tuple[str, str], int] = field(default_factory=dict)
    names: frozenset[tuple[str, str]] = frozenset()  # (group, resource's name) published
    # (group, virtual service, Service port) referred to
    backends: frozenset[tuple[str, str, str]] = frozenset()


class VirtualService(Struct):
    """``key``: whose it is; ``name``: what it is called, by engines too, for as long as it is.

    ``homes``: the wanted one last; earlier ones serve on until their move is over.
    ``listeners``: of L4, by (protocol, port); None: it is L7, and its setting says which.
    """

    name: str
    infra: Infra
    shard: int
    key: str
    homes: list[Home] = field(default_factory=list)
    hosts: set[str] = field(default_factory=set)
    left: dict[str, int] = field(default_factory=dict)  # address left → number of the move
    settled: str = ""  # the last address that every engine had
    pools: dict[str, int] = field(default_factory=dict)  # Service port behind it → users
    pools_up: int = 0  # how many of `pools` have a server
    closed: bool = False  # listens no more, but clients may still be connected
    namespace: str = ""  # whose VIP it is; "": several share it
    over: int = 0  # so many VIPs its namespace has, and may have no more; 0: it may
    exhausted: str = ""  # the Network that has no address left for it
    wanted: str = ""  # the one address that it may have; "": any
    listeners: dict[tuple[str, int], PlacedListener] | None = None
    gateway: PlacedGateway | None = None  # of the Gateway API; then `listeners` has none
    silent: set[tuple[str, str]] = field(default_factory=set)  # (group, address) left to drain

    @property
    def shown(self) -> Home | None:
        """The home that status names: the settled one, else the oldest that still serves."""
        if not self.homes:
            return None
        return next((h for h in self.homes if h.address == self.settled), self.homes[0])

    @property
    def misplaced(self) -> bool:
        """Whether it is not, and is not going to be, at the one address that it may have."""
        return bool(self.wanted) and (not self.homes or self.homes[-1].address != self.wanted)


class Placed(Struct):
    """A host and where it is served.  ``old``: virtual services that it is leaving.

    There is one a host: what most have alike is a tuple, or shared.
    """

    model: HostModel
    vs: str
    old: dict[str, int] = field(default_factory=dict)  # name → number of the move
    left: frozenset[str] = frozenset()  # of `old`: no longer shown
    # (group, virtual service, the publication that brought it there)
    places: tuple[tuple[str, str, int], ...] = ()
    scopes: tuple[tuple[str, str], ...] = ()  # (group, scope's name) published
    # (group, virtual service, Service port) referred to
    backends: tuple[tuple[str, str, str], ...] = ()

    @property
    def shown(self) -> str:
        """The virtual service whose address status names."""
        return next((vs for vs in self.old if vs not in self.left), self.vs)

    def sequence(self, group: str, vs: str) -> int:
        """The publication that brought it there; 0: it is not there, -1: not yet published."""
        return next((n for at, name, n in self.places if (at, name) == (group, vs)), 0)


class Placement:
    """Decides and remembers: host → virtual service, virtual service → address.

    ``decides``: of several replicas one gives addresses; the others take what it has given.
    """

    def __init__(self, names: Names, state: Facts) -> None:
        self.names = names
        self.state = state
        self.decides = True
        self.services: dict[str, VirtualService] = {}
        self.pools: dict[str, Ipam] = {}
        self.quota = Quota()
        self.opening = True  # what is remembered has not all come back yet
        self.waiting: set[str] = set()  # virtual services without an address
        self.homes_of: Counter[str] = Counter()  # group → homes on its engines

    # ── shards ──────────────────────────────────────────────────────────────────────────────

    def shards(self, infra: Infra, hosts: list[str]) -> list[int]:
        """The shard of each host under ``infra``: the remembered one, else AKO's function."""
        count = infra.shard_size.shards
        if not count:
            return [DEDICATED_SHARD] * len(hosts)
        size, setting = infra.shard_size.value, infra.setting
        known = self.state.room("shard")
        out = list(shard_hosts([host or "*" for host in hosts], count))
        for i, host in enumerate(hosts):
            key = f"{setting}/{host}"
            fact = known.get(key)
            if fact is not None and fact.startswith(f"{size} "):
                out[i] = int(fact[len(size) + 1 :])
            else:
                self.state.put("shard", key, intern(f"{size} {out[i]}"))
        return out

    def forget_host(self, setting: str, host: str) -> None:
        self.state.drop("shard", f"{setting}/{host}")

    def service_of(self, infra: Infra, host: str, shard: int) -> VirtualService:
        """The virtual service of a host; made, without a home, at its first host."""
        setting = infra.setting
        if shard == DEDICATED_SHARD:
            key = host_key(setting, host)
            name = self.named(key, self.names.dedicated(setting, host or "any-host"))
        else:
            key = shard_key(setting, shard)
            name = self.named(key, self.names.shared(setting, shard))
        service = self.services.get(name)
        if service is None:
            service = self.services[name] = VirtualService(name, infra, shard, key)
            if shard == DEDICATED_SHARD and (setting or "-" in host):  # else no other has the name
                self.state.put("owner", name, key)
        return service

    def l4_service(self, name: str, infra: Infra, key: str = "") -> VirtualService:
        """The virtual service of L4 that `named` calls so; made, without a home, when it is new.

        ``key``: whose it is; "": of nobody else.
        """
        service = self.services.get(name)
        if service is None:
            service = VirtualService(name, infra, L4_SHARD, key or name, listeners={})
            self.services[name] = service
            self.state.put("owner", name, service.key)
        return service

    def gateway_service(self, name: str, infra: Infra, key: str = "") -> VirtualService:
        """The virtual service of a Gateway, as `l4_service`."""
        service = self.l4_service(name, infra, key)
        if service.gateway is None:
            service.gateway = PlacedGateway()
        return service

    # ── names ───────────────────────────────────────────────────────────────────────────────

    def named(self, key: str, plain: str) -> str:
        """What the virtual service of ``key`` is called: ``plain``, unless another has that name.

        A name stays, also over restarts, whoever comes and goes.
        """
        live = self.services.get(plain)
        if live is not None and live.key == key:
            return plain
        known, free = self.state.room("owner"), ""
        for number, name in enumerate(spellings(plain, key)):
            if free and number >= USUAL:
                break
            live = self.services.get(name)
            owner = live.key if live is not None else known.get(name, "")
            if owner == key:
                return name
            free = free or ("" if owner else name)
        return free

    def misnamed(self, name: str, key: str) -> list[VirtualService]:
        """Those that can't be called as they are if ``name`` is ``key``'s: give them up."""
        found = self.services.get(name)
        out = [found] if found is not None and found.key != key else []
        for other in islice(spellings(spelling_of(name, key), key), USUAL):
            service = self.services.get(other)
            if other != name and service is not None and service.key == key:
                out.append(service)
        return out

    # ── addresses ───────────────────────────────────────────────────────────────────────────

    def set_networks(self, networks: dict[str, NetworkSpec]) -> set[str]:
        """Take in the Networks; names of those that changed.

        Given addresses stay, where good; where somebody still serves, nobody else comes.
        """
        changed = set()
        for name, spec in networks.items():
            pool = self.pools.get(name)
            if pool is not None and pool.spec == spec:
                continue
            changed.add(name)
            self.pools[name] = fresh = Ipam(spec)
            for service in self.services.values():
                for home in service.homes:
                    fresh.hold(service.name, home.address)
            prefix = f"{name}/"
            for key, address in self.state.room("vip").items():
                if key.startswith(prefix):
                    fresh.take(key[len(prefix) :], address)
        for name in [name for name in self.pools if name not in networks]:
            changed.add(name)
            del self.pools[name]
        return changed

    def settle(self, service: VirtualService) -> Home | None:
        """Give the service the home that its infra wants; the new home, or None if it has it.

        Without a free address `VirtualService.exhausted` names the Network, and what serves
        goes on serving: also what did before a restart.  Where its namespace has as many VIPs as
        it may, `VirtualService.over` says how many; nobody's VIP is ever taken away for it.
        """
        infra = service.infra
        pool = self.pools.get(infra.network)
        had = pool.owners.get(service.name) if pool is not None else None
        address = had
        service.over = 0
        if pool is not None and had is None and self.decides:
            service.over = self._over(service, pool)
        if pool is not None and self.decides and not service.over:
            address = pool.give(service.name, service.wanted)
            if had is not None and all(home.address != had for home in service.homes):
                pool.let_go(service.name, had)
        if address is None:
            full = self.decides and not service.wanted and not service.over
            service.exhausted = infra.network if full else ""
            (self.waiting.discard if service.over else self.waiting.add)(service.name)
            if not service.homes:  # as before a restart, until it gets what it wants
                for network, other in self.pools.items():
                    if (kept := other.owners.get(service.name)) is not None:
                        return self._move_in(service, network, kept)
            return None
        service.exhausted = ""
        self.waiting.discard(service.name)
        return self._move_in(service, infra.network, address)

    def _over(self, service: VirtualService, pool: Ipam) -> int:
        """The number of VIPs that its namespace may have, if it is reached; then it waits."""
        limit, network = pool.spec.vips_per_namespace, service.infra.network
        if not limit or not service.namespace:
            return 0
        early = self.opening and len(pool.owners) > self.quota.of_network[network]
        if not early and self.quota.has(network, service.namespace) < limit:
            return 0
        self.quota.wait(network, service.namespace, service.name)
        return limit

    def own(self, service: VirtualService, namespace: str) -> None:
        """Its VIPs are this namespace's."""
        if service.namespace != namespace:
            for network in {home.network for home in service.homes}:
                self.quota.left(network, service.namespace, service.name)
                self.quota.took(network, namespace, service.name)
            self.quota.forget(service.name)
            service.namespace = namespace

    def _move_in(self, service: VirtualService, network: str, address: str) -> Home | None:
        """An address is the service's: its new home there, or None if it has it."""
        wanted = Home(service.infra.group, network, address)
        self.state.put("vip", f"{network}/{service.name}", address)
        if service.homes and service.homes[-1] == wanted:
            return None
        if wanted in service.homes:
            self.remove_home(service, wanted)
        service.homes.append(wanted)
        self.homes_of[wanted.group] += 1
        self.quota.took(network, service.namespace, service.name)
        service.settled = service.settled or address
        return wanted

    def leave(self, service: VirtualService, home: Home) -> None:
        """A home is given up; its address is free unless another home of the service has it."""
        self.remove_home(service, home)
        if not any(h.network == home.network and h.address == home.address for h in service.homes):
            self._release(service.name, home)

    def retire(self, service: VirtualService) -> list[Home]:
        """The service has no hosts any more: all of its homes are given up."""
        homes = list(service.homes)
        for home in homes:
            self.remove_home(service, home)
            self._release(service.name, home)
        self.waiting.discard(service.name)
        self.quota.forget(service.name)
        del self.services[service.name]
        if self.decides or all(service.name not in pool.owners for pool in self.pools.values()):
            self.state.drop("owner", service.name)
        return homes

    def remove_home(self, service: VirtualService, home: Home) -> None:
        """A service is no longer served at a home, whoever has the address now."""
        service.homes.remove(home)
        self.homes_of[home.group] -= 1
        if not self.homes_of[home.group]:
            del self.homes_of[home.group]
        if all(other.network != home.network for other in service.homes):
            self.quota.left(home.network, service.namespace, service.name)

    def forget_absent(self, hosts: Container[str]) -> None:
        """Give back what is remembered for hosts and services that are no more."""
        for key in [k for k in self.state.room("shard") if k.partition("/")[2] not in hosts]:
            self.state.drop("shard", key)
        for name in [name for name in self.state.room("owner") if name not in self.services]:
            self.state.drop("owner", name)
        for key in [k for k in self.state.room("vip") if k.partition("/")[0] not in self.pools]:
            self.state.drop("vip", key)
        for network, pool in self.pools.items():
            for owner in [owner for owner in pool.owners if owner not in self.services]:
                pool.release(owner)
                self.state.drop("vip", f"{network}/{owner}")

    def _release(self, owner: str, home: Home) -> None:
        if not self.decides:
            return  # the address is given back by who gave it
        pool = self.pools.get(home.network)
        if pool is not None and pool.owners.get(owner) == home.address:
            pool.release(owner)
        for other in self.pools.values():
            other.let_go(owner, home.address)
        if self.state.room("vip").get(f"{home.network}/{owner}") == home.address:
            self.state.drop("vip", f"{home.network}/{owner}")
