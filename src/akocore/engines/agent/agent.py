"""One Service Engine where it runs: an Envoy and an FRR, kept as a controller says.

An address is announced while three things hold: the controller says so of this very Envoy process
(which has then acknowledged what it is to serve), the process lives, and its workers answer.  The
first needs a controller; the others are seen here.  So without any controller all goes on as it
is, and an Envoy that ends or hangs takes its routes with it all the same.

Flows are handed over round the ring that an order names, which is there before the order's routes
are.  When it leaves, it stays in the ring until its last connection is over, tells so, and goes a
moment later, when the others have heard of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from mmh3 import hash64
from msgspec import Struct

from akocore import __version__
from akocore.engines.addresses import own_addresses
from akocore.engines.agent.link import Link
from akocore.engines.agent.messages import (
    CANT_HAND_OVER,
    HandOver,
    Order,
    Report,
    decode_order,
    encode,
)
from akocore.engines.envoy.process import (
    Controllers,
    EngineError,
    EngineProcess,
    Engines,
    Envoy,
    not_confined,
)
from akocore.engines.frr.addresses import AddressError, Loopback
from akocore.engines.frr.config import RouterConfig, VipState
from akocore.engines.frr.observe import Observed
from akocore.engines.frr.process import Frr, FrrError, Router
from akocore.engines.frr.session import Session, SessionError
from akocore.engines.handover import Counters, Handover, HandoverError, Ring, interface_of
from akocore.engines.processes import boot_id, cpu_s, start_ticks

if TYPE_CHECKING:
    from akocore.engines.agent.identity import Identity

__all__ = ["Agent", "Settings"]

_AGAIN_S = 0.5  # after the router could not be told
_LOOK_S, _HURRIED_S, _HURRY_FOR_S = 1.0, 0.05, 5.0
_RENEW_S = 3.0
_RING_AGAIN_S = 5.0  # after flows could not be handed over
_COUNT_S = 5.0  # between two looks at the flows, which cost as much as there are sockets
_HEARD_S = 1.0  # others have heard by then that it owns no flow any more
_SYSCTLS = {
    # An address on lo is none of the other interfaces' business.
    "net/ipv4/conf/all/arp_ignore": "1",
    "net/ipv4/conf/all/arp_announce": "2",
}

log = logging.getLogger(__name__)


class Settings(Struct, frozen=True, kw_only=True):
    """Who it is and how it behaves.

    ``drained_s``: how long it is announced as about to go before it is withdrawn; ``flows_s``:
    how long it then waits for connections to end; ``probe_s``: how long an Envoy may be silent.
    """

    name: str
    group: str
    address: str
    router_id: str
    controllers: Controllers
    snat: str = ""  # an address of its own that it asks backends from
    drained_s: float = 2.0
    flows_s: float = 20.0
    probe_s: float = 1.0
    concurrency: int = 1
    max_connections: int = 50_000


class Agent:
    """Runs one Service Engine in ``directory``, which is its alone.

    ``frr``: None: there is none, for ``no_frr``; it serves, and announces nothing.
    ``identity``: who gets it the certificate that its controllers know it by; None: it has one.
    """

    def __init__(
        self,
        settings: Settings,
        directory: Path,
        envoy: Envoy,
        frr: Frr | None,
        no_frr: str = "",
        *,
        identity: Identity | None = None,
        on_change: Callable[[Report], None] = lambda _report: None,
    ) -> None:
        self.settings = settings
        self.problems: dict[str, str] = {"frr": no_frr} if no_frr else {}
        self.order: Order | None = None
        self.observed: Observed | None = None
        self.leaving = False
        self._directory = directory.absolute()
        self._frr = frr
        self._identity = identity
        self._engines = Engines(
            self._directory / "envoy",
            envoy,
            self._directory / "xds.sock",
            concurrency=settings.concurrency,
            max_connections=settings.max_connections,
            on_change=lambda _name: self._changed(),
            controllers=settings.controllers,
            probe_s=settings.probe_s,
            source=settings.snat,
            alone=True,
        )
        self._session: Session | None = None
        if frr is not None:
            # bgpd doesn't begin where it can't listen: an address that is to come is no place yet.
            own = {settings.address} & own_addresses()
            self._session = Session(Router(self._directory / "frr", frr, listen=own))
        self.link = Link(
            settings.controllers.places,
            settings.controllers.tls,
            lambda: encode(self.report()),
            self._take,
            self._link_changed,
        )
        self.ring: Ring | None = None  # as the kernel has it
        self._ring_known = False
        self._handover = Handover(self._directory / "handover.json")
        self._flows: tuple[int, Counters | None] = (0, None)
        self._ring_failed: tuple[object, float] = (None, 0.0)  # what could not be done, when
        self._ended = False
        self._on_change = on_change
        self._withdrawn = False  # for good: it is leaving
        self._due = asyncio.Event()
        self._hurry_until = 0.0
        self._looked = asyncio.Event()
        self._listening: tuple[int, frozenset[str]] = (0, frozenset())  # life, addresses
        self._load: tuple[int, dict[str, int], float] = (0, {}, 0.0)
        self._overflows: dict[str, int] = {}
        self._cpu_at: tuple[int, float, float] = (0, 0.0, 0.0)  # life, when, seconds used by then

    # ── what it is ──────────────────────────────────────────────────────────────────────────

    @property
    def process(self) -> EngineProcess | None:
        return self._engines.running.get(self.settings.name)

    @property
    def life(self) -> int:
        """A number of the Envoy process; 0: there is none."""
        process = self.process
        if process is None or process.pid is None:
            return 0
        ticks = start_ticks(process.pid)
        return abs(hash64(f"{boot_id()} {process.pid} {ticks}")[0]) >> 11 or 1

    @property
    def alive(self) -> bool:
        process = self.process
        return process is not None and process.pid is not None and not process.hangs

    def report(self) -> Report:
        process, me = self.process, self.settings
        connections, requests, cpu = self._load
        config = self._session.config if self._session is not None else None
        bounds = self._engines.bounds
        return Report(
            name=me.name,
            group=me.group,
            address=me.address,
            router_id=me.router_id,
            snat=me.snat,
            life=self.life,
            alive=self.alive,
            restarts=process.restarts if process is not None else 0,
            last_exit=process.last_exit if process is not None else "",
            order=self.order.number if self.order is not None else 0,
            announced=_addresses(config, lambda state: state is not VipState.HELD),
            standby=_addresses(config, lambda state: state is VipState.STANDBY),
            answered=_addresses(config, lambda state: state is VipState.ANSWERED),
            observed=self.observed,
            problems=tuple(self.problems[key] for key in sorted(self.problems)),
            leaving=self.leaving,
            connections=connections,
            requests=requests,
            overflows=self._overflows,
            cpu=cpu,
            concurrency=me.concurrency,
            version=__version__,
            ring=self.ring.members if self.ring is not None else (),
            flows=self._flows[0],
            handed=self._flows[1],
            ended=self._ended,
            connection_limit=bounds.connections,
            bounds=tuple(one for one in (bounds.cut, not_confined(bounds)) if one),
        )

    # ── life ────────────────────────────────────────────────────────────────────────────────

    async def run(self, stop: asyncio.Event, at_once: asyncio.Event) -> None:
        """Serve until ``stop``, then leave gracefully, cut short by ``at_once``.

        Raises `EngineError` when its directory can't be used.
        """
        for file in (self._directory, self._directory / "frr"):
            self._make(file)
        if self._identity is None:
            return await self._serve(stop, at_once)
        self._identity.on_change = self._identity_changed
        kept = asyncio.create_task(self._identity.run())
        waits = [asyncio.create_task(one) for one in (self._identity.there(), stop.wait())]
        try:
            await asyncio.wait([kept, *waits], return_when=asyncio.FIRST_COMPLETED)
            if kept.done():
                kept.result()  # it ends by a fault alone
            if not stop.is_set():
                await self._serve(stop, at_once)
        finally:
            for task in (kept, *waits):
                task.cancel()
            await asyncio.gather(kept, *waits, return_exceptions=True)

    async def _serve(self, stop: asyncio.Event, at_once: asyncio.Event) -> None:
        me = self.settings
        self._set_sysctls()
        self._engines.open()
        own = Loopback(self._directory / "own.json")
        if me.snat:
            try:
                await own.add([me.snat])
            except AddressError as err:
                self.problems["snat"] = f"{me.snat} can't be had: {err}"
        await self._engines.ensure(me.group, [me.name])
        self._remember_order()
        self._changed()
        tasks = [
            asyncio.create_task(one)
            for one in (self._route(), self._look(), self._renew(), self.link.run())
        ]
        stopped = asyncio.create_task(stop.wait())
        try:
            done, _ = await asyncio.wait([stopped, *tasks], return_when=asyncio.FIRST_COMPLETED)
            for task in done - {stopped}:
                task.result()  # none ends by itself but by a fault
            leaving = asyncio.create_task(self._leave())
            hurried = asyncio.create_task(at_once.wait())
            await asyncio.wait([leaving, hurried], return_when=asyncio.FIRST_COMPLETED)
            for task in (leaving, hurried):
                task.cancel()
            await asyncio.gather(leaving, hurried, return_exceptions=True)
        finally:
            for task in (stopped, *tasks):
                task.cancel()
            await asyncio.gather(stopped, *tasks, return_exceptions=True)
            if self._session is not None:
                with contextlib.suppress(AddressError, SessionError, OSError):
                    await self._session.stop()
            await self._engines.stop_all(0)
            if self.ring is not None:
                with contextlib.suppress(HandoverError, OSError):
                    await self._handover.remove()
            with contextlib.suppress(AddressError):
                await own.keep_only(())
            (self._directory / "order.json").unlink(missing_ok=True)

    @staticmethod
    def _make(directory: Path) -> None:
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o755)
        except OSError as err:
            raise EngineError(
                f"run directory {directory} can't be used: {err.strerror}."
                " Make it writable or choose another with --state."
            ) from err

    def _set_sysctls(self) -> None:
        for name, value in _SYSCTLS.items():
            path = Path("/proc/sys") / name
            try:
                if path.read_text().strip() != value:
                    path.write_text(value)
            except OSError as err:
                # Only a router on the same segment could be misled, and only by ARP.
                log.warning("event=sysctl_not_set name=%s why=%r", name, err.strerror)

    async def _leave(self) -> None:
        """Announced as about to go; withdrawn; gone when the last connection is over."""
        me = self.settings
        self.leaving = True
        log.info("event=leaving se=%s", me.name)
        self._changed()
        if self._session is not None and self._session.config is not None:
            await asyncio.sleep(me.drained_s)
            self._withdrawn = True
            self._changed()
            await asyncio.sleep(min(me.drained_s, 1.0))  # routers take it in
        await self._engines.stop([me.name], me.flows_s)
        if self.ring is not None and len(self.ring.members) > 1:
            self._ended = True
            self._tell()
            await asyncio.sleep(_HEARD_S)

    # ── what it is told ─────────────────────────────────────────────────────────────────────

    def _take(self, raw: bytes) -> None:
        try:
            order = decode_order(raw)
        except msgspec.MsgspecError as err:
            # It may hold a password: only where the fault is may be said.
            self.problems["order"] = f"an order of the controller can't be read: {err}"
            self._changed()
            return
        self.problems.pop("order", None)
        self.order = order
        part = self._directory / "order.part"
        try:
            with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(raw)
            part.replace(self._directory / "order.json")
        except OSError as err:
            log.warning("event=order_not_kept why=%r", err.strerror)
        self._changed()

    def _remember_order(self) -> None:
        """What an earlier life of ours was told, if its Envoy is there still."""
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            order = decode_order((self._directory / "order.json").read_bytes())
            if order.life == self.life:
                self.order = order

    def _changed(self) -> None:
        self._due.set()
        self._hurry_until = time.monotonic() + _HURRY_FOR_S
        self._looked.set()
        self._tell()

    def _tell(self) -> None:
        self.link.tell()
        self._on_change(self.report())

    def _link_changed(self) -> None:
        if self.link.why:
            self.problems["controller"] = f"no controller: {self.link.why}"
        else:
            self.problems.pop("controller", None)
        self._tell()

    def _identity_changed(self) -> None:
        assert self._identity is not None
        if why := self._identity.why:
            self.problems["certificate"] = f"no certificate: {why}"
        else:
            self.problems.pop("certificate", None)
        self._tell()

    # ── what it does ────────────────────────────────────────────────────────────────────────

    def wanted(self) -> RouterConfig | None:
        """What the router must do now; None: nobody has said yet."""
        if (order := self.order) is None:
            return None
        router = order.router
        serves = self.alive and order.life == self.life and not self._withdrawn
        life, listening = self._listening
        vips = tuple(
            v
            if serves and life == self.life and v.address in listening
            else msgspec.structs.replace(v, state=VipState.HELD)
            for v in router.vips
        )
        router = msgspec.structs.replace(router, vips=vips)
        if self.leaving:
            router = msgspec.structs.replace(router, graceful_shutdown=True)
        return router

    async def _route(self) -> None:
        while True:
            await self._due.wait()
            self._due.clear()
            session = self._session
            await self._hand_over()
            await self._listen()
            wanted = self.wanted()
            if session is None or wanted is None or wanted == session.config:
                continue
            try:
                if session.router.daemons:
                    await session.apply(wanted)
                else:
                    await session.start(wanted)
            except (AddressError, FrrError, OSError, SessionError, ValueError) as err:
                if self.problems.get("router") != str(err):
                    log.warning("event=router_not_told why=%r", str(err))
                self.problems["router"] = str(err)
                self._tell()
                await asyncio.sleep(_AGAIN_S)
                self._due.set()
                continue
            self.problems.pop("router", None)
            self.problems.pop("segment", None)
            if session.segment.unanswered:
                self.problems["segment"] = "; ".join(session.segment.unanswered.values())
            self._hurry_until = time.monotonic() + _HURRY_FOR_S
            self._looked.set()
            self._tell()

    async def _ring(self, asked: HandOver) -> Ring:
        """What an order asks for, with what is known here."""
        device, mtu = await interface_of(self.settings.address)
        return Ring(
            me=self.settings.name,
            members=asked.members,
            vips=asked.vips,
            device=device,
            mtu=mtu,
            also=asked.also,
            back=asked.back,
            forwards=_is_router(),
        )

    async def _hand_over(self) -> None:
        """Bring the kernel to the ring of the order; what keeps it from that is a problem."""
        if (order := self.order) is None or self.leaving:
            return
        asked, (failed, at) = order.ring, self._ring_failed
        if failed is not None and failed == asked and time.monotonic() - at < _RING_AGAIN_S:
            return
        try:
            ring = await self._ring(asked) if asked is not None else None
            if ring == self.ring and self._ring_known:
                return
            if ring is not None:
                await self._handover.apply(ring)
            else:
                await self._handover.remove()  # also what an earlier life has left
            self._ring_known = True
        except (HandoverError, OSError, ValueError) as err:
            self._ring_known = True
            if asked is None:  # nothing can be there where nothing can be taken away
                self.ring = None
                return
            self.ring, self._ring_failed = None, (asked, time.monotonic())
            text = f"{CANT_HAND_OVER}: {err}"
            if self.problems.get("handover") != text:
                log.warning("event=handover_not_applied why=%r", str(err))
            self.problems["handover"] = text
            asyncio.get_running_loop().call_later(_RING_AGAIN_S, self._due.set)
        else:
            self.ring, self._ring_failed = ring, (None, 0.0)
            self.problems.pop("handover", None)
        self._tell()

    async def _listen(self) -> None:
        """Ask Envoy where it listens, when an address is to be announced that it lacked."""
        life, order = self.life, self.order
        if self._listening[0] != life:
            self._listening = (life, frozenset())
        if order is None or order.life != life or not self.alive:
            return
        wanted = {v.address for v in order.router.vips if v.state is not VipState.HELD}
        if wanted <= self._listening[1]:
            return
        with contextlib.suppress(EngineError):
            admin = self._engines.admin(self.settings.name, timeout_s=1.0)
            found = frozenset(address for address, _ in (await admin.listeners()).values())
            if life == self.life:
                self._listening = (life, found)
        if not wanted <= self._listening[1]:
            asyncio.get_running_loop().call_later(_HURRIED_S, self._due.set)

    async def _look(self) -> None:
        """What the router does, and how busy Envoy is: at once after a change."""
        last = counted = 0.0
        while True:
            pause = _HURRIED_S if self._unsettled() else _LOOK_S
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._looked.wait()
            if self._looked.is_set():
                self._looked.clear()
                await asyncio.sleep(_HURRIED_S)
            before = (self.observed, tuple(self.problems.items()))
            await self._observe()
            if time.monotonic() - last >= _LOOK_S:
                last = time.monotonic()
                await self._measure()
                await self._forget_ended()
            if time.monotonic() - counted >= _COUNT_S:
                counted = time.monotonic()
                await self._count_flows()
            if (_kept(self.observed), tuple(self.problems.items())) != (
                _kept(before[0]),
                before[1],
            ):
                self._tell()

    def _unsettled(self) -> bool:
        if time.monotonic() > self._hurry_until or self._session is None:
            return False
        config = self._session.config
        if config is None or self.observed is None:
            return config is not None
        wanted = {peer.address: set(config.told(peer)) for peer in config.peers}
        return any(
            set(self.observed.advertised.get(peer, ())) != told for peer, told in wanted.items()
        )

    async def _observe(self) -> None:
        session = self._session
        if session is None or session.config is None:
            return
        down = [
            f"{daemon} doesn't run: {record.last_exit or 'it is starting'}"
            for daemon, record in session.router.daemons.items()
            if record.pid is None
        ]
        try:
            self.observed = await session.observe()
        except (AddressError, OSError, SessionError) as err:
            self.observed = None
            down = down or [str(err)]
        if down:
            self.problems["daemons"] = "; ".join(down)
        else:
            self.problems.pop("daemons", None)

    async def _measure(self) -> None:
        process = self.process
        if process is None or process.pid is None:
            self._load = (0, {}, 0.0)
            return
        admin = self._engines.admin(self.settings.name, timeout_s=1.0)
        with contextlib.suppress(EngineError):
            connections = await admin.open_connections()
            requests = await admin.requests_by_virtual_service()
            self._overflows = await admin.overflows()
            self._load = (connections, requests, self._cpu(process.pid))

    async def _forget_ended(self) -> None:
        """Connections that ended here are not in the way of others' that have their 5-tuples."""
        ring = self.ring
        if ring is not None and len(ring.members) > 1:
            try:
                await self._handover.forget_ended(ring.vips)
            except HandoverError as err:
                self.problems["ended"] = f"{CANT_HAND_OVER} of ports that clients use again: {err}"
            else:
                self.problems.pop("ended", None)

    async def _count_flows(self) -> None:
        if (ring := self.ring) is None:
            self._flows = (0, None)
            return
        try:
            self._flows = (await self._handover.owned(*ring.vips), await self._handover.counters())
        except (HandoverError, msgspec.MsgspecError) as err:
            # Somebody has taken the rules away, as a firewall that is loaded anew does.
            log.warning("event=handover_lost why=%r", str(err))
            self.ring = None
            self._changed()

    def _cpu(self, pid: int) -> float:
        """Of one processor, since it was asked last."""
        life, now = self.life, time.monotonic()
        used = cpu_s(pid)
        before, self._cpu_at = self._cpu_at, (life, now, used)
        if before[0] != life or now <= before[1]:
            return 0.0
        return round((used - before[2]) / (now - before[1]), 3)

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(_RENEW_S)
            self._tell()


def _addresses(config: RouterConfig | None, wanted: Callable[[VipState], bool]) -> tuple[str, ...]:
    vips = config.vips if config is not None else ()
    return tuple(vip.address for vip in vips if wanted(vip.state))


def _is_router() -> bool:
    """Whether this machine forwards for others: what we set is an interface's own setting."""
    return Path("/proc/sys/net/ipv4/ip_forward").read_text().strip() == "1"


def _kept(observed: Observed | None) -> object:
    """What of an observation is news when it changes: no ages, no counts."""
    if observed is None:
        return None
    return (
        [(s.peer, s.state, s.why) for s in observed.bgp],
        [(s.peer, s.state) for s in observed.bfd],
        observed.advertised,
        observed.addresses,
    )
