"""The lab's traffic: new connections at a rate, and kept ones, counted.

``python -m akocore.lab.load ADDRESS HOST RATE KEPT PATIENCE_MS`` opens RATE connections a second, a
request on each, and has KEPT more that ask again and again, till its standard input ends.  It says
``ready``, then, at the end, one JSON object: see `Load.said`.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from typing import Any

__all__ = ["Load"]

_KEPT_EVERY_S = 0.2


class Load:
    """``patience_s``: who isn't answered by then has failed."""

    def __init__(self, address: str, host: str, patience_s: float, port: int = 80) -> None:
        self._address = address
        self._port = port
        self._patience_s = patience_s
        self._asking = f"GET / HTTP/1.1\r\nhost: {host}\r\n".encode()
        self._took: list[float] = []
        self._answers: Counter[str] = Counter()
        self._failed: list[tuple[float, str]] = []  # when it began (seconds since 1970), how
        self._broken = 0

    async def run(self, rate: float, kept: int, stop: asyncio.Event) -> None:
        """Ask until ``stop``."""
        tasks = [asyncio.create_task(self._keep(stop)) for _ in range(kept)]
        loop = asyncio.get_running_loop()
        due = loop.time()
        while rate and not stop.is_set():
            tasks = [task for task in tasks if not task.done()]
            tasks.append(asyncio.create_task(self._new()))
            due += 1 / rate
            await asyncio.sleep(max(due - loop.time(), 0))
        await stop.wait()
        await asyncio.gather(*tasks)

    def said(self) -> dict[str, Any]:
        """``answers`` by kind; ``failed``: when each began and how; ``broken`` kept connections;
        ``p50_ms`` and ``p99_ms`` of those that were answered."""
        took = sorted(self._took)
        at = {p: took[min(int(p * len(took)), len(took) - 1)] if took else 0 for p in (0.5, 0.99)}
        return {
            "answers": dict(self._answers),
            "failed": self._failed,
            "broken": self._broken,
            "p50_ms": round(1000 * at[0.5], 2),
            "p99_ms": round(1000 * at[0.99], 2),
        }

    async def _new(self) -> None:
        began, clock = time.time(), time.perf_counter()
        answer = await self._once()
        self._answers[answer] += 1
        if answer == "200":
            self._took.append(time.perf_counter() - clock)
        else:
            self._failed.append((began, answer))

    async def _once(self) -> str:
        try:
            async with asyncio.timeout(self._patience_s):
                reader, writer = await asyncio.open_connection(self._address, self._port)
                try:
                    writer.write(self._asking + b"connection: close\r\n\r\n")
                    answer = await reader.read()
                finally:
                    writer.close()
        except (OSError, TimeoutError) as err:
            return type(err).__name__
        code = answer[9:12].decode("latin-1")
        return code if answer.startswith(b"HTTP/1.1 ") else "no answer"

    async def _keep(self, stop: asyncio.Event) -> None:
        try:
            async with asyncio.timeout(5):
                reader, writer = await asyncio.open_connection(self._address, self._port)
            while not stop.is_set():
                writer.write(self._asking + b"\r\n")
                async with asyncio.timeout(3):
                    head = await reader.readuntil(b"\r\n\r\n")
                    length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
                    await reader.readexactly(int(length or 0))
                await asyncio.sleep(_KEPT_EVERY_S)
            writer.close()
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            self._broken += 1


async def _main(address: str, host: str, rate: float, kept: int, patience_ms: float) -> None:
    load, stop = Load(address, host, patience_ms / 1000), asyncio.Event()
    loop = asyncio.get_running_loop()

    def until_closed() -> None:
        sys.stdin.read()
        loop.call_soon_threadsafe(stop.set)

    reading = loop.run_in_executor(None, until_closed)
    print("ready", flush=True)
    await load.run(rate, kept, stop)
    await reading
    print(json.dumps(load.said()), flush=True)


if __name__ == "__main__":
    where, name, *numbers = sys.argv[1:]
    asyncio.run(_main(where, name, float(numbers[0]), int(numbers[1]), float(numbers[2])))
