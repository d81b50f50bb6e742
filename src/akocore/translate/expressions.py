"""What a regular expression costs the engine that matches it: instructions and states.

RE2 reads a text once, through an automaton that it builds as it goes.  ``size`` is the number of
its instructions.  ``states`` is how many states the automaton comes to at most, whatever text is
read: while a text leads to new ones each of its bytes costs some 2 µs and more, else some 5 ns.
An expression of 27 instructions can have a million states (a letter, then any 20), so the size
alone bounds nothing.  Source: Russ Cox, "Regular Expression Matching in the Wild"; the automaton
is Glushkov's, its states are counted by subset construction.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from itertools import chain
from typing import Final

from msgspec import Struct

__all__ = ["Cost", "cost"]

_MOST_POSITIONS: Final = 3000
_CLASSES: Final = 8  # of Unicode in one expression
_WIDE: Final = "".join(
    map(chr, chain(range(0x3000), range(0x3000, 0xD800, 64), range(0xE000, 0x20000, 256)))
)
_PLAIN: Final = "".join(map(chr, range(0x80))) + "é中\U0001f600"
_ATOM: Final = re.compile(
    r"\\[pP](?:\{[^}]*\}|.)"  # a class of Unicode
    r"|\\x\{[0-9A-Fa-f]+\}|\\x[0-9A-Fa-f]{2}|\\[0-7]{1,3}|\\Q.*?(?:\\E|\Z)|\\."
    r"|\[\^?\]?(?:\[:\^?[a-z]+:\]|\\[pP]\{[^}]*\}|\\.|[^\]\\])*\]"
    r"|\(\?P?<[^>]*>|\(\?[a-zA-Z-]*[:)]|\(|\)|\||\^|\$"
    r"|[*+?]\??|\{\d+(?:,\d*)?\}\??|.",
    re.DOTALL,
)
_REPEAT: Final = re.compile(r"([*+?])\??|\{(\d+)(,?)(\d*)\}\??")
_EMPTY: Final = frozenset({"^", "$", r"\A", r"\z", r"\b", r"\B"})


class Cost(Struct, frozen=True, gc=False):
    """``size``: instructions; ``states``: of the automaton, or one more than were counted.

    ``endless``: it may read a text of any length to the end.
    """

    size: int
    states: int
    endless: bool = True


@lru_cache(4096)
def cost(text: str, most_size: int, most_states: int) -> Cost | str:
    """What ``text`` costs; a text: RE2 doesn't take it, and why.

    States are counted up to ``most_states`` (0: not at all), and of nothing that is larger than
    ``most_size``.
    Cost: some 20 µs a state of those that have 100 positions.
    """
    import re2  # here: who uses no regular expressions needs none of its memory

    options = re2.Options()
    options.log_errors = False
    try:
        size = int(re2.compile(text, options).programsize)
    except re2.error as err:
        return err.args[0].decode() if isinstance(err.args[0], bytes) else str(err.args[0])
    if size > most_size or not most_states:
        return Cost(size, most_states + 1)
    parser = _Parser(text)
    try:
        whole = parser.alternatives()
    except _TooManyError:
        return Cost(size, most_states + 1)
    return Cost(size, _states(parser, whole, most_states), parser.endless)


class _TooManyError(Exception):
    """More positions or classes than are looked at."""


class _Part(Struct, frozen=True):
    """A part of an expression: sets of positions as the bits of an integer."""

    empty: bool  # it can match nothing
    first: int = 0
    last: int = 0


_NOTHING: Final = _Part(True)


class _Parser:
    """An expression that RE2 has taken → positions, and which may follow which.

    ``atoms``: by position, the characters that it stands for, as an expression.  ``endless``:
    something in it may be repeated without end.
    """

    def __init__(self, text: str) -> None:
        self.atoms: list[str] = []
        self.follow: list[int] = []
        self.endless = False
        self._tokens = _ATOM.findall(text)
        self._at = 0
        self._flags = ""

    def _next(self) -> str:
        return self._tokens[self._at] if self._at < len(self._tokens) else ""

    def alternatives(self) -> _Part:
        flags = self._flags
        out = self._sequence()
        while self._next() == "|":
            self._at += 1
            other = self._sequence()
            out = _Part(out.empty or other.empty, out.first | other.first, out.last | other.last)
        self._flags = flags
        return out

    def _sequence(self) -> _Part:
        out = _NOTHING
        while (token := self._next()) not in ("", "|", ")"):
            begin, mark = self._at, len(self.atoms)
            one = self._one(token)
            while (repeat := _REPEAT.fullmatch(self._next())) is not None and begin != self._at:
                self._at += 1
                one = self._repeated(one, mark, repeat)
            out = self._joined(out, one)
        return out

    def _one(self, token: str) -> _Part:
        self._at += 1
        if token.startswith("(?") and token.endswith(")"):
            self._set_flags(token[2:-1])
            return _NOTHING
        if token.startswith("("):
            before = self._flags
            if token.endswith(":"):
                self._set_flags(token[2:-1])
            out = self.alternatives()
            self._at += 1  # its end
            self._flags = before
            return out
        if token in _EMPTY:
            return _NOTHING
        if token.startswith(r"\Q"):
            out = _NOTHING
            for char in token[2:].removesuffix(r"\E"):
                out = self._joined(out, self._position(re.escape(char)))
            return out
        return self._position(token)

    def _set_flags(self, said: str) -> None:
        on, _, off = said.partition("-")
        self._flags = "".join(sorted((set(self._flags) | set(on) & {"i", "s"}) - set(off)))

    def _position(self, atom: str) -> _Part:
        if len(self.atoms) >= _MOST_POSITIONS:
            raise _TooManyError
        self.atoms.append(f"(?{self._flags}:{atom})" if self._flags else atom)
        self.follow.append(0)
        bit = 1 << (len(self.atoms) - 1)
        return _Part(False, bit, bit)

    def _joined(self, one: _Part, then: _Part) -> _Part:
        self._lead(one.last, then.first)
        return _Part(
            one.empty and then.empty,
            one.first | (then.first if one.empty else 0),
            then.last | (one.last if then.empty else 0),
        )

    def _lead(self, ends: int, to: int) -> None:
        for position in _bits(ends) if to else ():
            self.follow[position] |= to

    def _repeated(self, one: _Part, mark: int, repeat: re.Match[str]) -> _Part:
        """``one`` has all positions from ``mark`` on."""
        sign, low, comma, high = repeat.groups()
        if sign:
            least, most = (1 if sign == "+" else 0), (1 if sign == "?" else None)
        else:
            least = int(low)
            most = int(high) if high else (None if comma else least)
        if most == 0:
            return _NOTHING
        atoms, follow = self.atoms[mark:], self.follow[mark:]
        copies = [one]
        for _ in range(max(least, most or 0, 1) - 1):
            shift = len(self.atoms) - mark
            if len(self.atoms) + len(atoms) > _MOST_POSITIONS:
                raise _TooManyError
            self.atoms += atoms
            self.follow += [mask << shift for mask in follow]
            copies.append(_Part(one.empty, one.first << shift, one.last << shift))
        if most is None:
            self.endless = True
            self._lead(copies[-1].last, copies[-1].first)
        out = _NOTHING
        for i, copy in enumerate(copies):
            out = self._joined(out, _Part(copy.empty or i >= least, copy.first, copy.last))
        return out


def _bits(mask: int) -> Iterable[int]:
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


def _states(parser: _Parser, whole: _Part, most: int) -> int:
    """How many states its automaton has; ``most`` + 1: more."""
    try:
        masks = _letters(parser.atoms)
    except _TooManyError:
        return most + 1
    seen = {0}
    new = {whole.first & mask for mask in masks} - seen
    while new and len(seen) <= most:
        seen |= new
        found: set[int] = set()
        for state in new:
            ahead = 0
            for position in _bits(state):
                ahead |= parser.follow[position]
            if ahead:
                found.update([ahead & mask for mask in masks])
            if len(found) > most:
                break
        new = found - seen
    return min(len(seen), most + 1)


def _letters(atoms: list[str]) -> set[int]:
    """For each kind of character: the positions that it may be at."""
    kinds: dict[str, int] = {}
    for i, atom in enumerate(atoms):
        kinds[atom] = kinds.get(atom, 0) | 1 << i
    sample = _PLAIN
    if wide := [atom for atom in kinds if re.search(r"\\[pP]", atom)]:
        if len(wide) > _CLASSES:
            raise _TooManyError
        sample = _WIDE
    elif not all(atom.isascii() and not re.search(r"\\[x0-7]", atom) for atom in kinds):
        sample = _near(kinds)
    by_character = dict.fromkeys(sample, 0)
    for atom, mask in kinds.items():
        for char in _members(atom, sample):
            by_character[char] |= mask
    return set(by_character.values())


@lru_cache(4096)
def _members(atom: str, sample: str) -> str:
    """The characters of a sample that one atom stands for."""
    if len(atom) == 1 and atom != ".":
        return atom if atom in sample else ""
    import re2

    options = re2.Options()
    options.log_errors = False
    return "".join(re2.compile(atom, options).findall(sample))


def _near(atoms: Iterable[str]) -> str:
    """Every character at which one of these may begin or end to match, and some others."""
    out = set(_PLAIN)
    for atom in atoms:
        found = {ord(char) for char in atom}
        found |= {int(code, 16) for code in re.findall(r"\\x\{?([0-9A-Fa-f]+)", atom)}
        found |= {int(code, 8) for code in re.findall(r"\\([0-7]{1,3})", atom)}
        near = {code + by for code in found for by in (-1, 0, 1)}
        out |= {chr(c) for c in near if 0 <= c < 0x110000 and not 0xD800 <= c < 0xE000}
    out |= {case for char in out for case in (char.lower(), char.upper()) if len(case) == 1}
    return "".join(sorted(out))
