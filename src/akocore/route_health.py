"""Route health injection: an address is announced by just the Service Engines that serve it.

A Service Engine announces a VIP while its Envoy runs, has taken the virtual service's listeners
and refuses none of them.  An Envoy that is lost takes its announcements with it at once; what is
planned goes by degrees: announced as about to go, withdrawn, given up.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Protocol

import msgspec

from akocore.engines.envoy.process import EngineProcess
from akocore.engines.envoy.resources import LDS
from akocore.engines.frr.config import (
    DAEMONS,
    RouterConfig,
    Snat,
    Vip,
    VipState,
    host_prefix,
    render,
)
from akocore.engines.frr.observe import Observed
from akocore.engines.handover.plan import MAX_MEMBERS
from akocore.events import Events
from akocore.kube.objects import (
    BgpProfile,
    NetworkSpec,
    ReplicaRouter,
    RouterSession,
    ServiceEngineGroupSpec,
)
from akocore.place.balance import Balance
from akocore.place.virtual_services import Home, VirtualService
from akocore.realise_l4 import listener_names
from akocore.reconcile import Reconciler
from akocore.translate.rhi import check_router_ids, is_outside, router_config

__all__ = ["RouteHealth", "RoutedEngines"]

_LOOK_S, _HURRIED_S = 1.0, 0.05
_TAKEN_IN_S = 0.2
_REST, _REST_MAX_S = 4.0, 0.25  # after looking at all routes, in times of what that took
_NEW_S = 10.0
_SETTLE_S = 2.5  # agents look for a controller as often
_HIDDEN = "<hidden>"
_NO_AS = 64_512  # of a router that no Network has peers for


class RoutedEngines(Protocol):
    """Service Engines that have a router each.

    ``running``: those that we see to.  ``elsewhere``: those that another replica sees to.
    """

    config_of: Callable[[str, str], RouterConfig] | None
    elsewhere: Mapping[str, ReplicaRouter]

    @property
    def held_s(self) -> float:
        """How long an address that is given up still answers."""
        ...

    @property
    def running(self) -> dict[str, EngineProcess]: ...
    @property
    def lacks(self) -> bool:
        """Whether one could not be made: it is worth another try."""
        ...

    def problems_of(self, group: str) -> dict[str, str]: ...
    def address(self, name: str) -> str: ...
    def router_id(self, name: str) -> str: ...
    def load(self, name: str) -> float | None:
        """How busy its Envoy's workers are, from 0 to 1; None: not known."""
        ...

    def snat(self, name: str) -> str:
        """The address of its own that it asks backends from; "": that of an interface."""
        ...

    def route(self, name: str, config: RouterConfig, handed: Collection[str] | None = None) -> None:
        """``handed``: VIPs whose flows it may hand over to others of its group; None: off."""
        ...

    @property
    def leaving(self) -> Mapping[str, str]:
        """Groups of those that we see to, that leave and own flows still."""
        ...

    def hands_over(self, name: str) -> bool: ...
    def look_round(self) -> None:
        """Those that hand flows over may be others now."""
        ...

    async def observe(self, name: str) -> Observed | None: ...


class RouteHealth:
    """Keeps each router's VIPs as its Envoy deserves, and says when a session changes.

    ``drained_s``: how long a virtual service that leaves a Service Engine is announced as about
    to go; then it still answers there for the ``held_s`` of ``engines``, or as long as connections
    have to end when others hand them over to it.
    """

    def __init__(
        self,
        at: Reconciler,
        engines: RoutedEngines,
        events: Events,
        *,
        drained_s: float = 1.0,
    ) -> None:
        self.observed: dict[str, Observed] = {}
        self.hurried: Callable[[], bool] = lambda: False  # whether somebody waits for a look
        self.on_look: Callable[[], None] = lambda: None
        self._at = at
        self._engines = engines
        self._events = events
        self._drained_s = drained_s
        self._due = asyncio.Event()
        # By (Service Engine, address):
        self._announced: dict[tuple[str, str], int | None] = {}  # the Envoy's pid
        self._since: dict[tuple[str, str, int | None], int] = {}  # publication to wait for
        self._leaving: dict[tuple[str, str], float] = {}  # since when, in the loop's time
        self._lost: dict[str, float] = {}  # streams that began by then were of an Envoy that ended
        self._told: dict[str, float] = {}  # address → since when routers are told the way to it
        self._said: dict[tuple[str, str, str], bool] = {}
        self._without_snat: set[str] = set()  # who was said to have no address for it
        self._standby: set[tuple[str, str]] = set()  # of `_announced`: as the worse way
        self._answered: set[tuple[str, str]] = set()  # of `_announced`: by ARP and ND instead
        self._too_large: set[str] = set()  # groups that were told so
        self._balance = Balance()
        self._had: dict[str, set[str]] = {}  # Service Engine → addresses of its last order
        self._began = 0.0  # when we did, in the loop's time
        self._settled_at = 0.0  # till then those that come back keep what they announce
        engines.config_of = self.config
        at.scale.usable = self._usable
        at.scale.rank = self._rank
        at.scale.busy = self._busy

    def due(self) -> None:
        """Something has changed that may concern a route."""
        self._at.scale.changed()
        self._due.set()

    def acknowledged(self) -> None:
        """An Envoy has got on: it may serve something now."""
        self._due.set()

    # ── what Service Engines there are, for `Scale` ─────────────────────────────────────────

    def _usable(self, group: str) -> dict[str, float]:
        """Those of a group that can serve, by name, with their weights."""
        out = {
            name: one.weight
            for name, one in self._engines.elsewhere.items()
            if one.group == group and one.usable
        }
        for name, process in self._engines.running.items():
            if process.group == group and self._life(name) is not None:
                out[name] = self._weight(name)
        return out

    def _weight(self, name: str) -> float:
        process = self._engines.running.get(name)
        spec = self._at.infrastructure.groups.get(process.group) if process is not None else None
        return self._balance.weight(name) if spec is not None and spec.auto_rebalance else 1.0

    def _rebalance(self) -> None:
        """Give less to Service Engines that have been busier than others for long."""
        groups = {n: s for n, s in self._at.infrastructure.groups.items() if s.auto_rebalance}
        if not groups:
            return
        loads: dict[str, dict[str, float]] = {}
        for name, process in self._engines.running.items():
            if process.group in groups and (load := self._engines.load(name)) is not None:
                loads.setdefault(process.group, {})[name] = load
        now = asyncio.get_running_loop().time()
        for group in loads.values():
            for name, weight in self._balance.heard(group, now).items():
                note = f"Its Envoy is {group[name]:.0%} busy: from now on it weighs {weight:.2f}."
                self._events.say(f"ServiceEngine/{name}", "Normal", "Rebalanced", note)
                self.due()

    def _rank(self, vs: str, engine: str) -> int:
        """How it has a virtual service: 0 serves it, 1 stands by, 2 not at all."""
        service = self._at.placement.services.get(vs)
        other = self._engines.elsewhere.get(engine)
        found = 2
        for home in service.homes if service is not None else ():
            if (key := (engine, home.address)) in self._announced:
                found = min(found, 1 if key in self._standby else 0)
            elif other is not None and home.address in other.announced:
                found = min(found, 1 if home.address in other.standby else 0)
        return found

    def _busy(self, engine: str) -> bool:
        other = self._engines.elsewhere.get(engine)
        if other is not None and engine not in self._engines.running:
            return bool(other.announced)
        return any(name == engine for name, _ in self._announced)

    def engine_changed(self, name: str) -> None:
        """An Envoy started or ended.  Its stream may be seen to end only later."""
        process = self._engines.running.get(name)
        if process is None:
            self._lost.pop(name, None)
            self.observed.pop(name, None)
            self._forget(name, {})
            self._had.pop(name, None)
            self._balance.forget(name)
        elif process.pid is None:
            stream = self._at.ads.fleet.get(name)
            self._lost[name] = stream.since if stream is not None else time.time()
        self.due()

    def adopt(
        self,
        name: str,
        life: int,
        announced: Iterable[str],
        standby: Iterable[str] = (),
        answered: Iterable[str] = (),
    ) -> None:
        """A Service Engine comes to us that announces these already: nobody withdraws them.

        While we are new, others that do so too may yet come: nobody else is asked to for a while.
        """
        self._check_address(name)
        now = asyncio.get_running_loop().time()
        for address in announced:
            self._announced[name, address] = life
            if now < self._began + _NEW_S:
                self._settled_at = now + _SETTLE_S
        self._standby.update((name, address) for address in standby)
        self._answered.update((name, address) for address in answered)

    def _check_address(self, name: str) -> None:
        """Say what is wrong with where a Service Engine elsewhere speaks BGP from."""
        ids = {one: self._engines.router_id(one) for one in self._engines.running}
        for one, refusal in check_router_ids(ids).items():
            if ids[one] == ids.get(name):
                self._events.say(refusal.object, "Warning", refusal.reason, refusal.remedy)
        address = self._engines.address(name)
        for network, spec in self._at.infrastructure.networks.items():
            if spec.se_ranges and is_outside(spec, address):
                note = (
                    f"{address} is in Network {network} and in none of its seRanges."
                    " Give it one of these with --address."
                )
                self._events.say(f"ServiceEngine/{name}", "Warning", "AddressOutsideSeRanges", note)

    def heard(self, name: str, found: Observed | None) -> None:
        """What a router does now, from whom sees it."""
        self._take(name, found)
        self.on_look()

    def _life(self, name: str) -> int | None:
        """Which Envoy process it is; None: it doesn't run, or answers nobody."""
        process = self._engines.running.get(name)
        return None if process is None or process.hangs else process.pid

    async def run(self) -> None:
        """Follow, until cancelled."""
        self._began = asyncio.get_running_loop().time()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow())
            tasks.create_task(self._look())

    async def _follow(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._due.wait()
            self._due.clear()
            began = loop.time()
            self._engines.look_round()
            handed = self._handed()
            for name, process in self._engines.running.items():
                if address := self._engines.address(name):
                    config = self.config(name, address)
                    self._engines.route(name, config, handed.get(process.group))
            # With thousands of virtual services it takes long, and others have work to do.
            await asyncio.sleep(min(_REST * (loop.time() - began), _REST_MAX_S))

    def _handed(self) -> dict[str, set[str]]:
        """Addresses of each group whose flows are handed over.  Cost: the virtual services."""
        groups = self._at.infrastructure.groups
        out: dict[str, set[str]] = {}
        sizes = Counter(process.group for process in self._engines.running.values())
        sizes.update(router.group for router in self._engines.elsewhere.values())
        for name in {process.group for process in self._engines.running.values()}:
            if (spec := groups.get(name)) is None or spec.flow_handover:
                out[name] = set()
                if sizes[name] > MAX_MEMBERS and name not in self._too_large:
                    note = (
                        f"It has {sizes[name]} Service Engines: at most {MAX_MEMBERS} hand flows"
                        " over to each other, so none does. Make it two groups."
                    )
                    about = f"ServiceEngineGroup/{name}"
                    self._events.say(about, "Warning", "FlowsNotHandedOver", note)
        self._too_large = {name for name in out if sizes[name] > MAX_MEMBERS}
        for service in self._at.placement.services.values():
            for home in service.homes:
                if home.group in out:
                    out[home.group].add(home.address)
        return out

    # ── what a router is to do ──────────────────────────────────────────────────────────────

    def config(self, name: str, address: str) -> RouterConfig:
        """What the router of a Service Engine must do now.  Cost: the virtual services."""
        networks = {n: s for n, s in self._at.infrastructure.networks.items() if s.bgp is not None}
        vips = self._vips(name)
        router_id = self._engines.router_id(name) or address
        passwords = self._at.infrastructure.passwords
        snats = self._snats(name, networks)
        return router_config(name, router_id, networks, vips, snats, passwords) or RouterConfig(
            name=name, router_id=router_id, local_as=_NO_AS, vips=tuple(vips)
        )

    def _snats(self, name: str, networks: Mapping[str, NetworkSpec]) -> list[Snat]:
        """The address that it asks backends from, for each Network whose peers want to know it."""
        asking = sorted(n for n, s in networks.items() if s.bgp and _advertises_snat(s.bgp))
        address = self._engines.snat(name)
        if asking and not address and name not in self._without_snat:
            note = f"{name} asks backends from an interface's address: start it with --snat."
            self._events.say(f"Network/{asking[0]}", "Warning", "NoSnatAddress", note)
        (self._without_snat.discard if address else self._without_snat.add)(name)
        return [Snat(address=address, network=network) for network in asking[:1] if address]

    def _vips(self, name: str) -> list[Vip]:
        process = self._engines.running.get(name)
        if process is None:
            return []
        vips: dict[str, Vip] = {}
        for service in self._at.placement.services.values():
            for home in service.homes:
                if home.group != process.group:
                    continue
                state = self._state(name, self._life(name), service, home)
                before = vips.get(home.address)
                if state is None or (before is not None and state is VipState.HELD):
                    continue
                vips[home.address] = Vip(
                    address=home.address,
                    network=home.network,
                    labels=service.infra.bgp_peer_labels,
                    state=state,
                )
        self._forget(name, vips)
        self._had[name] = set(vips)
        return list(vips.values())

    def _forget(self, name: str, there: dict[str, Vip]) -> None:
        for key in [k for k in self._announced if k[0] == name and k[1] not in there]:
            del self._announced[key]
        for key in [k for k in self._leaving if k[0] == name and k[1] not in there]:
            del self._leaving[key]
        for kept in (self._standby, self._answered):
            kept -= {k for k in kept if k[0] == name and k[1] not in there}
        for last in [k for k in self._since if k[0] == name and k[1] not in there]:
            del self._since[last]

    def _state(
        self, name: str, pid: int | None, service: VirtualService, home: Home
    ) -> VipState | None:
        """How a Service Engine has an address; None: not at all."""
        key = (name, home.address)
        if pid is None:  # its connections, if it is only slow, find the address still
            self._announced.pop(key, None)
            return VipState.HELD if home.address in self._had.get(name, ()) else None
        if not self._at.scale.has(service.name, home.group, name):
            return self._leave(key, pid)
        self._leaving.pop(key, None)
        is_last = home is service.homes[-1]
        if not service.infra.rhi if is_last else key in self._answered:
            return self._answers(key, pid, service, home)
        self._answered.discard(key)
        wanted = service.infra.rhi if is_last else key in self._announced
        if not wanted or not self._serves(name, pid, service, home) or self._too_early(key):
            self._announced.pop(key, None)
            return VipState.HELD
        self._announced[key] = pid
        if self._at.scale.stands_by(service.name, home.group, name):
            self._standby.add(key)
            return VipState.STANDBY
        self._standby.discard(key)
        left = home.address in service.left and service.settled == service.homes[-1].address
        return VipState.DRAINING if left else VipState.ADVERTISED

    def _answers(
        self, key: tuple[str, str], pid: int, service: VirtualService, home: Home
    ) -> VipState:
        """Without announcements one Service Engine answers for an address on its segment."""
        name = key[0]
        first = self._at.scale.on(service.name, home.group)[:1] == (name,)
        if not first or not self._serves(name, pid, service, home) or self._too_early(key):
            self._announced.pop(key, None)
            return VipState.HELD
        self._announced[key] = pid
        self._answered.add(key)
        return VipState.ANSWERED

    def _too_early(self, key: tuple[str, str]) -> bool:
        """Whether others may come yet that announce an address, and this one doesn't."""
        loop = asyncio.get_running_loop()
        if key in self._announced or (left := self._settled_at - loop.time()) <= 0:
            return False
        loop.call_later(left + 0.01, self.due)
        return True

    def _leave(self, key: tuple[str, str], pid: int | None) -> VipState | None:
        """The next degree of an address that a Service Engine gives up by plan."""
        if key not in self._announced and key not in self._leaving:
            return None
        loop = asyncio.get_running_loop()
        began = self._leaving.setdefault(key, loop.time())
        age = loop.time() - began
        for until, state in (
            (self._drained_s, VipState.DRAINING),
            (self._drained_s + self._held(key[0]), VipState.HELD),
        ):
            told = self._announced.get(key) == pid and key not in self._answered
            if age < until and (state is VipState.HELD or told):
                loop.call_later(until - age + 0.01, self.due)
                return state
        return None

    def _held(self, name: str) -> float:
        """How long an address that it gives up answers on, for flows that come by others."""
        held_s = self._engines.held_s
        if not self._engines.hands_over(name):
            return held_s
        group = self._engines.running[name].group
        spec = self._at.infrastructure.groups.get(group, ServiceEngineGroupSpec())
        return max(held_s, spec.pods.drain_seconds) if spec.flow_handover else held_s

    def _serves(self, name: str, pid: int | None, service: VirtualService, home: Home) -> bool:
        """Whether an Envoy answers at the address of a virtual service."""
        if pid is None:
            return False
        key, engine = (name, home.address), self._at.ads.fleet.get(name)
        announced = self._announced.get(key) == pid
        if engine is None or engine.since <= self._lost.get(name, 0.0):
            return announced  # without its stream it serves on with what it has
        catalog = self._at.ads.catalog(home.group)
        if service.listeners is None:
            names = [f"{service.name}/{home.address}:{p.port}" for p in service.infra.listeners]
        else:
            names = listener_names(service, home)
        if not names or any(
            one not in catalog.resources[LDS] or (LDS, one) in engine.rejected for one in names
        ):
            return False
        if announced:
            return True
        wanted = self._since.setdefault((*key, pid), catalog.sequence)
        return engine.answers and engine.acknowledged >= wanted

    @property
    def lacks(self) -> bool:
        """Whether a Service Engine could not be made: it is worth another try."""
        return self._engines.lacks

    def announced(self, address: str) -> list[str]:
        """The Service Engines that are to announce an address now."""
        here = {name for name, one in self._announced if one == address}
        others = {n for n, r in self._engines.elsewhere.items() if address in r.announced}
        return sorted(here | others)

    def carried(self, service: VirtualService) -> bool:
        """Whether routers have been told the way to where a virtual service is to be.

        BGP has no acknowledgement, so they get a moment to take it in.
        """
        if not service.infra.rhi or not service.homes:
            return True
        address = service.homes[-1].address
        prefix = host_prefix(address)
        told = any(
            prefix in router.advertised
            for name in self.announced(address)
            if (router := self.router(name)) is not None
        )
        if not told:
            self._told.pop(address, None)
            return False
        now = asyncio.get_running_loop().time()
        return now - self._told.setdefault(address, now) >= _TAKEN_IN_S

    def judge(self, service: VirtualService, said: dict[str, Any]) -> None:
        """Add to the status of a virtual service who announces it, and what is wrong with that."""
        announced = self.announced(said["vip"])
        said["announcedBy"] = announced
        if service.infra.rhi and (
            silent := [n for n in said["serviceEngines"] if n not in announced]
        ):
            why = [said["why"]] if said["why"] else []
            said["why"] = "; ".join([*why, f"{', '.join(silent)} doesn't announce it"])
            said["state"] = "degraded" if said["state"] == "up" else said["state"]
        if missing := self._engines.problems_of(said["seGroup"]) if said["state"] != "up" else {}:
            why = [said["why"], *(f"{name}: {problem}" for name, problem in missing.items())]
            said["why"] = "; ".join(filter(None, why))
        for name in announced:
            router = self.router(name)
            for session in router.bgp if router is not None else ():
                if session.why:
                    note = f"{name}'s BGP session with {session.peer} is down ({session.why})"
                    said["why"] = "; ".join(filter(None, [said["why"], note]))
                    said["state"] = "degraded" if said["state"] == "up" else said["state"]

    # ── what routers do ─────────────────────────────────────────────────────────────────────

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(_HURRIED_S if self.hurried() else _LOOK_S)
            await self.look()
            self._rebalance()
            self.on_look()

    async def look(self) -> None:
        """Ask every router, and say what has changed since."""
        names = list(self._engines.running)
        for name, found in zip(
            names, await asyncio.gather(*map(self._engines.observe, names)), strict=True
        ):
            self._take(name, found)
        for name in [n for n in self.observed if n not in names]:
            del self.observed[name]
        self._said = {k: up for k, up in self._said.items() if k[0] in names}

    def _take(self, name: str, found: Observed | None) -> None:
        if found is None:
            self.observed.pop(name, None)
            return
        self.observed[name] = found
        for bgp in found.bgp:
            note = f"BGP with {bgp.peer} (AS {bgp.remote_as})"
            why = f": {bgp.why}" if bgp.why is not None else ""
            self._say(name, "Bgp", bgp.peer, bgp.why is None, f"{note} is", why)
        for bfd in found.bfd:
            up = bfd.state == "up"
            self._say(name, "Bfd", bfd.peer, up, f"BFD with {bfd.peer} is", f": {bfd.said}")

    def _say(self, name: str, kind: str, peer: str, up: bool, note: str, why: str) -> None:
        key = (name, kind, peer)
        before = self._said.get(key)
        self._said[key] = up
        if up and before is not True:
            self._events.say(f"ServiceEngine/{name}", "Normal", f"{kind}Up", f"{note} up.")
        elif before and not up:
            text = f"{note} down{why if why.strip(': ') else ''}."
            self._events.say(f"ServiceEngine/{name}", "Warning", f"{kind}Down", text)

    def router(self, name: str) -> ReplicaRouter | None:
        """The router of a Service Engine as it is told from replica to replica."""
        process = self._engines.running.get(name)
        if (leaving := self._engines.leaving.get(name)) is not None:
            at = self._engines.address(name)
            ready = self._engines.hands_over(name)
            return ReplicaRouter(name, leaving, at, hands_over=ready, leaving=True)
        if process is None:
            return self._engines.elsewhere.get(name)
        found = self.observed.get(name)
        return ReplicaRouter(
            name=name,
            group=process.group,
            address=self._engines.address(name),
            usable=self._life(name) is not None,
            hands_over=self._engines.hands_over(name),
            weight=self._weight(name),
            announced=tuple(sorted(a for one, a in self._announced if one == name)),
            standby=tuple(sorted(a for one, a in self._standby if one == name)),
            advertised=_advertised(found),
            bgp=tuple(
                RouterSession(
                    peer=s.peer, state=s.state, remote_as=s.remote_as, why=str(s.why or "")
                )
                for s in (found.bgp if found is not None else ())
            ),
            bfd=tuple(
                RouterSession(peer=s.peer, state=s.state, why=s.said)
                for s in (found.bfd if found is not None else ())
            ),
            why=self._engines.problems_of(process.group).get(name, ""),
        )

    def routers(self) -> tuple[ReplicaRouter, ...]:
        """Those that we see to."""
        names = sorted({*self._engines.running, *self._engines.leaving})
        found = (self.router(name) for name in names)
        return tuple(one for one in found if one is not None)

    def configurations(self) -> list[dict[str, Any]]:
        """What each router that we see to is to have, as FRR reads it; passwords are hidden."""
        out = []
        for name in sorted(self._engines.running):
            config = self.config(name, self._engines.address(name))
            hidden = tuple(
                msgspec.structs.replace(peer, password=_HIDDEN if peer.password else "")
                for peer in config.peers
            )
            text = render(msgspec.structs.replace(config, peers=hidden))
            out.append(
                {
                    "metadata": {"name": name},
                    "addresses": list(config.addresses),
                    **{daemon: text.of(daemon) for daemon in DAEMONS},
                }
            )
        return out

    def shown(self, name: str) -> dict[str, Any]:
        """The routing of a Service Engine, for its status."""
        router = self.router(name)
        if router is None:
            return {}
        out: dict[str, Any] = {
            "address": router.address,
            "announced": list(router.announced),
            "standby": list(router.standby),
            "advertised": list(router.advertised),
            "bgp": [
                {"peer": s.peer, "remoteAs": s.remote_as, "state": s.state, "why": s.why}
                for s in router.bgp
            ],
            "bfd": [{"peer": s.peer, "state": s.state, "why": s.why} for s in router.bfd],
            "why": router.why,
        }
        found = self.observed.get(name)
        if name in self._engines.running and found is not None:
            for shown, bgp in zip(out["bgp"], found.bgp, strict=True):
                shown |= {"upSeconds": bgp.up_s, "prefixes": bgp.told}
            for shown, bfd in zip(out["bfd"], found.bfd, strict=True):
                shown |= {"detectMs": bfd.detect_ms, "upSeconds": bfd.up_s}
            out["addresses"] = list(found.addresses)
        return out


def _advertises_snat(bgp: BgpProfile) -> bool:
    return any(peer.advertise_snat for peer in bgp.peers)


def _advertised(found: Observed | None) -> tuple[str, ...]:
    told = found.advertised.values() if found is not None else ()
    return tuple(sorted({prefix for prefixes in told for prefix in prefixes}))
