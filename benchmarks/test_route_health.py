"""From a new application to its VIP's route in the upstream router's kernel, by how many there are.

A virtual service each (DEDICATED), announced by BGP from two of three Service Engines in the lab:
real Envoy, FRR and kernels.  Limit: the same where nothing else is announced; then there is
nothing to be slow with.
"""

from __future__ import annotations

import asyncio
import copy
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from akocore.engines.envoy.process import find_envoy
from akocore.engines.frr.process import find_frr
from akocore.lab.topology import Plan, Topology
from benchmarks.conftest import Measure
from lab.rhi_house import PEER, House, app, house_over, setting

MANY = int(os.environ.get("AKOCORE_BENCH", "1000"))
SAMPLES = 7

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("ip") is None, reason="needs root and iproute2"
)


def _network() -> dict[str, Any]:
    ranges = [{"begin": "10.60.1.0", "end": "10.60.250.0"}]
    spec = {
        "subnet": "10.60.0.0/16",
        "vipRanges": ranges,
        "bgp": {"localAs": 5000, "peers": [PEER]},
    }
    meta = {"name": "uplink"}
    return {"apiVersion": "akocore.io/v1alpha1", "kind": "Network", "metadata": meta, "spec": spec}


def _ingress(name: str) -> dict[str, Any]:
    one = copy.deepcopy(app()[3])
    one["metadata"]["name"] = name
    one["spec"]["rules"][0]["host"] = f"{name}.example.test"
    return one


class Bench:
    """A lab with virtual services that are announced; what it costs to have one more."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._runner = asyncio.Runner()
        self._stack = AsyncExitStack()
        self._made = 0

    def start(self) -> None:
        self._runner.run(self._start())

    async def _start(self) -> None:
        topology = Topology(
            self._directory / "lab", find_frr(), Plan(prefix=f"akob-{os.getpid()}-")
        )
        self._house = await self._stack.enter_async_context(
            house_over(topology, self._directory, find_envoy())
        )
        dedicated = setting(rhi=True)
        dedicated["spec"]["l7Settings"]["shardSize"] = "DEDICATED"
        self._house.write("network", _network())
        self._house.write("setting", dedicated)
        self._house.write("app", *app()[:3])
        await self._one_more()

    def have(self, count: int) -> None:
        """So many besides, up and announced."""
        self._runner.run(self._have(count))

    async def _have(self, count: int) -> None:
        self._house.write("many", *(_ingress(f"many{n}") for n in range(count)))

        async def up() -> bool:
            items = (await self._house.ask("Get", kind="vs"))["items"]
            return len(items) >= count and all(one["status"]["state"] == "up" for one in items)

        async with asyncio.timeout(300):
            while not await up():
                await asyncio.sleep(1)
        await asyncio.sleep(3)

    def one_more(self) -> float:
        return self._runner.run(self._one_more())

    async def _one_more(self) -> float:
        """Seconds from the file to two next hops in the router's kernel."""
        self._made += 1
        name = f"one{self._made}"
        began = time.perf_counter()
        self._house.write(name, _ingress(name))
        async with asyncio.timeout(60):
            while len(await self._hops(self._house, name)) < 2:
                await asyncio.sleep(0.01)
        return time.perf_counter() - began

    def pause(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Until what the last one caused besides is over."""
        self._runner.run(asyncio.sleep(0.5))
        return (), {}

    @staticmethod
    async def _hops(house: House, name: str) -> tuple[object, ...]:
        for service in house.serve.reconciler.placement.services.values():
            if f"{name}.example.test" in service.hosts and service.homes:
                return await house.topology.next_hops(service.homes[-1].address)
        return ()

    def stop(self) -> None:
        self._runner.run(self._stack.aclose())
        self._runner.close()


@pytest.fixture
def bench() -> Iterator[Bench]:
    with tempfile.TemporaryDirectory(prefix="akob-") as name:
        Path(name).chmod(0o755)  # FRR's own user looks into it
        made = Bench(Path(name))
        made.start()
        try:
            yield made
        finally:
            made.stop()


@pytest.mark.benchmark(group="route health")
def test_a_new_vip_among_many(measure: Measure, bench: Bench, note: Callable[[str], None]) -> None:
    samples: list[float] = []
    processor = [0.0]

    def one_more() -> None:
        began = time.process_time()
        samples.append(bench.one_more())
        processor.append(time.process_time() - began)

    for _ in range(SAMPLES):
        bench.pause()
        one_more()
    limit_s = statistics.median(samples)
    bench.have(MANY)
    samples.clear()
    processor.clear()
    measure(one_more, 1, limit_s, setup=bench.pause, rounds=SAMPLES)
    note(
        f"  a new VIP → two next hops in the router's kernel: {limit_s * 1e3:.0f} ms alone,"
        f" {statistics.median(samples) * 1e3:.0f} ms beside {MANY} that are announced,"
        f" {statistics.median(processor) * 1e3:.0f} ms of them the controller's processor time"
    )
