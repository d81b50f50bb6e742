"""``akocore controller`` against a real API server, with the rights that it asks for."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import pytest_asyncio

from akocore.cli.dummy import manifests
from cluster.control_plane import ControlPlane
from cluster.pods import pods
from e2e.running import Client, Running

pytestmark = pytest.mark.real

TABLE = (
    "-o=custom-columns=HOSTNAME:.status.loadBalancer.ingress[0].hostname,"
    "AVI-VS-IP:.status.loadBalancer.ingress[0].ip"
)
LARGE = [{1, 9, 14}, {2, 17}, {3, 16}, {4, 11, 19}, {5, 10, 18}, {6, 13}, {8, 15, 20}, {7, 12}]
MEDIUM = [{1, 5, 9, 10, 14, 18}, {2, 6, 13, 17}, {3, 7, 12, 16}, {4, 8, 11, 15, 19, 20}]
OBJECTS = """
apiVersion: akocore.io/v1alpha1
kind: Network
metadata: {name: vips}
spec: {subnet: 127.10.16.0/24, vipRanges: [{begin: 127.10.16.225, end: 127.10.16.254}]}
---
apiVersion: ako.vmware.com/v1alpha1
kind: AviInfraSetting
metadata: {name: critical.infra}
spec: {network: {names: [vips]}, l7Settings: {shardSize: LARGE}}
---
apiVersion: networking.k8s.io/v1
kind: IngressClass
metadata: {name: critical-ic}
spec:
  controller: ako.vmware.com/avi-lb
  parameters: {apiGroup: ako.vmware.com, kind: AviInfraSetting, name: critical.infra}
"""


class Controller(Running):
    """``akocore controller`` over a control plane."""

    def __init__(self, scratch: Path, plane: ControlPlane, endpoint: str) -> None:
        super().__init__(scratch, 0)
        self.plane = plane
        self.endpoint = endpoint
        self.config = "moveGraceSeconds: 1\n"

    def source(self) -> list[str]:
        return ["controller", "--kubeconfig", str(self.plane.controllers_kubeconfig)]

    def install(self) -> None:
        command = [sys.executable, "-m", "akocore", "install"]
        subprocess.run([*command, "--kubeconfig", self.plane.kubeconfig], check=True)

    def apply(self, text: str | bytes) -> None:
        self.plane.kubectl("apply", "-f", "-", stdin=text)

    def apps(self, count: int, ingress_class: str | None, first: int = 1) -> None:
        items: list[dict[str, Any]] = []
        for i in range(first, first + count):
            items += manifests("hello", i, ingress_class=ingress_class, endpoint=self.endpoint)
        self.apply(orjson.dumps({"apiVersion": "v1", "kind": "List", "items": items}))

    def shown(self) -> dict[int, str]:
        """hello's number → address, as kubectl prints them."""
        lines = self.plane.kubectl("get", "ingress", TABLE, "--no-headers").splitlines()
        rows = [line.split() for line in lines]
        return {
            int(host.partition(".")[0].removeprefix("hello")): address
            for host, address in rows
            if address != "<none>"
        }

    def on(self, prefix: str, count: int) -> bool:
        """Whether ``count`` hosts are shown, all of them on addresses of this prefix."""
        shown = self.shown().values()
        return len(shown) == count and all(address.startswith(prefix) for address in shown)

    def groups(self) -> list[set[int]]:
        out: dict[str, set[int]] = {}
        for number, address in self.shown().items():
            out.setdefault(address, set()).add(number)
        return sorted(out.values(), key=min)

    async def until(self, true: Callable[[], bool], seconds: float = 10) -> None:
        deadline = time.monotonic() + seconds
        while not await asyncio.to_thread(true):
            if time.monotonic() > deadline:
                pytest.fail(f"not true after {seconds} s; log: {self.log.read_text()[-3000:]}")
            await asyncio.sleep(0.05)

    def size(self, size: str) -> None:
        patch = json.dumps({"spec": {"l7Settings": {"shardSize": size}}})
        self.plane.kubectl("patch", "ais", "critical.infra", "--type=merge", "-p", patch)

    async def all_answer(self, count: int) -> None:
        client = Client()
        for number, address in self.shown().items():
            assert await client.get(address, f"hello{number}.avi.iberia.local") == 200
        assert len(self.shown()) == count
        client.close()

    def versions(self) -> dict[str, str]:
        items = json.loads(self.plane.kubectl("get", "ingress", "-o", "json"))["items"]
        return {i["metadata"]["name"]: i["metadata"]["resourceVersion"] for i in items}


@pytest.fixture(scope="module")
def endpoint(require_real: Callable[[bool, str], None]) -> Iterator[str]:
    able = os.geteuid() == 0 and bool(shutil.which("ip")) and bool(shutil.which("go"))
    require_real(able, "root with ip and go")
    with pods() as made:
        yield made


@pytest.fixture
def plane(tmp_path: Path, endpoint: str) -> Iterator[ControlPlane]:
    made = ControlPlane(tmp_path / "plane")
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest_asyncio.fixture
async def controller(
    tmp_path: Path, plane: ControlPlane, endpoint: str
) -> AsyncIterator[Controller]:
    made = Controller(tmp_path, plane, endpoint)
    yield made
    await made.stop()


@pytest_asyncio.fixture
async def walkthrough(controller: Controller) -> Controller:
    """The walkthrough's 20 applications, LARGE, served."""
    controller.install()
    controller.plane.bind_controller()
    controller.apply(OBJECTS)
    controller.apps(20, "critical-ic")
    await controller.start()
    await controller.until(lambda: len(controller.shown()) == 20)
    return controller


async def test_kubectl_shows_the_walkthroughs_tables_live(walkthrough: Controller) -> None:
    assert walkthrough.groups() == sorted(LARGE, key=min)
    assert min(walkthrough.shown().values()) == "127.10.16.225"
    await walkthrough.all_answer(20)
    walkthrough.size("MEDIUM")
    await walkthrough.until(lambda: walkthrough.groups() == sorted(MEDIUM, key=min))
    walkthrough.size("SMALL")
    await walkthrough.until(lambda: walkthrough.groups() == [set(range(1, 21))])
    walkthrough.size("DEDICATED")
    await walkthrough.until(lambda: len(walkthrough.groups()) == 20)
    await walkthrough.all_answer(20)
    said = walkthrough.plane.kubectl("get", "ais", "critical.infra", "--no-headers")
    assert said.split()[:3] == ["critical.infra", "Accepted", "DEDICATED"]


async def test_a_controller_killed_and_started_again_writes_nothing_that_is_there(
    walkthrough: Controller,
) -> None:
    before, versions = walkthrough.shown(), walkthrough.versions()
    await walkthrough.kill()
    await walkthrough.all_answer(20)  # the engines serve on
    await walkthrough.start()
    await walkthrough.until_up_to_date(20)
    await asyncio.sleep(1)
    assert walkthrough.shown() == before
    assert walkthrough.versions() == versions


async def test_an_api_server_that_dies_and_returns_loses_no_change(
    walkthrough: Controller,
) -> None:
    plane = walkthrough.plane
    plane.kill("kube-apiserver")
    plane.kill("etcd")
    await asyncio.sleep(1)
    for number, address in [(1, "127.10.16.225")]:
        client = Client()
        assert await client.get(address, f"hello{number}.avi.iberia.local") == 200
        client.close()
    plane.start()
    walkthrough.apps(1, "critical-ic", first=21)
    plane.kubectl("delete", "ingress", "hello2")
    await walkthrough.until(lambda: 21 in walkthrough.shown(), 30)
    await walkthrough.until(lambda: len(walkthrough.shown()) == 20)
    await walkthrough.all_answer(20)
    client = Client()
    assert await client.get("127.10.16.226", "hello2.avi.iberia.local") == 404
    client.close()


async def test_a_cluster_without_our_crds_is_served_by_the_defaults_until_they_come(
    controller: Controller,
) -> None:
    from akocore.kube.crds import access, ingress_class

    items = [*access(), ingress_class(default=True)]
    controller.apply(orjson.dumps({"apiVersion": "v1", "kind": "List", "items": items}))
    controller.plane.bind_controller()
    controller.apps(3, None)
    await controller.start()
    await controller.until(lambda: len(controller.shown()) == 3, 20)
    await controller.all_answer(3)
    assert "event=kind_missing kind=AviInfraSetting" in controller.log.read_text()
    controller.install()
    controller.apply(OBJECTS)
    controller.apps(3, "critical-ic")
    await controller.until(lambda: controller.on("127.10.16.", 3), 30)
    await controller.all_answer(3)


async def test_the_default_class_a_setting_and_a_network_come_and_go_without_a_restart(
    walkthrough: Controller,
) -> None:
    plane = walkthrough.plane
    walkthrough.apps(20, "avi-lb")
    await walkthrough.until(lambda: walkthrough.on("127.10.15.", 20))
    walkthrough.apps(20, "critical-ic")
    await walkthrough.until(lambda: walkthrough.on("127.10.16.", 20))
    setting = plane.kubectl("get", "ais", "critical.infra", "-o", "json")
    plane.kubectl("delete", "ais", "critical.infra")
    await walkthrough.until(lambda: not walkthrough.shown())
    body = json.loads(setting)
    body["metadata"] = {"name": "critical.infra"}
    walkthrough.apply(json.dumps(body))
    await walkthrough.until(lambda: len(walkthrough.shown()) == 20)
    await walkthrough.all_answer(20)
    patch = json.dumps({"spec": {"network": {"names": ["default"]}}})
    plane.kubectl("patch", "ais", "critical.infra", "--type=merge", "-p", patch)
    await walkthrough.until(lambda: walkthrough.on("127.10.15.", 20))
    await walkthrough.all_answer(20)


async def test_a_bad_object_gets_an_event_with_the_remedy(walkthrough: Controller) -> None:
    walkthrough.apps(1, "nowhere", first=30)

    def told() -> bool:
        events = json.loads(walkthrough.plane.kubectl("get", "events", "-o", "json"))["items"]
        return any(
            e["reason"] == "IngressClassNotFound"
            and e["regarding" if "regarding" in e else "involvedObject"]["name"] == "hello30"
            and "Create IngressClass nowhere" in e.get("message", e.get("note", ""))
            for e in events
        )

    await walkthrough.until(told)
    patch = json.dumps({"spec": {"seGroup": {"name": "nobody"}}})
    walkthrough.plane.kubectl("patch", "ais", "critical.infra", "--type=merge", "-p", patch)

    def rejected() -> bool:
        found = json.loads(walkthrough.plane.kubectl("get", "ais", "critical.infra", "-o", "json"))
        (condition,) = found["status"]["conditions"]
        return (
            found["status"]["status"] == "Rejected"
            and condition["reason"] == "ServiceEngineGroupNotFound"
            and condition["observedGeneration"] == found["metadata"]["generation"]
        )

    await walkthrough.until(rejected)
    await walkthrough.all_answer(20)  # the last good setting goes on


async def test_only_secrets_that_an_ingress_names_are_read(walkthrough: Controller) -> None:
    from e2e.test_tls import House, pair

    plane = walkthrough.plane
    chain, key, serial = pair("hello1.avi.iberia.local")
    other = walkthrough.directory / "pair"
    other.with_suffix(".crt").write_bytes(chain)
    other.with_suffix(".key").write_bytes(key)
    files = [f"--cert={other}.crt", f"--key={other}.key"]
    plane.kubectl("create", "secret", "tls", "hello1", *files)
    tls = [{"hosts": ["hello1.avi.iberia.local"], "secretName": "hello1"}]
    plane.kubectl(
        *("patch", "ingress", "hello1", "--type=merge", "-p", json.dumps({"spec": {"tls": tls}}))
    )
    house = House(walkthrough)
    await house.until_serial(walkthrough.shown()[1], "hello1.avi.iberia.local", serial)
    await walkthrough.kill()
    await walkthrough.start()
    await walkthrough.until_up_to_date(20)
    found = await house.handshake(walkthrough.shown()[1], "hello1.avi.iberia.local")
    assert found == (serial, 200)
    with pytest.raises(RuntimeError, match="forbidden"):
        plane.kubectl("get", "secrets", "--as=akocore")
