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

from agent.conftest import VIP, VS, Site
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


async def test_a_service_engine_that_gives_an_address_up_serves_its_connections_on(
    site: Site,
) -> None:
    """It stays, and the virtual service is on fewer."""
    manifests(site)
    wide(site, 3)
    site.controller()
    for number in (1, 2, 3):
        await site.agent(number)
    await site.until_ways(VIP, 192, 193, 194)
    await until_ring(site, 1, 2, 3)
    async with kept(site) as tell:
        assert await tell(f"open {FLOWS}") == 0
        wide(site, 2)

        async def fewer() -> bool:
            return len(await site.topology.next_hops(VIP)) == 2

        await site.until(fewer)
        for _ in range(8):  # longer than a VIP is held where flows are not handed over
            assert await tell("ask") == 0
            await asyncio.sleep(0.3)
        assert await owned(site, 3) + await owned(site, 2) + await owned(site, 1) == FLOWS


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


async def test_what_is_handed_over_is_shown(site: Site) -> None:
    manifests(site)
    site.controller()
    for number in (1, 2):
        await site.agent(number, "--metrics-listen", "127.0.0.1:9811")
    await site.until_ways(VIP, 192, 193)
    await until_ring(site, 1, 2)
    async with kept(site) as tell:
        assert await tell("open 50") == 0
        await site.agent(3)
        await until_ring(site, 1, 2, 3)
        wide(site, 3)
        await site.until_ways(VIP, 192, 193, 194)
        assert await tell("ask") == 0

        async def said() -> list[dict[str, object]]:
            return [(await site.get("se", f"se-{n}")).get("handover", {}) for n in (1, 2, 3)]

        async def counted() -> bool:
            now = await said()
            flows = sum(int(str(one.get("flows", 0))) for one in now)
            return flows == 50 and sum(int(str(one.get("begun", 0))) for one in now) > 0

        await site.until(counted)
        ring = ["se-1 10.10.16.192", "se-2 10.10.16.193", "se-3 10.10.16.194"]
        assert [one["ring"] for one in await said()] == [ring] * 3
        assert "- se-2 10.10.16.193" in await site.akocore("se", "show", "se-1")
        code = (
            "from urllib.request import urlopen;"
            "print(urlopen('http://127.0.0.1:9811/metrics').read().decode())"
        )
        text = await site.topology.namespaces.run("se-1", [sys.executable, "-c", code])
        assert "akocore_se_ring_members 3.0" in text
        assert 'akocore_se_handed_over_packets_total{kind="begun"}' in text


async def test_what_keeps_flows_from_being_handed_over_is_said_and_is_off_for_it_alone(
    site: Site,
) -> None:
    manifests(site)
    site.controller()
    await site.agent(1)
    await site.place(2)
    await site.topology.namespaces.sysctl("se-2", {"net/netfilter/nf_conntrack_tcp_loose": 0})
    read_only = (
        'mount --bind /proc/sys /proc/sys && mount -o remount,ro,bind /proc/sys && exec "$@"'
    )
    await site.agent(2, before=["unshare", "-m", "sh", "-c", read_only, "sh"])
    await site.until_ways(VIP, 192, 193)
    wanted = "Set net.netfilter.nf_conntrack_tcp_loose=1 on this node"
    await site.until_says("se", "se-2", "problems", wanted)
    assert await site.requests(VIP, HOST, 10) == {"200": 10}
    assert ring(site, 1) == ["se-1"]
    events = (await site.ask("Get", kind="events"))["items"]
    assert any(wanted in str(event) and "FlowsNotHandedOver" in str(event) for event in events)
    await site.topology.namespaces.sysctl("se-2", {"net/netfilter/nf_conntrack_tcp_loose": 1})
    await until_ring(site, 1, 2)  # it tries again
    assert (await site.get("se", "se-2"))["problems"] == []


async def test_rules_that_somebody_takes_away_come_back(site: Site) -> None:
    manifests(site)
    site.controller()
    for number in (1, 2):
        await site.agent(number)
    await until_ring(site, 1, 2)
    run = site.topology.namespaces.run
    await run("se-1", ["nft", "flush", "ruleset"])

    async def back() -> bool:
        return "ip ttl set" in await run("se-1", ["nft", "list", "ruleset"])

    await site.until(back)


async def test_controllers_come_and_go_and_rings_stay(site: Site) -> None:
    manifests(site)
    controller = site.controller()
    await site.agent(1)
    await site.agent(2)
    await until_ring(site, 1, 2)
    await site.until_ways(VIP, 192, 193)
    controller.kill()
    before = len(site.processes["se-1"].log.read_text())
    site.controller()
    await site.until_status("vs", VS, announcedBy=["se-1", "se-2"], state="up")
    await asyncio.sleep(3)
    since = site.processes["se-1"].log.read_text()[before:]
    assert "event=controller_found" in since
    assert "members=1" not in since
    assert ring(site, 1) == ring(site, 2) == ["se-1", "se-2"]
