"""Who hands flows over to whom: a ring for each group of Service Engines, as a controller sees it.

Every replica works out the same from what it sees itself and what the others say, in the order
of addresses, which is that of a router's next hops; nobody decides for all.  Members learn of a
change one by one, which `handover.plan` allows for, provided that

* who comes knows all the others before they know it: it is told of them at once, and becomes one
  of theirs when it says that its rules are there;
* who leaves stays till its last flow is over (`Report.ended`), in the rings of all;
* everybody takes packets from everybody of its group, whether in its ring yet or still.

One whose Envoy died leaves at once: its flows are lost.  One that nobody sees may only be on its
way to another replica, or we are new: it stays for some seconds.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address

from msgspec import Struct

from akocore.engines.agent.messages import HandOver
from akocore.engines.handover import Member, looks_back
from akocore.engines.handover.plan import MAX_MEMBERS

__all__ = ["UNSEEN_S", "Candidate", "Rings"]

UNSEEN_S = 2.5  # agents look for a controller as often


class Candidate(Struct, frozen=True):
    """A Service Engine that may be in a ring.

    ``ready``: its rules are there, and its Envoy lives; ``leaving``: routers are led away from it.
    """

    member: Member
    group: str
    ready: bool
    leaving: bool = False


class Rings:
    """``see(...)`` whenever something has changed, then ask for a `ring`."""

    def __init__(self) -> None:
        self._there: dict[str, Candidate] = {}
        self._seen: dict[str, float] = {}  # name → when last, of those that are out of sight
        self._hops: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {}  # before, now

    def see(self, found: Iterable[Candidate], now_s: float) -> bool:
        """Those that are there.  Whether some are out of sight: ask again when `UNSEEN_S` is over.

        Cost: all of them.
        """
        there = {one.member.name: one for one in found}
        unseen = {}
        for name, one in self._there.items():
            if name not in there and one.ready and not one.leaving:
                since = self._seen.get(name, now_s)
                if now_s - since < UNSEEN_S:
                    unseen[name] = since
                    there[name] = one
        self._there, self._seen = there, unseen
        for group in {one.group for one in there.values()}:
            order = [o for o in self._of(group) if o.ready and not o.leaving]
            now = tuple(one.member.name for one in order)
            before = self._hops.get(group, ((), ()))
            if now != before[1]:
                self._hops[group] = (before[1], now)
        return bool(unseen)

    def hear(self, group: str, ring: Iterable[Member], now_s: float) -> None:
        """One that comes to us knew these: they may come, too."""
        for member in ring:
            if member.name not in self._there:
                self._there[member.name] = Candidate(member, group, ready=True)
                self._seen[member.name] = now_s

    def _of(self, group: str) -> list[Candidate]:
        found = [one for one in self._there.values() if one.group == group]
        return sorted(found, key=lambda one: _key(one.member))

    def ring(self, name: str, vips: Iterable[str]) -> HandOver | None:
        """That of a Service Engine; None: it isn't there, or its group is too large for a ring."""
        me = self._there.get(name)
        if me is None:
            return None
        all_ = self._of(me.group)
        members = tuple(one.member for one in all_ if one.ready or one is me)
        if len(members) > MAX_MEMBERS:
            return None
        before, now = self._hops.get(me.group, ((), ()))
        return HandOver(
            members=members,
            vips=tuple(sorted(vips)),
            also=tuple(one.member.address for one in all_ if one is not me),
            back=looks_back(name, before, now),
        )


def _key(member: Member) -> tuple[int, int]:
    ip = ip_address(member.address)
    return ip.version, int(ip)
