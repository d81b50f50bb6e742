"""How many Service Engines a virtual service is on, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from akocore.config import Config
from akocore.infrastructure import Infrastructure
from akocore.kube.objects import ServiceEngineGroupSpec
from akocore.place.scale import Scale, number_of
from akocore.place.state import State
from akocore.place.virtual_services import Placement
from akocore.store import Store
from akocore.translate.names import Names

GROUP = ServiceEngineGroupSpec(min_se_per_vs=2, max_se_per_vs=4, max_se=3)


def scale(
    tmp_path: Path, group: ServiceEngineGroupSpec = GROUP, *, speaks_bgp: bool = True
) -> Scale:
    config = Config(service_engine_groups={"Default-Group": group})
    facts = State(tmp_path)
    placement = Placement(Names("c"), facts)
    at = Infrastructure(config, Store(), facts, placement, speaks_bgp=speaks_bgp)
    at.update()
    return Scale(facts, at)


def test_it_is_on_the_groups_least_until_it_is_scaled(tmp_path: Path) -> None:
    one = scale(tmp_path)
    assert one.wanted("vs", "Default-Group") == 2
    assert one.to("vs", "Default-Group", 3) is None
    assert one.wanted("vs", "Default-Group") == 3
    assert one.wanted("other", "Default-Group") == 2
    assert [one.has("other", "Default-Group", f"g-se-{n}") for n in (1, 2, 3)] == [
        True,
        True,
        False,
    ]
    assert one.to("vs", "Default-Group", 2) is None
    assert one.wanted("vs", "Default-Group") == 2


async def test_it_is_remembered(tmp_path: Path) -> None:
    one = scale(tmp_path)
    assert one.to("vs", "Default-Group", 3) is None
    await one._facts.flush()
    one._facts.close()
    assert scale(tmp_path).wanted("vs", "Default-Group") == 3


@pytest.mark.parametrize(
    ("number", "reason", "said"),
    [
        (5, "TooManyServiceEngines", "has maxSePerVs 4"),
        (4, "TooManyServiceEngines", "has maxSe 3"),
        (1, "TooFewServiceEngines", "has minSePerVs 2"),
    ],
)
def test_beyond_the_groups_limits_it_is_refused(
    tmp_path: Path, number: int, reason: str, said: str
) -> None:
    one = scale(tmp_path)
    no = one.to("vs", "Default-Group", number)
    assert no is not None
    assert no.reason == reason
    assert said in no.remedy
    assert one.wanted("vs", "Default-Group") == 2


def test_a_lower_limit_holds_for_what_was_scaled_before(tmp_path: Path) -> None:
    one = scale(tmp_path)
    assert one.to("vs", "Default-Group", 3) is None
    one._infrastructure.groups["Default-Group"] = ServiceEngineGroupSpec(
        min_se_per_vs=1, max_se_per_vs=2
    )
    assert one.wanted("vs", "Default-Group") == 2


def test_local_engines_share_every_address_and_are_not_scaled(tmp_path: Path) -> None:
    one = scale(tmp_path, speaks_bgp=False)
    no = one.to("vs", "Default-Group", 3)
    assert no is not None
    assert "set minSePerVs of ServiceEngineGroup Default-Group" in no.remedy
    assert one.has("vs", "Default-Group", "g-se-9")


def elsewhere(one: Scale, *engines: str, announced: dict[str, set[str]] | None = None) -> Scale:
    """Engines that have an agent; ``announced``: virtual service → who has it already."""
    there = announced or {}
    one.usable = lambda _group: dict.fromkeys(engines, 1.0)
    one.rank = lambda vs, engine: 0 if engine in there.get(vs, ()) else 2
    one.busy = lambda engine: any(engine in names for names in there.values())
    return one


def test_virtual_services_spread_over_the_engines_of_a_group(tmp_path: Path) -> None:
    names = [f"pod-{n}" for n in range(8)]
    one = elsewhere(scale(tmp_path), *names)
    on = {f"vs-{n}": one.on(f"vs-{n}", "Default-Group") for n in range(400)}
    assert {len(set(engines)) for engines in on.values()} == {2}
    shares = [sum(name in engines for engines in on.values()) for name in names]
    assert min(shares) > 50
    # One that goes moves only its own, and nothing moves back to one that comes.
    left = elsewhere(scale(tmp_path / "left"), *names[1:])
    after = {vs: left.on(vs, "Default-Group") for vs in on}
    assert all(set(after[vs]) == set(on[vs]) for vs in on if "pod-0" not in on[vs])
    back = elsewhere(
        scale(tmp_path / "back"), *names, announced={vs: set(e) for vs, e in after.items()}
    )
    assert all(set(back.on(vs, "Default-Group")) == set(after[vs]) for vs in on)


def test_an_engine_that_weighs_less_gets_less(tmp_path: Path) -> None:
    one = elsewhere(scale(tmp_path))
    one.usable = lambda _group: {"a": 0.2, "b": 1.0, "c": 1.0, "d": 1.0}
    on = [one.on(f"vs-{n}", "Default-Group") for n in range(400)]
    shares = {name: sum(name in engines for engines in on) for name in "abcd"}
    assert 0 < shares["a"] < min(shares["b"], shares["c"], shares["d"]) / 2


def test_spares_stay_free_until_they_are_needed(tmp_path: Path) -> None:
    group = ServiceEngineGroupSpec(
        ha_mode="NPlusM", buffer_se=1, min_se_per_vs=1, max_se_per_vs=4, max_se=4
    )
    one = scale(tmp_path, group)
    assert one.with_spares("Default-Group", 2) == 3
    assert one.with_spares("Default-Group", 4) == 4
    elsewhere(one, "a", "b", "c", announced={"first": {"a"}, "second": {"b"}})
    used = {name for n in range(40) for name in one.on(f"vs-{n}", "Default-Group")}
    assert used == {"a", "b"}
    elsewhere(one, "b", "c", announced={"second": {"b"}}).changed()
    assert one.on("second", "Default-Group") == ("b",)
    elsewhere(one, "c").changed()
    assert one.on("second", "Default-Group") == ("c",)


def test_one_serves_and_a_second_one_stands_by(tmp_path: Path) -> None:
    group = ServiceEngineGroupSpec(ha_mode="ActiveStandby")
    one = elsewhere(scale(tmp_path, group), "a", "b", "c")
    assert one.wanted("vs", "Default-Group") == 2
    active, standby = one.on("vs", "Default-Group")
    assert one.stands_by("vs", "Default-Group", standby)
    assert not one.stands_by("vs", "Default-Group", active)
    # Whoever serves goes on to serve when the other one is back.
    one.rank = lambda _vs, engine: 0 if engine == standby else 2
    one.changed()
    assert one.on("vs", "Default-Group")[0] == standby
    no = one.to("vs", "Default-Group", 3)
    assert no is not None
    assert "is ActiveStandby" in no.remedy


def test_a_group_without_routers_shares_every_address(tmp_path: Path) -> None:
    one = elsewhere(scale(tmp_path))
    for name in ("envoy-7", "default-group-se-0", "Default-Group-se-2"):
        assert one.has("vs", "Default-Group", name)


def test_a_name_tells_the_place_in_the_group() -> None:
    assert [number_of(name) for name in ("a-se-1", "a-se-1-se-12", "a", "a-se-x")] == [1, 12, 0, 0]
