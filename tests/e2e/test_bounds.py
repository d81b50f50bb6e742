"""What one application, or a loop through others, can have of a Service Engine.

Each way round is bounded by the test itself: its backend counts, and ends it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import aiohttp
import pytest
from aiohttp import web

from akocore.engines.envoy.bounds import bounds_of
from e2e.house import APP, CLASS
from e2e.l4 import service
from e2e.running import OFFSET, Running

_END = 20  # rounds after which the backend of a test answers by itself
HOP = bounds_of("my-cluster", 1, 4).hop
ONE_ENGINE = """
limits: {backendConnections: 2}
serviceEngineGroups: {Default-Group: {minSePerVs: 1}}
"""
GATEWAY = """
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: lb}
spec: {controllerName: ako.vmware.com/avi-lb}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: gw}
spec: {gatewayClassName: lb, listeners: [{name: http, port: 80, protocol: HTTP}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: round}
spec:
  parentRefs: [{name: gw}]
  hostnames: [round.test]
  rules: [{backendRefs: [{name: app, port: 80}]}]
"""


@asynccontextmanager
async def served(answer: Callable[[web.Request], object]) -> AsyncIterator[int]:
    """A backend; its port."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)  # type: ignore[arg-type]
    runner = web.AppRunner(app)
    await runner.setup()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        await web.SockSite(runner, listening).start()
        yield listening.getsockname()[1]
        await runner.cleanup()


def application(host: str, port: int) -> str:
    text = CLASS.replace("SIZE", "SMALL") + "---" + APP.replace("NAME", "app")
    return text.replace("HOST", host).replace("PATH", "/").replace("BACKEND", str(port))


async def until(true: Callable[[], object], seconds: float = 20) -> None:
    async with asyncio.timeout(seconds):
        while not true():
            await asyncio.sleep(0.05)


async def gateway_address(running: Running) -> str:
    async with asyncio.timeout(20):
        while True:
            for item in await running.ask("gateway"):
                for one in item["status"]["addresses"]:
                    return str(one["value"])
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("kind", ["Ingress", "Gateway"])
async def test_a_loop_through_somebody_elses_proxy_ends(tmp_path: Path, kind: str) -> None:
    rounds = 0
    vip = ""

    async def proxy(request: web.Request) -> web.Response:
        nonlocal rounds
        rounds += 1
        if rounds >= _END:
            return web.Response(text="the test ends it")
        headers = [(k, v) for k, v in request.headers.items() if k.lower() != "host"]
        async with (
            aiohttp.ClientSession() as there,
            there.get(
                f"http://{vip}:{80 + OFFSET}/", headers=[*headers, ("Host", "round.test")]
            ) as answer,
        ):
            return web.Response(status=answer.status, body=await answer.read())

    async with served(proxy) as port:
        running = Running(tmp_path, port)
        text = application("round.test" if kind == "Ingress" else "other.test", port)
        running.write("app.yaml", text + ("---" + GATEWAY if kind == "Gateway" else ""))
        async with running, aiohttp.ClientSession() as client:
            shown = await running.until_up_to_date(1)
            vip = shown["round.test"] if kind == "Ingress" else await gateway_address(running)

            async def ask(*hops: str) -> int:
                headers = [("Host", "round.test"), *(("CDN-Loop", one) for one in hops)]
                async with client.get(f"http://{vip}:{80 + OFFSET}/", headers=headers) as answer:
                    return answer.status

            async with asyncio.timeout(20):
                while (status := await ask()) in (404, 503):
                    await asyncio.sleep(0.1)
            assert (status, rounds) == (502, 4)
            # One who has been here before comes in; who says too much hurts nobody but himself.
            rounds = _END
            assert await ask(HOP) == 200
            assert await ask(*["another.test; via=1"] * 10) == 200
            assert await ask(*[HOP] * 4) == 502
            assert await ask(",;=") == 400
            assert await ask() == 200


async def test_requests_beyond_a_breaker_are_answered_and_counted(tmp_path: Path) -> None:
    waiting = asyncio.Event()

    async def answer(_request: web.Request) -> web.Response:
        await waiting.wait()
        return web.Response(text="ok")

    async with served(answer) as port:
        running = Running(tmp_path, port)
        running.config = ONE_ENGINE
        running.write("app.yaml", application("app.test", port))
        async with running, aiohttp.ClientSession() as client:
            vip = (await running.until_up_to_date(1))["app.test"]

            async def ask() -> int:
                url, headers = f"http://{vip}:{80 + OFFSET}/", {"Host": "app.test"}
                async with client.get(url, headers=headers) as found:
                    return found.status

            asked = [asyncio.create_task(ask()) for _ in range(12)]
            await until(lambda: sum(one.done() for one in asked) >= 8)
            assert {one.result() for one in asked if one.done()} == {503}
            waiting.set()
            found = sorted(await asyncio.gather(*asked))
            assert 1 <= found.count(200) <= 4
            assert await ask() == 200
            counted = await overflow(running)
            assert counted == {"default/app/80": found.count(503)}


async def vip_of_a_service(running: Running) -> str:
    """EXTERNAL-IP of the one that there is, when it has it."""
    async with asyncio.timeout(20):
        while True:
            for item in await running.ask("service"):
                for point in item["status"]["loadBalancer"]["ingress"]:
                    return str(point["ip"])
            await asyncio.sleep(0.05)


async def overflow(running: Running) -> dict[str, int]:
    """What met an open breaker, by Service port."""
    (engine,) = (await running.engines()).values()
    found: dict[str, int] = engine["overflows"]
    return found


async def test_connections_of_l4_beyond_a_breaker_are_closed_and_counted(tmp_path: Path) -> None:
    async def stay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello\n")
        await reader.read()
        writer.close()

    server = await asyncio.start_server(stay, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    running = Running(tmp_path, port)
    running.config = ONE_ENGINE
    running.write("l4.yaml", service("l4", "TCP/81", to=[("127.0.0.1", port)]))
    async with running:
        vip = await vip_of_a_service(running)
        kept = []
        said = []
        for _ in range(6):
            reader, writer = await asyncio.open_connection(vip, 81 + OFFSET)
            said.append(await asyncio.wait_for(reader.readline(), 10))
            kept.append(writer)
        assert said == [b"hello\n"] * 2 + [b""] * 4
        assert await overflow(running) == {"default/l4/81": 4}
        for writer in kept:
            writer.close()
    server.close()


class Echo(asyncio.DatagramProtocol):
    """Sends each datagram back."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.transport.sendto(data, addr)


async def test_sessions_of_udp_have_a_bound_of_their_own(tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(Echo, local_addr=("127.0.0.1", 0))
    port = transport.get_extra_info("sockname")[1]
    running = Running(tmp_path, port)
    running.config = ONE_ENGINE.replace("backendConnections: 2", "udpSessions: 2")
    running.write("l4.yaml", service("l4", "UDP/81", to=[("127.0.0.1", port)]))
    async with running:
        vip = await vip_of_a_service(running)
        clients = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(6)]
        for client in clients:
            client.setblocking(False)
        answered: set[int] = set()

        def ask() -> bool:
            """Whether somebody has been answered, now that each has asked once more."""
            for i, client in enumerate(clients):
                with contextlib.suppress(BlockingIOError, ConnectionRefusedError):
                    while client.recv(10):
                        answered.add(i)
                client.sendto(b"hello", (vip, 81 + OFFSET))
            return len(answered) >= 2

        await until(ask)
        for _ in range(5):
            await asyncio.sleep(0.1)
            ask()
        for client in clients:
            client.close()
        assert len(answered) == 2
    transport.abort()
    await asyncio.sleep(0)
