"""The lab with handover: FRR withdraws and announces, and no connection breaks."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from akocore.engines.handover import Handover
from akocore.lab.topology import Topology
from frr.conftest import PREFIX, Lab
from handover.rig import CLIENT, CLIENT_CODE, SERVER_CODE, VIP, Client, says, until

pytestmark = pytest.mark.real


async def serve(topology: Topology, name: str) -> None:
    log = topology.directory / f"{name}-echo.log"
    topology.namespaces.spawn(name, [sys.executable, "-c", SERVER_CODE, VIP], log)
    await until(says(log, "listening"))


async def test_the_lab_scales_out_and_in_without_a_broken_connection(lab: Lab) -> None:
    async with lab(2, handover=True) as topology:
        for name in topology.engines:
            await serve(topology, name)
        await topology.until_hops(VIP, 2)
        command = [sys.executable, "-c", CLIENT_CODE, VIP, CLIENT]
        process = await asyncio.create_subprocess_exec(
            *topology.namespaces.command("client", command),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        client = Client(process)
        try:
            assert await client.tell("open 300") == 0
            for hops in (3, 4):
                # A connection that is new is not for a Service Engine without its server.
                name = await topology.add_se()
                await topology.until_hops(VIP, hops)
                await serve(topology, name)
                assert await client.tell("ping") == 0
            begun = [
                (await topology.handover(n).counters()).begun for n in ("se-1", "se-2", "se-3")
            ]
            assert sum(begun) > 0

            # It leaves when the last of its connections is over, and not before.
            owned = await topology.handover("se-2").owned(VIP)
            assert owned > 50
            leaving = asyncio.create_task(topology.remove_se("se-2", drain_s=0.1, hold_s=0.1))
            await topology.until_hops(VIP, 3)
            for _ in range(5):
                assert await client.tell("ping") == 0
                await asyncio.sleep(0.1)
            assert not leaving.done()
            assert await topology.handover("se-2").owned(VIP) == owned
            await client.tell("close")
            await leaving
            assert "se-2" not in topology.namespaces.names()

            # A crash costs what it owned, and nothing of the others, though many of theirs move.
            assert await client.tell("open 300") == 0
            lost = await topology.handover("se-1").owned(VIP)
            others = [topology.handover(name) for name in ("se-3", "se-4")]
            begun = [(await handover.counters()).begun for handover in others]
            await topology.kill_se("se-1")
            await topology.until_hops(VIP, 2)
            assert await client.tell("ping") == lost > 50
            after = [(await handover.counters()).begun for handover in others]
            assert sum(after) - sum(begun) > lost

            # A deadline ends it all the same; the other's connections go on.
            lost = await topology.handover("se-3").owned(VIP)
            await topology.remove_se("se-3", drain_s=0.1, hold_s=0.1, flows_s=0.3)
            assert await client.tell("ping") == lost > 50
        finally:
            await client.end()


async def test_a_lab_without_handover_has_no_rules(lab: Lab) -> None:
    async with lab(1) as topology:
        assert await topology.namespaces.run("se-1", ["nft", "list", "ruleset"]) == ""
        rules = await topology.namespaces.run("se-1", ["ip", "rule"])
        assert rules.splitlines()[0] == "0:\tfrom all lookup local"


def test_the_labs_commands_keep_the_rings_of_a_lab_with_handover(lab: Lab, directory: Path) -> None:
    akocore = [sys.executable, "-m", "akocore", "lab"]
    prefix = f"{PREFIX}ho-"

    def run(*words: str) -> str:
        command = [*akocore, *words, "--state", str(directory / "lab")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def members(name: str) -> int:
        """Others that it hands packets to."""
        ring = Handover(directory / "lab" / f"{name}-handover.json").ring
        return len(ring.members) - 1 if ring is not None else -1

    try:
        run("up", "--se", "1", "--vip", VIP, "--handover", "--prefix", prefix)
        assert members("se-1") == 0
        run("scale", "--out")
        assert [members(name) for name in ("se-1", "se-2")] == [1, 1]
        run("kill", "se-2")
        assert members("se-1") == 0
    finally:
        run("down", "--prefix", prefix)
