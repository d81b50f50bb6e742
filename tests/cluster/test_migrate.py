"""``akocore migrate ingress`` of a whole cluster: the applications stay at their VIPs."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest

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
    await asyncio.to_thread(plane.kubectl, "delete", "ingress", "--all")
    walkthrough.apply(done.stdout)
    client = Client()
    try:
        for number, address in before.items():
            host = f"hello{number}.avi.iberia.local"
            async with asyncio.timeout(60):
                while await client.get(address, host, "/") != 200:
                    await asyncio.sleep(0.1)
    finally:
        client.close()
