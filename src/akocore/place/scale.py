"""How many Service Engines a virtual service is on, where each has its own number of them.

A virtual service is on the first so many Service Engines of its group.  The number is the
group's minSePerVs until somebody scales it out; that is remembered, and never beyond what the
group allows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from akocore.model import Refusal
from akocore.place.state import Facts

if TYPE_CHECKING:
    from akocore.infrastructure import Infrastructure

__all__ = ["Scale", "number_of"]

_ROOM = "scale"


def number_of(engine: str) -> int:
    """The place of a Service Engine in its group, from 1; 0 for a name that tells none."""
    number = engine.rpartition("-se-")[2]
    return int(number) if number.isdecimal() else 0


class Scale:
    """Decides and remembers: virtual service → how many Service Engines."""

    def __init__(self, facts: Facts, infrastructure: Infrastructure) -> None:
        self._facts = facts
        self._infrastructure = infrastructure

    def wanted(self, vs: str, group: str) -> int:
        """How many Service Engines of ``group`` the virtual service is to be on."""
        at = self._infrastructure
        spec = at.groups.get(group)
        if spec is None or not at.speaks_bgp:
            return at.engines_of(group)
        asked = int(self._facts.room(_ROOM).get(vs, 0))
        most = max(min(spec.max_se_per_vs, spec.max_se), 1)
        return min(max(asked, spec.min_se_per_vs), most)

    def least(self, group: str) -> int:
        """How many it must be on to be wholly up."""
        return self._infrastructure.engines_of(group)

    def has(self, vs: str, group: str, engine: str) -> bool:
        """Whether a Service Engine of the group is one of them."""
        if not self._infrastructure.speaks_bgp:
            return True
        return number_of(engine) <= self.wanted(vs, group)

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
        if number == spec.min_se_per_vs:
            self._facts.drop(_ROOM, vs)
        else:
            self._facts.put(_ROOM, vs, str(number))
        return None

    def forget(self, vs: str) -> None:
        """The virtual service is no more."""
        self._facts.drop(_ROOM, vs)
