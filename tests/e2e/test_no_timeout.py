"""A timeout of 0 that a route asks for: Envoy waits for an answer however long it takes.

It would end a silent request after minutes by itself, so what is asked is the engines' own word;
that a silent request lives on is asked for in `test_edge`, with short limits.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path
from typing import Any

import aiohttp

from e2e.house import CLASS, GATEWAY_CLASS, House, house_over

GATEWAY = """
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: web}
spec:
  gatewayClassName: avi-lb
  listeners:
  - {name: http, port: 80, protocol: HTTP}
"""
ROUTE = """
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: NAME}
spec:
  parentRefs: [{name: web}]
  hostnames: [NAME.test]
  rules: [{TIMEOUTS backendRefs: [{name: app, port: 80}]}]
"""
SAID = {
    "whole": ("timeouts: {request: 0s},", "0s"),
    "both": ("timeouts: {request: 0s, backendRequest: 0s},", "0s"),
    "attempt": ("timeouts: {backendRequest: 0s},", "0s"),
    "nothing": ("", None),  # as the setting of its Gateway says
    "hours": ("timeouts: {request: 2h},", "7201s"),
}


async def hosts_of_an_engine(house: House) -> dict[str, dict[str, Any]]:
    """Host → what the engine does with the first route of it."""
    name = "Default-Group-se-1"
    socket = house.serve.engines.admin(name)._path
    async with (
        aiohttp.UnixConnector(path=str(socket)) as connector,
        aiohttp.ClientSession(connector=connector) as session,
        session.get("http://envoy/config_dump?resource=dynamic_scoped_route_configs") as answer,
    ):
        dump = json.loads(await answer.text() or "{}")  # it begins
    scopes = [
        one for part in dump.get("configs", ()) for one in part.get("scoped_route_configs", ())
    ]
    found = {}
    for host in (f"{name}.test" for name in SAID):
        for scope in scopes:
            if any(one.get("string_key") == host for one in scope["key"]["fragments"]):
                (virtual,) = scope["route_configuration"]["virtual_hosts"]
                found[host] = virtual["routes"][0]["route"]
    return found


async def test_a_timeout_of_0_that_is_asked_for_has_no_other_in_its_place(tmp_path: Path) -> None:
    async with house_over(tmp_path) as house:
        house.write("class.yaml", CLASS.replace("SIZE", "SMALL") + GATEWAY_CLASS + GATEWAY)
        house.app("app", "app.test")
        for name, (text, _) in SAID.items():
            house.write(f"{name}.yaml", ROUTE.replace("NAME", name).replace("TIMEOUTS", text))
        found: dict[str, dict[str, Any]] = {}
        async with asyncio.timeout(30):
            while not {f"{name}.test" for name in SAID} <= found.keys():
                await asyncio.sleep(0.1)
                with contextlib.suppress(aiohttp.ClientError):
                    found = await hosts_of_an_engine(house)
    idle = {name: found[f"{name}.test"].get("idle_timeout") for name in SAID}
    assert idle == {name: wanted for name, (_, wanted) in SAID.items()}
    assert {found[f"{name}.test"]["timeout"] for name in SAID if name != "hours"} == {"0s"}
