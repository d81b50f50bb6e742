"""The kernel of this machine as a router: a network namespace of its own, asked over netlink.

`ip` sets things up; look-ups and nexthop groups are raw rtnetlink messages, some 5 us each, so that
a test can ask a hundred thousand times.
"""

import contextlib
import ctypes
import itertools
import json
import os
import random
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

T = TypeVar("T")
SEED_SYSCTL = Path("/proc/sys/net/ipv4/fib_multipath_hash_seed")
NAMES = itertools.count()
MOST_HOPS = 16
MAC = bytes([2, 0, 0, 0, 0, 1])

# linux/rtnetlink.h, linux/nexthop.h
NEWROUTE, GETROUTE, NEWNEXTHOP, NLMSG_ERROR = 24, 26, 104, 2
REQUEST, ACK, REPLACE, CREATE, NESTED = 1, 4, 0x100, 0x400, 0x8000
DST, SRC, IIF, GATEWAY, IP_PROTO, SPORT, DPORT, FLOWLABEL = 1, 2, 3, 5, 27, 28, 29, 31
NHA_ID, NHA_GROUP, NHA_GROUP_TYPE, NHA_RES_GROUP = 1, 2, 3, 12
RES_BUCKETS, RES_IDLE_TIMER, RES_UNBALANCED_TIMER = 1, 2, 3
CLONE_NEWNET = 0x40000000
RCVBUFFORCE = 33
BATCH = 100


class Flow(NamedTuple):
    """A 5-tuple of packed addresses, with its IPv6 flow label."""

    src: bytes
    dst: bytes
    proto: int
    sport: int
    dport: int
    label: int = 0


class Hop(NamedTuple):
    """A next hop: its address, the id of its nexthop object, its link-layer address."""

    name: str
    address: str
    id: int
    mac: bytes


HOPS: dict[int, list[Hop]] = {
    family: [
        Hop(f"se-{i}", f"{prefix}{100 + i}", first + i, bytes([2, 0, 0, 0, 1, i]))
        for i in range(MOST_HOPS)
    ]
    for family, prefix, first in (
        (socket.AF_INET, "198.51.100.", 100),
        (socket.AF_INET6, "2001:db8:2::", 200),
    )
}


def run(*command: str, stdin: str | None = None) -> str:
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}{done.stdout}"
    return done.stdout


def attribute(kind: int, data: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)


def family_of(flow: Flow) -> int:
    return socket.AF_INET if len(flow.src) == 4 else socket.AF_INET6


def random_flows(family: int, count: int, rng: random.Random) -> list[Flow]:
    """Any addresses that a router forwards, TCP, UDP and ICMP."""

    def four() -> bytes:
        first = rng.choice([*range(1, 10), *range(11, 127), *range(128, 169), *range(199, 224)])
        return bytes([first]) + rng.randbytes(3)

    def six() -> bytes:
        return bytes([0x20 + rng.randrange(16)]) + rng.randbytes(15)

    address = four if family == socket.AF_INET else six
    flows = []
    for _ in range(count):
        proto = rng.choice([6, 6, 6, 17, 17, 1 if family == socket.AF_INET else 58])
        ports = (0, 0) if proto in (1, 58) else (rng.randrange(1, 65536), rng.randrange(1, 65536))
        label = rng.choice([0, rng.randrange(1 << 20)]) if family == socket.AF_INET6 else 0
        flows.append(Flow(address(), address(), proto, *ports, label))
    return flows


class Router:
    """One namespace: packets come in by in0 and leave by out0, to neighbours that never answer."""

    def __init__(self, require_real: Callable[[bool, str], None]) -> None:
        self.name = f"ako-ecmp-{os.getpid()}-{next(NAMES)}"
        self.asked = 0
        run("ip", "netns", "add", self.name)
        try:
            with open(f"/run/netns/{self.name}") as namespace:
                self._inside = ThreadPoolExecutor(
                    1, initializer=_enter, initargs=(namespace.fileno(),)
                )
                self._inside.submit(int).result()
            require_real(
                self.inside(SEED_SYSCTL.exists), "net.ipv4.fib_multipath_hash_seed (Linux 6.11)"
            )
            self._netlink = self.inside(_netlink)
            self._set_up()
            self._in1 = self.inside(_wire, "in1")
            self._out1 = self.inside(_wire, "out1")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        for part in ("_in1", "_out1", "_netlink", "_inside"):
            if hasattr(self, part):
                getattr(self, part).__exit__(None, None, None)
        run("ip", "netns", "del", self.name)

    def _set_up(self) -> None:
        links = ("in0", "in1", "out0", "out1")
        setup = [f"link add in0 address {MAC.hex(':')} type veth peer in1"]
        setup += ["link add out0 type veth peer out1"]
        setup += [f"link set {link} up" for link in ("lo", *links)]
        setup += ["addr add 10.0.0.1/8 dev in0", "addr add 198.51.100.1/24 dev out0"]
        setup += ["addr add 2001:db8:1::1/64 dev in0 nodad"]
        setup += ["addr add 2001:db8:2::1/64 dev out0 nodad"]
        for hop in itertools.chain(*HOPS.values()):
            setup += [f"neigh add {hop.address} dev out0 lladdr {hop.mac.hex(':')} nud permanent"]
            setup += [f"nexthop add id {hop.id} via {hop.address} dev out0"]
        self.ip(*setup)
        self.sysctl("net.ipv4.ip_forward", 1)
        self.sysctl("net.ipv6.conf.all.forwarding", 1)
        for link in ("all", *links):
            self.sysctl(f"net.ipv4.conf.{link}.rp_filter", 0)
        self.in0 = self.inside(socket.if_nametoindex, "in0")

    def inside(self, call: Callable[..., T], *arguments: object) -> T:
        """Calls in a thread that lives in the namespace."""
        return self._inside.submit(call, *arguments).result()

    def ip(self, *lines: str) -> None:
        run("ip", "-n", self.name, "-batch", "-", stdin="\n".join(lines))

    def sysctl(self, key: str, value: int) -> None:
        self.inside(Path("/proc/sys", *key.split(".")).write_text, str(value))

    def hash_by(self, *, seed: int, policy: int, fields: int = 0x37) -> None:
        self.sysctl("net.ipv4.fib_multipath_hash_seed", seed)
        for family in ("ipv4", "ipv6"):
            self.sysctl(f"net.{family}.fib_multipath_hash_policy", policy)
            self.sysctl(f"net.{family}.fib_multipath_hash_fields", fields)

    def route(self, hops: Sequence[tuple[Hop, int]]) -> None:
        """A plain multipath route to everywhere."""
        to = "::/0" if ":" in hops[0][0].address else "0.0.0.0/0"
        self.ip(
            f"route replace {to} "
            + " ".join(f"nexthop via {hop.address} dev out0 weight {w}" for hop, w in hops)
        )

    def route_to_group(self, family: int, group: int) -> None:
        self.ip(
            f"route replace {'::/0' if family == socket.AF_INET6 else '0.0.0.0/0'} nhid {group}"
        )

    def group(
        self,
        number: int,
        hops: Sequence[tuple[Hop, int]],
        *,
        buckets: int = 0,
        idle_ms: int | None = None,
        unbalanced_ms: int | None = None,
        resilient: bool = False,
    ) -> None:
        """Makes or replaces a nexthop group, resilient if it has buckets or says so."""
        members = b"".join(
            struct.pack("=IBBH", hop.id, weight - 1 & 255, weight - 1 >> 8, 0)
            for hop, weight in hops
        )
        body = struct.pack("=BBBBI", 0, 0, 3, 0, 0)
        body += attribute(NHA_ID, struct.pack("=I", number)) + attribute(NHA_GROUP, members)
        if buckets or resilient:
            timers = ((RES_IDLE_TIMER, idle_ms), (RES_UNBALANCED_TIMER, unbalanced_ms))
            nested = attribute(RES_BUCKETS, struct.pack("=H", buckets)) if buckets else b""
            for kind, timer in timers:
                if timer is not None:
                    nested += attribute(kind, struct.pack("=I", timer // 10))
            body += attribute(NHA_GROUP_TYPE, struct.pack("=H", 1))
            body += attribute(NHA_RES_GROUP | NESTED, nested)
        flags = REQUEST | ACK | REPLACE | CREATE
        self._netlink.send(struct.pack("=IHHII", 16 + len(body), NEWNEXTHOP, flags, 0, 0) + body)
        answer = self._netlink.recv(65536)
        assert struct.unpack_from("=i", answer, 16)[0] == 0, f"group: {answer!r}"

    def table(self, group: int) -> list[int]:
        """The id of the nexthop of each bucket, as `ip nexthop bucket show` has it."""
        shown = json.loads(
            run("ip", "-n", self.name, "-j", "nexthop", "bucket", "show", "id", str(group))
        )
        buckets = {entry["bucket"]["index"]: entry["bucket"]["nhid"] for entry in shown}
        return [buckets[i] for i in range(len(buckets))]

    def look_up(self, flows: Sequence[Flow]) -> list[str]:
        """The name of the hop that the kernel picks for each flow that comes in by in0."""
        family = family_of(flows[0])
        named = {socket.inet_pton(family, hop.address): hop.name for hop in HOPS[family]}
        size = len(flows[0].src)
        form = struct.Struct(f"=IHHII BBBBBBBBI HH{size}s HH{size}s HHI HHBxxx")
        picked: list[str] = []
        for start in range(0, len(flows), BATCH):
            batch = flows[start : start + BATCH]
            message = bytearray()
            for number, flow in enumerate(batch):
                tail = b""
                if flow.sport or flow.dport:
                    tail = struct.pack("=HH", 6, SPORT) + flow.sport.to_bytes(2, "big") + b"\0\0"
                    tail += struct.pack("=HH", 6, DPORT) + flow.dport.to_bytes(2, "big") + b"\0\0"
                if flow.label:
                    tail += attribute(FLOWLABEL, flow.label.to_bytes(4, "big"))
                message += form.pack(
                    *(form.size + len(tail), GETROUTE, REQUEST, number, 0),
                    *(family, 8 * size, 8 * size, 0, 0, 0, 0, 0, 0),
                    *(4 + size, DST, flow.dst, 4 + size, SRC, flow.src),
                    *(8, IIF, self.in0, 5, IP_PROTO, flow.proto),
                )
                message += tail
            self._netlink.send(message)
            for number in range(len(batch)):
                answer = self._netlink.recv(4096)
                kind, sequence = struct.unpack_from("=HxxI", answer, 4)
                assert (kind, sequence) == (NEWROUTE, number), f"{batch[number]}: {answer!r}"
                picked.append(named[_gateway(answer)])
        self.asked += len(flows)
        return picked

    def forward(self, flows: Sequence[Flow]) -> list[str]:
        """The name of the hop that a real packet of each flow is sent to."""
        named = {hop.mac: hop.name for hop in HOPS[family_of(flows[0])]}
        picked = [""] * len(flows)
        for start in range(0, len(flows), BATCH):
            for number, flow in enumerate(flows[start : start + BATCH], start):
                self._in1.send(_frame(flow, number))
            waiting = len(flows[start : start + BATCH])
            while waiting:
                frame = self._out1.recv(2048)
                if (hop := named.get(frame[:6])) is not None:
                    picked[int.from_bytes(frame[-4:], "big")] = hop
                    waiting -= 1
        return picked


def _frame(flow: Flow, number: int) -> bytes:
    """A packet on its way to the router; its number is at the end."""
    data = flow.sport.to_bytes(2, "big") + flow.dport.to_bytes(2, "big")
    if flow.proto == 6:
        data += struct.pack(">IIBBHHH", 0, 0, 0x50, 2, 8192, 0, 0)
    elif flow.proto == 17:
        data += struct.pack(">HH", 12, 0)
    else:  # an echo request
        data = bytes([8 if flow.proto == 1 else 128, 0, 0, 0, 0, 7, 0, 1])
    data += number.to_bytes(4, "big")
    if len(flow.src) == 16:
        head = struct.pack(">IHBB", 6 << 28 | flow.label, len(data), flow.proto, 64)
        return MAC + bytes(6) + b"\x86\xdd" + head + flow.src + flow.dst + data
    head = struct.pack(">BBHHHBB", 0x45, 0, 20 + len(data), 0, 0, 64, flow.proto)
    both = flow.src + flow.dst
    total: int = sum(struct.unpack(">9H", head[:10] + both))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return MAC + bytes(6) + b"\x08\0" + head + (total ^ 0xFFFF).to_bytes(2, "big") + both + data


def _gateway(answer: bytes) -> bytes:
    at = 28
    while at < len(answer):
        length, kind = struct.unpack_from("=HH", answer, at)
        if kind == GATEWAY:
            return bytes(answer[at + 4 : at + length])
        at += length + 3 & ~3
    raise AssertionError(f"no gateway: {answer!r}")


def _enter(namespace: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(namespace, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def _netlink() -> socket.socket:
    made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    made.setsockopt(socket.SOL_SOCKET, RCVBUFFORCE, 1 << 24)
    made.settimeout(10)
    return made


def _wire(link: str) -> socket.socket:
    every_protocol = 3
    made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(every_protocol))
    made.bind((link, every_protocol))
    made.settimeout(10)
    return made


@contextlib.contextmanager
def router(require_real: Callable[[bool, str], None]) -> Iterator[Router]:
    made = Router(require_real)
    try:
        yield made
    finally:
        made.close()
