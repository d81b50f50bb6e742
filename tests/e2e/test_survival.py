"""What a crash costs: nothing that is served, and nothing that was given."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from akocore.cli.dummy import manifests
from e2e.running import Backend, Client, Running

HOSTS = 24


@pytest_asyncio.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    server = await asyncio.get_running_loop().create_server(Backend, "127.0.0.1", 0)
    made = Running(tmp_path, server.sockets[0].getsockname()[1])
    yield made
    await made.stop()
    server.close()


class Load:
    """Requests to every address in turn, while the block runs; answers by status."""

    def __init__(self, addresses: dict[str, str]) -> None:
        self.addresses = addresses
        self.answers: Counter[int] = Counter()

    async def _ask(self) -> None:
        client = Client()
        try:
            while True:
                for host, address in self.addresses.items():
                    self.answers[await client.get(address, host)] += 1
        finally:
            client.close()

    async def __aenter__(self) -> Load:
        self._tasks = [asyncio.create_task(self._ask()) for _ in range(4)]
        await asyncio.sleep(0.3)
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def ask(count: int, host: str, address: str) -> Counter[int]:
    """By status, of so many at once, each on a connection of its own."""

    async def answer() -> int:
        client = Client()
        try:
            return await client.get(address, host)
        finally:
            client.close()

    return Counter(await asyncio.gather(*(answer() for _ in range(count))))


class Powered(Backend):
    """Answers while its node has power; then it is sent data, and nobody knows."""

    on = True
    met = False

    def data_received(self, data: bytes) -> None:
        if self.on:
            super().data_received(data)
        else:
            self.met = True


async def serve_two(running: Running, endpoint: str) -> tuple[str, str]:
    """Start with an application of ``endpoint`` and of that port at 127.0.0.2: host and address."""
    items = manifests("app", 1, endpoint=endpoint)
    items[1]["endpoints"].append({"addresses": ["127.0.0.2"]})
    running.write("app1.json", {"kind": "List", "items": items})
    await running.start()
    ((host, address),) = (await running.until_up_to_date(1)).items()
    return host, address


@contextlib.contextmanager
def silent(listener: socket.socket) -> Iterator[None]:
    """An endpoint answers nothing that is new, as one on a node that has lost its power.

    The kernel drops SYN while the queue of a listener is full.
    """
    listener.listen(0)
    with contextlib.ExitStack() as stack:
        while True:
            full = stack.enter_context(socket.socket())
            full.settimeout(0.2)
            try:
                full.connect(listener.getsockname())
            except TimeoutError:
                break
        yield


async def test_an_endpoint_that_is_silent_is_left_out_and_costs_no_request(
    running: Running,
) -> None:
    host, address = await serve_two(running, running.endpoint)
    answers: Counter[int] = Counter()
    late = 0
    port = int(running.endpoint.rpartition(":")[2])
    with socket.create_server(("127.0.0.2", port)) as listener, silent(listener):
        for _ in range(60):
            client = Client()
            began = asyncio.get_running_loop().time()
            answers[await client.get(address, host)] += 1
            late += asyncio.get_running_loop().time() - began > 1  # Envoy gives up after 2
            client.close()
    assert answers == {200: 60}
    assert 1 <= late < 10, late  # else every second one


async def test_a_connection_that_was_kept_to_an_endpoint_which_is_silent_now_is_not_used(
    running: Running,
) -> None:
    loop = asyncio.get_running_loop()
    kept: list[Powered] = []

    async def serve(listener: socket.socket) -> None:
        listener.setblocking(False)
        while True:
            connection, _ = await loop.sock_accept(listener)
            _, one = await loop.connect_accepted_socket(Powered, connection)
            kept.append(one)

    port = int(running.endpoint.rpartition(":")[2])
    with socket.create_server(("127.0.0.2", port)) as listener:
        serving = asyncio.create_task(serve(listener))
        host, address = await serve_two(running, running.endpoint)
        assert await ask(50, host, address) == {200: 50}
        assert kept
        serving.cancel()
        for one in kept:
            one.on = False
        with silent(listener):
            await asyncio.sleep(5)
            assert await ask(50, host, address) == {200: 50}
    assert not any(one.met for one in kept)


async def test_the_first_endpoint_that_is_back_is_asked_though_all_were_left_out(
    running: Running,
) -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    host, address = await serve_two(running, f"127.0.0.1:{port}")
    assert await ask(10, host, address) == {503: 10}
    server = await asyncio.get_running_loop().create_server(Backend, "127.0.0.1", port)
    assert await ask(30, host, address) == {200: 30}
    server.close()


async def test_a_killed_akocore_costs_no_request_and_its_successor_takes_all_over(
    running: Running,
) -> None:
    for i in range(1, HOSTS + 1):
        running.dummy("app", i)
    await running.start()
    before = await running.until_up_to_date(HOSTS)
    pids = {name: e["pid"] for name, e in (await running.engines()).items()}
    async with Load(before) as load:
        await running.kill()
        running.dummy("late", 1)  # while nobody looks
        (running.directory / "app1.json").unlink()
        await asyncio.sleep(0.5)
        await running.start()
        del load.addresses["app1.avi.iberia.local"]
        after = await running.until_up_to_date(HOSTS)
        await asyncio.sleep(0.3)
    late = after.pop("late1.avi.iberia.local")
    gone = before.pop("app1.avi.iberia.local", None)
    assert gone is None  # taken out of the load's own dictionary
    assert after == before
    engines = await running.engines()
    assert {name: e["pid"] for name, e in engines.items()} == pids
    assert all(e["adopted"] and not e["restarts"] for e in engines.values())
    assert set(load.answers) <= {200, 404}, load.answers
    assert load.answers[200] > HOSTS
    client = Client()
    assert await client.get(late, "late1.avi.iberia.local") == 200
    assert await client.get(late, "app1.avi.iberia.local") == 404
    client.close()


async def test_a_killed_engine_leaves_the_other_serving_and_comes_back_complete(
    running: Running,
) -> None:
    for i in range(1, HOSTS + 1):
        running.dummy("app", i)
    await running.start()
    before = await running.until_up_to_date(HOSTS)
    victim, survivor = await running.engines()
    async with Load(before) as load:
        os.kill((await running.engines())[victim]["pid"], signal.SIGKILL)
        async with asyncio.timeout(20):
            while not (await running.engines())[victim]["restarts"]:
                await asyncio.sleep(0.02)
        await asyncio.sleep(0.2)
        after = await running.until_up_to_date(HOSTS)
        assert (await running.engines())[survivor]["restarts"] == 0
        while (await running.engines())[victim]["requests"] < 50:
            load.addresses = dict(load.addresses)
            client = Client()  # new connections: kept ones stay with the survivor
            for host, address in before.items():
                assert await client.get(address, host) == 200
            client.close()
    assert after == before
    # What was on its way through the dead process is lost with it: at most one a client.
    assert load.answers[0] <= 4
    assert set(load.answers) <= {0, 200}, load.answers
    assert "SIGKILL" in (await running.engines())[victim]["lastExit"]


async def test_engines_stop_with_akocore_and_leave_no_socket(running: Running) -> None:
    running.dummy("app", 1)
    await running.start()
    await running.until_up_to_date(1)
    pids = [e["pid"] for e in (await running.engines()).values()]
    await running.stop()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert not list(running.state.rglob("*.sock"))


async def test_what_was_deleted_while_akocore_was_away_is_served_no_more(
    running: Running,
) -> None:
    for i in range(1, HOSTS + 1):
        running.dummy("app", i)
    await running.start()
    shown = await running.until_up_to_date(HOSTS)
    await running.kill()
    (running.directory / "app1.json").unlink()
    await running.start()
    await running.until_up_to_date(HOSTS - 1)
    client = Client()
    host, address = "app1.avi.iberia.local", shown["app1.avi.iberia.local"]
    assert await client.get(address, host) == 404
    client.close()
