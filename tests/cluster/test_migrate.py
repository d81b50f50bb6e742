"""``akocore migrate ingress`` of a whole cluster: the applications stay at their VIPs."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections import Counter

import orjson
import pytest

from cluster.control_plane import ControlPlane
from cluster.controller import Controller
from e2e.running import Client

pytestmark = pytest.mark.real


@pytest.mark.usefixtures("defined")
async def test_the_walkthrough_is_migrated_and_every_application_keeps_its_vip(
    walkthrough: Controller,
) -> None:
    plane, before = walkthrough.plane, walkthrough.shown()
    assert len(before) == 20
    command = [sys.executable, "-m", "akocore", "migrate", "ingress", "--class", "critical-ic"]
    command += ["--kubeconfig", str(plane.kubeconfig)]
    done = await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, check=True
    )
    assert done.stderr == "8 Gateways, 20 HTTPRoutes; 0 things are not translatable\n"
    walkthrough.apply(done.stdout)
    client, said, deleted = Client(), Counter[int](), asyncio.Event()

    async def ask() -> None:
        """Every application, until all have been asked once more since."""
        last = False
        while not last:
            last = deleted.is_set()
            for number, address in before.items():
                said[await client.get(address, f"hello{number}.avi.iberia.local", "/")] += 1

    asking = asyncio.create_task(ask())
    try:
        await asyncio.to_thread(plane.kubectl, "delete", "ingress", "--all")
        await walkthrough.until(lambda: addresses(plane) == set(before.values()))
        deleted.set()
        await asking
    finally:
        asking.cancel()
        client.close()
    assert said.keys() == {200}


def addresses(plane: ControlPlane) -> set[str]:
    """Those that Gateways say that they have."""
    found = orjson.loads(plane.kubectl("get", "gateways.gateway.networking.k8s.io", "-o", "json"))
    return {
        one["value"]
        for item in found["items"]
        for one in item.get("status", {}).get("addresses", ())
    }
