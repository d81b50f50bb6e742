"""The ECMP kernel against its plain twin, published vectors, and what Linux was seen to do."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from akocore import EcmpGroup, Flows
from akocore._fast import ecmp as kernel
from reference import ecmp as reference

Flow = tuple[str, str, int, int, int]
NUMBERS = (st.integers(0, 255), st.integers(0, 65535), st.integers(0, 65535))
FLOWS = st.lists(
    st.one_of(
        st.tuples(st.ip_addresses(v=4).map(str), st.ip_addresses(v=4).map(str), *NUMBERS),
        st.tuples(st.ip_addresses(v=6).map(str), st.ip_addresses(v=6).map(str), *NUMBERS),
    ),
    max_size=20,
)
WEIGHTS = st.lists(st.integers(1, 65535), min_size=1, max_size=9)
SEEDS = st.integers(1, 2**32 - 1)
SEEN = json.loads((Path(__file__).parent / "vectors" / "linux-6.18-hops.json").read_text())


def hops(weights: list[int]) -> list[tuple[str, int]]:
    return [(f"10.0.0.{i}", weight) for i, weight in enumerate(weights)]


def some_flows(count: int, seed: int = 7) -> list[Flow]:
    rng = random.Random(seed)
    return [
        (
            f"10.{rng.randrange(256)}.{rng.randrange(256)}.{rng.randrange(1, 255)}",
            f"192.0.2.{rng.randrange(1, 255)}",
            6,
            rng.randrange(1024, 65536),
            rng.choice([80, 443, 8443]),
        )
        for _ in range(count)
    ]


def test_the_twins_siphash_gives_the_papers_vectors() -> None:
    k0, k1 = 0x0706050403020100, 0x0F0E0D0C0B0A0908
    assert reference.siphash_2_4(bytes(range(15)), k0, k1) == 0xA129CA6149BE45E5
    assert reference.siphash_2_4(b"", k0, k1) == 0x726FDB47DD0E0E31


@given(
    WEIGHTS,
    FLOWS,
    SEEDS,
    st.sampled_from([0, 1, 3]),
    st.integers(1, 63),
    st.booleans(),
    st.integers(1, 32),
    st.lists(st.integers(0, 8), max_size=9),
)
@example([1], [], 1, 3, 0x37, True, 31, [])
@example([1, 1], [("10.0.0.1", "10.0.0.1", 6, 5, 5)], 2**32 - 1, 3, 0x37, True, 31, [])
@example([65535] * 9, [("::1", "::2", 6, 256, 1)], 5, 3, 0x37, False, 32, [8])
@example([1, 65535, 1], [("::1", "::2", 6, 256, 1)], 5, 3, 0x37, False, 1, [0, 1, 2])
def test_the_choice_is_the_twins(
    weights: list[int],
    flows: list[Flow],
    seed: int,
    policy: int,
    fields: int,
    forwarded: bool,
    bits: int,
    failed: list[int],
) -> None:
    hashing: dict[str, Any] = {
        "seed": seed,
        "policy": policy,
        "fields": fields,
        "forwarded": forwarded,
        "bits": bits,
    }
    down = [name for i, (name, _) in enumerate(hops(weights)) if i in failed]
    group = EcmpGroup(hops(weights), down=down, **hashing)
    expected = reference.select(hops(weights), flows, down=down, **hashing)
    assert list(group.select(flows)) == expected
    assert list(group.hashes(flows)) == reference.hashes(flows, **hashing)
    assert list(group.place(group.hashes(flows))) == expected
    if flows:
        columns = Flows(*(list(column) for column in zip(*flows, strict=True)))
        assert list(group.select(columns)) == expected


@pytest.mark.parametrize("case", SEEN, ids=lambda case: f"seed {case['seed']}")
def test_linux_was_seen_to_pick_these_hops(case: dict[str, Any]) -> None:
    hashing = {key: case[key] for key in ("seed", "policy", "fields", "forwarded")}
    weighted = [(name, weight) for name, weight in case["hops"]]
    flows = [tuple(flow) for flow in case["flows"]]
    for chosen in (
        EcmpGroup(weighted, **hashing).select(Flows(*zip(*flows, strict=True))),
        reference.select(weighted, flows, **hashing),
    ):
        assert [weighted[hop][0] for hop in chosen] == case["picked"]


@given(FLOWS, SEEDS)
def test_a_flow_and_its_answer_take_the_same_hop(flows: list[Flow], seed: int) -> None:
    group = EcmpGroup(["a", "b", "c"], seed=seed)
    back = [(dst, src, proto, dport, sport) for src, dst, proto, sport, dport in flows]
    assert group.select(flows) == group.select(back)


@given(FLOWS)
def test_packed_addresses_mean_the_same_as_text(flows: list[Flow]) -> None:
    group = EcmpGroup(["a", "b", "c"], seed=1)
    packed = [(reference.packed(f[0]), reference.packed(f[1]), *f[2:]) for f in flows]
    assert group.select(flows) == group.select(packed)


def test_shares_follow_the_weights() -> None:
    shares = EcmpGroup([("a", 1), ("b", 3)], seed=9).shares(some_flows(40_000))
    assert list(shares) == ["a", "b"]
    assert sum(shares.values()) == 40_000
    assert shares["b"] / 40_000 == pytest.approx(0.75, abs=0.01)


def test_hash_threshold_moves_half_of_the_flows_when_a_third_hop_comes() -> None:
    flows = some_flows(20_000)
    two = EcmpGroup(["a", "b"], seed=9).select(flows)
    three = EcmpGroup(["a", "b", "c"], seed=9).select(flows)
    moved = sum(a != b for a, b in zip(two, three, strict=True))
    assert moved / len(flows) == pytest.approx(0.5, abs=0.02)


def test_the_port_does_not_count_under_policy_0() -> None:
    flows = [("10.0.0.1", "192.0.2.1", 6, port, 443) for port in range(1000, 1100)]
    assert len(set(EcmpGroup(["a", "b"], seed=3, policy=0).select(flows))) == 1
    assert len(set(EcmpGroup(["a", "b"], seed=3, policy=1).select(flows))) == 2


GOOD: tuple[Any, ...] = ("10.0.0.1", "10.0.0.2", 6, 1, 2)


@pytest.mark.parametrize(
    "place, value, error, text",
    [
        (0, 7, TypeError, "flow 1: src must be an address as str or packed bytes, not int"),
        (0, "10.0.0", ValueError, "flow 1: src isn't an IPv4 or IPv6 address"),
        (0, "10.0.0.1\0", ValueError, "flow 1: src isn't"),
        (0, "\ud800", UnicodeEncodeError, "surrogates"),
        (1, b"abc", ValueError, "flow 1: dst isn't"),
        (1, "::1", ValueError, "flow 1: src and dst are of different families"),
        (2, 256, ValueError, "flow 1: proto must be from 0 to 255, not 256"),
        (2, "tcp", TypeError, "flow 1: proto must be int, not str"),
        (3, -1, ValueError, "flow 1: sport must be from 0 to 65535, not -1"),
        (4, 2**70, ValueError, "flow 1: dport must be from 0 to 65535"),
    ],
)
def test_a_bad_flow_is_an_error_that_names_its_place_and_field(
    place: int, value: Any, error: type[Exception], text: str
) -> None:
    bad = (*GOOD[:place], value, *GOOD[place + 1 :])
    group = EcmpGroup(["a", "b"], seed=1)
    with pytest.raises(error, match=text):
        group.select([GOOD, bad])
    with pytest.raises(error, match=text):
        group.select(Flows(*zip(GOOD, bad, strict=True)))
    with pytest.raises(error):
        reference.select([("a", 1)], [GOOD, bad], seed=1)


@pytest.mark.parametrize("flows", ["text", 7, None, [GOOD[:4]], ["abcde"], [[*GOOD]]])
def test_what_is_not_a_sequence_of_flows_is_a_type_error(flows: Any) -> None:
    with pytest.raises(TypeError):
        EcmpGroup(["a"], seed=1).select(flows)


def test_columns_of_different_lengths_are_an_error() -> None:
    group = EcmpGroup(["a"], seed=1)
    with pytest.raises(ValueError, match="not 1, 1, 1, 1, 2"):
        group.select(Flows(["::1"], ["::2"], [6], [1], [2, 3]))
    with pytest.raises(ValueError, match="not 1, 1, 1, 1, 1, 0"):
        group.select(Flows(["::1"], ["::2"], [6], [1], [2], []))


def test_a_flow_label_is_ipv6s_and_has_20_bits() -> None:
    group = EcmpGroup(["a", "b"], seed=1, policy=0)
    flows = Flows(["::1"] * 64, ["::2"] * 64, [6] * 64, [1] * 64, [2] * 64)
    assert len(set(group.select(flows))) == 1
    assert len(set(group.select(flows._replace(label=range(64))))) == 2
    with pytest.raises(ValueError, match="flow 1: label must be from 0 to 1048575"):
        group.select(flows._replace(label=[0, 1 << 20] * 32))
    with pytest.raises(ValueError, match="flow 0: label must be 0 for IPv4, not 1"):
        group.select(Flows(["10.0.0.1"], ["10.0.0.2"], [6], [1], [2], [1]))


@pytest.mark.parametrize(
    "arguments, error, text",
    [
        ({"hops": []}, ValueError, "from 1 to 65535 hops, not 0"),
        ({"hops": "ab"}, TypeError, "hops must be a sequence"),
        ({"hops": ["a", "a"]}, ValueError, "different names"),
        ({"hops": [("a", 0)]}, ValueError, "weight must be from 1 to 65535, not 0"),
        ({"hops": [("a", "1")]}, TypeError, "weight must be int"),
        ({"hops": [(1, 1)]}, TypeError, "name must be str"),
        ({"seed": 0}, ValueError, "seed must be from 1"),
        ({"seed": 2**32}, ValueError, "seed must be from 1"),
        ({"policy": 2}, ValueError, "policy must be 0, 1 or 3"),
        ({"fields": 0x40}, ValueError, "fields must be bits of 0x3f, not 0x40"),
        ({"fields": 0}, ValueError, "fields must be bits of 0x3f"),
        ({"bits": 0}, ValueError, "from 1 to 32 bits, not 0"),
        ({"bits": 33}, ValueError, "from 1 to 32 bits, not 33"),
        ({"down": ["b"]}, ValueError, "down: there is no hop 'b'"),
        ({"down": "a"}, TypeError, "down must be a collection of names, not str"),
    ],
)
def test_a_group_that_the_kernel_would_not_have_is_refused(
    arguments: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        EcmpGroup(**{"hops": ["a"], "seed": 1, **arguments})


def test_a_group_tells_what_it_was_made_of() -> None:
    group = EcmpGroup(["a", ("b", 2)], seed=5, policy=1, down=["b"])
    assert group.hops == (("a", 1), ("b", 2))
    assert (group.seed, group.policy, group.fields, group.forwarded) == (5, 1, 0x37, True)
    assert (group.bits, group.down) == (31, ("b",))
    assert group.bounds == (715827882, 2**31 - 1)  # a third, and all
    assert kernel.EcmpGroup is EcmpGroup
