"""``akocore lab demo``: route health injection, as the walkthrough tells it, by the controller.

The controller of ``akocore serve`` follows a directory of manifests; its Service Engines are Envoys
and FRRs in network namespaces, and a router beside them hears of VIPs by BGP.  Everything printed
is asked of that router, of the controller, or of a client behind the router.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from akocore.cli.demo import CRITICAL_CLASS, DOMAIN

__all__ = ["demo"]

GROUP = "SE-Group-AKO-CRITICAL"
VS = "my-cluster--Shared-L7-critical.infra-0"
HOST = f"hello.{DOMAIN}"
VIP, MOVED_VIP = "10.10.16.224", "10.10.17.224"
FLOWS = 300

CONFIG = """\
serviceEngineGroups:
  Default-Group: {}
  SE-Group-AKO-CRITICAL: {minSePerVs: 2, maxSePerVs: 4, maxSe: 4}
moveGraceSeconds: 2
"""

NETWORKS = "---\n".join(
    f"""\
apiVersion: akocore.io/v1alpha1
kind: Network
metadata: {{name: rega-ext-uplinkb-{name}}}
spec:
  subnet: {subnet}.0/24
  vipRanges: [{{begin: {subnet}.224, end: {subnet}.249}}]
  bgp:
    localAs: 5000
    peers:
    - address: 10.10.16.250
      remoteAs: 6000
      bfd: true
      connectTimer: 1
      keepaliveTimer: 3
      holdTimer: 9
"""
    for name, subnet in (("3016", "10.10.16"), ("3017", "10.10.17"))
)

SETTING = """\
apiVersion: ako.vmware.com/v1alpha1
kind: AviInfraSetting
metadata: {{name: critical.infra}}
spec:
  seGroup: {{name: SE-Group-AKO-CRITICAL}}
  network:
    {rhi}names: [rega-ext-uplinkb-{network}]
  l7Settings: {{shardSize: SMALL}}
"""

APP = f"""\
apiVersion: v1
kind: Service
metadata: {{name: hello}}
spec:
  ports: [{{port: 80, targetPort: 8080}}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: hello, labels: {{kubernetes.io/service-name: hello}}}}
addressType: IPv4
ports: [{{port: 8080}}]
endpoints:
- {{addresses: [10.10.20.11]}}
- {{addresses: [10.10.20.12]}}
- {{addresses: [10.10.20.13]}}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {{name: hello}}
spec:
  ingressClassName: critical-ic
  rules:
  - host: {HOST}
    http:
      paths:
      - path: /
        pathType: Prefix
        backend: {{service: {{name: hello, port: {{number: 80}}}}}}
"""


class _Demo:
    """What the story needs: the lab, the controller, the client."""

    def __init__(self, topology: Any, serve: Any, manifests: Path) -> None:
        self.topology = topology
        self.serve = serve
        self.manifests = manifests
        self.began = time.time()

    def write(self, name: str, text: str) -> None:
        part = self.manifests / f".{name}.part"
        part.write_text(text)
        part.replace(self.manifests / f"{name}.yaml")

    async def ask(self, method: str, **question: Any) -> Any:
        import grpc

        async with grpc.aio.insecure_channel(f"unix:{self.serve.control_socket}") as channel:
            call: Any = channel.unary_unary(f"/akocore.v1alpha1.Control/{method}")
            return json.loads(await call(json.dumps(question).encode()))

    async def status(self, kind: str) -> dict[str, dict[str, Any]]:
        items = (await self.ask("Get", kind=kind))["items"]
        return {item["metadata"]["name"]: item["status"] for item in items}

    async def until(self, what: str, true: Callable[[], Awaitable[bool]]) -> float:
        """Milliseconds until it is so.  Raises `LabError` when it isn't in 30 s."""
        from akocore.lab.topology import LabError

        began = time.perf_counter()
        while not await true():
            if time.perf_counter() - began > 30:
                said = await self.status("vs")
                raise LabError(f"{what}: not so after 30 s; {said.get(VS, said)}")
            await asyncio.sleep(0.005)
        return (time.perf_counter() - began) * 1000

    async def until_up(self, engines: int) -> float:
        async def up() -> bool:
            said = (await self.status("vs")).get(VS, {})
            return said.get("state") == "up" and len(said["serviceEngines"]) == engines

        return await self.until(f"{VS} on {engines} Service Engines", up)

    async def until_ways(self, vip: str, ways: int) -> float:
        async def there() -> bool:
            return len(await self.topology.next_hops(vip)) == ways

        return await self.until(f"{ways} next hops to {vip}", there)

    async def show(self, *what: str) -> None:
        topology = self.topology
        for one in what:
            if one == "summary":
                text = await topology.show_bgp_summary()
            elif one == "bfd":
                text = await topology.show_bfd()
            else:
                text = await topology.show_route(one) or "% Network not in table"
            name = {"summary": "bgp summary", "bfd": "bfd neighbors"}.get(one, f"ip route {one}")
            typer.echo(f"\nupstream# show {name}\n{text}")

    async def client(self, *words: str) -> asyncio.subprocess.Process:
        command = [sys.executable, "-m", "akocore.lab.client", HOST, *words]
        return await asyncio.create_subprocess_exec(
            *self.topology.namespaces.command("client", command),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )

    async def served(self) -> Counter[str]:
        """Requests that each Service Engine has served, by its address."""
        return Counter(
            {s["routing"]["address"]: s["requests"] for s in (await self.status("se")).values()}
        )


def _say(text: str) -> None:
    typer.echo(f"\n── {text}")


async def _spread(demo: _Demo) -> None:
    """A client's flows over the Service Engines, beside what the router's hash makes of them."""
    from akocore import EcmpGroup

    hops = [(hop.address, hop.weight) for hop in await demo.topology.next_hops(VIP)]
    group = EcmpGroup(hops, seed=demo.topology.plan.seed)
    first = 20_000
    ports = range(first, first + FLOWS)
    flows = [("10.10.15.10", VIP, socket.IPPROTO_TCP, port, 80) for port in ports]
    expected = Counter(hops[choice][0] for choice in group.select(flows))
    before = await demo.served()
    client = await demo.client(str(first), str(FLOWS))
    out, _ = await client.communicate(f"{VIP}\n".encode())
    counted = await demo.served() - before
    _say(f"{FLOWS} connections of a client: {json.loads(out)['answers']}")
    typer.echo(f"{'SERVICE ENGINE':<16} {'SERVED':>7} {'EcmpGroup':>10}")
    for address, _ in sorted(hops):
        typer.echo(f"{address:<16} {counted[address]:>7} {expected[address]:>10}")


async def _story(demo: _Demo) -> bool:
    write = demo.write
    write("networks", NETWORKS)
    write("critical-ic", CRITICAL_CLASS)
    write("critical-infra", SETTING.format(rhi="", network="3016"))
    write("hello", APP)
    took = await demo.until_up(2)
    _say(f"Ingress hello is on two Service Engines after {took:.0f} ms, and enableRhi is off")
    await demo.topology.until_watched()
    await demo.show("summary", VIP)

    write("critical-infra", SETTING.format(rhi="enableRhi: true\n    ", network="3016"))
    took = await demo.until_ways(VIP, 2)
    _say(f"enableRhi: true in critical.infra: 2 next hops after {took:.0f} ms")
    await demo.show(VIP, "bfd")

    answer = await demo.ask("Scale", vs=VS, by=1)
    took = await demo.until_ways(VIP, 3)
    _say(f"Scale Out to {answer['wanted']}: 3 next hops after {took:.0f} ms")
    await demo.show(VIP, "summary")
    await _spread(demo)

    client = await demo.client()
    assert client.stdin is not None
    phases: list[tuple[float, str]] = []

    def phase(name: str) -> None:
        phases.append((time.time(), name))

    phase("at rest")
    client.stdin.write(f"{VIP}\n".encode())
    await asyncio.sleep(1)

    phase("an Envoy killed")
    name = f"{GROUP}-se-1"
    os.kill(demo.serve.engines.running[name].pid, signal.SIGKILL)
    gone = await demo.until_ways(VIP, 2)
    back = gone + await demo.until_ways(VIP, 3)
    _say(f"{name}'s Envoy is killed: 2 next hops after {gone:.0f} ms, 3 after {back:.0f} ms")
    await asyncio.sleep(1)

    phase("another network")
    write("critical-infra", SETTING.format(rhi="enableRhi: true\n    ", network="3017"))

    async def moved() -> bool:
        said = await demo.status("vs")
        return bool(said[VS]["vip"] == MOVED_VIP)

    took = await demo.until("status names the new address", moved)
    client.stdin.write(f"{MOVED_VIP}\n".encode())
    _say(f"network rega-ext-uplinkb-3017: status says {MOVED_VIP} after {took:.0f} ms")
    await demo.show(MOVED_VIP)
    gone = took + await demo.until_ways(VIP, 0)
    typer.echo(f"{VIP} is withdrawn after {gone:.0f} ms")

    phase("scale in")
    answer = await demo.ask("Scale", vs=VS, by=-1)
    took = await demo.until_ways(MOVED_VIP, 2)
    _say(f"scale in to {answer['wanted']}: 2 next hops after {took:.0f} ms")
    await demo.show(MOVED_VIP)
    await asyncio.sleep(1)

    client.stdin.close()
    out, _ = await client.communicate()
    said = json.loads(out)
    _say(f"meanwhile, a client's requests on connections of their own: {said['answers']}")
    for (since, name), (until, _) in zip(phases, [*phases[1:], (time.time(), "")], strict=True):
        failed = Counter(why for at, why in said["failures"] if since <= at < until)
        typer.echo(f"failed: {failed.total():>3}   {name:<16} {dict(failed) or ''}")
    return bool(said["answers"].get("200"))


@contextlib.asynccontextmanager
async def _house(
    scratch: Path, prefix: str, frr_dir: Path | None, envoy: Path | None
) -> AsyncIterator[_Demo]:
    from akocore.config import load_config
    from akocore.engines.envoy.process import find_envoy
    from akocore.engines.frr.process import find_frr
    from akocore.lab.fleet import Fleet
    from akocore.lab.topology import Plan, Topology
    from akocore.serve import Serve, of_directory

    manifests = scratch / "manifests"
    topology = Topology(scratch / "lab", find_frr(frr_dir), Plan(prefix=prefix))
    serve = Serve(
        of_directory(manifests),
        scratch / "state",
        load_config(scratch / "config.yaml"),
        find_envoy(envoy),
        engines=partial(Fleet, topology),
    )
    await topology.up(0)
    task = asyncio.create_task(serve.run())
    try:
        ready = asyncio.create_task(serve.ready.wait())
        await asyncio.wait([task, ready], return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        if task.done():
            await task
        yield _Demo(topology, serve, manifests)
    finally:
        serve.stop()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(task, 20)
        await topology.down()


def demo(
    frr_dir: Annotated[Path | None, typer.Option(help="directory of FRR's daemons")] = None,
    envoy: Annotated[Path | None, typer.Option(help="Envoy's binary")] = None,
    prefix: Annotated[str, typer.Option(help="how names of its namespaces begin")] = "akodemo-",
) -> None:
    """Route health injection by the controller: 0, 2 and 3 next hops, a crash, a move, scale in."""
    from akocore.config import ConfigError
    from akocore.engines.envoy.process import EngineError
    from akocore.engines.frr.process import FrrError
    from akocore.lab.namespaces import LabError
    from akocore.lab.rootless import hold, let_go, run_inside

    async def run(scratch: Path) -> bool:
        async with _house(scratch, prefix, frr_dir, envoy) as house:
            story = asyncio.create_task(_story(house))
            ended = asyncio.create_task(house.serve.until_stopped())
            await asyncio.wait([story, ended], return_when=asyncio.FIRST_COMPLETED)
            ended.cancel()
            if not story.done():  # Ctrl-C
                story.cancel()
                await asyncio.gather(story, return_exceptions=True)
                return False
            return story.result()

    try:
        with tempfile.TemporaryDirectory(prefix="akolab-") as name:
            if os.geteuid() != 0:
                holder = hold(Path(name))
                try:
                    code = run_inside(holder, sys.argv[1:])
                finally:
                    let_go(holder)
            else:
                scratch = Path(name)
                scratch.chmod(0o755)  # FRR's user must come to its own directories
                (scratch / "manifests").mkdir()
                (scratch / "config.yaml").write_text(CONFIG)
                code = 0 if asyncio.run(run(scratch)) else 1
    except (ConfigError, EngineError, FrrError, LabError) as err:
        typer.echo(f"akocore: {err}", err=True)
        raise typer.Exit(1) from err
    if os.geteuid() == 0:  # else it was said inside
        typer.echo("\nnothing of the lab is left")
    if code:
        raise typer.Exit(code)
