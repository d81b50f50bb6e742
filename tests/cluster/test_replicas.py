"""Several replicas: one leads, all serve, and nothing is written by one that leads no longer."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from cluster.control_plane import CONTROLLER, ControlPlane
from cluster.controller import OBJECTS, Controller
from cluster.proxy import Proxy
from cluster.world import assert_as_on_a_clean_boot
from e2e.running import Client

pytestmark = pytest.mark.real

APPS = 8
LEASE_S = 3.0
WRITES = ("POST", "PUT", "PATCH", "DELETE")
KEY = "akocore.io/virtual-service-of"


@pytest_asyncio.fixture
async def pair(
    tmp_path: Path, plane: ControlPlane, endpoint: str
) -> AsyncIterator[tuple[Controller, Controller]]:
    """Two replicas; the first leads."""
    both = tuple(Controller(tmp_path / name, plane, endpoint) for name in ("one", "two"))
    first, second = both
    first.apply(OBJECTS)
    first.apps(APPS, "critical-ic")
    for one in both:
        one.flags = ["--lease-duration", str(LEASE_S)]
    await first.start()
    await first.until(lambda: len(first.shown()) == APPS)
    await second.start()
    async with asyncio.timeout(60):
        while not await second.said():
            await asyncio.sleep(0.05)
    yield first, second
    for one in both:
        await one.stop()


async def serves(replica: Controller, hosts: int) -> None:
    """Until the engines of this replica have everything, at the same addresses."""
    await replica.until_settled()
    shown = {f"hello{n}.avi.iberia.local": ip for n, ip in replica.shown().items()}
    assert len(shown) == hosts
    assert {vs["status"]["vip"] for vs in await replica.ask("vs")} == set(shown.values())


def holder(plane: ControlPlane) -> str:
    path = "-o=jsonpath={.spec.holderIdentity}"
    return plane.kubectl("get", "lease", "akocore", "-n", "akocore-system", path)


async def test_a_follower_serves_the_same_addresses_and_writes_nothing(
    pair: tuple[Controller, Controller], tmp_path: Path
) -> None:
    first, second = pair
    await second.stop()
    async with Proxy(first.plane, tmp_path, CONTROLLER) as proxy:
        second.kubeconfig = proxy.kubeconfig
        await second.start()
        await serves(second, APPS)
        assert not (await second.said())["leads"]
        await asyncio.to_thread(first.apps, 2, "critical-ic", APPS + 1)
        await first.until(lambda: len(first.shown()) == APPS + 2)
        await serves(second, APPS + 2)
        first.size("DEDICATED")
        await first.until(lambda: len(first.groups()) == APPS + 2)
        await serves(second, APPS + 2)
        assert not [asked for asked in proxy.asked if asked.startswith(WRITES)]
        await second.stop()


async def test_a_killed_leader_is_followed_by_the_other_with_the_same_addresses(
    pair: tuple[Controller, Controller],
) -> None:
    first, second = pair
    await serves(second, APPS)
    before = first.shown()
    await first.kill()
    await asyncio.to_thread(first.apps, 1, "critical-ic", APPS + 1)
    await first.until(lambda: len(first.shown()) == APPS + 1, 3 * LEASE_S)
    assert {n: ip for n, ip in first.shown().items() if n <= APPS} == before
    assert (await second.said())["leads"]
    await first.start()  # it comes back, and follows
    await serves(first, APPS + 1)
    assert not (await first.said())["leads"]
    await first.stop()
    await assert_as_on_a_clean_boot(second)


async def test_a_leader_that_ends_gives_up_its_lease_at_once(
    pair: tuple[Controller, Controller],
) -> None:
    first, second = pair
    mine = await asyncio.to_thread(holder, first.plane)
    await first.stop()
    began = time.monotonic()
    await second.until(lambda: holder(second.plane) not in ("", mine))
    assert time.monotonic() - began < 60
    await asyncio.to_thread(second.apps, 1, "critical-ic", APPS + 1)
    await second.until(lambda: len(second.shown()) == APPS + 1)


async def test_a_replica_that_comes_to_lead_while_it_still_reads_decides(
    pair: tuple[Controller, Controller], tmp_path: Path
) -> None:
    first, second = pair
    plane = first.plane
    await second.stop()
    async with Proxy(plane, tmp_path, CONTROLLER) as proxy:
        proxy.hold("ingresses")
        second.kubeconfig = proxy.kubeconfig
        await second.start()
        await second.until(lambda: proxy.asked["GET leases"] > 0)
        await first.stop()
        await second.until(lambda: proxy.asked["PUT leases"] > 0)
        proxy.go_on()
        await asyncio.to_thread(second.apps, 12, "critical-ic", APPS + 1)
        await second.until(lambda: len(second.shown()) == APPS + 12)
        await assert_as_on_a_clean_boot(second)
        await second.stop()


async def test_a_leader_that_slept_past_its_lease_writes_nothing_when_it_wakes(
    pair: tuple[Controller, Controller], tmp_path: Path
) -> None:
    first, second = pair
    plane = first.plane
    await first.stop()
    await second.until(lambda: bool(holder(plane)))
    async with Proxy(plane, tmp_path, CONTROLLER) as proxy:
        first.kubeconfig = proxy.kubeconfig
        await second.stop()
        await first.start()
        await first.until_ready()  # what is shown, the other may have written
        await first.until(lambda: len(first.shown()) == APPS)
        sleeper = await asyncio.to_thread(holder, plane)
        assert sleeper
        await second.start()
        await serves(second, APPS)
        # It falls asleep with much to write: a new size, new applications.
        first.size("SMALL")
        await asyncio.to_thread(first.apps, 4, "critical-ic", APPS + 1)
        os.kill(first.pid, signal.SIGSTOP)
        await second.until(lambda: holder(plane) not in ("", sleeper), 4 * LEASE_S)
        await second.until(lambda: len(second.shown()) == APPS + 4, 20)
        await second.until(lambda: len(second.groups()) == 1, 20)
        settled = await asyncio.to_thread(second.versions)
        os.kill(first.pid, signal.SIGCONT)
        await asyncio.sleep(0.5)  # what it was sending when it fell asleep arrives, and is refused
        proxy.asked.clear()
        await asyncio.sleep(LEASE_S)
        late = [asked for asked in proxy.asked if asked.startswith(WRITES)]
        assert [asked for asked in late if asked != "PUT leases"] == []  # that one is refused
        assert await asyncio.to_thread(second.versions) == settled
        async with asyncio.timeout(4 * LEASE_S):  # unless it got the lease anew meanwhile
            while (await first.said())["leads"] and holder(plane) != sleeper:
                await asyncio.sleep(0.1)
        await serves(first, APPS + 4)
        await first.stop()
        await assert_as_on_a_clean_boot(second)


async def test_traffic_goes_on_while_leaders_come_and_go(
    pair: tuple[Controller, Controller],
) -> None:
    first, second = pair
    await serves(second, APPS)
    shown = first.shown()
    failed = asked = 0
    ended = asyncio.Event()

    async def load() -> None:
        nonlocal failed, asked
        client = Client()
        while not ended.is_set():
            for number, address in shown.items():
                asked += 1
                failed += await client.get(address, f"hello{number}.avi.iberia.local") != 200
                await asyncio.sleep(0.001)
        client.close()

    task = asyncio.create_task(load())
    for one in (first, second):
        await one.kill()
        await asyncio.sleep(0.5)
        await one.start()
        await one.until_settled()
    ended.set()
    await task
    assert asked > APPS
    assert failed == 0


async def test_an_address_taken_by_hand_is_never_given(
    controller: Controller, plane: ControlPlane
) -> None:
    controller.apply(OBJECTS)
    vip = {
        "apiVersion": "akocore.io/v1alpha1",
        "kind": "VsVip",
        "metadata": {"name": "127.10.16.226"},
        "spec": {"address": "127.10.16.226", "network": "vips", "virtualService": "by-hand"},
    }
    await controller.start()
    await controller.until_ready()
    while not (await controller.said())["leads"]:
        await asyncio.sleep(0.02)
    await asyncio.to_thread(plane.kubectl, "apply", "-f", "-", stdin=json.dumps(vip))
    await asyncio.to_thread(controller.apps, APPS, "critical-ic")
    await controller.until(lambda: len(controller.shown()) == APPS)
    assert "127.10.16.226" not in controller.shown().values()
    # One that is taken away by hand while it is served is written again.
    used = min(controller.shown().values())
    await asyncio.to_thread(plane.kubectl, "delete", "vsvip", used)
    await controller.until(
        lambda: used in plane.kubectl("get", "vsvips", "-o", "jsonpath={.items[*].spec.address}")
    )
    await controller.all_answer(APPS)


def keys_of_vips(plane: ControlPlane) -> dict[str, tuple[str, str]]:
    """Name and address of each virtual service that says whose it is, by its key."""
    return {
        key: (item["spec"]["virtualService"], item["spec"]["address"])
        for item in json.loads(plane.kubectl("get", "vsvips", "-o", "json"))["items"]
        if (key := item["metadata"].get("annotations", {}).get(KEY))
    }


async def test_services_called_alike_keep_name_and_address_whoever_leads(
    pair: tuple[Controller, Controller],
) -> None:
    first, second = pair
    plane = first.plane
    for key in ("a-b/c", "a/b-c"):
        namespace, name = key.split("/")
        first.apply(
            f"apiVersion: v1\nkind: Namespace\nmetadata: {{name: {namespace}}}\n---\n"
            f"apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {namespace}}}\n"
            "spec: {type: LoadBalancer, ports: [{port: 80}]}\n"
        )
        await first.until(lambda key=key: f"Service/{key}" in keys_of_vips(plane))  # type: ignore[misc]
    before = keys_of_vips(plane)
    names = [before[f"Service/{key}"][0] for key in ("a-b/c", "a/b-c")]
    assert names[0] == "my-cluster--a-b-c"
    assert names[1].startswith("my-cluster--a-b-c-")

    async def all_call_them_so(*replicas: Controller) -> None:
        wanted = dict(before.values())
        for replica in replicas:
            async with asyncio.timeout(60):
                while True:
                    shown = {
                        one["metadata"]["name"]: one["status"]["vip"]
                        for one in await replica.ask("vs")
                    }
                    if shown.items() >= wanted.items():
                        break
                    await asyncio.sleep(0.1)

    await all_call_them_so(first, second)
    for _, address in before.values():  # as they were before akocore wrote this
        plane.kubectl("annotate", "vsvip", address, f"{KEY}-")
    await first.kill()
    await first.start()
    await first.until(lambda: keys_of_vips(plane) == before, 5 * LEASE_S)
    await all_call_them_so(first, second)
