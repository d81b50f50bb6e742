"""``/metrics``, ``/healthz`` and ``/readyz`` over HTTP."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable

from aiohttp import hdrs, web

from akocore.observe.listening import Listening
from akocore.observe.observation import ListenError

__all__ = ["Endpoints"]

log = logging.getLogger(__name__)

_PLACE = re.compile(r"(?:\[(?P<v6>[^\]]*)\]|(?P<host>[^:]*)):(?P<port>\d{1,5})")


class Endpoints:
    """Answers at ``listen`` ("HOST:PORT"; no HOST: everywhere; port 0: any that is free).

    ``metrics(accept)``: text and content type.  ``unready()``: why no traffic should rely on us.
    """

    def __init__(
        self,
        listen: str,
        metrics: Callable[[str], tuple[bytes, str]],
        unready: Callable[[], list[str]],
    ) -> None:
        self._listen = listen
        self._metrics = metrics
        self._unready = unready
        self._runner: web.AppRunner | None = None
        self._listening: Listening | None = None

    async def start(self) -> None:
        """Raises `ListenError`."""
        place = _PLACE.fullmatch(self._listen)
        if place is None or int(place["port"]) > 65535:
            raise ListenError(self._listen, "it is not HOST:PORT, as in 127.0.0.1:9810")
        app = web.Application()
        app.router.add_get("/metrics", self._get_metrics)
        app.router.add_get("/healthz", self._get_healthz)
        app.router.add_get("/readyz", self._get_readyz)
        app.on_response_prepare.append(_once)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
        await self._runner.setup()
        server = self._runner.server
        assert server is not None
        self._listening = Listening(server)
        try:
            found = await self._listening.start(place["v6"] or place["host"], int(place["port"]))
        except OSError as err:
            await self._runner.cleanup()
            why = os.strerror(err.errno) if err.errno and err.errno > 0 else str(err)
            raise ListenError(self._listen, why) from err
        for address in found:
            log.info("event=metrics_served at=%s", "{}:{}".format(*_bracketed(*address[:2])))

    async def stop(self) -> None:
        if self._listening is not None:
            self._listening.close()
        if self._runner is not None:
            await self._runner.cleanup()

    async def _get_metrics(self, request: web.Request) -> web.Response:
        body, content_type = self._metrics(request.headers.get(hdrs.ACCEPT, ""))
        return web.Response(body=body, headers={hdrs.CONTENT_TYPE: content_type})

    async def _get_healthz(self, _request: web.Request) -> web.Response:
        """The event loop that answers this is the one that does everything."""
        return web.Response(text="ok\n")

    async def _get_readyz(self, _request: web.Request) -> web.Response:
        reasons = self._unready()
        text = "".join(f"{reason}\n" for reason in reasons)
        return web.Response(text=text or "ok\n", status=503 if reasons else 200)


async def _once(_request: web.Request, response: web.StreamResponse) -> None:
    """A connection is for one question: it has no long life anyway."""
    response.force_close()


def _bracketed(host: str, port: int) -> tuple[str, int]:
    return (f"[{host}]" if ":" in host else host), port
