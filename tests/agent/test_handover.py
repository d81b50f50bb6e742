"""Flows are handed over between Service Engines that a controller directs by their agents."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import textwrap
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from agent.conftest import VIP, Site
from agent.test_agent import manifests
from akocore.engines.handover import Handover
from lab.rhi_house import HOST, setting

pytestmark = pytest.mark.real

FLOWS = 200
# Keeps connections as HTTP clients do: who is told that one closes opens another.
KEPT = textwrap.dedent(f"""
    import socket, sys
    def connected():
        one = socket.create_connection(("{VIP}", 80), 5)
        one.settimeout(10)
        return one
    kept = []
    for line in sys.stdin:
        word, *rest = line.split()
        if word == "open":
            kept += [connected() for _ in range(int(rest[0]))]
        elif word == "close":
            for one in kept:
                one.close()
            kept = []
        whole = []
        for one in kept:
            try:
                one.sendall(b"GET / HTTP/1.1\\r\\nhost: {HOST}\\r\\n\\r\\n")
                answer = one.recv(4096)
                if answer.startswith(b"HTTP/1.1 200"):
                    whole.append(connected() if b"connection: close" in answer else one)
            except OSError:
                pass
        print(len(kept) - len(whole), flush=True)
        kept = whole
""")
Tell = Callable[[str], "asyncio.Future[int]"]


@asynccontextmanager
async def kept(site: Site) -> AsyncIterator[Tell]:
    """Says "open N", "ask", "close" to a client that keeps connections; how many broke."""
    client = await asyncio.create_subprocess_exec(
        *site.topology.namespaces.command("client", [sys.executable, "-c", KEPT]),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )

    async def told(words: str) -> int:
        assert client.stdin is not None
        assert client.stdout is not None
        client.stdin.write(f"{words}\n".encode())
        return int(await asyncio.wait_for(client.stdout.readline(), 60))

    try:
        yield lambda words: asyncio.ensure_future(told(words))
    finally:
        client.kill()
        await client.communicate()


def wide(site: Site, count: int) -> None:
    """Have the virtual service on so many Service Engines."""
    made = setting(rhi=True)
    made["metadata"]["annotations"] = {"akocore.io/scale-out": str(count)}
    site.write("setting", made)


def ring(site: Site, number: int) -> list[str]:
    """Who is in the ring of a Service Engine, as it remembers it."""
    found = Handover(site.state(number) / "handover.json").ring
    return [member.name for member in found.members] if found is not None else []


async def until_ring(site: Site, *numbers: int) -> None:
    wanted = [f"se-{n}" for n in numbers]

    async def there() -> bool:
        return all(ring(site, n) == wanted for n in numbers)

    await site.until(there)


async def owned(site: Site, number: int) -> int:
    path = site.topology.namespaces.path(f"se-{number}")
    return await Handover(site.home / "none.json", path).owned(VIP)


async def test_scaling_and_leaving_break_no_connection_and_a_crash_its_own_alone(
    site: Site,
) -> None:
    manifests(site)
    site.controller()
    for number in (1, 2):
        await site.agent(number, "--flows", "30")
    await site.until_ways(VIP, 192, 193)
    await until_ring(site, 1, 2)
    async with kept(site) as tell:
        assert await tell(f"open {FLOWS}") == 0
        third = await site.agent(3, "--flows", "30")
        await until_ring(site, 1, 2, 3)
        wide(site, 3)
        await site.until_ways(VIP, 192, 193, 194)
        assert await tell("ask") == 0
        assert await tell(f"open {FLOWS}") == 0

        # It leaves: its connections go on through the others, and it goes when they are over.
        assert await owned(site, 3) > FLOWS / 8
        third.send(signal.SIGTERM)
        await site.until_ways(VIP, 192, 193)
        while third.running:
            assert await tell("ask") == 0
        assert await third.ended() == 0
        await until_ring(site, 1, 2)

        # What it had in the kernel has gone with it.
        run = site.topology.namespaces.run
        assert await run("se-3", ["nft", "list", "ruleset"]) == ""
        assert "akocore-ho" not in await run("se-3", ["ip", "link"])

        # One whose Envoy is killed costs what it owned, and nothing of the others.
        third = await site.agent(3)
        await site.until_ways(VIP, 192, 193, 194)
        await until_ring(site, 1, 2, 3)
        assert await tell(f"open {FLOWS}") == 0
        lost = await owned(site, 3)
        assert lost > FLOWS / 8
        os.kill(site.envoy(3), signal.SIGKILL)
        await site.until_ways(VIP, 192, 193)
        assert await tell("ask") == lost


async def test_without_handover_the_same_breaks_connections(site: Site) -> None:
    manifests(site)
    site.group(minSePerVs=2, maxSePerVs=4, maxSe=4, flowHandover=False)
    site.controller()
    for number in (1, 2):
        await site.agent(number)
    await site.until_ways(VIP, 192, 193)
    async with kept(site) as tell:
        assert await tell(f"open {FLOWS}") == 0
        third = await site.agent(3)
        wide(site, 3)
        await site.until_ways(VIP, 192, 193, 194)
        assert await tell("ask") > FLOWS / 8
        assert await tell(f"open {FLOWS}") == 0
        third.send(signal.SIGTERM)
        await site.until_ways(VIP, 192, 193)
        assert await tell("ask") > FLOWS / 8
    assert "akocore_handover" not in await site.topology.namespaces.run(
        "se-1", ["nft", "list", "tables"]
    )
