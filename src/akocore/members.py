"""Which endpoints serve a Service port, slice by slice.

Of a big Service each slice is looked at once: an edit of one of hundreds costs its own endpoints,
and putting the parts together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from msgspec import Struct

from akocore.kube.objects import EndpointSlice
from akocore.translate.endpoints import plain_address

__all__ = ["Part", "Parts", "part"]

_MANY = 8  # slices: of fewer nothing is kept

Member = tuple[str, int]


class Part(Struct, frozen=True, gc=False):
    """What one slice gives: (address, port), sorted."""

    ready: tuple[Member, ...] = ()
    terminating: tuple[Member, ...] = ()  # but still serving


_NOTHING = Part()


def part(slice_: EndpointSlice, port: str, protocol: str, left_out: Mapping[str, str]) -> Part:
    """Of the port of that name.  Cost: the slice's endpoints."""
    if slice_.address_type == "FQDN":
        return _NOTHING
    at = next(
        (
            one.port
            for one in slice_.ports or ()
            if (one.name or "") == port and one.port and (one.protocol or "TCP") == protocol
        ),
        None,
    )
    if at is None:
        return _NOTHING
    ready: set[Member] = set()
    terminating: set[Member] = set()
    for endpoint in slice_.endpoints or ():
        if not endpoint.addresses or endpoint.addresses[0] in left_out:
            continue
        conditions = endpoint.conditions
        if conditions.ready is not False and not conditions.terminating:
            ready.add((plain_address(endpoint.addresses[0]), at))
        elif conditions.terminating and conditions.serving is not False:
            terminating.add((plain_address(endpoint.addresses[0]), at))
    return Part(tuple(sorted(ready)), tuple(sorted(terminating)))


class _Kept(Struct, frozen=True):
    slice: EndpointSlice
    left_out: Mapping[str, str]
    part: Part


class Parts:
    """Parts of the backends that have many slices."""

    def __init__(self) -> None:
        self._kept: dict[str, tuple[str, dict[str, _Kept]]] = {}  # backend → port, by slice

    def of(
        self,
        backend: str,
        slices: Iterable[EndpointSlice],
        port: str,
        protocol: str,
        left_out: Callable[[str], Mapping[str, str]],
    ) -> list[Part]:
        """The parts of a backend.  Cost: the slices that changed since the last call."""
        slices = tuple(slices)
        if len(slices) < _MANY:
            self._kept.pop(backend, None)
            return [part(one, port, protocol, left_out(one.metadata.key)) for one in slices]
        named, before = self._kept.get(backend, ("", {}))
        if named != port:
            before = {}
        now: dict[str, _Kept] = {}
        for one in slices:
            key = one.metadata.key
            out, old = left_out(key), before.get(key)
            if old is None or old.slice is not one or old.left_out is not out:
                old = _Kept(one, out, part(one, port, protocol, out))
            now[key] = old
        self._kept[backend] = (port, now)
        return [one.part for one in now.values()]

    def forget(self, backend: str) -> None:
        """Nobody needs this backend any more."""
        self._kept.pop(backend, None)
