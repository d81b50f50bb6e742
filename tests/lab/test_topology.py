"""The walkthrough's network, running: what its router sees of Service Engines."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path

import pytest

from akocore import EcmpGroup
from akocore.engines.frr.process import Frr
from akocore.lab.topology import EngineState, LabError, Plan, Topology, sweep
from akocore.lab.upstream import NextHop
from frr.conftest import PREFIX, Lab

pytestmark = pytest.mark.real

VIP, SECOND = "10.10.16.224", "10.10.16.225"
SE_1, SE_2, SE_3 = (f"10.10.16.{n}" for n in (192, 193, 194))


async def ways(topology: Topology, vip: str = VIP) -> set[str]:
    return {hop.address for hop in await topology.next_hops(vip)}


def of_the_lab() -> list[str]:
    """Processes and namespaces that only a lab of these tests can have left."""
    names = os.listdir("/run/netns") if Path("/run/netns").exists() else []
    found = [name for name in names if name.startswith(PREFIX)]
    for entry in Path("/proc").iterdir():
        try:
            argv = (entry / "cmdline").read_text().split("\0")
        except OSError:
            continue
        if entry.name.isdigit() and any(f"/{PREFIX}" in word for word in argv):
            found.append(" ".join(argv))
    return found


def program(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


def traces(programs: dict[int, str]) -> list[str]:
    """Processes, also defunct ones, and FRR's directories for their crashes: of ``programs``."""
    names = [f"/proc/{pid}" for pid in programs]
    names += [f"/var/tmp/frr/{program}.{pid}" for pid, program in programs.items()]
    return [name for name in names if os.path.exists(name)]


# ─── the walkthrough's story


async def test_service_engines_come_and_go_in_the_routers_kernel(lab: Lab) -> None:
    async with lab(0) as topology:
        assert await topology.next_hops(VIP) == ()
        assert await topology.show_route(VIP) == ""
        await topology.add_se()
        await topology.add_se()
        await topology.until_hops(VIP, 2)
        assert set(await topology.next_hops(VIP)) == {NextHop(SE_1, "eth1"), NextHop(SE_2, "eth1")}

        # Scale out: after just one second a new route is announced through this new peering.
        assert await topology.add_se() == "se-3"
        await topology.until_hops(VIP, 3)
        shown = await topology.show_route(VIP)
        assert re.sub(r"\d\d:\d\d:\d\d", "TIME", shown) == (
            "B        10.10.16.224/32 [20/0] via 10.10.16.194, TIME\n"
            "                         [20/0] via 10.10.16.193, TIME\n"
            "                         [20/0] via 10.10.16.192, TIME"
        )
        summary = await topology.show_bgp_summary()
        assert "BGP router identifier 22.22.22.22, local AS number 6000" in summary
        assert re.search(r"\*10\.10\.16\.194 +4 +5000 .* 1 ", summary)
        assert "3 dynamic neighbor(s), limit 32" in summary

        await topology.until_watched()
        bfd = await topology.show_bfd()
        assert re.search(r"10\.10\.16\.194 +\d+/\d+ +Up +Up +eth1", bfd)

        # A crash: the connection ends, and the route with it.
        await topology.kill_se("se-1")
        assert await topology.until_hops(VIP, 2) < 6  # and not when the hold timer is over
        assert await ways(topology) == {SE_2, SE_3}

        # A cable: nothing ends, and BFD finds out.
        await topology.cut_se("se-2")
        assert await topology.until_hops(VIP, 1) < 6
        assert await ways(topology) == {SE_3}
        assert {n: e.state.value for n, e in topology.engines.items()} == {
            "se-1": "killed",
            "se-2": "cut",
            "se-3": "up",
        }
        with pytest.raises(LabError, match=r"se-1 is killed\. Run `akocore lab heal se-1`"):
            await topology.session("se-1")

        await topology.set_vips([VIP, SECOND])  # those who are away hear of it when they are back
        await topology.heal_se("se-1")
        await topology.heal_se("se-2")
        await topology.until_hops(VIP, 3)
        await topology.until_hops(SECOND, 3)

        await topology.remove_se("se-3", drain_s=0.3, hold_s=0.2)
        assert await ways(topology) == {SE_1, SE_2}
        assert "se-3" not in topology.namespaces.names()
        assert await topology.add_se() == "se-3"  # the lowest that is free
        await topology.withdraw(VIP, drain_s=0.1, hold_s=0.1)
        assert await topology.next_hops(VIP) == ()


async def test_the_router_sends_each_flow_where_the_model_says(lab: Lab) -> None:
    """Real connections over three Service Engines, each answering with its name."""
    async with lab(3) as topology:
        for name in topology.engines:
            words = [sys.executable, "-m", "akocore.lab.echo", f"{VIP}:80={name}"]
            topology.namespaces.spawn(name, words, topology.directory / f"{name}.log")
        await topology.until_hops(VIP, 3)
        for name in topology.engines:
            await _until_listening(topology.directory / f"{name}.log")
        hops = [(hop.address, hop.weight) for hop in await topology.next_hops(VIP)]
        group = EcmpGroup(hops, seed=topology.plan.seed)
        ports = range(20_000, 20_300)
        flows = [("10.10.15.10", VIP, socket.IPPROTO_TCP, port, 80) for port in ports]
        names = {SE_1: "se-1", SE_2: "se-2", SE_3: "se-3"}
        expected = [names[hops[choice][0]] for choice in group.select(flows)]
        code = textwrap.dedent(f"""
            import socket
            for port in range({ports.start}, {ports.stop}):
                with socket.create_connection(("{VIP}", 80), 5, ("10.10.15.10", port)) as one:
                    one.sendall(b"GET / HTTP/1.1\\r\\nhost: h.test\\r\\n\\r\\n")
                    print(one.recv(4096).split()[-1].decode())
        """)
        out = await topology.namespaces.run("client", [sys.executable, "-c", code])
        assert out.split() == expected
        assert min(Counter(expected).values()) > 60  # all three have their share


async def _until_listening(log: Path) -> None:
    for _ in range(500):
        if "listening" in Path(log).read_text():  # noqa: ASYNC240
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"{log} never said that it listens")


async def test_pods_keep_their_link_address_when_service_engines_come(lab: Lab) -> None:
    """Else who talked to them before goes on to the old one, and loses packets for seconds."""
    async with lab(1) as topology:
        before = await topology.namespaces.run("pods", ["ip", "-br", "link", "show", "br0"])
        for _ in range(3):
            await topology.add_se()
        after = await topology.namespaces.run("pods", ["ip", "-br", "link", "show", "br0"])
        assert after.split()[2] == before.split()[2] != ""


async def test_service_engines_reach_the_pods(lab: Lab) -> None:
    async with lab(1) as topology:
        await _until_listening(topology.directory / "pods.log")
        code = (
            "import urllib.request as r;"
            "print(r.urlopen('http://10.10.20.12:8080/', timeout=5).read().decode())"
        )
        out = await topology.namespaces.run("se-1", [sys.executable, "-c", code])
        assert out.strip() == "10.10.20.12:8080 is served by pod-2"


# ─── up and down


async def test_down_leaves_nothing(lab: Lab) -> None:
    async with lab(2) as topology:
        programs = {
            pid: program(pid)
            for name in topology.namespaces.names()
            for pid in await topology.namespaces.pids(name)
        }
        assert len(traces(programs)) == 19  # each process, and a directory of each of FRR's
        await topology.kill_se("se-2")
        assert len(programs) == 10  # three times FRR, and the pods
        assert of_the_lab() != []
        await topology.down()
        assert of_the_lab() == []
        assert not topology.directory.exists()
        assert traces(programs) == []


async def test_down_leaves_nothing_after_a_crash(frr: Frr, directory: Path) -> None:
    code = f"""
        import asyncio
        from pathlib import Path
        from akocore.engines.frr.process import find_frr
        from akocore.lab.topology import Plan, Topology

        async def main():
            directory, plan = Path({str(directory / "lab")!r}), Plan(prefix={PREFIX!r})
            topology = Topology(directory, find_frr(), plan)
            await topology.up(1, ["{VIP}"])
            print("up", flush=True)
            await asyncio.sleep(60)

        asyncio.run(main())
    """
    try:
        with subprocess.Popen(  # noqa: ASYNC220
            [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True
        ) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == "up\n"
            child.send_signal(signal.SIGKILL)
        topology = Topology.open(directory / "lab", frr)
        await topology.until_hops(VIP, 1)  # it goes on
        assert topology.engines["se-1"].state is EngineState.UP
        (directory / "lab" / "lab.json").unlink()
    finally:
        await sweep(directory / "lab", PREFIX)
    assert of_the_lab() == []
    assert os.listdir(directory) == []


async def test_an_up_that_fails_half_way_says_why_and_leaves_nothing(directory: Path) -> None:
    topology = Topology(directory / "lab", Frr(Path("/no/frr"), "8.4"), Plan(prefix=PREFIX))
    with pytest.raises(LabError, match=r"zebra of upstream doesn't run: .*/no/frr/zebra"):
        await topology.up(2, [VIP])
    assert of_the_lab() == []
    assert os.listdir(directory) == []


async def test_more_engines_than_addresses_are_refused(frr: Frr, directory: Path) -> None:
    topology = Topology(directory / "lab", frr, Plan(prefix=PREFIX))
    with pytest.raises(LabError, match="has addresses for 32 engines"):
        await topology.up(33, [VIP])
    assert of_the_lab() == []


async def test_a_service_engine_that_can_not_be_added_leaves_the_others(lab: Lab) -> None:
    async with lab(1) as topology:
        topology.frr = Frr(Path("/no/frr"), topology.frr.version)
        with pytest.raises(LabError, match="zebra of se-2 doesn't run"):
            await topology.add_se()
        assert list(topology.engines) == ["se-1"]
        assert "se-2" not in topology.namespaces.names()
        assert not (topology.directory / "se-2").exists()
        await topology.until_hops(VIP, 1)


async def test_a_second_lab_of_the_same_names_is_refused_and_harms_not_the_first(lab: Lab) -> None:
    async with lab(1) as topology:
        second = Topology(topology.directory.with_name("other"), topology.frr, topology.plan)
        with pytest.raises(LabError, match=rf"{PREFIX}\* exist already. Run `akocore lab down`"):
            await second.up(1)
        await topology.until_hops(VIP, 1)


@pytest.mark.parametrize("vip", ["10.10.16.192", "10.10.17.1", "ten", "fd00::1"])
async def test_a_vip_outside_the_labs_networks_is_refused(
    frr: Frr, directory: Path, vip: str
) -> None:
    topology = Topology(directory / "lab", frr, Plan(prefix=PREFIX))
    with pytest.raises(
        LabError, match=r"choose from 10\.10\.16\.224|Give a VIP as 10\.10\.16\.224"
    ):
        await topology.up(1, [vip])
    assert of_the_lab() == []
