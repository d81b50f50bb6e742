"""A directory of manifests, akocore over it with real Envoys, and a client of its VIPs."""

from __future__ import annotations

import asyncio
import socket
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
from aiohttp import web

from akocore import status
from akocore.config import load_config
from akocore.engines.envoy.process import find_envoy
from akocore.serve import Serve, of_directory

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

GATEWAY_CLASS = """
---
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: avi-lb}
spec:
  controllerName: ako.vmware.com/avi-lb
  parametersRef: {group: ako.vmware.com, kind: AviInfraSetting, name: critical.infra}
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

    def app(self, name: str, host: str, path: str = "/", tls: str = "") -> None:
        """Service, EndpointSlice and Ingress ``name``; ``tls``: with this Secret."""
        text = APP.replace("NAME", name).replace("HOST", host).replace("PATH", path)
        if tls:
            text += f'  tls: [{{hosts: ["{host}"], secretName: {tls}}}]\n'
        self.write(f"{name}.yaml", text.replace("BACKEND", str(self.backend)))

    def addresses(self) -> dict[str, str]:
        """Host → address, as status says."""
        return {
            point["hostname"]: point["ip"]
            for item in status.ingresses(self.serve.reconciler)
            for point in item["status"]["loadBalancer"]["ingress"]
        }

    async def get(self, address: str, host: str, path: str = "/", *, redirects: bool = True) -> int:
        url = f"http://{address}:{80 + self.offset}{path}"
        async with self.client.get(
            url, headers={"Host": host}, allow_redirects=redirects
        ) as answer:
            return answer.status

    async def until(self, true: Callable[[], bool], seconds: float = 30) -> None:
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


@asynccontextmanager
async def house_over(scratch: Path, more: str = "") -> AsyncIterator[House]:
    """A house over the empty directory ``scratch/d``, and one backend for all of its apps.

    ``more``: of its configuration.
    """

    async def answer(_request: web.Request) -> web.Response:
        return web.Response(text="ok")

    backend = web.AppRunner(app := web.Application())
    app.router.add_get("/{path:.*}", answer)
    await backend.setup()
    # Not below scratch: a unix socket's path has 107 bytes, and an engine's name is part of it.
    with (
        socket.create_server(("127.0.0.1", 0)) as listening,
        tempfile.TemporaryDirectory(prefix="ako-") as short,
    ):
        await web.SockSite(backend, listening).start()
        directory = scratch / "d"
        directory.mkdir()
        config = scratch / "config.yaml"
        config.write_text(f"moveGraceSeconds: 1\n{more}")
        offset = 9000
        serve = Serve(
            of_directory(directory), Path(short) / "s", load_config(config), find_envoy(), offset
        )
        async with aiohttp.ClientSession() as client:
            made = House(serve, directory, client)
            made.backend, made.offset = listening.getsockname()[1], offset
            task = asyncio.create_task(serve.run())
            await asyncio.wait_for(serve.ready.wait(), 10)
            yield made
            await client.close()  # else the engines wait for its connections to end
            serve.stop()
            await asyncio.wait_for(task, 30)
        await backend.cleanup()
