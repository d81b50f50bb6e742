"""Gateways whose VIPs are announced: the walkthrough's, line by line, and one of v1."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from lab.rhi_house import HOST, PEER, House, network, setting

pytestmark = pytest.mark.real

LABELS = {
    "ako.vmware.com/gateway-namespace": "default",
    "ako.vmware.com/gateway-name": "avi-alb-gw",
}
VS = "my-cluster--default-avi-alb-gw"


def gateway(*ports: int, address: str = "") -> list[dict[str, Any]]:
    routes = {"selector": {"matchLabels": LABELS}, "group": "v1", "kind": "Service"}
    spec: dict[str, Any] = {
        "gatewayClassName": "critical-gwc",
        "listeners": [{"protocol": "TCP", "port": port, "routes": routes} for port in ports],
    }
    if address:
        spec["addresses"] = [{"type": "IPAddress", "value": address}]
    return [
        {
            "apiVersion": "networking.x-k8s.io/v1alpha1",
            "kind": "GatewayClass",
            "metadata": {"name": "critical-gwc"},
            "spec": {
                "controller": "ako.vmware.com/avi-lb",
                "parametersRef": {
                    "group": "ako.vmware.com",
                    "kind": "AviInfraSetting",
                    "name": "critical.infra",
                },
            },
        },
        {
            "apiVersion": "networking.x-k8s.io/v1alpha1",
            "kind": "Gateway",
            "metadata": {"name": "avi-alb-gw"},
            "spec": spec,
        },
    ]


def service(name: str, port: int, kind: str = "LoadBalancer") -> list[dict[str, Any]]:
    return [
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": name, "labels": LABELS if kind == "LoadBalancer" else {}},
            "spec": {"type": kind, "ports": [{"port": port, "targetPort": 8080}]},
        },
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {"name": name, "labels": {"kubernetes.io/service-name": name}},
            "addressType": "IPv4",
            "ports": [{"port": 8080}],
            "endpoints": [{"addresses": [f"10.10.20.{n}"]} for n in (11, 12, 13)],
        },
    ]


async def test_the_walkthroughs_gateway_is_announced_and_takes_an_address_of_its_own(
    house: House,
) -> None:
    vip, asked = "10.10.16.224", "10.10.16.232"
    house.write("networks", network("uplink", "10.10.16", "224"))
    house.write("setting", setting(rhi=True))
    house.write("gateway", *gateway(80))

    async def addresses() -> list[str]:
        said = await house.get("gateway", "avi-alb-gw")
        return [one["value"] for one in said.get("addresses", ())]

    async def has(address: str) -> bool:
        return await addresses() == [address]

    await house.until(lambda: has(vip))  # before there is any Service
    house.write("hello", *service("hello", 80))
    await house.until_ways(vip, 192, 193)
    assert set(await house.requests(vip, 20)) == {"200"}

    house.write("gateway", *gateway(8080, 80))
    house.write("hello8080", *service("hello8080", 8080))

    async def external(name: str) -> Any:
        return (await house.get("service", name)).get("loadBalancer", {}).get("ingress")

    async def shared() -> bool:
        both = [await external(name) for name in ("hello", "hello8080")]
        return all(points and points[0]["ip"] == vip for points in both)

    await house.until(shared)
    assert set(await house.requests(vip, 20, 8080)) == {"200"}
    assert set(await house.requests(vip, 20)) == {"200"}

    house.write("gateway", *gateway(8080, 80, address=asked))
    await house.until_ways(asked, 192, 193)
    await house.until(lambda: has(asked))
    assert set(await house.requests(asked, 20, 8080)) == {"200"}
    await house.until_ways(vip)  # nobody is told the old way any more
    said = await house.get("gateway", "avi-alb-gw")
    assert [one["ready"] for one in said["listeners"]] == [True, True]


async def test_a_gateway_of_v1_is_announced_with_its_routes(house: House) -> None:
    vip = "10.10.16.224"
    group = "gateway.networking.k8s.io/v1"
    house.write("networks", network("uplink", "10.10.16", "224"))
    house.write("setting", setting(rhi=True))
    house.write("hello", *service("hello", 80, "ClusterIP"))
    house.write(
        "gateway",
        {
            "apiVersion": group,
            "kind": "GatewayClass",
            "metadata": {"name": "avi-lb"},
            "spec": {
                "controllerName": "ako.vmware.com/avi-lb",
                "parametersRef": {
                    "group": "ako.vmware.com",
                    "kind": "AviInfraSetting",
                    "name": "critical.infra",
                },
            },
        },
        {
            "apiVersion": group,
            "kind": "Gateway",
            "metadata": {"name": "web"},
            "spec": {
                "gatewayClassName": "avi-lb",
                "listeners": [{"name": "http", "port": 80, "protocol": "HTTP"}],
            },
        },
        {
            "apiVersion": group,
            "kind": "HTTPRoute",
            "metadata": {"name": "hello"},
            "spec": {
                "parentRefs": [{"name": "web"}],
                "hostnames": [HOST],
                "rules": [{"backendRefs": [{"name": "hello", "port": 80}]}],
            },
        },
    )
    await house.until_ways(vip, 192, 193)
    assert set(await house.requests(vip, 20)) == {"200"}
    house.write("setting", setting(rhi=False))
    await house.until_ways(vip)


async def test_a_service_of_both_families_is_announced_in_both(house: House) -> None:
    first, second = "10.10.16.224", "fd00:10:10:16::224"
    six = network("uplink6", "", "", bgp=False)
    peer = PEER | {"address": "fd00:10:10:16::250"}
    six["spec"] = {
        "subnet": "fd00:10:10:16::/64",
        "vipRanges": [{"begin": second, "end": "fd00:10:10:16::249"}],
        "bgp": {"localAs": 5000, "peers": [peer]},
    }
    both = setting(rhi=True)
    both["spec"]["network"]["names"] = ["uplink", "uplink6"]
    house.write("networks", network("uplink", "10.10.16", "224"), six)
    house.write("setting", both)
    hello = service("hello", 80)
    hello[0]["metadata"] = {
        "name": "hello",
        "annotations": {"aviinfrasetting.ako.vmware.com/name": "critical.infra"},
    }

    async def is_served(*addresses: str) -> bool:
        said = (await house.get("service", "hello")).get("loadBalancer", {})
        return [one["ip"] for one in said.get("ingress") or ()] == list(addresses)

    async def is_announced(vip: str, hops: int) -> bool:
        return len(await house.topology.next_hops(vip)) == hops

    for policy, families in (("RequireDualStack", ["IPv4", "IPv6"]), ("SingleStack", ["IPv4"])):
        hello[0]["spec"] |= {"ipFamilyPolicy": policy, "ipFamilies": families}
        house.write("hello", *hello)
        vips = [first, second][: len(families)]
        await house.until(partial(is_served, *vips))
        for vip in (first, second):
            await house.until(partial(is_announced, vip, 2 if vip in vips else 0))
        for vip in vips:
            assert set(await house.requests(vip, 20)) == {"200"}
