"""Shares, imbalance, moves and polarisation: against counting every hash, and known laws."""

import math
import random
from array import array
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from akocore import (
    EcmpGroup,
    Flows,
    MaglevGroup,
    ModuloGroup,
    RendezvousGroup,
    ResilientGroup,
)
from akocore import ecmp as answers
from akocore._fast.ecmp import HopGroup
from akocore.ecmp import Interval, Traffic, make_flows
from reference import ecmp as reference

BITS = 10  # so few that every hash value can be tried
EVERY = array("I", range(1 << BITS))
HOPS = st.dictionaries(st.sampled_from("abcdefg"), st.integers(1, 300), min_size=1).map(
    lambda hops: list(hops.items())
)
FLOWS = make_flows(20_000, seed=5)


def group(scheme: str, hops: list[tuple[str, int]], down: list[str] | None = None) -> HopGroup:
    if scheme == "resilient":
        return ResilientGroup(hops, seed=3, bits=BITS, buckets=37)
    if scheme == "maglev":
        return MaglevGroup(hops, seed=3, bits=BITS, size=31)
    if scheme == "modulo":
        return ModuloGroup(hops, seed=3, bits=BITS)
    return EcmpGroup(hops, seed=3, bits=BITS, down=down or [])


SCHEMES = st.sampled_from(["hash-threshold", "resilient", "maglev", "modulo"])


@given(SCHEMES, HOPS, st.booleans())
def test_shares_of_hashes_are_those_of_every_hash(
    scheme: str, hops: list[tuple[str, int]], first_is_down: bool
) -> None:
    made = group(scheme, hops, [hops[0][0]] if first_is_down else None)
    chosen = list(made.place(EVERY))
    shares = answers.shares_of_hashes(made)
    assert shares == [chosen.count(i) / len(EVERY) for i in range(len(hops))]


@given(SCHEMES, HOPS, HOPS, st.booleans())
def test_moved_hashes_are_those_of_every_hash(
    scheme: str, before: list[tuple[str, int]], after: list[tuple[str, int]], down: bool
) -> None:
    old = group(scheme, before)
    new = group(scheme, after, [after[-1][0]] if down else None)
    moved = answers.moved_hashes(old, new)
    if scheme == "modulo" and sum(dict(before).values()) != sum(dict(after).values()):
        assert moved is None  # of tables of different lengths only flows can tell
        return
    pairs = zip(old.place(EVERY), new.place(EVERY), strict=True)
    assert moved == sum(before[a][0] != after[b][0] for a, b in pairs) / len(EVERY)


def test_only_flows_can_tell_of_groups_without_a_table_or_that_hash_differently() -> None:
    one = EcmpGroup(["a", "b"], seed=3)
    assert answers.moved_hashes(one, EcmpGroup(["a", "b"], seed=4)) is None
    assert answers.moved_hashes(one, ModuloGroup(["a", "b"], seed=3)) is None
    assert answers.moved_hashes(one, RendezvousGroup(["a", "b"], seed=3)) is None
    assert answers.shares_of_hashes(RendezvousGroup(["a", "b"], seed=3)) is None


def test_a_distribution_counts_flows_and_tells_what_is_due() -> None:
    made = EcmpGroup([("a", 1), ("b", 3)], seed=9)
    found = answers.distribution(made, FLOWS)
    counts = made.shares(FLOWS)
    assert [(hop.hop, hop.weight, hop.due, hop.flows) for hop in found.hops] == [
        ("a", 1, 0.25, counts["a"]),
        ("b", 3, 0.75, counts["b"]),
    ]
    assert [hop.share for hop in found.hops] == [counts["a"] / 20_000, counts["b"] / 20_000]
    assert [hop.hashes for hop in found.hops] == [0.25, 0.75]
    assert found.imbalance == max(counts["a"] * 4, counts["b"] * 4 / 3) / 20_000
    assert found.fair.low <= found.imbalance <= found.fair.high


@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=6),
    st.integers(20, 60),
    st.floats(1.0, 2.5),
)
def test_the_chance_of_an_imbalance_is_nearly_the_exact_one(
    weights: list[int], flows: int, ratio: float
) -> None:
    chances = [weight / sum(weights) for weight in weights]
    limits = [math.floor(ratio * flows * chance + 1e-9) for chance in chances]
    expected = reference.chance_of_none_above(limits, chances, flows)
    off = 1e-9 if len(weights) <= 2 else 0.02
    got = answers._chance_of_none_above(limits, chances, flows)
    assert got == pytest.approx(expected, abs=off)


@pytest.mark.parametrize(
    "weights", [[1, 1], [1, 1, 1], [1] * 16, [1, 2, 5], [200, 100, 3]], ids=str
)
@pytest.mark.parametrize("flows", [500, 20_000])
def test_95_of_100_distributions_of_random_flows_lie_in_the_interval(
    weights: list[int], flows: int
) -> None:
    hops = [(str(i), weight) for i, weight in enumerate(weights)]
    made = EcmpGroup(hops, seed=11)
    interval = answers.imbalance_interval(weights, flows)
    tries, inside = 400, 0
    for seed in range(tries):
        counts = made.shares(make_flows(flows, seed=1_000 + seed)).values()
        most = max(c / w for c, w in zip(counts, weights, strict=True))
        inside += interval.low - 1e-4 <= most * sum(weights) / flows <= interval.high
    # Four standard deviations of a binomial count; the counts are few, so it may be wider.
    assert inside / tries >= 0.95 - 4 * math.sqrt(0.95 * 0.05 / tries)
    assert inside / tries <= 0.995


def test_the_interval_of_the_imbalance_narrows_with_flows_and_knows_buckets() -> None:
    few, many = (answers.imbalance_interval([1, 1, 1], n) for n in (1_000, 100_000))
    assert few.high - 1 == pytest.approx(10 * (many.high - 1), rel=0.1)
    assert answers.imbalance_interval([5], 10) == Interval(1.0, 1.0)
    # Ten buckets can't be shared by three: the most has four, 1.2 of its due.
    found = answers.distribution(ResilientGroup(["a", "b", "c"], seed=2, buckets=10), FLOWS)
    assert found.fair.low < 1.2 < found.fair.high
    assert found.imbalance == pytest.approx(1.2, abs=0.03)


def test_the_interval_of_a_proportion_is_wilsons() -> None:
    # Newcombe (1998), table I: 81 of 263, and 0 of 20.
    found = answers.proportion_interval(81, 263)
    assert (round(found.low, 4), round(found.high, 4)) == (0.2553, 0.3662)
    found = answers.proportion_interval(0, 20)
    assert (found.low, round(found.high, 4)) == (0.0, 0.1611)


def test_moves_are_counted_by_hop_before_and_after() -> None:
    before, after = EcmpGroup(["a", "b"], seed=9), EcmpGroup(["b", "c"], seed=9)
    found = answers.moves(before, after, FLOWS)
    shares = before.shares(FLOWS)
    assert found.pairs == {"a": {"b": shares["a"], "c": 0}, "b": {"b": 0, "c": shares["b"]}}
    assert (found.flows, found.moved, found.fraction, found.hashes) == (20_000, 20_000, 1.0, 1.0)
    assert answers.moves(before, before, FLOWS).moved == 0
    # Names count, not places.
    assert answers.moves(before, EcmpGroup(["b", "a"], seed=9), FLOWS).fraction == 1.0
    rendezvous = RendezvousGroup(["a", "b"], seed=9), RendezvousGroup(["b", "a"], seed=9)
    assert answers.moves(*rendezvous, FLOWS).fraction == 0.0


@pytest.mark.parametrize("count", range(1, 10))
def test_a_new_hop_moves_fewest_in_the_middle_as_rfc_2992_has_it(count: int) -> None:
    before = EcmpGroup([str(i) for i in range(count)], seed=1)
    ranked = answers.insertions(before, lambda hops: EcmpGroup(hops, seed=1), ("new", 1), FLOWS)
    assert ranked[0].place in (count // 2, (count + 1) // 2)
    assert ranked[0].hops[ranked[0].place] == ("new", 1)
    # A hop keeps the part of its range that it has in both cuttings.
    for insertion in ranked:
        stays = Fraction(0)
        for i in range(count):
            j = i + (i >= insertion.place)
            low = max(Fraction(i, count), Fraction(j, count + 1))
            high = min(Fraction(i + 1, count), Fraction(j + 1, count + 1))
            stays += max(high - low, Fraction(0))
        assert insertion.moved == pytest.approx(float(1 - stays), abs=1e-8)
    assert ranked[-1].moved == pytest.approx(0.5, abs=1e-8)
    if count > 1:
        odd = count + 1 - count % 2
        assert ranked[0].moved == pytest.approx(1 / 4 + 1 / (4 * odd), abs=1e-8)


def test_a_place_is_counted_over_flows_where_the_groups_do_not_tell() -> None:
    before = RendezvousGroup(["a", "b", "c"], seed=1)
    ranked = answers.insertions(
        before, lambda hops: RendezvousGroup(hops, seed=1), ("d", 1), FLOWS, [("a", 1), ("b", 1)]
    )
    assert [insertion.place for insertion in ranked] == [0, 1, 2]
    assert len({insertion.moved for insertion in ranked}) == 1
    assert ranked[0].hops == (("d", 1), ("a", 1), ("b", 1))
    assert ranked[0].moved == pytest.approx(0.5, abs=0.02)


def test_a_resilient_update_moves_idle_buckets_and_leaves_those_in_use() -> None:
    before = ResilientGroup(["a", "b", "c"], seed=1, buckets=120)
    idle = answers.updated(before, [(name, 1) for name in "abcd"])
    busy = answers.updated(before, [(name, 1) for name in "abcd"], FLOWS)
    assert answers.moved_hashes(before, idle) == pytest.approx(0.25, abs=1e-6)
    assert answers.moves(before, busy, FLOWS).moved == 0
    assert [name for name, _ in before.hops] == ["a", "b", "c"]


def test_two_tiers_of_one_seed_polarise_and_of_two_seeds_do_not() -> None:
    first = EcmpGroup(["r1", "r2", "r3", "r4"], seed=7)
    same, other = (EcmpGroup(["a", "b", "c", "d"], seed=seed) for seed in (7, 8))
    polarised = answers.two_tiers(first, same, FLOWS)
    assert (polarised.paths, polarised.used) == (16, 4)
    assert polarised.imbalance == pytest.approx(4, abs=0.1)
    assert polarised.routers["r2"] == {"a": 0, "b": first.shares(FLOWS)["r2"], "c": 0, "d": 0}
    even = answers.two_tiers(first, other, FLOWS)
    assert (even.paths, even.used) == (16, 16)
    assert even.imbalance < 1.1
    assert sum(sum(row.values()) for row in even.routers.values()) == 20_000
    # Another one behind each router; weights count.
    mixed = answers.two_tiers(
        EcmpGroup([("r1", 1), ("r2", 3)], seed=7), [other, EcmpGroup(["x"], seed=7)], FLOWS
    )
    assert (mixed.paths, mixed.used) == (5, 5)
    assert mixed.imbalance < 1.1


@pytest.mark.parametrize("traffic", Traffic)
@pytest.mark.parametrize("ipv6", [False, True], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("vips", [1, 3])
def test_made_flows_are_what_they_are_called(traffic: Traffic, ipv6: bool, vips: int) -> None:
    flows: Any = make_flows(70_000, traffic, seed=3, vips=vips, ipv6=ipv6)
    size = 16 if ipv6 else 4
    raw = [bytes(column) if ipv6 else column for column in flows[:2]]
    if ipv6:
        src, dst = ([c[i : i + 16] for i in range(0, len(c), 16)] for c in raw)
        assert src[0][:6] == bytes.fromhex("20010db8000a")
        assert {d[:12] for d in dst} == {bytes.fromhex("20010db8000b") + bytes(6)}
        assert {int.from_bytes(d[12:], "big") for d in dst} == {0xC0000201 + i for i in range(vips)}
        clients = [int.from_bytes(s[12:], "big") for s in src]
    else:
        assert set(raw[1]) == {0xC0000201 + i for i in range(vips)}
        clients = list(raw[0])
    assert len(flows.src) in (70_000, 70_000 * size)
    assert set(flows.proto) == {6}
    assert set(flows.dport) == {443}
    if traffic is Traffic.NAT:
        assert clients[:64_512] == [0x0A000001] * 64_512
        assert clients[-1] == 0x0A000002
        assert list(flows.sport[:3]) == [1024, 1025, 1026]
    elif traffic is Traffic.CLIENTS:
        assert clients[:17] == [0x0A000001] * 16 + [0x0A000002]
    else:
        assert len(set(clients)) > 69_900
        assert make_flows(70_000, traffic, seed=3, vips=vips, ipv6=ipv6) == flows
        assert make_flows(70_000, traffic, seed=4, vips=vips, ipv6=ipv6) != flows
    EcmpGroup(["a"], seed=1).select(flows)


@pytest.mark.parametrize(
    "call, text",
    [
        (answers.distribution, "there are no flows"),
        (lambda g, none: answers.moves(g, g, none), "there are no flows"),
        (lambda g, none: answers.two_tiers(g, g, none), "there are no flows"),
        (lambda g, none: answers.two_tiers(g, [g], FLOWS), "1 groups behind 2 hops"),
        (lambda g, none: answers.distribution(g, FLOWS, 1.0), "confidence must lie inside 0 to 1"),
        (lambda g, none: answers.moves(g, g, FLOWS, 0.0), "confidence must lie inside 0 to 1"),
        (lambda g, none: answers.imbalance_interval([], 5), "5 flows over 0 hops"),
        (lambda g, none: make_flows(-1), "-1 flows"),
        (lambda g, none: make_flows(1, vips=0), "to 0 addresses"),
    ],
)
def test_what_has_no_answer_is_an_error(call: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        call(EcmpGroup(["a", "b"], seed=1), [])


def test_answers_take_tuples_too() -> None:
    rng = random.Random(1)
    rows = [(f"10.0.0.{i}", "192.0.2.1", 6, rng.randrange(65536), 443) for i in range(200)]
    made = EcmpGroup(["a", "b"], seed=1)
    columns = Flows(*zip(*rows, strict=True))
    assert answers.distribution(made, rows) == answers.distribution(made, columns)
