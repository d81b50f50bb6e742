"""A controller whose open files run out, by connections of anybody to its metrics."""

from __future__ import annotations

import asyncio
import os
import resource
from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from e2e.running import Backend, Running
from e2e.scraping import ANYWHERE, endpoints, get


@pytest_asyncio.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    server = await asyncio.get_running_loop().create_server(Backend, "127.0.0.1", 0)
    made = Running(tmp_path, server.sockets[0].getsockname()[1])
    made.options = ANYWHERE
    yield made
    await made.stop()
    server.close()


async def test_it_says_so_once_and_serves_what_was_written_meanwhile(running: Running) -> None:
    running.dummy("app", 1)
    await running.start()
    await running.until_up_to_date(1)
    at = await endpoints(running.log)
    host, _, port = at.rpartition(":")
    held = [await asyncio.open_connection(host, int(port)) for _ in range(4)]
    most = len(os.listdir(f"/proc/{running.pid}/fd"))
    resource.prlimit(running.pid, resource.RLIMIT_NOFILE, (most, most))
    held += [await asyncio.open_connection(host, int(port)) for _ in range(40)]  # by the kernel
    running.dummy("app", 2)
    (running.directory / "later").mkdir()
    await asyncio.sleep(3)
    said = running.log.read_text().count("event=no_files_left")
    assert 1 <= said <= 2  # once a minute: of connections, and of files
    assert running.log.stat().st_size < 100_000
    for _, writer in held:
        writer.transport.abort()
        writer.close()
    await running.until_up_to_date(2)
    assert (await get(at, "/healthz"))[0] == 200


async def test_a_connection_is_for_one_question_and_the_oldest_makes_room(
    running: Running,
) -> None:
    running.dummy("app", 1)
    await running.start()
    await running.until_up_to_date(1)
    at = await endpoints(running.log)
    host, _, port = at.rpartition(":")
    first, second = [await asyncio.open_connection(host, int(port)) for _ in range(2)]
    second[1].write(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
    answer = await asyncio.wait_for(second[0].read(), 10)  # to its end
    assert answer.startswith(b"HTTP/1.1 200")
    held = [first, second]
    held += [await asyncio.open_connection(host, int(port)) for _ in range(80)]
    assert await asyncio.wait_for(first[0].read(), 10) == b""
    assert (await get(at, "/healthz"))[0] == 200
    for _, writer in held:
        writer.transport.abort()
        writer.close()
