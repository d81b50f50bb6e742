"""Less for Service Engines that are busier than others: weights that change slowly.

An engine whose processors are busy for long, and clearly more than those of its group, gets a
lower weight, and `akocore.place.scale` moves some of its virtual services; one that is idle for as
long gets it back.  In between nothing changes, so nothing swings to and fro.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

__all__ = ["Balance"]

HIGH, LOW = 0.8, 0.4  # of its workers' processors
ABOVE_MEAN = 1.25
HOLD_S = 30.0
STEP, LEAST = 0.75, 0.25


class _Engine(Struct):
    weight: float = 1.0
    high_since: float | None = None
    low_since: float | None = None


class Balance:
    """The weights of Service Engines, by name.  ``hold_s``: how long a load must last."""

    def __init__(self, hold_s: float = HOLD_S) -> None:
        self._hold_s = hold_s
        self._engines: dict[str, _Engine] = {}

    def weight(self, engine: str) -> float:
        known = self._engines.get(engine)
        return known.weight if known is not None else 1.0

    def heard(self, loads: Mapping[str, float], now: float) -> dict[str, float]:
        """Take in the loads of one group's engines; the weights that this has changed."""
        mean = sum(loads.values()) / len(loads) if loads else 0.0
        out = {}
        for name, load in loads.items():
            one = self._engines.setdefault(name, _Engine())
            is_high = load >= HIGH and load >= ABOVE_MEAN * mean
            one.high_since = (one.high_since or now) if is_high else None
            one.low_since = (one.low_since or now) if load <= LOW else None
            weight = one.weight
            if one.high_since is not None and now - one.high_since >= self._hold_s:
                weight, one.high_since = max(weight * STEP, LEAST), now
            elif one.low_since is not None and now - one.low_since >= self._hold_s:
                weight, one.low_since = min(weight / STEP, 1.0), now
            if weight != one.weight:
                one.weight = out[name] = weight
        return out

    def forget(self, engine: str) -> None:
        self._engines.pop(engine, None)
