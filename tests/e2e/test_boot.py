"""A start with thousands of Ingresses, which are applied in parts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from e2e.running import Backend, Client, Running

COUNT = 2_500  # three parts


@pytest_asyncio.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    server = await asyncio.get_running_loop().create_server(Backend, "127.0.0.1", 0)
    made = Running(tmp_path, server.sockets[0].getsockname()[1])
    made.config = "defaults: {shardSize: SMALL}\n"
    for number in range(1, COUNT + 1):
        made.dummy("app", number)
    yield made
    await made.stop()
    server.close()


def host(number: int) -> str:
    return f"app{number}.avi.iberia.local"


async def test_nobody_is_answered_before_every_host_is(running: Running) -> None:
    await running.start()
    client, codes = Client(), set[int]()
    async with asyncio.timeout(60):
        while 200 not in codes:
            for vs in await running.ask("vs"):
                if vip := vs["status"]["vip"]:
                    codes.add(await client.get(vip, host(COUNT)))
            await asyncio.sleep(0.005)
    assert codes <= {0, 200}  # 0: nobody listens yet
    while len(shown := await running.addresses()) < COUNT:
        # What status says is so, at both engines.
        for name, address in list(shown.items())[-2:]:
            assert await client.get(address, name) == 200
        await asyncio.sleep(0.02)
    for number in range(1, COUNT + 1):
        assert await client.get(shown[host(number)], host(number)) == 200
    client.close()


async def test_engines_that_serve_when_akocore_comes_back_are_kept(running: Running) -> None:
    await running.start()
    client = Client()
    async with asyncio.timeout(60):
        while len(shown := await running.addresses()) < COUNT:
            await asyncio.sleep(0.05)
    before = {name: one["pid"] for name, one in (await running.engines()).items()}
    await running.kill()
    codes: set[int] = set()
    await running.start()
    async with asyncio.timeout(60):
        while len(await running.addresses()) < COUNT:
            for number in (1, COUNT):
                codes.add(await client.get(shown[host(number)], host(number)))
    assert codes == {200}
    assert {name: one["pid"] for name, one in (await running.engines()).items()} == before
    client.close()
