"""One true cluster for all tests of this room; slow, so none of them is part of `make test`."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nodes.cluster import HOME, Nodes
from nodes.outside import Outside
from nodes.site import CHART, Site

_IMAGES = Path(__file__).parents[2] / "deploy" / "images"


@pytest.fixture(scope="session")
def nodes(require_real: Callable[[bool, str], None]) -> Iterator[Nodes]:
    """Four nodes, or $NODES, with both images of akocore.  One that was up before stays up."""
    able = os.geteuid() == 0 and bool(shutil.which("apt-get")) and bool(shutil.which("go"))
    require_real(able, "root with apt-get and go")
    made = Nodes(int(os.environ.get("NODES", "4")))
    was_up = made.running
    try:
        if not os.environ.get("KEEP_IMAGES"):  # those of the last run, while tests are written
            subprocess.run([_IMAGES, HOME / "images"], check=True, stdout=subprocess.DEVNULL)
        made.start()
        yield made
    finally:
        if not was_up:
            made.stop()


@pytest.fixture(scope="session")
def outside(nodes: Nodes) -> Iterator[Outside]:
    """A router with which Service Engines speak BGP, and a client behind it."""
    with tempfile.TemporaryDirectory(prefix="akocore-") as home:
        Path(home).chmod(0o755)  # FRR's daemons are another user
        made = Outside(Path(home))
        try:
            made.start()
            yield made
        finally:
            made.stop()


@pytest.fixture(scope="session")
def site(nodes: Nodes, outside: Outside) -> Site:
    """The chart installed, and applications of L7 and L4 served through the router."""
    made = Site(nodes, outside)
    made.install(CHART)
    made.serve()
    return made
