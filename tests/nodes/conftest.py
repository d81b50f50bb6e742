"""One true cluster for all tests of this room; slow, so none of them is part of `make test`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator

import pytest

from nodes.cluster import Nodes


@pytest.fixture(scope="session")
def nodes(require_real: Callable[[bool, str], None]) -> Iterator[Nodes]:
    able = os.geteuid() == 0 and bool(shutil.which("apt-get")) and bool(shutil.which("go"))
    require_real(able, "root with apt-get and go")
    made = Nodes(int(os.environ.get("NODES", "3")))
    try:
        made.start()
        yield made
    finally:
        made.stop()
