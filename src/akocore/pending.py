"""What was published, and is shown when the Service Engines that clients can meet have it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping

from akocore.place.gateways import PlacedPort
from akocore.place.virtual_services import PlacedListener, VirtualService
from akocore.realise_l4 import At, Published
from akocore.reconcile import Reconciler

__all__ = ["Pending"]


class Pending:
    """By SE group, in the order of publication; true while there is something.

    ``on_shown``: what to do with the Ingresses whose status may say more now.  Cost of an
    acknowledgement: what it acknowledges.
    """

    def __init__(self, reconciler: Reconciler, on_shown: Callable[[Iterable[str]], None]) -> None:
        self._at = reconciler
        self._on_shown = on_shown
        self._hosts: dict[str, deque[tuple[int, str]]] = {}  # publication, host
        self._listeners: dict[str, deque[Published]] = {}  # of L4
        self._ports: dict[str, deque[Published]] = {}  # of Gateways

    def __bool__(self) -> bool:
        return any((*self._hosts.values(), *self._listeners.values(), *self._ports.values()))

    def take(self) -> None:
        """What was published since the last call."""
        realiser = self._at.realiser
        for group, sequence, host in realiser.take_placed():
            self._hosts.setdefault(group, deque()).append((sequence, host))
        for one in realiser.take_placed_l4():
            self._listeners.setdefault(one.group, deque()).append(one)
        for one in realiser.take_placed_gateway():
            self._ports.setdefault(one.group, deque()).append(one)

    def host(self, host: str) -> None:
        """An engine that clients can meet lacks a host: look again when it has got on."""
        placed = self._at.hosts[host]
        home = self._at.placement.services[placed.shown].shown
        if home is not None:
            sequence = placed.sequence(home.group, placed.shown)
            self._hosts.setdefault(home.group, deque()).append((sequence, host))

    def listeners(self, vs: str) -> None:
        """The same of the listeners of a virtual service of L4."""
        service = self._at.placement.services.get(vs)
        if service is not None:
            _add(service, service.listeners or {}, self._listeners)

    def gateway(self, vs: str) -> None:
        """The same of the ports of a Gateway's virtual service."""
        service = self._at.placement.services.get(vs)
        if service is not None and service.gateway is not None:
            _add(service, service.gateway.ports, self._ports)

    def acknowledged(self, group: str, sequence: int) -> None:
        """All engines of a group that answer have what was published up to this."""
        at = self._at
        hosts = self._hosts.get(group)
        while hosts and hosts[0][0] <= sequence:
            host = hosts.popleft()[1]
            self._on_shown(at.store.ingresses_of_host(host))
            if (placed := at.hosts.get(host)) is not None:
                at.realiser.vs_touched.add(placed.vs)
        for one in _until(self._listeners.get(group), sequence):
            at.l4.touch_listener(one.vs, one.at)
            at.realiser.vs_touched.add(one.vs)
        for one in _until(self._ports.get(group), sequence):
            at.gateway_api.touch_vs(one.vs)
            at.realiser.vs_touched.add(one.vs)


def _add(
    service: VirtualService,
    placed: Mapping[At, PlacedListener | PlacedPort],
    to: dict[str, deque[Published]],
) -> None:
    if (home := service.shown) is None:
        return
    for place, one in placed.items():
        sequence = one.sequence.get((home.group, home.address), 0)
        later = Published(home.group, sequence, service.name, place)
        waiting = to.setdefault(home.group, deque())
        if later not in waiting:
            waiting.append(later)


def _until(waiting: deque[Published] | None, sequence: int) -> Iterable[Published]:
    while waiting and waiting[0].sequence <= sequence:
        yield waiting.popleft()
