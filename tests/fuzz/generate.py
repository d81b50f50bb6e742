"""A value of a schema, made up: wild, at any edge, or tame, the plainest there is.

`Maker` knows OpenAPI's words and nothing of akocore; `names.py` says which names lead somewhere,
so that objects meet each other.
"""

from __future__ import annotations

import copy
import random
import re
import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    import re._constants as sre
    import re._parser as parser

__all__ = ["NOTHING", "Hint", "Maker", "Schema"]

Schema = dict[str, Any]
Also = Callable[[tuple[str, ...]], tuple[str, ...]]
Hint = Callable[[random.Random, tuple[str, ...], Schema], Any]

_LETTERS: Final = "abcxyzABCXYZ0189-._~%$&'()*+,;=:@/ \t\"<>\\^`{|}?#[]é中😀"
_NUMBERS: Final = (0, 1, -1, 2, 80, 99, 100, 255, 256, 443, 65535, 65536, 2**31 - 1, 2**31)
_LARGE: Final = (2**32 - 1, 2**32, 2**53, 2**63 - 1, -(2**31), -(2**63))
_HARMLESS: Final = ("1s", "a", "/a", "a.test", "http://a.test", "GET", "1", "10.0.0.1", "System")
NOTHING: Final = object()


@lru_cache(4096)
def _parsed(pattern: str) -> Any:
    return parser.parse(pattern)


class Maker:
    """Makes values of schemas up.

    ``hint``: a value for a path of names, or `NOTHING`.  ``also``: properties of what is at a path
    that must be there although the schema doesn't say so.  ``tame``: no more than must be there.
    """

    def __init__(
        self, rng: random.Random, hint: Hint, also: Also | None = None, tame: bool = False
    ) -> None:
        self.rng = rng
        self.tame = tame
        self._hint = hint
        self._also = also
        # so many parts, then just what must be there
        self._left = 0 if tame else rng.choice((30, 100, 300, 1000))
        self._samples: dict[int, list[str]] = {}

    def value(self, schema: Schema, path: tuple[str, ...] = (), depth: int = 0) -> Any:
        rng = self.rng
        self._left -= 1
        hinted = self._hint(rng, path, schema)
        if hinted is not NOTHING:
            return hinted
        if self.tame and "default" in schema and schema["default"] != "":
            return copy.deepcopy(schema["default"])
        if "default" in schema and rng.random() < 0.15:
            return schema["default"]
        if schema.get("enum"):
            return rng.choice(schema["enum"])
        if schema.get("x-kubernetes-int-or-string"):
            return rng.choice([self._integer({}), self._text({"maxLength": 20}), 80, "http"])
        kind = schema.get("type", "object")
        if kind == "object":
            return self._object(schema, path, depth)
        if kind == "array":
            return self._array(schema, path, depth)
        if kind == "string":
            return self._plain(schema) if self.tame else self._text(schema)
        if kind == "boolean":
            return rng.random() < 0.5
        if kind == "integer":
            return self._integer(schema)
        return self._integer(schema) if rng.random() < 0.5 else rng.random() * 100

    def _object(self, schema: Schema, path: tuple[str, ...], depth: int) -> dict[str, Any]:
        rng = self.rng
        properties: dict[str, Schema] = schema.get("properties", {})
        required = {*schema.get("required", ()), *(self._also(path) if self._also else ())}
        if not properties:
            more = schema.get("additionalProperties")
            if not isinstance(more, dict) or depth > 12:
                return {}
            count = 1 if self.tame else rng.choice((0, 1, 1, 2, 3))
            return {
                self._text({"maxLength": 30}) or "a": self.value(more, (*path, "*"), depth + 1)
                for _ in range(count)
            }
        out: dict[str, Any] = {}
        chance = rng.choice((0.1, 0.3, 0.5, 0.8)) if depth < 8 else 0.15
        for name, part in properties.items():
            if name in required or (self._left > 0 and rng.random() < chance):
                out[name] = self.value(part, (*path, name), depth + 1)
        self.agree(schema, out, path, depth)
        return out

    def agree(
        self,
        schema: Schema,
        out: dict[str, Any],
        path: tuple[str, ...],
        depth: int,
        wanted: str | None = None,
    ) -> None:
        """A union says by the value of one property which of the others is there.

        ``wanted``: the one that is to be there.
        """
        properties: dict[str, Schema] = schema["properties"]
        lower = {name.lower(): name for name in properties}
        for name, part in properties.items():
            members = {
                v: lower[v.lower()]
                for v in part.get("enum", ())
                if isinstance(v, str) and v.lower() in lower
            }
            if not members or (not self.tame and self.rng.random() < 0.02):
                continue
            if wanted is not None and wanted in members.values():
                out[name] = next(v for v, member in members.items() if member == wanted)
            chosen = out.get(name)
            for value, member in members.items():
                if value != chosen:
                    out.pop(member, None)
                elif member not in out:
                    out[member] = self.value(properties[member], (*path, member), depth + 1)

    def _array(self, schema: Schema, path: tuple[str, ...], depth: int) -> list[Any]:
        rng = self.rng
        least, most = schema.get("minItems", 0), schema.get("maxItems", 64)
        count = rng.choice((least, least, 1, 1, 2, 3, most if rng.random() < 0.05 else 2))
        count = min(max(1 if self.tame else count, least), most, 64)
        if self._left < count * 4 and not self.tame:
            count = min(max(least, 1), most)
        made = [self.value(schema.get("items", {}), path, depth + 1) for _ in range(count)]
        keys = schema.get("x-kubernetes-list-map-keys")
        if keys or schema.get("x-kubernetes-list-type") == "set":
            seen: dict[str, Any] = {}
            for one in made:
                at = [one.get(k) for k in keys] if keys and isinstance(one, dict) else one
                seen.setdefault(repr(at), one)
            made = list(seen.values())
        return made

    def _integer(self, schema: Schema) -> int:
        rng = self.rng
        low, high = schema.get("minimum"), schema.get("maximum")
        if self.tame:
            return int(min(max(1, low or 1), high or 2**31))
        edges = [int(one) for one in (low, high) if one is not None]
        wide = 2**31 if schema.get("format") == "int32" else 2**63
        fits = [
            n
            for n in (*_NUMBERS, *(_LARGE if rng.random() < 0.3 else ()), *edges * 3)
            if (low is None or n >= low) and (high is None or n <= high) and -wide <= n < wide
        ]
        return rng.choice(fits or edges or [1])

    def _text(self, schema: Schema) -> str:
        rng = self.rng
        least, most = schema.get("minLength", 0), schema.get("maxLength", 300)
        if (form := schema.get("format")) == "byte":
            return rng.choice(("", "YQ==", "AAECAw=="))
        if form == "date-time":
            return "2026-01-01T00:00:00Z"
        if pattern := schema.get("pattern"):
            limit = rng.choice((1, 3, 8, most if rng.random() < 0.1 else 12))
            return self._match(_parsed(pattern), min(limit, 2000))[:most]
        length = rng.choice((least, least, 1, 2, 5, 12, most if rng.random() < 0.1 else 9))
        length = min(max(length, least), most, 4096)
        letters = _LETTERS[:12] if rng.random() < 0.6 else _LETTERS
        if rng.random() < 0.1:
            return "/" + "".join(rng.choices(letters, k=max(length - 1, 0)))
        return "".join(rng.choices(letters, k=length))

    def _plain(self, schema: Schema) -> str:
        """The first of some harmless texts that fits."""
        least, most = schema.get("minLength", 0), schema.get("maxLength", 300)
        pattern = schema.get("pattern")
        if schema.get("format") in ("byte", "date-time"):
            return "YQ==" if schema["format"] == "byte" else "2026-01-01T00:00:00Z"
        for one in _HARMLESS:
            if least <= len(one) <= most and (not pattern or re.search(pattern, one)):
                return one
        return self.like(pattern, 3)[:most] if pattern else "a" * least

    def like(self, pattern: str, limit: int) -> str:
        """A text that an expression matches; ``limit``: how often a part comes again at most."""
        return self._match(_parsed(pattern), min(limit, 2000))

    # ── a text that an expression matches ───────────────────────────────────────────────────

    def _match(self, tree: Any, limit: int) -> str:
        return "".join(self._one(op, value, limit) for op, value in tree)

    def _one(self, op: Any, value: Any, limit: int) -> str:
        rng = self.rng
        if op is sre.LITERAL:
            return chr(value)
        if op is sre.NOT_LITERAL or op is sre.ANY:
            return rng.choice([c for c in _LETTERS if op is sre.ANY or ord(c) != value])
        if op is sre.IN:
            return self._class(value)
        if op in (sre.MAX_REPEAT, sre.MIN_REPEAT):
            low, high, tree = value
            most = min(int(high), int(low) + limit)
            count = rng.choice((int(low), most, rng.randint(int(low), most)))
            out = ""
            for number in range(count):
                if number >= int(low) and len(out) > limit:
                    break
                out += self._match(tree, max(limit // 4, 1))
            return out
        if op is sre.BRANCH:
            return self._match(rng.choice(value[1]), limit)
        if op is sre.SUBPATTERN:
            return self._match(value[-1], limit)
        return ""  # an anchor, or a look ahead

    def _class(self, items: Any) -> str:
        rng = self.rng
        if items[0][0] is sre.NEGATE:
            sample = self._samples.get(id(items))
            if sample is None:
                sample = [c for c in _LETTERS if not any(_within(c, one) for one in items[1:])]
                self._samples[id(items)] = sample
            return rng.choice(sample or ["a"])
        op, value = rng.choice(items)
        if op is sre.LITERAL:
            return chr(value)
        if op is sre.RANGE:
            low, high = value
            edge = rng.choice((low, high, rng.randint(low, min(high, low + 200))))
            return chr(edge if not 0xD800 <= edge < 0xE000 else low)
        return rng.choice([c for c in _LETTERS if re.match(_CATEGORIES.get(value, "."), c)])


_CATEGORIES: Final = {
    sre.CATEGORY_DIGIT: r"\d",
    sre.CATEGORY_WORD: r"\w",
    sre.CATEGORY_SPACE: r"\s",
    sre.CATEGORY_NOT_DIGIT: r"\D",
    sre.CATEGORY_NOT_WORD: r"\W",
    sre.CATEGORY_NOT_SPACE: r"\S",
}


def _within(char: str, item: tuple[Any, Any]) -> bool:
    op, value = item
    if op is sre.LITERAL:
        return ord(char) == value
    if op is sre.RANGE:
        return bool(value[0] <= ord(char) <= value[1])
    return op is sre.CATEGORY and bool(re.match(_CATEGORIES.get(value, "."), char))
