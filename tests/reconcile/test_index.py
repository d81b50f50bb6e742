"""`Index` and `Users` against what they are short for: sets, and counts, of every name."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from akocore.index import Index, Users

NAMES = st.sampled_from(["a", "b"])
KEYS = st.sampled_from(["one", "two", "three"])
STEPS = st.lists(st.tuples(st.booleans(), NAMES, KEYS), max_size=30)


@given(STEPS)
def test_an_index_holds_a_set_of_keys_for_each_name(steps: list[tuple[bool, str, str]]) -> None:
    index, plain = Index(), dict[str, set[str]]()
    for adds, name, key in steps:
        if adds:
            index.add(name, key)
            plain.setdefault(name, set()).add(key)
        elif plain.get(name):
            index.discard(name, key)
            plain[name].discard(key)
        for each in ("a", "b"):
            assert sorted(index.get(each)) == sorted(plain.get(each, ()))


@given(STEPS)
def test_users_are_counted_and_the_first_and_last_are_told(
    steps: list[tuple[bool, str, str]],
) -> None:
    users, plain = Users[str](), dict[str, Counter[str]]()
    for adds, name, key in steps:
        count = plain.setdefault(name, Counter())
        if adds:
            assert users.add(name, key) is (count.total() == 0)
            count[key] += 1
        elif count[key]:
            count[key] -= 1
            assert users.discard(name, key) is (count.total() == 0)
        for each in ("a", "b"):
            assert sorted(users.get(each)) == sorted((+plain.get(each, Counter())).keys())
