"""Who is in whose ring, as a controller works it out from what it sees."""

from __future__ import annotations

from akocore.engines.agent.rings import UNSEEN_S, Candidate, Rings
from akocore.engines.handover import Member

VIPS = ("10.10.16.224",)


def engine(
    number: int, *, ready: bool = True, leaving: bool = False, group: str = "g"
) -> Candidate:
    """Its address sorts by number, its name doesn't."""
    member = Member(name=f"se-{10 - number}", address=f"10.10.{number}.9")
    return Candidate(member, group, ready, leaving)


def members(rings: Rings, number: int) -> list[int]:
    found = rings.ring(f"se-{10 - number}", VIPS)
    assert found is not None
    return [int(member.address.split(".")[2]) for member in found.members]


def test_who_comes_knows_all_and_is_known_to_all_when_its_rules_are_there() -> None:
    rings = Rings()
    rings.see([engine(1), engine(3), engine(2, ready=False)], 0)
    assert members(rings, 2) == [1, 2, 3]
    assert members(rings, 1) == members(rings, 3) == [1, 3]
    ring = rings.ring("se-9", VIPS)
    assert ring is not None
    assert ring.also == ("10.10.2.9", "10.10.3.9")  # it takes packets from the newcomer already
    rings.see([engine(1), engine(3), engine(2)], 1)
    assert members(rings, 1) == members(rings, 2) == members(rings, 3) == [1, 2, 3]


def test_who_leaves_stays_until_it_owns_no_flow() -> None:
    rings = Rings()
    rings.see([engine(1), engine(2), engine(3)], 0)
    rings.see([engine(1), engine(2), engine(3, leaving=True)], 1)
    assert members(rings, 1) == [1, 2, 3]
    rings.see([engine(1), engine(2), engine(3, ready=False, leaving=True)], 2)
    assert members(rings, 1) == [1, 2]
    rings.see([engine(1), engine(2)], 3)
    assert members(rings, 1) == [1, 2]


def test_one_whose_envoy_died_leaves_at_once_and_one_out_of_sight_a_little_later() -> None:
    rings = Rings()
    rings.see([engine(1), engine(2), engine(3)], 0)
    assert not rings.see([engine(1), engine(2, ready=False), engine(3)], 1)
    assert members(rings, 1) == [1, 3]
    assert rings.see([engine(1)], 2)
    assert members(rings, 1) == [1, 3]
    assert rings.see([engine(1)], 2 + UNSEEN_S / 2)
    assert not rings.see([engine(1)], 2 + UNSEEN_S)
    assert members(rings, 1) == [1]


def test_a_controller_that_is_new_keeps_the_ring_of_those_that_come_to_it() -> None:
    rings = Rings()
    rings.hear("g", [engine(n).member for n in (1, 2, 3)], 0)
    rings.see([engine(2)], 0.1)
    assert members(rings, 2) == [1, 2, 3]
    rings.see([engine(1), engine(2)], UNSEEN_S)
    assert members(rings, 2) == [1, 2]


def test_rings_are_of_a_group_and_have_a_largest_size() -> None:
    rings = Rings()
    rings.see([engine(1), engine(2, group="other"), engine(3)], 0)
    assert members(rings, 1) == [1, 3]
    assert members(rings, 2) == [2]
    crowd = [
        Candidate(Member(name=f"se-{n}", address=f"10.10.0.{n}"), "g", ready=True)
        for n in range(1, 34)
    ]
    rings.see(crowd, 1)
    assert rings.ring("se-1", VIPS) is None
    rings.see(crowd[:32], 1 + 2 * UNSEEN_S)
    rings.see(crowd[:32], 1 + 4 * UNSEEN_S)
    found = rings.ring("se-1", VIPS)
    assert found is not None
    assert len(found.members) == 32


def test_the_last_of_the_next_hops_looks_back_when_it_has_come_and_forward_after_another() -> None:
    rings = Rings()

    def back() -> list[bool]:
        found = [rings.ring(f"se-{10 - n}", VIPS) for n in (1, 2, 3)]
        return [one.back for one in found if one is not None]

    rings.see([engine(1), engine(2), engine(3, ready=False)], 0)
    rings.see([engine(1), engine(2), engine(3)], 1)
    assert back()[1:] == [True, True]  # the first has all others on either side
    rings.see([engine(1), engine(2), engine(3, leaving=True)], 2)
    assert back()[:2] == [False, False]
    rings.see([engine(1), engine(2), engine(3, leaving=True)], 3)
    assert back()[:2] == [False, False]  # until the next change
