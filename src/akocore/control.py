"""What a running akocore answers on its control socket: gRPC, JSON in and JSON out.

``akocore.v1alpha1.Control/Get``, ``/Explain`` and ``/Scale``.
The socket is our user's alone: Service Engines, which parse what strangers send, have their own.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import grpc
import msgspec
import orjson

from akocore import status, status_gateway, status_l4
from akocore.engines.agent.messages import Report
from akocore.engines.envoy.process import EngineError, not_confined
from akocore.kube.gateway_objects import ROUTE_KINDS
from akocore.place.scale import FOLLOWS_OBJECTS
from akocore.shown import quoted
from akocore.unix_server import UnixServer

if TYPE_CHECKING:
    from akocore.serve import Serve

__all__ = ["CONTROL_SOCKET", "Control"]

CONTROL_SOCKET: Final = "control.sock"
"""Its name in the state directory."""

_SERVICE = "akocore.v1alpha1.Control"
_ROUTES = {kind.KIND.lower(): kind.KIND for kind in ROUTE_KINDS}


class Control:
    """The answers of one akocore."""

    def __init__(self, serve: Serve, socket: Path) -> None:
        self._serve = serve
        self._server = UnixServer(socket)

    async def start(self) -> None:
        await self._server.start(self._service())

    async def stop(self) -> None:
        await self._server.stop()

    def _service(self) -> grpc.GenericRpcHandler:
        method: Any = grpc.unary_unary_rpc_method_handler
        methods = {
            "Get": method(self._get),
            "Explain": method(self._explain),
            "Scale": method(self._scale),
        }
        return grpc.method_handlers_generic_handler(_SERVICE, methods)

    async def _get(self, request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        kind = (await _asked(request, context, _Get)).kind
        serve, at = self._serve, self._serve.reconciler
        items: list[dict[str, Any]]
        match kind:
            case "ingress":
                items = status.ingresses(at)
            case "vs":
                items = self._virtual_services()
            case "pools":
                items = status.pools(at) + status_l4.pools(at)
            case "gateway":
                items = status_l4.gateways(at) + status_gateway.gateways(at)
            case "httproute" | "grpcroute" | "tlsroute" | "tcproute" | "udproute":
                items = status_gateway.routes(at, _ROUTES[kind])
            case "service":
                items = status_l4.services(at)
            case "se":
                items = await self._service_engines()
            case "seconfig":
                items = serve.routes.configurations() if serve.routes is not None else []
            case "aviinfrasetting":
                items = status.settings(at)
            case "network":
                items = status.networks(at)
            case "serviceenginegroup":
                items = status.groups(at)
            case "events":
                items = status.events(serve.events)
            case "akocore":
                items = [self._self()]
            case "files":
                items = self._files()
            case _:
                await context.abort(
                    grpc.StatusCode.INVALID_ARGUMENT, f"kind {quoted(kind)} is unknown"
                )
        return orjson.dumps({"items": items})

    def _virtual_services(self) -> list[dict[str, Any]]:
        at, routes = self._serve.reconciler, self._serve.routes
        items = status.virtual_services(at)
        if routes is not None:
            for item in items:
                if "fault" in item:
                    continue
                routes.judge(at.placement.services[item["metadata"]["name"]], item["status"])
        return items

    async def _service_engines(self) -> list[dict[str, Any]]:
        serve = self._serve
        requests = await self._requests()
        running, agents = serve.engines.running, serve.agents()
        items = status.service_engines(serve.reconciler, running, requests, agents)
        reports = serve.external.routers.reports() if serve.external is not None else {}
        bounds = serve.engines.bounds
        said = [one for one in (bounds.cut, not_confined(bounds)) if one]
        for item in items:
            if "fault" in item:
                continue
            name = item["metadata"]["name"]
            if serve.routes is not None:
                item["status"]["routing"] = serve.routes.shown(name)
            if (report := reports.get(name)) is not None:
                item["status"] |= _reported(report)
            elif name in running:
                item["status"] |= {"connectionLimit": bounds.connections, "bounds": said}
                if running[name].pid is not None:
                    with suppress(EngineError):
                        item["status"]["overflows"] = await serve.engines.admin(name).overflows()
        return items

    async def _requests(self) -> dict[str, dict[str, int]]:
        engines, out = self._serve.engines, {}
        for name, process in engines.running.items():
            if process.pid is not None:
                try:
                    out[name] = await engines.admin(name).requests_by_virtual_service()
                except EngineError:
                    continue  # it is starting or ending; its state says so
        return out

    def _files(self) -> list[dict[str, Any]]:
        """What is wrong in which file."""
        return [
            {
                "metadata": {"name": path},
                "object": r.object,
                "field": r.field,
                "line": r.line,
                "reason": r.reason,
                "remedy": r.remedy,
            }
            for path, refusals in sorted(self._serve.file_refusals.items())
            for r in refusals
        ]

    def _self(self) -> dict[str, Any]:
        """This process, for who watches it."""
        serve, sink = self._serve, self._serve.sink
        return {
            "metadata": {"name": "akocore"},
            "status": {
                "pid": os.getpid(),
                "ingresses": len(serve.reconciler.store.all("Ingress")),
                "hosts": len(serve.reconciler.hosts),
                "vips": serve.reconciler.placement.homes_of.total(),
                "leads": serve.lead is None or serve.lead.held,
                "batches": serve.batches,
                "moving": serve.unsettled,
                "nacks": serve.ads.nacks,
                "statusWaiting": sink.waiting if sink is not None else 0,
                "eventsWaiting": sink.events_waiting if sink is not None else 0,
                "statusWritten": sink.written if sink is not None else 0,
                "engines": {n: e.pid for n, e in serve.engines.running.items()},
            },
        }

    async def _scale(
        self, request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]
    ) -> bytes:
        """Have a virtual service on more or fewer Service Engines: ``by`` or ``to``.

        In a cluster that is for who asks to write: ``annotate`` is the AviInfraSetting.
        """
        asked = await _asked(request, context, _Scale)
        at = self._serve.reconciler
        service = at.placement.services.get(asked.vs)
        if service is None:
            return orjson.dumps({"refused": f"there is no virtual service {quoted(asked.vs)}."})
        group = service.infra.group
        before = at.scale.wanted(service.name, group)
        number = asked.to if asked.to is not None else before + asked.by
        if (no := at.scale.to(service.name, group, number)) is not None:
            if no.reason == FOLLOWS_OBJECTS and service.infra.setting:
                annotated = {"annotate": service.infra.setting, "before": before, "wanted": number}
                return orjson.dumps(annotated)
            self._serve.events.say(no.object, "Warning", no.reason, no.remedy)
            return orjson.dumps({"refused": no.remedy})
        note = f"from {before} to {number} Service Engines"
        self._serve.events.say(f"VirtualService/{service.name}", "Normal", "Scaled", note)
        await self._serve.scaled(service.name)
        return orjson.dumps({"before": before, "wanted": number})

    async def _explain(
        self, request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]
    ) -> bytes:
        at = self._serve.reconciler
        asked = await _asked(request, context, dict[str, str])
        if len(asked) != 1:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "ask for one object at a time")
        ((kind, key),) = asked.items()
        if kind == "ingress":
            return orjson.dumps(status.explain(at, key))
        if (found := status_gateway.explain(at, kind, key)) is not None:
            return orjson.dumps(found)
        return orjson.dumps(status_l4.explain(at, kind, key))


class _Get(msgspec.Struct):
    kind: str


class _Scale(msgspec.Struct):
    vs: str
    to: int | None = None
    by: int = 0


_Question = TypeVar("_Question")


async def _asked(
    request: bytes,
    context: grpc.aio.ServicerContext[bytes, bytes],
    kind: type[_Question],
) -> _Question:
    """What a request asks; one that asks nothing of the kind ends here."""
    try:
        return msgspec.json.decode(request, type=kind)
    except (msgspec.MsgspecError, RecursionError, UnicodeError) as err:
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, quoted(err))
        raise  # never: the call is over


def _reported(report: Report) -> dict[str, Any]:
    """What an agent says of its Envoy, for the status of a Service Engine."""
    return {
        "restarts": report.restarts,
        "lastExit": report.last_exit,
        "alive": report.alive,
        "leaving": report.leaving,
        "requests": sum(report.requests.values()),
        "overflows": dict(report.overflows),
        "requestsByVirtualService": dict(report.requests),
        "connections": report.connections,
        "cpu": report.cpu,
        "problems": list(report.problems),
        "connectionLimit": report.connection_limit or None,
        "bounds": list(report.bounds),
        **({"handover": _handover(report)} if report.ring else {}),
    }


def _handover(report: Report) -> dict[str, Any]:
    """Whom it hands flows over to, and what came of it since its rules are there."""
    packets = msgspec.to_builtins(report.handed) if report.handed is not None else {}
    return {
        "ring": [f"{one.name} {one.address}" for one in report.ring],
        "flows": report.flows,
        **packets,
    }
