"""What translation finds: a condition's worth of each thing that is not as it was asked for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from msgspec import Struct

from akocore.model import Refusal

__all__ = ["Finding", "ListenerId", "RouteId", "first", "text"]

ListenerId = tuple[str, str, str]
"""(Gateway or ListenerSet, its key, the listener's name)."""

RouteId = tuple[str, str]
"""(kind, key)."""

Type = Literal[
    "Accepted",
    "Conflicted",
    "Programmed",
    "ResolvedRefs",
    "PartiallyInvalid",
    "Hostnames",
    "Warning",
]


class Finding(Struct, frozen=True, gc=False):
    """A condition that is not as one would like it, and why."""

    type: Type
    refusal: Refusal

    @property
    def reason(self) -> str:
        return self.refusal.reason


def first(findings: Iterable[Finding], type_: Type) -> Finding | None:
    """The first finding of a type, which names the condition's reason."""
    return next((one for one in findings if one.type == type_), None)


def text(findings: Iterable[Finding], type_: Type) -> str:
    """All that is found of a type, as a condition's message."""
    return "; ".join(f"{f.refusal.field}: {f.refusal.remedy}" for f in findings if f.type == type_)
