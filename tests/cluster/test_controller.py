"""``akocore controller`` against a real API server, with the rights that it asks for."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import orjson
import pytest
import pytest_asyncio

from cluster.control_plane import ControlPlane
from cluster.controller import LARGE, MEDIUM, OBJECTS, Controller, install
from e2e.running import Client

pytestmark = pytest.mark.real


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


@pytest_asyncio.fixture
async def bare(tmp_path: Path, endpoint: str) -> AsyncIterator[Controller]:
    """A controller over a control plane on which nothing was installed."""
    plane = ControlPlane(tmp_path / "bare")
    made = Controller(tmp_path, plane, endpoint)
    try:
        await asyncio.to_thread(plane.start)
        yield made
        await made.stop()
    finally:
        plane.stop()


async def test_a_cluster_without_our_crds_is_served_by_the_defaults_until_they_come(
    bare: Controller,
) -> None:
    controller, plane = bare, bare.plane
    from akocore.kube.crds import access, ingress_class

    items = [*access(), ingress_class(default=True)]
    controller.apply(orjson.dumps({"apiVersion": "v1", "kind": "List", "items": items}))
    plane.bind_controller()
    controller.apps(3, None)
    await controller.start()
    await controller.until(lambda: len(controller.shown()) == 3, 20)
    await controller.all_answer(3)
    assert "event=kind_missing kind=AviInfraSetting" in controller.log.read_text()
    install(plane)
    controller.apply(OBJECTS)
    controller.apps(3, "critical-ic")
    await controller.until(lambda: controller.on("127.10.16.", 3), 30)
    await controller.all_answer(3)
    vips = plane.kubectl("get", "vsvips", "--no-headers").splitlines()
    assert len([line for line in vips if "critical.infra" in line]) == len(controller.groups())


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


async def test_a_bad_edit_of_a_network_is_told_and_harms_nobody(walkthrough: Controller) -> None:
    plane, before = walkthrough.plane, walkthrough.shown()

    def said() -> list[str]:
        row = plane.kubectl(
            "get", "network", "vips", "-o", "jsonpath={.status.status} {.status.error}"
        )
        return row.split(maxsplit=1)

    await walkthrough.until(lambda: said() == ["Accepted"])
    bad = [{"begin": "127.10.16.225", "end": "127.10.99.1"}]
    good = [{"begin": "127.10.16.225", "end": "127.10.16.254"}]
    for ranges in (bad, good):
        patch = json.dumps({"spec": {"vipRanges": ranges}})
        plane.kubectl("patch", "network", "vips", "--type=merge", "-p", patch)
        if ranges is bad:
            await walkthrough.until(lambda: said()[0] == "Rejected")
            assert "spec.vipRanges[0]" in said()[1]
            walkthrough.apps(1, "critical-ic", first=21)  # the last good form goes on
            await walkthrough.until(lambda: 21 in walkthrough.shown())
    await walkthrough.until(lambda: said() == ["Accepted"])
    assert {n: ip for n, ip in walkthrough.shown().items() if n < 21} == before
    await walkthrough.all_answer(21)


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
