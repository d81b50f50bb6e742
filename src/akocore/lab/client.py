"""The lab's client: requests on connections of their own, counted.

``python -m akocore.lab.client --names ADDRESS PORT FIRST_PORT COUNT`` prints a JSON list: the name
that the lab's echo server gives to each connection, from source ports FIRST_PORT and up.

``python -m akocore.lab.client HOST [FIRST_PORT COUNT]`` reads the address to ask from its standard
input, a line whenever it is another one, and asks until that ends; or COUNT times, from source
ports FIRST_PORT and up.  It prints one JSON object: answers by kind, and when others than 200 came.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import sys
import time
from collections import Counter

__all__ = ["ask", "follow", "names"]

_PATIENCE_S = 3.0
_PAUSE_S = 0.01


async def ask(address: str, host: str, port: int | None = None) -> str:
    """ "200" when a pod answers for ``host``, else what happened."""
    source = None if port is None else ("0.0.0.0", port)
    try:
        async with asyncio.timeout(_PATIENCE_S):
            reader, writer = await asyncio.open_connection(address, 80, local_addr=source)
            try:
                head = f"GET / HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n"
                writer.write(head.encode())
                answer = await reader.read()
            finally:
                writer.close()
    except (OSError, TimeoutError) as err:
        return type(err).__name__
    status = answer.split(b" ")[1:2]
    if status == [b"200"] and not answer.partition(b"\r\n\r\n")[2].startswith(host.encode()):
        return "wrong application"
    return status[0].decode() if status else "no answer"


async def follow(host: str) -> dict[str, object]:
    """Ask wherever the last line of the standard input says, one request after another."""
    answers: Counter[str] = Counter()
    failures: list[tuple[float, str]] = []
    lines: asyncio.Queue[str] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def read() -> None:
        for line in sys.stdin:
            loop.call_soon_threadsafe(lines.put_nowait, line.strip())
        loop.call_soon_threadsafe(lines.put_nowait, "")

    reading = loop.run_in_executor(None, read)
    address = await lines.get()
    while address:
        answer = await ask(address, host)
        answers[answer] += 1
        if answer != "200":
            failures.append((time.time(), answer))
        await asyncio.sleep(_PAUSE_S)
        while not lines.empty():
            address = lines.get_nowait()
    await reading
    return {"answers": answers, "failures": failures}


async def _counted(host: str, first: int, count: int) -> dict[str, object]:
    address = sys.stdin.readline().strip()
    answers: Counter[str] = Counter()
    for port in range(first, first + count):
        answers[await ask(address, host, port)] += 1
    return {"answers": answers, "failures": []}


async def names(address: str, port: int, first: int, count: int) -> list[str]:
    """Who answers each connection; "" for one that fails."""
    out = []
    for source in range(first, first + count):
        try:
            async with asyncio.timeout(_PATIENCE_S):
                reader, writer = await asyncio.open_connection(
                    address, port, local_addr=("0.0.0.0", source)
                )
                writer.write(b"GET / HTTP/1.1\r\n\r\n")
                body = await reader.read(4096)
                out.append(body.split()[-1].decode())
                # Closed by a reset, so that no port waits for a minute.
                linger = struct.pack("ii", 1, 0)
                writer.get_extra_info("socket").setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, linger
                )
                writer.close()
        except (OSError, TimeoutError, IndexError):
            out.append("")
    return out


if __name__ == "__main__" and sys.argv[1] == "--names":
    where, *numbers = sys.argv[2:]
    print(json.dumps(asyncio.run(names(where, *map(int, numbers)))))
elif __name__ == "__main__":
    name, *ports = sys.argv[1:]
    work = _counted(name, int(ports[0]), int(ports[1])) if ports else follow(name)
    print(json.dumps(asyncio.run(work)))
