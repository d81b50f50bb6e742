"""Two that AKO would call alike are both served, and nobody moves: asked with requests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest_asyncio

from e2e.running import Backend, Client, Running

VICTIM, OTHER = "buy.test", "eu-buy.test"


def setting(name: str, net: str) -> str:
    return f"""
apiVersion: akocore.io/v1alpha1
kind: Network
metadata: {{name: net-{name}}}
spec: {{subnet: {net}.0/24, vipRanges: [{{begin: {net}.10, end: {net}.99}}]}}
---
apiVersion: ako.vmware.com/v1alpha1
kind: AviInfraSetting
metadata: {{name: {name}}}
spec: {{network: {{names: [net-{name}]}}, l7Settings: {{shardSize: DEDICATED}}}}
---
apiVersion: networking.k8s.io/v1
kind: IngressClass
metadata: {{name: {name}}}
spec:
  controller: ako.vmware.com/avi-lb
  parameters: {{apiGroup: ako.vmware.com, kind: AviInfraSetting, name: {name}}}
---
"""


class House:
    """A running akocore, and a backend for each namespace that answers with a status of its own."""

    def __init__(self, running: Running, ports: dict[str, int]) -> None:
        self.running = running
        self.ports = ports

    def service(self, key: str, answers: int, **spec: Any) -> list[dict[str, Any]]:
        namespace, _, name = key.partition("/")
        meta = {"name": name, "namespace": namespace}
        labels = {"kubernetes.io/service-name": name}
        return [
            {"apiVersion": "v1", "kind": "Service", "metadata": meta}
            | {"spec": {"ports": [{"port": 80}], **spec}},
            {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice"}
            | {"metadata": {**meta, "labels": labels}, "addressType": "IPv4"}
            | {"endpoints": [{"addresses": ["127.0.0.1"]}]}
            | {"ports": [{"port": self.ports[str(answers)]}]},
        ]

    def host(self, key: str, host: str, by: str, answers: int) -> None:
        namespace, _, name = key.partition("/")
        backend = {"service": {"name": name, "port": {"number": 80}}}
        http = {"paths": [{"path": "/", "pathType": "Prefix", "backend": backend}]}
        made = {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "Ingress",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {"ingressClassName": by, "rules": [{"host": host, "http": http}]},
        }
        self.write(key, [*self.service(key, answers), made])

    def balancer(self, key: str, answers: int) -> None:
        self.write(key, self.service(key, answers, type="LoadBalancer"))

    def write(self, key: str, items: list[dict[str, Any]]) -> None:
        name = key.replace("/", "_")
        self.running.write(f"{name}.json", {"kind": "List", "items": items})

    async def vip(self, host: str) -> str:
        async with asyncio.timeout(20):
            while host not in (shown := await self.running.addresses()):
                await asyncio.sleep(0.02)
        return shown[host]

    async def balanced(self, key: str) -> str:
        """The address that a Service of type LoadBalancer has."""
        async with asyncio.timeout(20):
            while True:
                for one in await self.running.ask("service"):
                    meta, points = one["metadata"], one["status"]["loadBalancer"]["ingress"]
                    if f"{meta['namespace']}/{meta['name']}" == key and points:
                        return str(points[0]["ip"])
                await asyncio.sleep(0.05)

    async def until(self, address: str, host: str, answers: int) -> None:
        client = Client()
        async with asyncio.timeout(20):
            while await client.get(address, host) != answers:
                client.close()
                await asyncio.sleep(0.05)
        client.close()


def answering(status: int) -> type[Backend]:
    answer = Backend.ANSWER.replace(b"200 OK", f"{status} Fine".encode())
    return type(f"Answers{status}", (Backend,), {"ANSWER": answer})


@pytest_asyncio.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    loop = asyncio.get_running_loop()
    servers = {
        str(status): await loop.create_server(answering(status), "127.0.0.1", 0)
        for status in (210, 211, 212, 213)
    }
    ports = {name: one.sockets[0].getsockname()[1] for name, one in servers.items()}
    running = Running(tmp_path, ports["210"])
    running.config = "moveGraceSeconds: 0.5\n"
    running.write("prod.yaml", setting("prod", "127.20.1") + setting("prod-eu", "127.20.2"))
    async with running:
        yield House(running, ports)
    for one in servers.values():
        one.close()


async def test_who_comes_later_is_served_beside_and_the_first_keeps_its_address(
    house: House,
) -> None:
    house.host("shop/web", VICTIM, "prod-eu", 210)
    house.balancer("a-b/c", 211)
    first = await house.vip(VICTIM), await house.balanced("a-b/c")
    assert first[0].startswith("127.20.2.")
    await house.until(first[0], VICTIM, 210)
    client, answers = Client(), set()
    house.host("evil/web", OTHER, "prod", 212)
    house.balancer("a/b-c", 213)
    second = await house.vip(OTHER), await house.balanced("a/b-c")
    assert second[0].startswith("127.20.1.")
    for _ in range(100):  # longer than an address that moved would serve on
        answers.add(await client.get(first[0], VICTIM))
        await asyncio.sleep(0.02)
    client.close()
    assert answers == {210}

    async def all_as_they_were() -> None:
        assert (await house.vip(VICTIM), await house.balanced("a-b/c")) == first
        assert (await house.vip(OTHER), await house.balanced("a/b-c")) == second
        for address, host, status in (
            (first[0], VICTIM, 210),
            (first[1], "any.test", 211),
            (second[0], OTHER, 212),
            (second[1], "any.test", 213),
        ):
            await house.until(address, host, status)

    await all_as_they_were()
    await house.running.stop()
    await house.running.start()
    await all_as_they_were()
