"""What goes wrong around a controller: afterwards the world is that of a clean boot."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from cluster.control_plane import CONTROLLER, ControlPlane
from cluster.controller import OBJECTS, Controller
from cluster.proxy import Proxy
from cluster.world import assert_as_on_a_clean_boot

pytestmark = pytest.mark.real

APPS = 12


@pytest_asyncio.fixture
async def served(controller: Controller) -> Controller:
    """A dozen applications, LARGE, served."""
    controller.apply(OBJECTS)
    controller.apps(APPS, "critical-ic")
    await controller.start()
    await controller.until(lambda: len(controller.shown()) == APPS)
    return controller


@pytest_asyncio.fixture
async def proxied(controller: Controller, tmp_path: Path) -> AsyncIterator[Proxy]:
    """The same, over a way on which things can go wrong."""
    async with Proxy(controller.plane, tmp_path, CONTROLLER) as proxy:
        controller.kubeconfig = proxy.kubeconfig
        controller.apply(OBJECTS)
        controller.apps(APPS, "critical-ic")
        await controller.start()
        await controller.until(lambda: len(controller.shown()) == APPS)
        yield proxy
        proxy.go_on()
        await controller.stop()


def move(plane: ControlPlane, number: int, path: str) -> None:
    """Give an application another path."""
    patch = [{"op": "replace", "path": "/spec/rules/0/http/paths/0/path", "value": path}]
    plane.kubectl("patch", "ingress", f"hello{number}", "--type=json", "-p", json.dumps(patch))


async def edits(controller: Controller) -> None:
    """Some of everything."""
    plane = controller.plane
    await asyncio.to_thread(move, plane, 1, "/moved")
    await asyncio.to_thread(plane.kubectl, "delete", "ingress", "hello2")
    await asyncio.to_thread(plane.kubectl, "delete", "endpointslice", "hello3")
    await asyncio.to_thread(controller.apps, 2, "critical-ic", APPS + 1)
    await asyncio.to_thread(controller.apps, 1, "nowhere", 4)


async def test_an_api_server_that_was_away(served: Controller) -> None:
    served.plane.kill("kube-apiserver")
    served.plane.kill("etcd")
    await asyncio.sleep(2)
    served.plane.start()
    await edits(served)
    await served.until(lambda: len(served.shown()) == APPS)
    await assert_as_on_a_clean_boot(served)


async def test_history_that_was_compacted_while_the_controller_slept(served: Controller) -> None:
    os.kill(served.pid, signal.SIGSTOP)
    await edits(served)
    served.plane.compact()
    served.plane.kill("kube-apiserver")  # its own memory of the history goes too
    served.plane.start()
    os.kill(served.pid, signal.SIGCONT)
    await served.until(lambda: len(served.shown()) == APPS, 120)
    await assert_as_on_a_clean_boot(served)


async def test_a_watch_cut_in_the_middle_of_an_event(
    proxied: Proxy, controller: Controller
) -> None:
    for number in range(1, 6):
        proxied.cut_next_event = True
        await asyncio.to_thread(move, controller.plane, number, f"/cut{number}")
        await controller.until(lambda: not proxied.cut_next_event)
    await edits(controller)
    await controller.until(lambda: len(controller.shown()) == APPS)
    await assert_as_on_a_clean_boot(controller)


async def test_events_that_come_twice_and_out_of_order(
    proxied: Proxy, controller: Controller
) -> None:
    proxied.echo = True
    await controller.kill()
    await controller.start()
    await controller.until_up_to_date(APPS)
    for i in range(10):
        await asyncio.to_thread(move, controller.plane, 1 + i % 3, f"/v{i}")
    await edits(controller)
    await controller.until(lambda: len(controller.shown()) == APPS)
    await assert_as_on_a_clean_boot(controller)


async def test_writes_that_are_refused_for_a_while(proxied: Proxy, controller: Controller) -> None:
    proxied.refuse = {"PATCH": [429, 500, 503, 409, 429], "POST": [500, 429]}
    await edits(controller)
    await controller.until(lambda: len(controller.shown()) == APPS, 20)
    assert not any(proxied.refuse.values())
    await assert_as_on_a_clean_boot(controller)


async def test_an_object_edited_a_hundred_times_at_once(
    proxied: Proxy, controller: Controller
) -> None:
    before = (await controller.said())["batches"]
    proxied.hold()
    async with asyncio.TaskGroup() as tasks:
        for i in range(100):
            tasks.create_task(asyncio.to_thread(move, controller.plane, 1, f"/v{i}"))
    proxied.go_on()
    await edits(controller)
    await controller.until(lambda: len(controller.shown()) == APPS)
    assert (await controller.said())["batches"] - before < 60
    await assert_as_on_a_clean_boot(controller)


async def test_a_token_that_is_no_longer_good(
    controller: Controller, tmp_path: Path, plane: ControlPlane
) -> None:
    token = tmp_path / "token"
    token.write_text(CONTROLLER)
    script = tmp_path / "give-token"
    said = '{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential",'
    said += '"status":{"token":"%s"}}'
    script.write_text(f"""#!/bin/sh
printf '{said}' "$(cat {token})"
""")
    script.chmod(0o755)
    controller.kubeconfig = plane.exec_kubeconfig(tmp_path / "exec-kubeconfig", script)
    controller.apply(OBJECTS)
    controller.apps(APPS, "critical-ic")
    await controller.start()
    await controller.until(lambda: len(controller.shown()) == APPS)
    with plane.other_token("akocore-later"):
        token.write_text("akocore-later")
        await edits(controller)
        await controller.until(lambda: len(controller.shown()) == APPS, 30)
        assert "event=credentials_renewed" in controller.log.read_text()
        await assert_as_on_a_clean_boot(controller)
        await controller.stop()


async def test_a_controller_killed_again_and_again_while_it_pushes_and_writes(
    served: Controller,
) -> None:
    chance = random.Random(4)
    for life in range(6):
        await asyncio.to_thread(served.apps, 2, "critical-ic", 20 + 2 * life)
        size = ("MEDIUM", "SMALL", "LARGE")[life % 3]
        await asyncio.to_thread(served.size, size)
        await asyncio.sleep(chance.uniform(0.005, 0.25))
        await served.kill()
        await served.start()
        await asyncio.sleep(chance.uniform(0.2, 1.2))
    await edits(served)
    await served.until(lambda: len(served.shown()) == APPS + 12, 30)
    await assert_as_on_a_clean_boot(served)


async def test_engines_killed_during_edits(served: Controller) -> None:
    for name, engine in (await served.engines()).items():
        os.kill(engine["pid"], signal.SIGKILL)
        await edits(served) if name.endswith("1") else None
        await asyncio.sleep(0.3)
    await served.until(lambda: len(served.shown()) == APPS, 120)
    await assert_as_on_a_clean_boot(served)


async def test_a_crd_that_is_deleted_and_comes_back(served: Controller) -> None:
    plane = served.plane
    saved = plane.kubectl("get", "networks,ais", "-o", "json")
    crds = plane.kubectl(
        "get", "crd", "networks.akocore.io", "aviinfrasettings.ako.vmware.com", "-o", "json"
    )
    plane.kubectl("delete", "crd", "networks.akocore.io", "aviinfrasettings.ako.vmware.com")
    await served.until(lambda: not served.shown(), 30)
    for text in (crds, saved):
        items = json.loads(text)
        for item in items["items"]:
            item["metadata"] = {"name": item["metadata"]["name"]}
            item.pop("status", None)
        for _ in range(20):
            with contextlib.suppress(RuntimeError):
                plane.kubectl("apply", "-f", "-", stdin=json.dumps(items))
                break
            await asyncio.sleep(0.25)
    await served.until(lambda: len(served.shown()) == APPS, 120)
    await edits(served)
    await served.until(lambda: len(served.shown()) == APPS)
    await assert_as_on_a_clean_boot(served)


async def test_a_namespace_that_is_terminated(served: Controller) -> None:
    plane = served.plane
    plane.start_namespace_controller()
    plane.kubectl("create", "namespace", "shop")
    items = [item for n in (31, 32) for item in served.app_items(n, "critical-ic")]
    for item in items:
        item["metadata"]["namespace"] = "shop"
    served.apply(json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))

    def shown() -> str:
        path = "-o=jsonpath={.items[*].status.loadBalancer.ingress[*].hostname}"
        return plane.kubectl("get", "ingress", "-n", "shop", path)

    await served.until(lambda: len(shown().split()) == 2)
    plane.kubectl("delete", "namespace", "shop")  # waits until it is gone
    await edits(served)
    await served.until(lambda: len(served.shown()) == APPS)
    assert all("hello3" not in vs["spec"]["hosts"] for vs in await served.ask("vs"))
    await assert_as_on_a_clean_boot(served)


async def test_a_clock_that_jumps(controller: Controller, tmp_path: Path) -> None:
    clock = tmp_path / "clock"
    clock.write_text("0")
    shim = tmp_path / "clock.so"
    source = Path(__file__).with_name("clock.c")
    compiler = ["gcc", "-O1", "-shared", "-fPIC", source, "-o", shim, "-ldl"]
    await asyncio.to_thread(subprocess.run, compiler, check=True)
    controller.environment = {"LD_PRELOAD": str(shim), "AKOCORE_TEST_CLOCK": str(clock)}
    controller.flags = ["--lease-duration", "3"]
    controller.apply(OBJECTS)
    controller.apps(APPS, "critical-ic")
    await controller.start()
    await controller.until(lambda: len(controller.shown()) == APPS)
    for number, jump in enumerate((7_200, -86_400, 315_360_000)):
        clock.write_text(str(jump))
        await asyncio.to_thread(move, controller.plane, 1, f"/jump{number}")
        await asyncio.to_thread(controller.apps, 1, "critical-ic", 20 + number)
        await controller.until(lambda n=number: 20 + n in controller.shown())
        await asyncio.sleep(3.5)  # longer than the lease
        assert (await controller.said())["leads"]
    assert "event=follows" not in controller.log.read_text()
    clock.write_text("0")
    await edits(controller)
    await controller.until(lambda: len(controller.shown()) == APPS + 3)
    await assert_as_on_a_clean_boot(controller)


async def test_discovery_streams_that_are_cut_during_edits(served: Controller) -> None:
    socket, real = served.state / "xds.sock", served.state / "real.sock"
    socket.rename(real)
    pipes: set[asyncio.Task[None]] = set()

    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(OSError):
                while chunk := await reader.read(4096):
                    writer.write(chunk)
                    await writer.drain()
        finally:
            writer.transport.abort()

    async def hand_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_unix_connection(real)
        for one in (pipe(reader, back), pipe(there, writer)):
            pipes.add(task := asyncio.create_task(one))
            task.add_done_callback(pipes.discard)

    server = await asyncio.start_unix_server(hand_on, socket)
    for engine in (await served.engines()).values():
        os.kill(engine["pid"], signal.SIGKILL)  # the next life of each comes our way
    chance = random.Random(7)
    for round_ in range(5):
        size = ("MEDIUM", "SMALL", "LARGE")[round_ % 3]
        await asyncio.to_thread(served.size, size)
        await asyncio.to_thread(served.apps, 2, "critical-ic", 40 + 2 * round_)
        await asyncio.sleep(chance.uniform(0.01, 0.4))
        for task in list(pipes):
            task.cancel()
    await edits(served)
    await served.until(lambda: len(served.shown()) == APPS + 10, 30)
    await assert_as_on_a_clean_boot(served)
    server.close()
