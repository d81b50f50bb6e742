"""Kept connections through a router that hashes, while Service Engines come and go."""

from __future__ import annotations

import asyncio
import sys

import msgspec
import pytest

from akocore.engines.handover.plan import link
from handover.conftest import MakeRig
from handover.rig import CLIENT, OTHERS, VIP, VIP_6, Rig, resets

pytestmark = pytest.mark.real

FLOWS = 300
SOME = 4


@pytest.mark.parametrize("vip", [VIP, VIP_6], ids=["IPv4", "IPv6"])
async def test_scale_out_and_graceful_scale_in_break_no_connection(rig: MakeRig, vip: str) -> None:
    async with rig(4) as running:
        await running.ring("se-1", "se-2")
        await running.spread("se-1", "se-2")
        client = await running.client(vip)
        assert await client.tell(f"open {FLOWS}") == 0
        for now in (["se-1", "se-2", "se-3"], ["se-1", "se-2", "se-3", "se-4"]):
            await running.ring(*now)
            await running.spread(*now)
            assert await client.tell("ping") == 0
            assert await client.tell("open 50") == 0
            if len(now) == 3:  # each flow that moved was with its owner one hop later
                assert (await running.counted())["passed"] == 0
        assert (await running.counted())["unowned"] == 0
        assert (await running.counted())["begun"] > FLOWS / 4

        # One from the middle: it owns its flows on, though no route leads to it.
        await running.spread("se-1", "se-3", "se-4")
        assert await client.tell("ping") == 0
        leaving = running.handovers["se-2"]
        assert await leaving.owned(vip) > 50
        assert await leaving.drained([vip], 0.3) == await leaving.owned(vip)
        await client.tell("close")
        assert await leaving.drained([vip], 10) == 0
        assert await leaving.owned(vip) == 0
        await running.ring("se-1", "se-3", "se-4")
        assert await client.tell("open 50") == 0


@pytest.mark.parametrize("vip", [VIP, VIP_6], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("outer_6", [False, True], ids=["over IPv4", "over IPv6"])
async def test_service_engines_behind_routers_break_no_connection(
    rig: MakeRig, vip: str, outer_6: bool
) -> None:
    async with rig(3, routed=True, outer_6=outer_6) as running:
        await running.ring("se-1", "se-2")
        await running.spread("se-1", "se-2")
        client = await running.client(vip)
        assert await client.tell(f"open {FLOWS}") == 0
        await running.ring(*running.engines)
        await running.spread(*running.engines)
        assert await client.tell("ping") == 0
        assert (await running.counted())["begun"] > FLOWS / 4
        assert await client.tell(f"open {FLOWS}") == 0
        await running.spread("se-1", "se-3")  # se-2 leaves
        assert await client.tell("ping") == 0
        assert await running.handovers["se-2"].owned(vip) > FLOWS / 4
        assert (await running.counted())["unowned"] == 0


@pytest.mark.parametrize("vip", [VIP, VIP_6], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("first", ["client", "server"])
async def test_ports_that_a_client_uses_again_are_no_connections_of_who_had_them(
    rig: MakeRig, vip: str, first: str
) -> None:
    async with rig(2) as running:
        await running.ring("se-1", "se-2")
        await running.spread("se-1")
        client = await running.client(vip)
        assert await client.tell(f"open {SOME}") == 0
        await client.tell("close" if first == "client" else "quit")
        await asyncio.sleep(3)
        await running.spread("se-2")
        await client.tell("again")
        assert await client.tell(f"open {SOME}") == 0
        await running.handovers["se-1"].forget_ended([VIP, VIP_6])
        await running.spread("se-1")  # its kernel knew all of these 5-tuples
        assert await client.tell("ping") == 0
        assert (await running.counted())["begun"] >= SOME


@pytest.mark.parametrize("vip", [VIP, VIP_6], ids=["IPv4", "IPv6"])
async def test_large_packets_are_handed_over_whole(rig: MakeRig, vip: str) -> None:
    """A connection that began before offers an MSS without room for the tunnel, too."""
    async with rig(2, routed=True) as running:
        client = await running.client(vip)
        for mtu in (0, 1500):
            await running.ring(*running.engines)
            for name, ring in running.rings(*running.engines).items():
                changed = msgspec.structs.replace(ring, mtu=mtu)
                await running.handovers[name].apply(changed)
            await running.spread("se-1")
            assert await client.tell("open 5") == 0
            mss = await running.namespaces.run("client", ["ss", "-Htni"])
            headers = 36 + (40 if vip == VIP else 60)
            assert (f"mss:{1500 - headers - 12} " in mss) == bool(mtu)
            await running.spread("se-2")
            assert await client.tell("send 200000") == 0
            await client.tell("close")


async def test_a_close_arrives_though_others_drop_what_is_invalid(rig: MakeRig) -> None:
    """As kube-proxy does.  The first packet of a connection that moved is its FIN."""
    async with rig(2) as running:
        await running.ring(*running.engines)
        for name in running.engines:
            await running.namespaces.run(name, ["nft", "-f", "-"], _PROXY)
        await running.spread("se-1")
        client = await running.client()
        assert await client.tell("open 20") == 0
        await running.spread("se-2")
        await client.tell("close")
        assert await running.handovers["se-1"].drained([VIP], 5) == 0
        dropped = ["nft", "list", "counter", "inet", "proxy", "c"]
        shown = await running.namespaces.run("se-2", dropped)
        assert "packets 0 " in shown


_PROXY = """
table inet proxy {
  counter c { }
  chain forward {
    type filter hook forward priority filter; policy accept;
    ct state invalid counter name c drop
  }
}
"""


async def test_what_comes_out_of_the_tunnel_is_for_a_vip_and_from_a_service_engine(
    rig: MakeRig,
) -> None:
    async with rig(3) as running:
        await running.ring("se-1", "se-2")
        space, members = running.namespaces, running.members
        await space.ip("se-2", ["addr add 10.99.0.9/32 dev lo"])
        for name in ("se-1", "se-3"):  # se-3 has a tunnel of its own and is in no ring
            if name == "se-3":
                for words in link():
                    await space.run(name, words)
                await space.sysctl("se-2", {"net/ipv4/conf/all/rp_filter": 0})
            to = f"encap ip id 2636 dst {members['se-2'].address} ttl 64 dev akocore-ho"
            await space.ip(name, [f"route add {vip} {to}" for vip in ("10.99.0.9",)])
        also = (members["se-1"].address,)
        ring = msgspec.structs.replace(running.rings("se-1", "se-2")["se-2"], also=also)
        await running.handovers["se-2"].apply(ring)
        assert not await reaches(running, "se-1", "10.99.0.9")
        assert not await reaches(running, "se-3", "10.99.0.9")
        for name in ("se-1", "se-3"):
            rule = f"rule add pref 0 to {VIP} lookup 9"
            to = f"encap ip id 2636 dst {members['se-2'].address} ttl 64 dev akocore-ho"
            before = ["rule add pref 1 lookup local", "rule del pref 0 lookup local"]
            await space.ip(name, [f"route add {VIP} {to} table 9", *before, rule])
            await space.ip(name, [f"addr del {VIP}/32 dev lo"])
        assert await reaches(running, "se-1", VIP)  # so it was the rules that stopped the others
        assert not await reaches(running, "se-3", VIP)


async def reaches(rig: Rig, name: str, address: str) -> bool:
    """Whether a SYN of a Service Engine to an address of se-2 arrives there."""
    await rig.namespaces.run("se-2", ["nft", "-f", "-"], _SEEN)
    source = rig.members[name].address
    code = (
        "import socket; s = socket.socket(); s.settimeout(0.5)\n"
        f"try: s.bind(('{source}', 0)); s.connect(('{address}', 80))\n"
        "except OSError: pass"
    )
    await rig.namespaces.run(name, [sys.executable, "-c", code])
    shown = await rig.namespaces.run("se-2", ["nft", "list", "counter", "inet", "seen", "syn"])
    return "packets 0 " not in shown


_SEEN = f"""
table inet seen
delete table inet seen
table inet seen {{
  counter syn {{ }}
  chain input {{
    type filter hook input priority 10; policy accept;
    iifname "akocore-ho" ip daddr {{ {VIP}, 10.99.0.9 }} tcp flags syn counter name syn
  }}
}}
"""


async def test_without_handover_the_same_changes_break_connections(rig: MakeRig) -> None:
    async with rig(3) as running:
        await running.spread("se-1", "se-2")
        client = await running.client()
        assert await client.tell(f"open {FLOWS}") == 0
        await running.spread("se-1", "se-2", "se-3")
        assert await client.tell("ping") > FLOWS / 4
        await running.spread("se-1", "se-3")
        assert await client.tell("ping") > 10


@pytest.mark.parametrize("count", [1, 2, 4])
async def test_a_packet_that_nobody_owns_gets_one_reset_when_all_have_seen_it(
    rig: MakeRig, count: int
) -> None:
    async with rig(count) as running:
        await running.ring(*running.engines)
        await running.spread(*running.engines)
        sent = [(VIP, 64), (VIP, 66), (VIP_6, 131), (VIP_6, 66)]  # a client may write any TTL
        for times, (vip, ttl) in enumerate(sent, start=1):
            assert await resets(running, 20, vip=vip, ttl=ttl) == list(range(30_000, 30_020))
            assert await running.counted() == {
                "begun": 20 * times if count > 1 else 0,
                "passed": 20 * times * (2 * (count - 1) if count > 1 else 0),
                "unowned": 20 * times,
                "limited": 0,
            }


async def test_a_flow_of_anothers_is_remembered_for_seconds_and_found_again(rig: MakeRig) -> None:
    async with rig(2) as running:
        await running.ring("se-1", "se-2")
        await running.spread("se-1", "se-2")
        client = await running.client()
        assert await client.tell(f"open {FLOWS}") == 0
        await running.spread("se-2")  # which has those of se-1 now, too
        assert await client.tell("ping") == 0
        foreign = await remembered(running, "se-2")
        assert len(foreign) > FLOWS / 4
        assert max(foreign) <= 10
        await asyncio.sleep(max(foreign) + 1)
        assert await remembered(running, "se-2") == []
        assert await client.tell("ping") == 0
        assert len(await remembered(running, "se-2")) == len(foreign)


@pytest.mark.parametrize("vip", [VIP, VIP_6], ids=["IPv4", "IPv6"])
async def test_foreign_flows_that_one_source_begins_have_a_part_of_the_table(
    rig: MakeRig, vip: str
) -> None:
    async with rig(3) as running:
        running.tracked = 1000  # a source may begin 200 at once and 10 a second, all twice that
        await running.ring(*running.engines)
        await running.spread("se-1", "se-2")
        client = await running.client(vip)
        assert await client.tell("open 150") == 0
        await running.spread("se-2")  # which has those of se-1 now, too
        assert await client.tell("ping") == 0

        most = dict.fromkeys(running.engines, 0)
        strangers = asyncio.create_task(resets(running, 600, vip=vip))
        while not strangers.done():
            for name in most:
                most[name] = max(most[name], await of_strangers(running, name))
            await asyncio.sleep(0.1)
        assert 40 < len(await strangers) < 400
        # Who answers that nobody owns it has forgotten it with that.
        assert sum(40 < count < 400 for count in most.values()) >= 2, most
        assert max(most.values()) < 400
        limited = (await running.counted())["limited"]
        assert limited > 100
        # New connections are no matter of this.
        assert await client.tell("open 50") == 0

        # What is a neighbour's goes on with many packets, each "new" to the kernel; other flows
        # move when there is time.
        await asyncio.sleep(11)
        for _ in range(3):
            assert await client.tell("ping") == 0
            assert await client.tell("send 5000") == 0
        assert (await running.counted())["limited"] == limited
        await running.spread("se-1")
        assert await client.tell("ping") == 0


async def test_many_sources_together_have_a_part_of_the_table(rig: MakeRig) -> None:
    async with rig(1) as running:
        running.tracked = 1000
        await running.ring("se-1")
        await running.spread("se-1")
        sources = (CLIENT, *OTHERS)
        found = await asyncio.gather(*(resets(running, 180, source=one) for one in sources))
        assert 300 < sum(map(len, found)) < 700  # nobody reached the limit of one
        limited = (await running.counted())["limited"]
        assert limited == 180 * len(sources) - sum(map(len, found))


async def of_strangers(running: Rig, name: str) -> int:
    """How many entries there are for flows that `resets` begins."""
    raw = await running.namespaces.run(name, ["cat", "/proc/net/nf_conntrack"])
    ports = [word for line in raw.splitlines() for word in line.split() if "sport=" in word]
    return sum(30_000 <= int(port.removeprefix("sport=")) < 31_000 for port in ports)


async def remembered(running: Rig, name: str) -> list[int]:
    """Seconds that each flow to the VIP without an answer is remembered for; the kernel lists
    some whose time is over, 0, until it takes them away.
    """
    raw = await running.namespaces.run(name, ["cat", "/proc/net/nf_conntrack"])
    lines = [line for line in raw.splitlines() if "UNREPLIED" in line and f"dst={VIP} " in line]
    return [seconds for line in lines if (seconds := int(line.split()[4]))]


async def test_sixteen_service_engines_break_no_connection_and_bound_the_hops(
    rig: MakeRig,
) -> None:
    async with rig(16) as running:
        every = running.engines
        await running.ring(*every[:15])
        await running.spread(*every[:15])
        client = await running.client()
        assert await client.tell(f"open {FLOWS}") == 0
        await running.ring(*every)
        await running.spread(*every)  # about half of the flows move, by one place
        assert await client.tell("ping") == 0
        counted = await running.counted()
        assert counted["begun"] > FLOWS / 4
        assert (counted["passed"], counted["unowned"]) == (0, 0)

        await running.spread(*every[8:])  # and now by up to fourteen
        assert await client.tell("ping") == 0
        assert (await running.counted())["passed"] > FLOWS

        before = await running.counted()
        assert await resets(running, 20) == list(range(30_000, 30_020))
        after = await running.counted()
        assert {key: after[key] - before[key] for key in after} == {
            "begun": 20,
            "passed": 20 * 30,
            "unowned": 20,
            "limited": 0,
        }


async def test_no_connection_breaks_while_members_change_one_by_one(rig: MakeRig) -> None:
    """Nearly all flows are being handed over, some of them twice, while the ring changes."""
    async with rig(4) as running:
        await running.ring("se-1", "se-2", "se-3")
        await running.spread("se-1", "se-2", "se-3")
        client = await running.client()
        assert await client.tell(f"open {FLOWS}") == 0
        await running.spread("se-3", "se-1", "se-2")
        begun = (await running.counted())["begun"]
        assert await client.tell("ping") == 0
        assert (await running.counted())["begun"] - begun >= FLOWS
        others, every = running.engines[:3], running.engines
        tried = 0
        for order in (others, others[::-1]):
            for names, first in ((every, ["se-4"]), (others, [])):  # who comes knows all first
                rings = running.rings(*names)
                for name in (*first, *order):
                    await running.handovers[name].apply(rings[name])
                    assert await client.tell("ping") == 0
                    tried += 1
        assert tried == 14
