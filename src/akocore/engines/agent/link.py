"""An agent's connection to its controllers: to one at a time, over mutual TLS, for ever."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any

import grpc

from akocore.engines.agent.messages import METHOD, SERVICE
from akocore.engines.envoy.bootstrap import Tls

__all__ = ["Link"]

log = logging.getLogger(__name__)

_AGAIN_FIRST_S, _AGAIN_MAX_S = 0.1, 2.0
_CONNECT_S = 5.0
_OPTIONS = (
    # One that hangs, or whose machine is gone, is left for another in six seconds.
    ("grpc.keepalive_time_ms", 3_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.enable_retries", 0),
    ("grpc.max_receive_message_length", -1),
)


class Link:
    """``report()``: what is to be said now; ``take(raw)``: an order came.

    ``on_change()`` is called when `at` or `why` has changed.  The PEM files are read anew for each
    connection.
    """

    def __init__(
        self,
        controllers: Sequence[tuple[str, int]],
        tls: Tls,
        report: Callable[[], bytes],
        take: Callable[[bytes], None],
        on_change: Callable[[], None],
    ) -> None:
        self.at = ""  # "host:port" of the controller that it is connected to
        self.why = ""  # it is not connected to any
        self._controllers = [
            (host, f"[{host}]:{n}" if ":" in host else f"{host}:{n}") for host, n in controllers
        ]
        self._tls = tls
        self._report = report
        self._take = take
        self._on_change = on_change
        self._due = asyncio.Event()

    def tell(self) -> None:
        """There is something new to report."""
        self._due.set()

    async def run(self) -> None:
        """Stay in touch, until cancelled."""
        number, failures = 0, 0
        while True:
            host, place = self._controllers[number % len(self._controllers)]
            names = self._tls.names or (host,)
            name = names[number // len(self._controllers) % len(names)]
            number += 1
            why = await self._follow(place, name)
            if self.at:
                failures = 0
            self._say("", f"{place}: {why}")
            failures += 1
            # The others are asked at once; then all of them again, ever more slowly.
            rounds = failures // len(self._controllers)
            if failures % len(self._controllers) == 0:
                await asyncio.sleep(min(_AGAIN_FIRST_S * 2 ** min(rounds, 8), _AGAIN_MAX_S))

    def _say(self, at: str, why: str) -> None:
        if (at, why) != (self.at, self.why):
            if at or self.at:
                log.info("event=controller_%s", f"found at={at}" if at else f"lost why={why!r}")
            else:
                log.warning("event=controller_not_found why=%r", why)
            self.at, self.why = at, why
            self._on_change()

    async def _follow(self, place: str, name: str) -> str:
        """Be connected to one controller as long as that goes; why it ended."""
        try:
            ca, key, chain = (
                path.read_bytes() for path in (self._tls.ca, self._tls.key, self._tls.certificate)
            )
        except OSError as err:
            return f"{err.filename} can't be read: {err.strerror}"
        credentials = grpc.ssl_channel_credentials(ca, key, chain)
        options = (*_OPTIONS, ("grpc.ssl_target_name_override", name))
        async with grpc.aio.secure_channel(place, credentials, options=options) as channel:
            method: Any = channel.stream_stream(f"/{SERVICE}/{METHOD}")
            call = method()
            try:
                # A channel that can't connect says why only to a call.
                async with asyncio.timeout(_CONNECT_S):
                    await call.write(self._report())
                    await call.initial_metadata()
            except TimeoutError:
                call.cancel()
                return f"no answer within {_CONNECT_S:g} s"
            except grpc.aio.AioRpcError as err:
                return _reason(err)
            self._say(place, "")
            writer = asyncio.create_task(self._write(call))
            try:
                while (raw := await call.read()) is not grpc.aio.EOF:
                    self._take(raw)
                return "it ended the stream"
            except grpc.aio.AioRpcError as err:
                return _reason(err)
            finally:
                writer.cancel()
                call.cancel()

    async def _write(self, call: Any) -> None:
        try:
            while True:
                await self._due.wait()
                self._due.clear()
                await call.write(self._report())
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            return  # the reader hears it, too


def _reason(err: grpc.aio.AioRpcError) -> str:
    said = err.details() or ""
    _, found, last = said.partition("last error: ")
    return (last if found else said) or err.code().name
