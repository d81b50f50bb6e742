"""Objects by kind and key, and who refers to whom.

`Store.apply` is the only writer.  Every look-up costs what it returns, never the size of
the cluster.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Iterator
from typing import cast

from msgspec import structs

from akocore.config import Limits
from akocore.faults import Faults
from akocore.index import Index
from akocore.kube.objects import (
    AviInfraSetting,
    Change,
    EndpointSlice,
    Ingress,
    IngressClass,
    Namespace,
    Object,
    Secret,
    Service,
)
from akocore.translate.classes import SETTING_ANNOTATION, setting_of_class
from akocore.translate.first_part import of_ingress
from akocore.translate.ingress import IngressView, different_hosts, refers, view

__all__ = ["Store"]

NO_CLASS = ""  # what an Ingress without a class refers to


class Store:
    """The state of the source as last seen."""

    def __init__(
        self,
        faults: Faults | None = None,
        limits: Limits = Limits(),  # noqa: B008  (frozen)
    ) -> None:
        self.limits = limits
        self._faults = faults if faults is not None else Faults()
        self._objects: dict[str, dict[str, Object]] = {}
        self._views: dict[str, IngressView] = {}
        self._unread: set[str] = set()  # Ingresses that we fail over
        self._slices: dict[str, tuple[EndpointSlice, ...]] = {}
        self._referrers = Index()  # "Kind/key" → keys of Ingresses
        self._hosts = Index()  # host → keys of Ingresses
        self._classes_of = Index()  # setting → keys of IngressClasses
        self._namespaces_of = Index()  # setting → names of Namespaces

    # ── reading ─────────────────────────────────────────────────────────────────────────────

    def all(self, kind: str) -> dict[str, Object]:
        """Every object of a kind, by key."""
        return self._objects.setdefault(kind, {})

    def ingress(self, key: str) -> Ingress | None:
        return cast("Ingress | None", self.all("Ingress").get(key))

    def view(self, key: str) -> IngressView:
        """What the Ingress ``key`` asks for, host by host."""
        return self._views[key]

    def hosts_of(self, key: str) -> Collection[str]:
        """The hosts that the Ingress ``key`` names; () when there is no such Ingress."""
        seen = self._views.get(key)
        return () if seen is None else seen.hosts

    def service(self, key: str) -> Service | None:
        return cast("Service | None", self.all("Service").get(key))

    def secret(self, key: str) -> Secret | None:
        return cast("Secret | None", self.all("Secret").get(key))

    def ingress_class(self, key: str) -> IngressClass | None:
        return cast("IngressClass | None", self.all("IngressClass").get(key))

    def setting(self, key: str) -> AviInfraSetting | None:
        return cast("AviInfraSetting | None", self.all("AviInfraSetting").get(key))

    def namespace(self, key: str) -> Namespace | None:
        return cast("Namespace | None", self.all("Namespace").get(key))

    def slices(self, service: str) -> Iterable[EndpointSlice]:
        """The EndpointSlices of a Service."""
        return self._slices.get(service, ())

    def size(self, service: str) -> int:
        """How many endpoints the EndpointSlices of a Service list.  Cost: its slices."""
        return sum(len(one.endpoints or ()) for one in self.slices(service))

    def weight(self, host: str, most: int = 0) -> int:
        """What following a host may cost, in paths; or ``most`` at least, if it is more than that.

        Cost: these.
        """
        out = 0
        for key in self._hosts.get(host):
            seen, namespace = self._views[key], key.partition("/")[0]
            paths = seen.hosts[host]
            if seen.default is not None:
                paths = (*paths, seen.default)
            out += len(paths)
            if most and out >= most:
                return out
            for service in {path.service for path in paths}:
                out += self.size(f"{namespace}/{service}") // 20
        return out

    def ingresses_of_host(self, host: str) -> Iterable[str]:
        return self._hosts.get(host)

    def referrers(self, kind: str, key: str) -> Iterable[str]:
        """Keys of the Ingresses that name this object."""
        return self._referrers.get(f"{kind}/{key}")

    def ingresses_of_setting(self, setting: str) -> Iterator[str]:
        """Keys of the Ingresses that may be governed by an AviInfraSetting."""
        for cls in self._classes_of.get(setting):
            yield from self.ingresses_of_class(cls)
        for namespace in self._namespaces_of.get(setting):
            yield from self.referrers("Namespace", namespace)

    def ingresses_of_class(self, cls: str) -> Iterator[str]:
        """Keys of the Ingresses that name a class, and of those that name none."""
        yield from self.referrers("IngressClass", cls)
        yield from self.referrers("IngressClass", NO_CLASS)

    # ── writing ─────────────────────────────────────────────────────────────────────────────

    def apply(self, change: Change) -> Object | None:
        """Take in one change; the object as it was before, or None."""
        objects = self.all(change.kind)
        old = objects.get(change.key)
        if change.obj is None:
            objects.pop(change.key, None)
        else:
            objects[change.key] = change.obj
        match change.kind:
            case "Ingress":
                self._index_ingress(
                    change.key, cast("Ingress | None", old), cast("Ingress | None", change.obj)
                )
            case "EndpointSlice":
                self._index_slice(cast("EndpointSlice | None", old), change)
            case "IngressClass":
                self._move(
                    self._classes_of, change.key, _class_setting(old), _class_setting(change.obj)
                )
            case "Namespace":
                self._move(
                    self._namespaces_of,
                    change.key,
                    _namespace_setting(old),
                    _namespace_setting(change.obj),
                )
            case _:
                pass  # nothing refers by these kinds
        return old

    def apply_ingress(self, change: Change) -> set[str]:
        """Take in an Ingress; the hosts of which it asks something else than before."""
        key = change.key
        before, old = self.ingress(key), self._views.get(key)
        self.apply(change)
        after, new = self.ingress(key), self._views.get(key)
        if before is None or after is None or old is None or new is None:
            return {
                *(old.hosts if old is not None else ()),
                *(new.hosts if new is not None else ()),
            }
        return different_hosts(before, old, after, new)

    def take_status(self, change: Change) -> bool:
        """Take in an Ingress of which nothing but its status is new; False: there is more."""
        old, new = self.ingress(change.key), cast("Ingress | None", change.obj)
        if (
            old is None
            or new is None
            or old.metadata.uid != new.metadata.uid
            or old.metadata.annotations != new.metadata.annotations
            or old.spec != new.spec
        ):
            return False
        self.all("Ingress")[change.key] = new
        return True

    def _index_ingress(self, key: str, before: Ingress | None, after: Ingress | None) -> None:
        old = self._views.get(key)
        named = self._names(before, old)
        valid = () if old is None else old.hosts
        new, names = (None, set()) if after is None else self._read(after, valid)
        self._views.pop(key, None)
        for ref in named - names:
            self._referrers.discard(ref, key)
        for ref in names - named:
            self._referrers.add(ref, key)
        if old is not None:
            for host in old.hosts:
                if new is None or host not in new.hosts:
                    self._hosts.discard(host, key)
        if new is not None:
            self._views[key] = new
            for host in new.hosts:
                self._hosts.add(host, key)

    def _names(self, ingress: Ingress | None, seen: IngressView | None) -> set[str]:
        """What the indexes have of an Ingress."""
        if ingress is None or seen is None or ingress.metadata.key in self._unread:
            return set()
        return refers(ingress, seen)

    def _read(self, ingress: Ingress, valid: Container[str]) -> tuple[IngressView, set[str]]:
        """What an Ingress asks for and refers to: nothing, when we fail over it."""
        key = ingress.metadata.key
        self._unread.discard(key)
        try:
            some, no = of_ingress(ingress, self.limits)
            seen = view(some, valid)
            if no:
                seen = structs.replace(seen, refusals=(*no, *seen.refusals))
            return seen, refers(ingress, seen)
        except Exception as err:
            self._unread.add(key)
            refusal = self._faults.refusal(f"Ingress/{key}", err)
            return IngressView({}, None, {}, (refusal,)), set()

    def _index_slice(self, old: EndpointSlice | None, change: Change) -> None:
        if old is not None and old.service is not None:
            slices = tuple(one for one in self._slices[old.service] if one is not old)
            if slices:
                self._slices[old.service] = slices
            else:
                del self._slices[old.service]
        new = cast("EndpointSlice | None", change.obj)
        if new is not None and new.service is not None:
            self._slices[new.service] = (*self._slices.get(new.service, ()), new)

    def _move(self, index: Index, key: str, old: str | None, new: str | None) -> None:
        if old is not None:
            index.discard(old, key)
        if new is not None:
            index.add(new, key)


def _class_setting(obj: Object | None) -> str | None:
    return None if obj is None else setting_of_class(cast("IngressClass", obj))


def _namespace_setting(obj: Object | None) -> str | None:
    return None if obj is None else obj.metadata.annotation(SETTING_ANNOTATION)
