"""An Envoy's admin interface, and what is asked of it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from urllib.parse import quote

import msgspec
from msgspec import Struct

from akocore.engines.envoy.bootstrap import BACKEND_PREFIX, OVERFLOW

__all__ = ["Admin", "EngineError"]


class EngineError(Exception):
    """A Service Engine can't be run or reached; the text says why and what to do."""


class _Stat(Struct):
    name: str = ""
    value: int | float | str = 0


class _Stats(Struct):
    stats: list[_Stat] = []


class _Scope(Struct):
    name: str


class _Scopes(Struct):
    scoped_route_configs: list[_Scope] = []


class _Dump(Struct):
    configs: list[_Scopes] = []


class _SocketAddress(Struct):
    address: str
    port_value: int = 0


class _Address(Struct):
    socket_address: _SocketAddress | None = None


class _Listener(Struct):
    name: str
    local_address: _Address


class _Listeners(Struct):
    listener_statuses: list[_Listener] = []


class Admin:
    """One Envoy's admin interface on a unix socket; a connection per question.

    Raises `EngineError` when it doesn't answer (`ready` says False instead).
    """

    def __init__(self, socket_path: Path, timeout_s: float = 2.0) -> None:
        self._path = socket_path
        self._timeout_s = timeout_s

    async def ready(self) -> bool:
        """Whether Envoy is live: it has its first configuration and its workers run."""
        try:
            return (await self._ask("GET", "/ready"))[0] == 200
        except EngineError:
            return False

    async def stats(self, pattern: str = "") -> dict[str, int]:
        """Counters and gauges whose names match the regular expression ``pattern`` (RE2)."""
        query = f"&filter={quote(pattern, safe='')}" if pattern else ""
        found = msgspec.json.decode(await self._get(f"/stats?format=json{query}"), type=_Stats)
        return {
            stat.name: int(stat.value)
            for stat in found.stats
            if stat.name and not isinstance(stat.value, str)
        }

    async def requests_by_virtual_service(self) -> dict[str, int]:
        """Requests served since the start, by virtual service (the listeners' stat prefix)."""
        first, last = "http.", ".downstream_rq_total"
        names = await self.stats(r"^http\..*\.downstream_rq_total$")
        counts = {name[len(first) : -len(last)]: value for name, value in names.items()}
        return {name: n for name, n in counts.items() if name not in ("admin", "admin.alive")}

    async def overflows(self) -> dict[str, int]:
        """What met an open breaker since the start, by Service port ("namespace/service/port")."""
        first = f"{OVERFLOW}.refused.backend.{BACKEND_PREFIX}"
        names = await self.stats(rf"^{OVERFLOW}\.")
        return {n.removeprefix(first): v for n, v in names.items() if n.startswith(first) and v}

    async def open_connections(self) -> int:
        """Downstream connections of all listeners, the admin interface's own apart."""
        counts = await self.stats(r"^listener\..*[^.]\.downstream_cx_active$")
        return sum(n for name, n in counts.items() if not name.startswith("listener.admin."))

    async def memory(self) -> dict[str, int]:
        """Envoy's own account of its memory, in bytes: ``allocated``, ``heap_size`` ..."""
        raw = msgspec.json.decode(await self._get("/memory"), type=dict[str, str])
        return {key: int(value) for key, value in raw.items()}

    async def listeners(self) -> dict[str, tuple[str, int]]:
        """The listeners that are up, by name: (address, port)."""
        raw = await self._get("/listeners?format=json")
        return {
            status.name: (place.address, place.port_value)
            for status in msgspec.json.decode(raw, type=_Listeners).listener_statuses
            if (place := status.local_address.socket_address) is not None
        }

    async def scopes(self) -> list[str]:
        """The names of its scoped routes.  Costs its main thread some 0.1 ms each."""
        raw = await self._get("/config_dump?resource=dynamic_scoped_route_configs")
        return [
            scope.name
            for part in msgspec.json.decode(raw, type=_Dump).configs
            for scope in part.scoped_route_configs
        ]

    async def drain(self) -> None:
        """Stop listening, tell kept connections to go, and wait until there is none."""
        await self._ask("POST", "/drain_listeners")
        while True:
            await asyncio.sleep(0.1)  # first, for what the workers were just accepting
            if not await self.open_connections():
                return

    async def _get(self, path: str) -> bytes:
        status, body = await self._ask("GET", path)
        if status != 200:
            raise EngineError(f"{self._path}{path}: Envoy answers {status}: {body[:200]!r}")
        return body

    async def _ask(self, method: str, path: str) -> tuple[int, bytes]:
        try:
            import aiohttp
        except ImportError as err:
            raise EngineError(
                "aiohttp is missing: run `pip install 'akocore[standalone]'`."
            ) from err
        try:
            async with (
                aiohttp.ClientSession(
                    connector=aiohttp.UnixConnector(path=str(self._path)),
                    timeout=aiohttp.ClientTimeout(total=self._timeout_s),
                ) as session,
                session.request(method, f"http://envoy{path}") as answer,
            ):
                return answer.status, await answer.read()
        except (aiohttp.ClientError, OSError, TimeoutError) as err:
            raise EngineError(
                f"the Envoy behind {self._path} doesn't answer: {str(err) or 'timeout'}."
            ) from err
