"""How words of others are shown: short, and with no power over a terminal.

What objects say has any length and any letters.  In a sentence of ours a value is `quoted`; a
sentence as a whole is `bounded`, whatever went into it; and what goes to a terminal or a log is
`printable`.
"""

from __future__ import annotations

from typing import Any, Final

__all__ = ["LONGEST", "bounded", "printable", "printable_all", "quoted"]

LONGEST: Final = 100
"""Letters of a value that a sentence shows at most."""

_NAME: Final = 320  # letters of the longest name that Kubernetes allows, with its namespace
_SENTENCE: Final = 500  # letters of a sentence as a whole; ours are half of that at most


def quoted(value: object, longest: int = LONGEST) -> str:
    """A value as a sentence has it: the beginning of a long one, and how long it is."""
    text = str(value)
    if len(text) <= longest:
        return text
    return f"{text[:longest]}… ({len(text)} characters)"


def bounded(text: str, longest: int = _SENTENCE) -> str:
    """A sentence as it is, or without its middle: what is wrong is at its front, what to do last.

    A word that is longer than any name is a value that nobody quoted.
    """
    if len(text) <= _NAME:
        return text
    words = text.split(" ")
    if any(len(word) > _NAME for word in words):
        text = " ".join(word if len(word) <= _NAME else f"{word[:LONGEST]}…" for word in words)
    return text if len(text) <= longest else f"{text[: longest - 201]}…{text[-200:]}"


def printable(text: str) -> str:
    """Escaped as in a string of Python's what is no letter, also what turns the direction of text.

    A newline too: nobody else's words begin a line of ours.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def printable_all(value: Any) -> Any:
    """What JSON can say, with all texts in it `printable`."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {printable_all(key): printable_all(one) for key, one in value.items()}
    return [printable_all(one) for one in value] if isinstance(value, list) else value
