"""Every live change is make-before-break: status right, no lost request, nothing left behind."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest_asyncio

from akocore.cli.dummy import manifests
from e2e.running import Backend, Client, Running

DOMAIN = "avi.iberia.local"
HOSTS = [f"hello{i}.{DOMAIN}" for i in range(1, 21)]

CONFIG = """
moveGraceSeconds: 1
serviceEngineGroups: {Default-Group: {}, SE-Group-AKO-CRITICAL: {minSePerVs: 3}}
networks:
  default: {subnet: 127.10.15.0/24, vipRanges: [{begin: 127.10.15.161, end: 127.10.15.190}]}
  uplink: {subnet: 127.10.16.0/24, vipRanges: [{begin: 127.10.16.224, end: 127.10.16.254}]}
"""

CLASS = """
apiVersion: networking.k8s.io/v1
kind: IngressClass
metadata: {name: critical-ic}
spec:
  controller: ako.vmware.com/avi-lb
  parameters: {apiGroup: ako.vmware.com, kind: AviInfraSetting, name: critical.infra}
"""


class House:
    """20 applications under load; a client that follows status as DNS would."""

    def __init__(self, running: Running) -> None:
        self.running = running
        self.answers: Counter[int] = Counter()
        self.addresses: dict[str, str] = {}

    def setting(self, spec: str) -> None:
        self.running.write(
            "setting.yaml",
            f"apiVersion: ako.vmware.com/v1beta1\nkind: AviInfraSetting\n"
            f"metadata: {{name: critical.infra}}\nspec: {spec}\n",
        )

    async def follow(self) -> dict[str, str]:
        self.addresses = await self.running.addresses()
        return self.addresses

    async def _load(self) -> None:
        client = Client()
        try:
            while True:
                for host in HOSTS:
                    self.answers[await client.get(self.addresses[host], host)] += 1
        finally:
            client.close()

    async def change(
        self, do: Callable[[], object], done: Callable[[dict[str, str]], bool]
    ) -> None:
        """``do`` under load until status is ``done``, and on until the old places are gone."""
        await self.follow()
        load = [asyncio.create_task(self._load()) for _ in range(4)]
        await asyncio.sleep(0.2)
        do()
        try:
            async with asyncio.timeout(10):
                while not done(await self.follow()):
                    assert len(self.addresses) == len(HOSTS)  # at no moment unserved
                    await asyncio.sleep(0.01)
            await asyncio.sleep(1.5)
        finally:
            for task in load:
                task.cancel()
            await asyncio.gather(*load, return_exceptions=True)
        assert set(self.answers) == {200}, self.answers
        engines = (await self.running.engines()).values()
        assert [e["nacks"] for e in engines] == [0] * len(engines)


@pytest_asyncio.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    server = await asyncio.get_running_loop().create_server(Backend, "127.0.0.1", 0)
    running = Running(tmp_path, server.sockets[0].getsockname()[1])
    running.config = CONFIG
    running.write("class.yaml", CLASS)
    made = House(running)
    made.setting("{l7Settings: {shardSize: MEDIUM}}")
    for i in range(1, 21):
        running.dummy("hello", i, "critical-ic")
    await running.start()
    await running.until_up_to_date(20)
    yield made
    await running.stop()
    server.close()


def on(prefix: str, count: int) -> Callable[[dict[str, str]], bool]:
    return lambda shown: (
        len(shown) == len(HOSTS)
        and len(set(shown.values())) == count
        and all(address.startswith(prefix) for address in shown.values())
    )


async def until_freed(house: House, network: str, free: int) -> None:
    async with asyncio.timeout(15):
        while True:
            for item in await house.running.ask("network"):
                given = item["status"]["addresses"]
                if item["metadata"]["name"] == network and given["free"] == free:
                    return
            await asyncio.sleep(0.1)


async def test_another_network_moves_every_address_and_status_follows(house: House) -> None:
    """The walkthrough's 10.10.15.161 to 10.10.16.224, where AKO's status stays behind."""
    assert on("127.10.15.", 4)(await house.follow())
    spec = "{l7Settings: {shardSize: MEDIUM}, network: {names: [uplink]}}"
    await house.change(lambda: house.setting(spec), on("127.10.16.", 4))
    assert min(house.addresses.values()) == "127.10.16.224"
    await until_freed(house, "default", 30)


async def test_another_se_group_takes_over_on_the_same_addresses(house: House) -> None:
    before = await house.follow()
    spec = "{l7Settings: {shardSize: MEDIUM}, seGroup: {name: SE-Group-AKO-CRITICAL}}"

    def moved(_shown: dict[str, str]) -> bool:
        return True

    await house.change(lambda: house.setting(spec), moved)
    async with asyncio.timeout(20):
        while True:
            engines = await house.running.engines()
            if len(engines) == 3 and all("CRITICAL" in name for name in engines):
                break
            await asyncio.sleep(0.1)
    assert await house.running.until_up_to_date(20) == before
    house.answers.clear()
    await house.change(lambda: None, moved)
    services = await house.running.ask("vs")
    assert {len(s["status"]["serviceEngines"]) for s in services} == {3}
    assert {s["status"]["state"] for s in services} == {"up"}


async def test_engines_that_leave_pass_on_what_waits_to_be_accepted(house: House) -> None:
    """Each request on a connection of its own: some are in a queue when its listener closes."""
    await house.follow()
    leaving = False

    async def load() -> None:
        while not leaving:
            for host in HOSTS:
                client = Client()
                house.answers[await client.get(house.addresses[host], host)] += 1
                client.close()

    tasks = [asyncio.create_task(load()) for _ in range(48)]
    for group in ("SE-Group-AKO-CRITICAL", "Default-Group") * 2:
        house.setting(f"{{l7Settings: {{shardSize: MEDIUM}}, seGroup: {{name: {group}}}}}")
        async with asyncio.timeout(20):
            while not all(name.startswith(group) for name in await house.running.engines()):
                await asyncio.sleep(0.1)
    leaving = True
    await asyncio.gather(*tasks)
    assert set(house.answers) == {200}, house.answers


async def test_dedicated_and_back_gives_each_host_its_own_address_and_back(house: House) -> None:
    await house.change(
        lambda: house.setting("{l7Settings: {shardSize: DEDICATED}}"), on("127.10.15.", 20)
    )
    await house.change(
        lambda: house.setting("{l7Settings: {shardSize: SMALL}}"), on("127.10.15.", 1)
    )
    await until_freed(house, "default", 29)


async def test_a_setting_that_flips_forth_and_back_loses_nothing(house: House) -> None:
    async def flip() -> None:
        for size in ("LARGE", "SMALL", "DEDICATED", "LARGE", "MEDIUM", "LARGE"):
            house.setting(f"{{l7Settings: {{shardSize: {size}}}}}")
            await asyncio.sleep(0.25)

    tasks: list[asyncio.Task[None]] = []
    await house.change(
        lambda: tasks.append(asyncio.create_task(flip())),
        lambda shown: tasks[0].done() and on("127.10.15.", 8)(shown),
    )
    await until_freed(house, "default", 22)


async def test_another_class_and_new_endpoints_lose_nothing(house: House) -> None:
    running = house.running
    other = await asyncio.get_running_loop().create_server(Backend, "127.0.0.1", 0)
    endpoint = f"127.0.0.1:{other.sockets[0].getsockname()[1]}"

    def other_class() -> None:
        for i in range(1, 21):
            running.dummy("hello", i, "avi-lb")

    def other_endpoints() -> None:
        for i in range(1, 21):
            items = manifests("hello", i, endpoint=endpoint, ingress_class="avi-lb")
            running.write(f"hello{i}.json", {"kind": "List", "items": items})

    await house.change(other_class, on("127.10.15.", 8))
    await house.change(other_endpoints, on("127.10.15.", 8))
    other.close()
