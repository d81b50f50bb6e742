"""Whose turn it is: changes wait here by namespace, so that nobody's work holds others' for long.

What is small is taken in turns, a namespace after the other; what came together and is small
goes together.  What is big is taken one at a time, when nothing small waits, by a namespace that
is rested: it has worked off what it spent.  Of each object just the newest state waits, so whoever
edits faster than his turn comes is served all the same.

A removal waits for what came with it: an object that moves to another namespace is there before it
is gone here.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet
from itertools import islice

from msgspec import Struct, field

from akocore.kube.objects import Change, EndpointSlice, Ingress, Object, Secret

__all__ = ["SLICE_S", "SMALL", "Turn", "Turns", "namespace_of", "weight"]

SLICE_S = 0.005  # that a turn takes, if what it is made of can be parted
SMALL = 100  # weight: some 5 ms of the controller and as much of an engine
_TOGETHER = 64  # small changes that came together
_SHARE = 0.25  # of the time, that a namespace's big work may take
_BURST_S = 0.2  # of it at once
_LUMP_S = 0.01  # what can't be parted and costs more counts for more
_LUMP = 2.5
_ACCOUNTS = 1000  # of namespaces that have nothing


def weight(obj: Object | None) -> int:
    """What an object may cost, in paths.  Cost: its rules."""
    if isinstance(obj, Ingress):
        return sum(len(rule.http.paths) if rule.http else 1 for rule in obj.spec.rules)
    if isinstance(obj, EndpointSlice):
        return 1 + len(obj.endpoints or ()) // 20
    if isinstance(obj, Secret):
        return 1 + sum(map(len, (obj.data or {}).values())) // 20_000
    return 1


def namespace_of(key: str) -> str:
    """The namespace of an object; "" when it is the cluster's."""
    return key.partition("/")[0] if "/" in key else ""


class _Waiting(Struct):
    change: Change
    order: int
    since: int  # number of the batch whose state of the object was the first to wait
    last: int  # and of the one that brought this state
    at: float


class Turn(Struct):
    """What is to be applied at once.  ``at``: when the first of it was seen."""

    changes: tuple[Change, ...]
    numbers: tuple[int, ...]
    at: float


class _Lane(Struct):
    """One namespace.  ``credit``: seconds of big work that it may still do, as of ``at``."""

    small: OrderedDict[tuple[str, str], _Waiting] = field(default_factory=OrderedDict)
    big: OrderedDict[tuple[str, str], _Waiting] = field(default_factory=OrderedDict)
    credit: float = _BURST_S
    at: float = 0.0


class Turns:
    """Changes by namespace.  ``clock``: seconds; ``size(change)``: its `weight`, or more;
    ``small``: the weight up to which something is, and that a turn takes.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        size: Callable[[Change], int] = lambda change: weight(change.obj),
        small: int = SMALL,
    ) -> None:
        self._clock = clock
        self._size = size
        self._small = small
        self._lanes: dict[str, _Lane] = {}
        # Namespaces that have something small, something big; who is next comes first.
        self._next: OrderedDict[str, None] = OrderedDict()
        self._next_big: OrderedDict[str, None] = OrderedDict()
        self._coming: Counter[int] = Counter()  # batch → what of it waits and is no removal
        self._open: Counter[int] = Counter()  # batch → what of it is not done
        self._number = self._order = 0
        self._rests_until = 0.0  # nobody's big work before

    def __len__(self) -> int:
        """How many objects wait."""
        return sum(len(lane.small) + len(lane.big) for lane in self._lanes.values())

    def add(self, changes: Iterable[Change], at: float) -> int:
        """Take in a batch; its number."""
        self._number += 1
        number = self._number
        if len(self._lanes) > _ACCOUNTS:
            self._forget_idle()
        for change in changes:
            lane = self._lane(namespace := namespace_of(change.key))
            what = (change.kind, change.key)
            old = lane.small.pop(what, None) or lane.big.pop(what, None)
            since = number
            if old is not None:
                since, at_ = old.since, old.at
                self._came(old)
            else:
                at_ = at
                self._open[since] += 1
            self._order += 1
            new = _Waiting(change, self._order, since, number, at_)
            if change.obj is not None:
                self._coming[number] += 1
            if self._size(change) <= self._small:
                lane.small[what] = new
                self._next.setdefault(namespace)
            else:
                lane.big[what] = new
                self._next_big.setdefault(namespace)
        return number

    def _lane(self, namespace: str) -> _Lane:
        lane = self._lanes.get(namespace)
        if lane is None:
            lane = self._lanes[namespace] = _Lane(at=self._clock())
        return lane

    def _came(self, one: _Waiting) -> None:
        if one.change.obj is not None:
            self._coming[one.last] -= 1
            if not self._coming[one.last]:
                del self._coming[one.last]

    def _may_go(self, one: _Waiting) -> bool:
        return one.change.obj is not None or not self._coming[one.last]

    # ── what is small ───────────────────────────────────────────────────────────────────────

    def take(self) -> Turn | None:
        """Small changes of the namespaces whose turn it is; None: none waits."""
        taken: list[_Waiting] = []
        left = self._small
        for namespace in list(self._next):
            lane = self._lanes[namespace]
            together = self._together(lane)
            for one in together:
                self._came(one)
            left -= sum(self._size(one.change) for one in together if self._may_go(one))
            taken += together
            self._next.move_to_end(namespace)
            if left <= 0:
                break
        taken = [one for one in taken if self._may_go(one)]
        if not taken:
            return None
        for one in taken:
            lane = self._lanes[namespace := namespace_of(one.change.key)]
            del lane.small[one.change.kind, one.change.key]
            if not lane.small:
                del self._next[namespace]
        taken.sort(key=lambda one: one.order)
        return Turn(
            tuple(one.change for one in taken),
            tuple(one.since for one in taken),
            min(one.at for one in taken),
        )

    def _together(self, lane: _Lane) -> list[_Waiting]:
        """The first of a namespace, and what came with it; removals that have to wait go last."""
        out: list[_Waiting] = []
        for one in lane.small.values():
            if out and (one.last != out[0].last or len(out) == _TOGETHER):
                break
            out.append(one)
        if any(one.change.obj is not None or self._may_go(one) for one in out):
            return out
        others = (one for one in lane.small.values() if self._may_go(one))
        return [*out, *islice(others, _TOGETHER)]

    # ── what is big ─────────────────────────────────────────────────────────────────────────

    def whose(self, owing: AbstractSet[str]) -> str | None:
        """The namespace whose turn it is to do big work.  ``owing``: those that have begun some."""
        now = self._clock()
        if now < self._rests_until:
            return None
        for namespace in owing:
            self._next_big.setdefault(namespace)
        for namespace in self._next_big:
            lane = self._lane(namespace)
            if (namespace in owing or self._big(lane)) and self._credit(lane, now) > 0:
                return namespace
        return None

    def rest_s(self, owing: AbstractSet[str]) -> float | None:
        """How long until somebody who has big work to do may go on; None: nobody has."""
        now = self._clock()
        waits = [
            max(0.0, -self._credit(self._lane(namespace), now) / _SHARE, self._rests_until - now)
            for namespace in self._next_big.keys() | owing
            if namespace in owing or self._big(self._lane(namespace))
        ]
        return min(waits, default=None)

    def take_big(self, namespace: str) -> Turn | None:
        """The next big change of a namespace."""
        lane = self._lane(namespace)
        one = self._big(lane)
        if one is None:
            return None
        del lane.big[one.change.kind, one.change.key]
        self._came(one)
        return Turn((one.change,), (one.since,), one.at)

    def spent(self, namespace: str, cost_s: float) -> None:
        """A turn of big work is over, and this is what it cost the controller and its engines."""
        now, lane = self._clock(), self._lane(namespace)
        lane.credit = self._credit(lane, now) - cost_s - (_LUMP - 1) * max(0.0, cost_s - _LUMP_S)
        lane.at = now
        self._next_big.pop(namespace, None)
        if lane.big:
            self._next_big[namespace] = None
        self._rests_until = now + min(2 * cost_s, _BURST_S)

    def _big(self, lane: _Lane) -> _Waiting | None:
        return next((one for one in lane.big.values() if self._may_go(one)), None)

    @staticmethod
    def _credit(lane: _Lane, now: float) -> float:
        return min(_BURST_S, lane.credit + (now - lane.at) * _SHARE)

    # ── how far it is ───────────────────────────────────────────────────────────────────────

    def done(self, *numbers: int) -> None:
        """Of each of these batches, something that was taken has been followed to its end."""
        for number in numbers:
            self._open[number] -= 1
            if not self._open[number]:
                del self._open[number]

    @property
    def complete(self) -> int:
        """All batches up to this number are done."""
        return min(self._open, default=self._number + 1) - 1

    def _forget_idle(self) -> None:
        """Namespaces that have nothing and are rested need no account."""
        now = self._clock()
        for namespace, lane in list(self._lanes.items()):
            if not (lane.small or lane.big) and self._credit(lane, now) >= _BURST_S:
                del self._lanes[namespace]
