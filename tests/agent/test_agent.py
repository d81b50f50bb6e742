"""``akocore se run``: Service Engines outside the controller's reach, end to end."""

from __future__ import annotations

import os
import signal
import sys

import pytest

from agent.conftest import VIP, VS, Site
from akocore.lab.upstream import Upstream
from lab.rhi_house import HOST, app, network, setting

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


async def test_an_agent_that_is_killed_leaves_all_as_it_is_for_the_next(site: Site) -> None:
    manifests(site)
    controller = site.controller()
    first = await site.agent(1)
    await site.until_ways(VIP, 192)
    envoy = site.envoy(1)
    controller.kill()
    first.kill()
    assert await site.requests(VIP, HOST, 20) == {"200": 20}
    second = await site.agent(1)

    async def adopted() -> bool:
        return "event=frr_adopted" in second.log.read_text()

    await site.until(adopted)
    assert await site.requests(VIP, HOST, 20) == {"200": 20}
    site.controller()
    await site.until_status("vs", VS, announcedBy=["se-1"])
    assert site.envoy(1) == envoy
    await site.until_ways(VIP, 192)


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


async def test_what_routers_do_is_shown_and_a_lost_session_is_an_event(site: Site) -> None:
    manifests(site)
    site.controller()
    agent = await site.agent(1, "--metrics-listen", "127.0.0.1:9811")
    await site.until_ways(VIP, 192)
    await site.until_says("se", "se-1", "routing", f"'advertised': ['{VIP}/32']")

    async def listed() -> bool:
        line = (await site.akocore("se", "list")).splitlines()[1].split()
        return line[:6] == ["se-1", agent_group, "up", "10.10.16.192", VIP, "1/1"]

    agent_group = "SE-Group-AKO-CRITICAL"
    await site.until(listed)
    head, row = (await site.akocore("se", "bgp", "se-1")).splitlines()
    assert head.split()[:4] == ["NAME", "PEER", "AS", "STATE"]
    assert row.split()[:4] == ["se-1", "10.10.16.250", "6000", "Established"]
    assert "10.10.16.250" in await site.akocore("se", "bfd")
    assert f"{VIP}/32   announced   yes" in await site.akocore("se", "routes", "se-1")
    assert "router bgp 5000" in await site.akocore("se", "config", "se-1")
    assert f"- {VIP}" in await site.akocore("se", "show", "se-1")
    scrape = (
        "import urllib.request as r; print(r.urlopen('http://127.0.0.1:9811/metrics').read().decode(),"
        " r.urlopen('http://127.0.0.1:9811/readyz').read().decode())"
    )
    text = await site.topology.namespaces.run("se-1", [sys.executable, "-c", scrape])
    assert f'akocore_se_vip_announced{{vip="{VIP}"}} 1.0' in text
    assert 'akocore_se_bgp_up{as="6000",peer="10.10.16.250"} 1.0' in text

    await site.topology.namespaces.ip("switch", ["link set se-1 down"])

    async def told() -> bool:
        events = (await site.ask("Get", kind="events"))["items"]
        return any(
            (e["regarding"], e["reason"]) == ("ServiceEngine/se-1", "BgpDown") for e in events
        )

    await site.until(told)
    await site.until_status("vs", VS, state="degraded")
    assert agent.running


PASSWORD = "s3cret-of-the-routers"
SIGNED = Upstream(ranges=("10.10.16.192/27",), password=PASSWORD)


def secret(password: str) -> dict[str, object]:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "bgp", "namespace": "avi-system"},
        "stringData": {"password": password},
    }


@pytest.mark.parametrize("site", [{"upstream": SIGNED}], indirect=True, ids=["signed"])
async def test_a_peers_password_comes_from_its_secret_and_is_shown_nowhere(site: Site) -> None:
    manifests(site)
    uplink = network("uplink", "10.10.16", "224")
    ref = {"name": "bgp", "namespace": "avi-system"}
    peer = {**uplink["spec"]["bgp"]["peers"][0], "passwordSecret": ref}
    uplink["spec"]["bgp"]["peers"] = [peer]
    site.write("networks", uplink)
    site.controller()
    agent = await site.agent(1)
    await site.until_says("network", "uplink", "error", "Create Secret avi-system/bgp with key")
    site.write("secret", secret("another"))
    await site.until_says("vs", VS, "why", "BGP session with 10.10.16.250 is down")
    site.write("secret", secret(PASSWORD))
    await site.until_ways(VIP, 192)
    await site.until_status("network", "uplink", error="")
    shown = await site.akocore("se", "config", "se-1")
    assert "password <hidden>" in shown
    for text in (shown, agent.log.read_text(), site.processes["one"].log.read_text()):
        assert PASSWORD not in text


async def test_an_address_that_is_not_for_engines_or_is_anothers_is_said(site: Site) -> None:
    manifests(site)
    uplink = network("uplink", "10.10.16", "224")
    uplink["spec"]["seRanges"] = [{"begin": "10.10.16.200", "end": "10.10.16.210"}]
    site.write("networks", uplink)
    site.controller()
    await site.agent(1)
    await site.agent(2, "--address", "10.10.16.192")

    async def told() -> bool:
        events = (await site.ask("Get", kind="events"))["items"]
        reasons = {(e["regarding"], e["reason"]) for e in events}
        return any(reason == "DuplicateRouterId" for _, reason in reasons) and (
            ("ServiceEngine/se-1", "AddressOutsideSeRanges") in reasons
        )

    await site.until(told)


async def test_backends_are_asked_from_an_address_that_is_announced(site: Site) -> None:
    manifests(site)
    uplink = network("uplink", "10.10.16", "224")
    uplink["spec"]["bgp"]["peers"] = [{**uplink["spec"]["bgp"]["peers"][0], "advertiseSnat": True}]
    site.write("networks", uplink)
    site.controller()
    await site.agent(1, "--snat", "10.10.16.200")
    await site.until_ways(VIP, 192)
    await site.until_ways("10.10.16.200", 192)
    # The pods know the way back by that route alone.
    assert "200" not in await site.requests(VIP, HOST, 1)
    await site.topology.namespaces.ip("pods", ["route add 10.10.16.200 via 10.10.20.192"])
    assert await site.requests(VIP, HOST, 5) == {"200": 5}


async def test_a_spare_engine_takes_over_and_keeps_what_it_took(site: Site) -> None:
    manifests(site)
    site.group(haMode="NPlusM", bufferSe=1, minSePerVs=1, maxSe=4)
    site.controller()
    for number in (1, 2):
        await site.agent(number)

    async def ways() -> set[int]:
        hops = await site.topology.next_hops(VIP)
        return {int(h.address.rpartition(".")[2]) - 191 for h in hops}

    async def one_way() -> bool:
        return len(await ways()) == 1

    await site.until(one_way)
    (first,) = await ways()
    other = 3 - first
    os.kill(site.envoy(first), signal.SIGSTOP)
    await site.until_ways(VIP, 191 + other)
    assert await site.requests(VIP, HOST, 10) == {"200": 10}
    os.kill(site.envoy(first), signal.SIGCONT)
    await site.until_status("se", f"se-{first}", alive=True)
    await site.until_status("vs", VS, announcedBy=[f"se-{other}"], state="up")
    assert await ways() == {other}


async def test_a_standby_announces_the_worse_way_and_serves_without_a_controller(
    site: Site,
) -> None:
    manifests(site)
    site.group(haMode="ActiveStandby")
    controller = site.controller()
    for number in (1, 2):
        await site.agent(number)
    await site.until_status("vs", VS, announcedBy=["se-1", "se-2"], state="up")

    async def standbys() -> list[int]:
        said = {n: (await site.get("se", f"se-{n}")).get("routing", {}) for n in (1, 2)}
        return [n for n, routing in said.items() if VIP in routing.get("standby", ())]

    async def one_stands_by() -> bool:
        return len(await standbys()) == 1

    await site.until(one_stands_by)
    (other,) = await standbys()
    active = 3 - other
    await site.until_ways(VIP, 191 + active)
    await site.until_says("se", f"se-{other}", "routing", f"'advertised': ['{VIP}/32']")
    controller.kill()
    os.kill(site.envoy(active), signal.SIGKILL)
    await site.until_ways(VIP, 191 + other)
    assert await site.requests(VIP, HOST, 10) == {"200": 10}


async def test_a_setting_asks_for_more_engines(site: Site) -> None:
    manifests(site)
    wide = setting(rhi=True)
    wide["metadata"]["annotations"] = {"akocore.io/scale-out": "3"}
    site.controller()
    for number in (1, 2, 3):
        await site.agent(number)

    async def two_ways() -> bool:
        return len(await site.topology.next_hops(VIP)) == 2

    await site.until(two_ways)
    site.write("setting", wide)
    await site.until_ways(VIP, 192, 193, 194)
    wide["metadata"]["annotations"] = {"akocore.io/scale-out": "many"}
    site.write("setting", wide)
    await site.until_says("aviinfrasetting", "critical.infra", "error", "no number of Service")


async def test_without_announcements_one_engine_answers_on_the_segment_and_it_moves(
    site: Site,
) -> None:
    manifests(site, rhi=False)
    site.controller()
    for number in (1, 2):
        await site.agent(number)
    await site.until_status("vs", VS, state="up", serviceEngines=["se-1", "se-2"])

    async def who() -> str:
        """The MAC address that the router has for the VIP."""
        shown = await site.topology.namespaces.run("upstream", ["ip", "neigh", "show", VIP])
        return shown.partition("lladdr ")[2].partition(" ")[0]

    async def answered() -> bool:
        return await site.requests(VIP, HOST, 1) == {"200": 1}

    await site.until(answered)
    assert await site.topology.next_hops(VIP) == ()
    (first,) = (await site.get("vs", VS))["announcedBy"]
    number = int(first.removeprefix("se-"))
    before = await who()
    os.kill(site.envoy(number), signal.SIGSTOP)

    async def moved() -> bool:
        now = await who()
        return bool(now) and now != before

    await site.until(moved)  # the neighbours were told: nobody has asked
    await site.until(answered)
    assert await site.requests(VIP, HOST, 10) == {"200": 10}
    await site.until_status("vs", VS, announcedBy=[f"se-{3 - number}"])
