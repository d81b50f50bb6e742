"""Who of several Envoys is to be sent something long now, and who later.

Envoys of one machine share its processors.  What keeps the main thread of each for long, a host of
thousands of paths or a Service of thousands of endpoints, goes to one after another: so what a
neighbour wants meanwhile waits for one of them, and that one has a processor.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Generic, Protocol, TypeVar

from msgspec import Struct

from akocore.engines.envoy.resources import CDS, SRDS, Encoded

__all__ = ["Held", "OneByOne", "is_long"]

_LONG_BYTES = 100_000  # some 15 ms of an Envoy's main thread
_FIRST_S = 0.015  # what came in while this was made is small, and goes before
_TURN_S = 0.5  # one that hangs holds up nobody for longer


class Held(Struct, frozen=True):
    """What an engine is to get when ``behind`` has it: resources, by type and name.

    ``behind`` "": in a moment.
    """

    behind: str
    sequence: int
    what: frozenset[tuple[str, str]]


class _Engine(Protocol):
    name: str
    held: Held | None

    @property
    def acknowledged(self) -> int: ...


_E = TypeVar("_E", bound=_Engine)


def is_long(changed: Mapping[str, Collection[Encoded]]) -> bool:
    """Whether it is hosts and clusters alone, and much of it."""
    if any(some for type_url, some in changed.items() if type_url not in (CDS, SRDS)):
        return False
    return sum([len(one.frame) for some in changed.values() for one in some]) > _LONG_BYTES


class OneByOne(Generic[_E]):
    """``send(engine, held)``: it is this one's turn.  ``later(seconds, call)``: as of a loop."""

    def __init__(
        self,
        send: Callable[[_E, Held], None],
        later: Callable[[float, Callable[[], None]], object],
    ) -> None:
        self._send = send
        self._later = later

    def hold(
        self, engines: Sequence[_E], changed: Mapping[str, Iterable[Encoded]], sequence: int
    ) -> None:
        """All of these engines have to wait: the first for a moment, others for the one before.

        What may wait replaces what is there, so that nothing else can lack it meanwhile.
        """
        what = frozenset((one.type_url, one.name) for some in changed.values() for one in some)
        before = ""
        for n, engine in enumerate(engines):
            self.now(engine)
            engine.held = held = Held(before, sequence, what)
            self._later(_FIRST_S + n * _TURN_S, partial(self._late, engine, held))
            before = engine.name

    def hurry(self, engines: Iterable[_E], puts: Iterable[Encoded], *, removed: bool) -> None:
        """These are sent now.  What an engine has yet to get goes before, if they are the same or
        take away what it may still use.
        """
        for engine in engines:
            held = engine.held
            if held is not None and (
                removed or any((one.type_url, one.name) in held.what for one in puts)
            ):
                self.now(engine)

    def look(self, engines: Collection[_E]) -> None:
        """One of these has acknowledged something, or has left them."""
        for engine in engines:
            if (held := engine.held) is None or not held.behind:
                continue
            before = next((one for one in engines if one.name == held.behind), None)
            if before is None or before.acknowledged >= held.sequence:
                self.now(engine)

    def now(self, engine: _E) -> None:
        """It waits no more."""
        held, engine.held = engine.held, None
        if held is not None:
            self._send(engine, held)

    def _late(self, engine: _E, held: Held) -> None:
        if engine.held is held:
            self.now(engine)
