"""The difference of two maps of 10,000 fingerprints; DeepDiff at 200, where it is bearable.

Physical limit: every entry of both dicts is read once (24 bytes: hash, key, value), and of each
name and fingerprint its head and text (some 80 and 49 bytes): once if both dicts share the
objects, twice if not. The limit is the time of reading that many bytes in order, measured as half
of a copy; the objects' real places in memory are not in order, so there is a factor to it that
no code can win back.
"""

from collections.abc import Callable
from typing import Any

import pytest
from deepdiff import DeepDiff

from akocore import diff_fingerprints, fingerprint
from benchmarks.conftest import Measure
from benchmarks.limits import read_s
from reference import diff as reference

Side = dict[str, bytes]


def side(count: int) -> Side:
    return {f"Pool/shop/app-{i}": fingerprint(str(i).encode()) for i in range(count)}


def copied(one: Side) -> Side:
    """Equal names and values, none of them the same object."""
    return {(name + "x")[:-1]: bytes(bytearray(value)) for name, value in one.items()}


def one_percent_changed(one: Side) -> Side:
    other = copied(one)
    other.update((name, bytes(16)) for name in list(other)[::100])
    return other


def one_percent_moved(one: Side) -> Side:
    other = copied(one)
    for name in list(other)[::100]:
        other[name] = other.pop(name)
    return other


def dict_compare(desired: Side, current: Side) -> bool:
    """Says only whether anything differs, not what."""
    return desired != current


def deep_diff(desired: Side, current: Side) -> Any:
    return DeepDiff(current, desired)


KERNEL_AND_PYTHON = pytest.mark.parametrize(
    "impl", [diff_fingerprints, reference.diff_fingerprints], ids=["cython", "python"]
)


def limit_s(count: int, *, shared: bool) -> float:
    return read_s(count * (2 * 24 + (1 if shared else 2) * (80 + 49)))


@pytest.mark.benchmark(group="diff-10k-unchanged-same-objects")
@pytest.mark.parametrize(
    "impl",
    [diff_fingerprints, reference.diff_fingerprints, dict_compare],
    ids=["cython", "python", "dict compare"],
)
def test_unchanged_with_the_same_objects(measure: Measure, impl: Callable[..., Any]) -> None:
    a = side(10_000)
    b = dict(a)
    measure(lambda: impl(a, b), len(a), limit_s(len(a), shared=True))


@pytest.mark.benchmark(group="diff-10k-unchanged-equal-objects")
@pytest.mark.parametrize(
    "impl",
    [diff_fingerprints, reference.diff_fingerprints, dict_compare],
    ids=["cython", "python", "dict compare"],
)
def test_unchanged_with_equal_objects(measure: Measure, impl: Callable[..., Any]) -> None:
    a = side(10_000)
    b = copied(a)
    measure(lambda: impl(a, b), len(a), limit_s(len(a), shared=False))


@pytest.mark.benchmark(group="diff-10k-1-percent")
@KERNEL_AND_PYTHON
@pytest.mark.parametrize("edit", [one_percent_changed, one_percent_moved])
def test_one_percent(
    measure: Measure, impl: Callable[..., Any], edit: Callable[[Side], Side]
) -> None:
    a = side(10_000)
    b = edit(a)
    out = measure(lambda: impl(a, b), len(a), limit_s(len(a), shared=False))
    assert len(out[1]) == (100 if edit is one_percent_changed else 0)


@pytest.mark.benchmark(group="diff-200-1-percent")
@pytest.mark.parametrize(
    "impl",
    [diff_fingerprints, reference.diff_fingerprints, deep_diff],
    ids=["cython", "python", "DeepDiff"],
)
def test_one_percent_of_200(measure: Measure, impl: Callable[..., Any]) -> None:
    a = side(200)
    b = one_percent_changed(a)
    assert measure(lambda: impl(a, b), len(a), limit_s(len(a), shared=False))
