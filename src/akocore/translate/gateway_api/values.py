"""Values of routes that Envoy would refuse, or read only when a request comes: what is wrong.

Each function says what is wrong and what to do in one sentence, or "" when nothing is.  Limits
are Envoy's own: its protobuf fields, and what it makes of a text.
"""

from __future__ import annotations

import re
from typing import Final

from akocore.shown import quoted

__all__ = [
    "MAX_HEADER_BYTES",
    "TOKEN",
    "WEIGHTS",
    "escaped_bytes",
    "name_problem",
    "number_problem",
    "path_problem",
    "removal_problem",
    "value_problem",
]

TOKEN: Final = re.compile(r"[A-Za-z0-9!#$%&'*+\-.^_|~`]+")
WEIGHTS: Final = (0, 1_000_000)
MAX_HEADER_BYTES: Final = 16_384
_NAME_CHARS: Final = 256
_OURS: Final = {  # headers that are the proxy's to write
    "content-length": "says where a message ends",
    "transfer-encoding": "says where a message ends",
    "cdn-loop": "says how often a request came by, so that loops end",
}
_PATH: Final = re.compile(r"/(?:[A-Za-z0-9\-._~!$&'()*+,;=:@/]|%[0-9A-Fa-f]{2})*")


def escaped_bytes(value: str) -> int:
    """How long a value is in Envoy's configuration, where a per cent sign is two."""
    return len(value.encode(errors="replace")) + value.count("%")


def name_problem(name: str, *, changes: bool = False) -> str:
    """What keeps a header's name from being one; ``changes``: it is not just read."""
    if not name:
        return "The name is empty. Write one."
    if name.startswith(":"):
        return f"{quoted(name)!r} is no header but a part of HTTP/2. Take it out."
    if not TOKEN.fullmatch(name) or len(name) > _NAME_CHARS:
        return f"{quoted(name)!r} is no name of a header. Write letters, digits and hyphens."
    if changes and (what := _OURS.get(name.lower())):
        return f"{name} {what}, and is the proxy's to write. Take it out."
    return ""


def removal_problem(name: str) -> str:
    """What keeps a header from being removed."""
    if name.lower() == "host":
        return "A request has a host: it can be set, not removed. Take it out."
    return name_problem(name, changes=name.lower() == "cdn-loop")


def value_problem(name: str, value: str) -> str:
    """What keeps a header from having a value."""
    if not value.replace("\t", " ").isprintable():
        bad = next(char for char in value if not char.isprintable() and char != "\t")
        what = "a line end" if bad in "\r\n" else f"the character {bad!r}"
        said = f"The value of {quoted(name)} has {what}."
        return f"{said} Write it in one line of printable characters."
    if escaped_bytes(value) > MAX_HEADER_BYTES:
        return f"The value of {quoted(name)} is longer than {MAX_HEADER_BYTES} bytes. Shorten it."
    return ""


def path_problem(path: str) -> str:
    """What keeps a path from being sent to a backend; it may have no query and no fragment."""
    if not path.startswith("/"):
        return f"{quoted(path)!r} is no path. Begin with a slash."
    for char, what in (("?", "a query"), ("#", "a fragment")):
        if char in path:
            return f"{quoted(path)!r} has {what}, which stays the request's own. Take it out."
    if not _PATH.fullmatch(path):
        return f"{quoted(path)!r} is no path. Percent-encode what is not a plain letter of one."
    return ""


def number_problem(number: int, least: int, most: int) -> str:
    """What keeps a number from being used."""
    if least <= number <= most:
        return ""
    said = str(number) if abs(number) < 10**12 else "It"
    return f"{said} is not between {least} and {most}. Write a number that is."
