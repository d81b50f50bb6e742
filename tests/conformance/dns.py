"""Answers every question with 192.0.2.1: where the conformance suite has CoreDNS."""

from __future__ import annotations

import asyncio
from typing import Any

_ANSWER = b"\xc0\x0c\0\x01\0\x01\0\0\0\x3c\0\x04\xc0\0\x02\x01"  # a name, type A, one minute


class _Dns(asyncio.DatagramProtocol):
    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, address: Any) -> None:
        question = data[12 : data.index(0, 12) + 5]
        head = data[:2] + b"\x81\x80" + data[4:6] + b"\0\x01\0\0\0\0"
        self.transport.sendto(head + question + _ANSWER, address)


async def _serve() -> None:
    await asyncio.get_running_loop().create_datagram_endpoint(_Dns, ("0.0.0.0", 53))
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve())
