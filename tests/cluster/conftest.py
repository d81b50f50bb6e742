"""One real control plane for all tests, empty for each of them."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from cluster.control_plane import ControlPlane
from cluster.controller import OBJECTS, Controller, install
from cluster.gateway_api import GROUP, definitions, plural
from cluster.pods import pods


@pytest.fixture(scope="session")
def endpoint(require_real: Callable[[bool, str], None]) -> Iterator[str]:
    able = os.geteuid() == 0 and bool(shutil.which("ip")) and bool(shutil.which("go"))
    require_real(able, "root with ip and go")
    with pods() as made:
        yield made


@pytest.fixture(scope="session")
def installed(endpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A control plane on which ``akocore install`` was run."""
    made = ControlPlane(tmp_path_factory.mktemp("plane"))
    try:
        made.start()
        install(made)
        yield made
    finally:
        made.stop()


@pytest.fixture
def plane(installed: ControlPlane) -> Iterator[ControlPlane]:
    """The same, with nothing in it that a test left."""
    yield installed
    installed.start()  # what a test killed
    installed.empty()


@pytest_asyncio.fixture
async def controller(
    tmp_path: Path, plane: ControlPlane, endpoint: str
) -> AsyncIterator[Controller]:
    made = Controller(tmp_path, plane, endpoint)
    yield made
    await made.stop()


@pytest_asyncio.fixture
async def walkthrough(controller: Controller) -> Controller:
    """The walkthrough's 20 applications, LARGE, served."""
    controller.apply(OBJECTS)
    controller.apps(20, "critical-ic")
    await controller.start()
    await controller.until(lambda: len(controller.shown()) == 20)
    return controller


@pytest.fixture(scope="module")
def undefined(installed: ControlPlane) -> Iterator[ControlPlane]:
    """A control plane whose definitions of the Gateway API go when this module is over."""
    yield installed
    for one in definitions().split(","):
        installed.kubectl("delete", "--ignore-not-found", "--timeout=60s", "-f", one)
    installed.forget_kinds()


@pytest.fixture(scope="module")
def defined(undefined: ControlPlane) -> ControlPlane:
    """The control plane with the published definitions."""
    undefined.kubectl("apply", "--server-side", "--force-conflicts", "-f", definitions())
    for name in ("gatewayclass", "gateway", "httproute"):
        undefined.kubectl("wait", "--for=condition=Established", f"crd/{plural(name)}.{GROUP}")
    return undefined
