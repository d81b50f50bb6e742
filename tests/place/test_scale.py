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


def test_a_name_tells_the_place_in_the_group() -> None:
    assert [number_of(name) for name in ("a-se-1", "a-se-1-se-12", "a", "a-se-x")] == [1, 12, 0, 0]
