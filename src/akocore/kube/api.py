"""An API server over HTTP: raw bytes in and out, one connection pool, credentials kept fresh."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

import aiohttp
import msgspec
import orjson
from msgspec import Struct

from akocore.kube.credentials import Credentials
from akocore.kube.objects import KINDS, OWN_KINDS, Object

__all__ = ["ApiError", "ApiServer", "Resource", "resources"]

log = logging.getLogger(__name__)

_APPLY = "application/apply-patch+yaml"  # JSON is YAML


class Status(Struct, rename="camel"):
    """``meta/v1 Status``: how the API server says no."""

    message: str = ""
    reason: str = ""
    code: int = 0


class ApiError(Exception):
    """The API server said no, or said nothing (``code`` 0)."""

    def __init__(self, code: int, reason: str, message: str, retry_after_s: float = 0) -> None:
        super().__init__(f"{code} {reason}: {message}")
        self.code = code
        self.reason = reason
        self.message = message
        self.retry_after_s = retry_after_s


class Resource(Struct, frozen=True):
    """One kind as the API serves it."""

    kind: type[Object]
    version: str
    plural: str

    @property
    def api_version(self) -> str:
        group = self.kind.GROUP
        return f"{group}/{self.version}" if group else self.version

    def path(self, namespace: str = "", name: str = "", sub: str = "") -> str:
        """``/apis/GROUP/VERSION/namespaces/NAMESPACE/PLURAL/NAME/SUB``."""
        parts = ["/apis" if self.kind.GROUP else "/api", self.api_version]
        parts += ["namespaces", namespace] if namespace else []
        return "/".join([*parts, self.plural, *([name] if name else []), *([sub] if sub else [])])


def _plural(kind: str) -> str:
    lower = kind.lower()
    if lower.endswith("cy"):
        return f"{lower[:-1]}ies"
    return f"{lower}es" if lower.endswith("s") else f"{lower}s"


def resources() -> dict[str, Resource]:
    """Every kind that akocore reads or writes, by kind, in its newest version."""
    return {
        kind.stored(): Resource(kind, kind.VERSIONS[-1], _plural(kind.KIND))
        for kind in (*dict.fromkeys(KINDS.values()), *OWN_KINDS)
    }


class ApiServer:
    """One API server.  ``credentials`` is asked at the start and after every 401."""

    def __init__(self, credentials: Callable[[], Awaitable[Credentials]]) -> None:
        self._find = credentials
        self._found: Credentials | None = None
        self._session: aiohttp.ClientSession | None = None
        self._fresh = asyncio.Lock()

    async def __aenter__(self) -> ApiServer:
        await self._renew(None)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def _renew(self, stale: Credentials | None) -> None:
        async with self._fresh:
            if self._found is not stale:
                return  # somebody else was faster
            self._found = await self._find()
            old = self._session
            headers = {"Accept": "application/json", "User-Agent": "akocore"}
            if self._found.authorization:
                headers["Authorization"] = self._found.authorization
            self._session = aiohttp.ClientSession(
                base_url=self._found.server,
                headers=headers,
                connector=aiohttp.TCPConnector(ssl=self._found.ssl_context(), limit=0),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=10),
                read_bufsize=1 << 18,
            )
            if old is not None:
                await old.close()

    async def request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: bytes | None = None,
        content_type: str = "application/json",
        timeout_s: float = 60,
    ) -> bytes:
        """The body of a 2xx answer.  Raises `ApiError`."""
        async with (
            asyncio.timeout(timeout_s),
            self._ask(method, path, query, body, content_type) as a,
        ):
            return await a.read()

    async def apply(
        self, path: str, wanted: Mapping[str, object], manager: str, timeout_s: float = 15
    ) -> bytes:
        """Server-side apply (KEP-555): our fields become just these; the object as it is then.

        With ``metadata.resourceVersion`` it is refused (409) when somebody else was faster.
        """
        query = {"fieldManager": manager, "force": "true"}
        body = orjson.dumps(wanted)
        return await self.request("PATCH", path, query, body, _APPLY, timeout_s)

    async def lines(self, path: str, query: Mapping[str, str]) -> AsyncIterator[bytes]:
        """The lines of a watch as they come; it ends when the server ends it.

        Raises `ApiError`, and at a cut within a line `ApiError` with code 0.
        """
        async with self._ask("GET", path, query) as answer:
            rest = b""
            try:
                async for chunk in answer.content.iter_any():
                    *whole, rest = (rest + chunk).split(b"\n")
                    for line in whole:
                        yield line
            except (aiohttp.ClientError, OSError) as err:
                raise ApiError(0, "Disconnected", str(err) or type(err).__name__) from err
            if rest:
                raise ApiError(0, "Disconnected", "the stream ended within a line")

    def _ask(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        body: bytes | None = None,
        content_type: str = "application/json",
    ) -> _Answer:
        return _Answer(self, method, path, query, body, content_type)

    async def send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        body: bytes | None,
        content_type: str,
    ) -> aiohttp.ClientResponse:
        for attempt in (1, 2):
            found, session = self._found, self._session
            assert session is not None
            headers = {"Content-Type": content_type} if body is not None else None
            try:
                answer = await session.request(
                    method, path, params=query, data=body, headers=headers
                )
            except (aiohttp.ClientError, OSError) as err:
                raise ApiError(0, "Disconnected", str(err) or type(err).__name__) from err
            if answer.status != 401 or attempt == 2:
                return answer
            answer.release()
            log.info("event=credentials_renewed")
            await self._renew(found)
        raise AssertionError


class _Answer:
    """``async with`` one answer; `ApiError` unless it is a 2xx."""

    def __init__(
        self,
        api: ApiServer,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        body: bytes | None,
        content_type: str,
    ) -> None:
        self._call = (method, path, query, body, content_type)
        self._api = api
        self._answer: aiohttp.ClientResponse | None = None

    async def __aenter__(self) -> aiohttp.ClientResponse:
        answer = self._answer = await self._api.send(*self._call)
        if answer.status < 300:
            return answer
        raw = await answer.read()
        try:
            said = msgspec.json.decode(raw, type=Status)
        except msgspec.MsgspecError:
            said = Status(message=raw[:300].decode("utf-8", "replace"), reason=answer.reason or "")
        wait = answer.headers.get("Retry-After", "")
        answer.release()
        raise ApiError(
            answer.status, said.reason, said.message, float(wait) if wait.isdigit() else 0
        )

    async def __aexit__(self, kind: object, *_: object) -> None:
        if self._answer is not None:
            if kind is None:
                self._answer.release()
            else:
                self._answer.close()
