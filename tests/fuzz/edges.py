"""What lies at the edges of a schema's leaf: every value of an enum, every bound, odd texts.

It knows OpenAPI's words alone.  An edge is a function of a random generator and of the value that
a good object has there; `NOTHING`: the edge isn't one of this leaf.
"""

from __future__ import annotations

import base64
import random
import re
import string
from collections.abc import Callable
from typing import Any, Final

from fuzz.generate import NOTHING, Maker, Schema

__all__ = ["Edge", "edges"]

Edge = Callable[[random.Random, Any], Any]

_POWERS: Final = (7, 8, 15, 16, 31, 32, 53, 63)
_NUMBERS: Final = sorted(
    {0, 1, -1, 2, 10, 99, 100, 101, 599, 600, 999, 1000, 1001, 10**6, 10**6 + 1}
    | {2**n + more for n in _POWERS for more in (-1, 0, 1)}
    | {-(2**n) - more for n in (15, 31, 63) for more in (0, 1)}
)
_PIECES: Final = (
    *string.punctuation,
    *(" ", "\t", "\n", "\r", "\0", "\x7f", "é", "中", "😀", "\u2028", "0", "A"),
    *("//", "..", "%%", "%41", "%00", "${a}", "%a", "%A(b)%", "://", "[]", "()", "{2}", ".*"),
)


def edges(schema: Schema, maker: Maker) -> list[Edge]:
    """All edges of a leaf, in no order."""
    if schema.get("enum"):
        return [_always(one) for one in schema["enum"]]
    if schema.get("x-kubernetes-int-or-string") or schema.get("format") == "int-or-string":
        numbers = [_always(n) for n in (0, 1, 65535, 65536, -1, 2**31 - 1)]
        return [*numbers, *(_always(text) for text in ("", "a", "80", "http", "a" * 63))]
    kind = schema.get("type", "object")
    if kind == "boolean":
        return [_always(True), _always(False)]
    if kind == "integer":
        return [_always(n) for n in _numbers(schema)]
    if kind == "number":
        return [_always(n) for n in (0, -1, 0.5, 1e300, 2**53)]
    if kind == "string":
        return _texts(schema, maker)
    if kind == "array":
        return _lists(schema, maker)
    return _maps(schema, maker)


def _always(value: Any) -> Edge:
    return lambda _rng, _now: value


def _numbers(schema: Schema) -> list[int]:
    low, high = schema.get("minimum"), schema.get("maximum")
    wide = 2**31 if schema.get("format") == "int32" else 2**63
    more = {int(one) + n for one in (low, high) if one is not None for n in (-1, 0, 1)}
    return sorted(
        n
        for n in {*_NUMBERS, *more}
        if (low is None or n >= low) and (high is None or n <= high) and -wide <= n < wide
    )


def _texts(schema: Schema, maker: Maker) -> list[Edge]:
    if schema.get("format") == "byte":
        return [_in_base64(change) for change in _CHANGES]
    least, most = schema.get("minLength", 0), schema.get("maxLength", 4096)
    found: list[Edge] = list(_CHANGES)
    if pattern := schema.get("pattern"):
        found += [lambda _rng, _now, n=n: maker.like(pattern, n)[:most] for n in (0, 1, 3, 12, 90)]
        found += [lambda _rng, _now: maker.like(pattern, most)[:most]] * 2
    else:
        sizes = sorted({least, least + 1, 63, 64, 253, 255, 256, most - 1, most})
        found += [_long(n) for n in sizes if least <= n <= most]
    check = re.compile(pattern) if pattern else None

    def fitting(edge: Edge) -> Edge:
        def fits(rng: random.Random, now: Any) -> Any:
            text = edge(rng, now)
            fine = check is None or (check.search(text) and not text.endswith("\n"))
            return text if fine and least <= len(text) <= most else NOTHING

        return fits

    return [fitting(one) for one in found]


def _long(length: int) -> Edge:
    """As long as that: what is there, again and again."""
    return lambda _rng, now: (str(now or "a") * (length + 1))[:length]


def _with(piece: str) -> Edge:
    """A piece before, behind or within what is there, or alone."""

    def change(rng: random.Random, now: Any) -> str:
        text = str(now or "a")
        where = rng.randrange(4)
        if where == 3:
            return piece
        at = (0, len(text), rng.randint(0, len(text)))[where]
        return text[:at] + piece + text[at:]

    return change


def _in_base64(edge: Edge) -> Edge:
    def change(rng: random.Random, now: Any) -> Any:
        try:
            text = base64.b64decode(now or "").decode()
        except ValueError:  # it is another edge already
            return NOTHING
        return base64.b64encode(edge(rng, text).encode()).decode()

    return change


_OF_NUMBERS: Final[tuple[Edge, ...]] = (
    lambda _rng, now: re.sub(r"\d+", "0\\g<0>", str(now or "a"), count=1),
    lambda _rng, now: re.sub(r"\d+", "0\\g<0>", str(now or "a")),
    lambda _rng, now: re.sub(r"\d+", "0", str(now or "a")),
    lambda _rng, now: re.sub(r"\d+", "255", str(now or "a")),
    lambda _rng, now: re.sub(r"\d+", "99999", str(now or "a")),
)
_CHANGES: Final[tuple[Edge, ...]] = (
    *map(_with, _PIECES),
    _always(""),
    lambda _rng, now: str(now or "a").upper(),
    lambda _rng, now: str(now or "a") * 2,
    lambda _rng, now: str(now or "a")[:-1],
    lambda _rng, now: str(now or "a")[1:],
    lambda _rng, now: str(now or "a")[: len(str(now or "a")) // 2],
    *_OF_NUMBERS * 3,
    lambda _rng, now: re.sub(r"[A-Za-z]+", "*", str(now or "a"), count=1),
    lambda _rng, now: ":" + ":".join(str(now or "a").split(".")),
)


def _lists(schema: Schema, maker: Maker) -> list[Edge]:
    least, most = schema.get("minItems", 0), min(schema.get("maxItems", 64), 64)
    items = schema.get("items", {})

    def of(count: int, alike: bool) -> Edge:
        def make(_rng: random.Random, now: Any) -> list[Any]:
            there = list(now or ())[:count]
            one = there[0] if there and alike else None
            if items.get("enum") and not alike:
                return list(items["enum"])[:count]
            for n in range(len(there), count):
                there.append(one if one is not None else _other(maker.value(items), n))
            return there

        return make

    sizes = sorted({least, least + 1, min(least + 2, most), most})
    return [of(size, alike) for size in sizes for alike in (False, True) if size <= most]


def _other(item: Any, number: int) -> Any:
    """An item that is none of its list's others."""
    if isinstance(item, str):
        return f"{item}{number}"
    if isinstance(item, dict):
        told = {"name", "hostname", "port", "host", "sectionName"}.intersection(item)
        return {**item, **{key: _other(item[key], number) for key in told}}
    return item + number if isinstance(item, int) and not isinstance(item, bool) else item


def _maps(schema: Schema, maker: Maker) -> list[Edge]:
    more = schema.get("additionalProperties")
    if not isinstance(more, dict):
        return [_always({})]

    def of(key: str) -> Edge:
        return lambda _rng, now: {**(now or {}), key: maker.value(more)}

    return [_always({}), *(of(key) for key in ("", "a", "a.test/b", "%", "é", "A_b", "a" * 63))]
