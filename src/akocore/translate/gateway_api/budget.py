"""What the regular expressions of a route cost, and which of a host's rules are too many.

A host's request may be tried against all rules that it has, so their sum is bounded: those of the
older routes come first, and one that no longer fits is left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import Struct

from akocore.config import Limits
from akocore.model import Refusal
from akocore.model_http import HttpRule
from akocore.shown import quoted
from akocore.translate.expressions import cost

if TYPE_CHECKING:
    from akocore.translate.gateway_api.rules import RouteRules

__all__ = ["Weight", "fitting", "problem", "weigh"]

_LEAST: Final = 64  # instructions that an expression counts as that may read a long text
_REMEDY: Final = "Write it shorter, or as Exact or PathPrefix."


class Weight(Struct, frozen=True, gc=False):
    """Instructions and states of several expressions, each as often as it is tried."""

    size: int = 0
    states: int = 0

    def __add__(self, other: Weight) -> Weight:
        return Weight(self.size + other.size, self.states + other.states)

    def fits(self, limits: Limits) -> bool:
        return (
            self.size <= limits.host_expression_size
            and self.states <= limits.host_expression_states
        )


_NOTHING: Final = Weight()


def problem(text: str, limits: Limits) -> tuple[Weight, str]:
    """What a user's expression weighs, and what is wrong with it, with the remedy; "": nothing."""
    found = cost(text, limits.expression_size, limits.expression_states)
    if isinstance(found, str):
        return Weight(), f"RE2 refuses it: {quoted(found)}. Write it in RE2's syntax."
    weight = Weight(found.size, found.states)
    if found.size > limits.expression_size:
        said = f"It has {found.size} instructions (RE2), at most {limits.expression_size} may be."
        return weight, f"{said} {_REMEDY}"
    if found.states > limits.expression_states:
        said = (
            f"A text can lead it to more than {limits.expression_states} states, each of which"
            " costs time: something is repeated without end, and what follows is counted."
        )
        return weight, f"{said} Write it without one of the two."
    return weight, ""


def weigh(
    expressions: Iterable[tuple[str, bool]], limits: Limits, largest: int
) -> tuple[Weight, str]:
    """What the expressions of a rule weigh, and what of it an engine would refuse; "": nothing.

    With each: whether a request may be tried against it before it is another rule's.
    """
    out = Weight()
    for text, tried in expressions:
        found = cost(text, largest, limits.host_expression_states if tried else 0)
        if isinstance(found, str) or found.size > largest:
            said = f"{found.size} instructions" if not isinstance(found, str) else quoted(found)
            what = (
                f"An expression of its names or paths has {said} (RE2), at most {largest} may be."
            )
            return out, f"{what} Write fewer or shorter ones."
        if tried:
            size = max(found.size, _LEAST) if found.endless else found.size
            out += Weight(size, found.states)
    return out, ""


def fitting(
    routes: Sequence[tuple[str, RouteRules]], limits: Limits
) -> tuple[list[RouteRules], list[Refusal]]:
    """The rules of a host's routes, oldest first, that fit together, and who is told of others.

    ``routes``: ("Kind/namespace/name", its rules).  Cost: these.
    """
    count = sum([len(rules.rules) for _, rules in routes])
    if count <= limits.host_paths and not any(rules.weights for _, rules in routes):
        return [rules for _, rules in routes], []
    left, sum_ = limits.host_paths, Weight()
    out: list[RouteRules] = []
    no: list[Refusal] = []
    for object_, rules in routes:
        gone: set[int] = set()
        for i, matches in sorted(Counter(map(_index, rules.rules)).items()):
            weight = rules.weights.get(i, _NOTHING)
            if matches > left:
                gone.add(i)
                no.append(_no_place(object_, i, limits.host_paths))
            elif not (sum_ + weight).fits(limits):
                gone.add(i)
                no.append(_refusal(object_, i, weight, sum_, limits))
            else:
                left -= matches
                sum_ += weight
        out.append(_without(rules, gone) if gone else rules)
    return out, no


def _no_place(object_: str, i: int, limit: int) -> Refusal:
    return Refusal(
        object=object_,
        field=f"spec.rules[{i}].matches",
        reason="TooLarge",
        remedy=f"A host has {limit} matches at most, and its older rules have them. Use another.",
    )


def _refusal(object_: str, i: int, weight: Weight, sum_: Weight, limits: Limits) -> Refusal:
    by_size = sum_.size + weight.size > limits.host_expression_size
    own, before, most, what = (
        (weight.size, sum_.size, limits.host_expression_size, "instructions (RE2)")
        if by_size
        else (weight.states, sum_.states, limits.host_expression_states, "states")
    )
    return Refusal(
        object=object_,
        field=f"spec.rules[{i}].matches",
        reason="TooLarge",
        remedy=f"Its regular expressions come to {own} {what}; those of the host's older rules"
        f" have {before} of {most}. Write some as Exact or PathPrefix, or use another host.",
    )


def _without(rules: RouteRules, gone: set[int]) -> RouteRules:
    kept = [at for at, rule in enumerate(rules.rules) if _index(rule) not in gone]
    return msgspec.structs.replace(
        rules,
        rules=tuple(rules.rules[at] for at in kept),
        order=tuple(rules.order[at] for at in kept),
    )


def _index(rule: HttpRule) -> int:
    """Which rule of its route it is: its name is namespace/name/index, and maybe /match."""
    return int(rule.name.split("/")[2])
