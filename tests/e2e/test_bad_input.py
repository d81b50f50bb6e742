"""Every kind of bad input gets a clear answer, and a good neighbour goes on being served."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from akocore.cli.dummy import manifests
from e2e.running import OFFSET, Backend, Client, Running

DOMAIN = "avi.iberia.local"
GOOD = f"good1.{DOMAIN}"
SECOND_CLASS = """
apiVersion: networking.k8s.io/v1
kind: IngressClass
metadata: {name: second}
spec:
  controller: ako.vmware.com/avi-lb
  parameters: {apiGroup: ako.vmware.com, kind: AviInfraSetting, name: second}
"""


def setting(spec: str, name: str = "second") -> str:
    return f"""
apiVersion: ako.vmware.com/v1alpha1
kind: AviInfraSetting
metadata: {{name: {name}}}
spec: {spec}
"""


def network(name: str, begin: int, end: int) -> str:
    return f"""
apiVersion: akocore.io/v1alpha1
kind: Network
metadata: {{name: {name}}}
spec: {{subnet: 127.10.99.0/24, vipRanges: [{{begin: 127.10.99.{begin}, end: 127.10.99.{end}}}]}}
"""


class House:
    """A running akocore with a good neighbour."""

    def __init__(self, running: Running) -> None:
        self.running = running
        self.client = Client()

    async def conditions(self, kind: str, name: str) -> dict[str, str]:
        """Reason → message."""
        for item in await self.running.ask(kind):
            if item["metadata"]["name"] == name:
                return {c["reason"]: c["message"] for c in item["status"]["conditions"]}
        return {}

    async def until(self, kind: str, name: str, reason: str) -> str:
        found: dict[str, str] = {}
        try:
            async with asyncio.timeout(10):
                while reason not in (found := await self.conditions(kind, name)):
                    await asyncio.sleep(0.02)
        except TimeoutError:
            pytest.fail(f"{kind} {name} says {found}, not {reason}")
        return found[reason]

    async def until_served(self, host: str) -> str:
        """Wait until a host answers 200; its address."""
        async with asyncio.timeout(10):
            while True:
                shown = await self.running.addresses()
                if host in shown and await self.client.get(shown[host], host) == 200:
                    return shown[host]
                await asyncio.sleep(0.02)

    async def unharmed(self) -> None:
        """The neighbour answers, no engine has refused anything, and the event is there."""
        await self.until_served(GOOD)
        engines = (await self.running.engines()).values()
        assert [(e["nacks"], e["rejected"]) for e in engines] == [(0, 0)] * len(engines)

    async def event(self, regarding: str, reason: str) -> str:
        """What was said; it is said when what it is about is remembered on disk."""
        for _ in range(500):
            for one in reversed(await self.running.ask("events")):
                if (one["regarding"], one["reason"]) == (regarding, reason):
                    return str(one["note"])
            await asyncio.sleep(0.02)
        pytest.fail(f"no event {reason} for {regarding}")


@pytest_asyncio.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    server = await asyncio.get_running_loop().create_server(Backend, "127.0.0.1", 0)
    running = Running(tmp_path, server.sockets[0].getsockname()[1])
    running.dummy("good", 1)
    await running.start()
    made = House(running)
    await made.until_served(GOOD)
    yield made
    made.client.close()
    await running.stop()
    server.close()


async def test_bad_settings_networks_and_classes_say_what_to_do(house: House) -> None:
    running = house.running
    running.write("class.yaml", SECOND_CLASS)
    running.dummy("own", 1, "second")
    message = await house.until("ingress", "own1", "AviInfraSettingNotFound")
    assert "AviInfraSetting second" in message
    bad = {
        "{seGroup: {name: nobody}}": ("ServiceEngineGroupNotFound", "nobody"),
        "{network: {names: [nowhere]}}": ("NetworkNotFound", "nowhere"),
        "{l7Settings: {shardSize: HUGE}}": ("InvalidShardSize", "SMALL, MEDIUM, LARGE"),
        "{network: {enableRhi: true}}": ("Unsupported", "spec.network.enableRhi"),
        "{network: {listeners: [{port: 8080}]}}": ("InvalidField", "SSL"),
    }
    for spec, (reason, part) in bad.items():
        running.write("setting.yaml", setting(spec))
        assert part in await house.until("aviinfrasetting", "second", reason)
        await house.until("ingress", "own1", "AviInfraSettingRejected")
        assert part in await house.event("AviInfraSetting/second", reason)
    await house.unharmed()

    running.write("setting.yaml", setting("{l7Settings: {shardSize: SMALL}}"))
    address = await house.until_served(f"own1.{DOMAIN}")
    running.write("setting.yaml", setting("{l7Settings: {shardSize: HUGE}}"))
    await house.until("aviinfrasetting", "second", "InvalidShardSize")
    assert await house.until_served(f"own1.{DOMAIN}") == address  # the last good one goes on
    await house.unharmed()


async def test_a_pool_too_small_serves_what_fits_and_the_rest_when_it_grows(house: House) -> None:
    running = house.running
    running.write("class.yaml", SECOND_CLASS)
    running.write("net.yaml", network("tiny", 10, 11))
    running.write("setting.yaml", setting("{network: {names: [tiny]}}"))
    for i in range(1, 21):
        running.dummy("hello", i, "second")
    hosts = {f"hello{i}.{DOMAIN}" for i in range(1, 21)}
    message = await house.until("aviinfrasetting", "second", "InsufficientAddresses")
    assert "LARGE needs 8 addresses, Network tiny has 2" in message
    async with asyncio.timeout(10):
        while True:
            shown = {h: a for h, a in (await running.addresses()).items() if h in hosts}
            if len(set(shown.values())) == 2:
                break
            await asyncio.sleep(0.02)
    for host in shown:
        assert await house.until_served(host) == shown[host]
    waiting = min(hosts - shown.keys()).partition(".")[0]
    assert "Network tiny" in await house.until("ingress", waiting, "AddressesExhausted")
    running.write("net.yaml", network("tiny", 10, 30))
    for host in hosts:
        address = await house.until_served(host)
        assert shown.get(host, address) == address
    assert not await house.conditions("ingress", waiting)
    await house.unharmed()


async def test_of_overlapping_networks_the_later_name_is_refused(house: House) -> None:
    house.running.write("nets.yaml", network("a", 10, 20) + "---" + network("b", 15, 25))
    assert "Network a" in await house.until("network", "b", "OverlappingNetworks")
    assert not await house.conditions("network", "a")
    await house.unharmed()


async def test_a_host_belongs_to_the_setting_that_had_it_first(house: House) -> None:
    running = house.running
    running.write("class.yaml", SECOND_CLASS + "---" + setting("{l7Settings: {shardSize: SMALL}}"))
    items = manifests("rival", 1, endpoint=running.endpoint, ingress_class="second")
    items[-1]["spec"]["rules"][0]["host"] = GOOD
    running.write("rival.json", {"kind": "List", "items": items})
    assert "default/good1" in await house.until("ingress", "rival1", "HostClaimed")
    await house.unharmed()
    (running.directory / "good1.json").unlink()  # the rival's turn
    async with asyncio.timeout(10):
        while await house.conditions("ingress", "rival1"):
            await asyncio.sleep(0.02)
    await house.until_served(GOOD)


async def test_an_external_name_and_a_target_port_are_told_apart(house: House) -> None:
    running = house.running
    items = manifests("ext", 1, endpoint=running.endpoint)
    items[0]["spec"] = {"type": "ExternalName", "externalName": "elsewhere.test"}
    running.write("ext.json", {"kind": "List", "items": items})
    assert "EndpointSlices" in await house.until("ingress", "ext1", "ExternalNameService")
    items = manifests("lenient", 1, endpoint=running.endpoint)
    backend = items[-1]["spec"]["rules"][0]["http"]["paths"][0]["backend"]
    backend["service"]["port"] = {"number": 8080}  # as the walkthrough writes it
    running.write("lenient.json", {"kind": "List", "items": items})
    assert "write its port, 80" in await house.until(
        "ingress", "lenient1", "PortMatchedByTargetPort"
    )
    await house.until_served(f"lenient1.{DOMAIN}")
    await house.unharmed()


async def test_a_file_that_breaks_keeps_its_last_good_state_and_names_the_line(
    house: House,
) -> None:
    running = house.running
    good = (running.directory / "good1.json").read_bytes()

    async def files() -> list[dict[str, Any]]:
        async with asyncio.timeout(10):
            while not (found := await running.ask("files")):
                await asyncio.sleep(0.02)
        return found

    (running.directory / "good1.json").write_bytes(good[:-20])
    found = (await files())[0]
    assert found["metadata"]["name"] == "good1.json"
    assert found["line"] > 0
    assert found["remedy"]
    await house.unharmed()
    (running.directory / "good1.json").write_bytes(good)
    async with asyncio.timeout(10):
        while await running.ask("files"):
            await asyncio.sleep(0.02)
    running.write("wrong.yaml", setting("\n  l7Settings:\n    shardSize: [LARGE]"))
    found = (await files())[0]
    assert found["object"] == "AviInfraSetting/second"
    assert "shardSize" in found["field"]
    assert found["line"] == 7
    await house.unharmed()


async def test_a_taken_port_degrades_one_virtual_service_until_it_is_free(
    house: House,
) -> None:
    """The holder has no SO_REUSEPORT, so the engines are refused it."""
    running = house.running
    with socket.create_server(("127.10.99.10", 80 + OFFSET)):
        running.write("class.yaml", SECOND_CLASS)
        running.write("net.yaml", network("taken", 10, 10))
        running.write(
            "setting.yaml", setting("{network: {names: [taken]}, l7Settings: {shardSize: SMALL}}")
        )
        running.dummy("own", 1, "second")
        message = await house.until("ingress", "own1", "EngineRejected")
        assert "127.10.99.10" in message
        assert f"own1.{DOMAIN}" not in await running.addresses()
        services = {i["status"]["vip"]: i["status"] for i in await running.ask("vs")}
        assert services["127.10.99.10"]["state"] == "down"
        await house.until_served(GOOD)
    await house.until_served(f"own1.{DOMAIN}")
    async with asyncio.timeout(10):  # one engine may get the port before the other one tries again
        while await house.conditions("ingress", "own1"):
            await asyncio.sleep(0.02)


@pytest.fixture
def small_disk(require_real: Any) -> Iterator[Path]:
    """A file system of 512 KiB, with room in its name for those of sockets."""
    small = Path(tempfile.mkdtemp(prefix="akocore-"))
    command = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(small)]
    mounted = bool(shutil.which("mount")) and subprocess.run(command, check=False).returncode == 0
    require_real(mounted, "right to mount a tmpfs")
    yield small
    subprocess.run(["umount", "-l", str(small)], check=True)
    small.rmdir()


def fill(ballast: Path) -> None:
    """Leave no room where ``ballast`` is."""
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while file.write(b"x" * 4096):
            pass


@pytest.mark.real
async def test_a_full_disk_is_said_and_made_good_when_there_is_room(
    tmp_path: Path, small_disk: Path
) -> None:
    server = await asyncio.get_running_loop().create_server(Backend, "127.0.0.1", 0)
    running = Running(tmp_path, server.sockets[0].getsockname()[1])
    running.state = small_disk / "state"
    running.dummy("good", 1)
    await running.start()
    house = House(running)
    try:
        vip = await house.until_served(GOOD)
        fill(small_disk / "ballast")
        running.dummy("late", 1)
        late = await house.until_served(f"late1.{DOMAIN}")
        async with asyncio.timeout(10):
            while "StateNotWritten" not in [e["reason"] for e in await running.ask("events")]:
                await asyncio.sleep(0.05)
        (small_disk / "ballast").unlink()
        await asyncio.sleep(1.5)  # it tries again every second
        await running.kill()
        await running.start()
        assert await house.until_served(GOOD) == vip
        assert await house.until_served(f"late1.{DOMAIN}") == late
    finally:
        house.client.close()
        await running.stop()
        server.close()
