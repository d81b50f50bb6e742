"""Ports and hosts of Gateways and their places → resources.

A host is published in every group that its virtual service has a home in, a port at every home
where it may accept.  Every call costs what it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial

from msgspec import Struct

from akocore.engines.envoy.ads import Elsewhere, Engine
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
from akocore.model_http import Backend, HttpHost
from akocore.place.gateways import HostAt, PlacedFloor, PlacedGateway, PlacedHost, PlacedPort
from akocore.place.virtual_services import Home, VirtualService
from akocore.realise_l4 import DRAINING, At, Backends, Published
from akocore.translate.gateway_api.found import ListenerId
from akocore.translate.gateway_api.ports import GatewayPort
from akocore.trials import Trials, digest_of

__all__ = ["GatewayRealiser", "HostAt"]


class Trial(Struct):
    """Of a host that is refused.  ``numbers``: of the publications that brought it to a group.

    ``over``: what is at fault is known, and the host without it is on its way.
    """

    numbers: dict[str, int]
    over: bool = False


class GatewayRealiser:
    """``put``, ``drop``, ``use``, ``name``: of the `Realiser`; ``later(then)``: when connections
    are over.

    ``variants``: how backends are talked to, by the key that their cluster has in ``use``.
    ``trying``: hosts whose rules are tried: what is at fault is not known yet.
    ``left_out``: (of gRPC, rule's name) → hosts that do without it, and why; ``untold``: of these,
    what changed; who reads it clears it.
    """

    def __init__(
        self,
        put: Callable[[str, Encoded], None],
        drop: Callable[[str, str, str], None],
        use: Callable[[Backends, Backends], None],
        name: Callable[[Backends, Backends], None],
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
        self.trials = Trials()
        self.trying: dict[tuple[str, HostAt], Trial] = {}
        self.left_out: dict[tuple[bool, str], dict[tuple[str, HostAt], str]] = {}
        self.untold: set[tuple[bool, str]] = set()

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
        backends: Backends = frozenset(
            (group, service.name, key) for group in groups for key in self._keys(placed.model)
        )
        one = self._scope(service, at, placed.model) if groups else None  # this alone may fail
        self._use(placed.backends, backends)
        placed.backends = backends
        if one is None:
            return
        placed.scopes = self._publish(one, groups, placed.scopes)
        if self.trials.bad or placed.tried:
            self._try(service, at, placed)

    def attempt(self, service: VirtualService, at: HostAt, model: HttpHost) -> None:
        """Whether a host can be encoded; raises what keeps it from being."""
        self._keys(model)
        self._scope(service, at, model)

    def _scope(self, service: VirtualService, at: HostAt, model: HttpHost) -> Encoded:
        good = self.trials.without_bad(model) if self.trials.bad else model
        return self._encoded(service, at, good)

    def _encoded(self, service: VirtualService, at: HostAt, model: HttpHost) -> Encoded:
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
        for group, name in placed.scopes | placed.trials:
            self._drop(group, SRDS, name)
        self.trying.pop((service.name, at), None)
        self._tell((service.name, at), {})
        self._use(placed.backends, frozenset())
        if _is_wild(at.host):
            self._floor(service, at)

    # ── hosts that are refused ──────────────────────────────────────────────────────────────

    def judge(
        self, engines: Iterable[Engine | Elsewhere], services: Mapping[str, VirtualService]
    ) -> None:
        """Try the rules of hosts that engines refuse; leave those out that are at fault.

        Cost: what is refused, and the hosts of its virtual services; nothing while nothing is.
        """
        refused = {
            name: found.message
            for engine in engines
            for (type_url, name), found in engine.rejected.items()
            if type_url == SRDS
        }
        learnt = {d for name, why in refused.items() if (d := self.trials.learn(name, why))}
        names = {name.removeprefix(COLLECTIONS).partition("/")[0] for name in refused}
        for service in [one for one in services.values() if one.gateway is not None]:
            if service.name.replace("*", "_") in names:
                for at, placed in list(_of(service).hosts.items()):
                    self._judge_host(service, at, placed, refused, learnt)

    def _judge_host(
        self,
        service: VirtualService,
        at: HostAt,
        placed: PlacedHost,
        refused: Mapping[str, str],
        learnt: set[str],
    ) -> None:
        if (service.name, at) in self.trying:
            return
        if learnt and any(digest_of(rule) in learnt for rule in placed.model.rules):
            self._realise_host(service, at, placed)  # another replica tried it
        elif any(name in refused for _, name in placed.scopes):
            digest = digest_of(placed.model)
            if digest != placed.tried:
                placed.tried = digest
                self.trying[service.name, at] = _trial(service)
                self._try(service, at, placed)

    def begun(self, sequence_of: Callable[[str], int]) -> None:
        """After a publication: what is tried went with it."""
        for trial in self.trying.values():
            for group, number in trial.numbers.items():
                if number < 0:
                    trial.numbers[group] = sequence_of(group)

    def judged(
        self, services: Mapping[str, VirtualService], acknowledged: Callable[[str], int]
    ) -> None:
        """Hosts whose trials are over become as good as they can be.  Cost: the trials."""
        for key, trial in list(self.trying.items()):
            if not all(0 <= number <= acknowledged(at) for at, number in trial.numbers.items()):
                continue
            service = services.get(key[0])
            placed = _of(service).hosts.get(key[1]) if service is not None else None
            if trial.over or service is None or placed is None:
                del self.trying[key]
                self.untold.update(rule for rule, hosts in self.left_out.items() if key in hosts)
            else:
                self.trying[key] = _trial(service, over=True)
                self._realise_host(service, key[1], placed)

    def _try(self, service: VirtualService, at: HostAt, placed: PlacedHost) -> None:
        """Publish what of a host is tried, or else refused; the rest is tried no more."""
        key = (service.name, at)
        if key in self.trying and digest_of(placed.model) != placed.tried:
            del self.trying[key]  # it is another one now
        groups = {home.group for home in service.homes}
        after: set[tuple[str, str]] = set()
        trial = self.trying.get(key)
        all_of_it = trial is not None and not trial.over
        for host in self.trials.of(placed.model, all_of_it=all_of_it):
            one = self._encoded(service, at, host)
            for group in groups:
                self._put(group, one)
                after.add((group, one.name))
        for group, name in placed.trials - after:
            self._drop(group, SRDS, name)
        placed.trials = frozenset(after)
        self._tell(key, self.trials.left_out(placed.model.rules))

    def _tell(self, key: tuple[str, HostAt], rules: Mapping[tuple[bool, str], str]) -> None:
        """Which rules a host does without.  Cost: all that are left out anywhere."""
        for rule in [rule for rule, hosts in self.left_out.items() if key in hosts]:
            if rule not in rules:
                del self.left_out[rule][key]
                self.untold.add(rule)
                if not self.left_out[rule]:
                    del self.left_out[rule]
        for rule, why in rules.items():
            if self.left_out.setdefault(rule, {}).get(key) != why:
                self.left_out[rule][key] = why
                self.untold.add(rule)

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
        for placed in gateway.hosts.values():
            mine = frozenset(one for one in placed.scopes | placed.trials if one[0] == group)
            for _, name in mine:
                self._drop(group, SRDS, name)
            placed.scopes -= mine
            placed.trials -= mine
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


def _trial(service: VirtualService, *, over: bool = False) -> Trial:
    return Trial({home.group: -1 for home in service.homes}, over)


def _of(service: VirtualService) -> PlacedGateway:
    assert service.gateway is not None
    return service.gateway


def _is_wild(host: str) -> bool:
    return not host or host.startswith("*.")
