"""Addresses of VsVips: first come, lowest free, and kept until given back.

An address is remembered by owner under its Network, so the same owner gets it again after
a restart, as long as the Network still has it.
"""

from __future__ import annotations

import heapq
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from akocore.kube.objects import NetworkSpec
from akocore.model import Refusal
from akocore.shown import quoted

__all__ = ["Ipam", "check_network", "check_overlaps"]

_IP = IPv4Address | IPv6Address


def _ranges(spec: NetworkSpec) -> list[tuple[_IP, _IP]]:
    return [(ip_address(r.begin), ip_address(r.end)) for r in spec.vip_ranges]


def check_network(name: str, spec: NetworkSpec, *, speaks_bgp: bool = False) -> tuple[Refusal, ...]:
    """What is wrong with a Network by itself; () when nothing is.

    ``speaks_bgp``: somebody else looks at its BGP; else that is not acted on, and said so.
    """

    def no(field: str, remedy: str) -> tuple[Refusal, ...]:
        return (
            Refusal(object=f"Network/{name}", field=field, reason="InvalidNetwork", remedy=remedy),
        )

    try:
        subnet = ip_network(spec.subnet)
    except ValueError as err:
        return no("spec.subnet", f"{quoted(err)}. Write it as 10.10.16.0/24.")
    if not spec.vip_ranges:
        return no("spec.vipRanges", "Add at least one range of addresses for VIPs.")
    for i, r in enumerate(spec.vip_ranges):
        field = f"spec.vipRanges[{i}]"
        try:
            begin, end = ip_address(r.begin), ip_address(r.end)
        except ValueError as err:
            return no(field, f"{quoted(err)}. Write begin and end as plain addresses.")
        if begin not in subnet or end not in subnet:
            return no(field, f"{r.begin}-{r.end} is not inside {spec.subnet}. Move it inside.")
        if int(begin) > int(end):
            return no(field, f"begin {r.begin} is after end {r.end}. Exchange them.")
        if int(end) - int(begin) >= 1 << 20:
            return no(field, "A range holds at most 1048576 addresses. Make it smaller.")
        for j, other in enumerate(spec.vip_ranges[:i]):
            if ip_address(other.begin) <= end and begin <= ip_address(other.end):  # type: ignore[operator]
                return no(field, f"It overlaps spec.vipRanges[{j}]. Separate them.")
    if spec.bgp is not None and not speaks_bgp:
        return (
            Refusal(
                object=f"Network/{name}",
                field="spec.bgp",
                reason="Unsupported",
                remedy="Local Service Engines do not speak BGP: the peers are not contacted.",
                warning=True,
            ),
        )
    return ()


def check_overlaps(networks: dict[str, NetworkSpec]) -> dict[str, Refusal]:
    """Networks that can't be used since one that stands before has some of their addresses."""
    out: dict[str, Refusal] = {}
    taken: list[tuple[int, int, int, str]] = []
    for name in networks:
        mine = [(b.version, int(b), int(e)) for b, e in _ranges(networks[name])]
        for version, begin, end in mine:
            for v, b, e, other in taken:
                if v == version and begin <= e and b <= end:
                    out[name] = Refusal(
                        object=f"Network/{name}",
                        field="spec.vipRanges",
                        reason="OverlappingNetworks",
                        remedy=f"Some of its addresses belong to Network {other}. Separate them.",
                    )
        if name not in out:
            taken += [(*m, name) for m in mine]
    return out


class Ipam:
    """The addresses of one Network.  `give` is O(log n); nothing scans the range."""

    def __init__(self, spec: NetworkSpec) -> None:
        self.spec = spec
        self._ranges = _ranges(spec)
        self.size = sum(int(e) - int(b) + 1 for b, e in self._ranges)
        self.owners: dict[str, str] = {}  # owner → address
        self._taken: dict[_IP, str] = {}
        self._free: list[tuple[int, int]] = []  # heap of (range, offset) given back
        self._next = (0, 0)  # first place never looked at

    def _place(self, place: tuple[int, int]) -> _IP:
        return self._ranges[place[0]][0] + place[1]

    def _fresh(self) -> tuple[int, int] | None:
        i, offset = self._next
        while i < len(self._ranges):
            begin, end = self._ranges[i]
            if int(begin) + offset <= int(end):
                self._next = (i, offset + 1)
                return i, offset
            i, offset = i + 1, 0
        self._next = (i, 0)
        return None

    @property
    def free(self) -> int:
        return self.size - len(self._taken)

    def contains(self, address: str) -> bool:
        ip = ip_address(address)
        return any(b.version == ip.version and b <= ip <= e for b, e in self._ranges)  # type: ignore[operator]

    def assign(self, address: str, owner: str | None) -> None:
        """Another replica's word: the address is ``owner``'s and nobody else's; None: free."""
        ip = ip_address(address)
        if not self.contains(address):
            return
        before = self._taken.get(ip)
        if before is not None:
            if self.owners.get(before) == str(ip):
                del self.owners[before]
            self._put_back(ip)
        if owner is not None:
            self.release(owner)
            self.take(owner, address)

    def take(self, owner: str, address: str) -> bool:
        """Keep a remembered address.  False when it is foreign, another's, or a second one."""
        ip = ip_address(address)
        if not self.contains(address) or self._taken.get(ip, owner) != owner:
            return False
        if self.owners.setdefault(owner, str(ip)) != str(ip):
            return False
        self._taken[ip] = owner
        return True

    def give(self, owner: str, wanted: str = "") -> str | None:
        """The owner's address: the one it has, else the lowest free; None when all are taken.

        ``wanted``: just that one, or None.  The one that it had stays taken until `let_go`.
        """
        if wanted:
            return self._give_just(owner, wanted)
        if (have := self.owners.get(owner)) is not None:
            return have
        while True:
            place = heapq.heappop(self._free) if self._free else self._fresh()
            if place is None:
                return None
            ip = self._place(place)
            if ip not in self._taken:
                self._taken[ip] = owner
                self.owners[owner] = str(ip)
                return str(ip)

    def _give_just(self, owner: str, wanted: str) -> str | None:
        try:
            ip = ip_address(wanted)
        except ValueError:
            return None
        if not self.contains(wanted) or self._taken.get(ip, owner) != owner:
            return None
        self._taken[ip] = owner
        self.owners[owner] = str(ip)
        return str(ip)

    def holder(self, address: str) -> str | None:
        """Who has an address, or still serves at it; None also for what is no address."""
        try:
            return self._taken.get(ip_address(address))
        except ValueError:
            return None

    def release(self, owner: str) -> None:
        address = self.owners.pop(owner, None)
        if address is None:
            return
        self._put_back(ip_address(address))

    def hold(self, owner: str, address: str) -> None:
        """Give ``address`` to nobody else while ``owner`` still serves there."""
        if self.contains(address):
            self._taken.setdefault(ip_address(address), owner)

    def let_go(self, owner: str, address: str) -> None:
        """``owner`` no longer serves at an address that it had by `hold`."""
        ip = ip_address(address)
        if self._taken.get(ip) == owner and self.owners.get(owner) != address:
            self._put_back(ip)

    def _put_back(self, ip: _IP) -> None:
        del self._taken[ip]
        for i, (begin, end) in enumerate(self._ranges):
            if begin.version == ip.version and begin <= ip <= end:  # type: ignore[operator]
                place = (i, int(ip) - int(begin))
                if place < self._next:
                    heapq.heappush(self._free, place)
                return
