"""``python load.py '{"HOST": "ADDRESS"}' KEPT``: asks for each HOST until standard input ends.

Prints one JSON object: answers by kind, and when others than 200 came.  A connection that is reset
is made once more, as HTTP clients do.  KEPT connections of each HOST are kept besides, and ask now
and then: ``kept`` counts their answers, ``closed`` those that were asked to end with an answer, and
one that ends otherwise is ``broken``, which is a failure.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from asyncio import StreamReader, StreamWriter
from collections import Counter

_RESET = ("ConnectionResetError", "no answer")
_PATIENCE_S, _PAUSE_S, _AT_ONCE = 5.0, 0.01, 2
_KEPT_PAUSE_S = 0.5


async def _ask(address: str, host: str) -> str:
    try:
        async with asyncio.timeout(_PATIENCE_S):
            reader, writer = await asyncio.open_connection(address, 80)
            try:
                writer.write(
                    f"GET / HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n".encode()
                )
                answer = await reader.read()
            finally:
                writer.close()
    except (OSError, TimeoutError) as err:
        return type(err).__name__
    status = answer.split(b" ")[1:2]
    return status[0].decode() if status else "no answer"


async def _ask_again(reader: StreamReader, writer: StreamWriter, host: str) -> bytes:
    """The head of an answer on a connection that goes on."""
    async with asyncio.timeout(_PATIENCE_S):
        writer.write(f"GET / HTTP/1.1\r\nhost: {host}\r\n\r\n".encode())
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = next(line for line in head.splitlines() if line.startswith(b"content-length:"))
        await reader.readexactly(int(length.split(b":")[1]))
        return head


async def main(targets: dict[str, str], kept: int) -> None:
    answers: Counter[str] = Counter()
    failures: list[tuple[float, str]] = []

    async def keep(host: str, address: str) -> None:
        while True:
            reader, writer = await asyncio.open_connection(address, 80)
            came_by = writer.get_extra_info("sockname")[1]
            try:
                closed = False
                while not closed:
                    head = await _ask_again(reader, writer, host)
                    answers["kept"] += 1
                    closed = b"connection: close" in head
                    await asyncio.sleep(_KEPT_PAUSE_S)
                answers["closed"] += 1
            except (OSError, EOFError, TimeoutError) as err:
                answers["broken"] += 1
                said = f"{type(err).__name__} on a kept connection of port {came_by}"
                failures.append((time.time(), f"{host} at {address}: {said}"))
            finally:
                writer.close()

    async def go_on(host: str, address: str) -> None:
        while True:
            began = time.time()
            answer = await _ask(address, host)
            if answer in _RESET:
                answers["reset"] += 1
                answer = await _ask(address, host)
            answers[answer] += 1
            if answer != "200":
                failures.append((began, f"{host} at {address}: {answer}"))
            await asyncio.sleep(_PAUSE_S)

    tasks = [asyncio.create_task(go_on(*one)) for one in targets.items() for _ in range(_AT_ONCE)]
    tasks += [asyncio.create_task(keep(*one)) for one in targets.items() for _ in range(kept)]
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    print(json.dumps({"answers": answers, "failures": failures}))


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1]), int(sys.argv[2])))
