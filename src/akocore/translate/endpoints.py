"""Which addresses are no endpoints: VIPs, Service Engines, loopback, and what else leads nowhere.

An endpoint that is a VIP makes a loop that nothing ends; one that is an engine, a node or this
machine leads past everything that keeps tenants apart.  `Table` is compiled from what is known of
these; to ask it costs half a microsecond an address, however much it knows.  An IPv6 address that
stands for an IPv4 one (mapped, NAT64, 6to4 ...) is judged as both.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterator, Mapping
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton

from msgspec import Struct

from akocore.kube.objects import EndpointSlice, NetworkSpec
from akocore.model import Refusal

__all__ = ["Known", "Table", "left_out", "not_allowed", "plain_address"]

_SHOWN = 3  # addresses that a refusal names
_LOOPBACK = "loopback"
_NEVER = {
    "0.0.0.0/8": "no address of anybody",
    "::/128": "no address of anybody",
    "224.0.0.0/4": "multicast",
    "ff00::/8": "multicast",
    "255.255.255.255/32": "broadcast",
}
_SELDOM = {
    "169.254.0.0/16": "link-local",
    "fe80::/10": "link-local",
    "127.0.0.0/8": _LOOPBACK,
    "::1/128": _LOOPBACK,
}
_PORT = "a port of akocore's own"

Range = tuple[bytes, bytes]  # first and last address, as they are on the wire


class Known(Struct, frozen=True):
    """What a `Table` is made of.

    ``vips``: Networks by name, and whatever else VIPs serve at; ``engines``: addresses of Service
    Engines and controllers, with whose; ``allow`` and ``deny``: CIDRs of the configuration, of
    which the first wins over all but VIPs.  ``ports``: where akocore itself listens at one of
    ``here`` (which are this machine's addresses besides loopback).
    """

    vips: Mapping[str, NetworkSpec] = {}
    strays: Collection[str] = ()
    engines: Mapping[str, str] = {}
    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    loopback: bool = False
    ports: frozenset[int] = frozenset()
    here: frozenset[str] = frozenset()


class Table:
    """What is known, compiled.  To make one costs what is known, squared; to ask it, its log."""

    def __init__(self, known: Known) -> None:
        self.known = known
        self.ports = known.ports
        self._own = {_packed(a): who for a, who in known.engines.items() if _packed(a)}
        self._here = {_packed(address) for address in known.here}
        rules: list[tuple[Range, str | None]] = []  # of several that meet the first counts
        for name, spec in known.vips.items():
            rules += [(one, f"a VIP of Network {name}") for one in _ranges(spec, vips=True)]
        rules += [((at, at), "a VIP") for a in known.strays if (at := _packed(a))]
        rules += [(_network(text), why) for text, why in _NEVER.items()]
        rules += [(_network(text), None) for text in known.allow]
        rules += [(_network(text), "in endpoints.deny") for text in known.deny]
        for name, spec in known.vips.items():
            whose = f"a Service Engine's, of Network {name}"
            rules += [(one, whose) for one in _ranges(spec, vips=False)]
        rules += [
            (_network(text), why)
            for text, why in _SELDOM.items()
            if why is not _LOOPBACK or not known.loopback
        ]
        self._four = _compiled([one for one in rules if len(one[0][0]) == 4], 4)
        self._six = _compiled([one for one in rules if len(one[0][0]) == 16], 16)

    def why(self, address: str) -> str:
        """What an address is instead of an endpoint; "": it may be one."""
        try:
            at = inet_pton(AF_INET, address)
        except (OSError, ValueError):
            return self._why_not_plain(address)
        found = self._four[1][bisect_right(self._four[0], at)]
        return self._own.get(at, "") if found is _OPEN else found

    def is_own_port(self, address: str) -> bool:
        """Whether it is this machine, where akocore listens at `ports` itself."""
        at = _packed(address)
        return any(one in self._here or _is_loopback(one) for one in (at, *_embedded(at)))

    def _why_not_plain(self, address: str) -> str:
        """Of IPv6, and of what is spelled in another way."""
        if ":" not in address:
            at = _packed(address)
            return self._why_four(at) if at else "no address"
        at = _packed(address)
        if not at:
            return "no address"
        found = self._six[1][bisect_right(self._six[0], at)]
        if found is _OPEN:
            found = self._own.get(at, "")
        return found or next((w for one in _embedded(at) if (w := self._why_four(one))), "")

    def _why_four(self, at: bytes) -> str:
        found = self._four[1][bisect_right(self._four[0], at)]
        return self._own.get(at, "") if found is _OPEN else found


_OPEN = "open"
"""What a range says of which no rule speaks (it is compared by identity)."""


def _compiled(rules: list[tuple[Range, str | None]], size: int) -> tuple[list[bytes], list[str]]:
    """Where each run of addresses begins, and what is said of it (and before the first)."""
    edges = {first for (first, _), _ in rules}
    for (_, last), _ in rules:
        after = int.from_bytes(last, "big") + 1
        if after < 1 << 8 * size:
            edges.add(after.to_bytes(size, "big"))
    starts: list[bytes] = []
    says = [_OPEN]
    for edge in sorted(edges):
        why: str | None = _OPEN
        for (first, last), said in rules:
            if first <= edge <= last:
                why = said
                break
        starts.append(edge)
        says.append(why or "")
    return starts, says


def _network(text: str) -> Range:
    network: IPv4Network | IPv6Network = ip_network(text, strict=False)
    return network[0].packed, network[-1].packed


def _ranges(spec: NetworkSpec, *, vips: bool) -> Iterator[Range]:
    """Of a Network that may be no good as a whole: what can be read of it."""
    for one in spec.vip_ranges if vips else spec.se_ranges:
        try:
            first, last = ip_address(one.begin), ip_address(one.end)
        except ValueError:
            continue
        if first.version == last.version:
            yield first.packed, last.packed


def _packed(address: str) -> bytes:
    """An address on the wire; b"": it is none.  Leading zeros of IPv4 count as nothing."""
    try:
        if ":" in address:
            return inet_pton(AF_INET6, address)
        return inet_pton(AF_INET, ".".join(p.lstrip("0") or p[:1] for p in address.split(".")))
    except (OSError, ValueError):
        return b""


def plain_address(address: str) -> str:
    """An endpoint's address as Envoy reads it: what kube-proxy makes of it.

    The API server takes leading zeros, which count as nothing (never as octal), and IPv4 mapped
    into IPv6.  What is no address stays as it is.
    """
    if ":" in address:
        at = _packed(address) if "." in address or "ffff" in address.lower() else b""
        mapped = len(at) == 16 and at.startswith(_BEFORE[0])
        return inet_ntop(AF_INET, at[12:]) if mapped else address
    if address[:1] != "0" and ".0" not in address:
        return address
    at = _packed(address)
    return inet_ntop(AF_INET, at) if at else address


def _is_loopback(at: bytes) -> bool:
    return at[:1] == b"\x7f" if len(at) == 4 else at == bytes(15) + b"\1"


_BEFORE = (
    bytes(10) + b"\xff\xff",  # mapped: RFC 4291
    bytes(8) + b"\xff\xff\0\0",  # translated: RFC 2765
    b"\0\x64\xff\x9b" + bytes(8),  # NAT64: RFC 6052
)


def _embedded(at: bytes) -> Iterator[bytes]:
    """The IPv4 addresses that an IPv6 one may stand for."""
    if len(at) != 16:
        return
    head = at[:12]
    # IPv4-compatible; ::1 and the like are not.
    if head in _BEFORE or (head == bytes(12) and at[12:15] != bytes(3)):
        yield at[12:]
    elif at[:6] == b"\0\x64\xff\x9b\0\1":  # local NAT64, RFC 8215: /96 and longer, or /48
        yield from (one for one in (at[12:], at[6:8] + at[9:11]) if one[0])
    elif at[:2] == b"\x20\x02":  # 6to4: RFC 3056
        yield at[2:6]
    elif at[:4] == b"\x20\1\0\0":  # Teredo: RFC 4380
        yield bytes(255 - one for one in at[12:])
    elif at[8:12] in (b"\0\0\x5e\xfe", b"\2\0\x5e\xfe"):  # ISATAP: RFC 5214
        yield at[12:]


# ── slices ──────────────────────────────────────────────────────────────────────────────────


def left_out(slice_: EndpointSlice, table: Table) -> dict[str, str]:
    """The addresses of a slice that are no endpoints, and what they are.  Cost: its endpoints."""
    if slice_.address_type == "FQDN":
        return {}
    why = table.why
    out: dict[str, str] = {}
    for endpoint in slice_.endpoints or ():
        if endpoint.addresses and (found := why(endpoint.addresses[0])):
            out[endpoint.addresses[0]] = found
    ports = table.ports
    if ports and any(port.port in ports for port in slice_.ports or ()):
        for endpoint in slice_.endpoints or ():
            for address in endpoint.addresses[:1]:
                if address not in out and table.is_own_port(address):
                    out[address] = _PORT
    return out


def not_allowed(
    object_: str, field: str, service: str, found: Mapping[str, Mapping[str, str]], **kind: bool
) -> Refusal:
    """What an object that leads to ``service`` is told.  ``found``: by slice, of `left_out`."""
    slices = sorted(found)
    told = [f"{_spelled(a)} ({why})" for key in slices for a, why in found[key].items()]
    more = len(told) - _SHOWN
    some = ", ".join(told[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
    where = f"EndpointSlice {slices[0]}" + (f" and {len(slices) - 1} more" if slices[1:] else "")
    return Refusal(
        object=object_,
        field=field,
        reason="EndpointNotAllowed",
        remedy=f"Endpoints of Service {service} are left out: {some}, in {where}. Give addresses of"
        " its pods; the configuration's endpoints.allow says what else may be one.",
        **kind,
    )


def _spelled(address: str) -> str:
    return address if len(address) < 46 and address.isprintable() else repr(address[:45])
