"""Route health injection: an address is announced by just the Service Engines that serve it.

An Envoy that is lost takes its announcements with it at once; what is planned goes by degrees.
`akocore.announcements` knows which Service Engine has which address; here routers are told so,
and what they do is seen.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Protocol

import msgspec

from akocore.announcements import Announcements
from akocore.engines.envoy.process import EngineProcess
from akocore.engines.frr.config import DAEMONS, RouterConfig, Snat, host_prefix, render
from akocore.engines.frr.observe import Observed
from akocore.engines.handover.plan import MAX_MEMBERS
from akocore.events import Events
from akocore.kube.objects import BgpProfile, NetworkSpec, ReplicaRouter, RouterSession
from akocore.place.balance import Balance
from akocore.place.virtual_services import VirtualService
from akocore.reconcile import Reconciler
from akocore.translate.rhi import check_router_ids, is_outside, router_config

__all__ = ["RouteHealth", "RoutedEngines"]

_LOOK_S, _HURRIED_S = 1.0, 0.05
_TAKEN_IN_S = 0.2
_REST, _REST_MAX_S = 4.0, 0.25  # after a look at what is stale, in times of what that took
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

    ``drained_s``: see `Announcements`.
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
        self._due = asyncio.Event()
        self.announcements = Announcements(at, engines, self._due.set, drained_s)
        self._told: dict[str, float] = {}  # address → since when routers are told the way to it
        self._said: dict[tuple[str, str, str], bool] = {}
        self._without_snat: set[str] = set()  # who was said to have no address for it
        self._too_large: set[str] = set()  # groups that were told so
        self._balance = Balance()
        engines.config_of = self.config
        at.scale.usable = self._usable
        at.scale.rank = self.announcements.rank
        at.scale.busy = self.announcements.busy

    # ── what may concern a route ────────────────────────────────────────────────────────────

    def touched(self, services: Iterable[str]) -> None:
        """Virtual services are somewhere else or have other listeners, or settings are others."""
        self.announcements.touched(services)

    def acknowledged(self) -> None:
        """An Envoy has got on: it may serve something now."""
        self.announcements.acknowledged()

    def engine_changed(self, name: str) -> None:
        """An Envoy started or ended."""
        if name not in self._engines.running:
            self.observed.pop(name, None)
            self._balance.forget(name)
        self.announcements.engine_changed(name)

    def elsewhere_changed(self) -> tuple[set[str], set[str]]:
        """Other replicas told of theirs: which Service Engines, of which virtual services."""
        engines: set[str] = set()
        services: set[str] = set()
        for before, now in self.announcements.elsewhere_changed():
            engines |= {one.name for one in (before, now) if one is not None}
            services |= self.concerned(before, now)
        return engines, services

    def concerned(self, before: ReplicaRouter | None, now: ReplicaRouter | None) -> set[str]:
        """The virtual services whose status tells two states of a router apart.

        Cost: the addresses that it announces; all of its group's when a session came or went.
        """
        if before is None or now is None or _but_addresses(before) != _but_addresses(now):
            groups = {one.group for one in (before, now) if one is not None}
            return self.announcements.services_of(groups)
        addresses = (
            {*before.announced} ^ {*now.announced}
            | {*before.standby} ^ {*now.standby}
            | {one.partition("/")[0] for one in {*before.advertised} ^ {*now.advertised}}
        )
        return self.announcements.services_at(addresses)

    # ── what Service Engines there are, for `Scale` ─────────────────────────────────────────

    def _usable(self, group: str) -> dict[str, float]:
        """Those of a group that can serve, by name, with their weights."""
        out = {
            name: one.weight
            for name, one in self._engines.elsewhere.items()
            if one.group == group and one.usable
        }
        for name, process in self._engines.running.items():
            if process.group == group and _lives(process):
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
                self.announcements.all_changed()

    def adopt(
        self,
        name: str,
        life: int,
        announced: Iterable[str],
        standby: Iterable[str] = (),
        answered: Iterable[str] = (),
    ) -> None:
        """A Service Engine comes to us that announces these already: nobody withdraws them."""
        self._check_address(name)
        self.announcements.adopt(name, life, announced, standby, answered)

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

    def addresses(self) -> dict[str, frozenset[str]]:
        """Where each Service Engine is, and asks backends from."""
        engines = self._engines
        out = {n: frozenset({r.address, r.snat} - {""}) for n, r in engines.elsewhere.items()}
        for name in engines.running:
            out[name] = frozenset({engines.address(name), engines.snat(name)} - {""})
        return out

    def heard(self, name: str, found: Observed | None) -> None:
        """What a router does now, from whom sees it."""
        self._take(name, found)
        self.on_look()

    async def run(self) -> None:
        """Follow, until cancelled."""
        self.announcements.begin()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow())
            tasks.create_task(self._look())

    async def _follow(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._due.wait()
            self._due.clear()
            began = loop.time()
            run = self._at.faults.run
            run(("announcements",), "Config", self.announcements.follow)
            self._engines.look_round()
            handing = self._who_hand_over()
            for name, process in self._engines.running.items():
                group = process.group
                unit, object_ = ("router", name), f"ServiceEngine/{name}"
                run(unit, object_, self._route, name, group, hands_over=group in handing)
            # When Service Engines come, thousands of virtual services are looked at anew.
            await asyncio.sleep(min(_REST * (loop.time() - began), _REST_MAX_S))

    def _route(self, name: str, group: str, *, hands_over: bool) -> None:
        if address := self._engines.address(name):
            handed = self.announcements.handed(group) if hands_over else None
            self._engines.route(name, self.config(name, address), handed)

    def _who_hand_over(self) -> set[str]:
        """The groups of Service Engines here whose flows are handed over."""
        groups = self._at.infrastructure.groups
        sizes = Counter(process.group for process in self._engines.running.values())
        here = set(sizes)
        sizes.update(router.group for router in self._engines.elsewhere.values())
        out = {name for name in here if name not in groups or groups[name].flow_handover}
        too_large = {name for name in out if sizes[name] > MAX_MEMBERS}
        for name in too_large - self._too_large:
            note = (
                f"It has {sizes[name]} Service Engines: at most {MAX_MEMBERS} hand flows"
                " over to each other, so none does. Make it two groups."
            )
            about = f"ServiceEngineGroup/{name}"
            self._events.say(about, "Warning", "FlowsNotHandedOver", note)
        self._too_large = too_large
        return out

    # ── what a router is to do ──────────────────────────────────────────────────────────────

    def config(self, name: str, address: str) -> RouterConfig:
        """What the router of a Service Engine must do now.  Cost: the peers of all Networks."""
        networks = {n: s for n, s in self._at.infrastructure.networks.items() if s.bgp is not None}
        vips = self.announcements.vips(name)
        router_id = self._engines.router_id(name) or address
        passwords = self._at.infrastructure.passwords
        snats = self._snats(name, networks)
        return router_config(name, router_id, networks, vips, snats, passwords) or RouterConfig(
            name=name, router_id=router_id, local_as=_NO_AS, vips=vips
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

    @property
    def lacks(self) -> bool:
        """Whether a Service Engine could not be made: it is worth another try."""
        return self._engines.lacks

    def announced(self, address: str) -> list[str]:
        """The Service Engines that are to announce an address now."""
        return self.announcements.announced(address)

    def carried(self, service: VirtualService) -> bool:
        """Whether routers have been told the way to where a virtual service is to be.

        BGP has no acknowledgement, so they get a moment to take it in.
        """
        if not service.infra.rhi or not service.homes:
            return True
        address = service.homes[-1].address
        prefix = host_prefix(address)
        told = any(self._advertises(name, prefix) for name in self.announced(address))
        if not told:
            self._told.pop(address, None)
            return False
        now = asyncio.get_running_loop().time()
        return now - self._told.setdefault(address, now) >= _TAKEN_IN_S

    def _advertises(self, name: str, prefix: str) -> bool:
        """Whether a peer of a Service Engine was told of ``prefix``."""
        if name not in self._engines.running:
            other = self._engines.elsewhere.get(name)
            return other is not None and prefix in other.advertised
        found = self.observed.get(name)
        return found is not None and any(prefix in told for told in found.advertised.values())

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
            for peer, why_down in self._down(name):
                note = f"{name}'s BGP session with {peer} is down ({why_down})"
                said["why"] = "; ".join(filter(None, [said["why"], note]))
                said["state"] = "degraded" if said["state"] == "up" else said["state"]

    def _down(self, name: str) -> list[tuple[str, str]]:
        """Peers of a Service Engine whose sessions are down, and why."""
        if name in self._engines.running:
            found = self.observed.get(name)
            return [(s.peer, str(s.why)) for s in (found.bgp if found is not None else ()) if s.why]
        other = self._engines.elsewhere.get(name)
        return [(s.peer, s.why) for s in (other.bgp if other is not None else ()) if s.why]

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
            snat=self._engines.snat(name),
            usable=_lives(process),
            hands_over=self._engines.hands_over(name),
            weight=self._weight(name),
            announced=self.announcements.announced_by(name),
            standby=self.announcements.standby_of(name),
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


def _lives(process: EngineProcess) -> bool:
    """Whether its Envoy runs, and answers."""
    return process.pid is not None and not process.hangs


def _but_addresses(router: ReplicaRouter) -> ReplicaRouter:
    return msgspec.structs.replace(router, announced=(), standby=(), advertised=())


def _advertises_snat(bgp: BgpProfile) -> bool:
    return any(peer.advertise_snat for peer in bgp.peers)


def _advertised(found: Observed | None) -> tuple[str, ...]:
    told = found.advertised.values() if found is not None else ()
    return tuple(sorted({prefix for prefixes in told for prefix in prefixes}))
