"""The walkthrough's topology, running.

```
 client ── upstream ── switch ─┬─ se-1 ─┬─ pods     client   10.10.15.10
           AS 6000             ├─ se-2 ─┤           upstream 10.10.15.1 and 10.10.16.250
                               └─ ...  ─┘           se-N     10.10.16.191 + N and 10.10.20.191 + N
                                 AS 5000            pods     10.10.20.11 to .13
```

Every part is a network namespace of its own, so nothing of it touches the machine's network.  The
upstream router chooses by policy 3 and a known seed, so `akocore.EcmpGroup` tells its choice.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
import time
from collections.abc import Callable, Collection, Coroutine, Iterable, Sequence
from enum import StrEnum
from ipaddress import IPv4Address, ip_address, ip_network
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from akocore.engines.frr.config import RouterConfig, Vip
from akocore.engines.frr.observe import BfdSession, Observed, bfd_sessions
from akocore.engines.frr.process import Frr, Router, end
from akocore.engines.frr.session import Session, observe
from akocore.engines.handover import Handover, Member, Ring, bring, looks_back
from akocore.kube.objects import AddressRange, BgpPeer, BgpProfile, NetworkSpec
from akocore.lab.namespaces import LabError, Namespaces
from akocore.lab.upstream import NextHop, Upstream, bfd_table, next_hops, render, route_table
from akocore.translate.rhi import router_config

__all__ = ["Engine", "EngineState", "LabError", "Plan", "Topology", "sweep"]

CLIENT, UPSTREAM, SWITCH, PODS = "client", "upstream", "switch", "pods"
POD_ADDRESSES = ("10.10.20.11", "10.10.20.12", "10.10.20.13")
POD_PORT = 8080

_ROUTER = BgpPeer(
    address="10.10.16.250",
    remote_as=6000,
    bfd=True,
    connect_timer=1,
    keepalive_timer=3,  # BFD takes seconds to come up, and finds nothing until then
    hold_timer=9,
)
_WALKTHROUGH = NetworkSpec(
    subnet="10.10.16.0/24",
    vip_ranges=(AddressRange(begin="10.10.16.224", end="10.10.16.249"),),
    se_ranges=(AddressRange(begin="10.10.16.192", end="10.10.16.223"),),
    bgp=BgpProfile(
        local_as=5000,
        peers=(_ROUTER,),
    ),
)
_WALKTHROUGH_V6 = NetworkSpec(
    subnet="fd00:10:10:16::/64",
    vip_ranges=(AddressRange(begin="fd00:10:10:16::224", end="fd00:10:10:16::249"),),
    se_ranges=(AddressRange(begin="fd00:10:10:16::192", end="fd00:10:10:16::1b1"),),
    bgp=BgpProfile(
        local_as=5000,
        peers=(msgspec.structs.replace(_ROUTER, address="fd00:10:10:16::250"),),
    ),
)


class Plan(Struct, frozen=True, kw_only=True, rename="camel"):
    """What a lab is made of.  Each network's first peer is the upstream router.

    A network whose VIPs nobody has is not spoken of by BGP.  With ``handover`` no connection
    breaks when Service Engines come and go; see `akocore.engines.handover`.
    """

    prefix: str = "ako-"
    networks: dict[str, NetworkSpec] = msgspec.field(
        default_factory=lambda: {
            "REGA_EXT_UPLINKB_3016": _WALKTHROUGH,
            "REGA_EXT_UPLINKB_3016_V6": _WALKTHROUGH_V6,
        }
    )
    upstream: Upstream = Upstream(ranges=("10.10.16.192/27", "fd00:10:10:16::/64"))
    passwords: dict[str, str] = {}  # of Secrets, by "namespace/name"
    seed: int = 5000_6000  # of the upstream kernel's hash; kernels before 6.11 have none
    handover: bool = False


class EngineState(StrEnum):
    UP = "up"
    KILLED = "killed"  # its processes were
    CUT = "cut"  # off the network


class Engine(Struct, frozen=True, kw_only=True):
    """One Service Engine of the lab."""

    number: int
    state: EngineState = EngineState.UP
    role: str = ""  # its name with the controller that drives it; "": nobody does

    @property
    def name(self) -> str:
        return f"se-{self.number}"


class _Lab(Struct, frozen=True, kw_only=True, rename="camel"):
    """What a later command must know of a lab."""

    plan: Plan
    vips: tuple[str, ...] = ()
    engines: tuple[Engine, ...] = ()


class Topology:
    """One lab.  ``directory`` is its own; sockets in it want a short name.

    While this process has it, ended daemons are started again; after `release` they run on,
    and a `Topology` opened on the same directory takes them over.
    """

    def __init__(self, directory: Path, frr: Frr, plan: Plan | None = None) -> None:
        self.directory = directory.absolute()
        self.frr = frr
        self._lab = _Lab(plan=plan or Plan())
        self.namespaces = Namespaces(self.plan.prefix)
        self.sessions: dict[str, Session] = {}
        self._handovers: dict[str, Handover] = {}
        self.upstream = self.router(UPSTREAM)

    @classmethod
    def open(cls, directory: Path, frr: Frr) -> Topology:
        """The lab that is up in ``directory``.  Raises `LabError` when there is none."""
        try:
            raw = (directory / "lab.json").read_bytes()
            lab = msgspec.json.decode(raw, type=_Lab)
        except FileNotFoundError:
            raise LabError(f"no lab is up in {directory}. Run `akocore lab up`.") from None
        except (OSError, msgspec.MsgspecError) as err:
            raise LabError(f"{directory}/lab.json can't be read: {err}.") from err
        topology = cls(directory, frr, lab.plan)
        topology._lab = lab
        if UPSTREAM not in topology.namespaces.names():
            raise LabError(f"the lab of {directory} is gone. Run `akocore lab down`.")
        return topology

    @property
    def plan(self) -> Plan:
        return self._lab.plan

    @property
    def vips(self) -> tuple[str, ...]:
        return self._lab.vips

    @property
    def engines(self) -> dict[str, Engine]:
        """Every Service Engine, also one that was killed or cut off."""
        return {engine.name: engine for engine in self._lab.engines}

    # ─── up and down

    async def up(self, engines: int = 2, vips: Collection[str] = ()) -> None:
        """Bring it up; returns when all daemons run, before routes are there (`until_hops`).

        Raises `LabError` or `FrrError`; then nothing stays.
        """
        for vip in vips:
            self._network_of(vip)
        for network in self.plan.networks:
            self.address(max(engines, 1), network)
        if self.namespaces.names():
            raise LabError(f"namespaces {self.plan.prefix}* exist already. Run `akocore lab down`.")
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o755)
        self._lab = msgspec.structs.replace(self._lab, vips=tuple(vips))
        try:
            await self._lay()
            await self.upstream.start(render(self.plan.upstream))
            _check_running(UPSTREAM, self.upstream)
            all_ = [Engine(number=number) for number in range(1, engines + 1)]
            await _all(self._wire(engine) for engine in all_)
            await self._hand_over([engine.name for engine in all_])
            await _all(self._start_router(one.name, self.config(one)) for one in all_)
        except BaseException:
            await self.down()
            raise
        self._remember(engines=tuple(all_))

    async def down(self) -> None:
        """Remove everything."""
        self.release()
        await sweep(self.directory, self.plan.prefix)

    def release(self) -> None:
        """Leave it up, and give up its daemons."""
        for session in self.sessions.values():
            session.release()
        self.sessions.clear()
        self.upstream.release()

    # ─── Service Engines

    def _is_ours(self) -> None:
        """Raises `LabError` when a controller drives the Service Engines."""
        if any(engine.role for engine in self._lab.engines):
            raise LabError(
                "a controller drives this lab: scale with `akocore scale`, change VIPs by its"
                " manifests; `cut` and `heal` work here."
            )

    async def add_se(self) -> str:
        """One more Service Engine, with all VIPs; its name."""
        self._is_ours()
        taken = {engine.number for engine in self._lab.engines}
        engine = Engine(number=next(n for n in range(1, len(taken) + 2) if n not in taken))
        try:
            await self._wire(engine)
            there = self._up()
            await self._hand_over([*there, engine.name], there)
            await self._start_router(engine.name, self.config(engine))
        except BaseException:
            await self._drop(engine.name)
            await self._hand_over(self._up())
            raise
        self._remember(engines=(*self._lab.engines, engine))
        return engine.name

    async def wire_se(self, name: str, config: Callable[[str], RouterConfig]) -> Engine:
        """A Service Engine for a controller: cabled, with a router that does ``config(address)``.

        ``name``: as the controller calls it.
        """
        taken = {engine.number for engine in self._lab.engines}
        number = next(n for n in range(1, len(taken) + 2) if n not in taken)
        engine = Engine(number=number, role=name)
        address = self.address(number, next(iter(self.plan.networks)))
        self._remember(engines=(*self._lab.engines, engine))
        try:
            await self._wire(engine)
            await self._start_router(engine.name, config(address))
        except BaseException:
            await self.unwire_se(engine.name)
            raise
        return engine

    async def lay_se(self, number: int) -> Engine:
        """The cables of a Service Engine that somebody else runs there."""
        engine = Engine(number=number, role="agent")
        await self._wire(engine)
        self._remember(engines=(*self._lab.engines, engine))
        return engine

    async def unwire_se(self, name: str) -> None:
        """Remove what `wire_se` made, at once."""
        await self._drop(name)
        self._remember(engines=tuple(e for e in self._lab.engines if e.name != name))

    async def remove_se(
        self, name: str, *, drain_s: float = 1.0, hold_s: float = 1.0, flows_s: float = 60.0
    ) -> None:
        """Take a Service Engine away without losing a packet; see `Session.leave`.

        With handover it stays, without a route, till its last connection is over, at most for
        ``flows_s`` more.
        """
        self._is_ours()
        if self._engine(name).state is EngineState.UP:
            there = self._up()
            others = [other for other in there if other != name]

            async def flows_are_over() -> None:
                if self.plan.handover:
                    await self.handover(name).drained(self.vips, flows_s)
                    await self._hand_over(others)

            await self._hand_over(there, there, others)
            session = await self.session(name)
            await session.leave(drain_s=drain_s, hold_s=hold_s, until=flows_are_over)
        await self._drop(name)
        self._remember(engines=tuple(e for e in self._lab.engines if e.name != name))

    async def kill_se(self, name: str) -> None:
        """End its processes as a crash would.  Nobody starts them again, but `heal_se`."""
        self._is_ours()
        self._engine(name)
        if (session := self.sessions.pop(name, None)) is not None:
            session.release()
        end(self.directory / name)
        there = self._up()
        self._set_state(name, EngineState.KILLED)
        await self._hand_over(self._up(), there)

    async def cut_se(self, name: str) -> None:
        """Take it off the network: its port of the switch goes down, its processes run on."""
        await self.namespaces.ip(SWITCH, [f"link set {self._engine(name).name} down"])
        if self._engine(name).role:
            return  # its controller finds out
        there = self._up()
        self._set_state(name, EngineState.CUT)
        await self._hand_over(self._up(), there)

    async def heal_se(self, name: str) -> None:
        """Undo `kill_se` and `cut_se`."""
        if self._engine(name).role:
            await self.namespaces.ip(SWITCH, [f"link set {name} up"])
            return
        there = self._up()
        self._set_state(name, EngineState.UP)
        await self._hand_over(self._up(), there)
        await self.namespaces.ip(SWITCH, [f"link set {name} up"])
        await (await self.session(name)).apply(self.config(self.engines[name]))

    async def set_vips(self, vips: Collection[str]) -> None:
        """Have exactly these VIPs on every Service Engine that is up; others are withdrawn."""
        self._is_ours()
        for vip in vips:
            self._network_of(vip)
        self._remember(vips=tuple(vips))
        await self._hand_over(self._up())
        for name, engine in self.engines.items():
            if engine.state is EngineState.UP:
                await (await self.session(name)).apply(self.config(engine))

    async def withdraw(self, vip: str, *, drain_s: float = 1.0, hold_s: float = 1.0) -> None:
        """Take a VIP off every Service Engine that is up; see `Session.withdraw`."""
        self._is_ours()
        sessions = [await self.session(name) for name in self._up()]
        await asyncio.gather(*(s.withdraw([vip], drain_s=drain_s, hold_s=hold_s) for s in sessions))
        self._remember(vips=tuple(v for v in self.vips if ip_address(v) != ip_address(vip)))
        await self._hand_over(self._up())

    async def session(self, name: str) -> Session:
        """The session of a Service Engine that is up; its daemons are adopted, or started."""
        engine = self._engine(name)
        if engine.state is not EngineState.UP:
            raise LabError(f"{name} is {engine.state}. Run `akocore lab heal {name}`.")
        if name not in self.sessions:
            session = Session(self.router(name))
            await session.start(self.config(engine))
            self.sessions[name] = session
        return self.sessions[name]

    def know(self, vips: Sequence[str]) -> None:
        """A controller has these VIPs now, for who looks at the lab."""
        if tuple(vips) != self.vips:
            self._remember(vips=vips)

    async def join(
        self, members: Sequence[str], before: Sequence[str], vips: Sequence[str]
    ) -> None:
        """Have ``members`` hand flows of ``vips`` over, before routes are theirs.

        ``before``: who has the routes now.  For a controller, which has no other way to tell.
        """
        self._remember(vips=vips)
        await self._hand_over(members, before)

    async def part(self, members: Sequence[str], after: Sequence[str]) -> None:
        """``members`` have the routes now, and just ``after`` are to have them."""
        await self._hand_over(members, members, after)

    def handover(self, name: str) -> Handover:
        """What hands flows of a Service Engine over."""
        if name not in self._handovers:
            file = self.directory / f"{name}-handover.json"
            self._handovers[name] = Handover(file, self.namespaces.path(name))
        return self._handovers[name]

    def config(self, engine: Engine) -> RouterConfig:
        """What the router of a Service Engine must do."""
        main = next(iter(self.plan.networks))
        secrets = ((key.partition("/"), value) for key, value in self.plan.passwords.items())
        passwords = {(namespace, name): value for (namespace, _, name), value in secrets}
        config = router_config(
            engine.name,
            self.address(engine.number, main),
            {name: self.plan.networks[name] for name in self._spoken_of()},
            [Vip(address=v, network=self._network_of(v)) for v in self.vips],
            passwords=passwords,
        )
        if config is None:
            raise LabError(f"network {main} has no BGP. Give it a profile.")
        return config

    def address(self, number: int, network: str) -> str:
        """Where a Service Engine is on a network."""
        (found, *_) = self.plan.networks[network].se_ranges
        begin, end_ = ip_address(found.begin), ip_address(found.end)
        if int(begin) + number - 1 > int(end_):
            raise LabError(f"{network} has addresses for {int(end_) - int(begin) + 1} engines.")
        return str(begin + number - 1)

    # ─── looking at it

    async def next_hops(self, vip: str) -> tuple[NextHop, ...]:
        """The ways to a VIP in the upstream router's kernel, in its order; (): no route."""
        family = f"-{ip_address(vip).version}"
        words = ["ip", family, "-j", "route", "show", vip]
        return next_hops(await self.namespaces.run(UPSTREAM, words))

    async def until_hops(self, vip: str, hops: int, within_s: float = 10.0) -> float:
        """Seconds until the upstream router's kernel has so many ways to a VIP.

        Raises `LabError` when it doesn't in ``within_s``.
        """
        start = time.perf_counter()
        while len(found := await self.next_hops(vip)) != hops:
            if time.perf_counter() - start > within_s:
                raise LabError(
                    f"{vip} has {len(found)} next hops after {within_s:g} s, not {hops}."
                )
            await asyncio.sleep(0.002)
        return time.perf_counter() - start

    async def until_watched(self, within_s: float = 10.0) -> float:
        """Seconds until BFD watches every Service Engine that is up: after that a cut is found."""
        start = time.perf_counter()
        while True:
            up = {session.peer for session in await self.bfd() if session.state == "up"}
            peers = {
                self.address(engine.number, network)
                for engine in self.engines.values()
                if engine.state is EngineState.UP
                for network in self._spoken_of()
            }
            if peers <= up:
                return time.perf_counter() - start
            if time.perf_counter() - start > within_s:
                missing = ", ".join(sorted(peers - up))
                raise LabError(f"BFD with {missing} is not up after {within_s:g} s.")
            await asyncio.sleep(0.01)

    async def observe(self, name: str) -> Observed:
        """What a Service Engine's router does.  Raises `VtyError` when it was killed."""
        self._engine(name)
        session = Session(self.router(name))
        return await observe(session.router, session.loopback)

    async def bfd(self) -> tuple[BfdSession, ...]:
        """The upstream router's BFD sessions."""
        (answer,) = await self.upstream.ask("bfdd", ["show bfd peers json"])
        return bfd_sessions(answer)

    async def show_bgp_summary(self) -> str:
        """``show bgp summary`` of the upstream router."""
        (answer,) = await self.upstream.ask("bgpd", ["show bgp summary"])
        return answer.strip()

    async def show_route(self, vip: str) -> str:
        """``show ip route`` of the upstream router, for one VIP."""
        ip = ip_address(vip)
        family = "ip" if ip.version == 4 else "ipv6"
        prefix = f"{ip}/{ip.max_prefixlen}"
        no_route = (1,)
        (answer,) = await self.upstream.ask(
            "zebra", [f"show {family} route {prefix} json"], no_route
        )
        return route_table(prefix, answer)

    async def show_bfd(self) -> str:
        """``show bfd neighbors`` of the upstream router."""
        return bfd_table(await self.bfd())

    # ─── laying cables

    async def _lay(self) -> None:
        await self.namespaces.add([CLIENT, UPSTREAM, SWITCH, PODS])
        await self._quiet(CLIENT, UPSTREAM, SWITCH, PODS)
        await self.namespaces.sysctl(
            UPSTREAM,
            {
                "net/ipv4/ip_forward": 1,
                "net/ipv6/conf/all/forwarding": 1,
                # Policy 3: as hardware does, by the packet alone; policy 1 would use the hash
                # that a local socket has put on its packet.
                "net/ipv4/fib_multipath_hash_policy": 3,
                "net/ipv4/fib_multipath_hash_fields": 0x37,
                "net/ipv6/fib_multipath_hash_policy": 3,
                "net/ipv6/fib_multipath_hash_fields": 0x37,
                "net/ipv4/fib_multipath_hash_seed": self.plan.seed,
            },
        )
        await self.namespaces.connect(
            (CLIENT, "eth0", UPSTREAM, "eth0"), (UPSTREAM, "eth1", SWITCH, UPSTREAM)
        )
        routers = [
            f"addr add {peer.address}/{ip_network(spec.subnet).prefixlen} dev eth1 nodad"
            for spec in self.plan.networks.values()
            if spec.bgp is not None
            for peer in spec.bgp.peers[:1]
        ]
        # An address of its own: else it is that of a port, another one when a port is added, and
        # neighbors lose the pods until they ask again.
        bridge = ["link add br0 address 02:00:00:00:00:01 type bridge", "link set br0 up"]
        await asyncio.gather(
            self.namespaces.ip(
                CLIENT,
                [
                    "addr add 10.10.15.10/24 dev eth0",
                    "addr add fd00:10:10:15::10/64 dev eth0 nodad",
                    "link set eth0 up",
                    "route add default via 10.10.15.1",
                    "route add default via fd00:10:10:15::1",
                ],
            ),
            self.namespaces.ip(
                UPSTREAM,
                [
                    "addr add 10.10.15.1/24 dev eth0",
                    "addr add fd00:10:10:15::1/64 dev eth0 nodad",
                    *routers,
                    "link set eth0 up",
                    "link set eth1 up",
                ],
            ),
            self.namespaces.ip(
                SWITCH, [*bridge, f"link set {UPSTREAM} master br0", f"link set {UPSTREAM} up"]
            ),
            self.namespaces.ip(
                PODS, [*bridge, *(f"addr add {address}/24 dev br0" for address in POD_ADDRESSES)]
            ),
        )
        self.namespaces.spawn(
            PODS,
            [
                *(sys.executable, "-m", "akocore.lab.echo"),
                *(f"{a}:{POD_PORT}=pod-{n}" for n, a in enumerate(POD_ADDRESSES, start=1)),
            ],
            self.directory / "pods.log",
        )

    async def _quiet(self, *names: str) -> None:
        """No waiting for duplicate addresses, no filters of bridges."""
        values = {
            "net/ipv6/conf/all/accept_dad": 0,
            "net/ipv6/conf/default/accept_dad": 0,
            "net/bridge/bridge-nf-call-iptables": 0,
            "net/bridge/bridge-nf-call-ip6tables": 0,
        }
        await asyncio.gather(*(self.namespaces.sysctl(name, values) for name in names))

    async def _wire(self, engine: Engine) -> None:
        number, name = engine.number, engine.name
        addresses = [
            f"addr add {self.address(number, network)}/{ip_network(spec.subnet).prefixlen}"
            f" dev eth0 nodad"
            for network, spec in self.plan.networks.items()
        ]
        gateways = [
            f"route add default via {peer.address}"
            for spec in self.plan.networks.values()
            if spec.bgp is not None
            for peer in spec.bgp.peers[:1]
        ]
        pod_side = IPv4Address("10.10.20.191") + number
        await self.namespaces.add([name])
        await self._quiet(name)
        await self.namespaces.sysctl(
            name,
            {
                # A VIP is on lo and in the subnet of eth0: only the router's route leads to it.
                "net/ipv4/conf/all/arp_ignore": 1,
                "net/ipv4/conf/all/arp_announce": 2,
                "net/ipv4/conf/all/rp_filter": 0,
                "net/ipv4/conf/default/rp_filter": 0,
                # Listening comes before the address, announcing after it.
                "net/ipv4/ip_nonlocal_bind": 1,
                "net/ipv6/ip_nonlocal_bind": 1,
            },
        )
        await self.namespaces.connect((name, "eth0", SWITCH, name), (name, "eth1", PODS, name))
        await asyncio.gather(
            *(
                self.namespaces.ip(switch, [f"link set {name} master br0", f"link set {name} up"])
                for switch in (SWITCH, PODS)
            ),
            self.namespaces.ip(
                name,
                [
                    *addresses,
                    f"addr add {pod_side}/24 dev eth1",
                    "link set eth0 up",
                    "link set eth1 up",
                    *gateways,
                ],
            ),
        )

    async def _start_router(self, name: str, config: RouterConfig) -> Session:
        session = self.sessions[name] = Session(self.router(name))
        await session.start(config)
        _check_running(name, session.router)
        return session

    async def _hand_over(
        self,
        members: Sequence[str],
        before: Sequence[str] = (),
        after: Sequence[str] | None = None,
    ) -> None:
        """Have ``members`` hand flows over to each other, before routes change to ``after``.

        ``after``: None: ``members``.  Without ``before`` each goes on to ask the side that it does.
        """
        if not self.plan.handover:
            return
        ring = tuple(self._member(name) for name in _in_order(members))
        also = tuple(self._member(name).address for name in self.engines)
        old, new = (_in_order(names) for names in (before, members if after is None else after))

        wanted = {}
        for name in _in_order(members):
            last = self.handover(name).ring
            back = looks_back(name, old, new) if old else last is not None and last.back
            wanted[name] = Ring(
                me=name, members=ring, vips=self.vips, mtu=1500, also=also, back=back
            )
        if wanted:
            await bring(self._handovers, wanted)

    def _member(self, name: str) -> Member:
        main = next(iter(self.plan.networks))
        return Member(name=name, address=self.address(int(name.removeprefix("se-")), main))

    async def _drop(self, name: str) -> None:
        if (session := self.sessions.pop(name, None)) is not None:
            session.release()
        await self.namespaces.remove([name])
        end(self.directory / name)
        shutil.rmtree(self.directory / name, ignore_errors=True)
        (self.directory / f"{name}-handover.json").unlink(missing_ok=True)

    # ─── small things

    def router(self, name: str) -> Router:
        """The daemons of a part of the lab."""
        return Router(self.directory / name, self.frr, self.namespaces.path(name))

    def _engine(self, name: str) -> Engine:
        try:
            return self.engines[name]
        except KeyError:
            there = ", ".join(self.engines) or "none"
            raise LabError(f"there is no Service Engine {name}; there is {there}.") from None

    def _up(self) -> list[str]:
        return [e.name for e in self.engines.values() if e.state is EngineState.UP]

    def _spoken_of(self) -> list[str]:
        """Networks that Service Engines announce: the first, and those of VIPs."""
        first = next(iter(self.plan.networks))
        return sorted({first, *(self._network_of(vip) for vip in self.vips)})

    def _network_of(self, vip: str) -> str:
        try:
            ip = ip_address(vip)
        except ValueError as err:
            raise LabError(f"{err}. Give a VIP as 10.10.16.224.") from err
        for name, spec in self.plan.networks.items():
            for found in spec.vip_ranges:
                begin, last = ip_address(found.begin), ip_address(found.end)
                if begin.version == ip.version and int(begin) <= int(ip) <= int(last):
                    return name
        ranges = ", ".join(
            f"{r.begin}-{r.end}" for spec in self.plan.networks.values() for r in spec.vip_ranges
        )
        raise LabError(f"{vip} is in no VIP range of the lab: choose from {ranges}.")

    def _set_state(self, name: str, state: EngineState) -> None:
        self._remember(
            engines=tuple(
                msgspec.structs.replace(e, state=state) if e.name == name else e
                for e in self._lab.engines
            )
        )

    def _remember(
        self, *, vips: Sequence[str] | None = None, engines: Sequence[Engine] | None = None
    ) -> None:
        self._lab = msgspec.structs.replace(
            self._lab,
            vips=self._lab.vips if vips is None else tuple(vips),
            engines=self._lab.engines if engines is None else tuple(engines),
        )
        part = self.directory / "lab.part"
        part.write_bytes(msgspec.json.format(msgspec.json.encode(self._lab)))
        part.chmod(0o600)
        part.replace(self.directory / "lab.json")


def _in_order(names: Iterable[str]) -> list[str]:
    """By number, and so by address, as the router's kernel has its next hops."""
    return sorted(names, key=lambda name: int(name.removeprefix("se-")))


def _check_running(name: str, router: Router) -> None:
    for daemon, record in router.daemons.items():
        if record.pid is None:
            raise LabError(f"{daemon} of {name} doesn't run: {record.last_exit or 'no zebra'}.")


async def _all(several: Iterable[Coroutine[Any, Any, object]]) -> None:
    """Await all to their end, also when one fails; then raise the first failure."""
    for outcome in await asyncio.gather(*several, return_exceptions=True):
        if isinstance(outcome, BaseException):
            raise outcome


async def sweep(directory: Path, prefix: str) -> None:
    """Remove all of a lab, whoever made it and however far it came."""
    namespaces = Namespaces(prefix)
    await namespaces.remove(namespaces.names())
    _clear(directory)


def _clear(directory: Path) -> None:
    if directory.is_dir():
        for child in directory.iterdir():
            end(child)
        shutil.rmtree(directory)
