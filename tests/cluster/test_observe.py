"""What ``akocore controller`` shows of itself, from before there is an API server on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from cluster.control_plane import ADMIN, ControlPlane
from cluster.controller import OBJECTS, Controller, install
from e2e.scraping import ANYWHERE, endpoints, get, scrape, until

pytestmark = pytest.mark.real


@pytest_asyncio.fixture
async def controller(tmp_path: Path, endpoint: str) -> AsyncIterator[Controller]:
    """Over a control plane that is not there yet.  Neither is started."""
    plane = ControlPlane(tmp_path / "plane")
    made = Controller(tmp_path, plane, endpoint)
    made.kubeconfig = plane.kubeconfig  # an administrator's: `akocore install` comes later
    made.options = [*ANYWHERE, "--log-format", "json", "--log-level", "debug"]
    yield made
    await made.stop()
    plane.stop()


async def test_a_controller_is_not_ready_before_its_api_server_and_shows_what_it_does_then(
    controller: Controller,
) -> None:
    await controller.start()
    at = await endpoints(controller.log)
    starting = (503, "starting: what is remembered has not been read yet\n")
    assert await get(at, "/readyz") == starting
    assert await get(at, "/healthz") == (200, "ok\n")
    async with asyncio.timeout(60):
        while '"facts_not_read"' not in controller.log.read_text():
            await asyncio.sleep(0.05)
    assert await get(at, "/readyz") == starting

    await asyncio.to_thread(controller.plane.start)
    async with asyncio.timeout(30):
        while await get(at, "/readyz") != (200, "ok\n"):
            await asyncio.sleep(0.05)
    found = await scrape(at)
    assert found["akocore_leader"] == 0  # there is no namespace for its Lease
    missing = 'akocore_informer_missing{kind="AviInfraSetting"}'
    assert found[missing] == 1
    assert found['akocore_informer_missing{kind="Ingress"}'] == 0
    assert found['akocore_informer_lists_total{kind="Ingress"}'] == 1
    assert found["akocore_status_writes_total"] == 0

    await asyncio.to_thread(install, controller.plane)
    found = await until(at, lambda found: bool(found["akocore_leader"] and not found[missing]), 30)
    controller.apply(OBJECTS)
    controller.apps(20, "critical-ic")
    await controller.until(lambda: len(controller.shown()) == 20, 30)
    found = await until(at, lambda found: found["akocore_status_waiting"] == 0)
    assert found["akocore_hosts"] == 20
    assert found["akocore_status_writes_total"] >= 20
    assert found["akocore_events_pending"] == 0
    assert found['akocore_network_addresses{network="vips"}'] == 30
    assert found['akocore_network_addresses_free{network="vips"}'] == 22
    received = 'akocore_events_received_total{kind="Ingress"}'
    assert found[received] >= 40  # 20 that were made, and the status of each came back
    acknowledged = 'akocore_event_ack_seconds_count{group="Default-Group"}'
    pushed = 'akocore_push_ack_seconds_count{group="Default-Group"}'

    controller.plane.kubectl("delete", "ingress", "hello8")
    before = await until(at, lambda found: found["akocore_hosts"] == 19 and pushed in found)
    controller.plane.kubectl("delete", "ingress", "hello7")
    found = await until(
        at,
        lambda found: found["akocore_hosts"] == 18 and found[acknowledged] > before[acknowledged],
    )
    assert found[received] > before[received]
    assert found.keys() == before.keys()

    controller.plane.kill("kube-apiserver")
    broken = 'akocore_informer_failures_total{kind="Ingress"}'
    watches = 'akocore_informer_watches_total{kind="Ingress"}'
    gone = await until(at, lambda found: found[broken] > before[broken])
    assert await get(at, "/readyz") == (200, "ok\n")  # it serves on
    await asyncio.to_thread(controller.plane.start)
    await until(at, lambda found: found[watches] > gone[watches])
    controller.apps(1, "critical-ic", first=21)
    await until(at, lambda found: found["akocore_hosts"] == 19)

    await controller.stop()
    lines = [json.loads(line) for line in controller.log.read_text().splitlines()]
    assert "leads" in {line.get("event") for line in lines}
    assert "watch_broken" in {line.get("event") for line in lines}
    moved = [line for line in lines if line.get("event") == "Programmed"]
    assert {line["object"] for line in moved} >= {f"Ingress/default/hello{i}" for i in range(1, 21)}
    assert ADMIN not in controller.log.read_text()  # its token
