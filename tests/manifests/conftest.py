"""A directory of manifests in tmp_path, with a memory and a clock that tests can see."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

import pytest

from akocore.manifests import Batch, ManifestDirectory


class Rooms:
    """The least that can be a `Memory`."""

    def __init__(self) -> None:
        self.facts: dict[str, dict[str, str]] = {}

    def room(self, name: str) -> Mapping[str, str]:
        return self.facts.setdefault(name, {})

    def put(self, room: str, key: str, value: str) -> None:
        self.facts.setdefault(room, {})[key] = value

    def drop(self, room: str, key: str) -> None:
        self.facts.setdefault(room, {}).pop(key, None)


class Bench:
    """One root, one memory; ``start`` is a process that begins anew on both."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.memory = Rooms()
        self.time = "2026-01-01T00:00:00Z"
        self.directory: ManifestDirectory
        self._stop = asyncio.Event()
        self._batches: asyncio.Queue[Batch] = asyncio.Queue()

    def write(self, path: str, text: str | bytes) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text if isinstance(text, bytes) else text.encode())

    def load(self) -> Batch:
        self.directory = ManifestDirectory(self.root, self.memory, lambda: self.time)
        return self.directory.load()

    @contextlib.asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        self.load()
        self._stop = asyncio.Event()
        self._batches = asyncio.Queue()
        task = asyncio.create_task(self._watch())
        await asyncio.sleep(0.1)
        yield
        self._stop.set()
        await task

    async def _watch(self) -> None:
        async for batch in self.directory.watch(self._stop):
            self._batches.put_nowait(batch)

    async def next(self) -> Batch:
        return await asyncio.wait_for(self._batches.get(), 5)

    async def until(self, enough: Callable[[list[Batch]], bool]) -> list[Batch]:
        batches: list[Batch] = []
        while not enough(batches):
            batches.append(await self.next())
        return batches

    async def quiet(self, seconds: float = 0.3) -> None:
        await asyncio.sleep(seconds)
        assert self._batches.empty(), self._batches.get_nowait()


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    root = tmp_path / "manifests"
    root.mkdir()
    return Bench(root)


def service(name: str, port: object = 80, more: str = "") -> str:
    return f"""apiVersion: v1
kind: Service
metadata:
  name: {name}
  namespace: shop
{more}spec:
  ports:
  - port: {port}
"""


def said(batch: Batch) -> list[str]:
    """Changes as "+Service/shop/a" and "-Service/shop/a"."""
    return [f"{'-' if c.obj is None else '+'}{c.kind}/{c.key}" for c in batch.changes]
