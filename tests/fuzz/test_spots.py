"""What is made up reaches every spot of every schema, its bounds and what lies beside them."""

from __future__ import annotations

import random
from typing import Any

import pytest
import yaml

from fuzz.bases import base
from fuzz.edges import edges
from fuzz.generate import NOTHING, Maker
from fuzz.judge import Judge
from fuzz.names import Names
from fuzz.schemas import RELEASES, kinds
from fuzz.spots import Deviations, spots

_NAMES = Names()


def _maker(seed: int = 1) -> Maker:
    return Maker(random.Random(seed), _NAMES.hint, _NAMES.also, tame=True)


def _values(schema: dict[str, Any], now: Any) -> list[Any]:
    rng = random.Random(1)
    return [one(rng, now) for one in edges(schema, _maker())]


@pytest.mark.parametrize("name", sorted(kinds()))
def test_every_spot_of_a_kind_comes_in_two_rounds(name: str) -> None:
    _, schema = kinds()[name]
    rng = random.Random(1)
    deviations = Deviations(schema, rng, _maker())
    plain = name.partition(" v")[0]
    wanted = {".".join(spot).replace(".[]", "[]") for spot, _ in spots(schema)}
    seen = set()
    for number in range(1, 3 * len(wanted)):
        body = base(rng, plain, number)
        seen.add(deviations.put(body).partition("=")[0])
    assert wanted - seen == set()


def test_a_number_without_a_maximum_comes_from_around_32_and_64_bits() -> None:
    found = _values({"type": "integer", "minimum": 0}, 1)
    assert {0, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1} <= set(found)
    assert min(found) == 0


def test_a_bounded_number_comes_from_its_bounds_and_beside_them() -> None:
    found = _values({"type": "integer", "minimum": 400, "maximum": 599, "format": "int32"}, 1)
    assert {400, 401, 598, 599} <= set(found)
    assert min(found) == 400
    assert max(found) == 599


def test_an_address_comes_with_a_leading_zero() -> None:
    assert "010.0.0.1" in _values({"type": "string"}, "10.0.0.1")


def test_a_text_keeps_to_its_pattern_and_to_its_length() -> None:
    schema = {"type": "string", "pattern": "^[a-c%]+$", "minLength": 1, "maxLength": 20}
    found = [one for one in _values(schema, "abc") if one is not NOTHING]
    assert len(found) > 5
    assert all(1 <= len(one) <= 20 and set(one) <= set("abc%") for one in found)
    assert any("%" in one for one in found)


def test_a_member_of_a_union_comes_with_the_value_that_says_so() -> None:
    _, schema = kinds()[f"HTTPRoute {RELEASES[0]}"]
    rng = random.Random(3)
    deviations = Deviations(schema, rng, _maker())
    filters = []
    for number in range(1, 600):
        body = base(rng, "HTTPRoute", number)
        if ".filters[].cors." in deviations.put(body):
            found = [f for rule in body["spec"]["rules"] for f in rule.get("filters", ())]
            filters += found
    assert len(filters) > 3
    assert all(set(one) == {"type", "cors"} and one["type"] == "CORS" for one in filters)


def test_a_seed_makes_the_same_objects_each_time() -> None:
    def some() -> str:
        judge = Judge(1, 7, RELEASES[1])
        made = [judge.make()[1] for _ in range(300)]
        return yaml.dump([one.document for one in made if one.document["kind"] != "Secret"])

    assert some() == some()


def test_most_objects_have_one_edge_and_few_have_any() -> None:
    judge = Judge(1, 7, RELEASES[1])
    made = [judge.make()[1] for _ in range(500)]
    single = [one for one in made if len(one.edges) == 1 and one.edges != ("wild",)]
    assert len(single) > 250
    assert sum(one.edges == ("wild",) for one in made) < 100
