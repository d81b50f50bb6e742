"""A wire that can be listened to and cut: TCP from one port to another."""

from __future__ import annotations

import asyncio
import contextlib


class Recorder:
    """Passes on what comes to `port`; ``heard``: every byte of both directions."""

    def __init__(self, to_port: int) -> None:
        self.port = 0
        self.heard = bytearray()
        self._to_port = to_port
        self._server: asyncio.Server | None = None
        self._ends: set[asyncio.StreamWriter] = set()

    async def start(self) -> None:
        """Take a port, after `cut` the same one."""
        self._server = await asyncio.start_server(self._pass, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def cut(self) -> None:
        """Break every connection, and take none."""
        if self._server is not None:
            self._server.close()
            for writer in self._ends:
                writer.transport.abort()
            await self._server.wait_closed()
            self._server = None

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            to_reader, to_writer = await asyncio.open_connection("127.0.0.1", self._to_port)
        except OSError:
            writer.transport.abort()
            return
        ends = {writer, to_writer}
        self._ends |= ends
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._copy(reader, to_writer))
                both.create_task(self._copy(to_reader, writer))
        finally:
            self._ends -= ends

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                self.heard += data
                writer.write(data)
                await writer.drain()
        writer.close()
