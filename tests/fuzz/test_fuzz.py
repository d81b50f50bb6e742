"""Objects that a machine makes up are translated, sent and told, and nobody is hurt by them.

FUZZ_SECONDS (120) and FUZZ_SEED (1) of the environment say how long, and with which.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fuzz.run import run


@pytest.mark.real
def test_made_up_objects_end_in_nothing_but_refusals(
    tmp_path: Path, require_real: Callable[[bool, str], None]
) -> None:
    require_real(os.geteuid() == 0, "root (the ports of Gateways are real ones)")
    require_real(shutil.which("go") is not None, "go")
    seed = int(os.environ.get("FUZZ_SEED", "1"))
    found = run(tmp_path, seed, float(os.environ.get("FUZZ_SECONDS", "120")))
    said = f"seed {seed}"
    assert not found.exceptions, said
    assert not found.nacks, said
    assert not found.deaths, said
    assert not found.silent, said
    assert found.translated > 100, said
    assert found.sent > 100, said
    assert sum(found.visited.values()) > 5, "of what was made up some had to answer, and did"
    assert len(found.good) > 10, "of most kinds something good was made up"
