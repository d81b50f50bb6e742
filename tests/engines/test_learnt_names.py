"""How many names an engine keeps: a model of it, in which the first learnt goes first."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from akocore.engines.envoy.learnt_names import LearntNames

NAMES = st.tuples(st.sampled_from([f"{c}.test" for c in "abcdefghijkl"]), st.integers(1, 40_000))


def _own(name: str) -> bool:
    return name == "a.test"


@given(st.lists(st.tuples(st.booleans(), st.lists(NAMES, max_size=5))), st.integers(0, 6))
def test_names_count_by_their_size_and_never_beyond_the_limit(
    steps: list[tuple[bool, list[tuple[str, int]]]], limit: int
) -> None:
    learnt = LearntNames()
    known: dict[str, int] = {}
    for forget, names in steps:
        if forget:
            learnt.forget([name for name, _ in names])
            for name, _ in names:
                known.pop(name, None)
            continue
        known.update((name, -(-size // 16_384)) for name, size in names if not _own(name))
        gone = learnt.learn(names, _own, limit)
        assert gone == list(known)[: len(gone)]
        assert not gone or sum(list(known.values())[len(gone) - 1 :]) > limit
        for name in gone:
            del known[name]
        assert sum(known.values()) <= limit
        assert list(learnt) == list(known)
        assert len(learnt) == len(known)
