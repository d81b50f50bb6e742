"""Nobody's small file waits for somebody's big one."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator

import pytest_asyncio

from akocore.big_files import BigFiles

from .conftest import Bench, said, service

BIG = "---\n".join(service(f"big-{i}") for i in range(3000))  # 0.2 MB: long to read


async def test_a_small_file_comes_before_a_big_one_that_was_written_first(bench: Bench) -> None:
    async with bench.watching():
        bench.write("big.yaml", BIG)
        await asyncio.sleep(0.02)
        bench.write("small.yaml", service("small"))
        assert said(await bench.next()) == ["+Service/shop/small"]
        assert len((await bench.next()).changes) == 3000


async def test_an_object_that_moves_into_a_big_file_is_never_gone(bench: Bench) -> None:
    bench.write("small.yaml", service("moves") + "---\n" + service("stays"))
    async with bench.watching():
        bench.write("big.yaml", BIG + "---\n" + service("moves", 81))
        bench.write("small.yaml", service("stays"))
        found: list[str] = []
        while "+Service/shop/moves" not in found:
            found += said(await bench.next())
        assert "-Service/shop/moves" not in found


async def test_a_file_that_shrinks_while_it_is_read_ends_as_it_is(bench: Bench) -> None:
    async with bench.watching():
        bench.write("big.yaml", BIG)
        await asyncio.sleep(0.02)
        bench.write("big.yaml", service("alone"))
        found: set[str] = set()
        while not found & {"+Service/shop/alone"}:
            found |= set(said(await bench.next()))
        assert {one for one in found if one[0] == "-"} == {
            f"-{one[1:]}" for one in found - {"+Service/shop/alone"} if one[0] == "+"
        }


class Reader:
    """Reads what it is told to, when it is let."""

    def __init__(self) -> None:
        self.now = 0.0
        self.read: list[str] = []
        self.let = threading.Semaphore(0)
        self.ready = asyncio.Event()
        self.big: BigFiles[str] = BigFiles(self._read, self.ready.set, lambda: self.now)

    def _read(self, path: str) -> list[str]:
        assert self.let.acquire(timeout=10)
        self.read.append(path)
        return [path]

    async def one(self, takes_s: float = 0.0) -> str:
        self.now += takes_s
        self.let.release()
        await asyncio.wait_for(self.ready.wait(), 10)
        self.ready.clear()
        ((found, _),) = self.big.take()
        return found[0]


@pytest_asyncio.fixture
async def reader() -> AsyncIterator[Reader]:
    made = Reader()
    yield made
    made.big.close()
    made.let.release()


async def test_a_file_that_is_edited_without_end_leaves_room_for_others(reader: Reader) -> None:
    reader.big.add(["a"], [], 0.0)
    await asyncio.sleep(0.05)
    reader.big.add(["a", "b"], [], 0.0)
    assert await reader.one(takes_s=1.0) == "a"
    assert "a" in reader.big
    assert await reader.one() == "b"  # a rests
    reader.now += 1.5
    reader.big.add(["c"], ["d"], 0.0)
    assert [await reader.one() for _ in range(3)] == ["a", "c", "d"]
    assert len(reader.big) == 0


async def test_a_file_that_is_read_in_a_moment_takes_a_tenth_of_a_processor(
    reader: Reader,
) -> None:
    reader.big.add(["a"], [], 0.0)
    await asyncio.sleep(0.05)
    reader.big.add(["a", "b"], [], 0.0)
    assert [await reader.one(takes_s=0.1), await reader.one()] == ["a", "b"]
    reader.now += 0.5
    reader.big.add(["c"], [], 0.0)
    assert await reader.one() == "c"  # a rests
    reader.now += 0.5
    reader.big.add(["d"], [], 0.0)
    assert [await reader.one() for _ in range(2)] == ["a", "d"]
