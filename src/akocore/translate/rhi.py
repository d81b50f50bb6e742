"""Route health injection: what is wrong with a Network's BGP, and what it makes of a router.

Pure.  Ranges of numbers: RFC 4271 (AS, hold time), RFC 6793 and 7607 and 7300 (AS), RFC 1997 and
8092 (communities), and what FRR's commands take.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import IPv4Address, ip_address, ip_network

import msgspec

from akocore.engines.frr.config import WELL_KNOWN, Bfd, Peer, RouterConfig, Snat, Vip
from akocore.kube.objects import AddressRange, BgpPeer, NetworkSpec
from akocore.model import Refusal
from akocore.shown import quoted

__all__ = [
    "check_bgp",
    "check_bgp_together",
    "check_password",
    "check_passwords",
    "check_router_ids",
    "is_outside",
    "router_config",
]

_LABEL = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_DNS_LABEL = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
_NAME = re.compile(rf"(?=.{{1,253}}\Z){_DNS_LABEL}(\.{_DNS_LABEL})*")
_MAX_PASSWORD = 80  # TCP_MD5SIG_MAXKEYLEN


def check_bgp(name: str, spec: NetworkSpec) -> tuple[Refusal, ...]:
    """All that is wrong with the BGP part of a Network by itself; () when nothing is.

    The Network's own subnet and VIP ranges must have passed `check_network`.
    """
    return tuple(
        Refusal(object=f"Network/{name}", field=field, reason="InvalidBgp", remedy=remedy)
        for field, remedy in _problems(spec)
    )


def _problems(spec: NetworkSpec) -> Iterator[tuple[str, str]]:
    bgp = spec.bgp
    if bgp is None:
        return
    yield from _as_number("spec.bgp.localAs", bgp.local_as)
    yield from _prefix(spec, bgp.prefix)
    for i, community in enumerate(bgp.communities):
        if not _is_community(community):
            yield (
                f"spec.bgp.communities[{i}]",
                (
                    f"{community!r} is no community. Write it as 65000:1, as 65000:1:1, or one of"
                    f" {', '.join(WELL_KNOWN)}."
                ),
            )
    if not bgp.peers:
        yield "spec.bgp.peers", "Add the router that VIPs are announced to."
    seen: dict[str, int] = {}
    for i, peer in enumerate(bgp.peers):
        at = f"spec.bgp.peers[{i}]"
        yield from _peer(at, peer, bgp.local_as)
        try:
            ip = ip_address(peer.address)
        except ValueError as err:
            yield f"{at}.address", f"{quoted(err)}. Write it as 10.10.16.250."
            continue
        if ip.is_unspecified or ip.is_multicast or ip.is_loopback:
            yield f"{at}.address", f"{ip} can't be a router's address. Give that of the router."
        if (earlier := seen.setdefault(str(ip), i)) != i:
            yield f"{at}.address", f"spec.bgp.peers[{earlier}] is {ip} already. Take one out."
        for kind, ranges in (("vipRanges", spec.vip_ranges), ("seRanges", spec.se_ranges)):
            for j, found in enumerate(ranges):
                if _holds(found, str(ip)):
                    yield (
                        f"{at}.address",
                        (
                            f"{ip} is in spec.{kind}[{j}], where it would be given away."
                            " Take it out of the range."
                        ),
                    )


def _prefix(spec: NetworkSpec, prefix: str) -> Iterator[tuple[str, str]]:
    if not prefix:
        return
    try:
        network = ip_network(prefix)
    except ValueError as err:
        yield "spec.bgp.prefix", f"{quoted(err)}. Write it as 10.10.16.0/24."
        return
    for i, found in enumerate(spec.vip_ranges):
        ends = (ip_address(found.begin), ip_address(found.end))
        if any(end not in network for end in ends):
            yield (
                f"spec.vipRanges[{i}]",
                (
                    f"{found.begin}-{found.end} is not inside spec.bgp.prefix {prefix}, so it would"
                    " not be announced. Move it inside, or widen the prefix."
                ),
            )


def _peer(at: str, peer: BgpPeer, local_as: int) -> Iterator[tuple[str, str]]:
    yield from _as_number(f"{at}.remoteAs", peer.remote_as)
    yield from _within(f"{at}.ebgpMultihop", peer.ebgp_multihop, 0, 255, "hops")
    if peer.ebgp_multihop and peer.remote_as == local_as:
        yield (
            f"{at}.ebgpMultihop",
            f"A peer of our own AS {local_as} may be any number of hops away. Take it out.",
        )
    if peer.ttl_security and peer.ebgp_multihop:
        yield (
            f"{at}.ttlSecurity",
            f"With ebgpMultihop {peer.ebgp_multihop} packets are routed. Take one of them out.",
        )
    timers = peer.bfd_timers
    yield from _within(f"{at}.bfdTimers.transmitMs", timers.transmit_ms, 10, 60_000, "ms")
    yield from _within(f"{at}.bfdTimers.receiveMs", timers.receive_ms, 10, 60_000, "ms")
    yield from _within(f"{at}.bfdTimers.multiplier", timers.multiplier, 2, 255, "intervals")
    yield from _within(f"{at}.connectTimer", peer.connect_timer, 1, 65_535, "s")
    interval = peer.advertisement_interval
    yield from _within(f"{at}.advertisementInterval", interval, 0, 600, "s")
    yield from _within(f"{at}.keepaliveTimer", peer.keepalive_timer, 0, 65_535, "s")
    if peer.hold_timer and not 3 <= peer.hold_timer <= 65_535:  # RFC 4271 4.2
        yield f"{at}.holdTimer", f"{peer.hold_timer} s is neither 0 nor from 3 to 65535. Change it."
    elif peer.hold_timer and peer.keepalive_timer * 3 > peer.hold_timer:  # RFC 4271 10
        yield (
            f"{at}.keepaliveTimer",
            (
                f"{peer.keepalive_timer} s is more than a third of holdTimer {peer.hold_timer} s."
                " Make it shorter."
            ),
        )
    if peer.label and not _LABEL.fullmatch(peer.label):
        yield (
            f"{at}.label",
            f"{peer.label!r} is no label. Use at most 63 letters, digits, -, _ and dots.",
        )
    if (ref := peer.password_secret) is not None:
        for field, value in (("name", ref.name), ("namespace", ref.namespace)):
            if not _NAME.fullmatch(value):
                yield (
                    f"{at}.passwordSecret.{field}",
                    f"{value!r} can't be a {field}. Give that of a Secret with key password.",
                )


def _within(field: str, value: int, low: int, high: int, unit: str) -> Iterator[tuple[str, str]]:
    if not low <= value <= high:
        yield field, f"{value} {unit} is not from {low} to {high}. Change it."


def _as_number(field: str, number: int) -> Iterator[tuple[str, str]]:
    if not 1 <= number < 1 << 32:
        yield field, f"{number} is not from 1 to 4294967295. Give your AS number."
    elif number in (23456, 65535, (1 << 32) - 1):
        yield field, f"AS {number} is reserved. Give your AS number."


def _is_community(text: str) -> bool:
    if text in WELL_KNOWN:
        return True
    parts = text.split(":")
    if not all(re.fullmatch(r"0|[1-9][0-9]{0,9}", part) for part in parts):
        return False
    limit = {2: 1 << 16, 3: 1 << 32}.get(len(parts), 0)
    return all(int(part) < limit for part in parts)


def _holds(found: AddressRange, address: str) -> bool:
    try:
        begin, end, ip = ip_address(found.begin), ip_address(found.end), ip_address(address)
    except ValueError:
        return False
    return begin.version == ip.version == end.version and int(begin) <= int(ip) <= int(end)


def is_outside(spec: NetworkSpec, address: str) -> bool:
    """Whether an address is in a Network's subnet and in none of its ranges for engines."""
    return ip_address(address) in ip_network(spec.subnet) and not any(
        _holds(found, address) for found in spec.se_ranges
    )


def check_passwords(
    name: str, spec: NetworkSpec, passwords: Mapping[tuple[str, str], str]
) -> tuple[Refusal, ...]:
    """Peers of a Network that are left out for want of a good password: no session could come up.

    ``passwords``: of the Secrets that are there, by (namespace, name).
    """
    out = []
    for i, peer in enumerate(spec.bgp.peers if spec.bgp is not None else ()):
        if (ref := peer.password_secret) is None:
            continue
        field = f"spec.bgp.peers[{i}].passwordSecret"
        if (password := passwords.get((ref.namespace, ref.name))) is None:
            found: Refusal | None = Refusal(
                object=f"Network/{name}",
                field=field,
                reason="SecretNotFound",
                remedy=f"Create Secret {ref.namespace}/{ref.name} with key password: without it"
                f" {peer.address} is left out.",
                warning=True,
            )
        else:
            found = check_password(name, field, password)
        if found is not None:
            out.append(msgspec.structs.replace(found, warning=True))
    return tuple(out)


def check_bgp_together(networks: Mapping[str, NetworkSpec]) -> dict[str, tuple[Refusal, ...]]:
    """Networks that can't be announced beside an earlier one, by name; each passed `check_bgp`.

    One router speaks for all of them, so they share its AS, and what they say of one peer.
    """
    out: dict[str, tuple[Refusal, ...]] = {}
    good: list[str] = []
    for name in sorted(networks):
        found = [
            Refusal(object=f"Network/{name}", field=field, reason=reason, remedy=remedy)
            for other in good
            for field, reason, remedy in _conflicts(networks[name], other, networks[other])
        ]
        if networks[name].bgp is None:
            continue
        if found:
            out[name] = tuple(found)
        else:
            good.append(name)
    return out


def _announced(spec: NetworkSpec) -> str:
    return (spec.bgp.prefix if spec.bgp is not None else "") or spec.subnet


def _conflicts(
    spec: NetworkSpec, other: str, earlier: NetworkSpec
) -> Iterator[tuple[str, str, str]]:
    if spec.bgp is None or earlier.bgp is None:
        return
    mine, theirs = ip_network(_announced(spec)), ip_network(_announced(earlier))
    if mine.version == theirs.version and mine.overlaps(theirs):
        yield (
            "spec.bgp.prefix" if spec.bgp.prefix else "spec.subnet",
            "OverlappingPrefixes",
            f"{mine} overlaps {theirs}, which Network {other} announces. Separate them.",
        )
    if spec.bgp.local_as != earlier.bgp.local_as:
        yield (
            "spec.bgp.localAs",
            "ConflictingLocalAs",
            (
                f"Network {other} has AS {earlier.bgp.local_as}, and a Service Engine has one."
                " Use the same."
            ),
        )
    theirs_by = {str(ip_address(p.address)): p for p in earlier.bgp.peers}
    for i, peer in enumerate(spec.bgp.peers):
        same = theirs_by.get(str(ip_address(peer.address)))
        if same is not None and (same != peer or spec.bgp.communities != earlier.bgp.communities):
            yield (
                f"spec.bgp.peers[{i}]",
                "ConflictingPeers",
                (
                    f"Network {other} says something else of {peer.address} or its communities."
                    " Say the same in both."
                ),
            )


def check_router_ids(ids: Mapping[str, str]) -> dict[str, Refusal]:
    """Service Engines whose router id an earlier one has, by name (RFC 6286: unique in an AS)."""
    out: dict[str, Refusal] = {}
    owner: dict[str, str] = {}
    for name in sorted(ids):
        first = owner.setdefault(str(IPv4Address(ids[name])), name)
        if first != name:
            out[name] = Refusal(
                object=f"ServiceEngine/{name}",
                field="spec.routerId",
                reason="DuplicateRouterId",
                remedy=f"{ids[name]} is the router id of {first}. Give each its own.",
            )
    return out


def check_password(name: str, field: str, password: str) -> Refusal | None:
    """What is wrong with a password that a Network's Secret holds; it is not repeated."""
    said = ""
    if not password:
        said = "The Secret has no key password. Add it."
    elif len(password) > _MAX_PASSWORD:
        said = f"The password is longer than {_MAX_PASSWORD} characters. Make it shorter."
    elif not re.fullmatch(r"[!-~]+", password):
        said = "The password must be of printable ASCII characters, without spaces. Change it."
    if not said:
        return None
    return Refusal(object=f"Network/{name}", field=field, reason="InvalidPassword", remedy=said)


def router_config(
    name: str,
    router_id: str,
    networks: Mapping[str, NetworkSpec],
    vips: Iterable[Vip] = (),
    snats: Iterable[Snat] = (),
    passwords: Mapping[tuple[str, str], str] | None = None,
    *,
    graceful_shutdown: bool = False,
) -> RouterConfig | None:
    """The router of Service Engine ``name``; None: none of its ``networks`` has BGP.

    ``passwords``: by (namespace, name) of their Secrets.  A peer whose password is not known is
    left out: without it no session could come up.
    """
    local_as = 0
    peers: dict[str, Peer] = {}
    for network in sorted(networks):
        bgp = networks[network].bgp
        if bgp is None:
            continue
        local_as = bgp.local_as
        for peer in bgp.peers:
            address = str(ip_address(peer.address))
            password = ""
            if (ref := peer.password_secret) is not None:
                password = (passwords or {}).get((ref.namespace, ref.name), "")
                if not password:
                    continue
            before = peers[address].networks if address in peers else ()
            timers = peer.bfd_timers
            peers[address] = Peer(
                address=address,
                remote_as=peer.remote_as,
                networks=(*before, network),
                ebgp_multihop=peer.ebgp_multihop,
                ttl_security=peer.ttl_security,
                bfd=Bfd(
                    transmit_ms=timers.transmit_ms,
                    receive_ms=timers.receive_ms,
                    multiplier=timers.multiplier,
                )
                if peer.bfd
                else None,
                advertise_vip=peer.advertise_vip,
                advertise_snat=peer.advertise_snat,
                label=peer.label,
                communities=bgp.communities,
                password=password,
                connect_s=peer.connect_timer,
                advertisement_interval_s=peer.advertisement_interval,
                keepalive_s=peer.keepalive_timer,
                hold_s=peer.hold_timer,
            )
    if not local_as:
        return None
    return RouterConfig(
        name=name,
        router_id=router_id,
        local_as=local_as,
        peers=tuple(peers.values()),
        vips=tuple(vips),
        snats=tuple(snats),
        graceful_shutdown=graceful_shutdown,
    )
