"""Made-up objects through the whole of `Serve` to real Envoys, while canaries are asked."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import tempfile
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from akocore.config import Config
from akocore.engines.envoy.process import find_envoy
from akocore.kube.objects import Batch, Change
from akocore.serve import Serve
from fuzz.world import CANARIES, change, first

__all__ = ["House", "house"]

_KEPT = 120
_PATIENCE_S = 30.0


class _Source:
    """Batches as they are given."""

    def __init__(self, begin: list[Change]) -> None:
        self.received: Counter[str] = Counter()
        self.waiting = 0
        self._begin = begin
        self._due: asyncio.Queue[Batch | None] = asyncio.Queue()

    def give(self, changes: list[Change]) -> None:
        self._due.put_nowait(Batch(tuple(changes), {}, time.monotonic()))

    async def first(self) -> Batch:
        return Batch(tuple(self._begin), {}, time.monotonic())

    async def follow(self, _wanted: set[str]) -> Batch | None:
        return None

    async def watch(self, stop: asyncio.Event) -> AsyncIterator[Batch]:
        while not stop.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.2):
                    batch = await self._due.get()
                    if batch is not None:
                        yield batch


class House:
    """``nacks``, ``deaths``, ``faults``, ``silent``: the four that must be nothing."""

    def __init__(self, serve: Serve, source: _Source, client: aiohttp.ClientSession) -> None:
        self.serve = serve
        self.nacks: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.silent: list[str] = []
        self.answers: Counter[int] = Counter()
        self._source = source
        self._client = client
        self._there: deque[Change] = deque()
        self._pids: dict[str, int | None] = {}

    @property
    def deaths(self) -> int:
        return sum(process.restarts for process in self.serve.engines.running.values())

    def addresses(self) -> list[str]:
        """Where the canaries are, in their order."""
        at = self.serve.reconciler
        placed = at.hosts.get(CANARIES[0])
        state = at.gateway_api.gateways.get("default/web")
        names = [placed.vs if placed is not None else "", state.vs if state is not None else ""]
        found = [at.placement.services.get(name) for name in names]
        homes = [one.shown if one is not None else None for one in found]
        return [home.address for home in homes if home is not None]

    async def ask(self, address: str, host: str, path: str = "/") -> int:
        """The status of an answer; 0: none."""
        try:
            url = f"http://{address}{path}"
            async with asyncio.timeout(5):
                async with self._client.get(
                    url, headers={"Host": host}, allow_redirects=False
                ) as answer:
                    await answer.read()
                    return answer.status
        except (aiohttp.ClientError, TimeoutError, ValueError, OSError):
            return 0

    async def take(self, documents: list[dict[str, Any]]) -> None:
        """Apply some objects, wait for the engines, ask the canaries and what was made up."""
        changes = []
        for one in documents:
            with contextlib.suppress(ValueError):
                changes.append(change(one))
        while len(self._there) > _KEPT:
            old = self._there.popleft()
            changes.insert(0, Change(old.kind, old.key, None))
        self._source.give(changes)
        self._there.extend(one for one in changes if one.obj is not None)
        await self._settled()
        for address, host in zip(self.addresses(), CANARIES, strict=True):
            deadline = time.monotonic() + _PATIENCE_S
            while (code := await self.ask(address, host)) != 200:
                if time.monotonic() > deadline:
                    self.silent.append(f"{host}: {code}")
                    break
                await asyncio.sleep(0.1)
        gateway = self.addresses()[-1]
        for one in documents:
            if one["kind"] in ("HTTPRoute", "Ingress"):
                await self._visit(gateway if one["kind"] == "HTTPRoute" else None, one)
        self._look()

    async def _visit(self, gateway: str | None, one: dict[str, Any]) -> None:
        """Ask for what an object made up: hosts and paths, as far as they can be asked for."""
        spec = one["spec"]
        hosts = spec.get("hostnames") or [r.get("host", "") for r in spec.get("rules", ())]
        paths = {"/"}
        for rule in spec.get("rules", ()):
            for match in rule.get("matches", ()):
                paths.add(match.get("path", {}).get("value", "/"))
            for path in (rule.get("http") or {}).get("paths", ()):
                paths.add(path.get("path", "/"))
        for host in list(hosts or ["x"])[:2]:
            plain = host.replace("*", "any") or "x"
            where = gateway or self.addresses()[0]
            for path in sorted(paths)[:3]:
                if path.startswith("/") and path.isascii() and path.isprintable():
                    self.answers[await self.ask(where, plain, path[:1000])] += 1

    async def _settled(self) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        await asyncio.sleep(0.02)
        ads = self.serve.ads
        while time.monotonic() < deadline:
            groups = {engine.group for engine in ads.fleet.values()}
            if all(ads.acknowledged(g) >= ads.catalog(g).sequence for g in groups):
                return
            await asyncio.sleep(0.01)

    def _look(self) -> None:
        for engine in self.serve.ads.fleet.values():
            for (kind, name), found in engine.rejected.items():
                self.nacks[f"{kind.rpartition('.')[2]} {name[-60:]}: {found.message[:300]}"] += 1
        for event in self.serve.events:
            if event.reason == "InternalError":
                self.faults[f"{event.object}: {event.note}"] = event.count


@contextlib.asynccontextmanager
async def house(config: Config) -> AsyncIterator[House]:
    """`Serve` over a source of made-up objects, with real Envoys at real ports."""

    async def answer(request: web.Request) -> web.Response:
        await request.read()
        return web.Response(text="ok")

    backend = web.AppRunner(app := web.Application())
    app.router.add_route("*", "/{path:.*}", answer)
    await backend.setup()
    with (
        socket.create_server(("127.0.0.1", 0)) as listening,
        tempfile.TemporaryDirectory(prefix="ako-") as short,
    ):
        await web.SockSite(backend, listening).start()
        source = _Source([change(one) for one in first(listening.getsockname()[1])])
        made: Callable[[object], _Source] = lambda _facts: source  # noqa: E731
        serve = Serve(made, Path(short) / "s", config, find_envoy())  # type: ignore[arg-type]
        async with aiohttp.ClientSession() as client:
            task = asyncio.create_task(serve.run())
            await asyncio.wait_for(serve.ready.wait(), 30)
            yield House(serve, source, client)
            await client.close()
            serve.stop()
            await asyncio.wait_for(task, 60)
        await backend.cleanup()
