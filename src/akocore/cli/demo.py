"""``akocore demo``: the whole house on this machine, without a cluster.

A child process is the akocore that a user would start (``akocore serve DIR``); this one writes
the manifests, is the backends and the client, and asks what a user would ask.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import aiohttp
    from rich.console import Console

__all__ = ["demo"]

HOSTS = 20
SIZES = {"LARGE": 8, "MEDIUM": 4, "SMALL": 1, "DEDICATED": HOSTS}
DOMAIN = "avi.iberia.local"
REPLICAS = ("127.0.0.1", "127.0.0.2", "127.0.0.3")
WORKERS = 8

CONFIG = """\
# What in Avi's world its administrator makes: the SE group, and the network with its VIPs.
serviceEngineGroups:
  Default-Group: {minSePerVs: 2}
  SE-Group-AKO-CRITICAL: {minSePerVs: 2}
networks:
  default:
    subnet: 127.10.15.0/24
    vipRanges: [{begin: 127.10.15.161, end: 127.10.15.254}]
  REGA_EXT_UPLINKB_3016:
    subnet: 127.10.16.0/24
    vipRanges: [{begin: 127.10.16.225, end: 127.10.16.254}]
moveGraceSeconds: 2
"""

DEFAULT_CLASS = """\
apiVersion: networking.k8s.io/v1
kind: IngressClass
metadata:
  name: avi-lb
  annotations: {ingressclass.kubernetes.io/is-default-class: "true"}
spec:
  controller: ako.vmware.com/avi-lb
  parameters: {apiGroup: ako.vmware.com, kind: IngressParameters, name: external-lb}
"""

CRITICAL_CLASS = """\
apiVersion: networking.k8s.io/v1
kind: IngressClass
metadata: {name: critical-ic}
spec:
  controller: ako.vmware.com/avi-lb
  parameters: {apiGroup: ako.vmware.com, kind: AviInfraSetting, name: critical.infra}
"""

SETTING = """\
apiVersion: ako.vmware.com/v1alpha1
kind: AviInfraSetting
metadata: {name: critical.infra}
spec:
  seGroup: {name: SE-Group-AKO-CRITICAL}
  network: {names: [REGA_EXT_UPLINKB_3016]}
  l7Settings: {shardSize: %s}
"""

APP = """\
apiVersion: v1
kind: Service
metadata: {name: %(name)s}
spec:
  ports: [{port: 80, targetPort: 8080}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: %(name)s, labels: {kubernetes.io/service-name: %(name)s}}
addressType: IPv4
ports: [{port: %(port)d}]
endpoints: [%(endpoints)s]
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: %(name)s}
spec:
  ingressClassName: critical-ic
  rules:
  - host: %(name)s.%(domain)s
    http:
      paths:
      - path: /
        pathType: Prefix
        backend: {service: {name: %(name)s, port: {number: 80}}}
"""


class DemoError(Exception):
    """The demo can't go on; the text says why."""


class Demo:
    """The manifests, the backends, the client, and what they counted."""

    def __init__(self, scratch: Path, offset: int, client: aiohttp.ClientSession) -> None:
        self.directory = scratch / "manifests"
        self.state = scratch / "state"
        self.offset = offset
        self.client = client
        self.backend_port = 0
        self.addresses: dict[str, str] = {}  # host → VIP, as status says
        self.answers: Counter[str] = Counter()

    def write(self, name: str, text: str) -> float:
        """Write a manifest at once, as editors do; the moment when it was there."""
        part = self.directory / f".{name}.part"
        part.write_text(text)
        part.replace(self.directory / name)
        return time.perf_counter()

    def app(self, name: str) -> float:
        endpoints = ", ".join(f"{{addresses: [{address}]}}" for address in REPLICAS)
        fields = {"name": name, "domain": DOMAIN, "port": self.backend_port}
        return self.write(f"{name}.yaml", APP % {**fields, "endpoints": endpoints})

    async def ask(self, kind: str) -> list[dict[str, Any]]:
        """What ``akocore get KIND`` would print."""
        import grpc
        import orjson

        async with grpc.aio.insecure_channel(f"unix:{self.state / 'control.sock'}") as channel:
            call: Any = channel.unary_unary("/akocore.v1alpha1.Control/Get")
            items: list[dict[str, Any]] = orjson.loads(await call(orjson.dumps({"kind": kind})))[
                "items"
            ]
            return items

    async def follow(self) -> dict[str, str]:
        """Look at status, as DNS would."""
        self.addresses = {
            point["hostname"]: point["ip"]
            for item in await self.ask("ingress")
            for point in item["status"]["loadBalancer"]["ingress"]
        }
        return self.addresses

    async def get(self, host: str) -> str:
        """ "200" when the right application answers, else what happened."""
        import aiohttp

        if host not in self.addresses:
            return "no address"
        url = f"http://{self.addresses[host]}:{80 + self.offset}/"
        try:
            async with self.client.get(url, headers={"Host": host}) as answer:
                text = await answer.text()
        except (aiohttp.ClientError, OSError, TimeoutError) as err:
            return type(err).__name__
        if answer.status == 200 and not text.startswith(f"{host} "):
            return "wrong application"
        return str(answer.status)

    async def load(self) -> None:
        """Requests to every host in turn, for ever."""
        while True:
            for host in list(self.addresses):
                self.answers[await self.get(host)] += 1

    async def until(self, shards: int, since: float) -> float:
        """Milliseconds until status names ``shards`` addresses and every host answers there."""
        async with asyncio.timeout(30):
            while True:
                shown = await self.follow()
                if len(shown) == HOSTS and len(set(shown.values())) == shards:
                    break
                await asyncio.sleep(0.002)
        for host in shown:
            if (answer := await self.get(host)) != "200":
                raise DemoError(f"{host} at {shown[host]} answers {answer}")
        return (time.perf_counter() - since) * 1000

    async def edit(self, name: str) -> float:
        """Milliseconds from a new application's file to its first answer."""
        since = self.app(name)
        host = f"{name}.{DOMAIN}"
        vip = next(iter(self.addresses.values()))  # SMALL: all have one address
        self.addresses[host] = vip
        async with asyncio.timeout(10):
            while await self.get(host) != "200":
                pass
        return (time.perf_counter() - since) * 1000


@contextlib.asynccontextmanager
async def _backends() -> AsyncIterator[int]:
    """Three small echo servers on one port of three loopback addresses; the port."""
    import socket

    from aiohttp import web

    async def echo(request: web.Request) -> web.Response:
        assert request.transport is not None
        address = request.transport.get_extra_info("sockname")[0]
        return web.Response(text=f"{request.host} is served by {address}\n")

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", echo)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        first = socket.create_server((REPLICAS[0], 0))
        port: int = first.getsockname()[1]
        for one in (first, *(socket.create_server((address, port)) for address in REPLICAS[1:])):
            await web.SockSite(runner, one).start()
        yield port
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def _akocore(scratch: Path, offset: int, envoy: Path | None) -> AsyncIterator[None]:
    """``akocore serve`` as a child process, from its first answer to its clean end."""
    state = scratch / "state"
    command = [sys.executable, "-m", "akocore", "serve", str(scratch / "manifests")]
    command += ["--metrics-listen", ""]  # another akocore may run here
    command += ["--state", str(state), "--config", str(scratch / "config.yaml")]
    command += ["--port-offset", str(offset)]
    command += ["--envoy", str(envoy)] if envoy else []
    log = scratch / "akocore.log"
    with log.open("wb") as output:
        # A session of its own: Ctrl-C reaches this process, which ends the child in order.
        child = await asyncio.create_subprocess_exec(
            *command, stdout=output, stderr=output, start_new_session=True
        )
    try:
        async with asyncio.timeout(30):
            while not (state / "control.sock").exists():
                if child.returncode is not None:
                    raise DemoError(log.read_text().strip())
                await asyncio.sleep(0.01)
        yield
    finally:
        if child.returncode is None:
            child.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(child.wait(), 20)
            except TimeoutError:
                child.kill()
                await child.wait()


def _table(console: Console, demo: Demo) -> None:
    order = sorted(demo.addresses.items(), key=lambda item: (item[1].split("."), item[0]))
    order.sort(key=lambda item: tuple(int(part) for part in item[1].split(".")))
    console.print(f"{'HOSTNAME':<26} AVI-VS-IP", style="bold")
    for host, address in order:
        console.print(f"{host:<26} {address}", highlight=False)


async def _walk(demo: Demo, console: Console) -> bool:
    """The walkthrough, under load; whether no request failed."""
    demo.write("avi-lb.yaml", DEFAULT_CLASS)
    demo.write("critical-ic.yaml", CRITICAL_CLASS)
    since = demo.write("critical-infra.yaml", SETTING % "LARGE")
    for i in range(1, HOSTS + 1):
        demo.app(f"hello{i}")
    took = {"LARGE": await demo.until(SIZES["LARGE"], since)}
    console.rule("shardSize LARGE: 20 Ingresses on 8 virtual services")
    _table(console, demo)
    began = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        load = [tasks.create_task(demo.load()) for _ in range(WORKERS)]
        await asyncio.sleep(1.5)
        for size in ("MEDIUM", "SMALL", "DEDICATED"):
            since = demo.write("critical-infra.yaml", SETTING % size)
            took[size] = await demo.until(SIZES[size], since)
            count = SIZES[size]
            console.rule(f"shardSize {size}: live, {count} virtual service{'s' * (count > 1)}")
            _table(console, demo)
            for _ in range(6):  # past the grace period: the old addresses are given up
                await asyncio.sleep(0.5)
                await demo.follow()
        for task in load:
            task.cancel()
    seconds = time.perf_counter() - began
    demo.write("critical-infra.yaml", SETTING % "SMALL")
    await demo.until(1, time.perf_counter())
    edits = sorted([await demo.edit(f"extra{i + 1}") for i in range(20)])

    requests, failed = demo.answers.total(), demo.answers.total() - demo.answers["200"]
    engines = [
        (e["metadata"]["name"], e["status"]["requests"])
        for e in await demo.ask("se")
        if e["spec"]["seGroup"] == "SE-Group-AKO-CRITICAL"
    ]
    served = sum(count for _, count in engines) or 1
    console.rule("summary")
    console.print(f"requests under load   {requests} in {seconds:.1f} s", highlight=False)
    why = {answer: n for answer, n in demo.answers.items() if answer != "200"}
    style = "bold red" if failed else "bold green"
    console.print(f"failed                {failed} {why or ''}", style=style, highlight=False)
    console.print(
        f"file write → served   one new Ingress: median {edits[len(edits) // 2]:.1f} ms,"
        f" worst of {len(edits)} {edits[-1]:.1f} ms",
        highlight=False,
    )
    for size, ms in took.items():
        console.print(f"                      {size}, all {HOSTS}: {ms:.0f} ms", highlight=False)
    for name, count in engines:
        console.print(
            f"Service Engine        {name}: {count} requests, {100 * count / served:.0f} %",
            highlight=False,
        )
    return failed == 0 and requests > 0


async def _run(stay: bool, envoy: Path | None) -> bool:
    import aiohttp
    from rich.console import Console

    from akocore.engines.envoy.admin import EngineError
    from akocore.engines.envoy.ports import may_listen

    console = Console(soft_wrap=True)
    try:
        may_listen(80)
        offset = 0
    except EngineError:
        offset = 8000
        console.print("Ports 80 and 443 need a privilege: using 8080 and 8443.")
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    timeout = aiohttp.ClientTimeout(total=10)
    with tempfile.TemporaryDirectory(prefix="akocore-demo-") as name:
        scratch = Path(name)
        (scratch / "manifests").mkdir()
        (scratch / "config.yaml").write_text(CONFIG)
        async with (
            _backends() as port,
            aiohttp.ClientSession(timeout=timeout) as client,
            _akocore(scratch, offset, envoy),
        ):
            demo = Demo(scratch, offset, client)
            demo.backend_port = port
            good = await _walk(demo, console)
            if stay:
                host, vip = next(iter(demo.addresses.items()))
                console.rule("it stays: Ctrl-C ends it")
                console.print(f"curl -H 'Host: {host}' http://{vip}:{80 + offset}/")
                console.print(f"akocore get ingress --state {demo.state}")
                console.print(f"akocore explain ingress/hello1 --state {demo.state}")
                console.print(f"edit {demo.directory}/critical-infra.yaml")
                await stop.wait()
    return good


def demo(
    stay: Annotated[bool, typer.Option("--stay", help="leave it running, to try things")] = False,
    envoy: Annotated[Path | None, typer.Option(help="Envoy's binary")] = None,
) -> None:
    """Walk through it all on this machine: 20 Ingresses, LARGE to DEDICATED, under load."""
    try:
        good = asyncio.run(_run(stay, envoy))
    except DemoError as err:
        typer.echo(f"akocore: {err}", err=True)
        raise typer.Exit(1) from err
    except KeyboardInterrupt:
        typer.echo("stopped; nothing is left behind", err=True)
        raise typer.Exit(130) from None
    if not good:
        raise typer.Exit(1)
