"""A client, a router that hashes, and Service Engines that echo, in network namespaces.

The router's routes are set by hand: what is tried here is the Service Engines' kernels.
"""

from __future__ import annotations

import asyncio
import os
import sys
import textwrap
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import msgspec

from akocore.engines.handover import Handover, Member, Ring, bring, looks_back
from akocore.lab.namespaces import Namespaces

PREFIX = f"akoh-{os.getpid()}-"
VIP, VIP_6 = "10.10.16.224", "fd00:10:10:16::224"
CLIENT, CLIENT_6 = "10.10.15.10", "fd00:10:10:15::10"
OTHERS = [f"10.10.15.{n}" for n in range(11, 15)]

SERVER_CODE = textwrap.dedent("""
    import asyncio, sys

    class Echo(asyncio.Protocol):
        def connection_made(self, transport):
            self.transport = transport
        def data_received(self, data):
            self.transport.write(data) if data != b"q" else self.transport.close()

    async def main():
        loop = asyncio.get_running_loop()
        for address in sys.argv[1:]:
            await loop.create_server(Echo, address, 80, backlog=1024)
        print("listening", flush=True)
        await asyncio.Event().wait()

    asyncio.run(main())
""")

# Reads lines: "open COUNT", "ping" (a byte there and back on each that isn't broken), "close",
# "quit" (the server closes), "again" (the next ones come from the ports of the first), "send SIZE"
# (so many bytes there and back on each).
CLIENT_CODE = textwrap.dedent("""
    import socket, sys
    address, family = sys.argv[1], socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
    kept, first = [], 20_000
    for line in sys.stdin:
        word, *rest = line.split()
        if word == "open":
            ports = range(first, first + int(rest[0]))
            first = ports.stop
            for port in ports:
                one = socket.socket(family)
                one.settimeout(5)
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                one.bind((sys.argv[2], port))
                one.connect((address, 80))
                kept.append(one)
        elif word == "close":
            for one in kept:
                one.close()
            kept = []
        elif word == "again":
            first = 20_000
        elif word == "quit":
            for one in kept:
                one.send(b"q")
            for one in kept:
                one.recv(1)
                one.close()
            kept = []
        elif word == "send":
            whole = []
            for one in kept:
                try:
                    there = back = 0
                    while back < int(rest[0]):
                        there += one.send(bytes(min(60_000, int(rest[0]) - there)))
                        while back < there:
                            back += len(one.recv(60_000)) or 1 << 40
                    if back == int(rest[0]):
                        whole.append(one)
                except OSError:
                    pass
            print(len(kept) - len(whole), flush=True)
            kept = whole
            continue
        for one in kept:
            try:
                one.send(b"x")
            except OSError:
                pass
        whole = []
        for one in kept:
            try:
                if one.recv(1) == b"x":
                    whole.append(one)
            except OSError:
                pass
        print(len(kept) - len(whole), flush=True)
        kept = whole
""")


class Client:
    """Kept connections to a VIP."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def tell(self, words: str) -> int:
        """Open, ping or close; how many connections turned out to be broken."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{words}\n".encode())
        return int(await asyncio.wait_for(self._process.stdout.readline(), 30))

    async def end(self) -> None:
        if self._process.returncode is None:
            self._process.kill()
        await self._process.communicate()


class Rig:
    """``count`` Service Engines are there; the router knows those that `spread` was told.

    ``routed``: each is on a segment of its own, and the router between them.
    """

    def __init__(self, directory: Path, count: int, *, routed: bool = False) -> None:
        self.directory = directory
        self.count = count
        self.routed = routed
        self.outer_6 = False  # whether members reach each other by IPv6
        self.tracked = 0  # as `Ring` has it
        self.namespaces = Namespaces(PREFIX)
        self.handovers: dict[str, Handover] = {}
        self.members: dict[str, Member] = {}
        self.addresses: dict[str, tuple[str, str]] = {}
        self.spread_over: tuple[str, ...] = ()
        self._clients: list[Client] = []

    @property
    def engines(self) -> list[str]:
        return [f"se-{n}" for n in range(1, self.count + 1)]

    async def up(self, *, serve: bool = True) -> None:
        space = self.namespaces
        await space.add(["client", "router", "switch", *self.engines])
        for name in space.names():
            await space.sysctl(
                name,
                {
                    "net/ipv6/conf/all/accept_dad": 0,
                    "net/ipv6/conf/default/accept_dad": 0,
                    "net/ipv4/conf/all/arp_ignore": 1,
                    "net/ipv4/conf/all/arp_announce": 2,
                    "net/bridge/bridge-nf-call-iptables": 0,
                    "net/bridge/bridge-nf-call-ip6tables": 0,
                },
            )
        hashing = {"fib_multipath_hash_policy": 3, "fib_multipath_hash_fields": 0x37}
        await space.sysctl(
            "router",
            {
                "net/ipv4/ip_forward": 1,
                "net/ipv6/conf/all/forwarding": 1,
                "net/ipv4/fib_multipath_hash_seed": 7,
                **{f"net/{f}/{k}": v for f in ("ipv4", "ipv6") for k, v in hashing.items()},
            },
        )
        on = [] if self.routed else self.engines
        await space.connect(
            ("client", "eth0", "router", "eth0"),
            ("router", "eth1", "switch", "router"),
            *((name, "eth0", "switch", name) for name in on),
            *((name, "eth0", "router", name) for name in self.engines if name not in on),
        )
        ports = ["router", *on]
        await space.ip(
            "switch",
            [
                *("link add br0 type bridge", "link set br0 up"),
                *(f"link set {port} master br0 up" for port in ports),
            ],
        )
        await space.ip("client", _interface("eth0", f"{CLIENT}/24", f"{CLIENT_6}/64", "15", "1"))
        await space.ip("client", [f"addr add {other}/24 dev eth0" for other in OTHERS])
        await space.ip("router", _interface("eth0", "10.10.15.1/24", "fd00:10:10:15::1/64"))
        await space.ip("router", _interface("eth1", "10.10.16.250/24", "fd00:10:10:16::250/64"))
        await asyncio.gather(*(self._engine(n, serve) for n in range(1, self.count + 1)))

    async def _engine(self, number: int, serve: bool) -> None:
        name, space = f"se-{number}", self.namespaces
        net = str(30 + number) if self.routed else "16"
        at = (f"10.10.{net}.{191 + number}", f"fd00:10:10:{net}::{191 + number}")
        if self.routed:
            gateway = (f"10.10.{net}.250/24", f"fd00:10:10:{net}::250/64")
            await space.ip("router", _interface(name, *gateway))
        await space.ip(
            name,
            [
                *_interface("eth0", f"{at[0]}/24", f"{at[1]}/64", net, "250"),
                f"addr add {VIP}/32 dev lo",
                f"addr add {VIP_6}/128 dev lo nodad",
            ],
        )
        self.members[name] = Member(name=name, address=at[self.outer_6])
        self.addresses[name] = at
        self.handovers[name] = Handover(self.directory / f"{name}.json", space.path(name))
        if serve:
            log = self.directory / f"{name}.log"
            space.spawn(name, [sys.executable, "-c", SERVER_CODE, VIP, VIP_6], log)
            await until(says(log, "listening"))

    async def ring(self, *names: str) -> None:
        """Have these as the ring, each with the likely side for a change from what is spread."""
        await bring(self.handovers, self.rings(*names))

    def rings(self, *names: str) -> dict[str, Ring]:
        members = tuple(self.members[name] for name in self.engines if name in names)
        return {
            name: Ring(
                me=name,
                members=members,
                also=tuple(member.address for member in self.members.values()),
                vips=(VIP, VIP_6),
                back=looks_back(name, self.spread_over, names),
                tracked=self.tracked,
            )
            for name in names
        }

    async def spread(self, *names: str) -> None:
        """Have the router spread the VIPs over these."""
        for version, vip in ((4, VIP), (6, VIP_6)):
            ways = [
                f"nexthop via {self.addresses[name][version == 6]}"
                f" dev {name if self.routed else 'eth1'}"
                for name in names
            ]
            words = f"-{version} route replace {vip} {' '.join(ways)}"
            await self.namespaces.run("router", ["ip", *words.split()])
        self.spread_over = names

    async def client(self, vip: str = VIP) -> Client:
        source = CLIENT_6 if ":" in vip else CLIENT
        command = [sys.executable, "-c", CLIENT_CODE, vip, source]
        process = await asyncio.create_subprocess_exec(
            *self.namespaces.command("client", command),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        client = Client(process)
        self._clients.append(client)
        return client

    async def counted(self) -> dict[str, int]:
        """The counters of all Service Engines that have rules, added up."""
        sums = {"begun": 0, "passed": 0, "unowned": 0, "limited": 0}
        for handover in self.handovers.values():
            if handover.ring is not None:
                counters = msgspec.structs.asdict(await handover.counters())
                sums = {key: value + counters[key] for key, value in sums.items()}
        return sums

    async def down(self) -> None:
        for client in self._clients:
            await client.end()
        await self.namespaces.remove(self.namespaces.names())


def _interface(
    device: str, address: str, address_6: str, net: str = "", gateway: str = ""
) -> list[str]:
    lines = [
        f"addr add {address} dev {device}",
        f"addr add {address_6} dev {device} nodad",
        f"link set {device} up",
    ]
    if gateway:
        lines.append(f"route add default via 10.10.{net}.{gateway}")
        lines.append(f"route add default via fd00:10:10:{net}::{gateway}")
    return lines


def says(log: Path, word: str) -> Callable[[], Awaitable[bool]]:
    async def check() -> bool:
        return log.exists() and word in log.read_text()  # noqa: ASYNC240

    return check


async def until(check: Callable[[], Awaitable[bool]], within_s: float = 20) -> None:
    deadline = asyncio.get_running_loop().time() + within_s
    while not await check():
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.02)


_SENT = """
    import select, socket, struct, sys, time
    source, vip, count, ttl = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    family, level, option = socket.AF_INET, socket.IPPROTO_IP, socket.IP_TTL
    if ":" in vip:
        family, level, option = socket.AF_INET6, socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS
    raw = socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_TCP)
    raw.setsockopt(level, option, ttl)
    a, b = (socket.inet_pton(family, text) for text in (source, vip))
    raw.bind((source, 0))
    for port in range(30_000, 30_000 + count):
        tcp = struct.pack("!HHIIBBHHH", port, 80, 7, 9, 5 << 4, 0x18, 1000, 0, 0) + b"data"
        text = a + b + struct.pack("!II", len(tcp), 6) + tcp
        total = sum(struct.unpack(f"!{len(text) // 2}H", text))
        while total >> 16:
            total = (total & 0xFFFF) + (total >> 16)
        raw.sendto(tcp[:16] + struct.pack("!H", ~total & 0xFFFF) + tcp[18:], (vip, 0))
    answers, end = [], time.monotonic() + 10
    while (left := end - time.monotonic()) > 0:
        if select.select([raw], [], [], left)[0]:
            packet = raw.recv(2048)
            tcp = packet[(packet[0] & 15) * 4:] if family == socket.AF_INET else packet
            answers.append((struct.unpack("!HH", tcp[:4])[1], tcp[13]))
            if len(answers) == count:  # is there one too many?
                end = time.monotonic() + 0.3
    for port, flags in sorted(answers):
        print(port, flags & 4)
"""


async def resets(
    rig: Rig, count: int, *, vip: str = VIP, ttl: int = 64, source: str = ""
) -> list[int]:
    """Send ``count`` packets of connections that nobody has; the ports of those reset."""
    source = source or (CLIENT_6 if ":" in vip else CLIENT)
    code = textwrap.dedent(_SENT)
    words: Sequence[str] = [sys.executable, "-c", code, source, vip, str(count), str(ttl)]
    lines = (await rig.namespaces.run("client", words)).splitlines()
    assert all(line.endswith(" 4") for line in lines)
    return [int(line.split()[0]) for line in lines]
