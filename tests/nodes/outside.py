"""What is outside of the cluster: a router that speaks BGP with Service Engines, and a client.

```
 client ─────── router ─────── bridge ─┬─ n1    client 10.99.0.10
 10.99.0.0/24   AS 6000   10.77.0.0/24 ├─ n2    router 10.99.0.1 and 10.77.0.254
                                       └─ n3    nodes  10.77.0.11, ...: AS 5000
```
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from akocore.engines.frr.process import Router, end, find_frr
from akocore.lab.upstream import Upstream, next_hops, render
from nodes.cluster import NAMESPACE, within

ROUTER, CLIENT = "ako-router", "ako-client"
PEER = "10.77.0.254"
_CLIENTS = "10.99.0.0/24"
_T = TypeVar("_T")


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


def _cable(one: str, device: str, other: str, its_device: str) -> None:
    peer = ("type", "veth", "peer", "name", its_device, "netns", other)
    _run("ip", "link", "add", device, "netns", one, *peer)


class Outside:
    """Set up by `start`, in ``home``; the cluster must be up."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def start(self) -> None:
        self.stop()
        for name in (ROUTER, CLIENT):
            _run("ip", "netns", "add", name)
            _run("ip", "-n", name, "link", "set", "lo", "up")
        _cable(NAMESPACE, "v-router", ROUTER, "in")
        _run("ip", "-n", NAMESPACE, "link", "set", "v-router", "master", "br0", "up")
        _cable(ROUTER, "out", CLIENT, "eth0")
        for name, device, address in (
            (ROUTER, "in", f"{PEER}/24"),
            (ROUTER, "out", "10.99.0.1/24"),
            (CLIENT, "eth0", "10.99.0.10/24"),
        ):
            _run("ip", "-n", name, "addr", "add", address, "dev", device)
            _run("ip", "-n", name, "link", "set", device, "up")
        _run("ip", "-n", CLIENT, "route", "add", "default", "via", "10.99.0.1")
        _run("ip", "-n", NAMESPACE, "route", "replace", _CLIENTS, "via", PEER)
        settings = ("ip_forward=1", "fib_multipath_hash_policy=1", "conf.all.rp_filter=0")
        within(ROUTER, ["sysctl", "-qw", *(f"net.ipv4.{one}" for one in settings)])

        async def route() -> None:
            router = Router(self.home / "router", find_frr(), Path("/run/netns") / ROUTER)
            await router.start(render(Upstream(ranges=("10.77.0.0/24",))))
            router.release()

        asyncio.run(route())

    def stop(self) -> None:
        with contextlib.suppress(OSError):
            end(self.home / "router")
        for name in (ROUTER, CLIENT):
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)

    def next_hops(self, address: str) -> set[str]:
        """By whom the router reaches a VIP."""
        said = within(ROUTER, ["ip", "-j", "route", "show", f"{address}/32"])
        return {hop.address for hop in next_hops(said)}


def until(said: Callable[[], _T], seconds: float = 60, why: Callable[[], str] = str) -> _T:
    """What is said once it is true; a command that fails meanwhile has said nothing."""
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(RuntimeError):
            if found := said():
                return found
        if time.monotonic() > deadline:
            raise TimeoutError(f"not true after {seconds:g} s: {why()}")
        time.sleep(0.2)


class Load:
    """Requests from the client as long as the block lasts.

    On connections of their own, and on ``kept`` ones of each host that go on.  ``answers``: "200"
    or what happened, and how often; ``failures``: when, and what.
    """

    def __init__(self, targets: dict[str, str], kept: int = 0) -> None:
        self._targets = targets  # host → address
        self._kept = kept
        self.answers: dict[str, int] = {}
        self.failures: list[tuple[float, str]] = []

    def __enter__(self) -> Load:
        self._process = subprocess.Popen(
            [
                *("nsenter", f"--net=/run/netns/{CLIENT}", "--", sys.executable),
                *(str(Path(__file__).with_name("load.py")), json.dumps(self._targets)),
                str(self._kept),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, at: TracebackType | None
    ) -> None:
        said, _ = self._process.communicate("")
        found = json.loads(said)
        self.answers, self.failures = found["answers"], [tuple(f) for f in found["failures"]]
