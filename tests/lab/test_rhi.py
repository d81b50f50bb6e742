"""Route health injection: the controller drives Service Engines of the lab, end to end."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import textwrap
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest

from akocore.config import Config
from akocore.engines.envoy.process import EngineError, Envoy, find_envoy
from akocore.engines.frr.process import Frr
from akocore.kube.objects import ServiceEngineGroupSpec
from akocore.lab.fleet import Fleet
from akocore.lab.topology import Plan, Topology, sweep
from akocore.serve import Serve, of_directory
from frr.conftest import PREFIX

pytestmark = pytest.mark.real

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

        async with grpc.aio.insecure_channel(f"unix:{self.serve.ads.socket}") as channel:
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

    async def requests(self, vip: str, count: int) -> list[str]:
        """What the client gets for ``count`` requests, each on a connection of its own."""
        code = textwrap.dedent(f"""
            import socket
            for _ in range({count}):
                did = "connect"
                try:
                    with socket.create_connection(("{vip}", 80), 5) as one:
                        did = f"request-from-port-{{one.getsockname()[1]}}"
                        one.sendall(b"GET / HTTP/1.1\\r\\nhost: {HOST}\\r\\n\\r\\n")
                        print(one.recv(4096).split()[1].decode())
                except OSError as err:
                    print(f"{{type(err).__name__}}-in-{{did}}")
        """)
        out = await self.topology.namespaces.run("client", [sys.executable, "-c", code])
        return out.split()


@pytest.fixture
async def house(
    request: pytest.FixtureRequest,
    frr: Frr,
    directory: Path,
    require_real: Callable[[bool, str], None],
) -> AsyncIterator[House]:
    """``request.param``: what of the lab's plan is to be otherwise."""
    try:
        envoy = find_envoy()
    except EngineError as err:
        require_real(False, str(err))
        raise
    plan = Plan(prefix=f"{PREFIX}r-", **getattr(request, "param", {}))
    topology = Topology(directory / "lab", frr, plan)
    manifests = directory / "manifests"
    manifests.mkdir()
    group = ServiceEngineGroupSpec(min_se_per_vs=2, max_se_per_vs=3, max_se=3)
    config = Config(
        move_grace_seconds=0.5, service_engine_groups={"Default-Group": group, GROUP: group}
    )
    async with _serving(topology, directory, envoy, config, manifests) as serve:
        yield House(topology, serve, manifests)


@asynccontextmanager
async def _serving(
    topology: Topology, directory: Path, envoy: Any, config: Config, manifests: Path
) -> AsyncIterator[Serve]:
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
        yield serve
        serve.stop()
        await asyncio.wait_for(task, 20)
    finally:
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        topology.release()
        await sweep(directory / "lab", topology.plan.prefix)


async def test_the_walkthroughs_story_of_rhi(house: House) -> None:
    vip = "10.10.16.224"
    house.write("networks", network("uplink", "10.10.16", "224"))
    house.write("setting", setting(rhi=False))
    house.write("app", *app())
    await house.until_status("vs", VS, vip=vip, state="up", serviceEngines=SES[:2])
    assert await house.topology.next_hops(vip) == ()  # it is served, and nobody is told

    house.write("setting", setting(rhi=True))
    await house.until_ways(vip, 192, 193)
    assert set(await house.requests(vip, 20)) == {"200"}
    await house.until_status("vs", VS, state="up", announcedBy=SES[:2])

    assert await house.ask("Scale", vs=VS, by=1) == {"before": 2, "wanted": 3}
    await house.until_ways(vip, 192, 193, 194)
    assert set(await house.requests(vip, 20)) == {"200"}
    said = await house.ask("Scale", vs=VS, by=1)
    assert "has maxSePerVs 3" in said["refused"]

    await house.ask("Scale", vs=VS, to=2)
    await house.until_ways(vip, 192, 193)
    assert set(await house.requests(vip, 20)) == {"200"}

    house.write("setting", setting(rhi=False))
    await house.until_ways(vip)


async def test_an_envoy_that_is_killed_takes_its_route_with_it(house: House) -> None:
    vip = "10.10.16.224"
    house.write("networks", network("uplink", "10.10.16", "224"))
    house.write("setting", setting(rhi=True))
    house.write("app", *app())
    await house.until_ways(vip, 192, 193)
    engines = house.serve.engines
    process = engines.running[SES[0]]
    assert process.pid is not None
    engines._envoy = Envoy(Path("/no/envoy"), "1.40.0")  # so that it stays down
    os.kill(process.pid, signal.SIGKILL)
    await house.until_ways(vip, 193)
    assert await house.requests(vip, 20) == ["200"] * 20
    await house.until_status("vs", VS, state="degraded", serviceEngines=[SES[1]])
    assert "1 of 2 Service Engines" in (await house.get("vs", VS))["why"]
    engines._envoy = find_envoy()
    await house.until_ways(vip, 192, 193)
    await house.until_status("vs", VS, state="up")


async def test_an_envoy_that_hangs_takes_its_route_with_it(house: House) -> None:
    vip = "10.10.16.224"
    house.write("networks", network("uplink", "10.10.16", "224"))
    house.write("setting", setting(rhi=True))
    house.write("app", *app())
    await house.until_ways(vip, 192, 193)
    process = house.serve.engines.running[SES[0]]
    assert process.pid is not None
    os.kill(process.pid, signal.SIGSTOP)
    try:
        await house.until_ways(vip, 193)
        assert await house.requests(vip, 20) == ["200"] * 20
    finally:
        os.kill(process.pid, signal.SIGCONT)
    await house.until_ways(vip, 192, 193)


async def test_a_network_moves_live_and_the_old_address_goes_last(house: House) -> None:
    old, new = "10.10.16.224", "10.10.17.224"
    house.write(
        "networks",
        network("uplink", "10.10.16", "224"),
        network("other", "10.10.17", "224"),
        network("quiet", "10.10.18", "224", bgp=False),
    )
    house.write("setting", setting(rhi=True))
    house.write("app", *app())
    await house.until_ways(old, 192, 193)
    house.write("setting", setting(rhi=True, name="other"))
    await house.until_status("vs", VS, vip=new)
    routing = [(await house.get("se", name))["routing"] for name in SES[:2]]
    assert any(f"{new}/32" in one["advertised"] for one in routing)  # before status said so
    await house.until_ways(new, 192, 193)
    assert set(await house.requests(new, 20)) == {"200"}
    await house.until_ways(old)

    # What can't be announced is refused, and what was accepted goes on.
    house.write("setting", setting(rhi=True, name="quiet"))
    await house.until_status("aviinfrasetting", "critical.infra", status="Rejected")
    said = await house.get("aviinfrasetting", "critical.infra")
    assert "Network quiet has no bgp: give it localAs and peers" in said["error"]
    await house.until_ways(new, 192, 193)

    await house.serve.routes.look()  # type: ignore[union-attr]
    said = await house.get("se", SES[0])
    assert said["routing"]["address"] == "10.10.16.192"
    assert said["routing"]["advertised"] == [f"{new}/32"]
    assert [(s["peer"], s["state"]) for s in said["routing"]["bgp"]] == [
        ("10.10.16.250", "Established")
    ]
    events = (await house.ask("Get", kind="events"))["items"]
    assert (f"ServiceEngine/{SES[0]}", "BgpUp") in {(e["regarding"], e["reason"]) for e in events}


KEPT = textwrap.dedent(f"""
    import socket, sys
    kept = []
    for line in sys.stdin:
        word, *rest = line.split()
        if word == "open":
            for _ in range(int(rest[0])):
                one = socket.create_connection(("10.10.16.224", 80), 5)
                one.settimeout(5)
                kept.append(one)
        elif word == "close":
            for one in kept:
                one.close()
            kept = []
        whole = []
        for one in kept:
            try:
                one.sendall(b"GET / HTTP/1.1\\r\\nhost: {HOST}\\r\\n\\r\\n")
                if one.recv(4096).startswith(b"HTTP/1.1 200"):
                    whole.append(one)
            except OSError:
                pass
        print(len(kept) - len(whole), flush=True)
        kept = whole
""")


@pytest.mark.parametrize("house", [{"handover": True}], indirect=True, ids=["handover"])
async def test_scaling_by_the_controller_breaks_no_connection(house: House) -> None:
    vip = "10.10.16.224"
    house.write("networks", network("uplink", "10.10.16", "224"))
    house.write("setting", setting(rhi=True))
    house.write("app", *app())
    await house.until_ways(vip, 192, 193)
    client = await asyncio.create_subprocess_exec(
        *house.topology.namespaces.command("client", [sys.executable, "-c", KEPT]),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )

    async def tell(words: str) -> int:
        assert client.stdin is not None
        assert client.stdout is not None
        client.stdin.write(f"{words}\n".encode())
        return int(await asyncio.wait_for(client.stdout.readline(), 60))

    async def ring() -> set[str]:
        there = [e.name for e in house.topology.engines.values()]
        rings = [house.topology.handover(name).ring for name in there]
        return {member.name for one in rings if one is not None for member in one.members}

    try:
        assert await tell("open 100") == 0
        await house.ask("Scale", vs=VS, by=1)
        await house.until_ways(vip, 192, 193, 194)
        assert await tell("ask") == 0
        assert await tell("open 100") == 0
        await house.ask("Scale", vs=VS, to=2)
        await house.until_ways(vip, 192, 193)
        for _ in range(3):
            assert await tell("ask") == 0
            await asyncio.sleep(0.3)
        assert len(await ring()) == 3  # who leaves still owns some
        await tell("close")

        async def left() -> bool:
            return len(house.topology.engines) == 2 and len(await ring()) == 2

        await house.until(left)

        # A Service Engine that dies is asked no more.
        engines = house.serve.engines
        process = engines.running[SES[0]]
        assert process.pid is not None
        engines._envoy = Envoy(Path("/no/envoy"), "1.40.0")
        os.kill(process.pid, signal.SIGKILL)
        await house.until_ways(vip, 193)
        last = house.topology.handover("se-2").ring
        assert last is not None
        assert [member.name for member in last.members] == ["se-2"]
        engines._envoy = find_envoy()
    finally:
        client.kill()
        await client.communicate()
