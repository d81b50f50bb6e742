"""A controller over a directory of manifests, and a lab that it drives: for tests of RHI."""

from __future__ import annotations

import asyncio
import sys
import textwrap
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import orjson

from akocore.config import Config
from akocore.engines.frr.config import Vip
from akocore.kube.objects import ServiceEngineGroupSpec
from akocore.lab.fleet import Fleet
from akocore.lab.topology import Topology, sweep
from akocore.serve import Serve, of_directory

GROUP = "SE-Group-AKO-CRITICAL"
VS = "my-cluster--Shared-L7-critical.infra-0"
SES = [f"{GROUP}-se-{n}" for n in (1, 2, 3)]
HOST = "hello.avi.iberia.local"
PEER = {
    "address": "10.10.16.250",
    "remoteAs": 6000,
    "bfd": True,
    "connectTimer": 1,
    "keepaliveTimer": 3,
    "holdTimer": 9,
}


def network(name: str, subnet: str, begin: str, bgp: bool = True) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "subnet": f"{subnet}.0/24",
        "vipRanges": [{"begin": f"{subnet}.{begin}", "end": f"{subnet}.249"}],
    }
    if bgp:
        spec["bgp"] = {"localAs": 5000, "peers": [PEER]}
    return {
        "apiVersion": "akocore.io/v1alpha1",
        "kind": "Network",
        "metadata": {"name": name},
        "spec": spec,
    }


def setting(rhi: bool, name: str = "uplink") -> dict[str, Any]:
    return {
        "apiVersion": "ako.vmware.com/v1alpha1",
        "kind": "AviInfraSetting",
        "metadata": {"name": "critical.infra"},
        "spec": {
            "seGroup": {"name": GROUP},
            "network": {"names": [name], **({"enableRhi": True} if rhi else {})},
            "l7Settings": {"shardSize": "SMALL"},
        },
    }


def app() -> list[dict[str, Any]]:
    return [
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "IngressClass",
            "metadata": {"name": "critical-ic"},
            "spec": {
                "controller": "ako.vmware.com/avi-lb",
                "parameters": {
                    "apiGroup": "ako.vmware.com",
                    "kind": "AviInfraSetting",
                    "name": "critical.infra",
                },
            },
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "hello"},
            "spec": {"ports": [{"port": 80, "targetPort": 8080}]},
        },
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {"name": "hello", "labels": {"kubernetes.io/service-name": "hello"}},
            "addressType": "IPv4",
            "ports": [{"port": 8080}],
            "endpoints": [{"addresses": [f"10.10.20.{n}"]} for n in (11, 12, 13)],
        },
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "Ingress",
            "metadata": {"name": "hello"},
            "spec": {
                "ingressClassName": "critical-ic",
                "rules": [
                    {
                        "host": HOST,
                        "http": {
                            "paths": [
                                {
                                    "path": "/",
                                    "pathType": "Prefix",
                                    "backend": {
                                        "service": {"name": "hello", "port": {"number": 80}}
                                    },
                                }
                            ]
                        },
                    }
                ],
            },
        },
    ]


class House:
    """A controller over a directory of manifests, and the lab that it drives."""

    def __init__(self, topology: Topology, serve: Serve, manifests: Path) -> None:
        self.topology = topology
        self.serve = serve
        self.manifests = manifests

    def write(self, name: str, *objects: dict[str, Any]) -> None:
        part = self.manifests / f".{name}.part"
        part.write_bytes(orjson.dumps({"kind": "List", "items": objects}))
        part.replace(self.manifests / f"{name}.json")

    async def ask(self, method: str, **question: Any) -> Any:
        import grpc

        async with grpc.aio.insecure_channel(f"unix:{self.serve.control_socket}") as channel:
            call: Any = channel.unary_unary(f"/akocore.v1alpha1.Control/{method}")
            return orjson.loads(await call(orjson.dumps(question)))

    async def get(self, kind: str, name: str) -> dict[str, Any]:
        items = (await self.ask("Get", kind=kind))["items"]
        found: dict[str, Any] = {i["metadata"]["name"]: i["status"] for i in items}.get(name, {})
        return found

    async def until(self, true: Callable[[], Any]) -> None:
        try:
            async with asyncio.timeout(15):
                while not await true():  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
        except TimeoutError:
            for kind in ("vs", "se", "aviinfrasetting", "network", "events"):
                print(kind, orjson.dumps(await self.ask("Get", kind=kind)).decode())
            raise

    async def until_ways(self, vip: str, *last: int) -> None:
        wanted = {f"10.10.16.{n}" for n in last}

        async def there() -> bool:
            return {h.address for h in await self.topology.next_hops(vip)} == wanted

        await self.until(there)

    async def until_status(self, kind: str, name: str, **wanted: Any) -> None:
        async def there() -> bool:
            said = await self.get(kind, name)
            return all(said.get(key) == value for key, value in wanted.items())

        await self.until(there)

    async def requests(self, vip: str, count: int, port: int = 80) -> list[str]:
        """What the client gets for ``count`` requests, each on a connection of its own."""
        code = textwrap.dedent(f"""
            import socket
            for _ in range({count}):
                did = "connect"
                try:
                    with socket.create_connection(("{vip}", {port}), 5) as one:
                        did = f"request-from-port-{{one.getsockname()[1]}}"
                        one.sendall(b"GET / HTTP/1.1\\r\\nhost: {HOST}\\r\\n\\r\\n")
                        print(one.recv(4096).split()[1].decode())
                except OSError as err:
                    print(f"{{type(err).__name__}}-in-{{did}}")
        """)
        out = await self.topology.namespaces.run("client", [sys.executable, "-c", code])
        return out.split()


async def as_from_scratch(serve: Serve) -> None:
    """What routers were told change by change is what they would be told by a look at all of it."""
    routes = serve.routes
    assert routes is not None

    def told() -> dict[str, dict[str, Vip]]:
        names = serve.engines.running
        return {name: {v.address: v for v in routes.announcements.vips(name)} for name in names}

    for _ in range(40):  # while moves go on, time changes it, too
        before = told()
        routes.announcements.all_changed()
        routes.announcements.follow()
        if before == told():
            return
        await asyncio.sleep(0.1)
    assert before == told()


@asynccontextmanager
async def house_over(topology: Topology, directory: Path, envoy: Any) -> AsyncIterator[House]:
    """The controller runs until the end, and nothing of the lab is left then."""
    manifests = directory / "manifests"
    manifests.mkdir()
    group = ServiceEngineGroupSpec(min_se_per_vs=2, max_se_per_vs=3, max_se=3)
    config = Config(
        move_grace_seconds=0.5, service_engine_groups={"Default-Group": group, GROUP: group}
    )
    task = None
    try:
        await topology.up(0)
        serve = Serve(
            of_directory(manifests),
            directory / "s",
            config,
            envoy,
            engines=partial(Fleet, topology),
        )
        task = asyncio.create_task(serve.run())
        ready = asyncio.create_task(serve.ready.wait())
        await asyncio.wait([task, ready], return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        yield House(topology, serve, manifests)
        await as_from_scratch(serve)
        serve.stop()
        await asyncio.wait_for(task, 20)
    finally:
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        topology.release()
        await sweep(directory / "lab", topology.plan.prefix)
