"""The lab's tests use what those of FRR use, and some a controller over it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from akocore.engines.envoy.process import EngineError, find_envoy
from akocore.engines.frr.process import Frr
from akocore.lab.topology import Plan, Topology
from frr.conftest import PREFIX, directory, frr, lab
from lab.rhi_house import House, house_over

__all__ = ["directory", "frr", "lab"]


@pytest.fixture
async def house(
    request: pytest.FixtureRequest,
    frr: Frr,
    directory: Path,
    require_real: Callable[[bool, str], None],
) -> AsyncIterator[House]:
    """``request.param``: what of the lab's plan is to be otherwise."""
    try:
        envoy = find_envoy()
    except EngineError as err:
        require_real(False, str(err))
        raise
    plan = Plan(prefix=f"{PREFIX}r-", **getattr(request, "param", {}))
    topology = Topology(directory / "lab", frr, plan)
    async with house_over(topology, directory, envoy) as made:
        yield made
