"""Service Engines of a controller in the lab: each an Envoy and an FRR in a network namespace.

Envoy asks the controller over a unix socket, which has a path and so reaches into every network
namespace.  Supervision is that of local Envoys; what is added is the place: made before the
Envoy starts, and removed when traffic has gone elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path

import msgspec

from akocore.engines.envoy.process import Engines, Envoy
from akocore.engines.frr.addresses import AddressError
from akocore.engines.frr.config import RouterConfig, VipState
from akocore.engines.frr.observe import Observed
from akocore.engines.frr.process import FrrError, in_namespace
from akocore.engines.frr.session import Session, SessionError
from akocore.engines.handover import HandoverError
from akocore.engines.processes import cpu_s
from akocore.kube.objects import ReplicaRouter
from akocore.lab.topology import Engine, LabError, Topology

__all__ = ["Fleet"]

_PROBE_S = 1.0  # an Envoy that is silent for so long has its routes withdrawn
_LOAD_OVER_S = 1.0
_AGAIN_S = 0.5  # after a router could not be told

_log = logging.getLogger(__name__)


class Fleet(Engines):
    """The Service Engines of one controller, in ``topology``, which must be up.

    ``drained_s``: how long an address is announced as about to go before it is withdrawn;
    ``flows_s``: how long, with handover, connections then have to end.
    ``config_of(name, address)``: what the router of a new Service Engine does at first.
    """

    speaks_bgp = True

    def __init__(
        self,
        topology: Topology,
        run_dir: Path,
        envoy: Envoy,
        xds_socket: Path,
        *,
        concurrency: int = 1,
        drained_s: float = 1.0,
        flows_s: float = 60.0,
        on_change: Callable[[str], None] = lambda _name: None,
    ) -> None:
        super().__init__(
            run_dir,
            envoy,
            xds_socket,
            concurrency=concurrency,
            on_change=on_change,
            within=self._within_its_namespace,
            probe_s=_PROBE_S,
        )
        self.topology = topology
        self.drained_s = drained_s
        self.flows_s = flows_s
        self.config_of: Callable[[str, str], RouterConfig] | None = None
        self.elsewhere: Mapping[str, ReplicaRouter] = {}  # nobody else has any
        self.problems: dict[str, str] = {}  # of Service Engines that could not be made
        self._places: dict[str, Engine] = {}
        self._routes: dict[str, RouterConfig] = {}
        self._due: dict[str, asyncio.Event] = {}
        self._tellers: dict[str, asyncio.Task[None]] = {}
        self._used: dict[str, tuple[int, float, float]] = {}  # pid, when, processor time by then
        self._loads: dict[str, float] = {}
        self._ring: list[str] = []  # places that hand flows over to each other
        self._ring_vips: tuple[str, ...] = ()
        self._ring_turn = asyncio.Lock()

    def _within_its_namespace(self, name: str) -> list[str]:
        return in_namespace(self.topology.namespaces.path(self._places[name].name), [])

    def address(self, name: str) -> str:
        """Where a Service Engine speaks BGP from; "" when it isn't there."""
        place = self._places.get(name)
        if place is None:
            return ""
        return self.topology.address(place.number, next(iter(self.topology.plan.networks)))

    def router_id(self, name: str) -> str:
        return self.address(name)

    @property
    def held_s(self) -> float:
        """How long an address that is given up still answers."""
        return self.flows_s if self.topology.plan.handover else 1.0

    def load(self, name: str) -> float | None:
        """How busy its Envoy's workers are, from 0 to 1; None: not known."""
        process = self.running.get(name)
        if process is None or process.pid is None:
            return None
        now = (process.pid, time.monotonic(), cpu_s(process.pid))
        before = self._used.get(name)
        if before is not None and before[0] == now[0] and now[1] - before[1] < _LOAD_OVER_S:
            return self._loads.get(name)
        self._used[name] = now
        if before is None or before[0] != now[0]:
            return None
        self._loads[name] = (now[2] - before[2]) / (now[1] - before[1]) / self._concurrency
        return self._loads[name]

    def snat(self, _name: str) -> str:
        return ""

    def problems_of(self, group: str) -> dict[str, str]:
        """Why Service Engines of a group could not be made, by name."""
        return {n: p for n, p in self.problems.items() if n.rpartition("-se-")[0] == group}

    @property
    def lacks(self) -> bool:
        return bool(self.problems)

    def session(self, name: str) -> Session | None:
        place = self._places.get(name)
        return self.topology.sessions.get(place.name) if place is not None else None

    # ─── coming and going

    async def ensure(self, group: str, names: Iterable[str]) -> None:
        """As of local ones, with a place each.  What can't be made is in ``problems``."""
        names = list(names)
        for name in [n for n in self.problems if n.rpartition("-se-")[0] == group]:
            if name not in names:
                del self.problems[name]
        await asyncio.gather(*(self._wire(name) for name in names if name not in self._places))
        await super().ensure(group, [name for name in names if name in self._places])

    def _first_config(self, name: str, at: str) -> RouterConfig:
        if self.config_of is not None:
            return self.config_of(name, at)
        return RouterConfig(name=name, router_id=at, local_as=64_512)

    async def _wire(self, name: str) -> None:
        try:
            place = await self.topology.wire_se(name, lambda at: self._first_config(name, at))
        except (AddressError, FrrError, LabError, SessionError) as err:
            self.problems[name] = str(err)
            _log.warning("event=se_not_made se=%s why=%r", name, str(err))
            return
        self.problems.pop(name, None)
        self._places[name] = place
        self._due[name] = asyncio.Event()
        self._tellers[name] = asyncio.create_task(self._tell(name))

    async def stop(self, names: Iterable[str], grace_s: float | None = None) -> None:
        """End Service Engines without losing traffic, unless ``grace_s`` is 0; remove their places.

        Routers upstream are told that its addresses go, then that they are gone; only then the
        Envoy stops listening.
        """
        await asyncio.gather(*(self._leave(name, grace_s) for name in list(names)))

    async def _leave(self, name: str, grace_s: float | None) -> None:
        if (teller := self._tellers.pop(name, None)) is not None:
            teller.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await teller
        session = self.session(name)
        if session is not None and grace_s != 0:
            with contextlib.suppress(AddressError, HandoverError, SessionError):
                await self._hand_on(name)
                await self._withdraw(session)
                await self._until_flows_end(name)
        await super().stop([name], grace_s)
        if session is not None:
            with contextlib.suppress(AddressError, SessionError):
                await session.stop()
        if (place := self._places.pop(name, None)) is not None:
            await self.topology.unwire_se(place.name)
        self._routes.pop(name, None)
        self._due.pop(name, None)

    async def _withdraw(self, session: Session) -> None:
        if (config := session.config) is None:
            return
        await session.apply(msgspec.structs.replace(config, graceful_shutdown=True))
        await asyncio.sleep(self.drained_s)
        held = tuple(msgspec.structs.replace(v, state=VipState.HELD) for v in config.vips)
        await session.apply(msgspec.structs.replace(config, vips=held))

    # ─── handing flows over

    async def _hand_over(self, name: str, config: RouterConfig) -> None:
        """Before a router does ``config``: it joins the ring, or it has ended and leaves it."""
        if not self.topology.plan.handover or name not in self._places:
            return
        place = self._places[name].name
        async with self._ring_turn:
            process = self.running.get(name)
            lost = process is None or process.pid is None or process.hangs
            announces = any(vip.state is not VipState.HELD for vip in config.vips)
            ring = [one for one in self._ring if one != place or not lost]
            if announces and place not in ring:
                ring.append(place)
            vips = tuple(sorted({*self._ring_vips, *(vip.address for vip in config.vips)}))
            if ring == self._ring and vips == self._ring_vips:
                return
            before, self._ring, self._ring_vips = self._ring, ring, vips
            if ring:
                await self.topology.join(ring, before, vips)

    async def _hand_on(self, name: str) -> None:
        """It is to have no route soon: others will have to hand its flows to it."""
        place = self._places[name].name
        async with self._ring_turn:
            if self.topology.plan.handover and place in self._ring:
                others = [one for one in self._ring if one != place]
                await self.topology.part(self._ring, others)

    async def _until_flows_end(self, name: str) -> None:
        """It has no route any more, and stays in the ring until its connections are over."""
        place = self._places[name].name
        if not self.topology.plan.handover or place not in self._ring:
            return
        left = await self.topology.handover(place).drained(self._ring_vips, self.flows_s)
        _log.info("event=flows_over se=%s left=%d", name, left)
        async with self._ring_turn:
            self._ring = [one for one in self._ring if one != place]
            await self.topology.join(self._ring, (), self._ring_vips)

    async def stop_all(self, grace_s: float | None = None) -> None:
        """End all of them at once: the lab ends with them."""
        await super().stop_all(0 if grace_s is None else grace_s)

    # ─── routing

    leaving: Mapping[str, str] = {}  # none hands flows over by its controller, but all by us

    def hands_over(self, _name: str) -> bool:
        return False

    def look_round(self) -> None:
        """Nobody comes or goes but by us."""

    def route(
        self, name: str, config: RouterConfig, _handed: Collection[str] | None = None
    ) -> None:
        """Bring its router to ``config`` soon, and keep trying; a later call goes before."""
        if name in self._tellers and self._routes.get(name) != config:
            self._routes[name] = config
            self._due[name].set()

    async def _tell(self, name: str) -> None:
        due = self._due[name]
        while True:
            await due.wait()
            due.clear()
            session = self.session(name)
            if session is None:
                return
            config = self._routes[name]
            try:
                await self._hand_over(name, config)
                await session.apply(config)
                if not self.topology.plan.handover:
                    routes = self._routes.values()
                    self.topology.know(sorted({v.address for one in routes for v in one.vips}))
            except (AddressError, HandoverError, SessionError) as err:
                _log.warning("event=se_not_told se=%s why=%r", name, str(err))
                await asyncio.sleep(_AGAIN_S)
                due.set()

    async def observe(self, name: str) -> Observed | None:
        """What its router does now; None when it doesn't answer."""
        if (session := self.session(name)) is None:
            return None
        try:
            return await session.observe()
        except (AddressError, SessionError):
            return None
