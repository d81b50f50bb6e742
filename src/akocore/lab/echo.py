"""A server that answers every HTTP request with a name: pods, and VIPs without an Envoy.

``python -m akocore.lab.echo ADDRESS:PORT=NAME...`` answers until it is killed; an IPv6 address
stands in brackets.
"""

from __future__ import annotations

import asyncio
import sys
from functools import partial

__all__ = ["Echo", "serve"]


class Echo(asyncio.Protocol):
    """One connection, kept open; a request ends at an empty line and has no body."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        *requests, self._rest = (self._rest + data).split(b"\r\n\r\n")
        for request in requests:
            host = ""
            for line in request.split(b"\r\n")[1:]:
                key, _, value = line.partition(b":")
                if key.lower() == b"host":
                    host = value.strip().decode("latin-1")
            body = f"{host} is served by {self._name}\n".encode("latin-1")
            head = f"HTTP/1.1 200 OK\r\ncontent-length: {len(body)}\r\n\r\n"
            self._transport.write(head.encode() + body)
        if len(self._rest) > 65_536:
            self._transport.close()


async def serve(places: list[tuple[str, int, str]]) -> None:
    """Answer at each (address, port) with its name, for ever."""
    loop = asyncio.get_running_loop()
    for address, port, name in places:
        await loop.create_server(partial(Echo, name), address, port)
    print("listening", flush=True)
    await asyncio.Event().wait()


def _place(word: str) -> tuple[str, int, str]:
    at, _, name = word.partition("=")
    address, _, port = at.rpartition(":")
    return address.strip("[]"), int(port), name


if __name__ == "__main__":
    asyncio.run(serve([_place(word) for word in sys.argv[1:]]))
