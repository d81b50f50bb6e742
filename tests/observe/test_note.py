"""Notes of Events are as long as the API server takes them, whatever they are written in."""

import pytest

from akocore.kube.note import cut_note


@pytest.mark.parametrize("letter", ["a", "ü", "語", "😀"])
@pytest.mark.parametrize("before", ["", "x", "xy", "xyz"])
def test_a_note_is_cut_at_bytes_and_at_a_letters_edge(letter: str, before: str) -> None:
    text = before + letter * 2000
    cut = cut_note(text)
    size = len(letter.encode())
    assert text.startswith(cut)
    assert 1024 - size < len(cut.encode()) <= 1024


def test_a_short_note_stays_as_it_is() -> None:
    text = "ü" * 512
    assert cut_note(text) == text
