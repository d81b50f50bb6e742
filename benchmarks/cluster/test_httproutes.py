"""HTTPRoutes of 50 namespaces on one Gateway, over a real API server and two real Envoys.

The physical limit of a new route is Envoy's own work for it: the processor time that the two spend
on it, over two.  ``AKOCORE_BENCH``: how many HTTPRoutes (5,000).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import statistics
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import yaml

from akocore.cli.soak import cpu_seconds, memory_mib, percentile
from akocore.kube.api import ApiServer
from akocore.kube.credentials import Credentials
from cluster.control_plane import ADMIN, ControlPlane
from cluster.controller import Controller, install
from cluster.gateway_api import definitions
from cluster.pods import pods
from e2e.running import Client

ROUTES = min(int(os.environ.get("AKOCORE_BENCH", "5000")), 5_000)
NAMESPACES = 50
SAMPLES = 100
FILLERS = 16
GROUP = "/apis/gateway.networking.k8s.io/v1"
GATEWAY = f"{GROUP}/namespaces/default/gateways/web"
Note = Callable[[str], None]

OBJECTS = """
apiVersion: akocore.io/v1alpha1
kind: Network
metadata: {name: vips}
spec: {subnet: 127.10.16.0/24, vipRanges: [{begin: 127.10.16.225, end: 127.10.16.254}]}
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
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: web, namespace: default}
spec:
  gatewayClassName: avi-lb
  listeners:
  - {name: http, port: 80, protocol: HTTP, allowedRoutes: {namespaces: {from: All}}}
"""
SPACE = """
apiVersion: v1
kind: Namespace
metadata: {name: SPACE}
---
apiVersion: v1
kind: Service
metadata: {name: app, namespace: SPACE}
spec: {ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: app, namespace: SPACE, labels: {kubernetes.io/service-name: app}}
addressType: IPv4
ports: [{port: BACKEND_PORT}]
endpoints: [{addresses: [BACKEND]}]
"""


def _host(number: int) -> str:
    return f"app{number}.example.test"


class Bench:
    """A cluster of HTTPRoutes, and what is measured on it."""

    def __init__(self, plane: ControlPlane, api: ApiServer, controller: Controller) -> None:
        self.plane = plane
        self.api = api
        self.controller = controller
        self.next = 0
        self.scratch = controller.directory.parent.parent

    def prepare(self) -> None:
        address, _, port = self.controller.endpoint.partition(":")
        space = SPACE.replace("BACKEND_PORT", port).replace("BACKEND", address)
        spaces = [space.replace("SPACE", f"team-{n}") for n in range(NAMESPACES)]
        items = [one for text in (OBJECTS, *spaces) for one in yaml.safe_load_all(text)]
        self.controller.apply(orjson.dumps({"apiVersion": "v1", "kind": "List", "items": items}))

    async def create(self) -> int:
        self.next += 1
        number = self.next
        namespace = f"team-{number % NAMESPACES}"
        item = {
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "HTTPRoute",
            "metadata": {"name": f"app{number}", "namespace": namespace},
            "spec": {
                "parentRefs": [{"name": "web", "namespace": "default"}],
                "hostnames": [_host(number)],
                "rules": [{"backendRefs": [{"name": "app", "port": 80}]}],
            },
        }
        path = f"{GROUP}/namespaces/{namespace}/httproutes"
        await self.api.request("POST", path, None, orjson.dumps(item))
        return number

    async def grow(self, count: int) -> None:
        async def fill() -> None:
            while self.next < count:
                await self.create()

        await asyncio.gather(*(fill() for _ in range(FILLERS)))

    async def gateway(self) -> dict[str, Any]:
        found: dict[str, Any] = orjson.loads(await self.api.request("GET", GATEWAY))
        return found

    async def attached(self) -> int:
        listeners = (await self.gateway()).get("status", {}).get("listeners", [{}])
        return int(listeners[0].get("attachedRoutes", 0))

    async def until_attached(self, count: int) -> None:
        async with asyncio.timeout(300):
            while await self.attached() != count:
                await asyncio.sleep(0.1)

    async def until_served(self, number: int, address: str) -> None:
        client = Client()
        async with asyncio.timeout(300):
            while await client.get(address, _host(number), "/") != 200:
                await asyncio.sleep(0.0003)
        client.close()

    async def address(self) -> str:
        async with asyncio.timeout(60):
            while True:
                if found := (await self.gateway()).get("status", {}).get("addresses"):
                    return str(found[0]["value"])
                await asyncio.sleep(0.1)

    @asynccontextmanager
    async def writes(self) -> AsyncIterator[list[str]]:
        """The versions that the Gateway gets meanwhile: each is a write of its status."""
        version = (await self.gateway())["metadata"]["resourceVersion"]
        seen: list[str] = []

        async def watch() -> None:
            query = {
                "watch": "true",
                "resourceVersion": version,
                "fieldSelector": "metadata.name=web",
            }
            path = f"{GROUP}/namespaces/default/gateways"
            async for line in self.api.lines(path, query):
                meta = orjson.loads(line)["object"]["metadata"]
                seen.append(meta["resourceVersion"])

        task = asyncio.create_task(watch())
        try:
            yield seen
        finally:
            await asyncio.sleep(1)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


def _ms(times: list[float]) -> str:
    one = sorted(1000 * s for s in times)
    p99 = percentile(one, 0.99)
    return f"p50 {statistics.median(one):.1f} ms, p99 {p99:.1f} ms, max {one[-1]:.1f} ms"


async def _measure(plane: ControlPlane, scratch: Path, endpoint: str, note: Note) -> None:
    found = Credentials(
        server=f"https://127.0.0.1:{plane.port}", authorization=f"Bearer {ADMIN}", verify=False
    )

    async def credentials() -> Credentials:
        return found

    async with ApiServer(credentials) as api:
        controller = Controller(scratch / "life", plane, endpoint)
        bench = Bench(plane, api, controller)
        bench.prepare()
        await controller.start()
        try:
            await _at_size(bench, note)
        finally:
            await controller.stop()


async def _at_size(bench: Bench, note: Note) -> None:
    controller = bench.controller
    address = await bench.address()
    await bench.create()
    await bench.until_served(1, address)
    name = f"{ROUTES} HTTPRoutes in {NAMESPACES} namespaces:"
    async with bench.writes() as seen:
        began = time.perf_counter()
        await bench.grow(ROUTES)
        made = time.perf_counter() - began
        await bench.until_served(bench.next, address)
        served = time.perf_counter() - began
        await bench.until_attached(bench.next)
        told = time.perf_counter() - began
    said = await controller.said()
    note(
        f"{name} created in {made:.1f} s, the last one served {served - made:.2f} s and counted"
        f" {told - made:.2f} s after that; {len(seen)} writes of the Gateway's attachedRoutes,"
        f" {said['statusWritten']} writes in all"
    )
    engines = said["engines"].values()
    async with bench.writes() as seen:
        before, times = sum(map(cpu_seconds, engines)), []
        for _ in range(SAMPLES):
            number = await bench.create()
            began = time.perf_counter()
            await bench.until_served(number, address)
            times.append(time.perf_counter() - began)
            await asyncio.sleep(0.02)
        work = (sum(map(cpu_seconds, engines)) - before) / 2 / SAMPLES
        await bench.until_attached(bench.next)
    note(
        f"{name} created → 200: {_ms(times)}; Envoy's own work {work * 1000:.1f} ms;"
        f" {len(seen)} writes of attachedRoutes for {SAMPLES}"
    )
    await controller.stop()
    began = time.perf_counter()
    again = Controller(bench.scratch / "again", bench.plane, controller.endpoint)
    bench.controller = again
    await again.start()
    try:
        while not again.log.exists() or again.log.read_text().count("event=se_ready") < 2:
            await asyncio.sleep(0.01)
        boot = time.perf_counter() - began
        pid = (await again.said())["pid"]
        note(f"{name} boot → all served {boot:.2f} s; RSS {memory_mib(pid):.0f} MiB")
        await bench.until_served(bench.next, await bench.address())
    finally:
        await again.stop()


def test_httproutes(tmp_path: Path, note: Note) -> None:
    """A new route, many at once, a boot: at 5,000 HTTPRoutes."""
    plane = ControlPlane(tmp_path / "plane")
    try:
        plane.start()
        install(plane)
        plane.kubectl("apply", "--server-side", "-f", definitions())
        for kind in ("gateways", "gatewayclasses", "httproutes"):
            crd = f"crd/{kind}.gateway.networking.k8s.io"
            plane.kubectl("wait", "--for=condition=Established", crd)
        with pods() as endpoint:
            asyncio.run(_measure(plane, tmp_path, endpoint, note))
    finally:
        plane.stop()
