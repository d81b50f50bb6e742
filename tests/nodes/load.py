"""``python load.py '{"HOST": "ADDRESS"}'``: asks for each HOST until standard input ends.

Prints one JSON object: answers by kind, and when others than 200 came.  A connection that is reset
is made once more, as HTTP clients do: a router that spreads flows by hash moves some of them to
another Service Engine when one comes or goes, and that one resets them.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter

_RESET = ("ConnectionResetError", "no answer")
_PATIENCE_S, _PAUSE_S, _AT_ONCE = 5.0, 0.01, 2


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


async def main(targets: dict[str, str]) -> None:
    answers: Counter[str] = Counter()
    failures: list[tuple[float, str]] = []

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
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    print(json.dumps({"answers": answers, "failures": failures}))


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
