"""Which endpoints are left out, and of which Services: judged once, when a slice or a rule changes.

slice ─▶ `akocore.translate.endpoints` ─▶ what is left out, by slice and by Service
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import cast

from msgspec import structs

from akocore.config import EndpointsConfig
from akocore.kube.objects import EndpointSlice, NetworkSpec
from akocore.model import Refusal
from akocore.store import Store
from akocore.translate.endpoints import Known, Table, left_out, not_allowed

__all__ = ["Endpoints"]

_NONE: Mapping[str, str] = MappingProxyType({})
_NOWHERE: Mapping[str, Mapping[str, str]] = MappingProxyType({})


class Endpoints:
    """What is left out of the slices of a store.

    ``loopback``: whether that may be an endpoint where the configuration doesn't say.
    ``namespace``: the controllers' own: whoever has a slice there is one of them.
    """

    def __init__(
        self, store: Store, config: EndpointsConfig, *, loopback: bool, namespace: str = ""
    ) -> None:
        self._counts: dict[str, int] = {}  # Service → endpoints in its slices
        self._too_many: set[str] = set()  # Services
        said = config.allow_loopback
        self.table = Table(
            Known(
                allow=config.allow,
                deny=config.deny,
                loopback=loopback if said is None else said,
            )
        )
        self._store = store
        self._own = f"{namespace}/" if namespace else ""
        self._slices: dict[str, Mapping[str, str]] = {}  # slice → address → why
        self._services: dict[str, dict[str, Mapping[str, str]]] = {}  # Service → slice → these
        self._engines: dict[str, str] = {}
        self._controllers: dict[str, tuple[str, ...]] = {}  # slice of our own → addresses

    def __bool__(self) -> bool:
        return bool(self._services or self._too_many)

    def told(self, object_: str, field: str, service: str, **kind: bool) -> list[Refusal]:
        """What an object that leads to a Service is told of endpoints that are not served."""
        out = []
        if found := self.of_service(service):
            out.append(not_allowed(object_, field, service, found, **kind))
        if service in self._too_many:
            most = self._store.limits.endpoints
            remedy = (
                f"Of the {self._counts[service]} endpoints of Service {service} the first {most},"
                " by address, are served. Make a second Service of some."
            )
            no = Refusal(object=object_, field=field, reason="TooLarge", remedy=remedy, **kind)
            out.append(no)
        return out

    def of_slice(self, key: str) -> Mapping[str, str]:
        """The addresses that are left out of a slice, and why."""
        return self._slices.get(key, _NONE)

    def of_service(self, key: str) -> Mapping[str, Mapping[str, str]]:
        """The same by slice, of the slices of a Service that have any."""
        return self._services.get(key, _NOWHERE)

    # ── what changes: each tells the Services whose endpoints came out differently ───────────

    def take(self, key: str, old: EndpointSlice | None, new: EndpointSlice | None) -> set[str]:
        """Follow a slice, after the store has.  Cost: its endpoints."""
        changed = self._judge(key, old, new) | self._count(old, new)
        if self._own and key.startswith(self._own):
            self._controllers.pop(key, None)
            if new is not None:
                self._controllers[key] = tuple(
                    one.addresses[0] for one in new.endpoints or () if one.addresses
                )
            changed |= self._know_own()
        return changed

    def _count(self, old: EndpointSlice | None, new: EndpointSlice | None) -> set[str]:
        """The Services that have too many now, or had.  Cost: constant."""
        changed: set[str] = set()
        for slice_, by in ((old, -1), (new, 1)):
            service = slice_.service if slice_ is not None else None
            if slice_ is None or service is None:
                continue
            has = self._counts.get(service, 0) + by * len(slice_.endpoints or ())
            self._counts[service] = has
            if not has:
                del self._counts[service]
            if service in self._too_many or has > self._store.limits.endpoints:
                changed.add(service)
        for service in changed:
            over = self._counts.get(service, 0) > self._store.limits.endpoints
            (self._too_many.add if over else self._too_many.discard)(service)
        return changed

    def know_vips(
        self,
        networks: Mapping[str, NetworkSpec],
        others: Collection[str],
        but: Collection[str] = (),
    ) -> set[str]:
        """Where VIPs are: in these Networks, and at ``others``.  Cost, when it is news: all.

        ``but``: slices that `take` is to be told next.
        """
        known = structs.replace(self.table.known, vips=dict(networks), strays=others)
        return self._know(known, but=but)

    def know_engines(self, addresses: Mapping[str, str]) -> set[str]:
        """Addresses of Service Engines, with whose they are.  Cost: a look at every endpoint."""
        self._engines = dict(addresses)
        return self._know_own()

    def know_ports(self, ports: Collection[int], here: Collection[str]) -> set[str]:
        """Where akocore itself listens: at these ports of these addresses, and of loopback."""
        ports, here = frozenset(ports), frozenset(here)
        return self._know(structs.replace(self.table.known, ports=ports, here=here))

    def _know_own(self) -> set[str]:
        controllers = {one: "akocore's own" for at in self._controllers.values() for one in at}
        engines = controllers | self._engines
        before = self.table.known.engines
        known = structs.replace(self.table.known, engines=engines)
        return self._know(known, {a for a, _ in before.items() ^ engines.items()})

    def _know(
        self, known: Known, addresses: Collection[str] | None = None, but: Collection[str] = ()
    ) -> set[str]:
        """``addresses``: all that it can concern, in IPv4."""
        if known == self.table.known:
            return set()
        self.table = Table(known)
        changed: set[str] = set()
        for key, obj in self._store.all("EndpointSlice").items():
            if key in but:
                continue
            slice_ = cast(EndpointSlice, obj)
            if (
                addresses is None
                or slice_.address_type != "IPv4"
                or key in self._slices
                or any(a in addresses for e in slice_.endpoints or () for a in e.addresses[:1])
            ):
                changed |= self._judge(key, slice_, slice_)
        return changed

    def _judge(self, key: str, old: EndpointSlice | None, new: EndpointSlice | None) -> set[str]:
        found = left_out(new, self.table) if new is not None else {}
        before = self._slices.get(key, _NONE)
        was = old.service if old is not None else None
        now = new.service if new is not None else None
        if found == before and (was == now or not found):
            return set()
        if before:
            del self._slices[key]
            if was is not None:
                slices = self._services[was]
                del slices[key]
                if not slices:
                    del self._services[was]
        if found:
            self._slices[key] = found
            if now is not None:
                self._services.setdefault(now, {})[key] = found
        return {one for one in (was, now) if one is not None}
