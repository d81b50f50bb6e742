"""The router that Service Engines tell their VIPs: FRR in the part of the walkthrough's CSR 1000V.

It takes any Service Engine of its ranges as a neighbor, spreads flows over up to ten of them,
and hears of failures by BFD.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from ipaddress import ip_address, ip_network

import msgspec
from msgspec import Struct

from akocore.engines.frr.config import Bfd, Rendered
from akocore.engines.frr.observe import BfdSession

__all__ = ["NextHop", "Upstream", "bfd_table", "next_hops", "render", "route_table"]


class Upstream(Struct, frozen=True, kw_only=True):
    """``ranges``: where Service Engines may call from, IPv4 and IPv6; ``remote_as`` is theirs."""

    name: str = "upstream"
    router_id: str = "22.22.22.22"
    local_as: int = 6000
    remote_as: int = 5000
    ranges: tuple[str, ...]
    listen_limit: int = 32
    maximum_paths: int = 10
    bfd: Bfd = Bfd(transmit_ms=50, receive_ms=50, multiplier=5)
    password: str = ""


class NextHop(Struct, frozen=True):
    """One of a route's ways, as the kernel has it."""

    address: str
    device: str
    weight: int = 1


def render(upstream: Upstream) -> Rendered:
    """The configuration of its daemons."""
    head = f"frr defaults traditional\nhostname {upstream.name}\n!\n"
    profile = upstream.bfd.profile
    bfd = [
        *("bfd", f" profile {profile}"),
        f"  detect-multiplier {upstream.bfd.multiplier}",
        f"  transmit-interval {upstream.bfd.transmit_ms}",
        f"  receive-interval {upstream.bfd.receive_ms}",
        *(" exit", "exit"),
    ]
    bgp = "".join(f"{line}\n" for line in _bgp(upstream))
    return Rendered(zebra=head, bfdd=head + "".join(f"{line}\n" for line in bfd), bgpd=head + bgp)


def _bgp(upstream: Upstream) -> Iterator[str]:
    yield f"router bgp {upstream.local_as}"
    yield f" bgp router-id {upstream.router_id}"
    yield " bgp log-neighbor-changes"
    yield " no bgp ebgp-requires-policy"  # RFC 8212: a lab's router takes all it is told
    yield " no bgp default ipv4-unicast"
    yield " coalesce-time 0"
    yield f" bgp listen limit {upstream.listen_limit}"
    for version, group in _groups(upstream):
        yield f" neighbor {group} peer-group"
        yield f" neighbor {group} remote-as {upstream.remote_as}"
        if upstream.password:
            yield f" neighbor {group} password {upstream.password}"
        yield f" neighbor {group} bfd"
        yield f" neighbor {group} bfd profile {upstream.bfd.profile}"
        for prefix in upstream.ranges:
            if ip_network(prefix).version == version:
                yield f" bgp listen range {prefix} peer-group {group}"
    for version, group in _groups(upstream):
        yield " !"
        yield f" address-family {'ipv4' if version == 4 else 'ipv6'} unicast"
        yield f"  neighbor {group} activate"
        yield f"  maximum-paths {upstream.maximum_paths}"
        yield " exit-address-family"
    yield "exit"


def _groups(upstream: Upstream) -> list[tuple[int, str]]:
    there = {ip_network(prefix).version for prefix in upstream.ranges}
    return [(v, g) for v, g in ((4, "AVI-PEERS"), (6, "AVI-PEERS-V6")) if v in there]


class _Via(Struct):
    gateway: str = ""
    dev: str = ""
    weight: int = 1


class _Route(_Via):
    nexthops: list[_Via] = []


def next_hops(answer: str) -> tuple[NextHop, ...]:
    """The ways of one route, in the kernel's order, from ``ip -j route show PREFIX``."""
    return tuple(
        NextHop(via.gateway, via.dev, via.weight)
        for route in msgspec.json.decode(answer or "[]", type=list[_Route])
        for via in (route.nexthops or [route])
    )


# ─── as the walkthrough's router prints it ───────────────────────────────────────────────────


class _RibHop(Struct, rename="camel"):
    ip: str = ""
    fib: bool = False


class _RibRoute(Struct, rename="camel"):
    distance: int = 0
    metric: int = 0
    uptime: str = ""
    nexthops: list[_RibHop] = []


def route_table(prefix: str, answer: str) -> str:
    """The lines of ``show ip route``, from FRR's ``show ip route PREFIX json``."""
    found = msgspec.json.decode(answer or "{}", type=dict[str, list[_RibRoute]])
    lines = []
    for route in found.get(prefix, []):
        start = f"B        {prefix} "
        for hop in sorted(route.nexthops, key=lambda h: ip_address(h.ip), reverse=True):
            via = f"[{route.distance}/{route.metric}] via {hop.ip}, {route.uptime}"
            lines.append(start + via)
            start = " " * len(start)
    return "\n".join(lines)


def bfd_table(sessions: Iterable[BfdSession]) -> str:
    """The lines of ``show bfd neighbors``."""
    lines = [f"{'NeighAddr':<20} {'LD/RD':<22} {'RH/RS':<9} {'State':<9} Int"]
    lines += [
        f"{s.peer:<20} {f'{s.local_id}/{s.remote_id}':<22} {s.state.capitalize():<9} "
        f"{s.state.capitalize():<9} {s.interface}"
        for s in sessions
    ]
    return "\n".join(lines)
