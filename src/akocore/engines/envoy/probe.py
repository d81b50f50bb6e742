"""Whether an Envoy still serves: a process that hangs is there, and its listeners take connections.

Its workers are asked, as a client would, on a listener of their own (`bootstrap`, ``alive``): its
main thread may be busy with a big configuration while they serve on.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path

__all__ = ["Probe"]

_QUESTION = b"GET / HTTP/1.1\r\nhost: alive\r\nconnection: close\r\n\r\n"


class Probe:
    """Asks ``socket`` every ``every_s``, each time on a connection of its own.

    ``on_change()`` is called when `alive` has changed.  No answer within ``within_s``: it hangs;
    ``stopped()``: somebody stopped it, so none is waited for.
    """

    def __init__(
        self,
        socket: Path,
        on_change: Callable[[], None],
        *,
        every_s: float = 0.1,
        within_s: float = 1.0,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self._stopped = stopped
        self.alive = False
        self._socket = socket
        self._on_change = on_change
        self._every_s = every_s
        self._within_s = within_s

    async def run(self) -> None:
        """Ask, until cancelled."""
        while True:
            asking = asyncio.create_task(self._ask())
            try:
                while not asking.done() and not self._stopped():
                    await asyncio.wait({asking}, timeout=self._every_s)
                self.set(asking.done() and asking.result() and not self._stopped())
            finally:
                asking.cancel()
            await asyncio.sleep(self._every_s)

    def set(self, alive: bool) -> None:
        """It is known to be so, before it is asked again."""
        if alive is not self.alive:
            self.alive = alive
            self._on_change()

    async def _ask(self) -> bool:
        try:
            async with asyncio.timeout(self._within_s):
                reader, writer = await asyncio.open_unix_connection(self._socket)
                try:
                    writer.write(_QUESTION)
                    return (await reader.readline()).startswith(b"HTTP/1.1 200")
                finally:
                    writer.close()
                    with contextlib.suppress(OSError):
                        await writer.wait_closed()
        except (OSError, TimeoutError):
            return False
