"""A Gateway in a real Envoy, and backends that tell what they were asked."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from msgspec import Struct

from akocore.engines.envoy.ads import AdsServer
from akocore.engines.envoy.bootstrap import bootstrap
from akocore.engines.envoy.gateway import (
    backends_of,
    gateway_cluster,
    gateway_floor,
    gateway_listener,
    http_scope,
)
from akocore.engines.envoy.process import EngineError, find_envoy
from akocore.engines.envoy.resources import Encoded, secret
from akocore.model_http import Backend, Chain, HttpHost, HttpMatch, HttpRule, TextMatch
from akocore.translate.tls import Certificate

GROUP = "Default-Group"
VS = "gw--default-web"
ADDRESS = "127.21.30.50"
OFFSET = 18000


async def until(true: Callable[[], bool | Awaitable[bool]], within_s: float = 15) -> None:
    deadline = time.monotonic() + within_s
    while True:
        answer = true()
        if answer if isinstance(answer, bool) else await answer:
            return
        assert time.monotonic() < deadline, "it never came true"
        await asyncio.sleep(0.02)


class Answer(Struct):
    """What a client got; ``seen``: the request as the backend had it, if one answered."""

    status: int
    headers: Mapping[str, str]
    body: str

    @property
    def seen(self) -> dict[str, Any]:
        return json.loads(self.body)  # type: ignore[no-any-return]

    @property
    def by(self) -> str:
        return str(self.seen["by"]) if self.status == 200 else f"{self.status}"


class EchoServer:
    """Answers with what it was asked.  ``fail``: statuses of its next answers."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.port = 0
        self.requests: list[dict[str, Any]] = []
        self.fail: list[int] = []
        self.delay_s: list[float] = []
        self.extra: list[tuple[str, str]] = []
        self._runner: web.ServerRunner | None = None

    async def start(self, **more: Any) -> None:
        self._runner = web.ServerRunner(web.Server(self._answer))
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0, **more)
        await site.start()
        assert site._server is not None
        self.port = site._server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        body = (await request.read()).decode()
        tls = request.transport.get_extra_info("ssl_object") if request.transport else None
        told = {
            "by": self.name,
            "method": request.method,
            "path": request.raw_path if hasattr(request, "raw_path") else request.path_qs,
            "host": request.headers.get("host", ""),
            "headers": [[key.lower(), value] for key, value in request.headers.items()],
            "body": body,
            "sni": getattr(tls, "akocore_sni", ""),
        }
        self.requests.append(told)
        if self.delay_s:
            await asyncio.sleep(self.delay_s.pop(0))
        status = self.fail.pop(0) if self.fail else 200
        response = web.Response(status=status, text=json.dumps(told))
        for key, value in self.extra:
            response.headers.add(key, value)
        return response

    def header(self, name: str, request: int = -1) -> list[str]:
        return [value for key, value in self.requests[request]["headers"] if key == name]


class Rig:
    """One Envoy and its controller's half, on a virtual service of one Gateway."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.ads = AdsServer(home / "xds.sock", lambda _group: None)
        self.secrets: dict[str, Encoded] = {}
        self.echoes: dict[str, EchoServer] = {}
        self.port = 80
        self._envoy: asyncio.subprocess.Process | None = None
        self.client: aiohttp.ClientSession

    async def start(self) -> None:
        self.client = aiohttp.ClientSession(
            auto_decompress=False, connector=aiohttp.TCPConnector(limit=0)
        )
        self.ads.catalog(GROUP).secret = self.secrets.get
        await self.ads.start(self.ads.service())
        self.ads.open()
        config = self.home / "envoy.json"
        config.write_bytes(bootstrap("se-1", GROUP, self.ads.socket, self.home / "admin.sock"))
        with (self.home / "log").open("ab") as log:
            self._envoy = await asyncio.create_subprocess_exec(
                *[
                    *(str(find_envoy().path), "-c", str(config), "--disable-hot-restart"),
                    *("--concurrency", "1", "--log-level", os.environ.get("ENVOY_LOG", "info")),
                    *("--drain-time-s", "2", "--drain-strategy", "immediate"),
                ],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        await until(lambda: "se-1" in self.ads.engines)

    async def stop(self) -> None:
        for one in self.echoes.values():
            await one.stop()
        await self.client.close()
        if self._envoy is not None:
            self._envoy.send_signal(signal.SIGKILL)
            await self._envoy.wait()
        await self.ads.stop()

    async def echo(self, name: str, **more: Any) -> Backend:
        """A server, and the backend that has it as its endpoint."""
        self.echoes[name] = EchoServer(name)
        await self.echoes[name].start(**more)
        return Backend(f"default/{name}/80")

    def endpoints(self, backend: Backend) -> list[tuple[str, int]]:
        assert backend.backend is not None
        name = backend.backend.split("/")[1]
        echoes = [one for key, one in self.echoes.items() if key.split(".")[0] == name]
        return [("127.0.0.1", one.port) for one in echoes]

    def clusters(self, *rules: HttpRule) -> list[Encoded]:
        found = {b: None for rule in rules for b in backends_of(rule)}
        return [gateway_cluster(backend, self.endpoints(backend)) for backend in found]

    def add_secret(self, name: str, chain: bytes, key: bytes) -> None:
        self.secrets[name] = secret(name, Certificate(chain, key, 0.0))

    async def publish(
        self, puts: Iterable[Encoded] = (), drops: Iterable[tuple[str, str]] = ()
    ) -> None:
        """Publish and wait until Envoy has it; what it refuses fails the test."""
        sequence = self.ads.publish(GROUP, puts, drops)
        engine = self.ads.engines["se-1"]
        await until(lambda: engine.acknowledged >= sequence)
        assert engine.rejected == {}

    async def listen(self, *chains: Chain, port: int = 80, hosts: Iterable[str] = ()) -> None:
        chains = chains or (Chain("http"),)
        floors = [gateway_floor(VS, port, one.name, hosts) for one in chains if one.tcp is None]
        await self.publish([gateway_listener(VS, ADDRESS, port, chains, OFFSET), *floors])

    async def serve(
        self,
        *rules: HttpRule,
        host: str = "a.example.test",
        chain: str = "http",
        port: int = 80,
        tls: bool = False,
        port_offset: int = 0,
    ) -> None:
        scope = http_scope(VS, port, chain, HttpHost(host, rules), tls=tls, port_offset=port_offset)
        await self.publish([*self.clusters(*rules), scope])

    async def ask(
        self,
        path: str = "/",
        *,
        host: str = "a.example.test",
        method: str = "GET",
        headers: Mapping[str, str] | Iterable[tuple[str, str]] = (),
        body: bytes | None = None,
        port: int = 80,
        **more: Any,
    ) -> Answer:
        from yarl import URL

        scheme = "https" if "ssl" in more else "http"
        async with self.client.request(
            method,
            URL(f"{scheme}://{ADDRESS}:{port + OFFSET}{path}", encoded=True),
            headers=[("Host", host), *(dict(headers).items())],
            data=body,
            allow_redirects=False,
            skip_auto_headers=("user-agent", "accept", "accept-encoding"),
            timeout=aiohttp.ClientTimeout(20),
            **more,
        ) as answer:
            return Answer(answer.status, answer.headers, await answer.text())


@asynccontextmanager
async def rig() -> AsyncIterator[Rig]:
    with tempfile.TemporaryDirectory(prefix="gw-") as name:
        one = Rig(Path(name))
        try:
            await one.start()
            yield one
        finally:
            await one.stop()


def to(*backends: Backend, path: str = "", name: str = "r", **more: Any) -> HttpRule:
    """A rule for a path and what is below it."""
    match = more.pop("match", HttpMatch(TextMatch("prefix", path)))
    return HttpRule(name=name, match=match, backends=backends, **more)


def need_envoy() -> None:
    """Skip a module's tests where there is no Envoy."""
    try:
        find_envoy()
    except EngineError as err:
        if os.environ.get("AKOCORE_REQUIRE_REAL") == "1":
            raise
        pytest.skip(str(err))
