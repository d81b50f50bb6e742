"""A directory of manifests, real Envoys, a real client."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import aiohttp
import pytest_asyncio
from aiohttp import web

from akocore import status
from akocore.config import load_config
from akocore.engines.envoy.process import find_envoy
from akocore.serve import Serve

CLASS = """
apiVersion: akocore.io/v1alpha1
kind: Network
metadata: {name: vips}
spec: {subnet: 127.10.77.0/24, vipRanges: [{begin: 127.10.77.225, end: 127.10.77.254}]}
---
apiVersion: ako.vmware.com/v1alpha1
kind: AviInfraSetting
metadata: {name: critical.infra}
spec: {network: {names: [vips]}, l7Settings: {shardSize: SIZE}}
---
apiVersion: networking.k8s.io/v1
kind: IngressClass
metadata: {name: critical-ic}
spec:
  controller: ako.vmware.com/avi-lb
  parameters: {apiGroup: ako.vmware.com, kind: AviInfraSetting, name: critical.infra}
"""

APP = """
apiVersion: v1
kind: Service
metadata: {name: NAME}
spec: {ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: NAME, labels: {kubernetes.io/service-name: NAME}}
addressType: IPv4
ports: [{port: BACKEND}]
endpoints: [{addresses: [127.0.0.1]}]
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: NAME}
spec:
  ingressClassName: critical-ic
  rules:
  - host: "HOST"
    http:
      paths:
      - path: PATH
        pathType: Prefix
        backend: {service: {name: NAME, port: {number: 80}}}
"""

LARGE = [
    {1, 9, 14},
    {2, 17},
    {3, 16},
    {4, 11, 19},
    {5, 10, 18},
    {6, 13},
    {8, 15, 20},
    {7, 12},
]
MEDIUM = [{1, 5, 9, 10, 14, 18}, {2, 6, 13, 17}, {3, 7, 12, 16}, {4, 8, 11, 15, 19, 20}]


class House:
    """A running akocore over ``directory``, and a client of its VIPs."""

    def __init__(self, serve: Serve, directory: Path, client: aiohttp.ClientSession) -> None:
        self.serve = serve
        self.directory = directory
        self.client = client
        self.backend = 0
        self.offset = 0

    def write(self, name: str, text: str) -> None:
        (self.directory / name).write_text(text)

    def app(self, name: str, host: str, path: str = "/") -> None:
        text = APP.replace("NAME", name).replace("HOST", host).replace("PATH", path)
        self.write(f"{name}.yaml", text.replace("BACKEND", str(self.backend)))

    def addresses(self) -> dict[str, str]:
        """Host → address, as status says."""
        return {
            point["hostname"]: point["ip"]
            for item in status.ingresses(self.serve.reconciler)
            for point in item["status"]["loadBalancer"]["ingress"]
        }

    async def get(self, address: str, host: str, path: str = "/") -> int:
        url = f"http://{address}:{80 + self.offset}{path}"
        async with self.client.get(url, headers={"Host": host}) as answer:
            return answer.status

    async def until(self, true: Callable[[], bool], seconds: float = 10) -> None:
        async with asyncio.timeout(seconds):
            while not true():
                await asyncio.sleep(0.02)

    async def until_status(self, address: str, host: str, wanted: int, path: str = "/") -> None:
        async with asyncio.timeout(10):
            while True:
                try:
                    if await self.get(address, host, path) == wanted:
                        return
                except aiohttp.ClientError:
                    pass
                await asyncio.sleep(0.02)


@pytest_asyncio.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async def answer(_request: web.Request) -> web.Response:
        return web.Response(text="ok")

    backend = web.AppRunner(app := web.Application())
    app.router.add_get("/{path:.*}", answer)
    await backend.setup()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        await web.SockSite(backend, listening).start()
        directory = tmp_path / "d"
        directory.mkdir()
        config = tmp_path / "config.yaml"
        config.write_text("moveGraceSeconds: 1\n")
        offset = 9000
        serve = Serve(directory, tmp_path / "s", load_config(config), find_envoy(), offset)
        async with aiohttp.ClientSession() as client:
            made = House(serve, directory, client)
            made.backend, made.offset = listening.getsockname()[1], offset
            task = asyncio.create_task(serve.run())
            await asyncio.wait_for(serve.ready.wait(), 10)
            yield made
            serve.stop()
            await asyncio.wait_for(task, 30)
        await backend.cleanup()


def grouped(addresses: dict[str, str]) -> list[set[int]]:
    groups: dict[str, set[int]] = {}
    for host, address in addresses.items():
        groups.setdefault(address, set()).add(int(host.split(".")[0].removeprefix("hello")))
    return sorted(groups.values(), key=min)


async def test_the_walkthroughs_hosts_group_as_it_prints_and_move_without_a_lost_request(
    house: House,
) -> None:
    house.write("class.yaml", CLASS.replace("SIZE", "LARGE"))
    for i in range(1, 21):
        house.app(f"hello{i}", f"hello{i}.avi.iberia.local")
    await house.until(lambda: len(house.addresses()) == 20)
    assert grouped(house.addresses()) == sorted(LARGE, key=min)
    for host, address in house.addresses().items():
        await house.until_status(address, host, 200)

    answers: list[int] = []
    done = asyncio.Event()

    async def load() -> None:
        while not done.is_set():
            for host, address in house.addresses().items():
                answers.append(await house.get(address, host))

    task = asyncio.create_task(load())
    house.write("class.yaml", CLASS.replace("SIZE", "MEDIUM"))
    await house.until(lambda: grouped(house.addresses()) == sorted(MEDIUM, key=min))
    await asyncio.sleep(0.3)
    house.write("class.yaml", CLASS.replace("SIZE", "SMALL"))
    await house.until(lambda: grouped(house.addresses()) == [set(range(1, 21))])
    await asyncio.sleep(0.3)
    done.set()
    await task
    assert len(answers) > 100
    assert set(answers) == {200}


async def test_hosts_match_whatever_their_case_and_wildcards_stand_for_one_label(
    house: House,
) -> None:
    house.write("class.yaml", CLASS.replace("SIZE", "SMALL"))
    house.app("exact", "a.w.test")
    house.app("wild", "*.w.test", "/only")
    await house.until(lambda: len(house.addresses()) == 2)
    vip = house.addresses()["a.w.test"]
    await house.until_status(vip, "a.w.test", 200)
    assert await house.get(vip, "A.W.Test") == 200
    assert await house.get(vip, "b.w.test", "/only/this") == 200
    assert await house.get(vip, "b.w.test", "/onlythat") == 404
    assert await house.get(vip, "c.b.w.test", "/only") == 404
    assert await house.get(vip, "elsewhere.test") == 404


async def test_a_broken_object_says_why_and_hurts_no_other(house: House) -> None:
    house.write("class.yaml", CLASS.replace("SIZE", "SMALL"))
    house.app("good", "good.test")
    house.app("bad", "Bad.test:80")
    await house.until(lambda: "good.test" in house.addresses())
    await house.until_status(house.addresses()["good.test"], "good.test", 200)
    refused = status.ingress_refusals(house.serve.reconciler, "default/bad")
    assert [(r.field, r.reason) for r in refused] == [("spec.rules[0].host", "InvalidHost")]
    house.write("good.yaml", "kind: [")
    await asyncio.sleep(0.3)
    assert await house.get(house.addresses()["good.test"], "good.test") == 200
    assert house.serve.ads.nacks == 0
