"""How many Service Engines a virtual service is on, and which, where each has its own.

The number is the group's minSePerVs until its setting or somebody asks for more, and never beyond
what the group allows.  Which ones: those that announce it already, so that nothing moves without
need; then the lowest number of those made here, or, of those elsewhere, the highest hash of both
names (rendezvous hashing: Thaler and Ravishankar, 1998): every replica comes to the same, the
virtual services of a group spread over its engines, and one that goes moves only its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import log
from typing import TYPE_CHECKING

from mmh3 import hash as murmur

from akocore.model import Refusal
from akocore.place.state import Facts

if TYPE_CHECKING:
    from akocore.infrastructure import Infrastructure

__all__ = ["ACTIVE_STANDBY", "FOLLOWS_OBJECTS", "Scale", "number_of"]

ACTIVE_STANDBY, N_PLUS_M = "ActiveStandby", "NPlusM"
FOLLOWS_OBJECTS = "FollowsObjects"  # the reason of a refusal: only an object may say so
_ROOM = "scale"


def number_of(engine: str) -> int:
    """The place of a Service Engine in its group, from 1; 0 for a name that tells none."""
    number = engine.rpartition("-se-")[2]
    return int(number) if number.isdecimal() else 0


def _score(vs: str, engine: str, weight: float) -> float:
    """Of weighted rendezvous hashing; less is better."""
    uniform = (murmur(f"{vs}\0{engine}", signed=False) + 0.5) / 2**32
    return -log(uniform) / weight


class Scale:
    """Decides and remembers: virtual service → how many Service Engines, and which.

    ``remembers``: a number that somebody asks for by `to` outlives this process.
    """

    def __init__(
        self, facts: Facts, infrastructure: Infrastructure, *, remembers: bool = True
    ) -> None:
        # How many the setting of a virtual service asks for; 0: none.
        self.asked: Callable[[str], int] = lambda _vs: 0
        # Service Engines of a group that can be used, with their weights; None: not known.
        self.usable: Callable[[str], Mapping[str, float]] | None = None
        # How a Service Engine has a virtual service: 0 serves it, 1 stands by, 2 not at all.
        self.rank: Callable[[str, str], int] = lambda _vs, _engine: 2
        # Whether a Service Engine serves anything.
        self.busy: Callable[[str], bool] = lambda _engine: False
        self._facts = facts
        self._infrastructure = infrastructure
        self._remembers = remembers
        self._chosen: dict[str, dict[str, tuple[str, ...]]] = {}  # virtual service → group
        self._there: dict[str, Mapping[str, float]] = {}  # group → what is usable

    def wanted(self, vs: str, group: str) -> int:
        """How many Service Engines of ``group`` the virtual service is to be on."""
        at = self._infrastructure
        spec = at.groups.get(group)
        if spec is None or not at.speaks_bgp:
            return at.engines_of(group)
        if spec.ha_mode == ACTIVE_STANDBY:
            return 2
        asked = max(int(self._facts.room(_ROOM).get(vs, 0)), self.asked(vs))
        most = max(min(spec.max_se_per_vs, spec.max_se), 1)
        return min(max(asked, spec.min_se_per_vs), most)

    def with_spares(self, group: str, number: int) -> int:
        """How many Service Engines a group needs that has virtual services on ``number``."""
        spec = self._infrastructure.groups.get(group)
        if spec is None or spec.ha_mode != N_PLUS_M or not number:
            return number
        return max(number, min(number + spec.buffer_se, spec.max_se))

    def least(self, group: str) -> int:
        """How many it must be on to be wholly up."""
        spec = self._infrastructure.groups.get(group)
        if spec is not None and self._infrastructure.speaks_bgp and spec.ha_mode == ACTIVE_STANDBY:
            return 2
        return self._infrastructure.engines_of(group)

    def stands_by(self, vs: str, group: str, engine: str) -> bool:
        """Whether it is another Service Engine that serves, while that can."""
        spec = self._infrastructure.groups.get(group)
        if spec is None or spec.ha_mode != ACTIVE_STANDBY:
            return False
        return engine in self.on(vs, group)[1:]

    def has(self, vs: str, group: str, engine: str) -> bool:
        """Whether a Service Engine of the group is one of them."""
        if not self._infrastructure.speaks_bgp:
            return True
        if not self._usable(group):  # without a router, or none is up
            return number_of(engine) <= self.wanted(vs, group)
        return engine in self.on(vs, group)

    def changed(self, vs: str | None = None) -> None:
        """Something about a virtual service is otherwise; None: about the Service Engines."""
        if vs is not None:
            self._chosen.pop(vs, None)
            return
        self._chosen.clear()
        self._there.clear()

    def _usable(self, group: str) -> Mapping[str, float]:
        if (found := self._there.get(group)) is None:
            found = self._there[group] = self.usable(group) if self.usable is not None else {}
        return found

    def on(self, vs: str, group: str) -> tuple[str, ...]:
        """The Service Engines that a virtual service is on, who serves it first.

        Cost: those of the group, after `changed`.
        """
        at = self._chosen.setdefault(vs, {})
        if (found := at.get(group)) is None:
            found = at[group] = self._choose(vs, group)
        return found

    def _choose(self, vs: str, group: str) -> tuple[str, ...]:
        there = self._usable(group)
        wanted = self.wanted(vs, group)
        spares = self._spares(group, there, wanted)
        order = sorted(
            there,
            key=lambda engine: (
                engine in spares,
                # Of one that is to have less, each has to win its place again.
                self.rank(vs, engine) if there[engine] >= 1 else 2,
                number_of(engine) if self._numbered(group, engine) else 0,
                _score(vs, engine, there[engine]),
                engine,
            ),
        )
        return tuple(order[:wanted])

    @staticmethod
    def _numbered(group: str, engine: str) -> bool:
        """Whether it was made here, for the number that it has."""
        return engine == f"{group}-se-{number_of(engine)}"

    def _spares(self, group: str, there: Mapping[str, float], wanted: int) -> set[str]:
        """Those that stay free for others that fail, while there are enough others."""
        spec = self._infrastructure.groups.get(group)
        if spec is None or spec.ha_mode != N_PLUS_M:
            return set()
        number = max(min(spec.buffer_se, len(there) - wanted), 0)
        busy = {one for one in there if self.busy(one)}
        order = sorted(
            there, key=lambda one: (one in busy, -number_of(one), _score(group, one, 1.0), one)
        )
        return set(order[:number])

    def to(self, vs: str, group: str, number: int) -> Refusal | None:
        """Have the virtual service on ``number`` Service Engines from now on, or say why not."""

        def no(reason: str, remedy: str) -> Refusal:
            return Refusal(
                object=f"VirtualService/{vs}", field="scale", reason=reason, remedy=remedy
            )

        spec = self._infrastructure.groups.get(group)
        if spec is None or not self._infrastructure.speaks_bgp:
            return no(
                "Unsupported",
                "Local Service Engines share every address: set minSePerVs of ServiceEngineGroup"
                f" {group}.",
            )
        if spec.ha_mode == ACTIVE_STANDBY:
            return no(
                "Unsupported",
                f"ServiceEngineGroup {group} is ActiveStandby: one serves, and one stands by.",
            )
        for limit, name in (
            (spec.max_se_per_vs, "maxSePerVs"),
            (spec.max_se, "maxSe"),
        ):
            if number > limit:
                return no(
                    "TooManyServiceEngines",
                    f"ServiceEngineGroup {group} has {name} {limit}: raise it, or ask for less.",
                )
        if number < spec.min_se_per_vs:
            return no(
                "TooFewServiceEngines",
                f"ServiceEngineGroup {group} has minSePerVs {spec.min_se_per_vs}: lower it, or ask"
                " for more.",
            )
        if not self._remembers:
            return no(
                FOLLOWS_OBJECTS,
                "In a cluster, replicas follow objects: set annotation akocore.io/scale-out of its"
                f" AviInfraSetting, or minSePerVs of ServiceEngineGroup {group}.",
            )
        if number == spec.min_se_per_vs:
            self._facts.drop(_ROOM, vs)
        else:
            self._facts.put(_ROOM, vs, str(number))
        self.changed(vs)
        return None

    def forget(self, vs: str) -> None:
        """The virtual service is no more."""
        self._facts.drop(_ROOM, vs)
        self.changed(vs)
