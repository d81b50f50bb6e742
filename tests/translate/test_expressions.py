"""What regular expressions cost: their states are counted, never too few."""

from __future__ import annotations

from itertools import product

import pytest
import re2
from hypothesis import given, settings
from hypothesis import strategies as st

from akocore.translate.expressions import Cost, cost

MANY = 2000


def states(text: str) -> int:
    found = cost(text, MANY, MANY)
    assert isinstance(found, Cost), found
    return found.states


# (a|b)*a(a|b){n}: the textbook's, of which the smallest automaton has 2^(n+1) states, and here one
# more is the start.
TEXTBOOK = {n: 2 ** (n + 1) for n in range(1, 9)}


@pytest.mark.parametrize(("counted", "least"), TEXTBOOK.items())
def test_states_that_double_with_each_letter_are_counted(counted: int, least: int) -> None:
    assert least <= states(f"(a|b)*a(a|b){{{counted}}}") <= least + 1


def test_a_small_expression_may_have_too_many() -> None:
    found = cost("[ab]*a[ab]{13}", 100, 1000)
    assert isinstance(found, Cost)
    assert found.size < 40
    assert found.states == 1001


USUAL = {
    "/api/v[0-9]+/users/[^/]+/orders": 40,
    "(?i)/shop/.*\\.(?:png|jpe?g|gif|svg)": 40,
    "/[a-z0-9-]{1,63}/[0-9a-f]{8}-[0-9a-f]{4}": 150,
    r"(?:.*;\s*)?canary=(?:1|true)(?:\s*;.*)?": 60,
    "^/(?P<lang>de|en|fr)(/.*)?$": 20,
    r"\Qa.b\E+[[:alpha:]]*\x41\x{42}\103": 20,
    r"(?i)(?:https://[^/:]*\.shop\.example(?::443)?|https://b\.example)": 80,
    "/é+/[ä-ü]*": 20,
    r"/\p{Greek}+(?s:.*)\d\w\s\b": 20,
}


@pytest.mark.parametrize(("text", "most"), USUAL.items(), ids=USUAL)
def test_what_people_write_has_few(text: str, most: int) -> None:
    assert 1 < states(text) <= most


def test_whether_it_reads_on_for_ever() -> None:
    ends = {"/a{1,9}/b?": False, "/a+": True, "/a{3,}": True, ".*": True, "": False}
    for text, endless in ends.items():
        found = cost(text, MANY, MANY)
        assert isinstance(found, Cost)
        assert found.endless is endless, text


def test_what_re2_does_not_take_is_told_in_its_words() -> None:
    assert cost("(?=a)", MANY, MANY) == "invalid perl operator: (?="
    assert "repetition" in str(cost("x{2}{3}", MANY, MANY))


def test_what_is_too_large_is_not_counted() -> None:
    found = cost("a{500}", 300, MANY)
    assert isinstance(found, Cost)
    assert found.size > 500
    assert found.states == MANY + 1


ATOMS = st.sampled_from(["a", "b", ".", "[ab]", "[^a]", "(?i:A)", "a|b", "", "^", "$"])


def _longer(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    signs = st.sampled_from(["*", "+", "?", "{2}", "{0}", "{1,3}", "{2,}", "*?"])
    return st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map("|".join),
        st.tuples(inner, signs).map(lambda one: f"(?:{one[0]}){one[1]}"),
    )


@settings(max_examples=300, deadline=None)
@given(st.recursive(ATOMS, _longer, max_leaves=8))
def test_there_are_never_fewer_than_texts_can_tell_apart(text: str) -> None:
    """Two beginnings that some end tells apart lead to two states (Myhill and Nerode)."""
    options = re2.Options()
    options.log_errors = False
    matches = re2.compile(text, options).fullmatch
    words = ["".join(word) for n in range(4) for word in product("abc", repeat=n)]
    told = {tuple(bool(matches(begin + end)) for end in words) for begin in words}
    assert states(text) >= len(told) - 1  # that from which nothing matches any more may be none
