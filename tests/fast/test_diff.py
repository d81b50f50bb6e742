"""The diff kernel against its plain twin."""

from collections import OrderedDict
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import mmh3
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from akocore._fast.diff import Diff, diff_fingerprints, fingerprint
from reference import diff as reference

PRINTS = st.integers(0, 2).map(lambda n: bytes([n]) * 16)
NAMES = st.one_of(st.sampled_from("abcdefgh"), st.text(max_size=4))
SIDES = st.dictionaries(NAMES, PRINTS, max_size=20)
ANYTHING = st.one_of(
    st.none(),
    st.dictionaries(
        st.one_of(NAMES, st.integers(), st.binary(max_size=2)),
        st.one_of(PRINTS, st.binary(max_size=20), st.none(), st.text(max_size=3)),
        max_size=6,
    ),
)


def copied(side: Mapping[str, bytes]) -> dict[str, bytes]:
    """Equal names and values, none of them the same object."""
    return {(name + "x")[:-1]: bytes(bytearray(value)) for name, value in side.items()}


@given(SIDES, SIDES)
@example({}, {})
@example({"a": bytes(16)}, {})
@example({}, {"a": bytes(16)})
@example({"a\0b": bytes(16), "\ud800": bytes(16)}, {"\ud800": bytes(16), "a\0c": bytes(16)})
@example({"é": bytes(16), "日": bytes(16), "😀": bytes(16)}, {"😀": bytes(16), "é": bytes(16)})
def test_the_difference_is_the_twins(desired: dict[str, bytes], current: dict[str, bytes]) -> None:
    expected = reference.diff_fingerprints(desired, current)
    assert diff_fingerprints(desired, current) == expected
    assert diff_fingerprints(copied(desired), copied(current)) == expected


@given(SIDES, st.randoms(use_true_random=False), st.integers(0, 6))
def test_the_difference_to_a_reordered_and_edited_copy_is_the_twins(
    desired: dict[str, bytes], random: Any, edits: int
) -> None:
    current = copied(desired)
    for n in range(edits):
        if current and random.random() < 0.6:
            name = random.choice(sorted(current))
            value = current.pop(name)
            if random.random() < 0.5:
                current[name] = value
        else:
            current[f"new-{n}"] = bytes(16)
    expected = reference.diff_fingerprints(desired, current)
    assert diff_fingerprints(desired, current) == expected


@given(ANYTHING, ANYTHING)
def test_bad_input_raises_what_some_item_deserves(desired: Any, current: Any) -> None:
    """The kernel may meet another bad item first than the twin, so the exact type can differ."""
    try:
        expected: Any = reference.diff_fingerprints(desired, current)
    except (TypeError, ValueError):
        expected = None
    if expected is not None:
        assert diff_fingerprints(desired, current) == expected
        return
    if isinstance(current, dict):
        # What both sides share as the same object isn't looked at; Python has every bytes of
        # length 0 or 1 once.
        current = {
            name: bytes(bytearray(value))
            if isinstance(value, bytes) and len(value) > 1
            else [value]
            for name, value in current.items()
        }
    with pytest.raises((TypeError, ValueError)):
        diff_fingerprints(desired, current)


@pytest.mark.parametrize("count", [2**k + d for k in (1, 5, 10) for d in (-1, 0, 1)])
def test_an_unchanged_resync_is_empty(count: int) -> None:
    side = {f"Pool/shop/app-{i}": fingerprint(str(i).encode()) for i in range(count)}
    assert not diff_fingerprints(side, dict(side))
    assert not diff_fingerprints(side, copied(side))
    assert not diff_fingerprints(side, dict(reversed(side.items())))


def test_each_list_keeps_the_order_of_its_side() -> None:
    one, two = bytes(16), bytes([1]) * 16
    desired = {"z": one, "m": two, "b": one, "a": two, "new-2": one, "new-1": one}
    current = {"old-2": one, "a": one, "old-1": one, "m": one, "b": one, "z": one}
    assert diff_fingerprints(desired, current) == Diff(
        added=["new-2", "new-1"], changed=["m", "a"], removed=["old-2", "old-1"]
    )


def test_a_difference_is_true_only_if_something_must_move() -> None:
    assert not Diff([], [], [])
    assert Diff(["a"], [], [])
    assert Diff([], ["a"], [])
    assert Diff([], [], ["a"])


@pytest.mark.parametrize("wrap", [OrderedDict, MappingProxyType], ids=["OrderedDict", "proxy"])
def test_any_mapping_is_accepted(wrap: Any) -> None:
    desired, current = {"a": bytes(16), "b": bytes(16)}, {"b": bytes(16), "c": bytes(16)}
    assert diff_fingerprints(wrap(desired), wrap(current)) == (["a"], [], ["c"])


@pytest.mark.parametrize(
    "value, error, text",
    [
        (b"short", ValueError, r"\['web'\] must be a fingerprint of 16 bytes, not 5"),
        (bytes(17), ValueError, r"\['web'\] must be a fingerprint of 16 bytes, not 17"),
        ("x" * 16, TypeError, r"\['web'\] must be bytes, not str"),
        (None, TypeError, r"\['web'\] must be bytes, not NoneType"),
    ],
)
@pytest.mark.parametrize("side", ["desired", "current"])
@pytest.mark.parametrize("place", ["alone", "in step", "out of step"])
def test_a_bad_fingerprint_is_an_error_that_names_its_object(
    value: Any, error: type[Exception], text: str, side: str, place: str
) -> None:
    good, bad = {"web": bytes(16)}, {"web": value}
    if place == "alone":
        good = {}
    elif place == "out of step":
        good = {"a": bytes(16), "b": bytes(16), **good}
        bad = {"b": bytes(16), "a": bytes(16), **bad}
    sides = (bad, good) if side == "desired" else (good, bad)
    with pytest.raises(error, match=side + text):
        diff_fingerprints(*sides)


def test_a_name_that_is_not_a_str_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="a name in desired must be str, not int: 7"):
        diff_fingerprints({7: bytes(16)}, {})  # type: ignore[dict-item]


def test_what_is_not_a_mapping_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="current must be a mapping"):
        diff_fingerprints({}, [])  # type: ignore[arg-type]


@pytest.mark.parametrize("data", [b"", b"abc", bytearray(b"abc"), memoryview(b"abcd")[1:]])
def test_a_fingerprint_is_murmur3_128_of_the_bytes(data: Any) -> None:
    assert fingerprint(data) == mmh3.hash_bytes(bytes(data))
    assert len(fingerprint(data)) == 16


def test_a_fingerprint_is_the_same_on_every_machine() -> None:
    assert fingerprint(b"").hex() == "00" * 16
    assert fingerprint(b"hello").hex() == "029bbd41b3a7d8cb191dae486a901e5b"


@pytest.mark.parametrize("data", ["text", 7, None])
def test_a_fingerprint_of_anything_but_bytes_is_a_type_error(data: Any) -> None:
    with pytest.raises(TypeError):
        fingerprint(data)
