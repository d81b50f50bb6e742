"""Made-up objects through the whole of `Serve` to real Envoys, which are asked at every step."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import aiohttp
from aiohttp import web
from yarl import URL

from akocore.config import Config
from akocore.engines.envoy.process import find_envoy
from akocore.kube.objects import Batch, Change
from akocore.serve import Serve
from fuzz.asked import Visit, visits
from fuzz.judge import Made
from fuzz.world import There, authority, change, first

__all__ = ["House", "house"]

_KEPT = 120
_PATIENCE_S = 30.0
_START_S = 60.0
_SOON_S = 5.0  # what was acknowledged is served
_ABREAST = 16
# Of each canary: where, as a port of the Gateway (0: of the Ingress); its host; its path; and what
# it may answer: the last one's endpoints are partly made up.
_CANARIES = (
    (0, "canary.ingress.test", "/", {200}),
    (0, "i.test", "/canary", {200, 302}),  # a made-up Ingress may have a certificate for it
    (80, "canary.route.test", "/", {200}),
    (80, "a.test", "/canary", {200}),
    (80, "b.test", "/canary", {200}),
    (443, "canary.route.test", "/", {200}),
    (8443, "canary.tls.test", "/", {200}),
    (8080, "any", "/", {200}),
    (80, "canary.slices.test", "/", {200, 502, 503, 504}),
)
_ASKED = {"Origin": "http://a.test", "Access-Control-Request-Method": "GET", "X-A": "1"}


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
            batch = None
            with contextlib.suppress(TimeoutError):
                batch = await asyncio.wait_for(self._due.get(), 0.2)
            if batch is not None:
                yield batch


class House:
    """``nacks``, ``deaths``, ``faults``, ``silent``: the four that must be nothing."""

    def __init__(
        self,
        serve: Serve,
        source: _Source,
        begin: list[Change],
        client: aiohttp.ClientSession,
        running: asyncio.Task[None],
    ) -> None:
        self.serve = serve
        self.nacks: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.silent: list[str] = []
        self.answers: Counter[int] = Counter()
        self.visited: Counter[str] = Counter()
        self._source = source
        self._client = client
        self._running = running
        self._there = There(begin, _KEPT)
        self._said: dict[str, str] = {}
        self._quiet: set[tuple[int, str]] = set()  # canaries that are known not to answer
        self._limit = asyncio.Semaphore(_ABREAST)

    @property
    def deaths(self) -> int:
        return sum(process.restarts for process in self.serve.engines.running.values())

    def findings(self) -> list[str]:
        """All that came up so far."""
        died = [f"engine died, number {n + 1}" for n in range(self.deaths)]
        return [*self.nacks, *self.faults, *self.silent, *died]

    @property
    def ended(self) -> bool:
        """Whether akocore ended by itself."""
        return self._running.done()

    def address(self, host: str | None) -> str:
        """Where an Ingress's host is; None: the Gateway."""
        at = self.serve.reconciler
        if host is None:
            state = at.gateway_api.gateways.get("default/web")
            name = state.vs if state is not None else ""
        else:
            placed = at.hosts.get(host)
            name = placed.vs if placed is not None else ""
        found = at.placement.services.get(name)
        return found.shown.address if found is not None and found.shown is not None else ""

    async def ask(self, port: int, host: str, path: str, method: str = "GET") -> int:
        """The status of an answer; 0: none.  ``port`` as in `_CANARIES`."""
        where = f"{self.address(None if port else host)}:{port or 80}"
        secure = port in (443, 8443)
        url = URL(f"{'https' if secure else 'http'}://{where}{path}", encoded=True)
        try:
            async with (
                self._limit,
                asyncio.timeout(5),
                self._client.get(
                    url,
                    headers={"Host": host},
                    allow_redirects=False,
                    ssl=False,
                    server_hostname=host if secure else None,
                ) as answer,
            ):
                await answer.read()
                return answer.status
        except (aiohttp.ClientError, TimeoutError, ValueError, OSError):
            return 0

    async def begin(self) -> None:
        """Until all canaries answer, or are among the silent."""
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline:
            codes = [await self.ask(*canary[:3]) for canary in _CANARIES]
            if all(code in one[3] for code, one in zip(codes, _CANARIES, strict=True)):
                return
            await asyncio.sleep(0.2)
        self.silent.append(f"canaries, with nothing made up: {codes}")

    async def take(self, made: list[Made]) -> None:
        """Apply some objects, wait for the engines, ask the canaries and what was made up."""
        changes = []
        told: dict[tuple[str, str], Made] = {}
        for one in made:
            with contextlib.suppress(ValueError):
                changes.append(found := change(one.document))
                told[found.kind, found.key] = one
                self._said[f"{found.kind}/{found.key}"] = one.said
        given = self._there.take(changes)
        before = self.serve.batches
        self._source.give(given)
        await self._settled(before)
        if self.ended:
            self._mourn(made)
            return
        asked = [self._canary(*canary, made) for canary in _CANARIES]
        for change_ in given:
            if (of := told.get((change_.kind, change_.key))) is not None:
                asked += [self._visit(visit, of) for visit in visits(self.serve, change_, of)]
        await asyncio.gather(*asked)
        self._look()

    def _mourn(self, made: list[Made]) -> None:
        err = self._running.exception() if not self._running.cancelled() else None
        while isinstance(err, BaseExceptionGroup):
            err = err.exceptions[0]
        said = " ".join(one.said for one in made)
        self.faults[f"akocore ended: {type(err).__name__} {err!s:.200} | {said[:1500]}"] += 1

    async def _canary(
        self, port: int, host: str, path: str, good: set[int], made: list[Made]
    ) -> None:
        patience = 0.5 if (port, host) in self._quiet else _PATIENCE_S
        deadline = time.monotonic() + patience
        while (code := await self.ask(port, host, path)) not in good:
            if time.monotonic() > deadline or self.ended:
                if (port, host) not in self._quiet:
                    said = " ".join(one.said for one in made)
                    self.silent.append(f"{host}:{port}{path}: {code} | {said[:1500]}")
                self._quiet.add((port, host))
                return
            await asyncio.sleep(0.1)
        self._quiet.discard((port, host))

    async def _visit(self, visit: Visit, made: Made) -> None:
        """Ask for what an object made up, until it answers as it must."""
        deadline = time.monotonic() + _SOON_S
        while True:
            code = await self.ask(visit.port, visit.host, visit.path, visit.method)
            good = visit.wanted is None or visit.wanted(code)
            if good or time.monotonic() > deadline:
                break
            await asyncio.sleep(0.1)
        self.answers[code] += 1
        if visit.wanted is not None:
            self.visited[visit.what] += 1
        if not good:
            self.silent.append(f"{visit.what} {visit.host}{visit.path}: {code} | {made.said}")

    async def _settled(self, before: int) -> None:
        """Until what was given is applied, and engines have acknowledged what came of it."""
        deadline = time.monotonic() + _PATIENCE_S
        serve = self.serve
        while time.monotonic() < deadline and not self.ended:
            await asyncio.sleep(0.01)
            if serve.batches == before or serve.loop.waiting:
                continue
            groups = {engine.group for engine in serve.ads.fleet.values()}
            if all(serve.ads.acknowledged(g) >= serve.ads.catalog(g).sequence for g in groups):
                return

    def _look(self) -> None:
        for engine in self.serve.ads.fleet.values():
            for (kind, name), found in engine.rejected.items():
                self.nacks[f"{kind.rpartition('.')[2]} {name[-60:]}: {found.message[:300]}"] += 1
        for event in self.serve.events:
            if event.reason == "InternalError":
                said = self._said.get(event.object, event.object)
                self.faults[f"{event.note} | {said}"] = event.count


@contextlib.asynccontextmanager
async def house(config: Config) -> AsyncIterator[House]:
    """`Serve` over a source of made-up objects, with real Envoys at real ports."""

    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)  # it speaks no HTTP/2

    async def answer(request: web.Request) -> web.Response:
        await request.read()
        return web.Response(text="ok")

    backend = web.AppRunner(app := web.Application(), access_log=None)
    app.router.add_route("*", "/{path:.*}", answer)
    await backend.setup()
    with (
        socket.create_server(("127.0.0.1", 0)) as plain,
        socket.create_server(("127.0.0.1", 0)) as secure,
        tempfile.TemporaryDirectory(prefix="ako-") as short,
    ):
        await web.SockSite(backend, plain).start()
        await web.SockSite(backend, secure, ssl_context=_context(Path(short))).start()
        ports = [one.getsockname()[1] for one in (plain, secure)]
        begin = [change(one) for one in first(*ports)]
        source = _Source(begin)
        made: Callable[[object], _Source] = lambda _facts: source  # noqa: E731
        serve = Serve(made, Path(short) / "s", config, find_envoy())  # type: ignore[arg-type]
        async with aiohttp.ClientSession() as client:
            task = asyncio.create_task(serve.run())
            await asyncio.wait_for(serve.ready.wait(), 30)
            await (at_work := House(serve, source, begin, client, task)).begin()
            yield at_work
            await client.close()
            serve.stop()
            with contextlib.suppress(Exception):  # it is told already: `House.ended`
                await asyncio.wait_for(task, 60)
        await backend.cleanup()


def _context(scratch: Path) -> ssl.SSLContext:
    cert, key = authority().leaf("tls.test")
    (scratch / "tls.pem").write_bytes(cert + key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(scratch / "tls.pem")
    return context
