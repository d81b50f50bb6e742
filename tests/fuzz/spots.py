"""Good objects with one value, or two, at an edge: all spots of a schema, in turn.

A spot is a path of properties; ``[]`` is any item of a list, ``*`` any value of a map.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from fuzz.edges import Edge, edges
from fuzz.generate import NOTHING, Maker, Schema

__all__ = ["Deviations", "spots"]

Spot = tuple[str, ...]


def spots(schema: Schema, path: Spot = ()) -> Iterator[tuple[Spot, Schema]]:
    """All spots of a schema: its leaves, its lists and its maps."""
    kind = schema.get("type", "object")
    if kind == "array":
        yield path, schema
        yield from spots(schema.get("items", {}), (*path, "[]"))
    elif schema.get("properties"):
        for name, part in schema["properties"].items():
            yield from spots(part, (*path, name))
    elif isinstance(more := schema.get("additionalProperties"), dict) and kind == "object":
        yield path, schema
        yield from spots(more, (*path, "*"))
    else:
        yield path, schema


class Deviations:
    """Puts one edge of one spot into an object at a time.

    Every spot comes as often as any other, and so do its edges: two shuffled rounds.
    """

    def __init__(self, schema: Schema, rng: random.Random, maker: Maker) -> None:
        self._schema = schema
        self._rng = rng
        self._maker = maker
        self._all = list(spots(schema))
        self._edges: dict[Spot, list[Edge]] = {}
        self._round: list[tuple[Spot, Schema]] = []

    def put(self, body: dict[str, Any]) -> str:
        """Change an object; how: ``spec.rules[].retry.attempts=4294967296``."""
        while True:
            if not self._round:
                self._round = self._rng.sample(self._all, len(self._all))
            spot, leaf = self._round.pop()
            value = self._put(body, self._schema, spot, 0, self._next(spot, leaf))
            if value is not NOTHING:
                return f"{'.'.join(spot).replace('.[]', '[]')}={value!r:.120}"

    def _next(self, spot: Spot, leaf: Schema) -> Edge:
        """The next of a spot's edges that is one, given what is there."""

        def fitting(rng: random.Random, now: Any) -> Any:
            for _ in range(2):
                left = self._edges.setdefault(spot, [])
                while left:
                    if (value := left.pop()(rng, now)) is not NOTHING:
                        return value
                left += edges(leaf, self._maker)
                self._rng.shuffle(left)
            return NOTHING

        return fitting

    def _put(self, node: Any, schema: Schema, spot: Spot, at: int, edge: Edge) -> Any:
        """The value that now is there; ``node`` is what the spot's part number ``at`` is in."""
        step, last = spot[at], at + 1 == len(spot)
        if step == "[]":
            part = schema.get("items", {})
            key: Any = self._item(node, part, spot, at)
        elif step == "*":
            part = schema["additionalProperties"]
            key = self._rng.choice(sorted(node)) if node else "a"
        else:
            part = schema["properties"][step]
            key = step
        if step != "[]" and key not in node:
            bare = part.get("type") == "array" and not last
            node[key] = [] if bare else self._maker.value(part, spot[: at + 1], at)
        if last:
            value = edge(self._rng, node[key])
            if value is not NOTHING:
                node[key] = value
        else:
            if not isinstance(node[key], dict | list):
                return NOTHING
            value = self._put(node[key], part, spot, at + 1, edge)
        if isinstance(node, dict) and "properties" in schema:
            self._maker.agree(schema, node, spot[:at], at, wanted=step)
        return value

    def _item(self, node: list[Any], part: Schema, spot: Spot, at: int) -> int:
        """Which item: one that has the next property already, else one more."""
        fitting = list(range(len(node)))
        if at + 1 < len(spot) and isinstance(part.get("properties"), dict):
            required = part.get("required", ())
            if any("enum" in one for one in part["properties"].values()) and required:
                fitting = [n for n in fitting if spot[at + 1] in node[n]]
        if not fitting:
            node.append(self._maker.value(part, spot[: at + 1], at))
            fitting = [len(node) - 1]
        return self._rng.choice(fitting)
