"""What is shown of each of several objects, where one that can't be shown hides no other.

Exceptions are for bugs: of an object that makes us fail, its name is shown and what failed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from akocore.faults import Faults

__all__ = ["each", "each_list"]

_T = TypeVar("_T")
Item = dict[str, Any]


def each(
    faults: Faults,
    kind: str,
    things: Iterable[_T],
    show: Callable[[_T], Item | None],
    key: Callable[[_T], str] = str,
) -> list[Item]:
    """What ``show`` makes of each; None: nothing is shown.  ``key``: its NAME or NAMESPACE/NAME."""

    def listed(thing: _T) -> list[Item]:
        one = show(thing)
        return [one] if one is not None else []

    return each_list(faults, kind, things, listed, key)


def each_list(
    faults: Faults,
    kind: str,
    things: Iterable[_T],
    show: Callable[[_T], list[Item]],
    key: Callable[[_T], str] = str,
) -> list[Item]:
    """As `each`, where one thing is shown as several."""
    out: list[Item] = []
    for thing in things:
        try:
            out += show(thing)
        except Exception as err:
            name = key(thing)
            namespace, _, last = name.rpartition("/")
            why, at = faults.cause(f"{kind}/{name}", err)
            out.append(
                {
                    "metadata": {"name": last, **({"namespace": namespace} if namespace else {})},
                    "fault": f"akocore fails to show it ({why} at {at}). Report it with the log's"
                    " traceback.",
                }
            )
    return out
