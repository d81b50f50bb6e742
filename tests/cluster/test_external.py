"""Service Engines elsewhere, and several replicas: real Envoys and a real API server."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest

from akocore.engines.envoy.resources import CDS
from cluster.control_plane import ControlPlane
from cluster.controller import LARGE, MEDIUM, OBJECTS
from cluster.replica import LEASE_S, Replica
from e2e.running import Client
from engines.authority import Authority
from engines.recorder import Recorder
from engines.remote_envoy import RemoteEnvoy

pytestmark = pytest.mark.real


@pytest.fixture
def scratch() -> Iterator[Path]:
    """Short, for the sockets in it."""
    with tempfile.TemporaryDirectory(prefix="se-") as name:
        yield Path(name)


class Site:
    """A cluster, replicas, engines."""

    def __init__(self, scratch: Path, plane: ControlPlane, endpoint: str) -> None:
        self.scratch = scratch
        self.plane = plane
        self.authority = Authority(scratch / "pki")
        self.one = Replica(scratch / "one", plane, endpoint, self.authority)
        self.two = Replica(scratch / "two", plane, endpoint, self.authority)
        self.envoys: dict[str, RemoteEnvoy] = {}

    def engine(self, name: str, *replicas: Replica) -> RemoteEnvoy:
        """An engine of that name, of these replicas; another life of it if it was there."""
        if name in self.envoys:
            self.envoys[name].kill()
        made = self.envoys[name] = RemoteEnvoy(
            self.scratch / "engines",
            name,
            [replica.at for replica in replicas],
            self.authority.issue(name, name),
            self.authority.ca,
        )
        made.start()
        return made

    async def engine_at(self, replica: Replica, name: str) -> RemoteEnvoy:
        """An engine that may go to either replica, and goes to this one first."""
        while True:
            made = self.engine(name, self.one, self.two)
            await self.until(self.is_up(name))
            if (await replica.engines())[name]["controller"] == "":
                return made

    def is_up(self, name: str) -> Callable[[], Awaitable[bool]]:
        async def up() -> bool:
            for replica in (self.one, self.two):
                if replica.running:
                    row = (await replica.engines()).get(name)
                    if row is None or row["state"] != "up" or not row["upToDate"]:
                        return False
            return True

        return up

    async def until(
        self, true: Callable[[], bool] | Callable[[], Awaitable[bool]], seconds: float = 60
    ) -> None:
        deadline = time.monotonic() + seconds
        while True:
            held = true()
            if held if isinstance(held, bool) else await held:
                return
            if time.monotonic() > deadline:
                logs = [r.log.read_text()[-3000:] for r in (self.one, self.two) if r.log.exists()]
                pytest.fail(f"not true after {seconds} s; logs: {'——'.join(logs)}")
            await asyncio.sleep(0.05)

    async def stop(self) -> None:
        for envoy in self.envoys.values():
            envoy.kill()
        for replica in (self.one, self.two):
            await replica.stop()


class Traffic:
    """Asks for what status names, all the while; `failures` of an address that status names."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self.shown: dict[int, str] = {}
        self.asked = 0
        self.failures: list[str] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Traffic:
        self.shown = await asyncio.to_thread(self._replica.shown)
        self._tasks = [asyncio.create_task(one) for one in (self._look(), *map(self._ask, (1, 2)))]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _look(self) -> None:
        while True:
            self.shown = await asyncio.to_thread(self._replica.shown)
            await asyncio.sleep(0.1)

    async def _ask(self, _number: int) -> None:
        while True:
            for number, address in list(self.shown.items()):
                # A connection for each, so the kernel chooses the engine anew.
                with contextlib.closing(Client()) as client:
                    code = await client.get(address, f"hello{number}.avi.iberia.local")
                self.asked += 1
                if code != 200:  # what we know may be old: does status name it still?
                    shown = await asyncio.to_thread(self._replica.shown)
                    if shown.get(number) == address:
                        self.failures.append(f"hello{number} at {address}: {code}")
                await asyncio.sleep(0.002)


@pytest_asyncio.fixture
async def site(scratch: Path, plane: ControlPlane, endpoint: str) -> AsyncIterator[Site]:
    made = Site(scratch, plane, endpoint)
    made.one.apply(OBJECTS)
    yield made
    await made.stop()


@pytest_asyncio.fixture
async def pair(site: Site) -> Site:
    """Two replicas with an engine on each; either engine may go to the other."""
    site.one.apps(20, "critical-ic")
    await site.one.start()
    await site.two.start()
    await site.engine_at(site.one, "se-1")
    await site.engine_at(site.two, "se-2")
    await site.until(lambda: len(site.one.shown()) == 20)
    return site


async def test_engines_elsewhere_serve_a_clusters_ingresses(site: Site) -> None:
    site.one.apps(20, "critical-ic")
    await site.one.start()
    for name in ("se-1", "se-2"):
        site.engine(name, site.one)
    await site.until(lambda: site.one.has("se-1", "se-2"))
    await site.until(lambda: len(site.one.shown()) == 20)
    assert site.one.groups() == sorted(LARGE, key=min)
    await site.one.all_answer(20)
    await site.until(lambda: {v["state"] for v in site.one.virtual_services().values()} == {"up"})
    (engines,) = {tuple(v["serviceEngines"]) for v in site.one.virtual_services().values()}
    assert engines == ("se-1", "se-2")
    site.one.size("MEDIUM")
    await site.until(lambda: site.one.groups() == sorted(MEDIUM, key=min))
    await site.one.all_answer(20)


async def test_too_few_engines_are_said_and_none_is_started(site: Site) -> None:
    site.one.apps(3, "critical-ic")
    site.one.flags += ["--lease-duration", "1"]
    await site.one.start()

    def said(state: str, why: str) -> Callable[[], bool]:
        return lambda: (
            {(v["state"], v.get("why", "")) for v in site.one.virtual_services().values()}
            == {(state, why)}
        )

    await site.until(said("down", "no Service Engine of Default-Group serves it"))
    assert site.one.shown() == {}
    site.engine("se-1", site.one)
    await site.until(said("degraded", "1 of 2 Service Engines"))
    await site.until(lambda: len(site.one.shown()) == 3)
    second = site.engine("se-2", site.one)
    await site.until(said("up", ""))
    second.kill()
    await site.until(said("degraded", "1 of 2 Service Engines"))
    await site.until(lambda: site.one.service_engines()["se-2"]["state"] == "disconnected")
    await site.until(lambda: set(site.one.service_engines()) == {"se-1"}, 11 * LEASE_S)
    assert not list((site.one.state / "engines").glob("*.pid"))


async def test_an_engine_that_poses_as_another_is_an_event(site: Site) -> None:
    await site.one.start()
    envoy = RemoteEnvoy(
        site.scratch / "engines",
        "se-1",
        [site.one.at],
        site.authority.issue("se-2", "se-2"),
        site.authority.ca,
    )
    site.envoys["se-1"] = envoy
    envoy.start()

    async def told() -> bool:
        return any(
            e["regarding"] == "ServiceEngine/se-1"
            and e["reason"] == "IdentityRefused"
            and "its certificate is of se-2, not of 'se-1'" in e["note"]
            for e in await site.one.ask("events")
        )

    await site.until(told)
    assert await site.one.engines() == {}
    assert "event=IdentityRefused object=ServiceEngine/se-1" in site.one.log.read_text()


async def test_on_tcp_there_is_discovery_alone_and_on_the_socket_there_is_none(
    site: Site,
) -> None:
    await site.one.start()
    mine = site.authority.issue("se-1", "se-1")
    credentials = grpc.ssl_channel_credentials(
        site.authority.ca.read_bytes(), mine.key.read_bytes(), mine.certificate.read_bytes()
    )
    discovery = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"
    await site.until(lambda: bool(site.one.replicas()))

    async def code(channel: grpc.aio.Channel, method: str, question: bytes) -> grpc.StatusCode:
        try:
            call: Any = channel.stream_stream(method)
            async for _ in call(iter([question])):
                return grpc.StatusCode.OK
        except grpc.aio.AioRpcError as err:
            return err.code()
        return grpc.StatusCode.OK

    socket = f"unix:{site.one.state / 'control.sock'}"
    question = DeltaDiscoveryRequest(type_url=CDS)
    question.node.id, question.node.cluster = "se-1", "Default-Group"
    hello = question.SerializeToString()
    control = "/akocore.v1alpha1.Control/Get"
    async with (
        grpc.aio.secure_channel(site.one.at, credentials) as over_tls,
        grpc.aio.insecure_channel(site.one.at) as plain,
        grpc.aio.insecure_channel(socket) as local,
    ):
        missing = grpc.StatusCode.UNIMPLEMENTED
        assert await code(over_tls, discovery, hello) is grpc.StatusCode.OK
        assert await code(over_tls, control, b'{"kind": "se"}') is missing
        assert await code(local, control, b'{"kind": "se"}') is grpc.StatusCode.OK
        assert await code(local, discovery, hello) is missing
        assert await code(plain, control, b'{"kind": "se"}') is grpc.StatusCode.UNAVAILABLE


async def test_a_controller_that_comes_back_sends_nothing_that_an_engine_says_it_has(
    site: Site,
) -> None:
    site.one.apps(5, "critical-ic")
    await site.one.start()
    envoy = site.engine("se-1", site.one)
    await site.until(lambda: len(site.one.shown()) == 5)
    changes = r"^(listener|cluster)_manager\.(listener|cluster)_(added|modified|removed)$"
    before, versions = await envoy.stats(changes), site.one.versions()
    assert before["cluster_manager.cluster_added"] == 1 + 5  # xds, and a Service each
    async with Traffic(site.one) as traffic:
        await site.one.kill()
        site.plane.kubectl("delete", "service", "hello5")
        await site.one.start()
        await site.until(lambda: site.one.has("se-1"))
        after = await envoy.stats(changes)
    assert [f for f in traffic.failures if "hello5" not in f] == []
    assert traffic.asked
    gone = "cluster_manager.cluster_removed"
    assert after == before | {gone: before[gone] + 1}
    assert site.one.versions() == versions


BALANCER = """
apiVersion: v1
kind: Service
metadata: {name: balancer}
spec: {type: LoadBalancer, ports: [{port: 7000, targetPort: 8080}]}
"""


async def test_status_names_an_address_when_engines_of_every_replica_have_it(pair: Site) -> None:
    await pair.one.all_answer(20)

    def balanced() -> str:
        path = "-o=jsonpath={.status.loadBalancer.ingress[0].ip}"
        return pair.plane.kubectl("get", "service", "balancer", path)

    leader, name = (pair.one, "se-2") if await pair.one.leads() else (pair.two, "se-1")
    other = pair.two if leader is pair.one else pair.one
    own = "se-1" if name == "se-2" else "se-2"
    pair.envoys[name].send(signal.SIGSTOP)
    pair.one.apps(1, "critical-ic", first=21)
    pair.one.apply(BALANCER)

    async def leaders_engine_has_it() -> bool:
        mine = (await leader.engines())[own]
        return bool(mine["upToDate"] and (await leader.ask("akocore"))[0]["status"]["hosts"] == 21)

    await pair.until(leaders_engine_has_it)
    await asyncio.sleep(1)
    assert 21 not in pair.one.shown()
    assert balanced() == ""
    assert not await other.has(name)
    (host,) = (await leader.explain("default/hello21"))["hosts"]
    (waits,) = host["waitsFor"]
    assert waits.startswith(f"{name} at ")
    assert pair.one.service_engines()[name]["controller"] == waits.removeprefix(f"{name} at ")
    pair.envoys[name].send(signal.SIGCONT)
    await pair.until(lambda: 21 in pair.one.shown())
    await pair.until(lambda: balanced().startswith("127.10."))
    await pair.one.all_answer(21)


@pytest.mark.parametrize("which", ["the leader", "the other"])
async def test_a_replica_that_is_killed_costs_no_request_and_status_stays_right(
    pair: Site, which: str
) -> None:
    leader, other = (pair.one, pair.two) if await pair.one.leads() else (pair.two, pair.one)
    killed, left = (leader, other) if which == "the leader" else (other, leader)
    before = pair.one.shown()
    async with Traffic(left) as traffic:
        await killed.kill()
        await pair.until(lambda: left.has("se-1", "se-2"))
        left.apps(1, "critical-ic", first=21)
        await pair.until(lambda: 21 in left.shown())
        assert await left.leads()
        await killed.start()
        await pair.until(pair.is_up("se-1"))
        left.apps(1, "critical-ic", first=22)
        await pair.until(lambda: 22 in left.shown())
    assert traffic.failures == []
    assert traffic.asked
    await left.all_answer(22)
    shown = left.shown()
    assert {number: shown[number] for number in before} == before


async def test_a_move_loses_no_request_at_the_engines_of_any_replica(pair: Site) -> None:
    async with Traffic(pair.one) as traffic:
        pair.one.size("MEDIUM")
        await pair.until(lambda: pair.one.groups() == sorted(MEDIUM, key=min))
        pair.one.size("SMALL")
        await pair.until(lambda: pair.one.groups() == [set(range(1, 21))])
        await asyncio.sleep(3)  # old addresses have been given up
    assert traffic.failures == []
    assert traffic.asked
    await pair.one.all_answer(20)


async def test_a_replica_that_is_stuck_loses_its_engines_to_the_other(pair: Site) -> None:
    stuck, left = (pair.two, pair.one) if await pair.one.leads() else (pair.one, pair.two)
    os.kill(stuck.pid, signal.SIGSTOP)
    await pair.until(lambda: left.has("se-1", "se-2"), 30)
    left.apps(1, "critical-ic", first=21)
    await pair.until(lambda: 21 in left.shown())
    await pair.until(lambda: len(left.replicas()) == 1)
    os.kill(stuck.pid, signal.SIGCONT)
    await pair.until(lambda: len(left.replicas()) == 2)
    left.apps(1, "critical-ic", first=22)
    await pair.until(lambda: 22 in left.shown())
    await left.all_answer(22)


async def test_a_replica_without_an_api_server_sends_its_engines_to_one_that_has_one(
    site: Site,
) -> None:
    wire = Recorder(site.plane.port)
    await wire.start()
    text = site.two.kubeconfig.read_text().replace(f":{site.plane.port}", f":{wire.port}")
    site.two.kubeconfig = site.scratch / "kubeconfig-two"
    site.two.kubeconfig.write_text(text)
    site.one.apps(3, "critical-ic")
    await site.one.start()
    await site.until(site.one.leads)
    await site.two.start()
    await site.engine_at(site.one, "se-1")
    await site.engine_at(site.two, "se-2")
    await site.until(lambda: len(site.one.shown()) == 3)
    await wire.cut()
    await site.until(lambda: site.one.has("se-1", "se-2"), 3 * LEASE_S)
    site.one.apps(1, "critical-ic", first=4)
    await site.until(lambda: 4 in site.one.shown())
    await site.one.all_answer(4)
    await wire.start()
    await site.until(lambda: "event=engines_sent_away" in site.two.log.read_text())
    await site.until(site.is_up("se-1"), 30)
    await wire.cut()


GHOST = """
apiVersion: akocore.io/v1alpha1
kind: Replica
metadata: {name: ghost}
status:
  identity: ghost
  leaseSeconds: 60
  seen: {Ingress: VERSION}
  engines: [{name: se-1, group: Default-Group, since: 1}]
"""


async def test_an_engine_that_has_more_than_a_replica_has_read_is_let_in_when_it_has_read_it(
    site: Site,
) -> None:
    await site.one.start()
    site.one.apps(1, "critical-ic")
    (version,) = site.one.versions().values()
    site.one.apply(GHOST.replace("VERSION", str(int(version) + 10)))
    await site.until(lambda: len(site.one.replicas()) == 2)
    envoy = site.engine("se-1", site.one)
    await site.until(lambda: envoy.says("starting main dispatch loop"))
    await asyncio.sleep(1)
    assert not await site.one.has("se-1")
    site.one.apps(12, "critical-ic", first=2)
    await site.until(lambda: site.one.has("se-1"))
    assert "event=se_has_more" not in site.one.log.read_text()
    await site.until(lambda: len(site.one.shown()) == 13)


async def test_replicas_with_different_configurations_do_not_count_on_each_other(
    site: Site,
) -> None:
    site.two.config += "clusterName: another\n"
    site.one.apps(1, "critical-ic")
    await site.one.start()
    await site.until(site.one.leads)
    await site.two.start()
    site.engine("se-1", site.one)
    await site.until(lambda: 1 in site.one.shown())
    site.engine("se-2", site.two)

    async def told() -> bool:
        return any(e["reason"] == "ReplicasDiffer" for e in await site.one.ask("events"))

    await site.until(told)
    await site.until(lambda: site.two.has("se-2"))
    site.one.apps(1, "critical-ic", first=2)
    await site.until(lambda: site.one.has("se-1"))
    await asyncio.sleep(1)
    assert set(site.one.shown()) == {1}
    site.envoys["se-2"].kill()
    await site.until(lambda: 2 in site.one.shown())
