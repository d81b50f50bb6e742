"""What the tests of the handover use: nftables, and namespaces of their own."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from frr.conftest import directory, frr, lab
from handover.rig import Rig

__all__ = ["directory", "frr", "lab"]

MakeRig = Callable[..., AbstractAsyncContextManager[Rig]]


@pytest.fixture(scope="session")
def nft(require_real: Callable[[bool, str], None]) -> str:
    require_real(os.geteuid() == 0, "root")
    require_real(shutil.which("ip") is not None, "iproute2")
    require_real(shutil.which("nft") is not None, "nftables")
    return "nft"


@pytest.fixture
def rig(nft: str, tmp_path: Path) -> MakeRig:
    """``async with rig(3) as running``; ``routed``, ``outer_6``: as `Rig` has them."""

    @asynccontextmanager
    async def running(
        count: int, *, routed: bool = False, outer_6: bool = False
    ) -> AsyncIterator[Rig]:
        made = Rig(tmp_path, count, routed=routed)
        made.outer_6 = outer_6
        try:
            await made.up()
            yield made
        finally:
            await made.down()

    return running
