"""L4: Gateways, their classes, and Services → virtual services and their listeners.

    change ─▶ views, who is behind what ─▶ dirty fronts and listeners ─▶ translate ─▶ realise

A *front* has a virtual service: a Gateway, a Service of type LoadBalancer, or the Services that
share a VIP.  The unit of work is the *listener*, one protocol and port of a front: an event costs
the listeners that it touches, and the fronts whose class, setting or address it changes.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Collection, Iterable
from typing import TypeVar, cast

from msgspec import Struct, structs

from akocore.config import Config
from akocore.faults import Faults, without_faulty
from akocore.infrastructure import Infrastructure
from akocore.kube.objects import Change, Gateway, GatewayClass, Service
from akocore.model import L4Listener, Refusal
from akocore.place.virtual_services import Placement, VirtualService
from akocore.realise_l4 import At, L4Realiser
from akocore.store import Store
from akocore.translate import gateways, services
from akocore.translate.classes import CONTROLLER, SETTING_ANNOTATION, Infra
from akocore.translate.first_part import of_gateway, of_service
from akocore.translate.gateways import GatewayView
from akocore.translate.names import Names
from akocore.translate.services import Front, ServiceView

__all__ = ["L4", "Served"]

_K = TypeVar("_K")
Age = tuple[str, str]  # creation and key: of two the lesser came first
Touched = set[tuple[str, str]]  # (kind, key)


class Served(Struct, frozen=True, gc=False):
    """A front that is served: its virtual service.  ``field``: where its address is asked for.

    ``network``: where its address comes from; "": as its setting has it.
    """

    vs: str
    setting: str
    address: str
    field: str
    network: str = ""


class L4:
    """Follows what `take` is given when `follow` is called.

    ``touched``: objects that may say something else now; who reads it clears it.
    """

    def __init__(
        self,
        config: Config,
        store: Store,
        names: Names,
        infrastructure: Infrastructure,
        placement: Placement,
        realiser: L4Realiser,
        faults: Faults | None = None,
    ) -> None:
        self._faults = faults if faults is not None else Faults()
        self.gateways: dict[str, GatewayView] = {}
        self.services: dict[str, ServiceView] = {}
        self.fronts: dict[Front, Served] = {}
        self.touched: Touched = set()
        self._default_controller = config.l4.default_controller
        self._limits = config.limits
        self._store = store
        self._names = names
        self._infrastructure = infrastructure
        self._placement = placement
        self._realiser = realiser
        self._behind: dict[Front, list[Age]] = {}  # Services, oldest first
        self._on: dict[Front, dict[At, list[Age]]] = {}  # the same, by listener
        self._refers: dict[str, set[Front]] = {}  # "Kind/name" → fronts
        self._refers_of: dict[Front, frozenset[str]] = {}
        self._owners: dict[str, Front] = {}  # virtual service → front
        self._claims: dict[str, set[Front]] = {}  # address → fronts that ask for it
        self._refused: dict[Front, tuple[Refusal, ...]] = {}
        self._refused_at: dict[Front, dict[At, tuple[Refusal, ...]]] = {}
        self._fronts_due: set[Front] = set()
        self._due: set[tuple[Front, At]] = set()

    # ── events ──────────────────────────────────────────────────────────────────────────────

    def take(self, change: Change) -> None:
        """Take in a Gateway, a class, a Service or a Namespace, after the store has."""
        key, obj = change.key, change.obj
        match change.kind:
            case "Service":
                self._take_service(key, cast("Service | None", obj))
            case "Gateway":
                self._take_gateway(key, cast("Gateway | None", obj))
            case "GatewayClass":
                self.touched.add(("GatewayClass", key))
                self._refer_to(f"GatewayClass/{key}")
            case _:
                self._refer_to(f"{change.kind}/{key}")

    def take_settings(self, names: Collection[str]) -> None:
        """These AviInfraSettings came out differently."""
        for name in names:
            self._refer_to(f"AviInfraSetting/{name}")
        for key, cls in self._store.all("GatewayClass").items():
            if gateways.setting_named(cast(GatewayClass, cls)) in names:
                self.touched.add(("GatewayClass", key))

    def _refer_to(self, ref: str) -> None:
        self._fronts_due.update(self._refers.get(ref, ()))

    def _take_service(self, key: str, obj: Service | None) -> None:
        new = None if obj is None else self._view(obj)  # first: it alone may fail
        old = self.services.pop(key, None)
        if new is not None:
            self.services[key] = new
        if old is not None or new is not None:
            self.touched.add(("Service", key))
        if old == new:
            return
        leaders = {
            front: self._leader(front, old)
            for one in (old, new)
            for front in (one.fronts if one is not None else ())
            if front.kind != "Gateway"
        }
        for front in old.fronts if old is not None else ():
            self._leave(front, cast(ServiceView, old))
        for front in new.fronts if new is not None else ():
            self._join(front, cast(ServiceView, new))
        for front, before in leaders.items():
            after = self._leader(front)
            if _leads(before) != _leads(after):
                self._fronts_due.add(front)
                self._due.update((front, at) for at in self._on.get(front, ()))

    def _view(self, obj: Service) -> ServiceView | None:
        try:
            some, no = of_service(obj, self._limits)
            seen = services.view(some, self._default_controller)
            if no and seen is not None:
                seen = structs.replace(seen, refusals=(*no, *seen.refusals))
            return seen
        except Exception as err:
            if obj.spec.type != "LoadBalancer" and not services.is_attached(obj):
                raise
            return services.refused(obj, self._faults.refusal(f"Service/{obj.metadata.key}", err))

    def _gateway_view(self, obj: Gateway) -> GatewayView:
        try:
            some, no = of_gateway(obj, self._limits)
            seen = gateways.view(some)
            return structs.replace(seen, refusals=(*no, *seen.refusals)) if no else seen
        except Exception as err:
            refusal = self._faults.refusal(f"Gateway/{obj.metadata.key}", err)
            return GatewayView({}, "", (refusal,))

    def _leader(self, front: Front, gone: ServiceView | None = None) -> ServiceView | None:
        """The oldest Service of a front; ``gone``: as it was, of one that is taken out already."""
        ages = self._behind.get(front)
        if not ages:
            return None
        key = ages[0][1]
        return gone if gone is not None and gone.key == key else self.services[key]

    def _join(self, front: Front, one: ServiceView) -> None:
        insort(self._behind.setdefault(front, []), one.age)
        for at in one.ports:
            insort(self._on.setdefault(front, {}).setdefault(at, []), one.age)
            self._due.add((front, at))

    def _leave(self, front: Front, one: ServiceView) -> None:
        _remove(self._behind, front, one.age)
        on = self._on.get(front, {})
        for at in one.ports:
            _remove(on, at, one.age)
            self._due.add((front, at))
        if not on:
            self._on.pop(front, None)

    def _take_gateway(self, key: str, obj: Gateway | None) -> None:
        namespace, _, name = key.partition("/")
        front = Front("Gateway", namespace, name)
        new = None if obj is None else self._gateway_view(obj)
        old = self.gateways.pop(key, None)
        if new is not None:
            self.gateways[key] = new
        self.touched.add(("Gateway", key))
        self._fronts_due.add(front)
        if old is None or new is None:
            self._due.update((front, at) for at in self._on.get(front, ()))
        before = {} if old is None else old.listeners
        after = {} if new is None else new.listeners
        changed = (at for at in before | after if before.get(at) != after.get(at))
        self._due.update((front, at) for at in changed)

    # ── following ───────────────────────────────────────────────────────────────────────────

    def follow(
        self,
        settle: Callable[[VirtualService, Infra], None],
        close: Callable[[VirtualService], None],
    ) -> None:
        """Translate, place and realise what is due.  Cost: that.

        ``settle`` gives a virtual service the home that it wants, ``close`` takes all.
        """
        while self._fronts_due:
            due, self._fronts_due = self._fronts_due, set()
            wanted: list[tuple[bool, str, Front, Served]] = []
            for front in sorted(due):
                unit = ("front", front)
                served = self._faults.run(unit, self._speaks(front), self._evaluate, front)
                if served is None:
                    self._withdraw(front, close)
                else:
                    # Who asks for just one address goes before those that take any.
                    wanted.append((not served.address, self._age(front), front, served))
            for _, _, front, served in sorted(wanted, key=lambda one: one[:3]):
                at_fault = self._speaks(front)
                unit = ("settle", front)
                self._faults.run(unit, at_fault, self._serve, front, served, settle, close)
        due_at, self._due = self._due, set()
        for front, at in sorted(due_at):
            try:
                self._listener(front, at)
            except Exception:
                self._listener_without_faulty(front, at)

    def _age(self, front: Front) -> str:
        if front.kind == "Gateway":
            created = self._store.all("Gateway")[front.key].metadata.creation_timestamp
            return created or "~"
        leader = self._leader(front)
        return leader.age[0] if leader is not None else "~"

    def _evaluate(self, front: Front) -> Served | None:
        """What a front comes to; None: it is not served, and `_refused` says why."""
        refers: set[str] = set()  # what, when it changes, may change this
        refusals: list[Refusal] = []
        served: Served | None = None
        if front.kind == "Gateway":
            gateway = cast("Gateway | None", self._store.all("Gateway").get(front.key))
            if gateway is not None:
                usable = self._infrastructure.infras
                by = gateways.govern_gateway(gateway, self._store, usable)
                refers |= {
                    f"Namespace/{front.namespace}",
                    f"GatewayClass/{gateway.spec.gateway_class_name}",
                }
                if by.named is not None:
                    refers.add(f"AviInfraSetting/{by.named}")
                if by.refusal is not None:
                    refusals.append(by.refusal)
                if by.setting is not None:
                    address = self.gateways[front.key].address
                    vs = self._named(front)
                    served = Served(vs, by.setting, address, "spec.addresses[0].value")
        elif (leader := self._leader(front)) is not None:
            served = self._evaluate_services(front, leader, refers, refusals)
        self._set_refers(front, frozenset(refers))
        if refusals:
            self._refused[front] = tuple(refusals)
        else:
            self._refused.pop(front, None)
        self._touch(front, served)
        return served

    def _named(self, front: Front) -> str:
        plain = self._names.l4(front.namespace, front.name, front.family)
        return self._placement.named(_vs_key(front), plain)

    def _evaluate_services(
        self, front: Front, leader: ServiceView, refers: set[str], refusals: list[Refusal]
    ) -> Served | None:
        setting, field = leader.setting, f"metadata.annotations[{SETTING_ANNOTATION}]"
        if setting is None:
            namespace = self._store.namespace(front.namespace)
            named = namespace.metadata.annotation(SETTING_ANNOTATION) if namespace else None
            setting, field = named or "", f"metadata.namespace ({SETTING_ANNOTATION})"
        refers |= {f"Namespace/{front.namespace}", f"AviInfraSetting/{setting}"}
        infra = self._infrastructure.infras.get(setting)
        if infra is not None:
            first, second = self._networks(infra, leader.family)
            network, address = second if front.family else first, leader.address
            if not network:
                if leader.dual == "RequireDualStack":
                    refusals.append(_one_family(leader, setting, front.family))
                return None
            if leader.second is not None and second:  # that of its own family has the address
                asked = "IPv6" if ":" in address else "IPv4"
                address = address if self._infrastructure.networks[network].family == asked else ""
            vs = self._named(front)
            return Served(vs, setting, address, leader.address_field, network)
        known = self._store.setting(setting) is not None if setting else True
        refusals.append(
            Refusal(
                object=f"Service/{leader.key}",
                field=field,
                reason="AviInfraSettingRejected" if known else "AviInfraSettingNotFound",
                remedy=gateways.unusable(setting or "of the defaults", known),
            )
        )
        return None

    def _networks(self, infra: Infra, family: str) -> tuple[str, str]:
        """Where the first address comes from, and the second ("": from nowhere)."""
        first, second = infra.network, infra.other_network
        if second and family == self._infrastructure.networks[second].family:
            return second, first
        return first, second

    def _speaks(self, front: Front) -> str:
        """The object that answers for a front."""
        leader = None if front.kind == "Gateway" else self._leader(front)
        return str(front) if leader is None else f"Service/{leader.key}"

    def _set_refers(self, front: Front, refers: frozenset[str]) -> None:
        before = self._refers_of.pop(front, frozenset())
        if refers:
            self._refers_of[front] = refers
        for ref in before - refers:
            self._refers[ref].discard(front)
            if not self._refers[ref]:
                del self._refers[ref]
        for ref in refers - before:
            self._refers.setdefault(ref, set()).add(front)

    def _touch(self, front: Front, served: Served | None) -> None:
        """Its objects may say something else, if the front is another one now."""
        if front.kind == "Gateway":
            self.touched.add(("Gateway", front.key))
        if self.fronts.get(front) != served or front in self._refused:
            self.touched.update(("Service", key) for _, key in self._behind.get(front, ()))

    def _serve(
        self,
        front: Front,
        served: Served,
        settle: Callable[[VirtualService, Infra], None],
        close: Callable[[VirtualService], None],
    ) -> None:
        holder = self._owners.get(served.vs, front)
        if holder != front:  # two of this very batch: the earlier has it now
            self._fronts_due.add(front)
            return
        before = self.fronts.get(front)
        if before is not None and before.vs != served.vs:
            self._withdraw(front, close)
            before = None
        infra = self._infrastructure.infras[served.setting]
        if served.network and served.network != infra.network:
            infra = structs.replace(infra, network=served.network)
        service = self._placement.l4_service(served.vs, infra, _vs_key(front))
        self.fronts[front] = served
        self._owners[served.vs] = front
        if before is None or before.address != served.address:
            self._claim(front, before.address if before else "", served.address)
        service.wanted = served.address
        self._placement.own(service, front.namespace)
        settle(service, infra)
        if before is None:
            self._due.update((front, at) for at in self._listeners_of(front))

    def _withdraw(self, front: Front, close: Callable[[VirtualService], None]) -> None:
        served = self.fronts.pop(front, None)
        if served is None:
            self._due.update((front, at) for at in self._listeners_of(front))
            return
        del self._owners[served.vs]
        self._claim(front, served.address, "")
        self._due.update((front, at) for at in self._listeners_of(front))
        service = self._placement.services[served.vs]
        close(service)
        for at in list(service.listeners or ()):
            self._realiser.place(service, at, None)

    def give_up(self, vs: str, close: Callable[[VirtualService], None]) -> None:
        """A virtual service can't be called as it is: its front is served anew, by another name."""
        if (front := self._owners.get(vs)) is not None:
            self._withdraw(front, close)
            self._fronts_due.add(front)

    def _claim(self, front: Front, old: str, new: str) -> None:
        """Keep account of who asks for an address; all that do may say something else now."""
        for address in {old, new} - {""}:
            claims = self._claims.setdefault(address, set())
            claims.discard(front)
            if address == new:
                claims.add(front)
            for other in claims:
                self._touch_speakers(other)
            if not claims:
                del self._claims[address]
            for pool in self._placement.pools.values():
                holder = self._owners.get(pool.holder(address) or "")
                if holder is not None:
                    self._touch_speakers(holder)

    def _touch_speakers(self, front: Front) -> None:
        kind, _, key = self._speaks(front).partition("/")
        self.touched.add((kind, key))

    def _listeners_of(self, front: Front) -> set[At]:
        seen = self.gateways.get(front.key) if front.kind == "Gateway" else None
        return {*self._on.get(front, ()), *(seen.listeners if seen is not None else ())}

    def _listener(self, front: Front, at: At) -> None:
        """Translate one listener and make it so.  Cost: the Services that want it."""
        behind = [self.services[key] for _, key in self._on.get(front, {}).get(at, ())]
        if front.kind == "Gateway":
            self.touched.add(("Gateway", front.key))
        self.touched.update(("Service", one.key) for one in behind)
        self._place(front, at, *self._model(front, at, behind))
        if self._faults:
            self._faults.over(("listener", front, at))

    def _listener_without_faulty(self, front: Front, at: At) -> None:
        """We failed over a listener: leave out the Services that we fail over, and tell them."""
        behind = [self.services[key] for _, key in self._on.get(front, {}).get(at, ())]
        served = self.fronts.get(front)
        service = self._placement.services[served.vs] if served is not None else None

        def attempt(some: list[ServiceView]) -> None:
            model, _ = self._model(front, at, some)
            if service is not None and model is not None:
                self._realiser.attempt(service, at, model)

        good, bad = without_faulty(behind, attempt)
        noted = [self._faults.refusal(f"Service/{one.key}", err) for one, err in bad]
        try:
            self._place(front, at, *self._model(front, at, good))
        except Exception as err:
            noted.append(self._faults.refusal(self._speaks(front), err))
            self._place(front, at, None, [])
        self._faults.put(("listener", front, at), noted)

    def _model(
        self, front: Front, at: At, behind: list[ServiceView]
    ) -> tuple[L4Listener | None, list[Refusal]]:
        served = self.fronts.get(front) is not None
        if front.kind == "Gateway":
            seen = self.gateways.get(front.key)
            return gateways.gateway_listener(front, seen, served, *at, behind, self._names)
        if (leader := self._leader(front)) is not None and (served or not front.family):
            return services.service_listener(front, *at, behind, leader, served, self._names)
        return None, []

    def _place(self, front: Front, at: At, model: L4Listener | None, no: list[Refusal]) -> None:
        served = self.fronts.get(front)
        refused = self._refused_at.setdefault(front, {})
        if no:
            refused[at] = tuple(no)
        else:
            refused.pop(at, None)
        if not refused:
            del self._refused_at[front]
        if served is not None:
            service = self._placement.services[served.vs]
            self._realiser.place(service, at, model)

    # ── reading ─────────────────────────────────────────────────────────────────────────────

    def front_of(self, vs: str) -> Front | None:
        """Who has a virtual service of L4."""
        return self._owners.get(vs)

    def speaker(self, front: Front) -> str:
        """The object that answers for a front: ``Gateway/namespace/name``, or a Service."""
        return self._speaks(front)

    def services_of(self, front: Front) -> list[str]:
        """Keys of the Services that name a front, oldest first."""
        return [key for _, key in self._behind.get(front, ())]

    def claims(self, address: str) -> list[Front]:
        """The fronts that ask for just this address."""
        return sorted(self._claims.get(address, ()))

    def refusals(
        self, object_: str, front: Front, ats: Iterable[At] | None = None
    ) -> list[Refusal]:
        """What translation refuses of an object: by its front, and by these listeners (or all).

        Cost: what is refused.
        """
        out = [r for r in self._refused.get(front, ()) if r.object == object_]
        refused = self._refused_at.get(front)
        if refused is not None:
            for at in sorted(refused) if ats is None else ats:
                out += [r for r in refused.get(at, ()) if r.object == object_]
        return out

    def names(self, vs: str, address: str) -> bool:
        """Whether a status names an address of a virtual service of L4.  Cost: its Services."""
        front = self._owners.get(vs)
        if front is None:
            return False
        if front.kind == "Gateway":
            gateway = cast(Gateway, self._store.all("Gateway")[front.key])
            if any(one.value == address for one in gateway.status.addresses):
                return True
        return any(
            point.ip == address
            for key in self.services_of(front)
            if (service := self._store.service(key)) is not None
            for point in service.status.load_balancer.ingress
        )

    def touch_front(self, vs: str, *, members: bool = True) -> None:
        """The objects of a virtual service may say something else now."""
        front = self._owners.get(vs)
        if front is None:
            return
        if front.kind == "Gateway":
            self.touched.add(("Gateway", front.key))
        if members or front.kind != "Gateway":
            self.touched.update(("Service", key) for key in self.services_of(front))

    def touch_service(self, key: str) -> None:
        """A Service, and the Gateways that it is behind, may say something else now."""
        seen = self.services.get(key)
        if seen is not None:
            self.touched.add(("Service", key))
            for front in seen.fronts:
                if front.kind == "Gateway":
                    self.touched.add(("Gateway", front.key))

    def touch_listener(self, vs: str, at: At) -> None:
        """The objects of one listener may say something else now."""
        front = self._owners.get(vs)
        if front is not None:
            if front.kind == "Gateway":
                self.touched.add(("Gateway", front.key))
            behind = self._on.get(front, {}).get(at, ())
            self.touched.update(("Service", key) for _, key in behind)

    def class_refusals(self, cls: GatewayClass) -> tuple[Refusal, ...]:
        """What is wrong with a class of ours; () also of another's."""
        if cls.spec.controller != CONTROLLER:
            return ()
        setting = gateways.setting_named(cls)
        known = setting is not None and self._store.setting(setting) is not None
        return gateways.class_refusals(cls, self._infrastructure.infras, known)


def _leads(leader: ServiceView | None) -> tuple[str | None, ...] | None:
    """What a leader decides for its front."""
    if leader is None:
        return None
    return leader.key, leader.address, leader.setting, leader.family, leader.dual


def _vs_key(front: Front) -> str:
    """The key of a front's virtual service."""
    return f"{front} {front.family}" if front.family else str(front)


def _one_family(leader: ServiceView, setting: str, family: str) -> Refusal:
    whose = f"AviInfraSetting {setting}" if setting else "the configuration's defaults"
    return Refusal(
        object=f"Service/{leader.key}",
        field="spec.ipFamilyPolicy",
        reason="NoNetworkOfFamily",
        remedy=f"There is no address of {family} for it: let {whose} name a Network of each family,"
        " or write PreferDualStack.",
    )


def _remove(lists: dict[_K, list[Age]], at: _K, age: Age) -> None:
    ages = lists[at]
    del ages[bisect_left(ages, age)]
    if not ages:
        del lists[at]
