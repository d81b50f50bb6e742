"""What every room's tests may use."""

import os
from collections.abc import Callable

import pytest


@pytest.fixture(scope="session")
def require_real() -> Callable[[bool, str], None]:
    """``require_real(have_it, what)`` skips without it; fails under AKOCORE_REQUIRE_REAL=1."""

    def check(have_it: bool, what: str) -> None:
        if not have_it:
            if os.environ.get("AKOCORE_REQUIRE_REAL") == "1":
                pytest.fail(f"AKOCORE_REQUIRE_REAL=1, but this machine has no {what}")
            pytest.skip(f"needs {what}")

    return check


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write goldens anew")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--update-golden") and os.environ.get("CI"):
        raise pytest.UsageError("--update-golden is for your own machine: review its diff")
