"""Tables, highest random weight, and resilient buckets: twins, the paper's table, laws of moves."""

import json
import random
from array import array
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from akocore import EcmpGroup, MaglevGroup, ModuloGroup, RendezvousGroup, ResilientGroup
from akocore._fast import ecmp as kernel
from reference import ecmp as reference

NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
HOPS = st.dictionaries(NAMES, st.integers(1, 300), min_size=1, max_size=9).map(
    lambda hops: list(hops.items())
)
ALIKE = st.lists(NAMES, min_size=1, max_size=9, unique=True).map(lambda n: [(x, 1) for x in n])
VALUES = st.lists(st.integers(0, 2**32 - 1), max_size=40)
SEEDS = st.integers(1, 2**32 - 1)
ANYTHING: Any = "7"
PRIMES = [2, 3, 7, 31, 251]
SEEN = json.loads((Path(__file__).parent / "vectors" / "linux-6.18-buckets.json").read_text())
FLOWS = array("I", random.Random(1).randbytes(4 * 20_000))


def moved(before: kernel.HopGroup, after: kernel.HopGroup) -> float:
    """Share of the flows whose hop has another name."""
    names = [[name for name, _ in group.hops] for group in (before, after)]
    pairs = zip(before.place(FLOWS), after.place(FLOWS), strict=True)
    return sum(names[0][a] != names[1][b] for a, b in pairs) / len(FLOWS)


@given(HOPS, VALUES, SEEDS)
def test_modulo_is_the_twins(hops: list[tuple[str, int]], values: list[int], seed: int) -> None:
    group = ModuloGroup(hops, seed=seed, bits=32)
    table = reference.modulo_table(hops)
    assert list(group.table) == table
    assert list(group.place(array("I", values))) == [table[v % len(table)] for v in values]


@given(HOPS, VALUES, SEEDS, st.sampled_from(PRIMES))
@example([("a", 1), ("b", 65535)], [5], 1, 251)
def test_maglev_is_the_twins(
    hops: list[tuple[str, int]], values: list[int], seed: int, size: int
) -> None:
    group = MaglevGroup(hops, seed=seed, size=size, bits=32)
    table = reference.maglev_table(hops, seed, size)
    assert list(group.table) == table
    assert list(group.place(array("I", values))) == [table[v % size] for v in values]


def test_maglev_gives_the_papers_table() -> None:
    # Names whose permutations, under seed 7, are those of the paper's table 1: offset and skip
    # (3, 4), (0, 2) and (3, 1).
    b0, b1, b2 = "backend-24", "backend-40", "backend-15"
    assert list(MaglevGroup([b0, b1, b2], seed=7, size=7).table) == [1, 0, 1, 0, 2, 2, 0]
    assert list(MaglevGroup([b0, b2], seed=7, size=7).table) == [0, 0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("size", [0, 1, 4, 65536, 2**24 + 43, -7])
def test_a_maglev_table_has_a_prime_number_of_slots(size: int) -> None:
    with pytest.raises(ValueError, match=rf"must be a prime from 2 to 2\^24, not {size}"):
        MaglevGroup(["a"], seed=1, size=size)


@given(st.one_of(HOPS, ALIKE), VALUES, SEEDS)
def test_rendezvous_is_the_twins(hops: list[tuple[str, int]], values: list[int], seed: int) -> None:
    group = RendezvousGroup(hops, seed=seed, bits=32)
    assert list(group.place(array("I", values))) == reference.place_by_rendezvous(
        hops, values, seed
    )


@pytest.mark.parametrize("make", [ModuloGroup, MaglevGroup, RendezvousGroup, ResilientGroup])
def test_shares_follow_the_weights(make: Any) -> None:
    hops = [("a", 1), ("b", 2), ("c", 5)]
    counts = Counter(make(hops, seed=3, bits=32).place(FLOWS))
    for i, (_, weight) in enumerate(hops):
        assert counts[i] / len(FLOWS) == pytest.approx(weight / 8, abs=0.015)


@pytest.mark.parametrize("make", [RendezvousGroup, MaglevGroup])
def test_a_hop_that_comes_takes_its_due_wherever_it_is_put(make: Any) -> None:
    before = make(["a", "b", "c"], seed=3, bits=32)
    for names in (["d", "a", "b", "c"], ["a", "b", "d", "c"], ["c", "b", "a", "d"]):
        assert moved(before, make(names, seed=3, bits=32)) == pytest.approx(0.25, abs=0.03)
    assert moved(before, make(["c", "a", "b"], seed=3, bits=32)) < 0.02


def test_rendezvous_moves_only_the_flows_of_the_hop_that_goes() -> None:
    before, after = (RendezvousGroup(names, seed=3) for names in (["a", "b", "c"], ["a", "c"]))
    flows = array("I", [value >> 1 for value in FLOWS])
    for a, b in zip(before.place(flows), after.place(flows), strict=True):
        assert a == 1 or before.hops[a] == after.hops[b]


def test_modulo_moves_all_but_one_in_n_plus_1() -> None:
    before = ModuloGroup(["a", "b", "c"], seed=3, bits=32)
    after = ModuloGroup(["a", "b", "c", "d"], seed=3, bits=32)
    assert moved(before, after) == pytest.approx(0.75, abs=0.02)


@pytest.mark.parametrize("case", SEEN, ids=lambda case: f"{case['buckets']} buckets")
def test_linux_was_seen_to_keep_these_bucket_tables(case: dict[str, Any]) -> None:
    first = [(name, weight) for name, weight in case["updates"][0]["hops"]]
    group = ResilientGroup(first, seed=1, buckets=case["buckets"], idle_ms=0)
    twin = reference.Resilient(first, case["buckets"], 0)
    for now, update in enumerate(case["updates"]):
        hops = [(name, weight) for name, weight in update["hops"]]
        group.replace(hops, now)
        twin.replace(hops, now, 0, 0)
        assert [hops[hop][0] for hop in group.table] == update["table"].split()
        assert twin.table == update["table"].split()


STEPS = st.lists(
    st.tuples(
        st.integers(0, 3_000),  # time that passes
        st.one_of(
            st.lists(st.integers(0, 2**31 - 1), max_size=30),  # flows
            st.none(),  # nothing
            st.tuples(  # an update
                st.dictionaries(st.sampled_from("abcdefgh"), st.integers(1, 9), min_size=1),
                st.sampled_from([0, 400, 1_000, 10_000]),
                st.sampled_from([0, 0, 700, 2_000]),
            ),
        ),
    ),
    max_size=12,
)


@given(STEPS, st.integers(1, 70), st.sampled_from([0, 1_000, 120_000]), st.sampled_from([0, 900]))
def test_a_resilient_table_is_the_twins_whatever_happens(
    steps: list[tuple[int, Any]], buckets: int, idle_ms: int, unbalanced_ms: int
) -> None:
    hops = [("a", 1), ("b", 2)]
    group = ResilientGroup(
        hops, seed=1, buckets=buckets, idle_ms=idle_ms, unbalanced_ms=unbalanced_ms
    )
    twin = reference.Resilient(hops, buckets, idle_ms, unbalanced_ms)
    now = 0
    for passed, step in steps:
        now += passed
        if step is None:
            assert group.advance(now) == twin.advance(now)
        elif isinstance(step, list):
            group.touch(array("I", step), now)
            twin.touch(step, now)
        else:
            weights, idle_ms, unbalanced_ms = step
            hops = list(weights.items())
            mine, theirs = (
                call(hops, now, idle_ms=idle_ms, unbalanced_ms=unbalanced_ms)
                for call in (group.copy().replace, twin.replace)
            )
            assert mine == theirs
            group.replace(hops, now, idle_ms=idle_ms, unbalanced_ms=unbalanced_ms)
            assert (group.idle_ms, group.unbalanced_ms) == (idle_ms, unbalanced_ms)
        assert [group.hops[hop][0] for hop in group.table] == twin.table
        assert group.due_ms == twin.due
        assert dict(zip([n for n, _ in group.hops], group.wanted, strict=True)) == twin.wants
        copied = group.copy()
        assert (copied.table, copied.due_ms) == (group.table, group.due_ms)
        assert copied.advance(now + 60_000) == group.copy().advance(now + 60_000)


def test_flows_on_buckets_in_use_stay_when_a_hop_comes_and_idle_ones_move() -> None:
    flows = array("I", [value >> 1 for value in FLOWS])
    group = ResilientGroup(["a", "b", "c"], seed=1, buckets=256, now_ms=0)
    busy, idle = group.copy(), group.copy()
    busy.touch(flows, 10)
    assert busy.replace(["a", "b", "c", "d"], 20) == 0
    assert busy.place(flows) == group.place(flows)
    assert idle.replace(["a", "b", "c", "d"], 20) == 64
    assert busy.advance(120_009) == 0
    assert busy.advance(120_010) == 64
    assert busy.due_ms is None


def test_a_hop_that_goes_leaves_its_buckets_at_once_and_no_others_move() -> None:
    group = ResilientGroup(["a", "b", "c"], seed=1, buckets=90)
    before = group.table
    assert group.replace(["a", "c"], 5) == 30
    for was, now in zip(before, group.table, strict=True):
        assert was == 1 or ("a", "b", "c")[was] == ("a", "c")[now]


@pytest.mark.parametrize(
    "call, error, text",
    [
        (lambda g: ResilientGroup(["a"], seed=1, buckets=0), ValueError, "to 65535 buckets, not 0"),
        (lambda g: ResilientGroup(["a"], seed=1, idle_ms=-1), ValueError, "idle_ms must be from 0"),
        (lambda g: g.replace(["a"], 99), ValueError, "now_ms must not go back from 100 to 99"),
        (lambda g: g.advance(99), ValueError, "now_ms must not go back"),
        (lambda g: g.touch(array("I"), 99), ValueError, "now_ms must not go back"),
        (lambda g: g.replace([], 100), ValueError, "from 1 to 65535 hops, not 0"),
        (lambda g: g.replace(["a"], 100, unbalanced_ms=-5), ValueError, "unbalanced_ms must be"),
        (lambda g: g.touch(array("I", [2**31]), 100), ValueError, r"hash 0 must be below 2\^31"),
        (lambda g: g.__init__(["a"], seed=1), TypeError, "a group is made once"),
        (lambda g: ModuloGroup([(str(i), 65535) for i in range(257)], seed=1),
         ValueError, r"at most 2\^24"),
        (lambda g: MaglevGroup(["a"], seed=1, size=ANYTHING), TypeError, "size must be int"),
        (lambda g: kernel.HopGroup(["a"], seed=1), TypeError, "make one of its subclasses"),
        (lambda g: kernel.TableGroup(["a"], seed=1), TypeError, "make one of its subclasses"),
        (lambda g: MaglevGroup(["\ud800"], seed=1), UnicodeEncodeError, "surrogates"),
        (lambda g: RendezvousGroup(["\ud800"], seed=1), UnicodeEncodeError, "surrogates"),
    ],
)  # fmt: skip
def test_what_a_group_cannot_do_is_an_error(call: Any, error: type[Exception], text: str) -> None:
    group = ResilientGroup(["a", "b"], seed=1, buckets=16, now_ms=100)
    before = group.table
    with pytest.raises(error, match=text):
        call(group)
    assert group.table == before


@pytest.mark.parametrize(
    "kind", [EcmpGroup, ModuloGroup, MaglevGroup, RendezvousGroup, ResilientGroup]
)
def test_a_group_that_was_never_made_is_an_error_and_no_crash(kind: Any) -> None:
    never = kind.__new__(kind)
    with pytest.raises(TypeError, match="was never made"):
        never.place(array("I", [0]))
    with pytest.raises(TypeError, match="was never made"):
        never.select([("10.0.0.1", "10.0.0.2", 6, 1, 2)])
    if kind is ResilientGroup:
        with pytest.raises(TypeError, match="was never made"):
            never.touch(array("I", [0]), 1)


def test_groups_say_what_they_are() -> None:
    assert repr(ResilientGroup(["a"], seed=1, buckets=8)) == (
        "ResilientGroup([('a', 1)], seed=1, policy=3, buckets=8)"
    )
    assert repr(ModuloGroup([("a", 2)], seed=1, policy=0)) == (
        "ModuloGroup([('a', 2)], seed=1, policy=0)"
    )
    assert issubclass(EcmpGroup, kernel.HopGroup)
