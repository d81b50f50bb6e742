"""Which rules hand a flow over; pure.

**Whose packet is it?**  Connection tracking in strict mode (`nf_conntrack_tcp_loose=0`: what
doesn't begin by SYN isn't tracked) calls a packet of a connection that began elsewhere `invalid`.
A SYN always stays where the router sent it.  Windows are not judged
(`nf_conntrack_tcp_be_liberal=1`), so that the owner doesn't take a packet of its own for foreign.

**Where does it go?**  Its mark is looked up before the local table, where the VIP is, and its
table has one route: to the neighbour in the ring.  Both neighbours have a table, since the
likely owner is on a side that can be told: see `looks_back`.  Who has the packet from the router
chooses the side, the others go on in the same direction, so no two of them must agree.

**When does it end?**  Who has the packet from the router sets its TTL (IPv6: hop limit) to 64
forwards or 128 backwards, plus the number of others.  Forwarding takes one off, as ever; with 64
or 128 all have seen it, so the last one keeps it, and its TCP answers with the one RST.  That a
packet comes from another Service Engine is told by the Ethernet address that sent it, so what a
client writes into TTL or DSCP means nothing, and a packet from the router starts anew.  The TTL
is the one field that needs no restoring: it is nothing that a TCP endpoint reads, ECN and DSCP
stay the client's, and the packet never leaves the segment.  Should rules ever contradict each
other, the kernel itself ends the packet by its TTL.

**What is not covered**: UDP and QUIC; ICMP errors to a VIP, which the router may bring to another
Service Engine than the flow's; Service Engines that are not on one Ethernet segment; connections
that began before the rules were there (have them before the VIP is announced); those that
connection tracking forgets before TCP does: silent for five days, or half closed and silent for
one minute (`nf_conntrack_tcp_timeout_close_wait`).  Each connection takes an entry of
`nf_conntrack_max`.  An SE that takes its routes from router advertisements needs `accept_ra=2`,
since it forwards now.

Sources: Linux net/netfilter/nf_conntrack_proto_tcp.c (loose, liberal), net/core/fib_rules.c,
Documentation/networking/nf_conntrack-sysctl.rst; nft(8), ip-rule(8).  GitHub's GLB Director has
a second chance for flows by another design: its directors name the second server.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from ipaddress import ip_address

from msgspec import Struct, structs

from akocore._fast.ecmp import EcmpGroup

__all__ = [
    "MAX_MEMBERS",
    "Member",
    "Ring",
    "Rule",
    "batch",
    "delta",
    "looks_back",
    "ruleset",
    "steps",
    "sysctls",
    "undo",
]

MAX_MEMBERS = 16
TABLE = "akocore_handover"  # of nftables
_DEVICE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,14}")
_MAC = re.compile(r"[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}")
_FORWARDS, _BACKWARDS = 64, 128  # TTL when all have seen the packet
_MARKS = {"next": 0x0A4C_0001, "previous": 0x0A4C_0002}  # also the numbers of routing tables

_FAMILIES = {4: ("ip", "vips4", "ttl"), 6: ("ip6", "vips6", "hoplimit")}


class Member(Struct, frozen=True, kw_only=True):
    """One Service Engine: its addresses on the group's segment, and that of its interface."""

    name: str
    addresses: tuple[str, ...]  # at most one of IPv4 and one of IPv6
    mac: str


class Ring(Struct, frozen=True, kw_only=True):
    """What one Service Engine must know.  ``members``: in the order of the router's next hops.

    ``back``: it asks its previous member first; see `looks_back`.  ``forwards``: this machine is
    a router for others too, so packets that are not handed over are not dropped here.  ``hops``
    (0: one less than members) and ``also`` (more members' Ethernet addresses) are for `steps`.
    """

    me: str
    members: tuple[Member, ...]
    vips: tuple[str, ...] = ()
    device: str = "eth0"
    back: bool = False
    forwards: bool = False
    hops: int = 0
    also: tuple[str, ...] = ()


class Rule(Struct):
    """A line of ``ip -j rule show``."""

    priority: int
    table: str
    fwmark: str = ""


def looks_back(me: str, before: Sequence[str], after: Sequence[str]) -> bool:
    """Whether the flows that ``me`` gets by a change are likelier with members before it.

    ``before`` and ``after``: the router's next hops by name, of equal weight, in its order.  The
    ranges of hash values are the kernel's own (`akocore.EcmpGroup`).  A member that joined at the
    end looks back and finds most owners at once; also 15 others are then one hop and not 15 away.
    """
    order = list(dict.fromkeys((*before, *after)) if len(before) > len(after) else after)
    if me not in after or not before or len(order) < 2:
        return False
    low, high = _ranges(after)[me]
    forwards = backwards = 0
    for owner, (first, last) in _ranges(before).items():
        flows = min(high, last) - max(low, first) + 1
        if owner == me or owner not in order or flows <= 0:
            continue
        hops = (order.index(owner) - order.index(me)) % len(order)
        forwards += flows * hops
        backwards += flows * (len(order) - hops)
    return backwards < forwards


def _ranges(hops: Sequence[str]) -> dict[str, tuple[int, int]]:
    bounds = EcmpGroup([(hop, 1) for hop in hops], seed=1).bounds  # no seed moves bounds
    return {
        hop: (low + 1, high) for hop, low, high in zip(hops, (-1, *bounds), bounds, strict=False)
    }


def steps(there: Mapping[str, Ring], wanted: Mapping[str, Ring]) -> list[dict[str, Ring]]:
    """What to apply to each member, one dictionary after the other, so that no packet misses.

    Members change one by one.  Between, a packet may go round partly by the old ring and partly
    by the new one, so it needs the hops of the longer, and all must know each other.  So a ring
    that grows gets hops before members, and one that shrinks loses members before hops.
    """
    rings = {name: there.get(name, ring) for name, ring in wanted.items()}
    longest = max(len(ring.members) for ring in (*rings.values(), *wanted.values()))
    known = {m.mac.lower() for r in (*rings.values(), *wanted.values()) for m in r.members}

    def between(ring: Ring) -> Ring:
        others = {member.mac.lower() for member in ring.members}
        return structs.replace(ring, hops=longest - 1, also=tuple(sorted(known - others)))

    first = {name: between(ring) for name, ring in rings.items()}
    second = {name: between(ring) for name, ring in wanted.items()}
    found: list[dict[str, Ring]] = []
    for step in (first, second, dict(wanted)):
        before = {**there, **(found[-1] if found else {})}
        if any(not _alike(before.get(name), ring) for name, ring in step.items()):
            found.append(step)
    return found


def _alike(one: Ring | None, other: Ring) -> bool:
    """Whether they mean the same rules."""
    if one is None:
        return False
    routes = [[member.addresses for member in ring.members] for ring in (one, other)]
    return one.me == other.me and routes[0] == routes[1] and ruleset(one) == ruleset(other)


# ─── the packet filter


def _checked(ring: Ring) -> tuple[Member, ...]:
    """The other members, the next one first.  Raises `ValueError`."""
    names = [member.name for member in ring.members]
    if ring.me not in names or len(set(names)) != len(names) or len(names) > MAX_MEMBERS:
        raise ValueError(
            f"a ring has {ring.me} once among at most {MAX_MEMBERS} members, not {names}"
        )
    if not _DEVICE.fullmatch(ring.device):
        raise ValueError(f"{ring.device!r} is no name of an interface")
    for mac in (*(member.mac for member in ring.members), *ring.also):
        if not _MAC.fullmatch(mac):
            raise ValueError(f"{mac!r} is no Ethernet address")
    for address in (*ring.vips, *(a for member in ring.members for a in member.addresses)):
        if "%" in str(ip_address(address)):  # a scope could be any text
            raise ValueError(f"{address!r} has a scope")
    at = names.index(ring.me)
    return (*ring.members[at + 1 :], *ring.members[:at])


def _sets(ring: Ring) -> dict[str, tuple[str, list[str]]]:
    """Name: type and elements, in order."""
    vips = sorted({ip_address(vip) for vip in ring.vips}, key=lambda ip: (ip.version, int(ip)))
    others = sorted({member.mac.lower() for member in _checked(ring)} | {*ring.also})
    return {
        "vips4": ("ipv4_addr", [str(ip) for ip in vips if ip.version == 4]),
        "vips6": ("ipv6_addr", [str(ip) for ip in vips if ip.version == 6]),
        "members": ("ether_addr", others),
    }


def ruleset(ring: Ring) -> str:
    """What ``nft -f`` reads: the whole table, in place of the one that may be there."""
    head = f"table inet {TABLE}\ndelete table inet {TABLE}\n"
    return head + "\n".join(_table(ring)) + "\n"


def delta(before: Ring | None, ring: Ring) -> str:
    """What ``nft -f`` reads to come from ``before`` (None: unknown) to ``ring``; "": nothing.

    VIPs and members come and go as elements of sets, and counters go on.
    """
    if before is None:
        return ruleset(ring)
    old, new = _sets(before), _sets(ring)
    if _chains(before) != _chains(ring):
        return ruleset(ring)
    lines = []
    for name, (_, wanted) in new.items():
        there = old[name][1]
        for verb, elements in (
            ("delete", [e for e in there if e not in wanted]),
            ("add", [e for e in wanted if e not in there]),
        ):
            if elements:
                lines.append(f"{verb} element inet {TABLE} {name} {{ {', '.join(elements)} }}\n")
    return "".join(lines)


def _table(ring: Ring) -> Iterator[str]:
    yield f"table inet {TABLE} {{"
    for name, (kind, elements) in _sets(ring).items():
        yield f"\tset {name} {{"
        yield f"\t\ttype {kind}"
        if elements:
            yield f"\t\telements = {{ {', '.join(elements)} }}"
        yield "\t}"
    yield from _chains(ring)
    yield "}"


def _chains(ring: Ring) -> list[str]:
    others = len(_checked(ring))
    start = (_BACKWARDS if ring.back else _FORWARDS) + (ring.hops or others)
    first = "previous" if ring.back else "next"
    marks = ", ".join(f"{mark:#010x}" for mark in _MARKS.values())
    lines = [
        *(f"\tcounter {name} {{ }}" for name in ("begun", "passed", "unowned")),
        "\tchain prerouting {",
        "\t\ttype filter hook prerouting priority mangle; policy accept;",
        f'\t\tiifname != "{ring.device}" accept',
    ]
    families = [_FAMILIES[version] for version in _versions(ring)]
    lines += [
        f"\t\t{family} daddr @{vips} tcp flags & syn == 0x0 ct state invalid goto {family}_flow"
        for family, vips, _ in families
    ]
    lines.append("\t}")
    for family, _, field in families:
        lines.append(f"\tchain {family}_flow {{")
        if others:
            lines.append(f"\t\tether saddr @members goto {family}_passed")
            lines.append(
                f"\t\t{family} {field} set {start} meta mark set {_MARKS[first]:#010x}"
                " counter name begun accept"
            )
            lines += ["\t}", f"\tchain {family}_passed {{"]
            lines += [
                f"\t\t{family} {field} {end + 1}-{end + MAX_MEMBERS - 1}"
                f" meta mark set {_MARKS[side]:#010x} counter name passed accept"
                for side, end in (("next", _FORWARDS), ("previous", _BACKWARDS))
            ]
        lines += ["\t\tcounter name unowned", "\t}"]
    if not ring.forwards:
        lines += [
            "\tchain forward {",
            "\t\ttype filter hook forward priority filter; policy accept;",
            f"\t\tmeta mark != {{ {marks} }} drop",
            "\t}",
        ]
    return lines


# ─── the kernel's settings and routes


def sysctls(ring: Ring) -> dict[str, str]:
    """Paths below /proc/sys, in the order to write them."""
    versions = _versions(ring)
    wanted = {
        "net/netfilter/nf_conntrack_tcp_loose": "0",
        "net/netfilter/nf_conntrack_tcp_be_liberal": "1",
    }
    if 4 in versions:
        wanted |= {
            # A packet leaves by the interface that it came by: that is no news for its sender.
            "net/ipv4/conf/all/send_redirects": "0",
            f"net/ipv4/conf/{ring.device}/send_redirects": "0",
            f"net/ipv4/conf/{ring.device}/forwarding": "1",
        }
    if 6 in versions:
        wanted["net/ipv6/conf/all/forwarding"] = "1"  # IPv6 forwards by no other
    return wanted


def _versions(ring: Ring) -> list[int]:
    mine = next(member for member in ring.members if member.name == ring.me)
    return sorted({ip_address(address).version for address in mine.addresses})


def _via(member: Member, version: int) -> str | None:
    return next((a for a in member.addresses if ip_address(a).version == version), None)


def batch(ring: Ring, version: int, there: Collection[Rule]) -> list[str]:
    """Lines of ``ip -VERSION -batch`` that bring rules and routes about, from the rules there are.

    Routes are always told: replacing one by itself does nothing.  The rules of a mark must stand
    before that of the local table, at its priority 0; while they are put there, another rule
    leads to it, so no packet misses it.
    """
    others = _checked(ring)
    lines = []
    if others and version in _versions(ring):
        for side, member in (("next", others[0]), ("previous", others[-1])):
            if (via := _via(member, version)) is None:
                raise ValueError(f"{member.name} has no address of IPv{version}")
            lines.append(
                f"route replace default via {via} dev {ring.device} onlink table {_MARKS[side]}"
            )
    else:
        lines += [f"route flush table {table}" for table in _MARKS.values()]
    ours = {f"{mark:#x}" for mark in _MARKS.values()}
    at_first = [rule for rule in there if rule.priority == 0]
    good = [rule.fwmark for rule in at_first if rule.fwmark in ours]
    if sorted(good) == sorted(ours) and at_first[-1].table == "local":
        return lines + _without_stand_in(there)
    if not _has_stand_in(there):
        lines.append("rule add pref 1 lookup local")
    lines += _removed(at_first)
    lines += [f"rule add pref 0 fwmark {mark:#x} lookup {mark}" for mark in _MARKS.values()]
    return [*lines, "rule add pref 0 lookup local", "rule del pref 1 lookup local"]


def undo(version: int, there: Collection[Rule]) -> list[str]:
    """Lines of ``ip -VERSION -batch`` after which nothing of `batch` is left."""
    ours = {f"{mark:#x}" for mark in _MARKS.values()}
    lines = _removed(rule for rule in there if rule.priority == 0 and rule.fwmark in ours)
    if not any(rule.priority == 0 and rule.table == "local" for rule in there):
        lines.append("rule add pref 0 lookup local")
    lines += _without_stand_in(there)
    return lines + [f"route flush table {table}" for table in _MARKS.values()]


def _has_stand_in(there: Iterable[Rule]) -> bool:
    return any(rule.priority == 1 and rule.table == "local" for rule in there)


def _without_stand_in(there: Iterable[Rule]) -> list[str]:
    return ["rule del pref 1 lookup local"] if _has_stand_in(there) else []


def _removed(rules: Iterable[Rule]) -> list[str]:
    ours = {f"{mark:#x}" for mark in _MARKS.values()}
    return [
        "rule del pref 0" + (f" fwmark {rule.fwmark}" if rule.fwmark else "") + f" lookup {table}"
        for rule in rules
        for table in (rule.table,)
        if rule.fwmark in ours or (not rule.fwmark and table == "local")
    ]
