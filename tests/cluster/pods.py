"""Backends that an API server takes as endpoints: in a network namespace of their own."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ADDRESS, PORT = "10.199.0.2", 8080
_GATEWAY, _NAMESPACE, _LINK = "10.199.0.1", "akocore-pods", "akocore-pods"


def _ip(*words: str, check: bool = True) -> None:
    subprocess.run(["ip", *words], check=check, capture_output=not check)


@contextmanager
def pods() -> Iterator[str]:
    """ "address:port" where every request is answered with "ok"."""
    _remove()
    _ip("netns", "add", _NAMESPACE)
    server = None
    try:
        _ip("link", "add", _LINK, "type", "veth", "peer", "name", "eth0", "netns", _NAMESPACE)
        _ip("addr", "add", f"{_GATEWAY}/24", "dev", _LINK)
        _ip("link", "set", _LINK, "up")
        _ip("-n", _NAMESPACE, "addr", "add", f"{ADDRESS}/24", "dev", "eth0")
        _ip("-n", _NAMESPACE, "link", "set", "eth0", "up")
        command = ["ip", "netns", "exec", _NAMESPACE, sys.executable, __file__]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
        server = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
        assert server.stdout is not None
        assert server.stdout.readline() == b"listening\n"
        yield f"{ADDRESS}:{PORT}"
    finally:
        if server is not None:
            server.send_signal(signal.SIGKILL)
            server.wait()
            if server.stdout is not None:
                server.stdout.close()
        _remove()


def _remove() -> None:
    _ip("netns", "del", _NAMESPACE, check=False)
    _ip("link", "del", _LINK, check=False)


async def _serve() -> None:
    from e2e.running import Backend

    await asyncio.get_running_loop().create_server(Backend, ADDRESS, PORT)
    print("listening", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve())
