"""Durations of the Gateway API (GEP-2257): ``1h30m``, ``500ms``."""

from __future__ import annotations

import re
from typing import Final

__all__ = ["seconds"]

_DURATION: Final = re.compile(r"([0-9]{1,5}(h|m|s|ms)){1,4}")
_PART: Final = re.compile(r"([0-9]+)(ms|h|m|s)")
_SECONDS: Final = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}


def seconds(text: str) -> float | None:
    """Seconds; None: it is no duration."""
    if not _DURATION.fullmatch(text):
        return None
    return sum(int(number) * _SECONDS[unit] for number, unit in _PART.findall(text))
