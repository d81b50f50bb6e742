"""Takes back what a controller has written and made, when it goes for good."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final

import orjson

from akocore.kube.api import ApiError, ApiServer, resources
from akocore.kube.authority import CA_CONFIG_MAP, SECRET
from akocore.kube.gateway_objects import GATEWAY_API
from akocore.kube.objects import OWN_KINDS

__all__ = ["CONFIG_MAP", "CONTROLLERS", "LEASE", "uninstall"]

CONTROLLERS = "app.kubernetes.io/name=akocore,app.kubernetes.io/component=controller"
_MADE = "app.kubernetes.io/managed-by=akocore"
CONFIG_MAP, LEASE = "akocore-accepted", "akocore"
_MANAGER = "akocore"
_WAIT_S = 60.0
# What a status becomes whose fields a CustomResourceDefinition doesn't let go.
_ROUTES = ("HTTPRoute", "GRPCRoute", "TLSRoute", "TCPRoute", "UDPRoute")
_ACCEPTED: Final[dict[str, Any]] = {"status": "", "error": "", "conditions": []}
_EMPTY: Mapping[str, dict[str, Any]] = {
    "AviInfraSetting": _ACCEPTED,
    "Network": _ACCEPTED,
    "Gateway": {"addresses": [], "conditions": [], "listeners": []},
    "GatewayClass": {"conditions": []},
    "BackendTLSPolicy": {"ancestors": []},
    **{kind: {"parents": []} for kind in _ROUTES},
}
_TOLD = (
    *("Ingress", "Service", "Gateway", "GatewayClass", "AviInfraSetting", "Network"),
    *(f"{kind}.{GATEWAY_API}" for kind in ("GatewayClass", "Gateway")),
    *("ListenerSet", *_ROUTES, "BackendTLSPolicy"),
)


def _ours(item: dict[str, Any]) -> bool:
    return any(
        one.get("manager") == _MANAGER and one.get("subresource") == "status"
        for one in item["metadata"].get("managedFields", ())
    )


async def uninstall(api: ApiServer, namespace: str, say: Callable[[str], None]) -> None:
    """Give back every status that is ours, and delete what we made in the cluster.

    Waits first until no controller runs in ``namespace``: it would write all of it again.
    Raises `ApiError`; may be run again.
    """
    home = f"namespaces/{namespace}"
    deadline = time.monotonic() + _WAIT_S
    while pods := await _controllers(api, home):
        if time.monotonic() > deadline:
            names = ", ".join(pod["metadata"]["name"] for pod in pods)
            raise ApiError(0, "ControllerRuns", f"{names} in {namespace}; stop it first")
        await asyncio.sleep(0.5)
    known = resources()
    for kind in _TOLD:
        resource = known[kind]
        count = 0
        for item in await _items(api, resource.path()):
            if _ours(item):
                meta = {
                    k: item["metadata"][k] for k in ("name", "namespace") if k in item["metadata"]
                }
                body = {
                    "apiVersion": resource.api_version,
                    "kind": resource.kind.KIND,
                    "metadata": meta,
                    "status": _EMPTY.get(kind, {}),
                }
                path = resource.path(meta.get("namespace", ""), meta["name"], "status")
                await api.apply(path, body, _MANAGER)
                count += 1
        if count:
            say(f"status of {count} {resource.plural} taken back")
    for own in OWN_KINDS:
        await _delete(api, known[own.KIND].path())
        say(f"{known[own.KIND].plural} deleted")
    for path in _made(home):
        await _delete(api, path, {"labelSelector": _MADE})
    await _delete(api, f"/api/v1/{home}/secrets/{SECRET}")
    for item in await _items(api, f"/api/v1/{home}/configmaps"):
        name = item["metadata"]["name"]
        if name.startswith(CONFIG_MAP) or name == CA_CONFIG_MAP:
            await _delete(api, f"/api/v1/{home}/configmaps/{name}")
    await _delete(api, f"/apis/coordination.k8s.io/v1/{home}/leases/{LEASE}")
    say(f"workloads, certificates and memory in {namespace} deleted")


async def _controllers(api: ApiServer, home: str) -> list[dict[str, Any]]:
    """Pods that run; not one whose time to leave is over: its node is gone."""
    now = datetime.now(UTC)
    return [
        pod
        for pod in await _items(api, f"/api/v1/{home}/pods", {"labelSelector": CONTROLLERS})
        if (until := pod["metadata"].get("deletionTimestamp")) is None
        or datetime.fromisoformat(until) > now
    ]


def _made(home: str) -> Iterator[str]:
    yield f"/apis/apps/v1/{home}/statefulsets"
    yield f"/apis/policy/v1/{home}/poddisruptionbudgets"
    yield f"/api/v1/{home}/secrets"


async def _items(
    api: ApiServer, path: str, query: Mapping[str, str] | None = None
) -> list[dict[str, Any]]:
    """What there is; nothing of a kind that the API server doesn't know."""
    try:
        found: list[dict[str, Any]] = orjson.loads(await api.request("GET", path, query))["items"]
    except ApiError as err:
        if err.code != 404:
            raise
        return []
    return found


async def _delete(api: ApiServer, path: str, query: Mapping[str, str] | None = None) -> None:
    try:
        await api.request("DELETE", path, query)
    except ApiError as err:
        if err.code != 404:
            raise
