"""Status and events, back to the cluster: one write for each real change, at a bounded rate.

What is written is computed at the moment of writing from what the engines have acknowledged; a
write that fails is computed again when it is tried again.  Server-side apply (KEP-555) under our
own field manager, so nobody else's fields are touched.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import OrderedDict
from typing import Any

import msgspec
import orjson

from akocore import status
from akocore.events import Event
from akocore.kube.api import ApiError, ApiServer, Resource, resources
from akocore.kube.objects import Ingress
from akocore.reconcile import Reconciler

__all__ = ["FIELD_MANAGER", "StatusWriter"]

log = logging.getLogger(__name__)

FIELD_MANAGER = "akocore"
_CONTROLLER = "akocore.io/controller"
_WORKERS = 8
_APPLY = "application/apply-patch+yaml"  # JSON is YAML


class StatusWriter:
    """Writes the status of what `touch` names.  ``qps``: writes a second at most.

    Settings go before Ingresses, Ingresses before events.
    """

    def __init__(self, api: ApiServer, at: Reconciler, qps: float = 500) -> None:
        self._api = api
        self._at = at
        self._gap_s = 1 / qps
        self._next = 0.0
        self._due: dict[str, OrderedDict[str, None]] = {
            "AviInfraSetting": OrderedDict(),
            "Ingress": OrderedDict(),
        }
        self._events: list[Event] = []
        self._mine: set[str] = set()  # Ingresses that carry a status of ours
        self._work = asyncio.Event()
        self._resources: dict[str, Resource] = resources()
        self.written = 0

    @property
    def waiting(self) -> int:
        """How many writes are due."""
        return sum(map(len, self._due.values())) + len(self._events)

    def touch(self, kind: str, key: str) -> None:
        self._due[kind][key] = None
        self._work.set()

    def event(self, event: Event) -> None:
        """An event that was said for the first time."""
        if len(self._events) < 10_000:
            self._events.append(event)
            self._work.set()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(_WORKERS):
                tasks.create_task(self._worker())

    async def _worker(self) -> None:
        while True:
            await self._work.wait()
            for kind, due in self._due.items():
                if due:
                    key, _ = due.popitem(last=False)
                    await self._try(kind, key)
                    break
            else:
                if self._events:
                    await self._write_event(self._events.pop(0))
                else:
                    self._work.clear()

    async def _try(self, kind: str, key: str) -> None:
        try:
            if kind == "Ingress":
                await self._write_ingress(key)
            else:
                await self._write_setting(key)
        except (ApiError, TimeoutError) as err:
            if isinstance(err, ApiError) and err.code == 404:
                return  # it is gone, and so is its status
            log.warning("event=status_not_written object=%s/%s why=%r", kind, key, str(err))
            wait = err.retry_after_s if isinstance(err, ApiError) else 0.0
            loop = asyncio.get_running_loop()
            loop.call_later(max(wait, 0.5), self.touch, kind, key)

    async def _pace(self) -> None:
        now = asyncio.get_running_loop().time()
        at = self._next = max(self._next + self._gap_s, now)
        if at > now:
            await asyncio.sleep(at - now)

    async def _apply(self, kind: str, key: str, wanted: dict[str, Any]) -> None:
        await self._pace()
        resource = self._resources[kind]
        namespace, _, name = key.rpartition("/")
        meta = {"name": name, **({"namespace": namespace} if namespace else {})}
        body = {"apiVersion": resource.api_version, "kind": kind, "metadata": meta, **wanted}
        await self._api.request(
            "PATCH",
            resource.path(namespace, name, "status"),
            {"fieldManager": FIELD_MANAGER, "force": "true"},
            orjson.dumps(body),
            _APPLY,
            timeout_s=15,
        )
        self.written += 1

    # ── Ingresses ───────────────────────────────────────────────────────────────────────────

    async def _write_ingress(self, key: str) -> None:
        obj = self._at.store.ingress(key)
        if obj is None:
            self._mine.discard(key)
            return
        wanted = self._points(key, obj)
        has = [(p.hostname, p.ip) for p in obj.status.load_balancer.ingress]
        if wanted is None or [(p["hostname"], p["ip"]) for p in wanted] == has:
            return
        await self._apply("Ingress", key, {"status": {"loadBalancer": {"ingress": wanted}}})
        self._mine.add(key)

    def _points(self, key: str, obj: Ingress) -> list[dict[str, str]] | None:
        """``status.loadBalancer.ingress`` as it must be; None: not ours to say."""
        said = status.ingress(self._at, key)
        if said is None:
            return [] if key in self._mine else None
        points: list[dict[str, str]] = said["status"]["loadBalancer"]["ingress"]
        # An engine that is away for a moment, or has not come back to us yet after our own
        # restart, serves on: an address stays until the host is served elsewhere or nowhere.
        named = {point["hostname"] for point in points}
        for point in obj.status.load_balancer.ingress:
            placed = self._at.hosts.get(point.hostname)
            if placed is None or point.hostname in named:
                continue
            home = self._at.placement.services[placed.shown].shown
            if home is not None and home.address == point.ip:
                points.append({"ip": point.ip, "hostname": point.hostname})
        order = {host: i for i, host in enumerate(said["spec"]["hosts"])}
        return sorted(points, key=lambda point: order.get(point["hostname"], 0))

    # ── settings ────────────────────────────────────────────────────────────────────────────

    async def _write_setting(self, key: str) -> None:
        obj = self._at.store.setting(key)
        if obj is None:
            return
        refusals = self._at.setting_refusals.get(key, ())
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
            await self._apply("AviInfraSetting", key, {"status": wanted})

    # ── events ──────────────────────────────────────────────────────────────────────────────

    async def _write_event(self, event: Event) -> None:
        kind, _, key = event.object.partition("/")
        obj = self._at.store.all(kind).get(key) if kind in self._resources else None
        if obj is None:
            return  # of akocore itself: it is in the log and in `akocore get events`
        namespace = obj.metadata.namespace or "default"
        body = {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"generateName": f"{obj.metadata.name}-", "namespace": namespace},
            "eventTime": event.last.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "reportingController": _CONTROLLER,
            "reportingInstance": socket.gethostname()[:128],
            "action": "Reconcile",
            "type": event.type,
            "reason": event.reason,
            "note": event.note[:1024],
            "regarding": {
                "apiVersion": self._resources[kind].api_version,
                "kind": kind,
                "namespace": obj.metadata.namespace,
                "name": obj.metadata.name,
                "uid": obj.metadata.uid,
            },
        }
        await self._pace()
        path = f"/apis/events.k8s.io/v1/namespaces/{namespace}/events"
        try:
            await self._api.request("POST", path, None, orjson.dumps(body), timeout_s=15)
        except (ApiError, TimeoutError) as err:  # an event is news: nobody wants it late
            log.warning("event=event_not_written object=%s why=%r", event.object, str(err))
