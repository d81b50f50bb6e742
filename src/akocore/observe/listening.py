"""A TCP port that nobody fills up: connections are few, none lives long, and files may run out.

At the limit the oldest connection makes room: who asks now is answered.  When the process has no
file left it says so once a minute and waits a second, instead of trying again at once.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import time
from collections.abc import Callable
from typing import Any, Final

__all__ = ["NO_FILES", "Listening", "OnceAMinute"]

log = logging.getLogger(__name__)

NO_FILES: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
"""What the kernel says when it is not the asked one's fault."""

_AGAIN_S: Final = 1.0


class OnceAMinute:
    """Whether to say something again: ``now`` is a clock in seconds."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._said = float("-inf")

    def due(self) -> bool:
        if (now := self._now()) - self._said < 60:
            return False
        self._said = now
        return True


class Listening:
    """Connections to ``host`` ("": everywhere) and ``port`` (0: any), each with a ``protocol``.

    ``most`` at a time, each for ``life_s`` at most.
    """

    def __init__(
        self,
        protocol: Callable[[], asyncio.BaseProtocol],
        *,
        most: int = 64,
        life_s: float = 30.0,
    ) -> None:
        self._protocol = protocol
        self._most = most
        self._life_s = life_s
        self._sockets: list[socket.socket] = []
        self._open: dict[asyncio.BaseTransport, asyncio.TimerHandle] = {}  # oldest first
        self._joining: set[asyncio.Task[None]] = set()
        self._no_files = OnceAMinute()

    async def start(self, host: str, port: int) -> list[Any]:
        """The addresses that it listens at.  Raises `OSError`."""
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        try:
            for family, _, _, _, at in dict.fromkeys(found):
                self._listen(family, at)
        except OSError:
            self.close()
            raise
        for one in self._sockets:
            loop.add_reader(one, self._accept, one)
        return [one.getsockname() for one in self._sockets]

    def _listen(self, family: int, at: Any) -> None:
        try:
            one = socket.socket(family, socket.SOCK_STREAM)
        except OSError as err:
            if err.errno == errno.EAFNOSUPPORT and len(self._sockets):
                return  # no IPv6 here
            raise
        self._sockets.append(one)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        one.setblocking(False)
        one.bind(at)
        one.listen(128)

    def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        try:
            accepted, _ = listening.accept()
        except (BlockingIOError, InterruptedError, ConnectionError):
            return
        except OSError as err:
            if err.errno not in NO_FILES:
                raise
            if self._no_files.due():
                log.error("event=no_files_left what=accept why=%r", err.strerror)
            loop.remove_reader(listening)
            loop.call_later(_AGAIN_S, self._again, listening)
            return
        accepted.setblocking(False)
        task = loop.create_task(self._join(accepted))
        self._joining.add(task)
        task.add_done_callback(self._joining.discard)

    def _again(self, listening: socket.socket) -> None:
        if listening in self._sockets:
            asyncio.get_running_loop().add_reader(listening, self._accept, listening)

    async def _join(self, accepted: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        try:
            transport, _ = await loop.connect_accepted_socket(self._protocol, accepted)
        except OSError:
            accepted.close()
            return
        for gone in [one for one in self._open if one.is_closing()]:
            self._end(gone)
        while len(self._open) >= self._most:
            self._end(next(iter(self._open)))
        self._open[transport] = loop.call_later(self._life_s, self._end, transport)

    def _end(self, transport: asyncio.BaseTransport) -> None:
        if (timer := self._open.pop(transport, None)) is not None:
            timer.cancel()
        if isinstance(transport, asyncio.Transport):
            transport.abort()

    def close(self) -> None:
        """Listen no more; connections that there are may end by themselves."""
        loop = asyncio.get_running_loop()
        for one in self._sockets:
            loop.remove_reader(one)
            one.close()
        self._sockets.clear()
        for timer in self._open.values():
            timer.cancel()
        self._open.clear()
