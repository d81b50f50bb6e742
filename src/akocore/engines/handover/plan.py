"""Which rules hand a flow over; pure.

**Whose packet is it?**  Connection tracking knows: a connection is this Service Engine's own when
it has answered (`ct state established`: a reply was seen).  What begins by SYN stays where the
router sent it.  Any other packet to a VIP is *foreign*: one of a connection that began elsewhere is
`new` (`nf_conntrack_tcp_loose=1`, the kernel's default, picks it up), or `invalid` if its first
packet here is a FIN or RST.  What is invalid otherwise is a packet of an own connection outside of
its window, and stays.  No mark of a connection is needed, so none is in the way of others that use
them; a connection that tracking forgot is own again with the first packet that is answered.
A client may use its port again, and its connection may then be another's: so what has ended at a
VIP is forgotten after two seconds (`ct timeout`), and not after the two minutes of TIME_WAIT.

**Where does it go?**  Its mark is looked up before the local table, where the VIP is, and its
table has one route: through a tunnel to the neighbour in the ring, which may be on the same segment
or many routers away.  Both neighbours have a table, since the likely owner is on a side that can be
told: see `looks_back`.  Who has the packet from the router chooses the side, the others go on in
the same direction, so no two of them must agree.

**The tunnel** is one VXLAN-GPE device (IP in UDP, no Ethernet and so no neighbours to resolve)
that takes the other end from the route (`external`).  Only Service Engines of the group may send
to its port (an address can be forged on a network that allows it), and what comes out is dropped
unless it is TCP for a VIP: nobody may use it to get anywhere else.  Its MTU is the largest there
is, so no packet inside is refused or fragmented; the outer one would be, so SYN|ACK from a VIP
offers an MSS that leaves room for it (`Ring.mtu`).

**When does it end?**  Who has the packet from the router sets its TTL (IPv6: hop limit) to 64
forwards or 128 backwards, plus one hop more than twice the number of others.  Forwarding takes one
off, as ever; with 64 or 128 all have seen it, so the last one keeps it, and its TCP answers with
the one RST.  Once round would do if all members knew the same ring; as each learns of a change when
it does, a packet may go round partly by the old ring and partly by the new one.  A packet that
didn't come by the tunnel starts anew, so what a client writes into TTL or DSCP means nothing.  The
TTL is the one field that needs no restoring: no TCP endpoint reads it.  Should rules ever
contradict each other, the kernel itself ends the packet by its TTL.

**kube-proxy** drops what is invalid and forwarded: foreign FINs and RSTs are untracked instead.

**What is not covered**: UDP and QUIC; ICMP errors to a VIP, which the router may bring to another
Service Engine than the flow's; connections that began before connection tracking ran.  Each foreign
flow takes an entry of `nf_conntrack_max`, whoever sends it, from whatever address: so it is
forgotten after ten seconds without a packet, not after five minutes, and its next packet is
handed over just as its first one was.  When the table is full, entries without an answer, as
these are, go before those of connections.

**How many may begin?**  A flow's first packet here is let through while there are tokens for all
foreign flows (a burst of 2/5 of ``nf_conntrack_max``, a fiftieth more a second) and for its source
(half as much; a source is an address of IPv4, a /64 of IPv6), and else dropped: TCP sends it again.
So foreign flows never have more than 3/5 of the table, and one source 3/10, at no member.  With the
usual 262,144 entries 104,857 flows at once find their owner when a Service Engine leaves, 52,428 of
them from behind one address, and 5,242 (2,621) more each second.  What is known goes on: a flow's
later packets cost none.  Addresses can be forged; then it is the limit of all that holds.

Sources: Linux net/netfilter/nf_conntrack_proto_tcp.c (loose), net/core/fib_rules.c,
drivers/net/vxlan/vxlan_core.c (external, gpe), Documentation/networking/nf_conntrack-sysctl.rst;
nft(8), ip-rule(8), ip-route(8) (encap); draft-ietf-nvo3-vxlan-gpe.  GitHub's GLB Director has a
second chance for flows by another design: its directors name the second server.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from ipaddress import ip_address

from msgspec import Struct, structs

from akocore._fast.ecmp import EcmpGroup

__all__ = [
    "DEVICE",
    "MAX_MEMBERS",
    "PORT",
    "USUALLY_TRACKED",
    "Member",
    "Ring",
    "Rule",
    "batch",
    "delta",
    "link",
    "looks_back",
    "only_elements_differ",
    "ruleset",
    "sysctls",
    "undo",
]

MAX_MEMBERS = 32
TABLE = "akocore_handover"  # of nftables
DEVICE = "akocore-ho"
PORT = 14_789  # UDP; not VXLAN's own, which a cluster's network may use
_VNI = 0xA4C
_DEVICE_MTU = 65_000
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,14}")
_FORWARDS, _BACKWARDS = 64, 128  # TTL when all have seen the packet
_MOST_HOPS = 63  # 2 * (MAX_MEMBERS - 1) + 1
_ENDED_S = 2  # that a connection is remembered after its end: a lost last packet is sent again
USUALLY_TRACKED = 262_144  # flows that a kernel tracks, when it isn't known
_SOURCES = 16_384  # that are told apart, of each version; others have the limit of all alone
_SOURCE_S = 60  # that a source is remembered: longer than its tokens take to be whole again
_FOREIGN_S = 10  # that a flow is remembered which is another's: it is found again by any packet
# The first packet of a flow sets the time of syn_sent, whatever it is (nft_ct_timeout_obj_eval).
_FOREIGN_STATES = (
    *("syn_sent", "established", "fin_wait", "close_wait", "last_ack", "retrans", "unack"),
)
_MARKS = {"next": 0x0A4C_0001, "previous": 0x0A4C_0002}  # also the numbers of routing tables
_OUTER = {4: 20 + 8 + 8, 6: 40 + 8 + 8}  # bytes before a packet in the tunnel: IP, UDP, VXLAN-GPE
_HEADERS = {4: 20 + 20, 6: 40 + 20}  # bytes of IP and TCP

_FAMILIES = {4: ("ip", "vips4", "ttl"), 6: ("ip6", "vips6", "hoplimit")}


class Member(Struct, frozen=True, kw_only=True):
    """One Service Engine, and the address at which others reach it."""

    name: str
    address: str


class Ring(Struct, frozen=True, kw_only=True):
    """What one Service Engine must know.  ``members``: in the order of the router's next hops.

    ``back``: it asks its previous member first; see `looks_back`.  ``forwards``: this machine is
    a router for others too, so packets that are not handed over are not dropped here.
    ``also``: addresses of those that may join or have left, as members learn of it one by one.
    ``device``, ``mtu``: the interface to the others, and what goes through it in bytes (0: MSS is
    left as it is).  ``tracked``: how many flows the kernel tracks at most (0: what is usual).
    """

    me: str
    members: tuple[Member, ...]
    vips: tuple[str, ...] = ()
    device: str = "eth0"
    mtu: int = 0
    also: tuple[str, ...] = ()
    back: bool = False
    forwards: bool = False
    tracked: int = 0


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


# ─── the packet filter


def _checked(ring: Ring) -> tuple[Member, ...]:
    """The other members, the next one first.  Raises `ValueError`."""
    names = [member.name for member in ring.members]
    if ring.me not in names or len(set(names)) != len(names) or len(names) > MAX_MEMBERS:
        raise ValueError(
            f"a ring has {ring.me} once among at most {MAX_MEMBERS} members, not {names}"
        )
    if not _NAME.fullmatch(ring.device):
        raise ValueError(f"{ring.device!r} is no name of an interface")
    for address in (*ring.vips, *ring.also, *(member.address for member in ring.members)):
        if "%" in str(ip_address(address)):  # a scope could be any text
            raise ValueError(f"{address!r} has a scope")
    at = names.index(ring.me)
    return (*ring.members[at + 1 :], *ring.members[:at])


def _split(addresses: Iterable[str]) -> dict[int, list[str]]:
    """By version, in order."""
    found = sorted({ip_address(a) for a in addresses}, key=lambda ip: (ip.version, int(ip)))
    return {v: [str(ip) for ip in found if ip.version == v] for v in (4, 6)}


def _sets(ring: Ring) -> dict[str, tuple[str, list[str]]]:
    """Name: type and elements, in order."""
    vips, peers = _split(ring.vips), _split({*(one.address for one in _checked(ring)), *ring.also})
    return {
        "vips4": ("ipv4_addr", vips[4]),
        "vips6": ("ipv6_addr", vips[6]),
        "peers4": ("ipv4_addr", peers[4]),
        "peers6": ("ipv6_addr", peers[6]),
    }


def ruleset(ring: Ring) -> str:
    """What ``nft -f`` reads: the whole table, in place of the one that may be there."""
    head = f"table inet {TABLE}\ndelete table inet {TABLE}\n"
    return head + "\n".join(_table(ring)) + "\n"


def delta(before: Ring | None, ring: Ring) -> str:
    """What ``nft -f`` reads to come from ``before`` (None: unknown) to ``ring``; "": nothing.

    VIPs and members come and go as elements of sets, and counters and limits go on.
    """
    if before is None or before.tracked != ring.tracked:
        return ruleset(ring)
    old, new = _sets(before), _sets(ring)
    lines = []
    for name, (_, wanted) in new.items():
        there = old[name][1]
        for verb, elements in (
            ("delete", [e for e in there if e not in wanted]),
            ("add", [e for e in wanted if e not in there]),
        ):
            if elements:
                lines.append(f"{verb} element inet {TABLE} {name} {{ {', '.join(elements)} }}\n")
    if _chains(before) != _chains(ring):  # within the one transaction; counters are apart
        chains = [c for one in (before, ring) for c in _chains(one)]
        names = dict.fromkeys(c.split()[1] for c in chains if c.startswith("\tchain "))
        lines += [f"add chain inet {TABLE} {name}\n" for name in names]
        lines += [f"flush chain inet {TABLE} {name}\n" for name in names]
        lines += [f"delete chain inet {TABLE} {name}\n" for name in names]
        lines += [f"table inet {TABLE} {{\n", "\n".join(_chains(ring)), "\n}\n"]
    return "".join(lines)


def only_elements_differ(before: Ring, ring: Ring) -> bool:
    """Whether settings and routes are the same: VIPs, or those that may join, are others."""
    versions = [_versions(one) for one in (before, ring)]
    same = structs.replace(ring, vips=before.vips, also=before.also, back=before.back)
    return same == before and versions[0] == versions[1]


def _table(ring: Ring) -> Iterator[str]:
    yield f"table inet {TABLE} {{"
    for name, (kind, elements) in _sets(ring).items():
        yield f"\tset {name} {{"
        yield f"\t\ttype {kind}"
        if elements:
            yield f"\t\telements = {{ {', '.join(elements)} }}"
        yield "\t}"
    yield from (f"\tcounter {name} {{ }}" for name in ("begun", "passed", "unowned", "limited"))
    yield f"\tlimit foreign {{ rate over {_beginning(ring)} }}"
    for sources, kind in (("sources4", "ipv4_addr"), ("sources6", "ipv6_addr")):
        yield f"\tset {sources} {{"
        yield f"\t\ttype {kind}; size {_SOURCES}; flags dynamic,timeout; timeout {_SOURCE_S}s"
        yield "\t}"
    for family, *_ in _FAMILIES.values():
        policy = ", ".join(f"{state} : {_ENDED_S}" for state in ("time_wait", "close"))
        yield f"\tct timeout {family}_ends {{"
        yield f"\t\tprotocol tcp; l3proto {family};"
        yield f"\t\tpolicy = {{ {policy} }}"
        yield "\t}"
        # A flow's first packet sets the time of syn_sent, whatever it is: nft_ct_timeout_obj_eval.
        policy = ", ".join(f"{state} : {_FOREIGN_S}" for state in _FOREIGN_STATES)
        yield f"\tct timeout {family}_foreign {{"
        yield f"\t\tprotocol tcp; l3proto {family};"
        yield f"\t\tpolicy = {{ {policy}, time_wait : {_ENDED_S}, close : {_ENDED_S} }}"
        yield "\t}"
    yield from _chains(ring)
    yield "}"


def _beginning(ring: Ring, part: int = 1) -> str:
    """How many foreign flows may begin, of all or, by ``part``, of one source."""
    tracked = ring.tracked or USUALLY_TRACKED
    rate, burst = max(1, tracked // 50 // part), max(1, tracked * 2 // 5 // part)
    return f"{rate}/second burst {burst} packets"


def _limits(ring: Ring) -> Iterator[str]:
    """Chains for the first packet of a foreign flow, which takes an entry of the table."""
    for family, sources, source in (
        ("ip", "sources4", "ip saddr"),
        ("ip6", "sources6", "ip6 saddr & ffff:ffff:ffff:ffff::"),
    ):
        over = f"{{ {source} limit rate over {_beginning(ring, 2)} }}"
        yield f"\tchain {family}_begins {{"
        yield f"\t\tupdate @{sources} {over} counter name limited drop"
        yield "\t\tlimit name foreign counter name limited drop"
        yield "\t}"


def _chains(ring: Ring) -> list[str]:
    others = _checked(ring)
    start = (_BACKWARDS if ring.back else _FORWARDS) + 2 * len(others) + 1
    first = "previous" if ring.back else "next"
    marks = ", ".join(f"{mark:#010x}" for mark in _MARKS.values())
    lines = [
        "\tchain untracked_in {",
        "\t\ttype filter hook prerouting priority raw; policy accept;",
        f"\t\tudp dport {PORT} notrack",
        "\t}",
        "\tchain untracked_out {",
        "\t\ttype filter hook output priority raw; policy accept;",
        f"\t\tudp dport {PORT} notrack",
        "\t}",
        "\tchain tunnel_in {",
        "\t\ttype filter hook input priority filter - 1; policy accept;",
        f"\t\tudp dport {PORT} ip saddr != @peers4 drop",
        f"\t\tudp dport {PORT} ip6 saddr != @peers6 drop",
        "\t}",
    ]
    lines += _limits(ring)
    for family, _, field in _FAMILIES.values():
        lines.append(f"\tchain {family}_passed {{")
        if others:
            lines += [
                f"\t\t{family} {field} {end + 1}-{end + _MOST_HOPS}"
                f" meta mark set {_MARKS[side]:#010x} counter name passed accept"
                for side, end in (("next", _FORWARDS), ("previous", _BACKWARDS))
            ]
        lines += [
            "\t\tcounter name unowned",
            # A member without the VIP would send it back to the router, for ever.
            "\t\tfib daddr type != local drop",
            "\t}",
            f"\tchain {family}_flow {{",
            "\t\tct state invalid tcp flags & (fin | rst) == 0x0 accept",
            # Without an answer all its packets are "new"; from the first one on it is confirmed.
            f"\t\tct state new ct status & confirmed != confirmed jump {family}_begins",
            f'\t\tct state new ct timeout set "{family}_foreign"',
        ]
        if others:
            lines += [
                "\t\tct state invalid notrack",
                f'\t\tiifname "{DEVICE}" goto {family}_passed',
                (
                    f"\t\t{family} {field} set {start} meta mark set {_MARKS[first]:#010x}"
                    " counter name begun accept"
                ),
            ]
        else:
            lines.append("\t\tcounter name unowned")
        lines.append("\t}")
    lines += [
        "\tchain from_tunnel {",
        *(
            f"\t\t{family} daddr @{vips} meta l4proto tcp return"
            for family, vips, _ in _FAMILIES.values()
        ),
        "\t\tdrop",
        "\t}",
        "\tchain prerouting {",
        "\t\ttype filter hook prerouting priority mangle; policy accept;",
        f'\t\tiifname "{DEVICE}" jump from_tunnel',
        "\t\tct state established accept",
        '\t\tiifname "lo" accept',
        *(
            f"\t\t{family} daddr @{vips} tcp flags & (syn | ack) == syn"
            f' ct timeout set "{family}_ends"'
            for family, vips, _ in _FAMILIES.values()
        ),
        *(
            f"\t\t{family} daddr @{vips} tcp flags & syn == 0x0 goto {family}_flow"
            for family, vips, _ in _FAMILIES.values()
        ),
        "\t}",
        "\tchain postrouting {",
        "\t\ttype filter hook postrouting priority mangle; policy accept;",
        f'\t\toifname "{DEVICE}" meta mark set 0x0',  # lest the outer packet is handed over, too
    ]
    if ring.mtu:
        outer = _OUTER[ip_address(_own(ring).address).version]
        lines += [
            f"\t\t{family} saddr @{vips} tcp flags & (syn | ack) == syn | ack"
            f" tcp option maxseg size set {ring.mtu - outer - _HEADERS[version]}"
            for version, (family, vips, _) in _FAMILIES.items()
        ]
    lines.append("\t}")
    if not ring.forwards:
        lines += [
            "\tchain forward {",
            "\t\ttype filter hook forward priority filter; policy accept;",
            f"\t\tmeta mark != {{ {marks} }} drop",
            "\t}",
        ]
    return lines


# ─── the tunnel, the kernel's settings, and routes


def link() -> list[list[str]]:
    """Commands that make the tunnel; a device of its name with other properties must be gone."""
    kind = ["external", "gpe", "dstport", str(PORT), "nolearning", "udp6zerocsumrx"]
    return [
        ["ip", "link", "add", DEVICE, "type", "vxlan", *kind],
        ["ip", "link", "set", DEVICE, "addrgenmode", "none"],  # so it sends no redirects of ICMPv6
        ["ip", "link", "set", DEVICE, "mtu", str(_DEVICE_MTU), "up"],
    ]


def sysctls(ring: Ring) -> dict[str, str]:
    """Paths below /proc/sys, in the order to write them; those of the tunnel end with it."""
    _checked(ring)
    out = {
        "net/netfilter/nf_conntrack_tcp_loose": "1",
        f"net/ipv4/conf/{DEVICE}/rp_filter": "2",
        f"net/ipv4/conf/{DEVICE}/forwarding": "1",
        f"net/ipv4/conf/{ring.device}/forwarding": "1",
    }
    if 6 in _versions(ring):
        out["net/ipv6/conf/all/forwarding"] = "1"
    return out


def _versions(ring: Ring) -> list[int]:
    return sorted({ip_address(vip).version for vip in ring.vips} | {4})


def _own(ring: Ring) -> Member:
    return next(member for member in ring.members if member.name == ring.me)


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
            outer = _FAMILIES[ip_address(member.address).version][0]
            field = "ttl" if outer == "ip" else "hoplimit"
            lines.append(
                f"route replace default table {_MARKS[side]}"
                f" encap {outer} id {_VNI} dst {member.address} {field} 64 dev {DEVICE}"
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
