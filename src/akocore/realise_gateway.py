"""Ports and hosts of Gateways and their places → resources.

A host is published in every group that its virtual service has a home in, a port at every home
where it may accept.  Every call costs what it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial

from akocore.court import Case, Court
from akocore.engines.envoy.bootstrap import BACKEND_PREFIX, LARGEST_EXPRESSION
from akocore.engines.envoy.bounds import Bounds
from akocore.engines.envoy.gateway import (
    backends_of,
    gateway_cluster_name,
    gateway_floor,
    gateway_listener,
    gateway_udp,
    http_scope,
)
from akocore.engines.envoy.http_rule import expressions
from akocore.engines.envoy.resources import COLLECTIONS, LDS, SRDS, Encoded
from akocore.model_http import Backend, HttpHost, HttpRule
from akocore.place.gateways import HostAt, PlacedFloor, PlacedGateway, PlacedHost, PlacedPort
from akocore.place.virtual_services import Home, VirtualService
from akocore.realise_l4 import DRAINING, At, Backends, Published
from akocore.translate.gateway_api.found import ListenerId
from akocore.translate.gateway_api.ports import GatewayPort
from akocore.trials import Host, Part

__all__ = ["GatewayRealiser", "HostAt"]


class GatewayRealiser:
    """``put``, ``drop``, ``use``, ``name``: of the `Realiser`; ``later(then)``: when connections
    are over.

    ``variants``: how backends are talked to, by the key that their cluster has in ``use``, which
    forgets what nobody uses any more.
    ``age``: of a rule, by its name and whether it is of gRPC: the oldest route's first.
    """

    def __init__(
        self,
        put: Callable[[str, Encoded], None],
        drop: Callable[[str, str, str], None],
        use: Callable[[Backends, Backends], None],
        name: Callable[[Backends, Backends], None],
        court: Court,
        port_offset: int,
        *,
        freebind: bool = False,
        bounds: Bounds = Bounds(),  # noqa: B008  (frozen)
    ) -> None:
        self.later: Callable[[Callable[[], None]], None] = lambda then: then()
        self.variants: dict[str, Backend] = {}
        self._put = put
        self._drop = drop
        self._use = use
        self._name = name
        self._port_offset = port_offset
        self._freebind = freebind
        self._bounds = bounds
        self._unsettled: list[tuple[VirtualService, At]] = []
        self.court = court
        self.age: Callable[[bool, str], tuple[str, ...]] = lambda _grpc, name: (name,)

    expressions = staticmethod(expressions)
    largest_expression = LARGEST_EXPRESSION

    # ── hosts ───────────────────────────────────────────────────────────────────────────────

    def place_host(
        self, service: VirtualService, owner: ListenerId, at: HostAt, model: HttpHost | None
    ) -> None:
        """Make one host what ``model`` says; None: the listener does not speak for it."""
        hosts = _of(service).hosts
        placed = hosts.get(at)
        if model is None:
            if placed is not None and placed.owner == owner:
                self._withdraw_host(service, at)
        elif placed is None:
            placed = PlacedHost(owner, model)
            self._realise_host(service, at, placed)
            hosts[at] = placed
            if _is_wild(at.host):
                self._floor(service, at)
        elif placed.model != model or placed.owner != owner:
            before = (placed.model, placed.owner)
            placed.model, placed.owner = model, owner
            try:
                self._realise_host(service, at, placed)
            except Exception:  # nothing has come of it
                placed.model, placed.owner = before
                raise

    def drop_hosts(self, service: VirtualService, of: Callable[[HostAt, PlacedHost], bool]) -> None:
        """Take out some of the hosts.  Cost: all hosts of the virtual service."""
        for at in [at for at, placed in _of(service).hosts.items() if of(at, placed)]:
            self._withdraw_host(service, at)

    def _realise_host(self, service: VirtualService, at: HostAt, placed: PlacedHost) -> None:
        groups = {home.group for home in service.homes}
        one = self._scope(service, at, placed.model) if groups else None  # this alone may fail
        backends: Backends = frozenset(
            (group, service.name, key) for group in groups for key in self._keys(placed.model)
        )
        self._use(placed.backends, backends)
        placed.backends = backends
        if one is None:
            return
        placed.scopes = self._publish(one, groups, placed.scopes)
        if self.court.concerns((service.name, at)):
            self.court.published((service.name, at), self._case(service, at, placed))

    def attempt(self, service: VirtualService, at: HostAt, model: HttpHost) -> None:
        """Whether a host can be encoded; raises what keeps it from being."""
        for rule in model.rules:
            for one in backends_of(rule):
                gateway_cluster_name(one)
        self._scope(service, at, model)

    def _scope(self, service: VirtualService, at: HostAt, model: HttpHost) -> Encoded:
        return self._encoded(service, at, self.court.good((service.name, at), model))

    def _encoded(self, service: VirtualService, at: HostAt, model: Host) -> Encoded:
        assert isinstance(model, HttpHost)
        return http_scope(
            service.name,
            at.port,
            at.chain,
            model,
            tls=at.chain != "http",
            port_offset=self._port_offset,
            limits=service.infra.limits,
        )

    def _publish(
        self, one: Encoded, groups: Iterable[str], before: frozenset[tuple[str, str]]
    ) -> frozenset[tuple[str, str]]:
        after = frozenset((group, one.name) for group in groups)
        for group, _ in after:
            self._put(group, one)
        for group, name in before - after:
            self._drop(group, SRDS, name)
        return after

    def _withdraw_host(self, service: VirtualService, at: HostAt) -> None:
        placed = _of(service).hosts.pop(at)
        for group, name in placed.scopes:
            self._drop(group, SRDS, name)
        self.court.gone((service.name, at))
        self._use(placed.backends, frozenset())
        if _is_wild(at.host):
            self._floor(service, at)

    # ── hosts that are refused ──────────────────────────────────────────────────────────────

    def cases(
        self, refused: Iterable[str], services: Mapping[str, VirtualService]
    ) -> Iterable[tuple[tuple[str, HostAt], Case]]:
        """Hosts of which a scope may be refused.  Cost: the hosts of its virtual services."""
        names = {name.removeprefix(COLLECTIONS).partition("/")[0] for name in refused}
        for service in [one for one in services.values() if one.gateway is not None]:
            if service.name.replace("*", "_") in names:
                for at, placed in list(_of(service).hosts.items()):
                    yield (service.name, at), self._case(service, at, placed)

    def case(self, service: VirtualService, at: HostAt) -> Case | None:
        """A host as it is tried; None: it is served no more."""
        placed = _of(service).hosts.get(at)
        return self._case(service, at, placed) if placed is not None else None

    def _case(self, service: VirtualService, at: HostAt, placed: PlacedHost) -> Case:
        groups = {home.group for home in service.homes}

        def encode(model: Host) -> Iterable[tuple[str, Encoded]]:
            one = self._encoded(service, at, model)
            return [(group, one) for group in groups]

        def age(part: Part) -> tuple[tuple[str, ...], int]:
            assert isinstance(part, HttpRule)
            return self.age(part.grpc, part.name), placed.model.rules.index(part)

        realise = partial(self._realise_host, service, at, placed)
        return Case(placed.model, groups, placed.scopes, encode, realise, age)

    def _floor(self, service: VirtualService, at: HostAt) -> None:
        """A wildcard came or went."""
        gateway = _of(service)
        floor = gateway.floors.get((at.port, at.chain))
        if floor is not None:
            (floor.wildcards.add if at in gateway.hosts else floor.wildcards.discard)(at.host)
            self._realise_floor(service, at.port, at.chain)

    def _realise_floor(self, service: VirtualService, port: int, chain: str) -> None:
        floor = _of(service).floors[port, chain]
        one = gateway_floor(service.name, port, chain, floor.wildcards)
        floor.scopes = self._publish(one, {home.group for home in service.homes}, floor.scopes)

    def _keys(self, model: HttpHost) -> set[str]:
        """Keys of the clusters that a host needs."""
        return {self._key(one) for rule in model.rules for one in backends_of(rule)}

    def _key(self, backend: Backend) -> str:
        key = gateway_cluster_name(backend).removeprefix(BACKEND_PREFIX)
        if "~" in key:
            self.variants[key] = backend
        return key

    # ── ports ───────────────────────────────────────────────────────────────────────────────

    def place_port(self, service: VirtualService, at: At, model: GatewayPort | None) -> None:
        """Make one port what ``model`` says; None: nobody listens there."""
        ports = _of(service).ports
        placed = ports.get(at)
        if model is None:
            if placed is not None:
                self._withdraw_port(placed)
                del ports[at]
                if at[0] == "TCP":
                    self._floors(service, GatewayPort(at[1]))
        elif placed is None:
            ports[at] = PlacedPort(model)
            try:
                self._floors(service, model)
                self._realise_port(service, at)
            except Exception:  # nobody listens
                del ports[at]
                raise
        elif placed.model != model:
            before, placed.model = placed.model, model
            try:
                self._floors(service, model)
                self._realise_port(service, at)
            except Exception:
                placed.model = before
                raise

    def _realise_port(self, service: VirtualService, at: At) -> None:
        placed = _of(service).ports[at]
        wanted: dict[tuple[str, str], Encoded] = {}
        for home in service.homes:
            place = (home.group, home.address)
            if place not in service.silent and place not in wanted:
                wanted[place] = self._listener(service, home, placed.model)
        keys = self._keys_of_port(placed.model)
        self._change(
            placed, frozenset((group, service.name, key) for group, _ in wanted for key in keys)
        )
        self._name_secrets(placed, service.name, {group for group, _ in wanted})
        for (group, _), one in wanted.items():
            self._put(group, one)
        for place, name in placed.names.items():
            if place not in wanted:
                self._drop(place[0], LDS, name)
        placed.names = {place: one.name for place, one in wanted.items()}
        if wanted.keys() != placed.sequence.keys():
            placed.sequence = {place: placed.sequence.get(place, -1) for place in wanted}
            self._unsettled.append((service, at))

    def _floors(self, service: VirtualService, model: GatewayPort) -> None:
        """Every chain of HTTP has a floor before it listens, and no other has one."""
        gateway = _of(service)
        chains = {chain.name for chain in model.chains if chain.tcp is None}
        for port, chain in [at for at in gateway.floors if at[0] == model.port]:
            if chain not in chains:
                for group, name in gateway.floors.pop((port, chain)).scopes:
                    self._drop(group, SRDS, name)
        for chain in chains:
            if (model.port, chain) not in gateway.floors:
                wild = {
                    at.host
                    for at in gateway.hosts
                    if (at.port, at.chain) == (model.port, chain) and _is_wild(at.host)
                }
                gateway.floors[model.port, chain] = PlacedFloor(wild)
                self._realise_floor(service, model.port, chain)

    def _listener(self, service: VirtualService, home: Home, model: GatewayPort) -> Encoded:
        at = (service.name, home.address, model.port)
        if model.udp:
            return gateway_udp(*at, model.udp, self._port_offset, freebind=self._freebind)
        return gateway_listener(
            *at,
            model.chains,
            self._port_offset,
            freebind=self._freebind,
            limits=service.infra.limits,
            bounds=self._bounds,
        )

    def _keys_of_port(self, model: GatewayPort) -> set[str]:
        shares = [*model.udp, *(one for chain in model.chains for one in chain.tcp or ())]
        return {self._key(one) for one in shares if one.backend is not None}

    def _withdraw_port(self, placed: PlacedPort) -> None:
        for (group, _), name in placed.names.items():
            self._drop(group, LDS, name)
        self._change(placed, frozenset())
        self._name_secrets(placed, "", ())

    def _name_secrets(self, placed: PlacedPort, vs: str, groups: Collection[str]) -> None:
        """The certificates of a port are those groups' and no other's."""
        at = f"{vs}:{placed.model.port}"
        chains = [chain.tls for chain in placed.model.chains if chain.tls is not None]
        secrets = frozenset((g, at, key) for g in groups for tls in chains for key in tls.secrets)
        self._name(placed.secrets, secrets)
        placed.secrets = secrets

    def _change(self, placed: PlacedPort, backends: Backends) -> None:
        """The clusters of a port; the old ones serve the connections that there are."""
        held: Backends = frozenset((g, DRAINING, key) for g, _, key in placed.backends - backends)
        if held:
            self._use(frozenset(), held)
        self._use(placed.backends, backends)
        placed.backends = backends
        if held:
            self.later(partial(self._use, held, frozenset()))

    # ── homes ───────────────────────────────────────────────────────────────────────────────

    def put_home(self, service: VirtualService, home: Home) -> None:
        """Listen at a home.  Cost: all ports and hosts of the virtual service."""
        service.silent.discard((home.group, home.address))
        gateway = _of(service)
        for port, chain in gateway.floors:
            self._realise_floor(service, port, chain)
        for at, placed in gateway.hosts.items():
            self._realise_host(service, at, placed)
        for port_at in gateway.ports:
            self._realise_port(service, port_at)

    def drop_home(self, service: VirtualService, home: Home) -> None:
        """Listen there no more, unless another home of it is the same place."""
        place = (home.group, home.address)
        others = [h for h in service.homes if h is not home and (h.group, h.address) == place]
        if others and not service.closed:
            return
        service.silent.add(place)
        for at in _of(service).ports:
            self._realise_port(service, at)

    def drop_group(self, service: VirtualService, group: str) -> None:
        """Nothing of it is in a group any more."""
        gateway = _of(service)
        for floor in gateway.floors.values():
            mine = frozenset(one for one in floor.scopes if one[0] == group)
            for _, name in mine:
                self._drop(group, SRDS, name)
            floor.scopes -= mine
        for at, placed in gateway.hosts.items():
            mine = frozenset(one for one in placed.scopes if one[0] == group)
            for _, name in mine:
                self._drop(group, SRDS, name)
            placed.scopes -= mine
            self.court.left_group((service.name, at), group)
            backends: Backends = frozenset(one for one in placed.backends if one[0] != group)
            self._use(placed.backends, backends)
            placed.backends = backends
        for port in gateway.ports.values():
            self._change(port, frozenset(one for one in port.backends if one[0] != group))

    def settle(self, sequence_of: Callable[[str], int]) -> Iterable[Published]:
        """After a publication: what got a new place by it."""
        unsettled, self._unsettled = self._unsettled, []
        for service, at in unsettled:
            placed = _of(service).ports.get(at)
            for place, sequence in list(placed.sequence.items()) if placed is not None else ():
                if sequence < 0 and placed is not None:
                    number = placed.sequence[place] = sequence_of(place[0])
                    yield Published(place[0], number, service.name, at)


def _of(service: VirtualService) -> PlacedGateway:
    assert service.gateway is not None
    return service.gateway


def _is_wild(host: str) -> bool:
    return not host or host.startswith("*.")
