"""Status, mirrors and events, back to the cluster: one write for each real change, bounded in rate.

What is written is computed at the moment of writing from what the engines have acknowledged; a
write that fails is computed again when it is tried again.  Server-side apply (KEP-555) under our
own field manager, so nobody else's fields are touched.

Only the replica that leads writes: it asks before each write, and a status carries the
resourceVersion that it was computed from, so what a former leader still has on its way is refused.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec
import orjson
from mmh3 import mmh3_x64_128_digest
from msgspec import Struct

from akocore import status
from akocore.events import Event
from akocore.kube import gateway_status, l4_status, mirrors
from akocore.kube.api import ApiError, ApiServer, Resource, resources
from akocore.kube.gateway_objects import GatewayApiGateway, ListenerSet
from akocore.kube.note import cut_note
from akocore.kube.objects import (
    AviInfraSetting,
    Ingress,
    IngressPoint,
    Network,
    Object,
    ServiceEngine,
    ServiceEngineStatus,
    VirtualService,
    VirtualServiceStatus,
)

if TYPE_CHECKING:
    from akocore.serve import Serve

__all__ = ["FIELD_MANAGER", "StatusWriter"]

log = logging.getLogger(__name__)

FIELD_MANAGER = "akocore"
_CONTROLLER = "akocore.io/controller"
_WORKERS = 16
_ORDER = (
    *("AviInfraSetting", "Network", "GatewayClass", "Gateway", *gateway_status.KINDS),
    *("Service", "Ingress"),
    *("Gateway (all)", *(f"{kind} (all)" for kind in gateway_status.KINDS)),
    *("Service (all)", "Ingress (all)", "VirtualService", "ServiceEngine"),
)
_EVENTS_KEPT = 10_000
_MIRROR_S = 1.0  # a mirror is written once in this time at most
_COUNT_S = 0.5  # so is how many routes a Gateway has
_AGAIN_S = 0.5  # after a failed write; after a conflict the watch brings the news soon
_CONFLICT_S = 0.03
_BREATH = 64  # looks without a write, then others have their turn

_Points = list[tuple[str, str]]  # (hostname, ip)


class _Meta(Struct, rename="camel"):
    resource_version: str = ""


class _Written(Struct):
    metadata: _Meta


class _Manager(Struct, rename="camel"):
    manager: str = ""
    subresource: str = ""


class _ManagedMeta(Struct, rename="camel"):
    managed_fields: list[_Manager] = []


class _Managed(Struct):
    metadata: _ManagedMeta


class _Mirror(Struct, frozen=True):
    """A mirror as the cluster has it: who writes another version is refused."""

    status: VirtualServiceStatus | ServiceEngineStatus
    version: str
    labels: dict[str, str]
    annotations: dict[str, str]


class _VirtualServices(Struct):
    items: list[VirtualService]


class _ServiceEngines(Struct):
    items: list[ServiceEngine]


class StatusWriter:
    """Writes the status of what `touch` names.  ``qps``: writes a second at most.

    ``leads()``: whether this replica may write.  Settings go before Ingresses, Ingresses before
    mirrors, all before events; what changed just now before what a new leader looks through.
    """

    def __init__(
        self,
        api: ApiServer,
        serve: Serve,
        *,
        leads: Callable[[], bool],
        identity: str,
        qps: float = 500,
    ) -> None:
        self._api = api
        self._serve = serve
        self._at = serve.reconciler
        self._leads = leads
        self._identity = identity
        self._gap_s = 1 / qps
        self._next = 0.0
        self._due: dict[str, OrderedDict[str, None]] = {queue: OrderedDict() for queue in _ORDER}
        self._busy: set[tuple[str, str]] = set()
        self._again: set[tuple[str, str]] = set()  # touched while they were being written
        self._delayed: set[tuple[str, str]] = set()
        self._events: OrderedDict[int, Event] = OrderedDict()
        self._events_said = 0
        self._work = asyncio.Event()
        self._resources: dict[str, Resource] = resources()
        # What was written and the watch has not brought back yet: key → (resourceVersion, points).
        self._ahead: dict[str, tuple[int, _Points]] = {}
        self._mirrors: dict[tuple[str, str], _Mirror] = {}  # (kind, object's name) → as it is
        self._rests: dict[tuple[str, str], float] = {}  # mirrors: not to be written before
        self._listed = False
        self._listing = asyncio.Lock()
        self.written = 0
        self.failed = 0

    @property
    def waiting(self) -> int:
        """How many statuses and mirrors are due."""
        return sum(map(len, self._due.values())) + len(self._busy) + len(self._delayed)

    @property
    def events_waiting(self) -> int:
        """How many events are to be written, when no status is due."""
        return len(self._events)

    # ── what is due ─────────────────────────────────────────────────────────────────────────

    def touch(self, kind: str, key: str) -> None:
        """The status of this object may be another one now."""
        if not self._leads():
            return
        if (kind, key) in self._busy:
            self._again.add((kind, key))
            return
        self._due[kind][key] = None
        self._work.set()

    def touch_all(self) -> None:
        """This replica leads from now on: look at everything."""
        store = self._at.store
        self._ahead.clear()
        self._listed = False
        self._due["Ingress (all)"].update(dict.fromkeys(store.all("Ingress")))
        self._due["Gateway (all)"].update(dict.fromkeys(store.all("Gateway")))
        self._due["Service (all)"].update(dict.fromkeys(l4_status.with_status(self._at)))
        for kind in gateway_status.KINDS:
            self._due[f"{kind} (all)"].update(dict.fromkeys(store.all(kind)))
        for kind in ("AviInfraSetting", "Network", "GatewayClass"):
            self._due[kind].update(dict.fromkeys(store.all(kind)))
        self._due["VirtualService"].update(dict.fromkeys(self._at.placement.services))
        self._due["ServiceEngine"].update(dict.fromkeys(self._serve.engine_names))
        self._work.set()

    def event(self, event: Event) -> None:
        """An event that was said for the first time."""
        if self._leads() and len(self._events) < _EVENTS_KEPT:
            self._events_said += 1
            self._events[self._events_said] = event
            self._work.set()

    async def run(self) -> None:
        """Write what was touched, until cancelled."""
        self._work.set()  # for what an earlier life may have left
        async with asyncio.TaskGroup() as tasks:
            for _ in range(_WORKERS):
                tasks.create_task(self._worker())

    async def _worker(self) -> None:
        looks = 0
        while True:
            await self._work.wait()
            before = self.written
            if not self._leads():
                self._drop_all()
            elif (taken := self._take()) is not None:
                await self._try(*taken)
            elif self._events:
                _, event = self._events.popitem(last=False)
                unit = ("event", event.object)
                try:
                    await self._write_event(event)
                    self._at.faults.over(unit)
                except Exception as err:  # of ours: another event is written all the same
                    self._at.faults.note(unit, event.object, err, "status")
            elif not self._listed:
                await self._clean()
            else:
                self._work.clear()
            looks = looks + 1 if self.written == before else 0
            if looks >= _BREATH:
                looks = 0
                await asyncio.sleep(0)

    def _drop_all(self) -> None:
        """Another replica leads: what was due is its to write."""
        for due in self._due.values():
            due.clear()
        self._events.clear()
        self._work.clear()

    def _take(self) -> tuple[str, str] | None:
        for queue, due in self._due.items():
            if due:
                key, _ = due.popitem(last=False)
                at = (queue.partition(" ")[0], key)
                if at in self._busy:
                    self._again.add(at)
                    continue
                return at
        return None

    async def _try(self, kind: str, key: str) -> None:
        at = (kind, key)
        self._busy.add(at)
        faults, unit = self._at.faults, ("written", kind, key)
        wait = 0.0
        try:
            wait = await self._write(kind, key)
            faults.over(unit)
        except (ApiError, TimeoutError) as err:
            code = err.code if isinstance(err, ApiError) else 0
            if code == 409:
                wait = _CONFLICT_S
            elif code != 404:  # 404: it is gone, and so is its status
                self.failed += 1
                log.warning("event=status_not_written object=%s/%s why=%r", kind, key, str(err))
                wait = max(err.retry_after_s if isinstance(err, ApiError) else 0.0, _AGAIN_S)
        except Exception as err:  # a fault of ours: the object is told, the others are written
            self.failed += 1
            if not faults.failed(unit):
                faults.note(unit, f"{kind}/{key}", err, "status")
                self._serve.say_faults()
        finally:
            self._busy.discard(at)
        if wait:
            self._again.discard(at)
            self._delayed.add(at)
            asyncio.get_running_loop().call_later(wait, self._due_again, kind, key)
        elif at in self._again:
            self._again.discard(at)
            self.touch(kind, key)

    async def _write(self, kind: str, key: str) -> float:
        """Make one status or mirror true; how long to wait with it, or 0."""
        match kind:
            case "Ingress":
                await self._write_ingress(key)
            case "AviInfraSetting" | "Network":
                await self._write_accepted(kind, key)
            case "GatewayClass" | "Gateway" | "Service":
                await self._write_l4(kind, key)
            case _ if kind in gateway_status.KINDS:
                return await self._write_gateway_api(kind, key)
            case _:
                return await self._write_mirror(kind, key)
        return 0.0

    def _due_again(self, kind: str, key: str) -> None:
        self._delayed.discard((kind, key))
        self.touch(kind, key)

    async def _pace(self) -> bool:
        """Wait for our turn; whether we may still write then."""
        now = asyncio.get_running_loop().time()
        at = self._next = max(self._next + self._gap_s, now)
        if at > now:
            await asyncio.sleep(at - now)
        return self._leads()

    async def _apply_status(self, obj: Object, version: int, wanted: dict[str, Any]) -> int | None:
        """Apply a status that was computed from ``version``; the version that it made."""
        if not await self._pace():
            return None
        resource, meta = self._resources[obj.stored()], obj.metadata
        body = {
            "apiVersion": resource.api_version,
            "kind": obj.KIND,
            "metadata": {
                "name": meta.name,
                **({"namespace": meta.namespace} if meta.namespace else {}),
                "resourceVersion": str(version),
            },
            "status": wanted,
        }
        raw = await self._api.apply(
            resource.path(meta.namespace, meta.name, "status"), body, FIELD_MANAGER
        )
        self.written += 1
        return int(msgspec.json.decode(raw, type=_Written).metadata.resource_version)

    # ── Ingresses ───────────────────────────────────────────────────────────────────────────

    async def _write_ingress(self, key: str) -> None:
        obj = self._at.store.ingress(key)
        if obj is None:
            self._ahead.pop(key, None)
            return
        version, has = self._newest(key, obj)
        said = status.ingress(self._at, key)
        if said is None:
            if _looks_like_ours(obj) and await self._is_ours("Ingress", obj):
                await self._apply_status(obj, int(obj.metadata.resource_version), {})
            return
        wanted = self._points(said, has)
        if wanted == has:
            return
        points = [{"ip": ip, "hostname": host} for host, ip in wanted]
        made = await self._apply_status(obj, version, {"loadBalancer": {"ingress": points}})
        if made is None:
            return
        self._ahead[key] = (made, wanted)
        self._tell(key, has, wanted)

    def _newest(self, key: str, obj: Ingress) -> tuple[int, _Points]:
        """The version and the points of an Ingress, as the watch or our own last write has them."""
        version = int(obj.metadata.resource_version or 0)
        if (ahead := self._ahead.get(key)) is not None:
            if ahead[0] > version:
                return ahead
            del self._ahead[key]
        return version, [(p.hostname, p.ip) for p in obj.status.load_balancer.ingress]

    def _points(self, said: dict[str, Any], has: _Points) -> _Points:
        """``status.loadBalancer.ingress`` as it must be."""
        points = {p["hostname"]: p["ip"] for p in said["status"]["loadBalancer"]["ingress"]}
        # An engine that is away for a moment, or has not come back to us yet after our own
        # restart, serves on: an address stays until the host is served elsewhere or nowhere.
        hosts: list[str] = said["spec"]["hosts"]
        for host, ip in has:
            placed = self._at.hosts.get(host)
            if placed is None or host in points or host not in hosts:
                continue
            home = self._at.placement.services[placed.shown].shown
            if home is not None and home.address == ip:
                points[host] = ip
        for host in hosts:
            if host not in points and host in self._at.hosts:
                self._serve.pending.host(host)
        return [(host, points[host]) for host in hosts if host in points]

    def _tell(self, key: str, has: _Points, wanted: _Points) -> None:
        before, object_ = dict(has), f"Ingress/{key}"
        for host, ip in wanted:
            old = before.pop(host, None)
            if old is None:
                note = f"{host or 'Any host'} is served at {ip}."
                self._serve.events.say(object_, "Normal", "Programmed", note)
            elif old != ip:
                note = f"{host or 'Any host'} is served at {ip}; it was at {old}."
                self._serve.events.say(object_, "Normal", "Moved", note)
        for host, old in before.items():
            note = f"{host or 'Any host'} is served at {old} no more."
            self._serve.events.say(object_, "Normal", "Withdrawn", note)

    async def _is_ours(self, kind: str, obj: Object) -> bool:
        """Whether the status of an object that we don't serve was written by us."""
        resource, meta = self._resources[kind], obj.metadata
        raw = await self._api.request("GET", resource.path(meta.namespace, meta.name))
        found = msgspec.json.decode(raw, type=_Managed).metadata.managed_fields
        return any(m.manager == FIELD_MANAGER and m.subresource == "status" for m in found)

    # ── L4 ──────────────────────────────────────────────────────────────────────────────────

    async def _write_l4(self, kind: str, key: str) -> None:
        obj = self._at.store.all(kind).get(key)
        if obj is None:
            return
        wanted = l4_status.wanted(self._at, kind, key, self._serve.pending.listeners)
        if wanted is None:  # not ours, or no longer: what we wrote goes
            if l4_status.may_be_ours(obj) and await self._is_ours(kind, obj):
                version = int(obj.metadata.resource_version or 0)
                await self._apply_status(obj, version, l4_status.nothing(obj))
        elif not l4_status.says(obj, wanted):
            version = int(obj.metadata.resource_version or 0)
            if await self._apply_status(obj, version, wanted) is None:
                return
            for note in l4_status.news(obj, wanted):
                self._serve.events.say(f"{kind}/{key}", "Normal", *note)

    async def _write_gateway_api(self, kind: str, key: str) -> float:
        """Make a status of the Gateway API true; how long to wait with it, or 0."""
        obj = self._at.store.all(kind).get(key)
        if obj is None:
            self._rests.pop((kind, key), None)
            return 0.0
        version = int(obj.metadata.resource_version or 0)
        wanted = gateway_status.wanted(self._at, obj, self._serve.pending.gateway)
        if wanted is None:  # not ours, or no longer: what we wrote goes
            if gateway_status.may_be_ours(obj) and await self._is_ours(kind, obj):
                await self._apply_status(obj, version, gateway_status.nothing(obj))
        elif not gateway_status.says(obj, wanted):
            now = asyncio.get_running_loop().time()
            rest = self._rests.get((kind, key), 0.0) - now
            if rest > 0 and gateway_status.counts_alone(obj, wanted):
                return rest  # routes that come in a row are counted together
            if await self._apply_status(obj, version, wanted) is None:
                return 0.0
            if isinstance(obj, GatewayApiGateway | ListenerSet):
                self._rests[kind, key] = now + _COUNT_S
            for note in gateway_status.news(obj, wanted):
                self._serve.events.say(f"{kind}/{key}", "Normal", *note)
        return 0.0

    # ── settings and Networks ───────────────────────────────────────────────────────────────

    async def _write_accepted(self, kind: str, key: str) -> None:
        obj = self._at.store.all(kind).get(key)
        if not isinstance(obj, AviInfraSetting | Network):
            return
        refusals = self._at.infrastructure.refusals(kind, key)
        said = status.accepted(refusals)
        reason = next((r.reason for r in refusals if not r.warning), "Accepted")
        old = next((c for c in obj.status.conditions if c.type == "Accepted"), None)
        value = "True" if said["status"] == "Accepted" else "False"
        now = self._at.now().strftime("%Y-%m-%dT%H:%M:%SZ")
        since = old.last_transition_time if old and old.status == value else now
        condition = {
            "type": "Accepted",
            "status": value,
            "reason": reason,
            "message": said["error"],
            "observedGeneration": obj.metadata.generation,
            "lastTransitionTime": since,
        }
        wanted = {"status": said["status"], "error": said["error"], "conditions": [condition]}
        if msgspec.convert(wanted, type(obj.status)) != obj.status:
            await self._apply_status(obj, int(obj.metadata.resource_version or 0), wanted)

    # ── mirrors ─────────────────────────────────────────────────────────────────────────────

    async def _write_mirror(self, kind: str, key: str) -> float:
        """Make the mirror of a virtual service or engine true; how long to wait with it, or 0."""
        await self._list_mirrors()
        now, name = asyncio.get_running_loop().time(), mirrors.object_name(key)
        if (rest := self._rests.get((kind, key), 0.0)) > now:
            return rest - now
        wanted: VirtualServiceStatus | ServiceEngineStatus | None
        labels: dict[str, str] = {}
        annotations: dict[str, str] = {}
        if kind == "VirtualService":
            labels, annotations = mirrors.dress(self._at, key)
            service = self._at.placement.services.get(key)
            routes = self._serve.routes
            wanted = None if service is None else mirrors.virtual_service(self._at, service, routes)
        else:
            process = self._serve.engines.running.get(key)
            router = self._serve.routes.router(key) if self._serve.routes is not None else None
            wanted = mirrors.service_engine(self._at, key, process, self._identity, router)
        known = self._mirrors.get((kind, name))
        if known is None:
            same = wanted is None
        else:
            same = (wanted, labels, annotations) == (known.status, known.labels, known.annotations)
        if same or not await self._pace():
            return 0.0
        resource = self._resources[kind]
        path = resource.path(name=name)
        if wanted is None:
            self._rests.pop((kind, key), None)
            self._mirrors.pop((kind, name), None)
            await self._api.request("DELETE", path, timeout_s=15)
        else:
            body = {
                "apiVersion": resource.api_version,
                "kind": kind,
                "metadata": {"name": name, "labels": labels, "annotations": annotations}
                | ({"resourceVersion": known.version} if known is not None else {}),
                "status": msgspec.to_builtins(wanted),
            }
            try:
                raw = await self._api.apply(path, body, FIELD_MANAGER)
            except ApiError as err:
                if known is None or err.code not in (404, 409):
                    raise
                self._listed = False  # somebody else has written it, or taken it away
                return _CONFLICT_S
            made = msgspec.json.decode(raw, type=_Written).metadata.resource_version
            self._rests[kind, key] = now + _MIRROR_S
            self._mirrors[kind, name] = _Mirror(wanted, made, labels, annotations)
        self.written += 1
        return 0.0

    async def _clean(self) -> None:
        """Nothing is due: look whether an earlier leader left mirrors of what is no more."""
        self._work.clear()
        if self._serve.ready.is_set():
            try:
                await self._list_mirrors()
                return
            except (ApiError, TimeoutError) as err:
                if isinstance(err, ApiError) and err.code == 404:
                    return  # no such kind: it comes with `akocore install`
                log.warning("event=mirrors_not_listed why=%r", str(err))
        asyncio.get_running_loop().call_later(_AGAIN_S, self._work.set)

    async def _list_mirrors(self) -> None:
        """Once, as a new leader: what mirrors there are; those of nobody go."""
        async with self._listing:
            if self._listed:
                return
            raw = await self._api.request("GET", self._resources["VirtualService"].path())
            services = msgspec.json.decode(raw, type=_VirtualServices).items
            raw = await self._api.request("GET", self._resources["ServiceEngine"].path())
            engines = msgspec.json.decode(raw, type=_ServiceEngines).items
            self._mirrors = {
                (one.KIND, one.metadata.name): _Mirror(
                    one.status,
                    one.metadata.resource_version,
                    one.metadata.labels or {},
                    one.metadata.annotations or {},
                )
                for one in services
            } | {
                (one.KIND, one.metadata.name): _Mirror(
                    one.status, one.metadata.resource_version, {}, {}
                )
                for one in engines
            }
            self._listed = True
        known = {
            "VirtualService": set(map(mirrors.object_name, self._at.placement.services)),
            "ServiceEngine": set(map(mirrors.object_name, self._serve.engine_names)),
        }
        for kind, name in self._mirrors:
            if name not in known[kind]:
                self.touch(kind, name)

    # ── events ──────────────────────────────────────────────────────────────────────────────

    async def _write_event(self, event: Event) -> None:
        kind, _, key = event.object.partition("/")
        obj = self._at.store.all(kind).get(key) if kind in self._resources else None
        if obj is None:
            return  # of akocore itself: it is in the log and in `akocore get events`
        namespace = obj.metadata.namespace or "default"
        now = event.last.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        # The same event of the same object is the same name: it is said once by all lives and
        # replicas together.
        said = "\0".join((obj.metadata.uid, event.type, event.reason, event.note))
        digest = mmh3_x64_128_digest(said.encode()).hex()[:16]
        name = f"{obj.metadata.name[:230].rstrip('.-')}.{digest}"
        body = {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": namespace},
            "eventTime": now,
            "reportingController": _CONTROLLER,
            "reportingInstance": socket.gethostname()[:128],
            "action": "Reconcile",
            "type": event.type,
            "reason": event.reason,
            "note": cut_note(event.note),
            "regarding": {
                "apiVersion": self._resources[kind].api_version,
                "kind": obj.KIND,
                "namespace": obj.metadata.namespace,
                "name": obj.metadata.name,
                "uid": obj.metadata.uid,
            },
        }
        if not await self._pace():
            return
        path = f"/apis/events.k8s.io/v1/namespaces/{namespace}/events"
        try:
            await self._api.request("POST", path, None, orjson.dumps(body), timeout_s=15)
        except (ApiError, TimeoutError) as err:  # an event is news: nobody wants it late
            if isinstance(err, ApiError) and err.code == 409:
                await self._count_event(f"{path}/{name}", now)
            else:
                log.warning("event=event_not_written object=%s why=%r", event.object, str(err))

    async def _count_event(self, path: str, now: str) -> None:
        """It was said before: count it (a series begins with the second)."""
        try:
            found = orjson.loads(await self._api.request("GET", path, timeout_s=15))
            count = ((found.get("series") or {}).get("count") or 1) + 1
            series = {"series": {"count": count, "lastObservedTime": now}}
            await self._api.request(
                "PATCH", path, None, orjson.dumps(series), "application/merge-patch+json", 15
            )
        except (ApiError, TimeoutError) as err:
            log.warning("event=event_not_written object=%s why=%r", path, str(err))


def _looks_like_ours(obj: Ingress) -> bool:
    """Whether a status has our form: each point has an address, and a host of the Ingress."""
    points: tuple[IngressPoint, ...] = obj.status.load_balancer.ingress
    hosts = {rule.host for rule in obj.spec.rules}
    return bool(points) and all(p.ip and (p.hostname in hosts or not p.hostname) for p in points)
