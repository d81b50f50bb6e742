"""An Event's note: the API server counts its bytes, and refuses one of more than 1,024."""

from __future__ import annotations

from typing import Final

__all__ = ["cut_note"]

_MOST: Final = 1024  # bytes


def cut_note(text: str) -> str:
    """As much of ``text`` as an Event takes, cut at a letter's edge."""
    data = text.encode("utf-8", "replace")
    return text if len(data) <= _MOST else data[:_MOST].decode("utf-8", "ignore")
