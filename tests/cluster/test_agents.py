"""Service Engines with agents, and several replicas: what the leader says of those of another."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from agent.conftest import Process
from akocore.engines.frr.process import Frr, end
from akocore.engines.handover import Handover
from akocore.lab.namespaces import Namespaces
from cluster.control_plane import ControlPlane
from cluster.test_external import Site
from frr.conftest import directory, frr

__all__ = ["directory", "frr"]

pytestmark = pytest.mark.real

OBJECTS = """
apiVersion: akocore.io/v1alpha1
kind: Network
metadata: {name: uplink}
spec:
  subnet: 10.77.16.0/24
  vipRanges: [{begin: 10.77.16.225, end: 10.77.16.254}]
  bgp: {localAs: 5000, peers: [{address: 198.51.100.1, remoteAs: 6000}]}
---
apiVersion: ako.vmware.com/v1alpha1
kind: AviInfraSetting
metadata: {name: critical.infra}
spec: {network: {names: [uplink], enableRhi: true}, l7Settings: {shardSize: SMALL}}
---
apiVersion: networking.k8s.io/v1
kind: IngressClass
metadata: {name: critical-ic}
spec:
  controller: ako.vmware.com/avi-lb
  parameters: {apiGroup: ako.vmware.com, kind: AviInfraSetting, name: critical.infra}
"""


@pytest_asyncio.fixture
async def site(
    directory: Path, frr: Frr, plane: ControlPlane, endpoint: str
) -> AsyncIterator[Site]:
    made = Site(directory, plane, endpoint)
    made.one.apply(OBJECTS)
    yield made
    await made.stop()
    end(directory / "agent" / "frr")


def mirror(site: Site, kind: str) -> dict[str, dict[str, object]]:
    items = json.loads(site.plane.kubectl("get", kind, "-o", "json"))["items"]
    return {item["metadata"]["name"]: item["status"] for item in items}


async def test_the_leader_tells_of_a_router_whose_agent_is_at_another_replica(site: Site) -> None:
    site.one.apps(1, "critical-ic")
    await site.one.start()
    await site.one.until_ready()
    await site.two.start()

    async def follows() -> bool:
        return bool((await site.two.said()).get("batches"))

    await site.until(follows)
    pair = site.authority.issue("se-1", "se-1")
    log = site.scratch / "agent.log"
    agent = Process(
        [
            *(sys.executable, "-m", "akocore", "se", "run", "--name", "se-1"),
            *("--group", "Default-Group", "--controller", f"{site.two.at},{site.one.at}"),
            *("--cert", str(pair.certificate), "--key", str(pair.key)),
            *("--ca", str(site.authority.ca), "--address", "10.77.16.1"),
            *("--state", str(site.scratch / "agent"), "--metrics-listen", ""),
            *("--drain", "0.1", "--flows", "0"),
        ],
        log,
    )
    try:

        def told() -> bool:
            said = mirror(site, "serviceengines").get("se-1", {})
            services = [s.get("announcedBy") for s in mirror(site, "virtualservices").values()]
            return (
                said.get("address") == "10.77.16.1"
                and said.get("vips") == ["10.77.16.225"]
                and said.get("bgpUp") == "0/1"
                and "BGP with 198.51.100.1 is down (NoRoute)" in str(said.get("why"))
                and services == [["se-1"]]
            )

        await site.until(told, 40)
        at_two = [r for r in site.two.replicas().values() if r.get("routers")]
        assert [r.get("leads", False) for r in at_two] == [False]
        assert "se-1" in site.plane.kubectl("get", "serviceengines")

        # Its replica is killed: it goes to the other one, and withdraws nothing meanwhile.
        await site.two.kill()

        async def found() -> bool:
            items = await site.one.ask("se")
            routing = [i["status"].get("routing", {}) for i in items]
            return [r.get("announced") for r in routing] == [["10.77.16.225"]] and log.read_text(
                "utf-8"
            ).count("event=controller_found") == 2

        await site.until(found)
        assert "removed=1" not in log.read_text("utf-8")
    finally:
        agent.send(signal.SIGTERM)
        await agent.ended()


async def test_agents_of_different_replicas_hand_flows_over_to_each_other(site: Site) -> None:
    """Each agent is at a replica of its own, and in a network namespace of its own."""
    site.one.apps(1, "critical-ic")
    ports = []
    for replica in (site.one, site.two):
        ports.append(replica.at.rpartition(":")[2])
        replica.flags[replica.flags.index(replica.at)] = f"0.0.0.0:{ports[-1]}"
    await site.one.start()
    await site.one.until_ready()
    await site.two.start()
    space = Namespaces(f"akoc-{os.getpid()}-")
    await space.add(["switch", "se-1", "se-2"])
    agents = []
    try:
        own = f"akoc{os.getpid()}"
        there = str(space.path("switch"))
        for words in (
            ["add", own, "type", "veth", "peer", "name", "out", "netns", there],
            ["set", own, "up"],
        ):
            await space.run(None, ["ip", "link", *words])
        await space.run(None, ["ip", "addr", "add", "10.77.16.10/24", "dev", own])
        await space.connect(*((name, "eth0", "switch", name) for name in ("se-1", "se-2")))
        ups = [f"link set {port} master br0 up" for port in ("out", "se-1", "se-2")]
        await space.ip("switch", ["link add br0 type bridge", "link set br0 up", *ups])
        for number, port in enumerate(ports, start=1):
            name = f"se-{number}"
            at = f"10.77.16.{number}"
            await space.ip(name, [f"addr add {at}/24 dev eth0", "link set eth0 up"])
            pair = site.authority.issue(name, name)
            command = [
                *(sys.executable, "-m", "akocore", "se", "run", "--name", name),
                *("--group", "Default-Group", "--controller", f"10.77.16.10:{port}"),
                *("--controller-name", "127.0.0.1", "--address", at, "--metrics-listen", ""),
                *("--cert", str(pair.certificate), "--key", str(pair.key)),
                *("--ca", str(site.authority.ca), "--state", str(site.scratch / name)),
                *("--drain", "0.1", "--flows", "0"),
            ]
            log = site.scratch / f"{name}.log"
            agents.append(Process(space.command(name, command), log))

        def rings() -> list[list[str]]:
            found = [
                Handover(site.scratch / name / "handover.json").ring for name in ("se-1", "se-2")
            ]
            return [[m.name for m in one.members] if one else [] for one in found]

        await site.until(lambda: rings() == [["se-1", "se-2"]] * 2, 40)
        agents[1].send(signal.SIGTERM)
        assert await agents[1].ended() == 0
        await site.until(lambda: rings()[0] == ["se-1"])

        agents[0].send(signal.SIGTERM)
        assert await agents[0].ended() == 0
    finally:
        for agent in agents:
            agent.kill()
        for name in ("se-1", "se-2"):
            end(site.scratch / name / "frr")
        await space.remove(space.names())


async def test_scaling_annotates_the_setting_of_a_virtual_service(site: Site) -> None:
    site.one.apps(1, "critical-ic")
    await site.one.start()
    await site.one.until_ready()

    async def scale(*words: str) -> tuple[int | None, str]:
        (vs,) = [str(item["metadata"]["name"]) for item in await site.one.ask("vs")][:1]
        command = [sys.executable, "-m", "akocore", "scale", f"vs/{vs}", *words]
        where = ["--state", str(site.one.state), "--kubeconfig", str(site.plane.kubeconfig)]
        process = await asyncio.create_subprocess_exec(
            *command, *where, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        said, _ = await process.communicate()
        return process.returncode, said.decode()

    async def placed() -> bool:
        return bool(await site.one.ask("vs"))

    await site.until(placed)
    code, said = await scale("--out")
    assert code == 0, said
    assert "AviInfraSetting/critical.infra: annotation akocore.io/scale-out is 3" in said
    assert "from 2 to 3 Service Engines" in said
    shown = site.plane.kubectl("get", "aviinfrasetting", "critical.infra", "-o", "json")
    assert json.loads(shown)["metadata"]["annotations"]["akocore.io/scale-out"] == "3"

    async def again() -> bool:
        return "from 3 to 4 Service Engines" in (await scale("--to", "4"))[1]

    await site.until(again)  # what is written is what counts
    code, said = await scale("--to", "5")
    assert code == 1
    assert "ServiceEngineGroup Default-Group has maxSePerVs 4: raise it, or ask for less." in said
