"""A way to the real API server on which things go wrong: cuts, refusals, echoes, a black hole.

The controller speaks plain HTTP to it; it speaks TLS to the API server and hands everything on.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from cluster.control_plane import ControlPlane

_HOP = {"connection", "transfer-encoding", "content-length", "content-encoding", "host"}


class Proxy:
    """Between one controller and the API server.  ``kubeconfig``: the way through it."""

    def __init__(self, plane: ControlPlane, scratch: Path, token: str) -> None:
        self.kubeconfig = scratch / "proxied-kubeconfig"
        self.asked: Counter[str] = Counter()  # "METHOD resource", as handed on
        self.refuse: dict[str, list[int]] = {}  # method → codes to answer the next requests with
        self.cut_next_event = False  # in the middle of its JSON
        self.echo = False  # each watch event twice, and older ones after newer ones
        self._plane = plane
        self._token = token
        self._held = ""
        self._open = asyncio.Event()
        self._open.set()
        self._watches: set[web.StreamResponse] = set()

    async def __aenter__(self) -> Proxy:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=context, limit=0),
            timeout=aiohttp.ClientTimeout(total=None),
            auto_decompress=False,
        )
        app = web.Application(client_max_size=1 << 26)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        port = self._runner.addresses[0][1]
        self.kubeconfig.write_text(
            f"""apiVersion: v1
kind: Config
current-context: test
contexts: [{{name: test, context: {{cluster: test, user: me}}}}]
users: [{{name: me, user: {{token: {self._token}}}}}]
clusters: [{{name: test, cluster: {{server: "http://127.0.0.1:{port}"}}}}]
"""
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        self._open.set()
        await self._runner.cleanup()
        await self._session.close()

    def hold(self, resource: str = "") -> None:
        """Hand nothing on any more, of this resource or at all: requests and events wait."""
        self._held = resource
        self._open.clear()

    def go_on(self) -> None:
        self._open.set()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        codes = self.refuse.get(request.method)
        if codes:
            code = codes.pop(0)
            retry = {"Retry-After": "1"} if code == 429 else {}
            return web.json_response(
                {"kind": "Status", "code": code, "reason": "Injected"}, status=code, headers=retry
            )
        if not self._held or self._held in request.path:
            await self._open.wait()
        headers = {k: v for k, v in request.headers.items() if k.lower() not in _HOP}
        headers["Accept-Encoding"] = "identity"
        try:
            async with self._session.request(
                request.method,
                f"https://127.0.0.1:{self._plane.port}{request.raw_path}",
                headers=headers,
                data=await request.read(),
            ) as answer:
                self.asked[f"{request.method} {_resource(request.path)}"] += 1
                return await self._answer(request, answer)
        except (aiohttp.ClientError, OSError) as err:
            raise web.HTTPBadGateway(text=str(err)) from err

    async def _answer(
        self, request: web.Request, answer: aiohttp.ClientResponse
    ) -> web.StreamResponse:
        headers = {k: v for k, v in answer.headers.items() if k.lower() not in _HOP}
        if request.query.get("watch") != "true" or answer.status != 200:
            return web.Response(
                status=answer.status, headers=headers, body=await answer.content.read()
            )
        out = web.StreamResponse(status=answer.status, headers=headers)
        await out.prepare(request)
        before: bytes | None = None
        async for line in answer.content:
            if not self._held or self._held in request.path:
                await self._open.wait()
            if self.cut_next_event and b'"MODIFIED"' in line:
                self.cut_next_event = False
                await out.write(line[: len(line) // 2])
                self._break(request)
                return out
            await out.write(line)
            if self.echo and b'"BOOKMARK"' not in line:
                await out.write(line)  # twice
                if before is not None:
                    await out.write(before)  # and what was before it once more
                before = line
        return out

    @staticmethod
    def _break(request: web.Request) -> None:
        with contextlib.suppress(AttributeError):
            transport: Any = request.transport
            transport.abort()


def _resource(path: str) -> str:
    """``ingresses/status`` of a path in the API; the last words that are no names."""
    words = path.strip("/").split("/")
    words = words[3:] if words[0] == "apis" else words[2:]
    if words[:1] == ["namespaces"] and len(words) > 2:
        words = words[2:]
    return "/".join([words[0], *words[2:]])
