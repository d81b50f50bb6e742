"""What the tests of FRR and of the lab use: FRR itself, and namespaces of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from akocore.engines.frr.process import Frr, FrrError, end, find_frr
from akocore.lab.topology import Plan, Topology, sweep

PREFIX = f"akot-{os.getpid()}-"

Lab = Callable[..., AbstractAsyncContextManager[Topology]]


@pytest.fixture(scope="session")
def frr(require_real: Callable[[bool, str], None]) -> Frr:
    """FRR, where it can be run: as root, with namespaces."""
    try:
        found = find_frr()
    except FrrError as err:
        require_real(False, f"FRR: {err}")
        raise
    require_real(os.geteuid() == 0, "root")
    require_real(shutil.which("ip") is not None, "iproute2")
    return found


@pytest.fixture
def directory() -> Iterator[Path]:
    """Short, for the sockets in it, and open to FRR's user.  What runs there is ended."""
    with tempfile.TemporaryDirectory(prefix=PREFIX) as name:
        path = Path(name)
        path.chmod(0o755)
        try:
            yield path
        finally:
            for child in path.iterdir():
                end(child)


@pytest.fixture
def namespace(frr: Frr) -> Iterator[Path]:
    """A network namespace with nothing but a loopback interface."""
    name = f"{PREFIX}alone"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        yield Path("/run/netns") / name
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


@pytest.fixture
def lab(frr: Frr, directory: Path) -> Lab:
    """``async with lab(engines, vips, **plan) as topology``: up, and down again."""

    @asynccontextmanager
    async def running(
        engines: int = 1, vips: tuple[str, ...] = ("10.10.16.224",), **plan: Any
    ) -> AsyncIterator[Topology]:
        topology = Topology(directory / "lab", frr, Plan(prefix=PREFIX, **plan))
        try:
            await topology.up(engines, vips)
            yield topology
        finally:
            topology.release()
            await sweep(directory / "lab", PREFIX)

    return running
