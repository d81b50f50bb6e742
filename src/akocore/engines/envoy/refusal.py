"""Why an Envoy refuses a resource: its last clause, which is what an owner can use.

Its own text may hold the whole resource, in a form that differs from engine to engine and from
time to time, and reads from the outermost message to the field at fault.
"""

from __future__ import annotations

import re
from typing import Final

__all__ = ["reason"]

_MOST: Final = 200  # characters
_LIST: Final = re.compile(r"^Error adding/updating (?:cluster|listener)\(s\) \S+: ")
_VALID: Final = re.compile(r"Proto constraint validation failed \((.*)\)\s*$", re.DOTALL)
_FIELD: Final = re.compile(r"^\w*ValidationError\.")
_DUMP: Final = re.compile(r"goo\.gle/debug\w*\s.*", re.DOTALL)
_ADVICE: Final = re.compile(r"\. (?:Consider|Increase) .*", re.DOTALL)  # to who writes resources
_UNKNOWN: Final = "its validation fails"


def reason(message: str) -> str:
    """One clause of at most 200 characters on one line.  The same refusal is the same text."""
    text = _LIST.sub("", message)
    if (valid := _VALID.search(text)) is not None:
        text = _FIELD.sub("", valid[1].rpartition(" | caused by ")[2])
    text = _DUMP.sub("", text)  # a value, or all that was left of a message that was too long
    text = _ADVICE.sub("", text)
    text = " ".join(text.split()).rstrip(" :.")
    if not text:
        return _UNKNOWN
    return text if len(text) <= _MOST else f"{text[: _MOST - 1]}…"
