"""Kept connections through a router that hashes, while Service Engines come and go."""

from __future__ import annotations

import pytest

from handover.conftest import MakeRig
from handover.rig import VIP, VIP_6, resets

pytestmark = pytest.mark.real

FLOWS = 300


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
            }


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
