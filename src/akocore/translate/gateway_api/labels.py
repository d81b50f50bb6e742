"""Label selectors (``meta/v1 LabelSelector``)."""

from __future__ import annotations

from collections.abc import Mapping

from akocore.kube.meta import LabelSelector

__all__ = ["selects"]


def selects(selector: LabelSelector | None, labels: Mapping[str, str]) -> bool:
    """Whether labels are chosen; an empty selector chooses all, none chooses nothing."""
    if selector is None:
        return False
    if any(labels.get(k) != v for k, v in (selector.match_labels or {}).items()):
        return False
    for one in selector.match_expressions:
        value = labels.get(one.key)
        match one.operator:
            case "In":
                good = value in one.values
            case "NotIn":
                good = value not in one.values
            case "Exists":
                good = value is not None
            case "DoesNotExist":
                good = value is None
            case _:
                good = False
        if not good:
            return False
    return True
