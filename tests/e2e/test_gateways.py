"""Gateways and Services of L4 through real Envoys: VIPs, listeners, pools, moves, refusals."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from e2e.house import House, house_over
from e2e.l4 import CLASS, INFRA, L4House, Server, gateway, service
from e2e.running import OFFSET, Running


@pytest_asyncio.fixture
async def l4(tmp_path: Path) -> AsyncIterator[L4House]:
    async with house_over(tmp_path) as house:
        house.write("infra.yaml", INFRA)
        made = L4House(house)
        yield made
        for server in made.servers:
            server.stop()


@pytest_asyncio.fixture
async def walked(l4: L4House) -> L4House:
    """The walkthrough's Gateway with Service hello behind it."""
    hello = await l4.server("hello")
    l4.write("class.yaml", CLASS)
    l4.write("gateway.yaml", gateway("TCP/80"))
    l4.write("hello.yaml", service("hello", "TCP/80", to=[hello.at], gateway="avi-alb-gw"))
    await l4.until(lambda: bool(l4.external("hello")))
    return l4


async def test_a_gateway_has_its_vip_before_any_service_and_serves_one_when_it_comes(
    l4: L4House,
) -> None:
    l4.write("class.yaml", CLASS)
    l4.write("gateway.yaml", gateway("TCP/80"))
    await l4.until(lambda: bool(l4.vip()))
    assert l4.vip() == "127.10.16.227"
    assert l4.virtual_services() == {"my-cluster--default-avi-alb-gw": ["TCP/80"]}
    assert await l4.who(l4.vip(), 80) == "refused"
    hello = await l4.server("hello")
    l4.write("hello.yaml", service("hello", "TCP/80", to=[hello.at], gateway="avi-alb-gw"))
    await l4.until(lambda: l4.external("hello") == "127.10.16.227")
    assert await l4.who(l4.vip(), 80) == "hello"
    (l4.house.directory / "hello.yaml").unlink()
    async with asyncio.timeout(10):
        while await l4.who("127.10.16.227", 80) != "refused":
            await asyncio.sleep(0.02)
    assert l4.vip() == "127.10.16.227"


async def test_a_second_listener_shares_the_vip_with_a_pool_of_its_own(walked: L4House) -> None:
    other = await walked.server("hello8080")
    walked.write("gateway.yaml", gateway("TCP/8080", "TCP/80"))
    walked.write(
        "other.yaml", service("hello8080", "TCP/8080", to=[other.at], gateway="avi-alb-gw")
    )
    await walked.until(lambda: walked.external("hello8080") == walked.external("hello"))
    vip = walked.vip()
    assert [await walked.who(vip, port) for port in (80, 8080)] == ["hello", "hello8080"]
    listeners = walked.gateway()["listeners"]
    assert [(one["port"], one["ready"]) for one in listeners] == [(8080, True), (80, True)]
    assert len(walked.virtual_services()) == 1


async def test_services_of_any_type_and_namespace_are_pools(walked: L4House) -> None:
    walked.write("gateway.yaml", gateway("TCP/80", "TCP/81", "TCP/82"))
    for number, kind in ((81, "ClusterIP"), (82, "NodePort")):
        server = await walked.server(kind)
        text = service(
            *(kind.lower(), f"TCP/{number}"),
            to=[server.at],
            gateway="avi-alb-gw",
            kind=kind,
            namespace="elsewhere",
        )
        walked.write(f"{kind}.yaml", text)
    await walked.until(lambda: bool(walked.external("nodeport", "elsewhere")))
    await walked.until(lambda: bool(walked.external("clusterip", "elsewhere")))
    await walked.until(lambda: bool(walked.vip()))
    assert [await walked.who(walked.vip(), n) for n in (80, 81, 82)] == [
        *("hello", "ClusterIP", "NodePort")
    ]


async def test_another_address_is_taken_live_and_no_new_connection_fails(walked: L4House) -> None:
    old = walked.external("hello")
    answers: Counter[str] = Counter()
    done = False

    async def load() -> None:
        while not done:
            answers[await walked.who(walked.external("hello"), 80)] += 1

    kept_name, reader, writer = await walked.connect(old, 80)
    tasks = [asyncio.create_task(load()) for _ in range(4)]
    await asyncio.sleep(0.2)
    walked.write("gateway.yaml", gateway("TCP/80", address="127.10.16.232"))
    await walked.until(lambda: walked.external("hello") == "127.10.16.232")
    assert walked.gateway()["addresses"] == [{"type": "IPAddress", "value": "127.10.16.232"}]
    writer.write(b"still here\n")
    assert (kept_name, await reader.readline()) == ("hello", b"still here\n")
    assert await walked.who(old, 80) == "hello"  # who asked DNS a moment ago
    await asyncio.sleep(1.5)
    done = True
    await asyncio.gather(*tasks)
    writer.close()
    assert set(answers) == {"hello"}
    assert await walked.who(old, 80) == "refused"
    pool = walked.at.placement.pools["uplink"]
    await walked.until(lambda: pool.free == pool.size - 1, 15)
    walked.write("gateway.yaml", gateway("TCP/80"))
    await asyncio.sleep(0.3)
    assert walked.vip() == "127.10.16.232"  # what it has it keeps


async def test_a_connection_outlives_its_listener_for_the_drain_time(walked: L4House) -> None:
    name, reader, writer = await walked.connect(walked.vip(), 80)
    (walked.house.directory / "hello.yaml").unlink()
    async with asyncio.timeout(10):
        while await walked.who("127.10.16.227", 80) != "refused":
            await asyncio.sleep(0.02)
    await asyncio.sleep(0.5)
    writer.write(b"still here\n")
    assert (name, await reader.readline()) == ("hello", b"still here\n")
    assert await asyncio.wait_for(reader.read(), 15) == b""  # and then it is told to go
    writer.close()


async def test_a_connection_outlives_a_change_of_endpoints(walked: L4House) -> None:
    name, reader, writer = await walked.connect(walked.vip(), 80)
    both = [walked.servers[0].at, (await walked.server("second")).at]
    walked.write("hello.yaml", service("hello", "TCP/80", to=both, gateway="avi-alb-gw"))
    async with asyncio.timeout(10):
        while await walked.who(walked.vip(), 80) != "second":
            await asyncio.sleep(0.01)
    writer.write(b"still here\n")
    assert (name, await reader.readline()) == ("hello", b"still here\n")
    writer.close()


async def test_tcp_and_udp_of_one_service_share_a_port_and_an_address(l4: L4House) -> None:
    dns = await l4.server("dns")
    l4.write("dns.yaml", service("dns", "UDP/53", "TCP/53", to=[dns.at]))
    await l4.until(lambda: bool(l4.external("dns")))
    vip = l4.external("dns")
    assert l4.virtual_services() == {"my-cluster--default-dns": ["TCP/53", "UDP/53"]}
    await l4.until(lambda: len(l4.at.placement.services) == 1)
    assert await l4.who(vip, 53) == "dns"
    assert await l4.who_udp(vip, 53) == "dns"


async def test_a_udp_session_outlives_a_change_of_other_endpoints(l4: L4House) -> None:
    first = await l4.server("first")

    def write(*servers: Server) -> None:
        l4.write("both.yaml", service("both", "UDP/80", to=[one.at for one in servers]))

    write(first)
    await l4.until(lambda: bool(l4.external("both")))
    running = l4.house.serve.engines.running  # one that comes later takes its part of the sessions
    await l4.until(lambda: all(n in l4.at.ads.engines for n in running))
    await l4.until(lambda: all(one.answers for one in l4.at.ads.engines.values()))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as session:
        session.setblocking(False)
        session.connect((l4.external("both"), 80 + l4.house.offset))
        loop = asyncio.get_running_loop()

        async def who(wait: float = 5) -> str:
            await loop.sock_sendall(session, b"hello")
            async with asyncio.timeout(wait):
                return (await loop.sock_recv(session, 100)).decode().partition(":")[0]

        assert await who() == "first"
        others = [await l4.server(f"other{i}") for i in range(5)]
        for count in range(1, 6):
            write(first, *others[:count])
            async with asyncio.timeout(10):  # a session of its own may be anybody's
                while await l4.who_udp(l4.external("both"), 80) != f"other{count - 1}":
                    pass
            assert await who() == "first"
        write(*others)
        said = ""
        async with asyncio.timeout(10):
            while not said.startswith("other"):
                with contextlib.suppress(TimeoutError):  # on its way when its session ended
                    said = await who(0.5)


async def test_udp_behind_a_gateway(walked: L4House) -> None:
    echo = await walked.server("echo")
    walked.write("gateway.yaml", gateway("TCP/80", "UDP/80"))
    await walked.until(lambda: len(walked.gateway()["listeners"]) == 2 and bool(walked.vip()))
    assert await walked.who_udp(walked.vip(), 80) == "refused"  # the port is unreachable
    walked.write("echo.yaml", service("echo", "UDP/80", to=[echo.at], gateway="avi-alb-gw"))
    await walked.until(lambda: bool(walked.external("echo")))
    assert await walked.who_udp(walked.vip(), 80) == "echo"
    assert await walked.who(walked.vip(), 80) == "hello"


async def test_a_service_of_both_families_has_a_vip_of_each_and_may_give_one_up(
    l4: L4House,
) -> None:
    l4.write(
        "six.yaml",
        "apiVersion: akocore.io/v1alpha1\nkind: Network\nmetadata: {name: six}\n"
        "spec: {subnet: '::1/128', vipRanges: [{begin: '::1', end: '::1'}]}\n",
    )
    l4.write("infra.yaml", INFRA.replace("names: [uplink]", "names: [six, uplink]"))
    server = await l4.server("hello")
    annotations = "aviinfrasetting.ako.vmware.com/name: critical.infra"
    both = "ipFamilyPolicy: RequireDualStack, ipFamilies: [IPv4, IPv6]"

    def write(spec: str) -> None:
        ports = ("TCP/80", "UDP/80")
        text = service("both", *ports, to=[server.at], spec=spec, annotations=annotations)
        l4.write("both.yaml", text)

    write(both)
    await l4.until(lambda: l4.externals("both") == ["127.10.16.227", "::1"])
    assert await l4.who("127.10.16.227", 80) == await l4.who("::1", 80) == "hello"
    assert await l4.who_udp("::1", 80, source="::1") == "hello"
    write("ipFamilies: [IPv4]")
    await l4.until(lambda: l4.externals("both") == ["127.10.16.227"])
    assert await l4.who("127.10.16.227", 80) == "hello"
    async with asyncio.timeout(10):
        while await l4.who("::1", 80) != "refused":
            await asyncio.sleep(0.02)
    write(both)
    await l4.until(lambda: l4.externals("both") == ["127.10.16.227", "::1"])
    # Whoever needs both is told when there is one, and served there.
    l4.write("infra.yaml", INFRA)
    said = await l4.until_refused("Service", "both", "NoNetworkOfFamily")
    assert said == (
        "spec.ipFamilyPolicy: There is no address of IPv6 for it: let AviInfraSetting"
        " critical.infra name a Network of each family, or write PreferDualStack."
    )
    await l4.until(lambda: l4.externals("both") == ["127.10.16.227"])
    assert await l4.who("127.10.16.227", 80) == "hello"


async def test_only_the_source_ranges_are_let_in(l4: L4House) -> None:
    server = await l4.server("private")
    ranges = "loadBalancerSourceRanges: [127.0.7.0/24]"
    text = service("private", "TCP/80", "UDP/80", to=[server.at], spec=ranges)
    l4.write("private.yaml", text)
    await l4.until(lambda: bool(l4.external("private")))
    vip = l4.external("private")
    assert await l4.who(vip, 80, source="127.0.7.5") == "private"
    assert await l4.who(vip, 80, source="127.0.8.5") == ""
    assert await l4.who_udp(vip, 80, source="127.0.7.5") == "private"
    assert await l4.who_udp(vip, 80, source="127.0.8.5", wait=0.5) == ""


async def test_session_affinity_gives_a_client_the_same_server(l4: L4House) -> None:
    servers = [await l4.server(f"server{i}") for i in range(4)]
    affinity = "sessionAffinity: ClientIP"
    to = [server.at for server in servers]
    l4.write("sticky.yaml", service("sticky", "TCP/80", "UDP/80", to=to, spec=affinity))
    await l4.until(lambda: bool(l4.external("sticky")))
    vip = l4.external("sticky")
    by_client = {
        source: {await l4.who(vip, 80, source=source) for _ in range(5)}
        | {await l4.who_udp(vip, 80, source=source) for _ in range(3)}
        for source in (f"127.0.9.{i}" for i in range(1, 17))
    }
    assert all(len(one) == 1 for one in by_client.values())
    assert len({name for one in by_client.values() for name in one}) > 1


async def test_services_with_one_key_share_a_vip_and_the_older_has_a_port(l4: L4House) -> None:
    key = "ako.vmware.com/enable-shared-vip: front"
    one, two = await l4.server("one"), await l4.server("two")
    l4.write("one.yaml", service("one", "TCP/80", to=[one.at], annotations=key))
    await l4.until(lambda: bool(l4.external("one")))
    text = service("two", "TCP/80", "TCP/81", to=[two.at], annotations=key)
    l4.write("two.yaml", text)
    await l4.until(lambda: l4.external("two") == l4.external("one"))
    vip = l4.external("one")
    assert list(l4.virtual_services()) == ["my-cluster--default-front"]
    assert [await l4.who(vip, port) for port in (80, 81)] == ["one", "two"]
    assert "default/one" in await l4.until_refused("Service", "two", "PortConflict")
    (l4.house.directory / "one.yaml").unlink()
    async with asyncio.timeout(10):
        while await l4.who(vip, 80) != "two":
            await asyncio.sleep(0.02)
    assert l4.refused("Service", "two") == {}
    assert l4.external("two") == vip


async def test_a_service_chooses_its_address_and_setting(l4: L4House) -> None:
    server = await l4.server("own")
    annotations = (
        "aviinfrasetting.ako.vmware.com/name: critical.infra,"
        " ako.vmware.com/load-balancer-ip: 127.10.16.239"
    )
    l4.write("own.yaml", service("own", "TCP/80", to=[server.at], annotations=annotations))
    await l4.until(lambda: l4.external("own") == "127.10.16.239")
    assert await l4.who("127.10.16.239", 80) == "own"
    moved = annotations.replace("239", "238")
    l4.write("own.yaml", service("own", "TCP/80", to=[server.at], annotations=moved))
    await l4.until(lambda: l4.external("own") == "127.10.16.238")
    assert await l4.who("127.10.16.238", 80) == "own"


async def test_a_service_of_another_class_is_anothers(l4: L4House) -> None:
    server = await l4.server("it")
    spec = "loadBalancerClass: example.com/other"
    l4.write("other.yaml", service("other", "TCP/80", to=[server.at], spec=spec))
    l4.write("ours.yaml", service("ours", "TCP/80", to=[server.at]))
    await l4.until(lambda: bool(l4.external("ours")))
    assert list(l4.virtual_services()) == ["my-cluster--default-ours"]


async def test_a_setting_that_is_not_there_serves_nothing_until_it_comes(l4: L4House) -> None:
    server = await l4.server("late")
    annotations = "aviinfrasetting.ako.vmware.com/name: later"
    l4.write("late.yaml", service("late", "TCP/80", to=[server.at], annotations=annotations))
    l4.write("gateway.yaml", CLASS.replace("critical.infra", "later") + "---\n" + gateway("TCP/80"))
    await l4.until_refused("Service", "late", "AviInfraSettingNotFound")
    await l4.until_refused("Gateway", "avi-alb-gw", "AviInfraSettingNotFound")
    assert l4.virtual_services() == {}
    later = INFRA.split("---")[1].replace("critical.infra", "later")
    l4.write("later.yaml", later)
    await l4.until(lambda: bool(l4.external("late")) and bool(l4.vip()))
    assert l4.external("late").startswith("127.10.16.")


async def test_an_address_that_another_has_comes_free_when_that_one_goes(walked: L4House) -> None:
    vip = walked.external("hello")
    walked.write("second.yaml", gateway("TCP/80", name="second", address=vip))
    said = await walked.until_refused("Gateway", "second", "AddressTaken")
    assert "Gateway/default/avi-alb-gw" in said
    said = await walked.until_refused("Gateway", "avi-alb-gw", "AddressContended")
    assert "Gateway/default/second" in said
    assert walked.gateway("second")["addresses"] == []
    assert await walked.who(vip, 80) == "hello"
    (walked.house.directory / "gateway.yaml").unlink()
    await walked.until(lambda: walked.vip("second") == vip, 20)
    assert "GatewayNotFound" in walked.refused("Service", "hello")
    assert not walked.external("hello")


async def test_a_bad_edit_of_an_address_leaves_the_gateway_where_it_is(walked: L4House) -> None:
    vip = walked.external("hello")
    for address, reason in (
        ("127.10.99.1", "AddressOutsideNetwork"),
        ("nonsense", "InvalidAddress"),
    ):
        walked.write("gateway.yaml", gateway("TCP/80", address=address))
        await walked.until_refused("Gateway", "avi-alb-gw", reason)
        assert await walked.who(vip, 80) == "hello"
        assert walked.gateway()["addresses"] == [{"type": "IPAddress", "value": vip}]
        assert not walked.gateway()["ready"]
    walked.write("gateway.yaml", gateway("TCP/80"))
    await walked.until(lambda: walked.vip() == vip)


@pytest.mark.parametrize(
    ("text", "kind", "name", "reason"),
    [
        (gateway("TCP/80", name="wrong", cls="none"), "Gateway", "wrong", "NoSuchGatewayClass"),
        (gateway("HTTP/80", name="wrong"), "Gateway", "wrong", "UnsupportedProtocol"),
        (gateway("TCP/80", "TCP/80", name="wrong"), "Gateway", "wrong", "PortConflict"),
        (
            gateway("TCP/80", name="wrong").replace("gateway-name: wrong", "gateway-name: other"),
            *("Gateway", "wrong", "SelectorMismatch"),
        ),
        (
            CLASS.replace("critical-gwc", "odd").replace("kind: AviInfra", "kind: Other")
            + "---\n"
            + gateway("TCP/80", name="wrong", cls="odd"),
            *("Gateway", "wrong", "InvalidParameters"),
        ),
        (
            service("wrong", "TCP/80", to=[], gateway="nowhere"),
            *("Service", "wrong", "GatewayNotFound"),
        ),
        (
            service("wrong", "TCP/80", to=[], gateway="avi-alb-gw"),
            *("Service", "wrong", "PortConflict"),
        ),
        (
            service("wrong", "TCP/99", to=[], gateway="avi-alb-gw"),
            *("Service", "wrong", "NoMatchingListener"),
        ),
        (
            service("wrong", "TCP/80", to=[], spec="loadBalancerIP: 1.2.3.4"),
            *("Service", "wrong", "AddressOutsideNetwork"),
        ),
        (
            service("wrong", "TCP/80", to=[], spec="loadBalancerSourceRanges: [nobody]"),
            *("Service", "wrong", "InvalidSourceRange"),
        ),
        (service("wrong", "SCTP/80", to=[]), "Service", "wrong", "UnsupportedProtocol"),
    ],
    ids=lambda value: value if isinstance(value, str) and value.isalpha() else "",
)
async def test_what_is_wrong_with_one_object_hurts_no_other(
    walked: L4House, text: str, kind: str, name: str, reason: str
) -> None:
    vip = walked.external("hello")
    walked.write("wrong.yaml", text)
    said = await walked.until_refused(kind, name, reason)
    assert said.partition(": ")[2]
    assert await walked.who(vip, 80) == "hello"
    assert walked.external("hello") == vip
    (walked.house.directory / "wrong.yaml").unlink()
    await walked.until(lambda: not walked.refused(kind, name))
    assert walked.refused("Gateway", "avi-alb-gw") == {}
    assert walked.at.ads.nacks == 0


async def test_an_engine_that_is_killed_and_one_that_comes_serve_the_same(walked: L4House) -> None:
    engines = walked.house.serve.engines.running
    vip = walked.external("hello")
    (server,) = walked.servers
    walked.write("udp.yaml", service("udp", "UDP/80", to=[server.at]))
    await walked.until(lambda: bool(walked.external("udp")))
    (name, process), *_ = engines.items()
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    await walked.until(lambda: walked.house.serve.engines.running[name].restarts == 1)
    ads = walked.at.ads
    await walked.until(lambda: name in ads.engines and ads.engines[name].answers)
    assert [await walked.who(vip, 80) for _ in range(20)] == ["hello"] * 20
    udp = walked.external("udp")
    assert [await walked.who_udp(udp, 80) for _ in range(20)] == ["hello"] * 20
    other = await walked.server("other")
    walked.write("udp.yaml", service("udp", "UDP/80", to=[other.at]))
    async with asyncio.timeout(10):
        while {await walked.who_udp(udp, 80) for _ in range(20)} != {"other"}:
            await asyncio.sleep(0.02)


async def test_an_ingress_and_a_gateway_share_the_cluster_of_a_service_port(
    house: House,
) -> None:
    l4 = L4House(house)
    house.write("infra.yaml", INFRA + "---\n" + CLASS + "---\n" + gateway("TCP/80"))
    house.app("web", "web.test")
    text = (house.directory / "web.yaml").read_text()
    labels = "{ako.vmware.com/gateway-namespace: default, ako.vmware.com/gateway-name: avi-alb-gw}"
    text = text.replace("critical-ic", "avi-lb")
    text = text.replace(
        "metadata: {name: web}\nspec: {ports",
        f"metadata: {{name: web, labels: {labels}}}\nspec: {{ports",
    )
    house.write("web.yaml", text)
    await l4.until(lambda: bool(l4.vip()) and "web.test" in house.addresses())
    await house.until_status(l4.vip(), "web.test", 200)
    await house.until_status(house.addresses()["web.test"], "web.test", 200)
    clusters = {
        name
        for catalog in l4.at.ads.catalogs.values()
        for type_url, resources in catalog.resources.items()
        if type_url.endswith("Cluster")
        for name in resources
    }
    assert clusters == {"b/default/web/80"}


async def test_a_port_that_somebody_else_has_is_told_until_it_is_free(walked: L4House) -> None:
    other = await walked.server("other")
    with socket.create_server((walked.vip(), 81 + walked.house.offset)):
        walked.write("gateway.yaml", gateway("TCP/80", "TCP/81"))
        text = service("other", "TCP/81", to=[other.at], gateway="avi-alb-gw")
        walked.write("other.yaml", text)
        said = await walked.until_refused("Gateway", "avi-alb-gw", "EngineRejected")
        assert said.startswith("spec.listeners[1]: ")
        assert "in use" in said
        states = [(one["port"], one["ready"]) for one in walked.gateway()["listeners"]]
        assert states == [(80, True), (81, False)]
        assert await walked.who(walked.external("hello"), 80) == "hello"
        assert not walked.external("other")
    await walked.until(lambda: bool(walked.vip()) and bool(walked.external("other")))
    assert await walked.who(walked.vip(), 81) == "other"
    accepted = [
        event
        for event in walked.house.serve.events
        if (event.object, event.reason) == ("Gateway/default/avi-alb-gw", "Accepted")
    ]
    assert accepted  # and nothing else had to happen for it


def _akocore(running: Running, *words: str) -> str:
    command = [sys.executable, "-m", "akocore", *words, "--state", str(running.state)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


async def test_a_killed_akocore_keeps_the_vips_and_tells_them_by_get_and_explain(
    tmp_path: Path,
) -> None:
    server = await Server("hello").start()
    running = Running(tmp_path, 0)
    running.config = "moveGraceSeconds: 1\n"
    running.write("infra.yaml", INFRA)
    running.write("class.yaml", CLASS)
    running.write("gateway.yaml", gateway("TCP/80", "UDP/53"))
    running.write("hello.yaml", service("hello", "TCP/80", to=[server.at], gateway="avi-alb-gw"))
    running.write("wrong.yaml", service("wrong", "TCP/81", to=[], gateway="avi-alb-gw"))

    async def served() -> str:
        async with asyncio.timeout(20):
            while True:
                for item in await running.ask("service"):
                    points = item["status"]["loadBalancer"]["ingress"]
                    if item["metadata"]["name"] == "hello" and points:
                        return str(points[0]["ip"])
                await asyncio.sleep(0.05)

    async with running:
        vip = await served()
        (item,) = await running.ask("gateway")
        assert item["status"]["addresses"] == [{"type": "IPAddress", "value": vip}]
        table = await asyncio.to_thread(_akocore, running, "get", "gateway")
        assert table.split()[7:12] == [
            "default",
            "avi-alb-gw",
            "critical-gwc",
            vip,
            "TCP/80,UDP/53",
        ]
        table = await asyncio.to_thread(_akocore, running, "get", "svc", "wrong")
        assert table.split()[-1] == "NoMatchingListener"
        tree = await asyncio.to_thread(_akocore, running, "explain", "gateway/avi-alb-gw")
        assert f"VIP {vip} (given by IPAM)" in tree
        assert "UDP/53 → nobody" in tree
        assert f"default/hello/80 [127.0.0.1:{server.at[1]}]" in tree
        tree = await asyncio.to_thread(_akocore, running, "explain", "service/wrong")
        assert "NoMatchingListener spec.ports[0].port" in tree
        await running.kill()
        (running.directory / "wrong.yaml").unlink()
        for name in ("a-new-one", "another"):  # that might take the address
            running.write(f"{name}.yaml", service(name, "TCP/80", to=[server.at]))
        reader, writer = await asyncio.open_connection(vip, 80 + OFFSET)
        assert await reader.readline() == b"hello\n"  # the engines serve on
        writer.close()
        await running.start()
        assert await served() == vip
    server.stop()


async def test_endpoints_are_told_who_a_client_is_by_the_proxy_protocol(l4: L4House) -> None:
    """At L4, and by an Ingress of the same Service, whose answer is HTTP."""
    began: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        began.append(await reader.read(1024))
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    at = server.sockets[0].getsockname()

    async def ask(version: str) -> bytes:
        """What a connection of client 127.0.0.9 begins with at the endpoint."""
        note = f"akocore.io/proxy-protocol: {version}" if version else ""
        l4.write("told.yaml", service("told", "TCP/80", to=[at], annotations=note))
        await l4.until(lambda: bool(l4.external("told")))
        async with asyncio.timeout(10):
            while True:
                began.clear()
                name, _, writer = await l4.connect(l4.external("told"), 80, "127.0.0.9")
                writer.close()
                header = began[0] if began else b""
                if name and header.startswith(wanted[version]):
                    return header
                await asyncio.sleep(0.05)

    wanted = {"": b"", "v1": b"PROXY ", "v2": b"\r\n\r\n\0\r\nQUIT\n"}
    header = await ask("v1")
    assert header.startswith(b"PROXY TCP4 127.0.0.9 127.10.")
    header = await ask("v2")
    assert header[12:14] == b"\x21\x11"  # version 2, PROXY; TCP over IPv4
    assert header[16:20] == socket.inet_aton("127.0.0.9")

    l4.write(
        "ingress.yaml",
        "apiVersion: networking.k8s.io/v1\nkind: Ingress\nmetadata: {name: told}\n"
        "spec: {rules: [{host: told.test, http: {paths: [{path: /, pathType: Prefix,"
        " backend: {service: {name: told, port: {number: 80}}}}]}}]}\n",
    )
    await l4.until(lambda: "told.test" in l4.at.hosts)
    home = l4.at.placement.services[l4.at.hosts["told.test"].vs].shown
    assert home is not None
    vip = home.address
    await l4.house.until_status(vip, "told.test", 200)
    began.clear()
    assert await l4.house.get(vip, "told.test") == 200
    assert began[0].startswith(wanted["v2"])
    assert b"GET / HTTP/1.1" in began[0]

    l4.write(
        "told.yaml",
        service("told", "TCP/80", to=[at], annotations='akocore.io/proxy-protocol: "2"'),
    )
    said = await l4.until_refused("Service", "told", "InvalidField")
    assert said == (
        "metadata.annotations[akocore.io/proxy-protocol]: akocore.io/proxy-protocol of Service"
        " default/told is 2: write v1 or v2."
    )
    server.close()
