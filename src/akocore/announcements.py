"""Which Service Engine has which address, and how far it is with announcing it.

A Service Engine announces a VIP while its Envoy runs, has taken the virtual service's listeners
and refuses none of them.  What is planned goes by degrees: announced as about to go, withdrawn,
given up.

    virtual services, Envoys, timers ─▶ stale addresses ─▶ states ─▶ each router's VIPs

Only what may have changed is looked at: an address that is stale, on each Service Engine of its
groups.  All of them are when Service Engines come or go, or a group or a Network is another one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from typing import Protocol

from akocore.engines.envoy.process import EngineProcess
from akocore.engines.envoy.resources import LDS
from akocore.engines.frr.config import Vip, VipState
from akocore.kube.objects import ReplicaRouter, ServiceEngineGroupSpec
from akocore.place.scale import N_PLUS_M
from akocore.place.virtual_services import Home, VirtualService
from akocore.realise_l4 import listener_names
from akocore.reconcile import Reconciler

__all__ = ["Announcements"]

_NEW_S = 10.0
_SETTLE_S = 2.5  # agents look for a controller as often


class _Engines(Protocol):
    """What of Service Engines counts here; see `akocore.route_health.RoutedEngines`."""

    elsewhere: Mapping[str, ReplicaRouter]

    @property
    def held_s(self) -> float: ...
    @property
    def running(self) -> dict[str, EngineProcess]: ...
    def hands_over(self, name: str) -> bool: ...


class Announcements:
    """Say what may have changed, then `follow`; ``due`` is called when that is worth it.

    ``drained_s``: how long a virtual service that leaves a Service Engine is announced as about
    to go; then it still answers there for the ``held_s`` of ``engines``, or as long as connections
    have to end when others hand them over to it.
    """

    def __init__(
        self, at: Reconciler, engines: _Engines, due: Callable[[], None], drained_s: float
    ) -> None:
        self._at = at
        self._engines = engines
        self._due = due
        self._drained_s = drained_s
        # What may have changed:
        self._all_stale = True
        self._stale_services: set[str] = set()
        self._stale: set[str] = set()  # addresses
        self._settings: object = None  # what of the infrastructure counts, as it was
        self._busy_ones: set[str] = set()
        self._rejected: set[str] = set()  # listeners
        # Where virtual services are:
        self._homes: dict[str, dict[str, dict[str, None]]] = {}  # group → address → their names
        self._homes_of: dict[str, set[tuple[str, str]]] = {}  # name → (group, address)
        self._handed: dict[str, tuple[str, ...]] = {}  # group → addresses, sorted
        # What each Service Engine has, by its name and an address:
        self._has: dict[str, dict[str, Vip]] = {}
        self._vips: dict[str, tuple[Vip, ...]] = {}  # the same, while it is known
        self._announced: dict[str, dict[str, int]] = {}  # the Envoy's pid
        self._standby: dict[str, set[str]] = {}  # of `_announced`: as the worse way
        self._answered: dict[str, set[str]] = {}  # of `_announced`: by ARP and ND instead
        self._announcers: dict[str, set[str]] = {}  # address → who has it in `_announced`
        self._since: dict[tuple[str, str], tuple[int, int]] = {}  # pid, publication to wait for
        self._leaving: dict[tuple[str, str], float] = {}  # since when, in the loop's time
        self._unserved: set[str] = set()  # addresses that an Envoy is yet to serve
        self._lost: dict[str, float] = {}  # streams that began by then were of an Envoy that ended
        self._elsewhere: Mapping[str, ReplicaRouter] = {}
        self._announcers_elsewhere: dict[str, set[str]] = {}
        self._began = 0.0  # when we did, in the loop's time
        self._settled_at = 0.0  # till then those that come back keep what they announce

    # ── what may have changed ───────────────────────────────────────────────────────────────

    def begin(self) -> None:
        self._began = asyncio.get_running_loop().time()

    def all_changed(self) -> None:
        """Service Engines came, went, or weigh something else."""
        self._at.scale.changed()
        self._all_stale = True
        self._due()

    def touched(self, services: Iterable[str]) -> None:
        """These virtual services are somewhere else, or have other listeners; or settings are."""
        at = self._at.infrastructure
        settings = (dict(at.networks), dict(at.groups), dict(at.passwords))
        if settings != self._settings:
            self._settings = settings
            self.all_changed()
            return
        self._stale_services.update(services)
        if self._stale_services:
            for name in services:
                self._at.scale.changed(name)
            self._due()

    def acknowledged(self) -> None:
        """An Envoy has got on: it may serve something now, or refuse it."""
        rejected = {
            name
            for engine in self._at.ads.fleet.values()
            for type_url, name in engine.rejected
            if type_url == LDS
        }
        if rejected != self._rejected:
            self._stale_services.update(n.partition("/")[0] for n in rejected ^ self._rejected)
            self._rejected = rejected
        self._stale |= self._unserved
        if self._stale or self._stale_services:
            self._due()

    def engine_changed(self, name: str) -> None:
        """An Envoy started or ended.  Its stream may be seen to end only later."""
        process = self._engines.running.get(name)
        if process is None:
            self._lost.pop(name, None)
            self._vips.pop(name, None)
            for address in {*self._has.pop(name, ()), *self._announced.get(name, ())}:
                self._forget(name, address)
            for kept in (self._announced, self._standby, self._answered):
                kept.pop(name, None)
        elif process.pid is None:
            stream = self._at.ads.fleet.get(name)
            self._lost[name] = stream.since if stream is not None else time.time()
        self.all_changed()

    def elsewhere_changed(self) -> list[tuple[ReplicaRouter | None, ReplicaRouter | None]]:
        """Other replicas told of their Service Engines: each that changed, before and now."""
        before, now = self._elsewhere, dict(self._engines.elsewhere)
        self._elsewhere = now
        changed = [
            (before.get(name), now.get(name))
            for name in before.keys() | now.keys()
            if before.get(name) != now.get(name)
        ]
        for old, new in changed:
            was, is_ = (set(one.announced) if one is not None else set() for one in (old, new))
            (name,) = {one.name for one in (old, new) if one is not None}
            for address in was - is_:
                self._announcers_elsewhere[address].discard(name)
                if not self._announcers_elsewhere[address]:
                    del self._announcers_elsewhere[address]
            for address in is_ - was:
                self._announcers_elsewhere.setdefault(address, set()).add(name)
            stood, stands = (set(one.standby) if one is not None else set() for one in (old, new))
            for address in was ^ is_ | stood ^ stands:
                self._stale.add(address)
                for service in self.services_at((address,)):
                    self._at.scale.changed(service)
        if any(_can(old) != _can(new) for old, new in changed):
            self.all_changed()
        self._due()  # who hands flows over may be others, too
        return changed

    def adopt(
        self,
        name: str,
        life: int,
        announced: Iterable[str],
        standby: Iterable[str],
        answered: Iterable[str],
    ) -> None:
        """A Service Engine comes to us that announces these already: nobody withdraws them.

        While we are new, others that do so too may yet come: nobody else is asked to for a while.
        """
        now = asyncio.get_running_loop().time()
        for address in announced:
            self._announce(name, address, life)
            self._stale.add(address)
            if now < self._began + _NEW_S:
                self._settled_at = now + _SETTLE_S
        self._standby.setdefault(name, set()).update(standby)
        self._answered.setdefault(name, set()).update(answered)

    def _again(self, address: str) -> None:
        self._stale.add(address)
        self._due()

    # ── as others see it ────────────────────────────────────────────────────────────────────

    def vips(self, name: str) -> tuple[Vip, ...]:
        """What the router of a Service Engine is to have.  Cost: nothing, unless it has changed."""
        if name not in self._has:
            process = self._engines.running.get(name)
            if process is None:
                return ()
            self._has[name] = {}
            for service in self._at.placement.services:
                self._stale |= self._place(service)
            self._look(name, process, self._homes.get(process.group, ()))
        if (found := self._vips.get(name)) is None:
            found = self._vips[name] = tuple(self._has[name].values())
        return found

    def handed(self, group: str) -> tuple[str, ...]:
        """All addresses of virtual services on Service Engines of a group, sorted."""
        if (found := self._handed.get(group)) is None:
            found = self._handed[group] = tuple(sorted(self._homes.get(group, ())))
        return found

    def services_at(self, addresses: Iterable[str]) -> set[str]:
        """The virtual services that have one of these addresses."""
        groups = self._homes.values()
        return {name for one in addresses for group in groups for name in group.get(one, ())}

    def services_of(self, groups: Collection[str]) -> set[str]:
        """The virtual services on Service Engines of these groups."""
        found = (self._homes.get(group, {}).values() for group in groups)
        return {name for at in found for names in at for name in names}

    def announced(self, address: str) -> list[str]:
        """The Service Engines that are to announce an address now."""
        here = self._announcers.get(address, set())
        return sorted(here | self._announcers_elsewhere.get(address, set()))

    def announced_by(self, name: str) -> tuple[str, ...]:
        """The addresses that a Service Engine of ours is to announce, sorted."""
        return tuple(sorted(self._announced.get(name, ())))

    def standby_of(self, name: str) -> tuple[str, ...]:
        """Those of them that others serve while they can, sorted."""
        return tuple(sorted(self._standby.get(name, ())))

    def rank(self, vs: str, engine: str) -> int:
        """How it has a virtual service: 0 serves it, 1 stands by, 2 not at all."""
        service = self._at.placement.services.get(vs)
        other = self._engines.elsewhere.get(engine)
        found = 2
        for home in service.homes if service is not None else ():
            if home.address in self._announced.get(engine, ()):
                found = min(found, 1 if home.address in self._standby.get(engine, ()) else 0)
            elif other is not None and engine in self._announcers_elsewhere.get(home.address, ()):
                found = min(found, 1 if home.address in other.standby else 0)
        return found

    def busy(self, engine: str) -> bool:
        """Whether a Service Engine announces anything."""
        other = self._engines.elsewhere.get(engine)
        if other is not None and engine not in self._engines.running:
            return bool(other.announced)
        return bool(self._announced.get(engine))

    # ── from what may have changed to what has ──────────────────────────────────────────────

    def follow(self) -> None:
        """Look at what is stale.  Cost: each of it on each Service Engine of its groups."""
        addresses, self._stale = self._stale, set()
        if self._all_stale:
            self._all_stale = False
            services = {*self._homes_of, *self._at.placement.services}
        else:
            services = self._stale_services
        self._stale_services = set()
        for name in services:
            addresses |= self._place(name)
        self._unserved -= addresses
        for name, process in self._engines.running.items():
            self._has.setdefault(name, {})
            self._look(name, process, addresses)
        self._see_who_is_busy()

    def _place(self, name: str) -> set[str]:
        """Take in where a virtual service is; the addresses of it, also those that it had."""
        before = self._homes_of.pop(name, set())
        service = self._at.placement.services.get(name)
        now = (
            {(home.group, home.address) for home in service.homes} if service is not None else set()
        )
        if now:
            self._homes_of[name] = now
        for group, address in before - now:
            at = self._homes[group]
            del at[address][name]
            if not at[address]:
                del at[address]
                self._handed.pop(group, None)
        for group, address in now - before:
            at = self._homes.setdefault(group, {})
            if address not in at:
                at[address] = {}
                self._handed.pop(group, None)
            at[address][name] = None
        return {address for _, address in before | now}

    def _look(self, name: str, process: EngineProcess, addresses: Iterable[str]) -> None:
        has, at = self._has[name], self._homes.get(process.group, {})
        pid = None if process.hangs else process.pid
        for address in addresses:
            new = self._vip(name, process.group, pid, address, at.get(address, ()))
            if new is None:
                self._forget(name, address)
            if new == has.get(address):
                continue
            self._vips.pop(name, None)
            if new is not None:
                has[address] = new
            else:
                del has[address]

    def _vip(
        self, name: str, group: str, pid: int | None, address: str, services: Iterable[str]
    ) -> Vip | None:
        found = None
        for service in map(self._at.placement.services.get, services):
            for home in service.homes if service is not None else ():
                if service is None or home.address != address or home.group != group:
                    continue
                state = self._state(name, pid, service, home)
                if state is None or (found is not None and state is VipState.HELD):
                    continue
                found = Vip(
                    address=address,
                    network=home.network,
                    labels=service.infra.bgp_peer_labels,
                    state=state,
                )
        return found

    def _see_who_is_busy(self) -> None:
        """Of a group with spares, virtual services have to keep off those that are free."""
        groups = {n for n, s in self._at.infrastructure.groups.items() if s.ha_mode == N_PLUS_M}
        busy = {
            *(n for n, p in self._engines.running.items() if p.group in groups and self.busy(n)),
            *(n for n, r in self._elsewhere.items() if r.group in groups and r.announced),
        }
        if busy != self._busy_ones:
            self._busy_ones = busy
            self.all_changed()

    def _announce(self, name: str, address: str, pid: int) -> None:
        self._announced.setdefault(name, {})[address] = pid
        self._announcers.setdefault(address, set()).add(name)

    def _withdraw(self, name: str, address: str) -> None:
        if address in (announced := self._announced.get(name, {})):
            del announced[address]
            self._announcers[address].discard(name)
            if not self._announcers[address]:
                del self._announcers[address]

    def _forget(self, name: str, address: str) -> None:
        """A Service Engine has an address no more."""
        self._withdraw(name, address)
        self._leaving.pop((name, address), None)
        self._since.pop((name, address), None)
        for kept in (self._standby, self._answered):
            kept.get(name, set()).discard(address)

    def _state(
        self, name: str, pid: int | None, service: VirtualService, home: Home
    ) -> VipState | None:
        """How a Service Engine has an address; None: not at all."""
        key = (name, home.address)
        if pid is None:  # its connections, if it is only slow, find the address still
            self._withdraw(*key)
            return VipState.HELD if home.address in self._has.get(name, ()) else None
        if not self._at.scale.has(service.name, home.group, name):
            return self._leave(key, pid)
        self._leaving.pop(key, None)
        is_last = home is service.homes[-1]
        answered = self._answered.setdefault(name, set())
        if not service.infra.rhi if is_last else home.address in answered:
            return self._answers(key, pid, service, home)
        answered.discard(home.address)
        announced = self._announced.get(name, {})
        wanted = service.infra.rhi if is_last else home.address in announced
        if not wanted or not self._serves(key, pid, service, home) or self._too_early(key):
            self._withdraw(*key)
            return VipState.HELD
        self._announce(*key, pid)
        standby = self._standby.setdefault(name, set())
        if self._at.scale.stands_by(service.name, home.group, name):
            standby.add(home.address)
            return VipState.STANDBY
        standby.discard(home.address)
        left = home.address in service.left and service.settled == service.homes[-1].address
        return VipState.DRAINING if left else VipState.ADVERTISED

    def _answers(
        self, key: tuple[str, str], pid: int, service: VirtualService, home: Home
    ) -> VipState:
        """Without announcements one Service Engine answers for an address on its segment."""
        name, address = key
        first = self._at.scale.on(service.name, home.group)[:1] == (name,)
        if not first or not self._serves(key, pid, service, home) or self._too_early(key):
            self._withdraw(name, address)
            return VipState.HELD
        self._announce(name, address, pid)
        self._answered.setdefault(name, set()).add(address)
        return VipState.ANSWERED

    def _too_early(self, key: tuple[str, str]) -> bool:
        """Whether others may come yet that announce an address, and this one doesn't."""
        name, address = key
        loop = asyncio.get_running_loop()
        left = self._settled_at - loop.time()
        if address in self._announced.get(name, ()) or left <= 0:
            return False
        loop.call_later(left + 0.01, partial(self._again, address))
        return True

    def _leave(self, key: tuple[str, str], pid: int) -> VipState | None:
        """The next degree of an address that a Service Engine gives up by plan."""
        name, address = key
        announced = self._announced.get(name, {})
        if address not in announced and key not in self._leaving:
            return None
        loop = asyncio.get_running_loop()
        began = self._leaving.setdefault(key, loop.time())
        age = loop.time() - began
        for until, state in (
            (self._drained_s, VipState.DRAINING),
            (self._drained_s + self._held(name), VipState.HELD),
        ):
            told = announced.get(address) == pid and address not in self._answered.get(name, ())
            if age < until and (state is VipState.HELD or told):
                loop.call_later(until - age + 0.01, partial(self._again, address))
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

    def _serves(self, key: tuple[str, str], pid: int, service: VirtualService, home: Home) -> bool:
        """Whether an Envoy answers at the address of a virtual service."""
        name, address = key
        engine = self._at.ads.fleet.get(name)
        announced = self._announced.get(name, {}).get(address) == pid
        if engine is None or engine.since <= self._lost.get(name, 0.0):
            if not announced:
                self._unserved.add(address)
            return announced  # without its stream it serves on with what it has
        catalog = self._at.ads.catalog(home.group)
        if service.listeners is None:
            names = [f"{service.name}/{address}:{p.port}" for p in service.infra.listeners]
        else:
            names = listener_names(service, home)
        if not names or any(
            one not in catalog.resources[LDS] or (LDS, one) in engine.rejected for one in names
        ):
            return False  # who changes that touches the virtual service
        if announced:
            return True
        known = self._since.get(key)
        if known is None or known[0] != pid:
            known = self._since[key] = (pid, catalog.sequence)
        if engine.answers and engine.acknowledged >= known[1]:
            return True
        self._unserved.add(address)
        return False


def _can(router: ReplicaRouter | None) -> object:
    """What of a Service Engine elsewhere decides which virtual services it gets."""
    return router and (router.group, router.usable, router.weight)
