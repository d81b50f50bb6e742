"""The shard kernels against their plain twins, AKO's golden vectors and the law of fewest moves."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import akocore
from akocore._fast import shard as kernel
from reference import shard as reference

NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
HOSTS = st.one_of(
    st.lists(NAMES, max_size=70),
    st.lists(st.from_regex(r"[a-z]{1,60}\.apps\.example\.test", fullmatch=True), max_size=40),
)
ANYTHING = st.lists(st.one_of(st.text(max_size=8), st.integers(), st.none(), st.binary()))
POWERS = st.integers(0, 16).map(lambda k: 2**k)

# The walkthrough's twenty hosts, hello1 ... hello20, by shard.
LARGE = [[6, 13], [7, 12], [4, 11, 19], [5, 10, 18], [2, 17], [3, 16], [8, 15, 20], [1, 9, 14]]
MEDIUM = [[2, 6, 13, 17], [3, 7, 12, 16], [4, 8, 11, 15, 19, 20], [1, 5, 9, 10, 14, 18]]
RAW = {
    "foo.com": 1101858200,
    "noo.com": 234251936,
    "bar.com": 1912621137,
    "baz.com": 242556329,
    "foo.com.avi.internal": 623673227,
    "hello.avi.iberia.local": 1706947780,
}
SHARD_OF_EIGHT = {
    "foo.com": 0,
    "noo.com": 0,
    "bar.com": 1,
    "baz.com": 1,
    "foo.com.avi.internal": 3,
    "hello.avi.iberia.local": 4,
}


def outcome(call: Callable[..., Any], *args: Any) -> Any:
    """The result, or the type of the error."""
    try:
        return call(*args)
    except Exception as error:
        return type(error)


@pytest.mark.parametrize("shards, groups", [(8, LARGE), (4, MEDIUM)], ids=["LARGE", "MEDIUM"])
@pytest.mark.parametrize("impl", [kernel, reference], ids=["cython", "python"])
def test_the_walkthroughs_twenty_hosts_land_on_its_shards(
    impl: Any, shards: int, groups: list[list[int]]
) -> None:
    hosts = [f"hello{i}.avi.iberia.local" for i in range(1, 21)]
    chosen = impl.shard_hosts(hosts, shards)
    assert [[i + 1 for i in range(20) if chosen[i] == n] for n in range(shards)] == groups


def test_one_shard_takes_every_host() -> None:
    assert set(kernel.shard_hosts([f"hello{i}.avi.iberia.local" for i in range(20)], 1)) == {0}


@pytest.mark.parametrize("host", RAW)
@pytest.mark.parametrize("impl", [kernel, reference], ids=["cython", "python"])
def test_a_host_has_the_hash_that_ako_gives_it(impl: Any, host: str) -> None:
    assert impl.fnv1a32(host) == RAW[host]
    assert list(impl.shard_hosts([host], 8)) == [SHARD_OF_EIGHT[host]]


def test_the_empty_name_hashes_to_the_fnv_basis() -> None:
    assert kernel.fnv1a32("") == 0x811C9DC5


@given(NAMES)
def test_the_hash_of_one_name_is_the_twins(host: str) -> None:
    assert kernel.fnv1a32(host) == reference.fnv1a32(host)


@given(HOSTS, POWERS)
@example([], 8)
@example([""], 8)
@example(["é.test", "a\0b", "\0", "日本語.example"], 65536)
def test_shards_of_many_hosts_are_the_twins(hosts: list[str], shards: int) -> None:
    assert kernel.shard_hosts(hosts, shards) == reference.shard_hosts(hosts, shards)
    assert kernel.shard_hosts(tuple(hosts), shards) == reference.shard_hosts(hosts, shards)


@pytest.mark.parametrize("count", [2**k + d for k in (3, 4, 5, 8, 9) for d in (-1, 0, 1)])
def test_every_lane_and_block_boundary_keeps_the_order(count: int) -> None:
    same = ["x" * 20 + str(i % 10) for i in range(count)]
    ragged = ["ab"[i % 2] * (i * 7919 % 300) + str(i) for i in range(count)]
    for hosts in (same, ragged):
        assert kernel.shard_hosts(hosts, 65536) == reference.shard_hosts(hosts, 65536)


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 5, 15, 16, 17, 255, 256, 257, 70_000])
def test_one_odd_length_among_equal_ones_is_hashed_right(size: int) -> None:
    for at in (0, 7, 8, 15, 16, 31):
        hosts = ["hello.apps.example.test"] * 32
        hosts[at] = "z" * size
        assert kernel.shard_hosts(hosts, 65536) == reference.shard_hosts(hosts, 65536)


@given(ANYTHING, st.integers(-1, 70000))
@example(["\ud800"], 8)
@example(["a", None], 8)
@example(["a"], 0)
@example(["a"], 3)
@example(["a"], 65537)
@example(["a"], 2**80)
def test_bad_input_raises_what_the_twin_raises(hosts: list[Any], shards: int) -> None:
    for name in ("shard_hosts", "jump_hosts", "rendezvous_hosts"):
        if name == "rendezvous_hosts":
            shards = min(shards, 64)
        ours, theirs = getattr(kernel, name), getattr(reference, name)
        assert outcome(ours, hosts, shards) == outcome(theirs, hosts, shards)


@pytest.mark.parametrize("hosts", ["hello", b"hello", 7, None, {"a"}, iter(["a"])])
def test_what_is_not_a_sequence_of_names_is_a_type_error(hosts: Any) -> None:
    for name in ("shard_hosts", "jump_hosts", "rendezvous_hosts"):
        with pytest.raises(TypeError, match="hosts must be a sequence of str"):
            getattr(kernel, name)(hosts, 8)


def test_any_other_sequence_of_names_is_accepted() -> None:
    class Names(Sequence[str]):
        def __len__(self) -> int:
            return 2

        def __getitem__(self, i: Any) -> Any:
            return ["foo.com", "hello.avi.iberia.local"][i]

    assert list(kernel.shard_hosts(Names(), 8)) == [0, 4]


def test_a_subclass_of_str_hashes_by_its_text() -> None:
    class Name(str):
        __slots__ = ()

    assert list(kernel.shard_hosts([Name("hello.avi.iberia.local")], 8)) == [4]


def test_the_error_says_which_host_is_wrong() -> None:
    with pytest.raises(TypeError, match=r"hosts\[300\] must be str, not int"):
        kernel.shard_hosts([*["a"] * 300, 1], 8)  # type: ignore[list-item]


def test_a_count_that_ako_cannot_have_names_the_alternative() -> None:
    with pytest.raises(ValueError, match="jump_hosts or rendezvous_hosts"):
        kernel.shard_hosts(["a"], 6)


@pytest.mark.parametrize(
    "key, buckets, bucket",
    [(1, 1, 0), (42, 57, 43), (0xDEAD10CC, 1, 0), (0xDEAD10CC, 666, 361), (256, 1024, 520)],
)
def test_the_jump_twin_gives_the_published_buckets(key: int, buckets: int, bucket: int) -> None:
    assert reference.jump(key, buckets) == bucket


@given(HOSTS, st.integers(1, 65536), st.integers(0, 2**32 - 1))
@example(["a"], 65536, 2**32 - 1)
def test_jump_is_the_twins(hosts: list[str], shards: int, seed: int) -> None:
    expected = reference.jump_hosts(hosts, shards, seed)
    assert kernel.jump_hosts(hosts, shards, seed) == expected


@given(HOSTS, st.lists(NAMES, max_size=9), st.integers(0, 2**32 - 1))
@example(["a"], [], 0)
@example(["a"], ["n", "n"], 0)
@example(["a"], ["\ud800"], 0)
def test_rendezvous_is_the_twins(hosts: list[str], nodes: list[str], seed: int) -> None:
    for where in (nodes, len(nodes)):
        assert outcome(kernel.rendezvous_hosts, hosts, where, seed) == outcome(
            reference.rendezvous_hosts, hosts, where, seed
        )


@pytest.mark.parametrize("seed", [-1, 2**32])
@pytest.mark.parametrize("name", ["jump_hosts", "rendezvous_hosts"])
def test_a_seed_has_32_bits(name: str, seed: int) -> None:
    with pytest.raises(ValueError, match="seed"):
        getattr(kernel, name)(["a"], 3, seed)


@pytest.mark.parametrize("name", ["jump_hosts", "rendezvous_hosts"])
@pytest.mark.parametrize("before", [1, 2, 3, 7, 8, 20])
def test_growth_by_one_moves_the_ideal_share_and_only_to_the_new_one(
    name: str, before: int
) -> None:
    # As many hosts as put 1 % at three standard deviations of a fair draw.
    hosts = [f"hello{i}.apps.example.test" for i in range(90_000 * (before + 1))]
    place = getattr(kernel, name)
    old, new = place(hosts, before), place(hosts, before + 1)
    moved = [after for was, after in zip(old, new, strict=True) if was != after]
    assert set(moved) == {before}
    assert len(moved) / len(hosts) == pytest.approx(1 / (before + 1), rel=0.01)


def test_removing_any_named_node_moves_only_its_own_hosts() -> None:
    hosts = [f"hello{i}.apps.example.test" for i in range(20_000)]
    nodes = ["se-a", "se-b", "se-c", "se-d"]
    left = ["se-a", "se-c", "se-d"]
    old = [nodes[i] for i in kernel.rendezvous_hosts(hosts, nodes)]
    new = [left[i] for i in kernel.rendezvous_hosts(hosts, left)]
    assert all(was == "se-b" for was, now in zip(old, new, strict=True) if was != now)
    assert set(new) == set(left)


def test_rendezvous_does_not_depend_on_the_order_of_the_names() -> None:
    hosts = [f"hello{i}.apps.example.test" for i in range(1000)]
    nodes = ["se-a", "se-b", "se-c"]
    a = [nodes[i] for i in kernel.rendezvous_hosts(hosts, nodes)]
    b = [nodes[::-1][i] for i in kernel.rendezvous_hosts(hosts, nodes[::-1])]
    assert a == b


def test_the_shop_window_shows_the_kernels_and_nothing_that_is_missing() -> None:
    assert all(hasattr(akocore, name) for name in akocore.__all__)
    assert akocore.shard_hosts is kernel.shard_hosts
