"""Listeners of L4 and their places → resources.

A listener is published at every home of its virtual service where it may accept, and nowhere
else.  What it led to stays until the connections that it had are over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from msgspec import Struct

from akocore.engines.envoy.l4 import l4_listener, l4_name
from akocore.engines.envoy.resources import LDS, Encoded
from akocore.model import L4Listener
from akocore.place.virtual_services import Home, PlacedListener, VirtualService

__all__ = ["DRAINING", "At", "L4Realiser", "Published", "listener_names"]

At = tuple[str, int]  # protocol and port
Backends = frozenset[tuple[str, str, str]]

DRAINING = ""
"""Who uses a cluster that only old connections need: no virtual service has that name."""


def listener_names(service: VirtualService, home: Home) -> list[str]:
    """The resources of a virtual service's listeners at a home: of L4, or of a Gateway's ports."""
    ports = service.gateway.ports.values() if service.gateway is not None else ()
    place = (home.group, home.address)
    return [
        *(
            l4_name(service.name, home.address, *at)
            for at, placed in (service.listeners or {}).items()
            if placed.model.pool is not None
        ),
        *(placed.names[place] for placed in ports if place in placed.names),
    ]


class Published(Struct, frozen=True, gc=False):
    """A listener that was given a new place: which publication of which group brought it."""

    group: str
    sequence: int
    vs: str
    at: At


class L4Realiser:
    """Every call costs the listeners that it is given, at the homes of their virtual service.

    ``put``, ``drop``, ``use``: of the `Realiser`; ``later(then)``: when connections are over.
    """

    def __init__(
        self,
        put: Callable[[str, Encoded], None],
        drop: Callable[[str, str, str], None],
        use: Callable[[Backends, Backends], None],
        port_offset: int,
        *,
        freebind: bool = False,
    ) -> None:
        self._freebind = freebind
        self.later: Callable[[Callable[[], None]], None] = lambda then: then()
        self._put = put
        self._drop = drop
        self._use = use
        self._port_offset = port_offset
        self._unsettled: list[tuple[VirtualService, At]] = []

    def place(self, service: VirtualService, at: At, model: L4Listener | None) -> None:
        """Make one listener what ``model`` says; None: there is none."""
        listeners = service.listeners
        assert listeners is not None
        placed = listeners.get(at)
        if model is None:
            if placed is not None:
                self._withdraw(placed)
                del listeners[at]
        elif placed is None:
            listeners[at] = PlacedListener(model)
            try:
                self._realise(service, at)
            except Exception:  # nothing has come of it
                del listeners[at]
                raise
        elif placed.model != model:
            before, placed.model = placed.model, model
            try:
                self._realise(service, at)
            except Exception:
                placed.model = before
                raise

    def put_home(self, service: VirtualService, home: Home) -> None:
        """Listen at a home.  Cost: all listeners of the virtual service."""
        service.silent.discard((home.group, home.address))
        for at in service.listeners or ():
            self._realise(service, at)

    def drop_home(self, service: VirtualService, home: Home) -> None:
        """Listen there no more, unless another home of it is the same place."""
        place = (home.group, home.address)
        others = [h for h in service.homes if h is not home and (h.group, h.address) == place]
        if others and not service.closed:
            return
        service.silent.add(place)
        for at in service.listeners or ():
            self._realise(service, at)

    def _realise(self, service: VirtualService, at: At) -> None:
        placed = (service.listeners or {})[at]
        pool = placed.model.pool
        wanted = self._encode(service, at, placed.model)  # first: it alone may fail
        backends = frozenset(
            (group, service.name, pool.backend) for group, _ in wanted if pool is not None
        )
        self._change(placed, backends)
        for (group, _), one in wanted.items():
            self._put(group, one)
        names = frozenset((group, one.name) for (group, _), one in wanted.items())
        for group, name in placed.names - names:
            self._drop(group, LDS, name)
        placed.names = names
        if wanted.keys() != placed.sequence.keys():
            placed.sequence = {place: placed.sequence.get(place, -1) for place in wanted}
            self._unsettled.append((service, at))

    def attempt(self, service: VirtualService, at: At, model: L4Listener) -> None:
        """Whether a listener can be encoded; raises what keeps it from being."""
        self._encode(service, at, model)

    def _encode(
        self, service: VirtualService, at: At, model: L4Listener
    ) -> dict[tuple[str, str], Encoded]:
        """A listener at each place, (group, address), where it may accept."""
        out: dict[tuple[str, str], Encoded] = {}
        for home in service.homes if model.pool is not None else ():
            place = (home.group, home.address)
            if model.pool is not None and place not in service.silent and place not in out:
                out[place] = l4_listener(
                    *(service.name, home.address, *at, model.pool, self._port_offset),
                    freebind=self._freebind,
                    limits=service.infra.limits,
                )
        return out

    def _withdraw(self, placed: PlacedListener) -> None:
        for group, name in placed.names:
            self._drop(group, LDS, name)
        self._change(placed, frozenset())

    def _change(self, placed: PlacedListener, backends: Backends) -> None:
        """The clusters of a listener; the old ones serve the connections that there are."""
        gone = placed.backends - backends
        held: Backends = frozenset((group, DRAINING, backend) for group, _, backend in gone)
        if held:
            self._use(frozenset(), held)
        self._use(placed.backends, backends)
        placed.backends = backends
        if held:
            self.later(partial(self._use, held, frozenset()))

    def settle(self, sequence_of: Callable[[str], int]) -> Iterable[Published]:
        """After a publication: what got a new place by it."""
        unsettled, self._unsettled = self._unsettled, []
        for service, at in unsettled:
            placed = (service.listeners or {}).get(at)
            for place, sequence in list(placed.sequence.items()) if placed is not None else ():
                if sequence < 0 and placed is not None:
                    number = placed.sequence[place] = sequence_of(place[0])
                    yield Published(place[0], number, service.name, at)
