"""Gateways and HTTPRoutes of a directory of manifests, through real Envoys."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import yaml

from akocore import status_gateway
from e2e.house import House, house_over

CLASS = """
apiVersion: akocore.io/v1alpha1
kind: Network
metadata: {name: vips}
spec: {subnet: 127.10.78.0/24, vipRanges: [{begin: 127.10.78.225, end: 127.10.78.254}]}
---
apiVersion: ako.vmware.com/v1alpha1
kind: AviInfraSetting
metadata: {name: critical.infra}
spec: {network: {names: [vips]}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: avi-lb}
spec:
  controllerName: ako.vmware.com/avi-lb
  parametersRef: {group: ako.vmware.com, kind: AviInfraSetting, name: critical.infra}
"""
GATEWAY = """
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: web}
spec:
  gatewayClassName: avi-lb
  listeners:
  - {name: http, port: 80, protocol: HTTP}
"""
ROUTE = """
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: hello}
spec:
  parentRefs: [{name: web}]
  hostnames: [hello.example.test]
  rules:
  - matches: [{path: {type: PathPrefix, value: /app}}]
    backendRefs: [{name: hello, port: 80}]
"""
SERVICE = """
apiVersion: v1
kind: Service
metadata: {name: hello}
spec: {ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: hello, labels: {kubernetes.io/service-name: hello}}
addressType: IPv4
ports: [{port: BACKEND}]
endpoints: [{addresses: [127.0.0.1]}]
"""


@pytest_asyncio.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[House]:
    async with house_over(tmp_path) as house:
        house.write("class.yaml", CLASS)
        house.write("hello.yaml", SERVICE.replace("BACKEND", str(house.backend)))
        yield house


def vip(house: House, name: str = "default/web") -> str:
    said = status_gateway.gateway(house.serve.reconciler, name)
    return said.addresses[0] if said is not None and said.addresses else ""


def conditions(house: House, kind: str, key: str) -> dict[str, Any]:
    ((_, said),) = status_gateway.route(house.serve.reconciler, (kind, key))
    return {one.type: (one.true, one.reason) for one in said}


async def test_a_route_of_a_gateway_is_served_at_its_vip(gateway: House) -> None:
    gateway.write("gateway.yaml", GATEWAY)
    gateway.write("route.yaml", ROUTE)
    await gateway.until(lambda: bool(vip(gateway)))
    address = vip(gateway)
    assert address == "127.10.78.225"
    await gateway.until_status(address, "hello.example.test", 200, "/app/x")
    assert await gateway.get(address, "hello.example.test", "/other") == 404
    assert await gateway.get(address, "other.example.test", "/app") == 404
    assert conditions(gateway, "HTTPRoute", "default/hello") == {
        "Accepted": (True, "Accepted"),
        "ResolvedRefs": (True, "ResolvedRefs"),
    }


async def test_explain_tells_why_a_gateway_and_its_routes_are_where_they_are(
    gateway: House,
) -> None:
    gateway.write("gateway.yaml", GATEWAY)
    gateway.write("route.yaml", ROUTE)
    lost = ROUTE.replace("name: hello}", "name: lost}").replace(
        "name: hello, port", "name: x, port"
    )
    gateway.write("lost.yaml", lost)
    await gateway.until(lambda: bool(vip(gateway)))
    at = gateway.serve.reconciler
    found = status_gateway.explain(at, "gateway", "default/web")
    assert found is not None
    assert (found["by"], found["setting"]["name"]) == ("GatewayClass avi-lb", "critical.infra")
    assert found["virtualService"]["vip"] == vip(gateway)
    (port,) = found["ports"]
    assert (port["listener"], port["serves"], port["attachedRoutes"]) == ("http", "HTTP/80 *", 2)
    found = status_gateway.explain(at, "httproute", "default/hello")
    assert found is not None
    assert found["hosts"] == {"Gateway default/web, listener http": ["hello.example.test"]}
    (rule,) = found["rules"]
    assert rule["match"] == "prefix /app"
    assert rule["backends"][0]["servers"] == [f"127.0.0.1:{gateway.backend}"]
    found = status_gateway.explain(at, "httproute", "default/lost")
    assert found is not None
    assert "BackendNotFound" in found["parents"][0]["wrong"][0]
    assert status_gateway.explain(at, "gateway", "default/nobody") is None
    assert status_gateway.explain(at, "tcproute", "default/hello") is None


async def test_an_edit_of_a_route_is_followed_while_the_gateway_stays(gateway: House) -> None:
    gateway.write("gateway.yaml", GATEWAY)
    gateway.write("route.yaml", ROUTE)
    await gateway.until(lambda: bool(vip(gateway)))
    address = vip(gateway)
    await gateway.until_status(address, "hello.example.test", 200, "/app")
    gateway.write("route.yaml", ROUTE.replace("hello.example.test", '"*.example.test"'))
    await gateway.until_status(address, "a.b.example.test", 200, "/app")
    gateway.write("route.yaml", ROUTE.replace("name: hello, port", "name: nobody, port"))
    await gateway.until_status(address, "hello.example.test", 500, "/app")
    found = conditions(gateway, "HTTPRoute", "default/hello")
    assert found["ResolvedRefs"] == (False, "BackendNotFound")
    (gateway.directory / "route.yaml").unlink()
    await gateway.until_status(address, "hello.example.test", 404, "/app")
    (gateway.directory / "gateway.yaml").unlink()
    await gateway.until(lambda: not gateway.serve.reconciler.placement.services, 20)
    await asyncio.sleep(0)


@pytest.mark.parametrize("hosts", [("a.example.test", ""), ("*.example.test", "a.example.test")])
async def test_a_request_is_for_the_most_specific_listener_alone(
    gateway: House, hosts: tuple[str, str]
) -> None:
    listeners = "".join(
        f'  - {{name: l{i}, port: 80, protocol: HTTP, hostname: "{host}"}}\n'.replace(
            ', hostname: ""', ""
        )
        for i, host in enumerate(hosts)
    )
    gateway.write("gateway.yaml", GATEWAY.partition("  - {name: http")[0] + listeners)
    wide = hosts.index(min(hosts, key=lambda host: (host[:1] not in ("", "*"), len(host))))
    route = ROUTE.replace("{name: web}", f"{{name: web, sectionName: l{wide}}}")
    gateway.write("route.yaml", route.replace("[hello.example.test]", "[]"))
    await gateway.until(lambda: bool(vip(gateway)))
    address = vip(gateway)
    await gateway.until_status(address, "b.example.test", 200, "/app")
    assert await gateway.get(address, "a.example.test", "/app") == 404


async def test_a_route_with_a_thousand_matches_is_served_and_a_bad_one_hurts_its_rule(
    gateway: House,
) -> None:
    """As a directory may have it; an API server admits 128 matches in a route."""
    rules = [
        {
            "matches": [{"path": {"value": f"/p{rule}-{i}"}} for i in range(63)],
            "backendRefs": [{"name": "hello", "port": 80}],
        }
        for rule in range(16)
    ]
    rules[7]["matches"].append({"path": {"type": "RegularExpression", "value": "("}})  # type: ignore[arg-type]
    route = yaml.safe_load(ROUTE)
    route["spec"]["rules"] = rules
    gateway.write("gateway.yaml", GATEWAY)
    gateway.write("route.yaml", yaml.safe_dump(route))
    await gateway.until(lambda: bool(vip(gateway)))
    address, host = vip(gateway), "hello.example.test"
    for path in ("/p0-0", "/p8-31", "/p15-62"):
        await gateway.until_status(address, host, 200, path)
    assert await gateway.get(address, host, "/p7-0") == 404
    assert conditions(gateway, "HTTPRoute", "default/hello") == {
        "Accepted": (True, "Accepted"),
        "ResolvedRefs": (True, "ResolvedRefs"),
        "PartiallyInvalid": (True, "UnsupportedValue"),
    }
