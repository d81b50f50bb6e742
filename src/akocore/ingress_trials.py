"""Hosts of Ingresses before the court: where they are tried, and how old their paths are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from msgspec import Struct

from akocore.court import Case
from akocore.engines.envoy.resources import Encoded
from akocore.kube.objects import Ingress
from akocore.model import HostModel, Route
from akocore.place.virtual_services import Placed, Placement
from akocore.store import Store
from akocore.trials import Host, Part, whereabouts

if TYPE_CHECKING:
    from akocore.realise import Realiser

__all__ = ["IngressTrials", "Owner", "owners_of"]


class Owner(Struct, frozen=True, gc=False):
    """Whose a path is.  ``age``: of the Ingress among those of the host, ``place``: in it."""

    ingress: str
    age: int
    place: int
    field: str


class IngressTrials:
    """The cases of one `Realiser`'s hosts.  ``owners``: of a host's paths (path, exact)."""

    def __init__(self, realiser: Realiser, placement: Placement) -> None:
        self.owners: Callable[[str], Mapping[tuple[str, bool], Owner]] = lambda _host: {}
        self._realiser = realiser
        self._placement = placement

    def cases(
        self, refused: Iterable[str], learnt: Mapping[str, str]
    ) -> Iterable[tuple[tuple[str, str], Case]]:
        """Hosts of which a scope may be refused, or that another replica has tried.

        ``learnt``: digests → `whereabouts`.  Cost: the refused; all hosts when there are any of
        these that were not tried here.
        """
        hosts = self._realiser.hosts
        found = dict.fromkeys(host for name in refused if (host := _host(name)) in hosts)
        trying = {whereabouts(host) for host in found if self._realiser.court.trying(("", host))}
        if where := set(learnt.values()) - trying:
            found |= dict.fromkeys(host for host in hosts if whereabouts(host) in where)
        for host in found:
            yield ("", host), self.case(host, hosts[host])

    def case(self, host: str, placed: Placed) -> Case:
        """A host as it is tried."""
        services = [self._placement.services[vs] for vs in (placed.vs, *placed.old)]

        def encode(model: Host) -> Iterable[tuple[str, Encoded]]:
            assert isinstance(model, HostModel)
            return [
                (home.group, one)
                for service in services
                for one in self._realiser.scopes(model, service)
                for home in service.homes
            ]

        groups = {home.group for service in services for home in service.homes}
        realise = partial(self._realiser.realise, host, placed)
        return Case(placed.model, groups, placed.scopes, encode, realise, self._age(host))

    def _age(self, host: str) -> Callable[[Part], tuple[int, int]]:
        """How old a path of a host is.  Cost: all of them, when it is asked for."""
        owners: dict[tuple[str, bool], Owner] = {}

        def age(part: Part) -> tuple[int, int]:
            assert isinstance(part, Route)
            if not owners:
                owners.update(self.owners(host))
            found = owners.get((part.path, part.exact))
            return (found.age, found.place) if found is not None else (len(owners), 0)

        return age


def owners_of(
    host: str, ingresses: Iterable[Ingress], store: Store
) -> dict[tuple[str, bool], Owner]:
    """Whose each path, (path, exact), of a host is.  ``ingresses``: oldest first."""
    out: dict[tuple[str, bool], Owner] = {}
    views = [(one.metadata.key, store.view(one.metadata.key)) for one in ingresses]
    for age, (key, seen) in enumerate(views):
        for place, path in enumerate(seen.hosts.get(host, ())):
            out.setdefault((path.path, path.exact), Owner(key, age, place, path.field))
    for age, (key, seen) in enumerate(views):
        if seen.default is not None:
            at = (seen.default.path, seen.default.exact)
            out.setdefault(at, Owner(key, age, 1 << 30, seen.default.field))
    return out


def _host(scope: str) -> str:
    """The host of an Ingress's scope, by its name."""
    name = scope.rpartition("/")[2]
    return "" if name == "_" else name.replace("_.", "*.", 1) if name[:2] == "_." else name
