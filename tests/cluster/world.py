"""All that a controller has made of a cluster: what its Envoys run, what every object says.

The one comparison of all tests of faults: whatever happened, the world must be what a clean boot
makes of the same objects.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from cluster.controller import Controller

World = dict[str, Any]

_KINDS = "ingress,services,gateways.networking.x-k8s.io,aviinfrasettings,virtualservices,vsvips"


async def _envoy(socket: Path) -> World:
    """What one Envoy runs, when it drains nothing: resources by name, without versions."""
    connector = aiohttp.UnixConnector(path=str(socket))
    async with aiohttp.ClientSession(connector=connector) as session, asyncio.timeout(60):
        while True:
            async with session.get("http://envoy/config_dump") as answer:
                configs = json.loads(await answer.read())["configs"]
            listeners = [one for part in configs for one in part.get("dynamic_listeners", ())]
            if not any("draining_state" in one or "warming_state" in one for one in listeners):
                break
            await asyncio.sleep(0.2)
    out: World = {f"listener {one['name']}": one["active_state"]["listener"] for one in listeners}
    for part in configs:
        for one in part.get("dynamic_active_clusters", ()):
            out[f"cluster {one['cluster']['name']}"] = one["cluster"]
        for scopes in part.get("dynamic_scoped_route_configs", ()):
            for one in scopes.get("scoped_route_configs", ()):
                # What makes the bytes of one that was in doubt others.
                one.get("route_configuration", {}).pop("metadata", None)
                out[f"scope {one['name']}"] = one
    return out


def _said(item: dict[str, Any]) -> Any:
    """What an object says, without what a later boot may say otherwise."""
    status = item.get("status", item.get("spec"))
    for condition in status.get("conditions", ()):
        condition.pop("lastTransitionTime", None)
    return status


async def world(controller: Controller) -> World:
    """The world as it is when nothing moves any more."""
    await controller.until_settled()
    engines: World = {}
    for name in await controller.engines():
        engines[name] = await _envoy(controller.state / "engines" / name / "admin")
    raw = await asyncio.to_thread(controller.plane.kubectl, "get", _KINDS, "-A", "-o", "json")
    said = {
        f"{item['kind']} {item['metadata'].get('namespace', '')}/{item['metadata']['name']}": _said(
            item
        )
        for item in json.loads(raw)["items"]
        if item["metadata"]["name"] != "kubernetes"  # the API server's own, which comes and goes
    }
    return {"engines": engines, "said": said}


def difference(one: World, other: World, path: str = "") -> list[str]:
    """Where two worlds differ, a line each."""
    if isinstance(one, dict) and isinstance(other, dict):
        out = []
        for key in sorted({*one, *other}):
            if key not in one or key not in other:
                out.append(f"{path}/{key}: only {'after' if key in one else 'on a clean boot'}")
            else:
                out += difference(one[key], other[key], f"{path}/{key}")
        return out
    return [] if one == other else [f"{path}: {one!r}, on a clean boot {other!r}"]


async def assert_as_on_a_clean_boot(controller: Controller) -> None:
    """Compare with what a controller without a past makes of the same cluster."""
    after = await world(controller)
    assert bool(after["engines"]) == bool((await controller.said())["vips"])
    await controller.stop()
    shutil.rmtree(controller.state)
    await controller.start()
    clean = await world(controller)
    found = difference(after, clean)
    if found:
        pytest.fail("\n".join(found[:20]) + "\n" + controller.log.read_text()[-2000:])
