"""``akocore se run``: Service Engines outside the controller's reach, end to end."""

from __future__ import annotations

import os
import signal

import pytest

from agent.conftest import VIP, VS, Site
from lab.test_rhi import HOST, app, network, setting

pytestmark = pytest.mark.real


def manifests(site: Site, *, rhi: bool = True) -> None:
    site.write("networks", network("uplink", "10.10.16", "224"))
    site.write("setting", setting(rhi=rhi))
    site.write("app", *app())


async def test_agents_announce_what_their_envoys_serve_and_a_stuck_or_dead_one_withdraws(
    site: Site,
) -> None:
    manifests(site)
    controller = site.controller()
    await site.agent(1)
    await site.agent(2)
    await site.until_ways(VIP, 192, 193)
    assert await site.requests(VIP, HOST, 40) == {"200": 40}
    await site.until_status("vs", VS, state="up", announcedBy=["se-1", "se-2"])
    said = (await site.get("se", "se-1"))["routing"]
    assert said["announced"] == [VIP]
    assert [(s["peer"], s["state"]) for s in said["bgp"]] == [("10.10.16.250", "Established")]

    # One that hangs keeps its sockets; nobody else would notice.
    os.kill(site.envoy(1), signal.SIGSTOP)
    await site.until_ways(VIP, 193)
    assert await site.requests(VIP, HOST, 20) == {"200": 20}
    os.kill(site.envoy(1), signal.SIGCONT)
    await site.until_ways(VIP, 192, 193)

    os.kill(site.envoy(1), signal.SIGKILL)
    await site.until_ways(VIP, 193)
    await site.until_ways(VIP, 192, 193)  # it was started anew, and has got everything
    assert await site.requests(VIP, HOST, 20) == {"200": 20}

    # Without any controller all goes on, and a dead Envoy still takes its route with it.
    controller.kill()
    assert await site.requests(VIP, HOST, 40) == {"200": 40}
    os.kill(site.envoy(2), signal.SIGSTOP)
    await site.until_ways(VIP, 192)
    os.kill(site.envoy(2), signal.SIGCONT)
    await site.until_ways(VIP, 192, 193)
    os.kill(site.envoy(2), signal.SIGKILL)
    await site.until_ways(VIP, 192)
    assert await site.requests(VIP, HOST, 20) == {"200": 20}
    site.controller()
    await site.until_ways(VIP, 192, 193)


async def test_an_agent_that_is_told_to_end_leaves_without_a_failed_request(site: Site) -> None:
    manifests(site)
    site.controller()
    await site.agent(1)
    second = await site.agent(2)
    await site.until_ways(VIP, 192, 193)
    second.send(signal.SIGTERM)
    await site.until_ways(VIP, 192)
    assert await second.ended() == 0
    assert await site.requests(VIP, HOST, 20) == {"200": 20}
    await site.until_status("vs", VS, announcedBy=["se-1"])
    assert await site.topology.namespaces.run("se-2", ["ip", "-o", "addr", "show", "to", VIP]) == ""


async def test_three_capabilities_and_one_writable_directory_are_enough(site: Site) -> None:
    manifests(site)
    site.controller()
    caps = "-all,+net_admin,+net_raw,+net_bind_service"
    state = site.state(1)
    state.mkdir()
    script = f'mount --bind {state} {state} && mount -o remount,ro,bind / && exec "$@"'
    confined = ["setpriv", "--bounding-set", caps, "--inh-caps", caps]
    await site.agent(1, before=["unshare", "-m", "sh", "-c", script, "sh", *confined])
    await site.until_ways(VIP, 192)
    assert await site.requests(VIP, HOST, 10) == {"200": 10}
    assert site.capabilities(1) == 1 << 10 | 1 << 12 | 1 << 13


async def test_what_keeps_an_agent_from_its_work_is_said(site: Site) -> None:
    manifests(site)
    site.controller()
    caps = "-net_admin"
    await site.agent(1, before=["setpriv", "--bounding-set", caps, "--inh-caps", caps])
    await site.until_says("se", "se-1", "problems", "NET_ADMIN is missing")
    await site.until_says("vs", VS, "why", "NET_ADMIN is missing")
    await site.agent(2, "--frr-dir", "/nowhere")
    await site.until_says("se", "se-2", "problems", "--frr-dir: /nowhere has no zebra")
    await site.agent(3, common_name="se-9")
    log = site.processes["se-3"].log

    async def refused() -> bool:
        return "its certificate is of se-9, not of 'se-3'" in log.read_text()

    await site.until(refused)
