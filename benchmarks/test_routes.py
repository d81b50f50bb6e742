"""Service Engines, VIPs and failures → the upstream router's kernel, in the lab.

Physical limits: bgpd gathers what changed for 50 ms before it acts (FRR's
BGP_PROCESS_QUEUE_HOLD), on both routers when a VIP comes, on one when a session ends; BFD calls
a neighbor lost after it was silent for three times 100 ms.
"""

import asyncio
import os
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from akocore.engines.frr.process import FrrError, find_frr
from akocore.lab.topology import LabError, Plan, Topology, sweep
from benchmarks.conftest import Measure

HOLD_S = 0.05
VIP, SECOND = "10.10.16.224", "10.10.16.225"
ROUNDS = 10

Step = Callable[[Topology], Awaitable[object]]
Lab = Callable[[Step], Any]


@pytest.fixture
def lab() -> Iterator[Lab]:
    """``lab(step)`` runs a step on a lab with one Service Engine, whose VIP is routed."""
    prefix = f"akot-{os.getpid()}-bench-"
    with tempfile.TemporaryDirectory(prefix="akot-") as scratch, asyncio.Runner() as runner:
        os.chmod(scratch, 0o755)
        directory = Path(scratch) / "lab"

        async def up() -> Topology:
            topology = Topology(directory, find_frr(), Plan(prefix=prefix))
            await topology.up(1, [VIP])
            await topology.until_hops(VIP, 1)
            return topology

        try:
            topology = runner.run(up())
        except (FrrError, LabError) as err:
            pytest.skip(str(err))
        try:
            yield lambda step: runner.run(_done(step, topology))
        finally:
            topology.release()
            runner.run(sweep(directory, prefix))


async def _done(step: Step, topology: Topology) -> None:
    await step(topology)


def timed(
    measure: Measure, lab: Lab, before: Step, step: Step, limit_s: float, rounds: int = ROUNDS
) -> None:
    def setup() -> tuple[tuple[Any, ...], dict[str, Any]]:
        lab(before)
        return (step,), {}

    measure(lab, 1, limit_s, setup, rounds)


@pytest.mark.benchmark(group="routes")
def test_a_cold_service_engine_is_a_next_hop(measure: Measure, lab: Lab) -> None:
    async def before(topology: Topology) -> None:
        if "se-2" in topology.engines:
            await topology.remove_se("se-2", drain_s=0, hold_s=0)
        await topology.until_hops(VIP, 1)

    async def step(topology: Topology) -> None:
        await topology.add_se()
        await topology.until_hops(VIP, 2)

    timed(measure, lab, before, step, 2 * HOLD_S)


@pytest.mark.benchmark(group="routes")
def test_a_new_vip_is_routed(measure: Measure, lab: Lab) -> None:
    async def before(topology: Topology) -> None:
        await topology.set_vips([VIP])
        await topology.until_hops(SECOND, 0)

    async def step(topology: Topology) -> None:
        await topology.set_vips([VIP, SECOND])
        await topology.until_hops(SECOND, 1)

    timed(measure, lab, before, step, 2 * HOLD_S)


async def _routed(topology: Topology) -> None:
    await topology.heal_se("se-1")
    await topology.until_hops(VIP, 1)


async def _gone(topology: Topology) -> None:
    await topology.until_hops(VIP, 0)


@pytest.mark.benchmark(group="routes")
def test_a_killed_service_engine_is_withdrawn(measure: Measure, lab: Lab) -> None:
    async def step(topology: Topology) -> None:
        await topology.kill_se("se-1")
        await _gone(topology)

    timed(measure, lab, _routed, step, HOLD_S)


@pytest.mark.benchmark(group="routes")
def test_a_service_engine_that_is_cut_off_is_withdrawn(measure: Measure, lab: Lab) -> None:
    async def before(topology: Topology) -> None:
        await _routed(topology)
        await topology.until_watched()

    async def step(topology: Topology) -> None:
        await topology.cut_se("se-1")
        await _gone(topology)

    timed(measure, lab, before, step, 3 * 0.1 + HOLD_S, rounds=4)
