"""Route health injection: the controller drives Service Engines of the lab, end to end."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import textwrap
from pathlib import Path

import pytest

from akocore.engines.envoy.process import Envoy, find_envoy
from lab.rhi_house import HOST, SES, VS, House, app, network, setting

pytestmark = pytest.mark.real


async def test_the_walkthroughs_story_of_rhi(house: House) -> None:
    vip = "10.10.16.224"
    house.write("networks", network("uplink", "10.10.16", "224"))
    house.write("setting", setting(rhi=False))
    house.write("app", *app())
    await house.until_status("vs", VS, vip=vip, state="up", serviceEngines=SES[:2])
    assert await house.topology.next_hops(vip) == ()  # it is served, and nobody is told

    house.write("setting", setting(rhi=True))
    await house.until_ways(vip, 192, 193)
    assert set(await house.requests(vip, 20)) == {"200"}
    await house.until_status("vs", VS, state="up", announcedBy=SES[:2])

    assert await house.ask("Scale", vs=VS, by=1) == {"before": 2, "wanted": 3}
    await house.until_ways(vip, 192, 193, 194)
    assert set(await house.requests(vip, 20)) == {"200"}
    said = await house.ask("Scale", vs=VS, by=1)
    assert "has maxSePerVs 3" in said["refused"]

    await house.ask("Scale", vs=VS, to=2)
    await house.until_ways(vip, 192, 193)
    assert set(await house.requests(vip, 20)) == {"200"}

    house.write("setting", setting(rhi=False))
    await house.until_ways(vip)


async def test_an_envoy_that_is_killed_takes_its_route_with_it(house: House) -> None:
    vip = "10.10.16.224"
    house.write("networks", network("uplink", "10.10.16", "224"))
    house.write("setting", setting(rhi=True))
    house.write("app", *app())
    await house.until_ways(vip, 192, 193)
    engines = house.serve.engines
    process = engines.running[SES[0]]
    assert process.pid is not None
    engines._envoy = Envoy(Path("/no/envoy"), "1.40.0")  # so that it stays down
    os.kill(process.pid, signal.SIGKILL)
    await house.until_ways(vip, 193)
    assert await house.requests(vip, 20) == ["200"] * 20
    await house.until_status("vs", VS, state="degraded", serviceEngines=[SES[1]])
    assert "1 of 2 Service Engines" in (await house.get("vs", VS))["why"]
    engines._envoy = find_envoy()
    await house.until_ways(vip, 192, 193)
    await house.until_status("vs", VS, state="up")


async def test_an_envoy_that_hangs_takes_its_route_with_it(house: House) -> None:
    vip = "10.10.16.224"
    house.write("networks", network("uplink", "10.10.16", "224"))
    house.write("setting", setting(rhi=True))
    house.write("app", *app())
    await house.until_ways(vip, 192, 193)
    process = house.serve.engines.running[SES[0]]
    assert process.pid is not None
    os.kill(process.pid, signal.SIGSTOP)
    try:
        await house.until_ways(vip, 193)
        assert await house.requests(vip, 20) == ["200"] * 20
    finally:
        os.kill(process.pid, signal.SIGCONT)
    await house.until_ways(vip, 192, 193)


async def test_a_network_moves_live_and_the_old_address_goes_last(house: House) -> None:
    old, new = "10.10.16.224", "10.10.17.224"
    house.write(
        "networks",
        network("uplink", "10.10.16", "224"),
        network("other", "10.10.17", "224"),
        network("quiet", "10.10.18", "224", bgp=False),
    )
    house.write("setting", setting(rhi=True))
    house.write("app", *app())
    await house.until_ways(old, 192, 193)
    house.write("setting", setting(rhi=True, name="other"))
    await house.until_status("vs", VS, vip=new)
    routing = [(await house.get("se", name))["routing"] for name in SES[:2]]
    assert any(f"{new}/32" in one["advertised"] for one in routing)  # before status said so
    await house.until_ways(new, 192, 193)
    assert set(await house.requests(new, 20)) == {"200"}
    await house.until_ways(old)

    # What can't be announced is refused, and what was accepted goes on.
    house.write("setting", setting(rhi=True, name="quiet"))
    await house.until_status("aviinfrasetting", "critical.infra", status="Rejected")
    said = await house.get("aviinfrasetting", "critical.infra")
    assert "Network quiet has no bgp: give it localAs and peers" in said["error"]
    await house.until_ways(new, 192, 193)

    await house.serve.routes.look()  # type: ignore[union-attr]
    said = await house.get("se", SES[0])
    assert said["routing"]["address"] == "10.10.16.192"
    assert said["routing"]["advertised"] == [f"{new}/32"]
    assert [(s["peer"], s["state"]) for s in said["routing"]["bgp"]] == [
        ("10.10.16.250", "Established")
    ]
    events = (await house.ask("Get", kind="events"))["items"]
    assert (f"ServiceEngine/{SES[0]}", "BgpUp") in {(e["regarding"], e["reason"]) for e in events}


KEPT = textwrap.dedent(f"""
    import socket, sys
    kept = []
    for line in sys.stdin:
        word, *rest = line.split()
        if word == "open":
            for _ in range(int(rest[0])):
                one = socket.create_connection(("10.10.16.224", 80), 5)
                one.settimeout(5)
                kept.append(one)
        elif word == "close":
            for one in kept:
                one.close()
            kept = []
        whole = []
        for one in kept:
            try:
                one.sendall(b"GET / HTTP/1.1\\r\\nhost: {HOST}\\r\\n\\r\\n")
                if one.recv(4096).startswith(b"HTTP/1.1 200"):
                    whole.append(one)
            except OSError:
                pass
        print(len(kept) - len(whole), flush=True)
        kept = whole
""")


@pytest.mark.parametrize("house", [{"handover": True}], indirect=True, ids=["handover"])
async def test_scaling_by_the_controller_breaks_no_connection(house: House) -> None:
    vip = "10.10.16.224"
    house.write("networks", network("uplink", "10.10.16", "224"))
    house.write("setting", setting(rhi=True))
    house.write("app", *app())
    await house.until_ways(vip, 192, 193)
    client = await asyncio.create_subprocess_exec(
        *house.topology.namespaces.command("client", [sys.executable, "-c", KEPT]),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )

    async def tell(words: str) -> int:
        assert client.stdin is not None
        assert client.stdout is not None
        client.stdin.write(f"{words}\n".encode())
        return int(await asyncio.wait_for(client.stdout.readline(), 60))

    async def ring() -> set[str]:
        there = [e.name for e in house.topology.engines.values()]
        rings = [house.topology.handover(name).ring for name in there]
        return {member.name for one in rings if one is not None for member in one.members}

    try:
        assert await tell("open 100") == 0
        await house.ask("Scale", vs=VS, by=1)
        await house.until_ways(vip, 192, 193, 194)
        assert await tell("ask") == 0
        assert await tell("open 100") == 0
        await house.ask("Scale", vs=VS, to=2)
        await house.until_ways(vip, 192, 193)
        for _ in range(3):
            assert await tell("ask") == 0
            await asyncio.sleep(0.3)
        assert len(await ring()) == 3  # who leaves still owns some
        await tell("close")

        async def left() -> bool:
            return len(house.topology.engines) == 2 and len(await ring()) == 2

        await house.until(left)

        # A Service Engine that dies is asked no more.
        engines = house.serve.engines
        process = engines.running[SES[0]]
        assert process.pid is not None
        engines._envoy = Envoy(Path("/no/envoy"), "1.40.0")
        os.kill(process.pid, signal.SIGKILL)
        await house.until_ways(vip, 193)
        last = house.topology.handover("se-2").ring
        assert last is not None
        assert [member.name for member in last.members] == ["se-2"]
        engines._envoy = find_envoy()
    finally:
        client.kill()
        await client.communicate()
