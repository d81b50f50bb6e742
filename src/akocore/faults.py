"""A fault of our own over one object becomes its refusal, and everything else goes on.

Exceptions are for bugs.  One that comes up while an object is translated, encoded or described is
caught where that unit of work begins, and noted here under the unit's name; the unit then serves
what a start without the object would.  When the unit succeeds again, the note is gone.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Hashable, Iterable
from pathlib import PurePath
from typing import Final, ParamSpec, TypeVar

from akocore.model import Refusal

__all__ = ["INTERNAL_ERROR", "Faults", "without_faulty"]

log = logging.getLogger(__name__)

INTERNAL_ERROR: Final = "InternalError"
_CAUSES_KEPT: Final = 1000  # of which the traceback is not logged again

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Faults:
    """What could not be done, by unit of work.

    A unit is anything that names it: a kind of work and the object or host that it is done for.
    ``touched``: objects ("Kind/namespace/name") that say something else now; who reads it clears
    it.  Without a fault a call costs next to nothing.
    """

    def __init__(self) -> None:
        self.touched: set[str] = set()
        self._units: dict[Hashable, tuple[Refusal, ...]] = {}
        self._of: dict[str, dict[Hashable, Refusal]] = {}
        self._causes: set[tuple[str, str]] = set()

    def run(
        self,
        unit: Hashable,
        object_: str,
        do: Callable[_P, _T],
        *args: _P.args,
        **kwargs: _P.kwargs,
    ) -> _T | None:
        """Do a unit of work; None when it failed: then it is a fault of ``object_``."""
        try:
            done = do(*args, **kwargs)
        except Exception as err:
            self.note(unit, object_, err)
            return None
        if self._units:
            self.over(unit)
        return done

    def cause(self, object_: str, err: Exception) -> tuple[str, str]:
        """What an exception over an object is, and where; the log has its traceback, once."""
        frames = traceback.extract_tb(err.__traceback__)
        at = f"{PurePath(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"
        cause = (type(err).__name__, at)
        known = cause in self._causes
        if len(self._causes) < _CAUSES_KEPT:
            self._causes.add(cause)
        log.error(
            "event=internal_error object=%s why=%s at=%s",
            *(object_, *cause),
            exc_info=None if known else err,
        )
        return cause

    def refusal(self, object_: str, err: Exception, field: str = "") -> Refusal:
        """What an object is told of a fault.  The traceback goes to the log, once a cause."""
        why, at = self.cause(object_, err)
        return Refusal(
            object=object_,
            field=field or "spec",
            reason=INTERNAL_ERROR,
            remedy=f"akocore failed over it ({why} at {at}): this part is not served. Report"
            " it with the log's traceback; until then write it otherwise.",
        )

    def note(self, unit: Hashable, object_: str, err: Exception, field: str = "") -> Refusal:
        """A unit failed, and ``object_`` is at fault."""
        made = self.refusal(object_, err, field)
        self.put(unit, [made])
        return made

    def put(self, unit: Hashable, refusals: Iterable[Refusal]) -> None:
        """All that a unit failed over, in place of what was noted of it before."""
        self.over(unit)
        found = tuple(refusals)
        if found:
            self._units[unit] = found
        for one in found:
            self._of.setdefault(one.object, {})[unit] = one
            self.touched.add(one.object)

    def over(self, unit: Hashable) -> None:
        """A unit succeeded, or there is none of that name any more."""
        for one in self._units.pop(unit, ()):
            mine = self._of.get(one.object, {})
            mine.pop(unit, None)
            if not mine:
                self._of.pop(one.object, None)
            self.touched.add(one.object)

    def failed(self, unit: Hashable) -> bool:
        """Whether a unit failed when it was last done."""
        return unit in self._units

    def of(self, object_: str) -> tuple[Refusal, ...]:
        """What an object is at fault for.  Cost: that."""
        return tuple(self._of[object_].values()) if object_ in self._of else ()

    def __bool__(self) -> bool:
        return bool(self._units)


def without_faulty(
    things: Iterable[_T], attempt: Callable[[list[_T]], object]
) -> tuple[list[_T], list[tuple[_T, Exception]]]:
    """Those of several things that can be had together, and what the others fail with.

    ``attempt`` tries some, in order, and changes nothing.  Who comes later gives way.  Cost: an
    attempt a thing; it is asked for when all of them together have failed.
    """
    good: list[_T] = []
    bad: list[tuple[_T, Exception]] = []
    for one in things:
        try:
            attempt([*good, one])
        except Exception as err:
            bad.append((one, err))
        else:
            good.append(one)
    return good, bad
