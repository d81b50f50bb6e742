"""What one Service Engine's router must do, and the same as FRR's daemons read it.

`render` is pure: equal configurations are equal texts, whatever order they were made in.  Each
line is as FRR itself would show it, so texts can be told apart line by line.

Sources: BGP-4 is RFC 4271, BFD RFC 5880 (for BGP 5882), communities RFC 1997 and 8092, passwords
RFC 2385, graceful shutdown RFC 8326; the commands are those of FRR 8.4.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import StrEnum
from functools import lru_cache
from ipaddress import ip_address
from typing import NamedTuple
from zlib import crc32

from msgspec import Struct

__all__ = [
    "DAEMONS",
    "WELL_KNOWN",
    "Bfd",
    "Peer",
    "Rendered",
    "RouterConfig",
    "Snat",
    "Vip",
    "VipState",
    "canonical",
    "host_prefix",
    "in_map",
    "in_order",
    "out_map",
    "render",
]

WELL_KNOWN = {"no-export": 65281, "no-advertise": 65282, "local-AS": 65283, "no-peer": 65284}
"""Communities by name: the second half of 65535:N (RFC 1997 and 3765)."""

_GRACEFUL_SHUTDOWN = "graceful-shutdown"  # 65535:0, RFC 8326

_LONGER = 3  # by so many a standby's path is longer than that of who serves

DAEMONS = ("zebra", "bfdd", "bgpd")
"""In order of start: bgpd asks zebra for routes and bfdd for sessions."""


class _Part(
    Struct,
    frozen=True,
    kw_only=True,
    rename="camel",
    omit_defaults=True,
    forbid_unknown_fields=True,
):
    pass


class VipState(StrEnum):
    """A VIP goes from left to right; every step is one `RouterConfig`."""

    ADVERTISED = "Advertised"
    STANDBY = "Standby"  # announced as the worse way: used where nobody else announces it
    DRAINING = "Draining"  # announced as about to go (RFC 8326): used where nobody else has it
    ANSWERED = "Answered"  # by ARP and ND on its segment, and not announced
    HELD = "Held"  # no longer announced; packets on their way still find it


class Bfd(_Part, frozen=True):
    """A failure is found after ``multiplier`` × the longer of both sides' intervals."""

    transmit_ms: int = 100
    receive_ms: int = 100
    multiplier: int = 3

    @property
    def profile(self) -> str:
        return f"ako-{self.transmit_ms}-{self.receive_ms}-{self.multiplier}"


class Peer(_Part, frozen=True):
    """A router that is told VIPs.  ``networks``: those whose VIPs it is told.

    ``label``: a VIP that names labels goes only to peers that have one of them.
    """

    address: str
    remote_as: int
    networks: tuple[str, ...]
    ebgp_multihop: int = 0
    ttl_security: bool = False
    bfd: Bfd | None = None
    advertise_vip: bool = True
    advertise_snat: bool = False
    label: str = ""
    communities: tuple[str, ...] = ()
    password: str = ""
    connect_s: int = 10
    advertisement_interval_s: int = 0
    keepalive_s: int = 60
    hold_s: int = 180

    def __repr__(self) -> str:
        return f"Peer({self.address}, AS {self.remote_as})"  # never the password


class Vip(_Part, frozen=True):
    """An address that the Service Engine answers at.  ``labels`` (): every peer is told."""

    address: str
    network: str
    labels: tuple[str, ...] = ()
    state: VipState = VipState.ADVERTISED


class Snat(_Part, frozen=True):
    """An address that the Service Engine asks backends from, where it isn't its own already."""

    address: str
    network: str


class RouterConfig(_Part, frozen=True):
    """One Service Engine's router.

    ``graceful_shutdown``: every announcement is marked as about to go (RFC 8326).
    """

    name: str
    router_id: str
    local_as: int
    peers: tuple[Peer, ...] = ()
    vips: tuple[Vip, ...] = ()
    snats: tuple[Snat, ...] = ()
    graceful_shutdown: bool = False

    @property
    def addresses(self) -> tuple[str, ...]:
        """What must be on the loopback interface, whatever its state; sorted."""
        return in_order({*(v.address for v in self.vips), *(s.address for s in self.snats)})

    def told(self, peer: Peer) -> tuple[str, ...]:
        """Prefixes that ``peer`` is told; sorted."""
        return tuple(
            host_prefix(address)
            for address in in_order(
                address
                for group, addresses in _groups(self).items()
                if group.goes_to(peer)
                for address in addresses
            )
            if _version(address) == _version(peer.address)
        )


class _Group(Struct, frozen=True, order=True):
    """Announcements that go to the same peers and carry the same marks: one route-map."""

    kind: str  # "VIP" or "SNAT"
    network: str
    labels: tuple[str, ...] = ()
    draining: bool = False
    standby: bool = False

    def goes_to(self, peer: Peer) -> bool:
        wanted = peer.advertise_vip if self.kind == "VIP" else peer.advertise_snat
        return (
            wanted
            and self.network in peer.networks
            and (not self.labels or peer.label in self.labels)
        )

    @property
    def route_map(self) -> str:
        # No name of a Network and no label has a slash.
        kind = "DRAIN" if self.draining else "STANDBY" if self.standby else self.kind
        return _word("/".join([f"{kind}_RM", self.network, *self.labels]))

    @property
    def tag(self) -> int:
        """The same for what drains and what doesn't, and whatever other groups there are."""
        words = [self.kind, self.network, *self.labels]
        return crc32("/".join(words).encode()) or 1


def _groups(config: RouterConfig) -> dict[_Group, list[str]]:
    """Announced addresses by group, sorted."""
    alike: dict[tuple[str, tuple[str, ...], VipState], list[str]] = {}
    for vip in config.vips:
        if vip.state not in (VipState.HELD, VipState.ANSWERED):
            alike.setdefault((vip.network, vip.labels, vip.state), []).append(vip.address)
    found: dict[_Group, list[str]] = {}
    for (network, labels, state), addresses in alike.items():
        group = _Group(
            "VIP",
            network,
            tuple(sorted(set(labels))),
            state is VipState.DRAINING,
            state is VipState.STANDBY,
        )
        found.setdefault(group, []).extend(addresses)
    for snat in config.snats:
        found.setdefault(_Group("SNAT", snat.network), []).append(snat.address)
    groups = dict(sorted(found.items()))
    if len({(g.tag, g.kind, g.network, g.labels) for g in groups}) > len({g.tag for g in groups}):
        raise ValueError("two Networks or sets of labels have one tag: rename one")
    return groups


class Rendered(Struct, frozen=True):
    """The configuration of each daemon."""

    zebra: str
    bfdd: str
    bgpd: str

    def of(self, daemon: str) -> str:
        text: str = getattr(self, daemon)
        return text

    def __repr__(self) -> str:
        return f"Rendered({len(self.zebra)}, {len(self.bfdd)}, {len(self.bgpd)} characters)"


def in_map(peer: str) -> str:
    """Name of the route-map for what ``peer`` tells us."""
    return f"PEER_RM_IN_{peer}"


def out_map(peer: str) -> str:
    """Name of the route-map for what ``peer`` is told."""
    return f"PEER_RM_OUT_{peer}"


class _Parsed(NamedTuple):
    """An address.  They sort IPv4 before IPv6, by number."""

    version: int
    number: int
    text: str  # as Python writes it
    prefix: str  # of just this address: a /32 or a /128


@lru_cache(maxsize=1 << 16)  # parsing costs 3 µs, and each change looks at the same ones again
def _parsed(address: str) -> _Parsed:
    ip = ip_address(address)
    return _Parsed(ip.version, int(ip), str(ip), f"{address}/{ip.max_prefixlen}")


def _version(address: str) -> int:
    return _parsed(address).version


def canonical(address: str) -> str:
    """As Python writes it.  Raises `ValueError` for what is no address."""
    return _parsed(address).text


def in_order(addresses: Iterable[str]) -> tuple[str, ...]:
    """Each once, as Python writes it, IPv4 before IPv6, by number."""
    return tuple(sorted({_parsed(a).text for a in addresses}, key=_parsed))


def host_prefix(address: str) -> str:
    """The prefix of just this address: a /32 or a /128."""
    return _parsed(address).prefix


def _line(text: str) -> str:
    """``text`` when it can be the rest of a line.  What users wrote was checked before."""
    if text != text.strip() or not text.isprintable():
        raise ValueError("a line of FRR's configuration has no room for control characters")
    return text


def _word(text: str) -> str:
    if " " in _line(text):
        raise ValueError("a word of FRR's configuration has no room for spaces")
    return text


def render(config: RouterConfig) -> Rendered:
    """What each daemon must be told.  Cost: VIPs × peers.

    Raises `ValueError` for an address, a router id or a text that can't be in a configuration.
    """
    head = ["frr defaults traditional", f"hostname {_word(config.name)}", "!"]
    return Rendered(
        zebra=_text(head),
        bfdd=_text([*head, *_bfd(config)]),
        bgpd=_text([*head, *_bgp(config)]),
    )


def _text(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def _bfd(config: RouterConfig) -> Iterator[str]:
    profiles = {peer.bfd.profile: peer.bfd for peer in config.peers if peer.bfd is not None}
    if not profiles:
        return
    yield "bfd"
    for name, bfd in sorted(profiles.items()):
        yield f" profile {name}"
        yield f"  detect-multiplier {bfd.multiplier}"
        yield f"  transmit-interval {bfd.transmit_ms}"
        yield f"  receive-interval {bfd.receive_ms}"
        yield " exit"
    yield "exit"


def _bgp(config: RouterConfig) -> Iterator[str]:
    peers = sorted(config.peers, key=lambda peer: _parsed(peer.address))
    groups = _groups(config)
    # 0: bgpd looks at changed maps when it is asked to, once they are complete.
    yield "bgp route-map delay-timer 0"
    yield "!"
    for group in groups:
        yield f"route-map {group.route_map} permit 10"
        if group.draining:
            yield f" set community {_GRACEFUL_SHUTDOWN}"
            yield " set local-preference 0"  # for a peer of our AS, which is told it
        if group.standby:
            yield f" set as-path prepend {' '.join([str(config.local_as)] * _LONGER)}"
            yield " set local-preference 50"  # the usual is 100
        yield f" set tag {group.tag}"
        yield "exit"
        yield "!"
    for peer in peers:
        yield from _policy(peer, groups)
    yield f"router bgp {config.local_as}"
    yield f" bgp router-id {canonical(config.router_id)}"
    yield " no bgp default ipv4-unicast"
    if config.graceful_shutdown:
        yield " bgp graceful-shutdown"
    yield " bgp network import-check"  # a VIP is announced only while it is on an interface
    yield " coalesce-time 0"
    for peer in peers:
        yield from _neighbor(config, peer)
    maps = {
        address: group.route_map for group, addresses in groups.items() for address in addresses
    }
    for version, family in ((4, "ipv4 unicast"), (6, "ipv6 unicast")):
        mine = [peer for peer in peers if _version(peer.address) == version]
        networks = {canonical(a): m for a, m in maps.items() if _version(a) == version}
        if not mine and not networks:
            continue
        yield " !"
        yield f" address-family {family}"
        for address in in_order(networks):
            yield f"  network {host_prefix(address)} route-map {networks[address]}"
        for peer in mine:
            address = canonical(peer.address)
            yield f"  neighbor {address} activate"
            yield f"  neighbor {address} route-map {in_map(address)} in"
            yield f"  neighbor {address} route-map {out_map(address)} out"
            # Nothing is taken in; should that ever fail, the session ends for a minute.
            yield f"  neighbor {address} maximum-prefix 1 restart 1"
        yield " exit-address-family"
    yield "exit"


def _communities(communities: Iterable[str]) -> str:
    """Each once and by number, as FRR shows them."""

    def number(community: str) -> list[int]:
        if community in WELL_KNOWN:
            return [65535, WELL_KNOWN[community]]
        return [int(part) for part in community.split(":")]

    return " ".join(sorted(set(communities), key=number))


def _policy(peer: Peer, groups: Iterable[_Group]) -> Iterator[str]:
    """Nothing in; out only what the peer is told."""
    address = canonical(peer.address)
    yield f"route-map {in_map(address)} deny 10"
    yield "exit"
    yield "!"
    plain = [c for c in peer.communities if c.count(":") < 2]
    large = [c for c in peer.communities if c.count(":") == 2]
    tags = dict.fromkeys(group.tag for group in groups if group.goes_to(peer))
    for sequence, tag in enumerate(tags, start=1):
        yield f"route-map {out_map(address)} permit {10 * sequence}"
        yield f" match tag {tag}"
        if plain:
            yield f" set community {_communities(plain)} additive"
        if large:
            yield f" set large-community {_communities(large)} additive"
        yield "exit"
        yield "!"
    yield f"route-map {out_map(address)} deny 65535"
    yield "exit"
    yield "!"


def _neighbor(config: RouterConfig, peer: Peer) -> Iterator[str]:
    me = f" neighbor {canonical(peer.address)}"
    yield f"{me} remote-as {peer.remote_as}"
    if peer.label:
        yield f"{me} description {_line(peer.label)}"
    if peer.password:
        yield f"{me} password {_word(peer.password)}"
    if peer.ebgp_multihop and peer.remote_as != config.local_as:
        yield f"{me} ebgp-multihop {peer.ebgp_multihop}"
    elif peer.ttl_security:
        yield f"{me} ttl-security hops 1"
    if peer.bfd is not None:
        yield f"{me} bfd"
        yield f"{me} bfd profile {peer.bfd.profile}"
    yield f"{me} advertisement-interval {peer.advertisement_interval_s}"
    if (peer.keepalive_s, peer.hold_s) != (60, 180):
        yield f"{me} timers {peer.keepalive_s} {peer.hold_s}"
    yield f"{me} timers connect {peer.connect_s}"
