"""One Service Engine's routing, against a real router: both are FRR, in namespaces."""

from __future__ import annotations

import asyncio
import logging
import shutil
import subprocess
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest

from akocore.engines.frr.config import RouterConfig, Snat, Vip, VipState
from akocore.engines.frr.observe import BgpSession, Down, bgp_sessions
from akocore.engines.frr.session import Applied, Session, SessionError
from akocore.kube.objects import BgpPeer, BgpProfile, NetworkSpec, SecretRef
from akocore.lab.topology import Plan, Topology
from akocore.lab.upstream import Upstream
from frr.conftest import Lab

pytestmark = pytest.mark.real

VIP, SECOND, THIRD = "10.10.16.224", "10.10.16.225", "10.10.16.226"
V6 = "fd00:10:10:16::224"
NETWORK = "REGA_EXT_UPLINKB_3016"
UPSTREAM = Plan().upstream


async def until(true: Callable[[], Awaitable[bool]], within_s: float = 12) -> None:
    deadline = time.monotonic() + within_s
    while not await true():
        assert time.monotonic() < deadline, "it never came true"
        await asyncio.sleep(0.02)


def vips(*addresses: str, state: VipState = VipState.ADVERTISED, **more: Any) -> tuple[Vip, ...]:
    return tuple(Vip(address=a, network=NETWORK, state=state, **more) for a in addresses)


def changed(session: Session, **fields: Any) -> RouterConfig:
    assert session.config is not None
    return msgspec.structs.replace(session.config, **fields)


async def heard(topology: Topology) -> tuple[BgpSession, ...]:
    """The upstream router's sessions."""
    (answer,) = await topology.upstream.ask("bgpd", ["show bgp neighbors json"])
    return bgp_sessions(answer)


async def route(topology: Topology, vip: str) -> dict[str, Any]:
    """What the upstream router was told of one VIP, by neighbor."""
    (answer,) = await topology.upstream.ask("bgpd", [f"show bgp ipv4 unicast {vip}/32 json"])
    paths = msgspec.json.decode(answer).get("paths", [])
    return {path["peer"]["peerId"]: path for path in paths}


def network(**peer: Any) -> dict[str, NetworkSpec]:
    """The walkthrough's Network with something else about its peer."""
    spec = Plan().networks[NETWORK]
    assert spec.bgp is not None
    (first,) = spec.bgp.peers
    other = msgspec.structs.replace(first, **peer)
    return {NETWORK: msgspec.structs.replace(spec, bgp=BgpProfile(local_as=5000, peers=(other,)))}


# ─── VIPs come and go


async def test_an_added_vip_resets_no_session(lab: Lab) -> None:
    async with lab(2) as topology:
        await topology.until_hops(VIP, 2)
        before = await heard(topology)
        assert [(s.state, s.established, s.dropped) for s in before] == [("Established", 1, 0)] * 2
        more = tuple(f"10.10.16.{n}" for n in range(225, 249))
        await topology.set_vips((VIP, *more))
        for vip in more:
            await topology.until_hops(vip, 2)
        after = await heard(topology)
        assert [(s.established, s.dropped) for s in after] == [(1, 0)] * 2
        assert all(b.up_s <= a.up_s for b, a in zip(before, after, strict=True))
        for name in topology.engines:
            (session,) = (await topology.observe(name)).bgp
            assert (session.established, session.dropped, session.told) == (1, 0, 25)


async def test_only_what_changed_is_sent(lab: Lab) -> None:
    async with lab() as topology:
        session = await topology.session("se-1")
        assert await session.apply(changed(session)) == Applied()
        done = await session.apply(changed(session, vips=vips(VIP, SECOND)))
        assert done == Applied(lines=5, added=(SECOND,))
        done = await session.apply(changed(session, vips=vips(SECOND)))
        assert done == Applied(lines=5, removed=(VIP,))
        await topology.until_hops(VIP, 0)
        await topology.until_hops(SECOND, 1)
        found = await session.observe()
        assert found.addresses == (SECOND,)
        assert found.advertised == {"10.10.16.250": (f"{SECOND}/32",)}


async def test_an_address_of_somebody_else_stays_and_a_lost_one_comes_back(lab: Lab) -> None:
    async with lab() as topology:
        session = await topology.session("se-1")
        await topology.namespaces.ip(
            "se-1", ["addr add 192.0.2.7/32 dev lo", f"addr del {VIP}/32 dev lo"]
        )
        await topology.until_hops(VIP, 0)  # a VIP that isn't here is not announced
        assert (await session.apply(changed(session))).added == (VIP,)
        await topology.until_hops(VIP, 1)
        await session.apply(changed(session, vips=()))
        assert (await session.observe()).addresses == ("192.0.2.7",)
        await topology.until_hops(VIP, 0)


async def test_an_ipv6_vip_is_routed_over_its_own_peer(lab: Lab) -> None:
    async with lab(2, (VIP, V6)) as topology:
        await topology.until_hops(V6, 2)
        await topology.until_hops(VIP, 2)
        found = await topology.observe("se-1")
        assert found.advertised == {
            "10.10.16.250": (f"{VIP}/32",),
            "fd00:10:10:16::250": (f"{V6}/128",),
        }
        assert found.addresses == (VIP, V6)


# ─── going gracefully


async def test_a_draining_vip_is_left_by_the_router_before_it_is_withdrawn(lab: Lab) -> None:
    async with lab(2) as topology:
        await topology.until_hops(VIP, 2)
        session = await topology.session("se-1")
        await session.apply(changed(session, vips=vips(VIP, state=VipState.DRAINING)))
        await topology.until_hops(VIP, 1)
        (hop,) = await topology.next_hops(VIP)
        assert hop.address == "10.10.16.193"
        paths = await route(topology, VIP)
        assert paths["10.10.16.192"]["community"]["string"] == "graceful-shutdown"
        assert "community" not in paths["10.10.16.193"]

        await session.apply(changed(session, vips=vips(VIP, state=VipState.HELD)))
        await until(lambda: _only(topology, "10.10.16.193"))
        assert (await session.observe()).addresses == (VIP,)  # what is on its way arrives

        await session.apply(changed(session, vips=()))
        assert (await session.observe()).addresses == ()
        assert [s.dropped for s in await heard(topology)] == [0, 0]


async def _only(topology: Topology, peer: str) -> bool:
    return set(await route(topology, VIP)) == {peer}


async def test_a_draining_vip_that_nobody_else_has_is_still_routed(lab: Lab) -> None:
    async with lab() as topology:
        await topology.until_hops(VIP, 1)
        session = await topology.session("se-1")
        await session.apply(changed(session, vips=vips(VIP, state=VipState.DRAINING)))
        await until(lambda: _marked(topology))
        assert len(await topology.next_hops(VIP)) == 1
        await session.apply(changed(session, vips=vips(VIP)))  # and it may come back
        await until(lambda: _unmarked(topology))


async def _marked(topology: Topology) -> bool:
    return "community" in (await route(topology, VIP))["10.10.16.192"]


async def _unmarked(topology: Topology) -> bool:
    return not await _marked(topology)


async def test_withdraw_goes_through_all_steps(lab: Lab) -> None:
    async with lab(1, (VIP, SECOND)) as topology:
        await topology.until_hops(VIP, 1)
        session = await topology.session("se-1")
        leaving = asyncio.create_task(session.withdraw([VIP], drain_s=0.6, hold_s=0.6))
        await until(lambda: _marked(topology))
        assert (await session.observe()).addresses == (VIP, SECOND)
        await topology.until_hops(VIP, 0)
        assert (await session.observe()).addresses == (VIP, SECOND)
        await leaving
        assert (await session.observe()).addresses == (SECOND,)
        assert len(await topology.next_hops(SECOND)) == 1


async def test_a_service_engine_that_leaves_is_left_by_the_router_first(lab: Lab) -> None:
    async with lab(2) as topology:
        await topology.until_hops(VIP, 2)
        session = await topology.session("se-2")
        leaving = asyncio.create_task(session.leave(drain_s=0.6, hold_s=0.3))
        await topology.until_hops(VIP, 1)
        assert set(await route(topology, VIP)) == {"10.10.16.192", "10.10.16.193"}
        assert session.router.daemons.keys() == {"zebra", "bfdd", "bgpd"}
        await leaving
        assert session.router.daemons == {}
        held = await session.loopback.held()
        assert held == ()
        assert len(await topology.next_hops(VIP)) == 1


# ─── who is told what


async def test_labels_and_communities_reach_the_router(lab: Lab) -> None:
    networks = network(label="rack-1")
    spec = networks[NETWORK]
    assert spec.bgp is not None
    bgp = msgspec.structs.replace(spec.bgp, communities=("65000:7", "65000:0:1", "no-export"))
    async with lab(networks={NETWORK: msgspec.structs.replace(spec, bgp=bgp)}) as topology:
        session = await topology.session("se-1")
        wanted = (*vips(VIP, labels=("rack-1",)), *vips(SECOND, labels=("rack-2",)))
        await session.apply(changed(session, vips=wanted))
        await topology.until_hops(VIP, 1)
        paths = await route(topology, VIP)
        assert paths["10.10.16.192"]["community"]["string"] == "65000:7 no-export"
        assert paths["10.10.16.192"]["largeCommunity"]["string"] == "65000:0:1"
        found = await session.observe()
        assert found.advertised == {"10.10.16.250": (f"{VIP}/32",)}
        assert found.addresses == (VIP, SECOND)
        await session.apply(changed(session, vips=vips(VIP, labels=("rack-2",))))
        await topology.until_hops(VIP, 0)  # the address stays, the announcement goes
        await session.apply(changed(session, vips=vips(VIP)))
        await topology.until_hops(VIP, 1)


async def test_snat_addresses_are_announced_to_a_peer_that_wants_them(lab: Lab) -> None:
    snats = (Snat(address="10.10.20.77", network=NETWORK),)
    async with lab(networks=network(advertise_snat=True)) as topology:
        session = await topology.session("se-1")
        await session.apply(changed(session, snats=snats))
        await topology.until_hops("10.10.20.77", 1)
        assert (await session.observe()).addresses == (VIP, "10.10.20.77")
        assert session.config is not None
        (peer,) = session.config.peers
        silent = msgspec.structs.replace(peer, advertise_snat=False)
        await session.apply(changed(session, peers=(silent,)))
        await topology.until_hops("10.10.20.77", 0)
        assert len(await topology.next_hops(VIP)) == 1


async def test_a_router_of_our_own_as_is_told_vips_and_drains(lab: Lab) -> None:
    networks = network(remote_as=6000)
    spec = networks[NETWORK]
    assert spec.bgp is not None
    inside = msgspec.structs.replace(spec.bgp, local_as=6000)
    plan = {
        "networks": {NETWORK: msgspec.structs.replace(spec, bgp=inside)},
        "upstream": Upstream(ranges=UPSTREAM.ranges, remote_as=6000),
    }
    async with lab(2, **plan) as topology:
        await topology.until_hops(VIP, 2)
        session = await topology.session("se-1")
        await session.apply(changed(session, vips=vips(VIP, state=VipState.DRAINING)))
        await topology.until_hops(VIP, 1)
        assert (await route(topology, VIP))["10.10.16.192"]["locPrf"] == 0


async def test_nothing_that_the_router_tells_comes_in(lab: Lab) -> None:
    async with lab() as topology:
        await topology.until_hops(VIP, 1)
        lines = ["router bgp 6000", "address-family ipv4 unicast", "network 10.10.15.0/24"]
        await topology.upstream.ask("bgpd", ["configure terminal", *lines])
        await until(lambda: _told_to(topology, "10.10.16.192"))
        (session,) = (await topology.observe("se-1")).bgp
        assert session.heard == 0
        routes = await topology.namespaces.run("se-1", ["ip", "route", "show", "proto", "bgp"])
        assert routes == ""


async def _told_to(topology: Topology, peer: str) -> bool:
    return any(s.peer == peer and s.told == 2 for s in await heard(topology))


# ─── why a session is down


async def why(topology: Topology, expected: Down, within_s: float = 12) -> BgpSession:
    """The session of se-1, once it is down for the expected reason."""
    found: list[BgpSession] = []

    async def true() -> bool:
        found[:] = (await topology.observe("se-1")).bgp
        return found[0].why is expected

    try:
        await until(true, within_s)
    except AssertionError:
        raise AssertionError(f"{expected} never came: {found}") from None
    return found[0]


async def test_a_router_that_expects_another_as_is_said(lab: Lab) -> None:
    async with lab(upstream=Upstream(ranges=UPSTREAM.ranges, remote_as=5999)) as topology:
        session = await why(topology, Down.WRONG_AS)
        assert "Bad Peer AS" in session.said
        assert (session.established, session.up_s) == (0, 0.0)


async def test_a_router_of_another_as_than_we_expect_is_said(lab: Lab) -> None:
    async with lab(networks=network(remote_as=6001)) as topology:
        session = await why(topology, Down.WRONG_AS)
        assert session.remote_as == 6001


async def test_a_router_that_is_not_there_is_said(lab: Lab) -> None:
    async with lab() as topology:
        await topology.until_hops(VIP, 1)
        await topology.upstream.stop()
        await why(topology, Down.NO_TCP)


async def test_a_router_that_does_not_know_us_is_said(lab: Lab) -> None:
    async with lab(upstream=Upstream(ranges=("10.10.99.0/24",))) as topology:
        await why(topology, Down.CLOSED)


async def test_a_router_on_no_network_of_ours_is_said(lab: Lab) -> None:
    async with lab() as topology:
        session = await topology.session("se-1")
        assert session.config is not None
        (peer,) = session.config.peers
        away = msgspec.structs.replace(peer, address="192.0.2.1")
        await topology.namespaces.ip("se-1", ["route del default"])
        await session.apply(changed(session, peers=(away,)))
        await why(topology, Down.NO_ROUTE)


async def test_a_router_that_is_shut_down_withdraws_all_and_is_said(lab: Lab) -> None:
    async with lab() as topology:
        await topology.until_hops(VIP, 1)
        ask = topology.upstream.ask
        router = ["configure terminal", "router bgp 6000"]
        await ask("bgpd", [*router, "bgp shutdown message works on the uplink"])
        session = await why(topology, Down.SHUT_DOWN)
        assert "Administrative Shutdown" in session.said
        await topology.until_hops(VIP, 0)
        await ask("bgpd", [*router, "no bgp shutdown"])
        await topology.until_hops(VIP, 1)


async def test_a_silent_path_is_found_by_bfd_and_said(
    lab: Lab, require_real: Callable[[bool, str], None]
) -> None:
    require_real(shutil.which("nft") is not None, "nftables")
    async with lab() as topology:
        await topology.until_watched()
        rules = (
            "add table ip m\nadd chain ip m o { type filter hook output priority 0; policy drop; }"
        )
        await topology.namespaces.run("se-1", ["nft", "-f", "-"], rules)
        took = await topology.until_hops(VIP, 0)
        assert took < 6  # and not when the hold timer is over
        await why(topology, Down.BFD_DOWN)
        (bfd,) = (await topology.observe("se-1")).bfd
        assert bfd.state == "down"


# ─── passwords


SECRET = SecretRef(name="bgp", namespace="avi")


async def test_with_the_same_password_on_both_sides_it_comes_up_and_is_never_shown(
    lab: Lab, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    password = "!#s3cr\"t?\\$(x)|;'"
    upstream = Upstream(ranges=UPSTREAM.ranges, password=password)
    plan = {"upstream": upstream, "networks": network(password_secret=SECRET)}
    async with lab(**plan, passwords={"avi/bgp": password}) as topology:
        await topology.until_hops(VIP, 1)
        session = await topology.session("se-1")
        assert password not in repr(session.config)
        assert session.config is not None
        (peer,) = session.config.peers
        too_long = msgspec.structs.replace(peer, password="x" * 81)
        with pytest.raises(SessionError, match="refused a password") as failure:
            await session.apply(changed(session, peers=(too_long,)))
        assert "x" * 81 not in str(failure.value)
        assert len(await topology.next_hops(VIP)) == 1
    assert password not in caplog.text


async def test_another_password_than_the_routers_is_as_no_answer(lab: Lab) -> None:
    upstream = Upstream(ranges=UPSTREAM.ranges, password="theirs")
    plan = {"upstream": upstream, "networks": network(password_secret=SECRET)}
    async with lab(**plan, passwords={"avi/bgp": "ours"}) as topology:
        await why(topology, Down.NO_TCP)


# ─── what goes wrong


async def test_a_refused_line_is_named_and_what_came_before_it_is_taken_back(lab: Lab) -> None:
    async with lab() as topology:
        await topology.until_hops(VIP, 1)
        session = await topology.session("se-1")
        good = changed(session)
        (peer,) = good.peers
        bad = msgspec.structs.replace(peer, communities=("1:99999999",))
        for label, vip in (("a", SECOND), ("b", THIRD)):
            more = vips(vip, labels=(label,))
            with pytest.raises(SessionError, match="refused 'set community 1:99999999 "):
                await session.apply(changed(session, peers=(bad,), vips=(*good.vips, *more)))
            assert f"route-map VIP_RM/{NETWORK}/{label} " in await _running(session)
        assert (await session.apply(good)).removed == (SECOND, THIRD)
        running = await _running(session)
        assert f"route-map VIP_RM/{NETWORK} " in running
        assert f"VIP_RM/{NETWORK}/" not in running
        await session.apply(changed(session, vips=vips(VIP, SECOND)))
        await topology.until_hops(SECOND, 1)
        (bgp,) = (await session.observe()).bgp
        assert bgp.dropped == 0


async def _running(session: Session) -> str:
    (answer,) = await session.router.ask("bgpd", ["show running-config"])
    return answer


async def test_a_killed_bgpd_is_back_with_all_that_it_was_told(lab: Lab) -> None:
    async with lab() as topology:
        session = await topology.session("se-1")
        await session.apply(changed(session, vips=vips(VIP, SECOND)))
        await topology.until_hops(SECOND, 1)
        _kill(session, "bgpd")
        await topology.until_hops(SECOND, 0)
        await topology.until_hops(SECOND, 1)
        assert session.router.daemons["bgpd"].restarts == 1
        assert session.router.daemons["bgpd"].last_exit.startswith("SIGKILL")
        assert await session.apply(changed(session)) == Applied()


async def test_what_is_applied_while_a_daemon_is_down_is_what_it_starts_with(lab: Lab) -> None:
    async with lab() as topology:
        session = await topology.session("se-1")
        await topology.until_hops(VIP, 1)
        down = 0
        while down < 12:  # the more often it ends, the longer it stays down
            down = down + 1 if session.router.daemons["bgpd"].pid is None else 0
            if not down:
                _kill(session, "bgpd")
            await asyncio.sleep(0.02)
        done = await session.apply(changed(session, vips=vips(VIP, SECOND)))
        assert done == Applied(added=(SECOND,))
        await topology.until_hops(SECOND, 1)


async def test_what_was_half_told_when_bgpd_ended_is_told_again(lab: Lab) -> None:
    async with lab() as topology:
        session = await topology.session("se-1")
        await topology.until_hops(VIP, 1)
        many = tuple(f"10.10.{n // 250}.{n % 250 + 1}" for n in range(1000))
        telling = asyncio.create_task(session.apply(changed(session, vips=vips(*many))))
        while "network 10.10.0.9/32" not in await _running(session):
            await asyncio.sleep(0)
        assert not telling.done()
        _kill(session, "bgpd")
        with pytest.raises(SessionError, match=r"doesn't answer|ended while it was told"):
            await telling
        await session.router.until_ready("bgpd")
        await session.apply(changed(session, vips=vips(*many)))
        await topology.until_hops(many[-1], 1)
        async with asyncio.timeout(20):  # the one before is taken back a moment later
            while len((await session.observe()).advertised["10.10.16.250"]) != 1000:
                await asyncio.sleep(0.1)
        assert (await session.observe()).addresses == many


def _kill(session: Session, daemon: str) -> None:
    pid = session.router.daemons[daemon].pid
    assert pid is not None
    subprocess.run(["kill", "-9", str(pid)], check=True)


async def test_after_zebra_ended_all_is_as_before_and_new_vips_are_announced(lab: Lab) -> None:
    async with lab() as topology:
        session = await topology.session("se-1")
        await topology.until_hops(VIP, 1)
        _kill(session, "zebra")
        await topology.until_hops(VIP, 0)
        await topology.until_hops(VIP, 1)
        daemons = session.router.daemons
        assert {name: d.restarts for name, d in daemons.items()} == dict.fromkeys(daemons, 1)
        assert daemons["bgpd"].last_exit == "zebra ended"
        await session.apply(changed(session, vips=vips(VIP, THIRD)))
        await topology.until_hops(THIRD, 1)


async def test_after_bfdd_ended_bfd_comes_up_all_the_same(lab: Lab) -> None:
    async with lab() as topology:
        session = await topology.session("se-1")
        await topology.until_hops(VIP, 1)
        _kill(session, "bfdd")
        await topology.until_watched()
        assert session.router.daemons["bfdd"].restarts == 1
        (bfd,) = (await topology.observe("se-1")).bfd
        assert (bfd.peer, bfd.state, bfd.said) == ("10.10.16.250", "up", "")
        assert bfd.detect_ms == 5 * 100  # the router's multiplier, our interval


async def test_released_routers_go_on_and_are_adopted_and_changed(lab: Lab) -> None:
    async with lab() as topology:
        session = await topology.session("se-1")
        await topology.until_hops(VIP, 1)
        pids = {name: d.pid for name, d in session.router.daemons.items()}
        topology.release()
        await topology.set_vips([VIP, SECOND])
        await topology.until_hops(SECOND, 1)
        again = await topology.session("se-1")
        assert again is not session
        assert {name: d.pid for name, d in again.router.daemons.items()} == pids
        assert all(daemon.adopted for daemon in again.router.daemons.values())
        (bgp,) = (await again.observe()).bgp
        assert (bgp.established, bgp.dropped) == (1, 0)


def test_peers_of_the_plan_are_what_a_manifest_says() -> None:
    """The lab's Network is one that a user could write."""
    spec = Plan().networks[NETWORK]
    raw = msgspec.json.encode(spec)
    assert msgspec.json.decode(raw, type=NetworkSpec) == spec
    assert spec.bgp is not None
    assert isinstance(spec.bgp.peers[0], BgpPeer)
